"What a newcomer relies on: modules agree with notebooks, notebooks are clean, every chapter can be parameterised, files that describe the project agree."

import ast
import builtins
import filecmp
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))
CHAPTERS = [n for n in NOTEBOOKS if n.name[:2].isdigit()]


def name(path):
    return path.stem


def cells(notebook, kind="code"):
    return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_modules_are_what_the_notebooks_export(tmp_path):
    for part in ("nbs", "settings.ini", "README.md"):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part)
        elif (ROOT / part).exists():
            shutil.copy(ROOT / part, tmp_path / part)
    (tmp_path / "pixelreg").mkdir()
    shutil.copy(ROOT / "pixelreg" / "__init__.py", tmp_path / "pixelreg" / "__init__.py")
    subprocess.run(["nbdev_export"], cwd=tmp_path, check=True, env=os.environ | dict(PYTHONPATH=""))
    theirs, ours = (
        {str(p.relative_to(top)) for p in (top / "pixelreg").rglob("*.py")}
        for top in (tmp_path, ROOT)
    )
    assert ours == theirs, (
        "modules without a notebook, or notebooks without a module: run nbdev_export"
    )
    _, differ, _ = filecmp.cmpfiles(ROOT, tmp_path, ours, shallow=False)
    assert not differ, "edited by hand or not exported: run nbdev_export"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebook_is_clean(notebook):
    for cell in cells(notebook):
        is_table = "table" in cell["metadata"].get("tags", [])
        assert is_table or not cell["outputs"], "outputs of cells that are no tables are committed"
        assert cell["execution_count"] is None, "run nbdev_clean"
        assert "nbdev_export(" not in source(cell), (
            "papermill would rewrite the package in the middle of an experiment"
        )
    first = source(cells(notebook, "markdown")[0])
    assert re.match(r"# .+\n+> .+", first), "a notebook opens with a title and a subtitle"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_tables_are_fresh(chapter):
    "What a chapter shows without being run is what its saved numbers say"
    from pixelreg.experiment.table_outputs import refresh_tables

    assert not refresh_tables([chapter], write=False), "run python -m pixelreg tables"


def test_generated_pages_are_fresh():
    from pixelreg.claims.pages import write_pages

    assert not write_pages(write=False), "run python -m pixelreg tables"


def measured_values(markdown):
    "Decimals and percentages of prose: not those of code, equations, links, tables, quotations, and not numbers of figures or sections"
    text = re.sub(r"```.*?```", "", markdown, flags=re.S)
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith((">", "|")))
    for left_out in (
        r"`[^`]*`",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"\]\([^)]*\)",
        r"95 % intervals?",
        r"\b(?:Figs?|Tables?|Eqs?\.?|[Ss]ections?|[Aa]ppendix|[Tt]heorem|K) \d+(?:\.\d+)*(?:(?:, | and | to )\d+(?:\.\d+)*)*",
    ):
        text = re.sub(left_out, "", text, flags=re.S)
    return re.findall(r"(?<![\w.])\d*\.\d+(?![\w.])|\d+(?:\.\d+)? ?%", text)


def test_values_of_prose_are_found():
    text = (
        "It gains .174 and 12 % (Fig 8.6, section 5.1, `th` .8, $Th = .8$).\n> quoted 0.3\n| 0.4 |"
    )
    assert measured_values(text) == [".174", "12 %", ".8"]


WITH_TABLES = [  # chapters whose numbers stand in tables
    "00_data",
    "01_similarity",
    "02_neural",
    "03_training",
    "04_noise",
    "05_boundary",
    "06_selection",
    "07_datasets",
    "08_corruptions",
    "09_spectra",
    "10_budget",
    "11_colour",
    "12_targets",
    "13_leaderboard",
    "14_minimal_norms",
    "15_defences",
    "16_local_learning",
    "17_claims",
    "18_mechanism",
]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_a_figure_can_be_drawn_alone(chapter):
    "The cells that `--only` keeps for a figure make every name that they read"
    from pixelreg.experiment.figure_cells import (
        cells_for_figures,
        figure_ids,
        names_needed,
        parse_statements,
    )

    there = nbformat.read(chapter, 4).cells
    figures = set().union(*(figure_ids(c.source) for c in there if c.cell_type == "code"))
    assert figures
    given = {*dir(builtins), "display", "_"}
    for figure in figures:
        kept = [there[i].source for i in cells_for_figures(there, [figure])]
        statements = [s for code in kept for s in parse_statements(code)]
        assert names_needed(statements) <= given, figure


