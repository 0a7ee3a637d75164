"""The points of a block's attention, by how it is reached, and what stands in a modelling file's own attention."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from interp.lens.anatomy import Anatomy, BlockParts
from interp.seam import points as table
from interp.seam.attention import Site
from interp.seam.points import Point
from interp.seam.routing import Attending
from interp.seam.softmax_seam import Opening, SoftmaxSite, only_open


def points_of_attention(block: BlockParts) -> list[tuple[Point, str | None]]:
    """The points around a block's attention, each with the reason why this block lacks it, or None where it has it."""
    if block.seam != "softmax":
        rotation = block.rotation if isinstance(block.rotation, str) else None
        points = table.attention_points(block.seen["rotary"], block.gated)
        return [(point, rotation if point is table.PRE_ROTARY else None) for point in points]
    assert block.attention is not None
    offered = table.softmax_points()
    if "d_value" not in block.seen:
        offered = tuple(point for point in offered if point.name != "attn.hook_z")
    known = {point.name: point for rotary in (False, True) for point in table.attention_points(rotary, block.gated)}
    why = only_open(block.attention)
    return [(point, None if point in offered or point is table.GATED else why) for point in known.values()]


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
