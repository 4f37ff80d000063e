"The plan of the house, read from the imports: wings that only look down, rooms one can read, names that only one place gives."
import ast, re
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("workbook", "images", "targets", "learning", "attacks", "defences", "local", "analysis") # the first knows none of the others
ROOMS = {p.relative_to(ROOT/"pixelreg").with_suffix("").as_posix().replace("/", "."): p for p in sorted((ROOT/"pixelreg").glob("*/*.py")) if p.stem != "__init__"}
LONG_CLASSES = {"targets.pairs.Pairs": 135, "analysis.explorer.Shown": 100, "learning.regularizer.SimilarityRegularizer": 85} # to be split; what is shorter than its entry says shortens it

def imported(path):
    "The rooms that a room imports, wherever the import stands"
    wing, found = path.parent.name, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom): continue
        if node.level == 1: found.add(f"{wing}.{node.module}" if node.module else wing)
        if node.level == 2: found |= {node.module} if "." in (node.module or "") else {f"{node.module}.{n.name}" for n in node.names}
        if node.level == 0 and (node.module or "").startswith("pixelreg."): found.add(node.module.removeprefix("pixelreg."))
    return {r for r in found if r in ROOMS}

@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_down(room):
    above = [other for other in imported(ROOMS[room]) if WINGS.index(other.split(".")[0]) > WINGS.index(room.split(".")[0])]
    assert not above, f"{room} looks up to {', '.join(above)}"

def test_no_circle():
    needs, done = {room: imported(path) for room, path in ROOMS.items()}, set()
    while ready := [r for r in needs if r not in done and needs[r] <= done]: done.update(ready)
    assert done == set(needs), f"rooms that wait for each other: {sorted(set(needs)-done)}"

@pytest.mark.parametrize("room", ROOMS)
def test_a_room_can_be_read(room):
    text = ROOMS[room].read_text()
    assert len(text.splitlines()) <= 310, "a room of at most about 300 lines"
    classes = {f"{room}.{n.name}": n.end_lineno-n.lineno+1 for n in ast.parse(text).body if isinstance(n, ast.ClassDef)}
    for name, lines in classes.items(): assert lines <= LONG_CLASSES.get(name, 75), f"{name} has {lines} lines"
    for name, lines in LONG_CLASSES.items(): assert name not in classes or classes[name] > lines-15, f"{name} has {classes[name]} lines: shorten its entry"

@pytest.mark.parametrize("room", ROOMS)
def test_no_room_takes_a_chapters_parameters(room):
    for node in ast.walk(ast.parse(ROOMS[room].read_text())):
        if isinstance(node, ast.arg) and node.annotation: assert "SimpleNamespace" not in ast.unparse(node.annotation), f"{room}, line {node.lineno}"

def test_wings_of_the_lower_floors_draw_nothing():
    "Below the analysis only the drawing room of the workbook knows matplotlib; training knows no pandas"
    drawn = [room for room, path in ROOMS.items() if re.search(r"^(import|from) .*matplotlib", path.read_text(), re.M) and not room.startswith("analysis.")]
    assert drawn == ["workbook.figures"], drawn
    tabled = [room for room, path in ROOMS.items() if re.search(r"^import .*pandas", path.read_text(), re.M) and room.split(".")[0] in ("images", "targets", "learning")]
    assert not tabled, tabled

def test_data_set_has_one_name_everywhere():
    for path in [*ROOMS.values(), *(ROOT/"nbs").rglob("[!.]*.ipynb")]: assert not re.search(r"\b(cls_data|reg_data)\b", path.read_text()), path
