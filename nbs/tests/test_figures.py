"Committed figures are what their numbers draw: redrawn from csv and json they are equal, their text can be read in print, their captions are there."

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from pixelreg.benchmarks import bench, networks  # noqa: F401 (these register their tables)
from pixelreg.claims import ledger  # noqa: F401
from pixelreg.plots.captions import make_caption, refresh_captions
from pixelreg.plots.redraw import redraw_files, saved_figure
from pixelreg.plots.registry import NotKept, find_drawing
from pixelreg.plots.style import COLUMN, PAGE, STYLE_SHEET

ROOT = Path(__file__).resolve().parents[2]
EVERY = sorted(ROOT.glob("figures/*/[plrktx]_*.json"))
EVERY = [path for path in EVERY if path.parent.name != "smoke"]
QUICK = [path for path in EVERY if path.parent.name == "quick" and find_drawing(path.stem)]


def name(path):
    return f"{path.parent.name}/{path.stem}"


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


@pytest.mark.parametrize("path", QUICK, ids=name)
def test_redrawn_from_its_numbers_a_figure_is_the_committed_one(path):
    "To the byte on the processor it was drawn on; elsewhere a few edges may be rounded otherwise"
    files, _ = redraw_files(path)
    for file, data in files.items():
        committed = path.with_name(file).read_bytes()
        if file.endswith(".png") and data != committed:
            now, then = pixels(data), pixels(committed)
            assert now.shape == then.shape
            assert (np.abs(now - then).max(2) > 40).mean() < 1e-3, file
        else:
            assert data == committed, f"{file}: python -m pixelreg redraw quick"


@pytest.mark.parametrize("path", [p for p in QUICK if not find_drawing(p.stem).is_table], ids=name)
def test_text_is_read_in_print(path):
    "At the width of a column or a page no text is below seven points, none is cut, and no title of the whole stands in the picture"
    fig = find_drawing(path.stem).make(*saved_figure(path))
    fig.canvas.draw()
    assert fig.get_figwidth() in (COLUMN, PAGE)
    assert fig._suptitle is None
    for text in fig.findobj(Text):
        if not (text.get_visible() and text.get_text().strip()):
            continue
        assert text.get_fontsize() >= 7, text
    box = fig.get_tightbbox()  # of all that is drawn, in inches
    assert box.x0 > -0.02 and box.x1 < fig.get_figwidth() + 0.02, box
    assert box.y0 > -0.02 and box.y1 < fig.get_figheight() + 0.02, box
    plt.close(fig)


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_statistics_are_made_of_the_saved_numbers(path):
    "All but the ledger's: from csv and json, up to the six digits that are saved"
    table, stats, facts = saved_figure(path)
    drawing = find_drawing(path.stem)
    if drawing is None or drawing.statistics is None:
        assert stats is None or path.stem == "x_ledger"
        return
    made = drawing.statistics(table, facts)
    if stats is None:
        assert not len(made)
    else:
        pd.testing.assert_frame_equal(made, stats, check_dtype=False, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("path", EVERY, ids=name)
def test_every_figure_has_its_caption(path):
    table, stats, facts = saved_figure(path)
    caption = path.with_suffix(".md").read_text()
    assert caption.startswith(make_caption(facts, table, stats)), "python -m pixelreg redraw"
    drawing = find_drawing(path.stem)
    if drawing and drawing.is_table:
        assert "\n| --- |" in caption and path.with_suffix(".tex").exists()
        assert not path.with_suffix(".png").exists()
    else:
        assert path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    "chapter", sorted(ROOT.glob("nbs/[0-9][0-9]_*.ipynb")), ids=lambda p: p.stem
)
def test_captions_of_chapters_are_fresh(chapter):
    assert not refresh_captions([chapter], write=False), "run python -m pixelreg tables"


def test_a_figure_without_its_arrays_says_so(tmp_path):
    path = ROOT / "figures" / "quick" / "r_fig3.json"
    for part in path.parent.glob("r_fig3.*"):
        (tmp_path / part.name).write_bytes(part.read_bytes())
    facts = json.loads(path.read_text())
    facts.pop("histograms", None)
    (tmp_path / path.name).write_text(json.dumps(facts))
    with pytest.raises(NotKept):
        redraw_files(tmp_path / path.name)


def test_the_style_sheet_is_installed_with_the_package():
    "It lies in the package, and what pip installs holds it"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pixelreg"]
    (sheet,) = (ROOT / "pixelreg").glob("*.mplstyle")
    assert any(sheet.match(pattern) for pattern in patterns)
    assert STYLE_SHEET == f"pixelreg.{sheet.stem}"


def test_the_command_redraws(tmp_path):
    "A figure in three formats, in a folder of its own"
    folder = tmp_path / "quick"
    folder.mkdir()
    for part in (ROOT / "figures" / "quick").glob("p_fig12*"):
        (folder / part.name).write_bytes(part.read_bytes())
    command = [sys.executable, "-m", "pixelreg", "redraw", "quick", "--only", "p_fig12"]
    env = os.environ | dict(PIXELREG_FIGURES=str(tmp_path))
    for formats in ("png,pdf,svg", "gif"):
        done = subprocess.run(
            [*command, "--formats", formats], env=env, capture_output=True, text=True
        )
        assert (done.returncode == 0) == (formats != "gif"), done.stderr
    assert {p.suffix for p in folder.glob("p_fig12.*")} >= {".png", ".pdf", ".svg", ".md"}
    sums = json.loads((folder / "p_fig12.json").read_text())["sha256"]
    assert {"p_fig12.pdf", "p_fig12.svg"} <= sums.keys()
