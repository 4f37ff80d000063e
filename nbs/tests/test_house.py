"The plan of the package, read from the imports: layers that only look down, names that only one place gives."
import ast, re
from pathlib import Path
import pytest
import pixelreg

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("workbook", "images", "targets", "learning", "attacks", "defences", "local", "analysis") # the first knows none of the others
ROOMS = {p.relative_to(ROOT/"pixelreg").with_suffix("").as_posix().replace("/", "."): p for p in sorted((ROOT/"pixelreg").glob("*/*.py")) if p.stem != "__init__"}

def imported(path):
    "The rooms that a room imports, wherever the import stands"
    wing, found = path.parent.name, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): found |= {a.name.removeprefix("pixelreg.") for a in node.names}
        if not isinstance(node, ast.ImportFrom): continue
        if (node.level, node.module) in ((0, "pixelreg"), (2, None)): found |= {pixelreg._FACE[a.name] for a in node.names if a.name in pixelreg._FACE}
        if node.level == 1: found.add(f"{wing}.{node.module}" if node.module else wing)
        if node.level == 2: found |= {node.module} if "." in (node.module or "") else {f"{node.module}.{n.name}" for n in node.names}
        if node.level == 0 and node.module.startswith("pixelreg."): found |= {(module := node.module.removeprefix("pixelreg.")), *(f"{module}.{n.name}" for n in node.names)}
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
