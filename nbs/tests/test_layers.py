"Packages import only those below them in the order that CONTRIBUTING states, and each keeps to its subject."

import ast
import re
from pathlib import Path

import pytest

import pixelreg

ROOT = Path(__file__).resolve().parents[2]
LAYERS = [  # a package may import its own modules and packages of earlier lines
    ("experiment",),
    ("data",),
    ("targets",),
    ("regularizer",),
    ("training",),
    ("attacks",),
    ("defences", "local_learning"),
    ("stats",),
    ("plots",),
    ("claims",),
    ("evaluation", "explorer", "benchmarks", "site"),
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
SKIPPED = ("__init__", "__main__", "_modidx")
MODULES = {
    ".".join(path.relative_to(ROOT / "pixelreg").with_suffix("").parts): path
    for path in sorted((ROOT / "pixelreg").rglob("*.py"))
    if path.stem not in SKIPPED
}


def package_of(module):
    return module.split(".")[0]


def imported_modules(module):
    "The modules of the package that a module imports, wherever the import stands"
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom):
            continue
        parents = ["pixelreg", *module.split(".")][: -node.level] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        if base == "pixelreg":
            names |= {
                f"pixelreg.{pixelreg._MODULE_OF[a.name]}"
                for a in node.names
                if a.name in pixelreg._MODULE_OF
            }
    return {name.removeprefix("pixelreg.") for name in names} & MODULES.keys()


def test_every_package_has_a_place():
    assert {package_of(module) for module in MODULES} == LEVEL.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down_the_table(module):
    package = package_of(module)
    for other in imported_modules(module):
        below = LEVEL[package_of(other)] < LEVEL[package]
        assert below or package_of(other) == package, f"{module} imports {other}"


def test_the_plug_in_needs_targets_alone():
    for module in MODULES:
        if package_of(module) == "regularizer":
            others = {m for m in imported_modules(module) if package_of(m) != "regularizer"}
            assert others <= {"targets.similarity", "targets.pair_sampler"}, module


def test_no_modules_wait_for_each_other():
    needs = {module: imported_modules(module) for module in MODULES}
    done = set()
    while ready := [m for m in needs if m not in done and needs[m] <= done]:
        done.update(ready)
    assert done == needs.keys(), f"modules that wait for each other: {sorted(needs.keys() - done)}"


@pytest.mark.parametrize("module", MODULES)
def test_no_function_takes_the_parameters_of_a_chapter(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.arg) and node.annotation:
            assert "SimpleNamespace" not in ast.unparse(node.annotation), (
                f"{module}, line {node.lineno}"
            )


def test_only_what_draws_knows_matplotlib():
    pattern = re.compile(r"^\s*(import|from) .*(matplotlib|pandas)", re.M)
    for module, path in MODULES.items():
        libraries = {match[2] for match in pattern.finditer(path.read_text())}
        if LEVEL[package_of(module)] < LEVEL["plots"] and module != "experiment.kernels":
            assert "matplotlib" not in libraries, module
        if LEVEL[package_of(module)] in range(1, LEVEL["attacks"]):
            assert "pandas" not in libraries, module


def test_a_data_set_has_one_name_everywhere():
    for path in [*MODULES.values(), *(ROOT / "nbs").rglob("[!.]*.ipynb")]:
        assert not re.search(r"\b(cls_data|reg_data)\b", path.read_text()), path


def test_no_public_name_is_defined_twice():
    "A name of `__all__` says which function is meant, without its module"
    homes = {}
    for module, path in MODULES.items():
        match = re.search(r"^__all__ = (\[.*?\])", path.read_text(), re.M | re.S)
        for name in ast.literal_eval(match[1]) if match else []:
            homes.setdefault(name, []).append(module)
    twice = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not {name for name in twice if name != "main"}, twice  # `main` is each command's own


def test_names_that_changed_still_resolve():
    for old, new in pixelreg._RENAMED.items():
        with pytest.warns(DeprecationWarning, match=new):
            assert getattr(pixelreg, old) is getattr(pixelreg, new)
