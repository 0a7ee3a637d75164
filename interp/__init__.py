"""See what attention does, change it while the model runs, show why.

    import interp

    lens = interp.load("demo")
    results = interp.probe(lens, "Some text ...", ["channel_imbalance", "text_sinks"])
    interp.figures.channel_imbalance(results["channel_imbalance"])

Importing this package imports neither torch nor transformers: each name below is fetched on first use. Every class that
`interp.interventions.available()` lists is a name of this package too: `interp.ThinK`, `interp.SnapKV`, ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp import figures, icl, interventions, report
    from interp.comparing import compare
    from interp.continuing import side_by_side
    from interp.errors import InterpError, UnknownNameError, UnsupportedModelError
    from interp.explaining import explain
    from interp.lens import Lens
    from interp.loading import load
    from interp.patching import patch
    from interp.running import probe

__version__ = "0.1.0"

_WHERE = {
    "load": "interp.loading",
    "probe": "interp.running",
    "patch": "interp.patching",
    "compare": "interp.comparing",
    "explain": "interp.explaining",
    "side_by_side": "interp.continuing",
    "Lens": "interp.lens",
    "InterpError": "interp.errors",
    "UnknownNameError": "interp.errors",
    "UnsupportedModelError": "interp.errors",
}
_PACKAGES = ("explaining", "figures", "icl", "interventions", "patching", "report", "probes", "storage", "subjects")

__all__ = [
    "InterpError",
    "Lens",
    "UnknownNameError",
    "UnsupportedModelError",
    "compare",
    "explain",
    "figures",
    "icl",
    "interventions",
    "load",
    "patch",
    "probe",
    "report",
    "side_by_side",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"interp.{name}")
    if name[:1].isupper() and name in (found := _interventions()):
        return found[name]
    raise AttributeError(f"module 'interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_PACKAGES, *_interventions()])


def _interventions() -> dict[str, Any]:
    """Interventions by the names of their classes. Finding them imports torch."""
    from interp.interventions import available

    return {cls.__name__: cls for cls in available().values()}
