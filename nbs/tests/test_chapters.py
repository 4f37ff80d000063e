"The chapters as users run them: in sequence at preset smoke, and one alone by papermill from another folder."

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    "All chapters at preset smoke in a throw-away store"
    tmp = tmp_path_factory.mktemp("smoke")
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PIXELREG_DATA", "PIXELREG_PRESET", "PIXELREG_STORE")
    } | dict(
        PIXELREG_STORE=str(tmp / "store"), PIXELREG_WORKERS="1"
    )  # no worker processes to start for jobs of a second

    def run(*args):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pixelreg",
                "paper",
                "--preset",
                "smoke",
                "--out",
                str(tmp / "build"),
                *args,
            ],
            cwd=tmp,
            env=env,
            capture_output=True,
            text=True,
        )

    first = run()
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    return dict(tmp=tmp, env=env, run=run, first=first.stdout)


def summary(text):
    rows = [
        line.split() for line in text.split("figures\n", 1)[1].splitlines() if line[:2].isdigit()
    ]
    return {r[0]: dict(trained=int(r[3]), figures=r[5:]) for r in rows}


def test_sequence_draws_the_figures(smoke):
    rows = summary(smoke["first"])
    assert len(rows) == len(list((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")))
    assert sum(r["trained"] for r in rows.values()) >= 11  # five arms, two seeds, the source
    drawn = {f for r in rows.values() for f in r["figures"]}
    assert {"p_fig02", "p_fig03", "p_fig11", "p_fig12", "p_fig13", "x_gamma", "x_learning"} <= drawn
    for f in drawn - {"-"}:
        saved = ROOT / "figures" / "smoke" / f
        picture = ".png" if saved.with_suffix(".png").exists() else ".tex"  # of a table
        for kind in (picture, ".csv", ".json", ".md"):
            assert saved.with_suffix(kind).stat().st_size > 50
    assert "about" in smoke["first"]  # an estimate stands before the training


def test_smoke_keeps_trained_networks(smoke, monkeypatch):
    "No arm's best epoch is the untrained one, so arms of one seed answer differently"
    import torch

    from pixelreg import ImageSet, Recipe
    from pixelreg.experiment.presets import PRESETS
    from pixelreg.training.recipe import make_arms
    from pixelreg.training.runs import Run

    monkeypatch.setenv("PIXELREG_STORE", smoke["env"]["PIXELREG_STORE"])
    arms = make_arms(Recipe.from_dict(PRESETS["smoke"]), PRESETS["smoke"]["arms"].split(","))
    x = ImageSet("photographs", "test", n=20).load().float()
    for seed in range(2):
        runs = [Run(arm, r := recipe.replace(seed=seed), r.key()) for arm, recipe in arms.items()]
        assert all(run.best()["epoch"] > 0 for run in runs), [(run.arm, run.best()) for run in runs]
        with torch.no_grad():
            logits = [run.model("cpu")(x) for run in runs]
        assert all((a - b).abs().max() > 0.01 for i, a in enumerate(logits) for b in logits[:i])


def test_second_run_retrains_nothing(smoke):
    second = smoke["run"]("--chapters", "05,07")
    assert second.returncode == 0
    assert all(r["trained"] == 0 for r in summary(second.stdout).values())


def test_one_figure_is_drawn_alone_as_in_its_chapter(smoke):
    "Only the cells that it needs are executed, and its numbers are those of the whole chapter"
    figures = ["p_tab2", "x_batchnorm", "l_tab1", "x_alternatives", "k_fig9_5", "x_confined"]
    saved = [ROOT / "figures" / "smoke" / f"{figure}.csv" for figure in figures]
    before = [csv.read_bytes() for csv in saved]
    for csv in saved:
        csv.unlink()
    done = smoke["run"]("--only", ",".join(figures))
    assert done.returncode == 0, done.stdout[-3000:]
    rows = summary(done.stdout)
    assert {number[:2] for number in rows} == {"07", "12", "14", "15", "16", "18"}
    assert all(r["trained"] == 0 for r in rows.values())
    assert "x_init" not in rows["12_targets"]["figures"]
    assert before == [csv.read_bytes() for csv in saved]


def given(**parameters):
    "The words that give parameters"
    return [word for name, value in parameters.items() for word in ("-p", name, str(value))]


def papermill(smoke, *args, chapter="05_boundary"):
    "A chapter from another folder"
    out = smoke["tmp"] / "out.ipynb"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(ROOT / "nbs" / f"{chapter}.ipynb"),
            str(out),
            "--no-progress-bar",
            "-p",
            "preset",
            "smoke",
            *args,
        ],
        cwd=smoke["tmp"],
        env=smoke["env"],
        capture_output=True,
        text=True,
    )
    return done, json.loads(out.read_text())


def test_papermill_from_another_folder_trains_what_is_missing(smoke):
    done, nb = papermill(smoke, "-p", "seeds", "0,2")
    assert done.returncode == 0, done.stderr[-3000:]
    text = "".join("".join(o.get("text", [])) for c in nb["cells"] for o in c.get("outputs", []))
    assert (
        "10 runs: 5 in the store, 5 to train" in text
    )  # seed 0 of five arms is there, seed 2 is not


@pytest.mark.parametrize(
    "given, said",
    [
        (("-p", "sedes", "3"), "unknown parameter sedes=3: did you mean seeds"),
        (("-p", "dataset", "cifar11"), "dataset must be one of photographs"),
        (("-p", "seeds", "1-x"), "a range (0-6)"),
        (("-p", "seeds", "999-1000"), "others than 1000, which is kept for"),
        (("-p", "alpha", "-1"), "alpha must be in [0, 1e9), got -1.0"),
        (("-p", "layers", "stem,layer9"), "'layer9' is not a layer"),
        (("-p", "width", "0"), "width must be in [1, 1e15], got 0"),
        (("-p", "policy", "steps"), "policy must be cycles, linear or onecycle, got 'steps'"),
        (("-p", "steps", "0"), "steps must be in [1, 1e7], got 0"),
        (("-p", "figures", "../x"), "figures must be a plain name"),
        (("-p", "arms", "S_thin"), "arms must be among "),
    ],
)
def test_what_is_not_allowed_is_refused(smoke, given, said):
    done, _ = papermill(smoke, *given)
    assert done.returncode != 0 and said in done.stderr + done.stdout


def test_a_missing_data_set_says_where_it_was_looked_for(smoke):
    done, _ = papermill(smoke, "-p", "dataset", "cifar10")
    assert (
        done.returncode != 0
        and "cifar10" in done.stderr
        and "PIXELREG_DATA" in done.stderr
        and "download" in done.stderr
    )


def test_failing_chapter_is_named(smoke):
    done = smoke["run"]("--chapters", "04", "-p", "seeds", "nonsense")
    assert (
        done.returncode == 2 and "04_noise.ipynb: seeds must be a number of seeds" in done.stderr
    )  # before any kernel has trained anything
    done = smoke["run"](
        "--chapters", "03,14", "-p", "n_active", "0"
    )  # of a config that 14 alone has
    assert (
        done.returncode == 2
        and "14_minimal_norms.ipynb: n_active must be in [1, inf), got 0" in done.stderr
    )
    done = smoke["run"]("-p", "sedes", "1")
    assert (
        done.returncode == 2
        and "no chapter has the parameter sedes; for sedes there is seeds" in done.stderr
    )


def test_a_failing_chapter_stops_no_other(smoke):
    "A threshold that no pair reaches is found out by each chapter before it trains; those without it are drawn"
    done = smoke["run"]("--chapters", "00,03,04,13,17", "-p", "th", ".9999")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    rows = {
        line.split()[0]: line.endswith("FAILED")
        for line in done.stdout.split("figures\n", 1)[1].splitlines()
        if line[:2].isdigit()
    }
    assert rows == {
        "00_data": False,
        "03_training": True,
        "04_noise": True,
        "13_leaderboard": True,
        "17_claims": False,
    }
    for chapter in ("03_training", "04_noise", "13_leaderboard"):
        assert re.search(
            rf"failed: {chapter}\.ipynb, cell \d+: ValueError: th must be below 0\.\d+, the largest .S. of the 780 pairs",
            done.stdout,
        ), done.stdout
    assert (
        "-p th 0." in done.stdout and "to train" not in done.stdout.split("[2/5]")[1]
    )  # before anything was trained


def test_lists_of_yaml(smoke):
    (smoke["tmp"] / "given.yaml").write_text("arms: [unregularized, S_Th]\nseeds: ['0']\n")
    done, nb = papermill(smoke, "-f", str(smoke["tmp"] / "given.yaml"), chapter="03_training")
    assert done.returncode == 0 and "2 runs: " in json.dumps(nb), done.stderr[-3000:]


def test_two_sequences_in_one_folder(smoke):
    "Kernels' sockets and connection files lie in private folders, and none is left in the working folder"
    command = [
        sys.executable,
        "-m",
        "pixelreg",
        "paper",
        "--preset",
        "smoke",
        "--chapters",
        "00,01",
        "--out",
    ]
    both = [
        subprocess.Popen(
            [*command, str(smoke["tmp"] / f"out{i}")],
            cwd=smoke["tmp"],
            env=smoke["env"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in (0, 1)
    ]
    for p in both:
        said = p.communicate()[0]
        assert p.returncode == 0 and "WARNING" not in said and "Traceback" not in said, said[-2000:]
    assert not list(smoke["tmp"].glob("kernel*"))


def test_runs_and_parameters_are_listed(smoke):
    def say(*args):
        return subprocess.run(
            [sys.executable, "-m", "pixelreg", *args],
            env=smoke["env"],
            cwd=smoke["tmp"],
            capture_output=True,
            text=True,
        )

    listed = say("runs")
    assert listed.returncode == 0 and "finished" in listed.stdout and "runs," in listed.stdout
    names = say("params")
    assert names.returncode == 0 and {"alpha", "th", "layers", "n_attack"} <= {
        line.split()[0] for line in names.stdout.splitlines()
    }
