"""A compressed cache at rest, and putting back into it what a policy dropped.

`at_rest` copies a cache so that its policies act no more; tensors are shared, since segments are replaced and never
changed where no policy acts. `with_channels` and `with_tokens` then make caches of several rows, each row with other
things put back, that one forward pass can compare.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from interp_kernels import cut
from jaxtyping import Float, Int
from transformers.cache_utils import DynamicLayer

from interp.cache.lens_cache import LensCache
from interp.cache.segments import INDEX, POSITION, Part, Segment, others
from interp.cache.stored_layer import StoredLayer
from interp.explaining.summaries import Membership, without
from interp.interventions.keeper import Keeper

Tensor = torch.Tensor


class _AtRest(Keeper):
    """Keeps a cache in the attention seam, where its segments are understood, and does nothing to it."""

    def attended(self, *_: object, **__: object) -> None:
        pass


def at_rest(cache: LensCache, rows: int = 1) -> LensCache:
    """A copy of a cache of one sequence, `rows` times, that no policy changes any more."""
    keeper = cache.keeper
    copied = copy.copy(cache)
    copied.listener = None
    copied.keeper = _AtRest((), keeper.cfg, keeper.layers, keeper.output_norms)
    copied.layers = [_copy(layer, rows, keeper) for layer in cache.layers]
    return copied


def _copy(layer: DynamicLayer, rows: int, keeper: Keeper) -> DynamicLayer:
    if not isinstance(layer, StoredLayer):
        copied = copy.deepcopy(layer)
        if rows > 1:  # a recurrent state knows no other way to be repeated
            copied.reorder_cache(torch.zeros(rows, dtype=torch.long))
        return copied
    acting = any(plan.each_step for plan in keeper.plans.values())  # such a plan overwrites slots in place
    bare = [replace(segment, mass=None) for segment in layer.segments]  # accounts are written in place, and not needed
    held = [segment.map(torch.clone) if acting else segment for segment in bare]
    if rows > 1:
        held = [s.map(lambda x: x.expand(rows, *x.shape[1:])) for s in held]
    return layer.holding(held)


def with_channels(
    cache: LensCache,
    full: Mapping[int, Float[Tensor, "1 kv_head token d"]],
    channels: Sequence[Sequence[tuple[int, int, int]]],
    of: Part = "keys",
) -> LensCache:
    """A cache at rest with a row for each entry of `channels`: (layer, stored head, channel) that it has back.

    `full` are the full cache's keys, or values, by layer. A row may have back several channels. Raises nothing: a
    channel that is stored already is left as it is. Summary tokens keep what stands in its place, since the full cache
    has none.
    """
    made = at_rest(cache, len(channels))
    for layer, own in made.stored.items():
        wanted = [[(head, channel) for i, head, channel in row if i == layer] for row in channels]
        if any(wanted):
            width = full[layer].shape[-1]
            made.layers[layer] = own.holding(
                s if s.stored_channels(of) is None else _widened(s, full[layer], wanted, width, of)
                for s in own.segments
            )
    return made


def _widened(segment: Segment, full: Tensor, wanted: list[list[tuple[int, int]]], width: int, of: Part) -> Segment:
    """A packed segment that stores more channels: each head the ones it wants, and zeros where others want more."""
    own = segment.stored_channels(of)
    assert own is not None
    rows, heads, n, _ = segment.keys.shape
    original = at_positions(full, segment).expand(rows, heads, n, width)
    stored = torch.zeros(rows, heads, width, dtype=torch.bool).scatter(-1, own.long().cpu(), True)
    back = torch.zeros_like(stored)
    for row, pairs in enumerate(wanted):
        for head, channel in pairs:
            back[row, head, channel] = not stored[row, head, channel]
    extra = int(back.sum(-1).max())
    if extra == 0:
        return segment
    # channels that come back first, then other absent ones as fillers: these hold what stood for them before
    order = (back.int() * 2 + (~stored).int()).sort(dim=-1, descending=True, stable=True).indices[..., :extra]
    channels = torch.cat([own.long(), order.to(full.device)], -1).sort(-1).values.to(INDEX)
    now = segment.dense_keys(width) if of == "keys" else segment.dense_values(width)
    comes = back.to(full.device)[:, :, None] & segment.of_the_text()[..., None]
    dense = cut(torch.where(comes, original.to(now.dtype), now), channels)
    if of == "values":
        return replace(segment, values=dense, value_channels=channels)
    widened = replace(segment, keys=dense, channels=channels)
    if segment.key_mean is not None:  # fillers and what comes back no longer need what stood for them
        whole = torch.zeros(rows, heads, width, dtype=segment.key_mean.dtype, device=full.device)
        whole.scatter_(-1, others(own, width), segment.key_mean)
        widened = replace(widened, key_mean=whole.gather(-1, others(channels, width)))
    return widened


def with_tokens(
    cache: LensCache,
    keys: Mapping[int, Float[Tensor, "1 kv_head token d_head"]],
    values: Mapping[int, Float[Tensor, "1 kv_head token d_value"]],
    tokens: Sequence[Sequence[tuple[int, int, int]]],
    members: Mapping[int, Membership],
) -> LensCache:
    """A cache at rest with a row for each entry of `tokens`: (layer, stored head, position) that it has back.

    `keys` and `values` are the full cache's, by layer. Tokens come back with all channels, whatever others keep. One
    that a summary stands for leaves it, or it would count twice: `members` are those of layers that have summaries.
    """
    made = at_rest(cache, len(tokens))
    for layer, own in made.stored.items():
        wanted = [[(head, position) for i, head, position in row if i == layer] for row in tokens]
        if any(wanted):
            back = _returned(own.segments[0], keys[layer], values[layer], wanted)
            held: Sequence[Segment] = own.segments
            if layer in members:
                held = without(held, values[layer], wanted, members[layer])
            made.layers[layer] = own.holding([back, *held])
    return made


def _returned(like: Segment, keys: Tensor, values: Tensor, wanted: list[list[tuple[int, int]]]) -> Segment:
    """A segment of the wanted tokens; heads that want fewer than others have hidden ones in their place."""
    rows, heads = like.keys.shape[:2]
    n = max(sum(h == head for h, _ in pairs) for pairs in wanted for head in range(heads))
    at = torch.zeros(rows, heads, n, dtype=torch.long)
    log_count = torch.full((rows, heads, n), -torch.inf)
    for row, pairs in enumerate(wanted):
        for head in range(heads):
            own = [position for h, position in pairs if h == head]
            at[row, head, : len(own)] = torch.tensor(own, dtype=torch.long)
            log_count[row, head, : len(own)] = 0.0
    empty = Segment(keys, values, at.to(keys.device, POSITION), log_count=log_count.to(keys.device))
    return replace(
        empty,
        keys=at_positions(keys.expand(rows, *keys.shape[1:]), empty),
        values=at_positions(values.expand(rows, *values.shape[1:]), empty),
    )


def at_positions(full: Float[Tensor, "batch kv_head token d"], segment: Segment) -> Float[Tensor, "batch head n d"]:
    """What the full cache holds at a segment's positions, for each of its stored heads; of summaries any token's."""
    if isinstance(segment.positions, Tensor):
        heads = segment.positions.shape[1]
    else:
        heads = segment.keys.shape[1]
    rows = full.shape[0]
    spread = full.repeat_interleave(heads // full.shape[1], 1)
    at: Int[Tensor, "batch head n"] = segment.at().long().clamp_min(0).expand(-1, heads, -1)
    return spread.expand(max(rows, at.shape[0]), -1, -1, -1).gather(
        2, at.expand(max(rows, at.shape[0]), -1, -1)[..., None].expand(-1, -1, -1, full.shape[-1])
    )
