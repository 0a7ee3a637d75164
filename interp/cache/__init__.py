"""What is stored: transformers' cache, whose layers hold what a cache policy left.

`LensCache` is the cache, `StoredLayer` one full-attention layer under a policy, `Segment` some of its tokens, `Slots`
the place of those of a layer that keeps its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.discovery import fetching

if TYPE_CHECKING:
    from interp.cache.lens_cache import LensCache
    from interp.cache.segments import Segment
    from interp.cache.slots import Slots
    from interp.cache.stored_layer import StoredLayer

__all__ = ["LensCache", "Segment", "Slots", "StoredLayer"]
__getattr__ = fetching(
    __name__,
    {
        "LensCache": "interp.cache.lens_cache",
        "Segment": "interp.cache.segments",
        "Slots": "interp.cache.slots",
        "StoredLayer": "interp.cache.stored_layer",
    },
)
