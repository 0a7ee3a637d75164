"""The mask facts: which key a query sees, told in a few numbers instead of an N x S mask.

Every attention operation takes the same keywords (`MaskFacts`). `resolve` checks them against q and k once;
the resulting `Facts` answers what an implementation asks: which keys does a block of rows see at all
(`key_range`), which of those are hidden from some of its rows (`hidden`), and the whole pattern (`visible`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from .checks import expect_bool, expect_float, expect_shape


class MaskFacts(TypedDict, total=False):
    """Keywords of every attention operation (B batch, H query heads, N queries, S keys).

    Masks are True for what is kept.
    A query row without any visible key, or with query_mask False, has an all-zero row in A: its lse is -inf,
    and it adds nothing to a transposed product. What padded positions contain does not matter, not even NaN.
    """

    causal: bool
    """Key j is visible to query i only if j <= i + offset. Default True."""
    offset: int | None
    """Position of query row 0 minus position of key column 0. Default None: S - N, so that the last query sees all."""
    window: int | None
    """Key j is visible to query i only if 0 <= i + offset - j < window: a window always looks back. Default None."""
    key_mask: Tensor | None
    """Bool [B, S], False for padding keys."""
    query_mask: Tensor | None
    """Bool [B, N], False for padding rows."""
    mask: Tensor | None
    """Bool [B or 1, H or 1, N, S], any pattern: replaces causal, offset and window; key_mask, query_mask still hold."""
    scale: float | None
    """Factor on q @ k^T. Default None: D ** -0.5."""
    softcap: float | None
    """Scores become softcap * tanh(scores / softcap) before masking. Default None."""
    sinks: Tensor | None
    """Learned sink logits [H]: one more softmax column, then dropped, so A's rows sum to less than 1. Not in lse."""
    bias: Tensor | None
    """Floats [B or 1, H or 1, N or 1, S], added to the scores after the softcap; -inf hides a key. No gradient."""


@dataclass(frozen=True)
class Facts:
    """Mask facts that were checked against one q and k. Fields shared with `MaskFacts` mean the same."""

    shape: tuple[int, int, int, int]  # B, H, N, S
    device: torch.device
    causal: bool
    offset: int
    window: int | None
    key_mask: Tensor | None
    query_mask: Tensor | None
    mask: Tensor | None
    scale: float
    softcap: float | None
    sinks: Tensor | None
    bias: Tensor | None

    def key_range(self, start: int, stop: int) -> tuple[int, int]:
        """(first, past-the-last) key that rows start..stop may see; equal where there is none."""
        low, high = 0, self.shape[3]
        if self.causal:
            high = min(high, max(0, stop + self.offset))
        if self.window is not None:
            low = max(low, start + self.offset - self.window + 1)
        return min(low, high), high

    def hidden(self, batch: int, head: int, start: int, stop: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (first key, past-the-last key, Bool [rows or 1, keys], True = hidden) for rows start..stop.

        What is not yielded inside `key_range(start, stop)` is visible. Without a dense mask only the diagonal and
        the window's edge are yielded, so a caller masks O(rows^2) cells of a block and not O(rows * S).
        """
        low, high = self.key_range(start, stop)
        if self.mask is not None:
            yield low, high, ~self.mask[batch % self.mask.shape[0], head % self.mask.shape[1], start:stop]
        if self.causal:
            first = max(low, start + self.offset + 1)  # the first key that row `start` does not see
            if first < high:
                later = torch.ones(stop - start, high - first, dtype=torch.bool, device=self.device)
                yield first, high, later.triu(start + self.offset - first + 1)
        if self.window is not None:
            last = min(high, stop + self.offset - self.window)  # row `stop - 1` sees this key and later ones
            if low < last:
                older = torch.ones(stop - start, last - low, dtype=torch.bool, device=self.device)
                yield low, last, older.tril(start + self.offset - self.window - low)
        if self.key_mask is not None:
            padding = ~self.key_mask[batch, None, low:high]
            if padding.any():
                yield low, high, padding

    def visible(self) -> Tensor:
        """Bool [B, H, N, S]: the whole pattern at once."""
        _, _, queries, keys = self.shape
        seen = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        rows = torch.arange(queries, device=self.device) + self.offset
        distance = rows[:, None] - torch.arange(keys, device=self.device)
        if self.mask is not None:
            seen &= self.mask
        if self.causal:
            seen &= distance >= 0
        if self.window is not None:
            seen &= distance < self.window
        if self.bias is not None:
            seen &= self.bias > -torch.inf
        if self.key_mask is not None:
            seen &= self.key_mask[:, None, None, :]
        if self.query_mask is not None:
            seen &= self.query_mask[:, None, :, None]
        return seen


def resolve(operation: str, q: Tensor, k: Tensor, **facts: Unpack[MaskFacts]) -> Facts:
    """Check q [B, H, N, D], k [B, Hk, S, D] and the mask facts against each other, and fill in the defaults.

    Raises TypeError on an unknown keyword or a wrong dtype, ValueError on a wrong shape or value.
    """
    known = MaskFacts.__annotations__
    for name in facts:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}."
            raise TypeError(f'{operation}: no mask fact is called "{name}"; {hint}')
    expect_float(operation, q=q, k=k)
    expect_shape(operation, "q", q, "B H N D", {})
    batch, heads, queries, size = q.shape
    expect_shape(operation, "k", k, "B Hk S D", {"B": (batch,), "D": (size,)})
    kv_heads, keys = k.shape[1:3]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"{operation}: k's {kv_heads} heads should divide q's {heads} evenly, "
            f"found q {list(q.shape)} and k {list(k.shape)}."
        )
    sizes: dict[str, tuple[int, ...]] = {"B": (batch,), "N": (queries,), "S": (keys,), "H": (heads,)}
    sizes |= {"B|1": (batch, 1), "H|1": (heads, 1), "N|1": (queries, 1)}
    tensors = [
        ("key_mask", facts.get("key_mask"), "B S"),
        ("query_mask", facts.get("query_mask"), "B N"),
        ("mask", facts.get("mask"), "B|1 H|1 N S"),
        ("sinks", facts.get("sinks"), "H"),
        ("bias", facts.get("bias"), "B|1 H|1 N|1 S"),
    ]
    for name, tensor, pattern in tensors:
        if tensor is not None:
            (expect_float if name in ("sinks", "bias") else expect_bool)(operation, **{name: tensor})
            expect_shape(operation, name, tensor, pattern, sizes)
    window, softcap, mask = facts.get("window"), facts.get("softcap"), facts.get("mask")
    if window is not None and window < 1:
        raise ValueError(f"{operation}: window should be at least 1 (a query sees itself), found {window}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{operation}: softcap should be positive, found {softcap}; None means no cap.")
    offset, scale = facts.get("offset"), facts.get("scale")
    return Facts(
        shape=(batch, heads, queries, keys),
        device=q.device,
        causal=mask is None and (facts.get("causal", True) or window is not None),
        offset=keys - queries if offset is None else offset,
        window=window if mask is None else None,
        key_mask=facts.get("key_mask"),
        query_mask=facts.get("query_mask"),
        mask=mask,
        scale=size**-0.5 if scale is None else scale,
        softcap=softcap,
        sinks=facts.get("sinks"),
        bias=_without_gradient(operation, facts.get("bias")),
    )


def _without_gradient(operation: str, bias: Tensor | None) -> Tensor | None:
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{operation}: bias gets no gradient; pass bias.detach().")
    return bias
