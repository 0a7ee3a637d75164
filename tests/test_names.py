"""Interventions and probes are names of `interp`: fetched when they are used, and complete in an editor before that."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys

import jedi
import pytest

import interp
from docs import write_names
from interp import interventions, probes
from interp.discovery import homes, named_classes


def found() -> dict[str, type]:
    """What discovery finds by importing everything."""
    classes = (*interventions.available().values(), *probes.every().values())
    assert classes
    return {cls.__name__: cls for cls in classes}


def listed(code: str) -> dict[str, str]:
    """The names that a package's block for editors lists, each with its module."""
    lines = ast.parse(code[code.index(write_names.HEAD) :]).body[0].body
    return {alias.asname: line.module for line in lines for alias in line.names}


def test_files_tell_what_discovery_finds() -> None:
    read = homes("interp.interventions.edits") | homes("interp.interventions.policies") | homes("interp.probes")
    assert read == {name: cls.__module__ for name, cls in found().items()}


def test_no_two_bear_one_name() -> None:
    assert len(found()) == len(interventions.available()) + len(probes.every())


@pytest.mark.parametrize(
    ("body", "has_one"),
    [
        ('name: ClassVar[str] = "x"', True),
        ('name = "x"', True),
        ('budget: int = 3\n    name: ClassVar[str] = "x"', True),
        ("name: ClassVar[str]", False),
        ("name = None", False),
        ('title = "x"', False),
        ('def f(self):\n        name = "x"', False),
    ],
)
def test_a_named_class_gives_itself_a_name(body: str, has_one: bool) -> None:
    assert named_classes(f"class A(B):\n    {body}\nclass C(B):\n    pass") == (["A"] if has_one else [])


def test_a_class_in_a_function_is_none_of_the_file() -> None:
    assert named_classes('def f():\n    class A:\n        name = "x"') == []


def test_interp_hands_them_out() -> None:
    for name, cls in found().items():
        assert getattr(interp, name) is cls
        assert name in dir(interp)
        assert getattr(probes if issubclass(cls, probes.Probe) else interventions, name) is cls


def test_their_names_are_known_without_importing_them() -> None:
    """`dir(interp)` is what a shell completes from."""
    code = (
        "import sys, interp; assert {'ThinK', 'TextSinks'} <= set(dir(interp));"
        "print(sorted({'torch', 'transformers', 'transformer_lens', 'xarray'} & set(sys.modules)));"
        "interp.TextSinks; print('interp.probes.logit_lens' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n") == ["[]", "False", ""]


@pytest.mark.parametrize("package", write_names.FOLDERS)
def test_what_editors_are_told_is_there(package: str) -> None:
    """The block may lack a new class; what it lists is what the package hands out."""
    names = listed(write_names.file_of(package).read_text(encoding="utf-8"))
    assert names
    for name, home in names.items():
        assert getattr(importlib.import_module(package), name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", write_names.FOLDERS)
def test_the_writer_lists_all_and_changes_nothing_else(package: str, tmp_path, monkeypatch) -> None:
    before = write_names.file_of(package).read_text(encoding="utf-8")
    code = before[: before.index(write_names.HEAD)]
    path = tmp_path / "__init__.py"
    monkeypatch.setattr(write_names, "file_of", lambda package: path)
    for stale in ("    from interp.gone import Gone as Gone\n", ""):
        path.write_text(f"{code}{write_names.HEAD}\n{stale}" if stale else code, encoding="utf-8")
        after = write_names.written(package)
        assert listed(after) == write_names.names(package)
        assert after[: after.index(write_names.HEAD)] == code
        path.write_text(after, encoding="utf-8")
        assert write_names.written(package) == after


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """jedi's cache of parsed files is shared by all processes of a user, and is read while another one writes it."""
    before = jedi.settings.cache_directory
    jedi.settings.cache_directory = str(tmp_path_factory.mktemp("jedi"))
    yield
    jedi.settings.cache_directory = before


def parameters(code: str) -> list[str]:
    """Parameters that an editor shows at the end of `code`."""
    (signature,) = jedi.Script(code).get_signatures()
    return [parameter.name for parameter in signature.params]


@pytest.mark.parametrize("package", write_names.FOLDERS)
def test_an_editor_knows_their_parameters(package: str) -> None:
    for name, home in listed(write_names.file_of(package).read_text(encoding="utf-8")).items():
        own = inspect.signature(getattr(importlib.import_module(home), name)).parameters
        if own:  # jedi has no signature for a class without parameters
            assert own.keys() <= set(parameters(f"import {package}\n{package}.{name}(")), name


def test_an_editor_knows_a_lens() -> None:
    assert parameters("import interp\ninterp.load('demo').score(") == ["prompt", "continuation", "chunk", "images"]
    assert parameters("import interp\ninterp.load('demo').apply(") == ["intervention", "ledger"]