def test_every_figure_has_a_chapter():
    "`--only` knows every figure that is committed"
    from pixelreg.experiment.figure_cells import chapters_with

    saved = (ROOT / "figures").glob("*/[klprtx]_*.json")
    drawn = {p.stem for p in saved if p.parent.name != "smoke"}  # which is not committed
    chapters_with(sorted(drawn - {"x_bench", "x_networks"}), CHAPTERS)  # of `make bench`


@pytest.mark.parametrize("chapter", [c for c in CHAPTERS if c.stem in WITH_TABLES], ids=name)
def test_prose_states_no_measured_values(chapter):
    for cell in cells(chapter, "markdown"):
        assert not measured_values(source(cell)), source(cell)
    assert any("table" in cell["metadata"].get("tags", []) for cell in cells(chapter))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_chapter_has_one_parameters_cell(chapter):
    tagged = [c for c in cells(chapter) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in source(tagged[0]).splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"\w+: (str|int|float|bool) = .+?  # .+", line), (
            f"not `name: type = value  # help`: {line}"
        )
    for node in ast.parse(source(tagged[0])).body:
        ast.literal_eval(node.value)  # literals only: what is derived would ignore -p
    assert {'preset: str = "auto"'} <= {line.split("  #")[0] for line in lines}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_a_chapter_hands_over_the_configs_of_the_table(chapter):
    "What `make paper` and `python -m pixelreg params` read in `CHAPTER_CONFIGS` is what the chapter itself takes"
    from pixelreg.experiment.presets import CHAPTER_CONFIGS

    nodes = []
    for cell in cells(chapter):
        if source(cell).startswith("#| experiment"):
            nodes += ast.walk(ast.parse(source(cell)))
    imported = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    calls = [ast.unparse(n) for n in nodes if isinstance(n, ast.Call) and _called(n) == "chapter"]
    configs = [f"pixelreg.{path}" for path in CHAPTER_CONFIGS[chapter.stem]]
    names = ", ".join(path.rpartition(".")[2] for path in configs)
    assert calls == [f"chapter(globals(), {names}, presets={chapter.stem!r})"]
    assert [imported[name] for name in names.split(", ")] == configs


def _called(call):
    return getattr(call.func, "id", "")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_what_a_parameters_cell_declares_are_fields(chapter):
    from pixelreg.experiment.parameters import COMMON_PARAMETERS, chapter_configs, config_fields
    from pixelreg.experiment.presets import CHAPTER_PRESETS, PRESETS

    fields = config_fields(*chapter_configs(chapter.stem))
    [cell] = [c for c in cells(chapter) if "parameters" in c["metadata"].get("tags", [])]
    declared = {node.target.id: node for node in ast.parse(source(cell)).body}
    for parameter, node in declared.items():
        if parameter in COMMON_PARAMETERS:
            continue
        field, kind = fields[parameter]
        kinds = [k.__name__ for k in get_args(kind) or [kind]]
        assert node.annotation.id in kinds, f"{parameter} is {kind}"
        value = ast.literal_eval(node.value)
        if value is None:
            continue
        assert value == field.default, "it would count as changed"
        for presets in (PRESETS, CHAPTER_PRESETS.get(chapter.stem, {})):
            assert not [p for p, values in presets.items() if parameter in values], (
                "let presets say it"
            )
    without_help = {parameter for parameter, (f, _) in fields.items() if not f.metadata["help"]}
    assert without_help <= declared.keys(), "explained nowhere"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_presets_are_valid(chapter, monkeypatch, tmp_path):
    from pixelreg.experiment.presets import CHAPTER_PRESETS, PRESETS
    from pixelreg.experiment.run_chapters import accepted_parameters, parameter_error

    monkeypatch.setenv("PIXELREG_FIGURES", str(tmp_path))
    monkeypatch.setenv("PIXELREG_MEMORY", "1000")
    for preset in PRESETS:
        changes = CHAPTER_PRESETS.get(chapter.stem, {}).get(preset, {})
        assert changes.keys() <= accepted_parameters(chapter)
        assert parameter_error(chapter, dict(preset=preset)) is None


