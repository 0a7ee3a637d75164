"""The points of a block's attention, by how it is reached, and what stands in a modelling file's own attention."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from interp.lens.anatomy import Anatomy
from interp.seam import points as table
from interp.seam.attention import Site
from interp.seam.routing import Attending
from interp.seam.softmax_seam import Opening, SoftmaxSite


def own_sites(
    anatomy: Anatomy, sites: Mapping[int, Site], points: Mapping[str, nn.Module]
) -> dict[nn.Module, Opening | Attending]:
    """What stands where modules compute attention in their own code: `sites`, by layer, where that calls SDPA, and new
    ones around each softmax."""
    own: dict[nn.Module, Opening | Attending] = {}
    for layer, part in anatomy.attending:
        assert part.attention is not None
        if part.seam == "sdpa":
            own[part.attention] = sites[layer]
        elif part.seam == "softmax":
            at = {p.name: points[n] for p in table.softmax_points() if (n := f"blocks.{layer}.{p.name}") in points}
            own[part.attention] = SoftmaxSite(part.seen["n_heads"], at)
    return own
