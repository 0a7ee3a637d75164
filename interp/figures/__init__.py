"""Figures: functions from a probe's result to a plotly figure.

A figure is one file in this folder with a function of the file's name, a docstring whose first paragraph is the caption
that reports print, and a constant `RESULT` that names the probe whose result it draws. Nothing is registered: files are
found by name, and plotly is imported with the first figure that is used.

    interp.figures.channel_imbalance(results["channel_imbalance"]).show()
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

    Figure = Callable[..., go.Figure]


def names() -> list[str]:
    """The names of all figures, sorted; reads the folder without importing what it finds."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def figures_of(result: str) -> dict[str, Figure]:
    """All figures that draw the result of the probe called `result`, by name; empty where there is none."""
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names()}
    return {name: _drawing(getattr(module, name)) for name, module in modules.items() if result == module.RESULT}


def beside(name: str) -> dict[str, str]:
    """What else the figure called `name` takes: probes whose results of the same text it draws besides its own, by
    argument. It says so in a constant `BESIDE`."""
    return dict(getattr(importlib.import_module(f"{__name__}.{name}"), "BESIDE", {}))


@cache
def _drawing(figure: Figure) -> Figure:
    """A figure that says in a sentence that it cannot draw a dataset."""
    from interp.results.reading import read_off

    @wraps(figure)
    def draw(ds: Any, *args: Any, **kwargs: Any) -> go.Figure:
        with read_off(f"figure {figure.__name__}"):
            if odd := [name for name, one in ds.variables.items() if one.dtype.kind == "c"]:
                raise TypeError(f"{odd[0]} is of complex numbers")  # which plotly takes, and no page can show
            return figure(ds, *args, **kwargs)

    return draw


def __getattr__(name: str) -> Figure:
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}."
        raise AttributeError(f"there is no figure {name!r}: {hint}")
    return _drawing(getattr(importlib.import_module(f"{__name__}.{name}"), name))


def __dir__() -> list[str]:
    return sorted({*names(), "beside", "figures_of", "names"})


class _FiguresModule(ModuleType):
    """Keeps `interp.figures.<name>` a function: importing a submodule would rebind the name to the module."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and not name.startswith("_"):
            value = _drawing(getattr(value, name))
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FiguresModule
