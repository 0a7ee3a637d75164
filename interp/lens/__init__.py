"""The Lens: TransformerLens' hook points around an unmodified transformers model, and how one is loaded.

from interp.lens import Lens
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.discovery import fetching

if TYPE_CHECKING:
    from interp.lens.bridge import BridgeLens
    from interp.lens.lens import Lens
    from interp.lens.loading import load
    from interp.lens.protocol import InterventionLens, TextLens

    def _checked_by_mypy(lens: Lens, bridge: BridgeLens) -> tuple[InterventionLens, TextLens]:
        return lens, bridge


__all__ = ["BridgeLens", "InterventionLens", "Lens", "TextLens", "load"]
# not at import: what a Lens is made of (anatomy, text) is used without one, and a Lens imports transformer-lens
__getattr__ = fetching(
    __name__,
    {
        "TextLens": "interp.lens.protocol",
        "BridgeLens": "interp.lens.bridge",
        "InterventionLens": "interp.lens.protocol",
        "Lens": "interp.lens.lens",
        "load": "interp.lens.loading",
    },
)
