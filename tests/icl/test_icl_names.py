"""`interp.icl` hands out its names without importing what they need first."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import interp
from interp import icl
from interp.moved import MOVED


@pytest.mark.parametrize("name", icl.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(icl, name)
    assert isinstance(found, ModuleType) == (name in icl._MODULES)
    assert name in dir(icl)


def test_no_name_is_a_module_in_one_session_and_a_function_in_another() -> None:
    """Importing `interp.icl.x` would replace the function `x` of the package by the module."""
    assert not [name for name in icl._WHERE if f"interp.icl.{name}" in (*icl._WHERE.values(), *MOVED)]


def test_importing_is_light() -> None:
    code = "import sys, interp; interp.icl; assert not {'torch', 'xarray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors() -> None:
    assert interp.icl is icl
    with pytest.raises(AttributeError, match="no attribute 'gdd'"):
        getattr(icl, "gdd")  # noqa: B009
