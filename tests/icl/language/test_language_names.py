"""`interp.icl.language` hands out functions, whatever else was imported."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from interp.icl import language


@pytest.mark.parametrize("name", language.__all__)
def test_every_public_name_is_there_and_no_module(name: str) -> None:
    assert not isinstance(getattr(language, name), ModuleType)
    assert name in dir(language)


def test_names_are_complete() -> None:
    assert sorted(language.__all__) == sorted(language._WHERE)


def test_names_stay_functions_when_their_modules_are_imported() -> None:
    names = [name for name, module in language._WHERE.items() if module.endswith(f".{name}")]
    assert {"icl_score", "three_runs"} <= set(names)
    for name in names:
        module = importlib.import_module(f"interp.icl.language.{name}")
        setattr(language, name, module)  # what the first import of a module does to its package
        assert getattr(language, name) is getattr(module, name)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simao'"):
        getattr(language, "simao")  # noqa: B009
