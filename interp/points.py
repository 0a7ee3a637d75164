"""The hook points of a Lens: names, shapes, and what a hook there may do.

Names are TransformerLens' own where it has one. This table is the only list: the Lens builds its points from it,
`run_with_cache` reads the position axis from it, and the documentation prints it.

Modes
    edit        the value a hook returns replaces the activation, is stored in the cache, and carries gradients.
    read        hooks see the activation; returning a value raises.
    observable  computed by a fused kernel only while somebody hooks it; returning a value raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
        """Whether `run_with_cache()` without a filter stores it: only what the model computes anyway and is O(positions)."""
        return self.mode == "edit" and self.name not in ("attn.hook_attn_scores", "attn.hook_pattern")


def attention_points(rotary: bool) -> tuple[Point, ...]:
    """The points around one layer's attention maths.

    With rotary embedding queries and keys appear after rotation as `hook_rot_q|hook_rot_k`; without it (GPT-2) as
    `hook_q|hook_k`.
    """
    q, k = ("attn.hook_rot_q", "attn.hook_rot_k") if rotary else ("attn.hook_q", "attn.hook_k")
    after = "after rotary embedding" if rotary else "as the model projects them"
    points = (
        Point(q, "batch pos head d_head", "edit", -3, f"queries of the new tokens, {after}"),
        Point(k, "batch pos kv_head d_head", "edit", -3, f"keys of the new tokens, {after}, before the cache stores them"),
        Point("attn.hook_v", "batch pos kv_head d_head", "edit", -3, "values of the new tokens, before the cache stores them"),
        Point("attn.hook_cached_k", "batch key kv_head d_head", "read", -3, "all keys that the queries attend to"),
        Point("attn.hook_cached_v", "batch key kv_head d_head", "read", -3, "all values that the queries attend to"),
        Point("attn.hook_attn_scores", "batch head pos key", "edit", -2, "scores before softmax, masked cells at the dtype's minimum; runs this layer eagerly"),
        Point("attn.hook_pattern", "batch head pos key", "edit", -2, "attention pattern, learned sink column dropped; runs this layer eagerly"),
        Point("attn.hook_z", "batch pos head d_head", "edit", -3, "output of each head before the output projection"),
        Point("attn.hook_event", "AttentionEvent", "observable", None, "the whole attention event, from which probes compute what they need"),
        Point("attn.hook_column_mass", "batch head key", "observable", -1, "attention received by each key, summed over the queries"),
        Point("attn.hook_lse", "batch head pos", "observable", -1, "log-sum-exp of each row over real keys"),
        Point("attn.hook_row_entropy", "batch head pos", "observable", -1, "entropy of each row of the pattern, in nats"),
        Point("attn.hook_key_energy", "batch kv_head d_head", "observable", None, "mean square of each key channel over real tokens"),
        Point("attn.hook_query_energy", "batch head d_head", "observable", None, "mean square of each query channel over real tokens"),
    )  # fmt: skip
    return (*points, PRE_ROTARY) if rotary else points


PRE_ROTARY = Point(
    "attn.hook_pre_rot_k",
    "batch pos kv_head d_head",
    "observable",
    -3,
    "keys before rotation (after QK-norm), recovered by rotating back",
)

RESIDUAL = (
    Point("hook_resid_pre", "batch pos d_model", "edit", -2, "residual stream entering the block"),
    Point("hook_attn_out", "batch pos d_model", "edit", -2, "what attention adds to the residual stream (after a post-norm where there is one)"),
    Point("hook_resid_mid", "batch pos d_model", "edit", -2, "residual stream between attention and MLP; an edit moves the residual itself"),
    Point("hook_mlp_out", "batch pos d_model", "edit", -2, "what the MLP adds to the residual stream (after a post-norm where there is one)"),
    Point("hook_resid_post", "batch pos d_model", "edit", -2, "residual stream leaving the block"),
)  # fmt: skip

EMBED = Point("hook_embed", "batch pos d_model", "edit", -2, "output of the token embedding")
FINAL = Point("hook_normalized", "batch pos d_model", "edit", -2, "residual stream after the final norm")
