"""The hook points of a Lens: names, shapes, and what a hook there may do.

Names are TransformerLens' own where it has one. This table is the only list: the Lens builds its points from it,
`run_with_cache` reads the position axis from it, and the documentation prints it.

Modes
    edit        the value a hook returns replaces the activation, is stored in the cache, and carries gradients.
    read        hooks see the activation; returning a value raises.
    observable  computed by a fused kernel only while somebody hooks it; returning a value raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from torch import nn


@dataclass(frozen=True)
class Point:
    """One hook point relative to its room (`attn.hook_z` in a block, `hook_embed` at the top)."""

    name: str
    shape: str
    mode: Literal["edit", "read", "observable"]
    position_axis: int | None
    """The axis that counts positions, from the end; None where there is none."""
    meaning: str

    @property
    def cached_by_default(self) -> bool:
        """Whether `run_with_cache()` without a filter stores it: what the model computes anyway, O(positions)."""
        return self.mode == "edit" and self.name not in ("attn.hook_attn_scores", "attn.hook_pattern")


IN_BLOCK = re.compile(r"(\w+\.)?blocks\.(\d+)\.(.+)")


def in_block(name: str) -> tuple[str, int, str] | None:
    """The prefix of the stack, the number of the block and the name within it of a point; None outside of blocks."""
    found = IN_BLOCK.fullmatch(name)
    return None if found is None else (found[1] or "", int(found[2]), found[3])


def live(point: nn.Module | None) -> TypeGuard[nn.Module]:
    """Whether anybody hooks this point, forward or backward."""
    return point is not None and bool(point._forward_hooks or point._backward_hooks)


LATENT = "; of latent attention that a cache policy has compressed, what it stores"


def attention_points(rotary: bool, gated: bool = False, whole: bool = False) -> tuple[Point, ...]:
    """The points around one layer's attention maths.

    With rotary embedding queries and keys appear after rotation as `hook_rot_q|hook_rot_k`; without it (GPT-2) as
    `hook_q|hook_k`. Where the layer multiplies z by a gate before W_O reads it, `hook_gated_z` is what W_O reads.
    `whole`: keys and values are those of the encoder's tokens too, and come all of them, in every call.
    """
    q, k = ("attn.hook_rot_q", "attn.hook_rot_k") if rotary else ("attn.hook_q", "attn.hook_k")
    after = "after rotary embedding" if rotary else "as the model projects them"
    points = (
        _edit(q, "batch pos head d_head", -3, f"queries of the new tokens, {after}"),
        _edit(k, *_stored("keys", whole, f", {after}")),
        _edit("attn.hook_v", *_stored("values", whole)),
        _read("attn.hook_cached_k", "batch key kv_head d_head", f"all keys that the queries attend to{LATENT}"),
        _read("attn.hook_cached_v", "batch key kv_head d_head", f"all values that the queries attend to{LATENT}"),
        _edit(
            "attn.hook_attn_scores", "batch head pos key", -2, f"scores, masked cells at the dtype's minimum; {EAGER}"
        ),
        _edit(
            "attn.hook_pattern", "batch head pos key", -2, f"attention pattern, learned sink column dropped; {EAGER}"
        ),
        _edit("attn.hook_z", "batch pos head d_head", -3, "output of each head before the output projection"),
        _seen("attn.hook_event", "AttentionEvent", None, "the whole event, from which probes compute what they need"),
        _seen("attn.hook_column_mass", "batch head key", -1, "attention that each key receives, summed over queries"),
        _seen("attn.hook_lse", "batch head pos", -1, "log-sum-exp of each row over real keys"),
        _seen("attn.hook_row_entropy", "batch head pos", -1, "entropy of each row of the pattern, in nats"),
        _seen("attn.hook_key_energy", "batch kv_head d_head", None, "mean square of each key channel over real tokens"),
        _seen(
            "attn.hook_query_energy", "batch head d_head", None, "mean square of each query channel over real tokens"
        ),
    )
    return (*points, *((GATED,) if gated else ()), *((PRE_ROTARY,) if rotary else ()))


def _stored(what: str, whole: bool, after: str = "") -> tuple[str, int, str]:
    """Shape, position axis and meaning of a point of keys or values."""
    if whole:
        return "batch key kv_head d_head", -3, f"{what} that the queries attend to, the encoder's, in every call"
    return "batch pos kv_head d_head", -3, f"{what} of the new tokens{after}, before the cache stores them"


def crossing(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The same points around a block's attention to the encoder's tokens."""
    return tuple(replace(point, name=f"cross_{point.name}") for point in points)


OPEN = ("hook_attn_scores", "hook_pattern", "hook_cached_v", "hook_z", "hook_column_mass", "hook_row_entropy")


def softmax_points() -> tuple[Point, ...]:
    """The points of a layer whose modelling file calls softmax itself, so that all else stays inside the module."""
    return tuple(point for point in attention_points(rotary=False) if point.name.removeprefix("attn.") in OPEN)


EAGER = "runs this layer eagerly"


def _edit(name: str, shape: str, axis: int, meaning: str) -> Point:
    return Point(name, shape, "edit", axis, meaning)


def _read(name: str, shape: str, meaning: str) -> Point:
    return Point(name, shape, "read", -3, meaning)


def _seen(name: str, shape: str, axis: int | None, meaning: str) -> Point:
    return Point(name, shape, "observable", axis, meaning)


GATED = _edit("attn.hook_gated_z", "batch pos head d_head", -3, "z times the layer's gate, which W_O reads")
PRE_ROTARY = _seen(
    "attn.hook_pre_rot_k", "batch pos kv_head d_head", -3, "keys before rotation (after QK-norm), rotated back"
)

STREAM = "batch pos d_model"
RESIDUAL = (
    _edit("hook_resid_pre", STREAM, -2, "residual stream entering the block"),
    _edit("hook_attn_out", STREAM, -2, "what attention adds to the residual stream, after a post-norm if there is one"),
    _edit("hook_resid_mid", STREAM, -2, "residual stream between attention and MLP; an edit moves the residual itself"),
    _edit("hook_mlp_out", STREAM, -2, "what the MLP adds to the residual stream, after a post-norm if there is one"),
    _edit("hook_resid_post", STREAM, -2, "residual stream leaving the block"),
)
MIXER = _edit(
    "hook_mixer_out", STREAM, -2, "what the mixer of a block without attention (linear attention, Mamba, ...) adds"
)
CROSS = (
    _edit("hook_cross_attn_out", STREAM, -2, "what cross-attention adds to the residual stream"),
    _edit("hook_resid_mid2", STREAM, -2, "residual stream between cross-attention and MLP"),
)


def residual_points(attends: bool, crosses: bool = False) -> tuple[Point, ...]:
    """The points of one block along the residual stream; a block without attention has a mixer in its place, one that
    also attends to an encoder has two more."""
    own = RESIDUAL if attends else tuple(MIXER if p.name == "hook_attn_out" else p for p in RESIDUAL)
    return (*own[:3], *CROSS, *own[3:]) if crosses else own


EMBED = _edit("hook_embed", STREAM, -2, "output of the token embedding")
FINAL = _edit("hook_normalized", STREAM, -2, "residual stream after the final norm")
PROJECTED = _edit(
    "hook_projected", "image pos d_model", -2, "image tokens as the projector puts them out for the language model"
)
