"""Summary tokens: stored tokens that stand for several evicted ones, and what is left of one when a token leaves it.

In a live cache a summary lies at the mean position of those that it stands for, where it must not be taken for the
token of that position. Here it has position -1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from interp_kernels import cut
from jaxtyping import Bool, Float, Int

from interp.cache.segments import Segment
from interp.interventions.base import CachePolicy, Prompt
from interp.interventions.policies.recall import Recall

Tensor = torch.Tensor
NO_TOKEN = -1
"""Position of a summary in a cache at rest."""


def marked(segments: Sequence[Segment], policies: Sequence[CachePolicy], prompt: Prompt, layer: int) -> list[Segment]:
    """A layer's segments, in which summaries have position `NO_TOKEN`.

    `Recall` stores kept tokens, summaries and recent tokens in this order. That a summary has a `log_count` would not
    do: where it stands for a single token, that may be zero.
    """
    policy = next((member for member in policies if isinstance(member, Recall)), None)
    if policy is None or (capacity := policy.capacity(prompt, layer)) >= prompt.tokens:
        return list(segments)
    count = policy.summary_tokens(capacity)
    first, start, changed = capacity - policy.recent_tokens(capacity) - count, 0, {}
    for segment in _as_made(segments):
        place = start + torch.arange(len(segment), device=segment.keys.device)
        is_summary = (place >= first) & (place < first + count)
        start += len(segment)
        if bool(is_summary.any()):
            changed[id(segment)] = replace(segment, positions=segment.at().masked_fill(is_summary, NO_TOKEN))
    return [changed.get(id(segment), segment) for segment in segments]


def of_the_text(segment: Segment) -> Bool[Tensor, "batch head token"]:
    """Which stored tokens are tokens of the text, and no summaries; batch and head may be 1."""
    return segment.at() != NO_TOKEN


@dataclass(frozen=True)
class Membership:
    """Which summary of a layer every token of the prompt belongs to, and how much of it is that token."""

    summary: Int[Tensor, "head token"]
    """Number of the summary in the order in which the method made them; -1 for a token that is still held."""
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
    changed: Mapping[int, Segment] = _by_number(segments, left, taken)
    return [changed.get(id(segment), segment) for segment in segments]


def _by_number(segments: Sequence[Segment], left: Tensor, taken: Tensor) -> dict[int, Segment]:
    """The segments that hold summaries, changed, by their identity."""
    changed, first = {}, 0
    for segment in _as_made(segments):
        is_summary = ~of_the_text(segment).expand(segment.keys.shape[:3])
        n = int(is_summary[0, 0].sum())
        if n == 0:
            continue
        part = slice(first, first + n)
        first += n
        some, away = left[:, :, part].to(segment.keys.device), taken[:, :, part].to(segment.keys.device)
        place = is_summary.nonzero()[:, 2].view(*is_summary.shape[:2], n)
        across = place[..., None].expand(-1, -1, -1, segment.values.shape[-1])
        old = segment.values.gather(2, across)
        stays = (old.float() - cut(away, segment.value_channels)) / some[..., None].clamp_min(1e-5)
        new = torch.where(some[..., None] == 1, old, stays.to(old.dtype))
        assert segment.log_count is not None
        log_count = segment.log_count.gather(2, place) + some.log()
        changed[id(segment)] = replace(
            segment,
            values=segment.values.scatter(2, across, torch.where(some[..., None] == 0, old, new)),
            log_count=segment.log_count.scatter(2, place, log_count),
        )
    return changed


def _as_made(segments: Sequence[Segment]) -> list[Segment]:
    """Segments in the order in which the token policy left them: a channel policy puts its dense sinks second."""
    packed, *dense = segments
    if packed.channels is None and packed.value_channels is None:
        return list(segments)
    return [*dense[:-1], packed, dense[-1]]
