"""See what attention does, change it while the model runs, show why.

    import interp

    lens = interp.load("demo")
    results = interp.probe(lens, "Some text ...", ["channel_imbalance", "text_sinks"])
    interp.figures.channel_imbalance(results["channel_imbalance"])

Importing this package imports neither torch nor transformers: each name below is fetched on first use. Every class that
`interp.interventions.available()` lists is a name of this package too: `interp.ThinK`, `interp.SnapKV`, ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.discovery import fetching
from interp.moved import know_moved_modules

if TYPE_CHECKING:
    from interp import figures, icl, interventions, report
    from interp.errors import InterpError, UnknownNameError, UnsupportedModelError
    from interp.explaining import explain
    from interp.lens.lens import Lens
    from interp.lens.loading import load
    from interp.results.comparing import compare
    from interp.runs.patching import patch
    from interp.runs.probing import probe
    from interp.runs.side_by_side import side_by_side

__version__ = "0.1.0"

know_moved_modules()

_MODULES = {
    "patching": "interp.runs.patching",
    "storage": "interp.results.storage",
    **{
        name: f"interp.{name}"
        for name in ("explaining", "figures", "icl", "interventions", "probes", "report", "subjects")
    },
}
_WHERE = {
    "load": "interp.lens.loading",
    "probe": "interp.runs.probing",
    "patch": "interp.runs.patching",
    "compare": "interp.results.comparing",
    "explain": "interp.explaining",
    "side_by_side": "interp.runs.side_by_side",
    "Lens": "interp.lens.lens",
    "InterpError": "interp.errors",
    "UnknownNameError": "interp.errors",
    "UnsupportedModelError": "interp.errors",
}

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


_fetch = fetching(__name__, _WHERE, _MODULES)


def __getattr__(name: str) -> Any:
    if name not in _WHERE and name[:1].isupper() and name in (found := _interventions()):
        return found[name]
    return _fetch(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_MODULES, *_interventions()])


def _interventions() -> dict[str, Any]:
    """Interventions by the names of their classes. Finding them imports torch."""
    from interp.interventions import available

    return {cls.__name__: cls for cls in available().values()}
