"""Which hook points a block offers, and why it lacks the others."""

from __future__ import annotations

from functools import partial

from interp.lens.parts import BlockParts
from interp.seam import points as table
from interp.seam.points import Point
from interp.seam.softmax_seam import only_open

ADDED = ("hook_attn_out", "hook_cross_attn_out", "hook_mixer_out", "hook_mlp_out")


def points_of_attention(block: BlockParts) -> list[tuple[Point, str | None]]:
    """The points around a block's attention, each with the reason why this block lacks it, or None where it has it."""
    if block.seam != "softmax":
        rotation = block.rotation if isinstance(block.rotation, str) else None
        points = table.attention_points(block.seen["rotary"], block.gated, block.whole)
        return [(point, rotation if point is table.PRE_ROTARY else None) for point in points]
    assert block.attention is not None
    offered = table.softmax_points()
    if "d_value" not in block.seen:
        offered = tuple(point for point in offered if point.name != "attn.hook_z")
    if not block.seen.get("values"):
        offered = tuple(point for point in offered if point.name != "attn.hook_cached_v")
    every = partial(table.attention_points, gated=block.gated, whole=block.whole)
    known = {point.name: point for rotary in (False, True) for point in every(rotary)}
    why = only_open(block.attention)
    return [(point, None if point in offered or point is table.GATED else why) for point in known.values()]


def elsewhere(point: str, block: BlockParts) -> str | None:
    """Why a block is not built to have a residual-stream point, or None."""
    if not block.ran:
        return "its block does not run on text alone"
    if point in ("hook_resid_mid", "hook_mlp_out") and block.writers.alone:
        return f"this block has {block.mixer} and no MLP"
    if point in ADDED and block.middle is not None:
        return f"{block.writers.reason} (post-norm block)"
    return None


def missing(point: str, block: BlockParts) -> str | None:
    """Why a residual-stream point could not be found in a block, or None where it was."""
    found = block.writers
    if not found.one_stream:
        return found.reason
    if point in ("hook_resid_pre", "hook_resid_post") or block.middle is not None:
        return None
    if point == "hook_resid_mid" and found.parallel:
        return "attention and MLP read the same input (parallel block), so nothing lies between them"
    if found.mixer is None:
        return f"what {block.mixer} adds to the residual stream is unknown: {found.reason}"
    if point in ("hook_cross_attn_out", "hook_resid_mid2") and found.cross is None:
        return f"what cross-attention adds to the residual stream is unknown: {found.reason}"
    if point == "hook_mlp_out" and found.mlp is None and not found.rest:
        return f"what the MLP adds to the residual stream is unknown: {found.reason}"
    return None
