"""Summary tokens: stored tokens that stand for several evicted ones, and what is left of one when a token leaves it.

A summary lies at the mean position of those that it stands for, and must not be taken for the token of that position:
`Segment.summary` says which stored tokens are summaries. Which evicted tokens one stands for, the policy has written
down (`Entry.summary`, see `memberships`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from interp_kernels import cut
from jaxtyping import Float, Int

from interp.cache.segments import Segment

Tensor = torch.Tensor


@dataclass(frozen=True)
class Membership:
    """Which summary of a layer every token of the prompt belongs to, and how much of it is that token."""

    summary: Int[Tensor, "head token"]
    """Number of the summary in the order in which the method made them; -1 for a token that no summary stands for."""
    share: Float[Tensor, "head token"]
    """Share of the attention that the summary was fitted to; a summary's shares add up to 1."""
    count: int
    """Summaries of each stored head."""


def without(
    segments: Sequence[Segment],
    values: Float[Tensor, "1 kv_head token d_value"],
    wanted: Sequence[Sequence[tuple[int, int]]],
    member: Membership,
) -> list[Segment]:
    """A layer's segments with a row for each entry of `wanted`, (stored head, position) of tokens that left.

    A summary that a token leaves is what its fit would be without it: less of the prompt's attention, and the mean
    value of those that stay; its key is not fitted again. One that nobody is left in is hidden.
    """
    rows, heads = segments[0].keys.shape[:2]
    spread = heads // values.shape[1]
    gone = torch.zeros(rows, heads, member.count)
    taken = torch.zeros(rows, heads, member.count, values.shape[-1])
    for row, pairs in enumerate(wanted):
        for head, position in pairs:
            summary, share = int(member.summary[head, position]), float(member.share[head, position])
            if summary >= 0:
                gone[row, head, summary] += share
                taken[row, head, summary] += share * values[0, head // spread, position].float().cpu()
    left = 1 - gone
    left[left < 1e-5] = 0.0  # shares add up to 1 but for rounding
    return [_left_by(segment, left.to(segment.keys.device), taken.to(segment.keys.device)) for segment in segments]


def _left_by(
    segment: Segment, left: Float[Tensor, "batch head summary"], taken: Float[Tensor, "batch head summary d_value"]
) -> Segment:
    """A segment whose summaries are left by tokens: `left` is the share that stays, `taken` what the others took."""
    if segment.summary is None:
        return segment
    number = segment.summary_number().long().expand(segment.keys.shape[:3])
    is_summary, number = number >= 0, number.clamp_min(0)
    some = left.gather(2, number).where(is_summary, 1.0)
    away = taken.gather(2, number[..., None].expand(-1, -1, -1, taken.shape[-1]))
    stays = (segment.values.float() - cut(away, segment.value_channels)) / some[..., None].clamp_min(1e-5)
    keep = (some == 1)[..., None] | (some == 0)[..., None]
    assert segment.log_count is not None
    return replace(
        segment,
        values=torch.where(keep, segment.values, stays.to(segment.values.dtype)),
        log_count=segment.log_count + some.log(),
    )
