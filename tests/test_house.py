"""The rooms of `interp`: arrows between them go one way, no two files need each other, old paths still lead there."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import interp
from docs.error_page import modules
from interp.moved import MOVED

ROOT = Path(__file__).parents[1]
PACKAGES = {"interp": ROOT, "interp_kernels": ROOT / "kernels", "interp_explorer": ROOT / "apps"}
FLOORS = (
    ("interp.errors", "interp.moved", "interp_kernels"),
    ("interp.discovery", "interp.files", "interp.undoing"),
    ("interp.cache", "interp.results", "interp.settings", "interp.studies.statistics", "interp.subjects"),
    ("interp.seam", "interp.figures", "interp.vision"),
    ("interp.interventions",),
    ("interp.lens",),
    ("interp.icl",),
    ("interp.probes",),
    ("interp.runs", "interp.explaining", "interp.report"),
    ("interp.tasks",),
    ("interp.icl.studies", "interp.studies"),
    ("interp",),
    ("interp.cli",),
    ("interp_explorer",),
)
"""From the ground up: a room imports from floors below its own, and from itself; a package may name what lies in it.
`docs/architecture.md` draws it."""


MODULES = modules(PACKAGES)


def imported(module: str, path: Path) -> Iterator[str]:
    """Modules of the three packages that a file imports: at its top, in functions, and for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = module if path.name == "__init__.py" else module.rpartition(".")[0]
                above = own.split(".")[: len(own.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in names]
        else:
            continue
        yield from (name for name in names if name in MODULES and name != module)


ARROWS = {module: sorted(set(imported(module, path))) for module, path in MODULES.items()}


def floor(module: str) -> int:
    """The floor of the room that a module lies in: that of the longest name in `FLOORS` that it begins with."""
    rooms = {room: number for number, names in enumerate(FLOORS) for room in names}
    inside = [room for room in rooms if module == room or (room != "interp" and module.startswith(f"{room}."))]
    assert inside, f"{module} lies in no room of FLOORS; give it one"
    return rooms[max(inside, key=len)]


def room(module: str) -> str:
    names = [name for names in FLOORS for name in names if name != "interp"]
    return max((name for name in names if f"{module}.".startswith(f"{name}.")), key=len, default="interp")


def test_no_two_files_need_each_other() -> None:
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_down(module: str) -> None:
    others = [other for other in ARROWS[module] if room(other) != room(module) and not other.startswith(f"{module}.")]
    up = [other for other in others if floor(other) >= floor(module)]
    assert not up, f"{module} imports {up}, which do not lie below it"


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    """A test that overlooks an import cannot fail."""
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from interp.lens import lens\n"
        "def f():\n    import interp.cli.main\n    from ..figures import sink_map\n"
        "    from interp import errors, load\n"
    )
    found = set(imported("interp.probes.x", path))
    assert found == {"interp.lens.lens", "interp.cli.main", "interp.figures.sink_map", "interp.errors", "interp"}


def test_the_root_holds_rooms() -> None:
    files = [path.name for path in (ROOT / "interp").iterdir() if path.is_file()]
    assert len(files) <= 6, files


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_where_modules_were_they_are_still_found(old: str, new: str) -> None:
    assert importlib.import_module(old) is importlib.import_module(new)
    assert importlib.import_module(new).__spec__.name == new


PUBLIC = {f"{package.__name__}.{name}" for package in (interp, interp.icl) for name in dir(package)}
"""What may be said of a package: old paths among them (`interp.storage`, `interp.icl.shifts`) are names of today."""
OLD = re.compile(r"(?<![\w/.])(" + "|".join(re.escape(o) for o in MOVED if o not in PUBLIC) + r")(?!\w)")


def prose(path: Path) -> Iterator[str]:
    """What a file says to people: a page whole; of code its docstrings and other strings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


SPOKEN = [
    path for folder in ("interp", "apps", "docs") for end in ("py", "md") for path in (ROOT / folder).rglob(f"*.{end}")
]


@pytest.mark.parametrize("path", [p for p in SPOKEN if p.name != "moved.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_is_sent_to_an_old_path(path: Path) -> None:
    said = [old for text in prose(path) for old in OLD.findall(text)]
    assert not said, f"{said} moved: to {[MOVED[old] for old in said]}"


def test_old_paths_are_told_from_new_ones() -> None:
    """A test that overlooks an old path cannot fail."""
    assert OLD.findall("Found as `interp.anatomy` does; interp.several.one, interp.points.") == [
        "interp.anatomy", "interp.several", "interp.points"
    ]  # fmt: skip
    fine = "interp.lens.anatomy, interp.storage.save, interp.patching, interp.icl.shifts, interp.textual"
    assert not OLD.findall(fine)


def test_an_old_path_may_come_first() -> None:
    code = "import interp.storage as old; from interp.results import storage; assert old is storage; old.save"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_lead_to_rooms() -> None:
    assert interp.storage.save is importlib.import_module("interp.results.storage").save
    assert interp.lens.Lens is interp.Lens
    with pytest.raises(AttributeError, match="no attribute 'hooked'"):
        getattr(interp.lens, "hooked")  # noqa: B009