def test_the_table_has_every_chapter():
    from pixelreg.experiment.presets import CHAPTER_CONFIGS, CHAPTER_PRESETS

    assert list(CHAPTER_CONFIGS) == [chapter.stem for chapter in CHAPTERS]
    assert CHAPTER_PRESETS.keys() - CHAPTER_CONFIGS.keys() == {"bench"}


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_an_unknown_parameter_is_answered_briefly(chapter, monkeypatch, tmp_path):
    from pixelreg.experiment.run_chapters import accepted_parameters, parameter_error

    monkeypatch.setenv("PIXELREG_STORE", str(tmp_path))
    monkeypatch.chdir(ROOT)
    slip = parameter_error(chapter, dict(preset="smoke", presset="x" * 9999))
    assert "did you mean preset" in slip and "python -m pixelreg params" in slip and len(slip) < 400
    other = parameter_error(chapter, dict(preset="smoke", qqq="1"))
    assert (
        len([n for n in accepted_parameters(chapter) if re.search(rf"\b{n}\b", other)]) <= 12
        and len(other) < 400
    )


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_experiment_imports_what_it_uses(chapter, tmp_path):
    "The experiment runs without the cells that export and check: what it needs comes from the package"
    code = "\n".join(source(c) for c in cells(chapter) if source(c).startswith("#| experiment"))
    (tmp_path / "experiment.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F821",
            "--output-format",
            "concise",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("chapter", CHAPTERS, ids=name)
def test_chapter_closes_with_what_it_does_not_show(chapter):
    assert "not show" in source(cells(chapter, "markdown")[-1])


def test_exported_package_needs_no_notebook():
    "Every module imports in a fresh interpreter without IPython, nbdev or fastcore"
    code = (
        "import sys, importlib\nfor m in ('IPython', 'nbdev', 'fastcore'): sys.modules[m] = None\n"
        + "".join(
            f"importlib.import_module({'.'.join(p.relative_to(ROOT).with_suffix('').parts)!r})\n"
            for p in sorted((ROOT / "pixelreg").rglob("*.py"))
            if p.stem not in ("__init__", "__main__", "_modidx", "sequence")
        )
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_plug_in_imports_torch_and_little_else():
    code = """import sys, time, torch
start = time.process_time()
from pixelreg import SimilarityRegularizer
heavy = ("matplotlib", "pandas", "scipy", "foolbox", "torchvision", "skimage", "IPython", "ipykernel", "papermill", "PIL", "lightning", "safetensors", "cloudpickle")
print(time.process_time()-start, *(m for m in heavy if m in sys.modules))"""
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    seconds, *heavy = said.split()
    print(f"from pixelreg import SimilarityRegularizer: {float(seconds):.2f} s beyond import torch")
    assert not heavy and float(seconds) < 0.5, said


def test_versions_stand_in_one_place():
    version = re.search(r"^version = (.+)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    import pixelreg

    assert pixelreg.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    pinned = {
        re.split("[=<>]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and line[0] != "#"
    }
    wanted = re.findall(r'"([a-z][\w-]+)(?:[<>=]+[\w.]+)"', (ROOT / "pyproject.toml").read_text())
    assert {w.lower() for w in wanted} - {
        "setuptools",
        "robustbench",
    } <= pinned  # the latter: an extra whose own pins are its own affair
    assert "-c constraints.txt" in (ROOT / "environment.yml").read_text()


def test_every_file_asks_for_the_same_python():
    "pyproject.toml, the Makefile, conda's environment and the front page"
    text = {
        name: (ROOT / name).read_text()
        for name in ("pyproject.toml", "Makefile", "environment.yml", "nbs/index.ipynb")
    }
    least, most = re.search(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', text["pyproject.toml"]
    ).groups()
    assert f"(3, {least}) <= sys.version_info < (3, {most})" in text["Makefile"]
    supported = [f"3.{n}" for n in range(int(least), int(most))]
    assert ", ".join(supported[:-1]) + f" or {supported[-1]} is needed" in text["Makefile"]
    assert re.search(r"- python=([\d.]+)", text["environment.yml"])[1] in supported
    assert f"Python {supported[0]} to {supported[-1]}" in text["nbs/index.ipynb"]
    assert int(most) <= 14, (
        "from 3.14 on a module has no __annotations__ (PEP 649): what a user edits in a parameters cell would be overlooked"
    )


def test_readme_is_the_executed_index(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "--no-progress-bar",
            "--cwd",
            str(ROOT / "nbs"),
            str(ROOT / "nbs" / "index.ipynb"),
            str(tmp_path / "README.ipynb"),
        ],
        check=True,
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "nbconvert",
            "--to",
            "markdown",
            "--no-input",
            str(tmp_path / "README.ipynb"),
        ],
        check=True,
    )
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), (
        "run make readme"
    )


RECORDED = ROOT / "nbs" / "tests" / "recorded"


def test_keys_of_recipes_stay():
    "What was trained stays valid through moves and new names: keys of recipes in the store depend on values alone"
    from pixelreg.defences.defended import defended_arms
    from pixelreg.defences.mixes import training_attacks
    from pixelreg.experiment.store import digest
    from pixelreg.training.recipe import BatchNormRecalibrated, Recipe, json_without_paths

    recorded = json.loads((RECORDED / "recipes.json").read_text())
    assert len(recorded["recipes"]) > 20
    for row in recorded["recipes"]:
        assert Recipe.from_dict(row["values"]).key() == row["key"], row["values"]
    for row in recorded["without_data"]:  # of data sets that a new machine does not have
        assert (
            digest(json_without_paths(Recipe.from_dict(row["values"]).non_defaults()))
            == row["digest"]
        ), row["values"]
    short = Recipe.from_dict(recorded["recipes"][7]["values"])
    defended = defended_arms(short, ["injection", "full_mix", "winners"], training_attacks(1))
    keys = {f"defended {name}": recipe.key() for name, recipe in defended.items()}
    assert keys | dict(recalibrated=BatchNormRecalibrated(short).key()) == recorded["derived"]


def laptop_commands():
    "The words of each `python -m pixelreg paper` of the page that says how figures/laptop was made"
    lines = (ROOT / "figures" / "laptop" / "README.md").read_text().splitlines()
    start = "python -m pixelreg paper "
    return [shlex.split(line[len(start) :], comments=True) for line in lines if start in line]


@pytest.mark.parametrize("words", laptop_commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_of_laptop_figures_are_taken(words):
    "Figures, chapters, parameters and their values are what this version knows"
    from pixelreg.experiment.figure_cells import chapters_with
    from pixelreg.experiment.run_chapters import accepted_parameters, chapters, parameter_error

    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    options = {word: value for word, value in zip(words, words[1:]) if word.startswith("--")}
    todo = chapters(options.get("--chapters", ""))
    if "--only" in options:
        todo = chapters_with(options["--only"].split(","), todo)
    assert given.keys() == set().union(*(accepted_parameters(n, given) for n in todo))
    for notebook in todo:
        taken = {k: given[k] for k in accepted_parameters(notebook, given)}
        assert parameter_error(notebook, taken | dict(preset="laptop")) is None


def test_every_laptop_figure_says_how_it_was_made():
    page = (ROOT / "figures" / "laptop" / "README.md").read_text()
    named = re.findall(r"`([a-z]_[\w*]+)`", page)
    for path in sorted((ROOT / "figures" / "laptop").glob("*.json")):
        assert any(fnmatch(path.stem, pattern) for pattern in named), path.stem


@pytest.mark.parametrize("folder", sorted((ROOT / "data" / "results").iterdir()), ids=name)
def test_packed_results_unpack_together(folder):
    "The archives of one kind of processor hold nothing twice with other content: a new machine takes in all of them"
    from pixelreg.experiment.archives import open_archives, unpack_entries
    from pixelreg.experiment.store import run_store, temporary_store

    with temporary_store():
        archives = open_archives([folder])
        assert archives
        for archive in archives:
            _, refused = unpack_entries(run_store(), archive)
            assert not refused, refused


def test_parameters_stay():
    "Names, types and defaults of what -p takes: a new parameter is recorded, a lost or changed one is a fault"
    from pixelreg.__main__ import parameters

    recorded = json.loads((RECORDED / "parameters.json").read_text())
    now = {row["name"]: [row["type"], row["default"]] for row in parameters()}
    assert now == recorded


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_call_what_is_there(path):
    "Every `make` target exists, and every Python is one that pip accepts"
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = {name for command in commands for name in re.findall(r"\bmake (\w+)", command)}
    assert commands and called <= targets, called - targets
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    for job in jobs:
        versions = job.get("strategy", {}).get("matrix", {}).get("python", [])
        for step in job["steps"]:
            given = str(step.get("with", {}).get("python-version", ""))
            versions += [given] if re.fullmatch(r"[\d.]+", given) else []
        assert versions and all(v in SpecifierSet(allowed) for v in versions), versions


def test_the_tested_pythons_are_those_that_pip_offers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {c.rpartition(" ")[2] for c in project["classifiers"] if ":: 3." in c}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == stated


def test_the_command_has_a_name_of_its_own():
    "What `pip install` makes of [project.scripts] is the function that `python -m pixelreg` calls"
    [(name, place)] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "scripts"
    ].items()
    module, _, function = place.partition(":")
    assert name == "pixelreg" and callable(getattr(import_module(module), function))
