"""Nearest key in blocks of evicted tokens; merge as sums over runs of evicted tokens sorted by their target."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..checks import accumulator

BLOCK_CELLS = 1 << 22  # 16 MB of fp32 cosines, or of keys in fp32
BLOCK_ROWS = 256


def nearest_key(
    evicted: Tensor, retained: Tensor, evicted_mask: Tensor | None, retained_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(target, similarity) as documented in the package."""
    shape, dtype = evicted.shape[:3], accumulator(evicted)
    similarity = evicted.new_empty(shape, dtype=dtype).flatten(0, 1)
    target = torch.empty_like(similarity, dtype=torch.long)
    rows, keys = evicted.flatten(0, 1), retained.flatten(0, 1)
    hidden = None if retained_mask is None else ~retained_mask.flatten(0, 1)[:, None]
    for heads in runs(len(keys), retained.shape[2] * max(min(shape[2], BLOCK_ROWS), evicted.shape[3])):
        wide = keys[heads].to(dtype)
        lengths = norm(wide)[:, None]
        absent = ~(lengths < torch.inf)  # NaN and infinity show in the length
        if hidden is not None:
            absent |= hidden[heads]
        for start in range(0, shape[2], BLOCK_ROWS):
            block = heads, slice(start, start + BLOCK_ROWS)
            some = rows[block].to(dtype)
            # dividing the products and not the keys spares a copy of the keys
            cosines = (some / norm(some)[..., None] @ wide.mT).div_(lengths).masked_fill_(absent, -torch.inf)
            torch.max(cosines, -1, out=(similarity[block], target[block]))
    similarity, target = similarity.view(shape), target.view(shape)
    similarity.masked_fill_(similarity.isnan(), -torch.inf)  # what is left of NaN is that of the evicted key itself
    if evicted_mask is not None:
        similarity.masked_fill_(~evicted_mask, -torch.inf)
    return target.masked_fill_(similarity == -torch.inf, -1), similarity


def norm(x: Tensor) -> Tensor:
    """Lengths of vectors, kept off 0 for a division."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return lengths.clamp_min_(1e-12)


def merge_tokens(
    x: Tensor, evicted: Tensor, target: Tensor, weight: Tensor, counted: Tensor | None, own: float, merged: Tensor
) -> Tensor:
    """New x as documented in the package."""
    batch, heads, retained, size = x.shape
    new = x.clone(memory_format=torch.contiguous_format)
    flat, rows = new.view(-1, size), evicted.flatten(0, 1)
    weight = weight.flatten(0, 1)
    counted = weight if counted is None else counted.flatten(0, 1)
    first = torch.arange(batch * heads, device=x.device) * retained  # of each head, in flat
    place, merged = target.flatten(0, 1) + first[:, None], merged.flatten(0, 1)
    for some in runs(len(rows), evicted.shape[2] * size):
        tokens = merged[some].flatten().nonzero()[:, 0]
        run, order = place[some].flatten()[tokens].sort(stable=True)
        tokens = tokens[order]
        touched, lengths = torch.unique_consecutive(run, return_counts=True)
        starts = lengths.cumsum(0) - lengths
        # a bag is a run of tokens: one thread adds its rows one after the other, so the result is always the same
        wide, factors = rows[some].flatten(0, 1).to(weight.dtype), weight[some].flatten()[tokens]
        sums = embedding_bag(tokens, wide, starts, mode="sum", per_sample_weights=factors)
        total = own + embedding_bag(tokens, counted[some].reshape(-1, 1), starts, mode="sum")
        flat[touched] = ((own * flat[touched].to(sums.dtype) + sums) / total).to(x.dtype)
    return new


def runs(heads: int, cells: int) -> Iterator[slice]:
    """As many heads at a time as hold `BLOCK_CELLS` together, but at least one."""
    step = max(1, BLOCK_CELLS // max(1, cells))
    return (slice(start, start + step) for start in range(0, heads, step))
