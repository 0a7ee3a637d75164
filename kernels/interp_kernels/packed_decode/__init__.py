"""Attention of new tokens over a compressed cache: segments of keys, each with its own set of stored channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import expect_float, expect_shape
from ..dispatch import Paths, choose, kernel
from . import cpu, reference
from .call import Decoded, KeySegment, PackedCall
from .channels import cut, unpacked

__all__ = ["Decoded", "KeySegment", "cut", "packed_decode", "unpacked"]

PATHS: Paths[Decoded] = {
    "reference": reference.packed_decode,
    "cpu": cpu.packed_decode,
    "triton": kernel(__name__, "packed_decode"),
}


@torch.no_grad()
def packed_decode(
    q: Tensor,
    segments: Sequence[KeySegment],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    d_value: int | None = None,
    mass: bool = True,
) -> Decoded:
    """Attention of q over all segments at once: one softmax, values summed over the segments.

    Args:
        q: `[B, H, N, D]`, the N newest tokens, whose own keys are the last N of the last segment; query i sees those up
            to its own, and everything before. Hs divides H; query head h reads stored head h // (H // Hs).
        segments: at least one; the order of tokens within and between segments does not matter, save for the newest N.
        scale: default D ** -0.5, however many channels are stored (ThinK keeps it too).
        softcap, sinks: see `MaskFacts`.
        mass: whether to return the attention received.
        d_value: channels of a value; needed only if every segment has `value_channels`.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Cost for one query: 2 H (sum of n T + n Tv over segments) FLOPs. Reads all stored keys and values once a stored
    head, Hs (sum of n T + n Tv) numbers, which is what takes the time: of what dense keys and values of D channels
    move that is (T + D) / 2D, the least that ThinK, which prunes keys alone, can bring it to (0.80 where 77 of 128
    channels stay, 0.75 for 64). Mass costs 8 bytes more for each token and query head on a GPU. A query from which
    all tokens are hidden gets NaN, unless there are sinks.
    Source: ThinK, Xu et al. 2025 (arXiv:2407.21018), section 3.3, where one dense segment follows one packed segment.

    Examples:
        >>> dense = interp_kernels.KeySegment(k, v)
        >>> found = interp_kernels.packed_decode(q[:, :, -1:], [dense])
        >>> torch.allclose(found.z, interp_kernels.attention_apply(q, k, v).z[:, :, -1:], atol=1e-5)
        True
    """
    operation = "packed_decode"
    expect_float(operation, q=q)
    expect_shape(operation, "q", q, "B H N D", {})
    if not segments:
        raise ValueError(f"{operation}: segments is empty; the newest tokens' keys must be in the last one.")
    batch, heads, queries, d_head = q.shape
    if q.numel() == 0:
        raise ValueError(f"{operation}: q holds no query, found {list(q.shape)}.")
    stored = segments[0].keys.shape[1]
    if stored == 0 or heads % stored:
        raise ValueError(f"{operation}: {stored} stored heads do not divide {heads} query heads.")
    full = d_value or next((s.values.shape[-1] for s in segments if s.value_channels is None), None)
    if full is None:
        raise ValueError(f"{operation}: every segment has value_channels, so d_value must say how many there are.")
    for s in segments:
        n, sizes = s.keys.shape[2], {"B": (batch,), "Hs": (stored,)}
        t = d_head if s.channels is None else s.channels.shape[-1]
        tv = full if s.value_channels is None else s.value_channels.shape[-1]
        expect_shape(operation, "keys", s.keys, "B Hs n T", sizes | {"T": (t,)})
        expect_shape(operation, "values", s.values, "B Hs n Tv", sizes | {"n": (n,), "Tv": (tv,)})
        for name, index in (("channels", s.channels), ("value_channels", s.value_channels)):
            if index is not None:
                expect_shape(operation, name, index, "B Hs T", sizes)
                if index.is_floating_point() or index.dtype == torch.bool:
                    raise TypeError(f"{operation}: {name} should hold integers, found {index.dtype}.")
        if not s.keys.dtype == s.values.dtype == q.dtype:
            raise TypeError(
                f"{operation}: keys and values should be {q.dtype} like q, found {s.keys.dtype} and {s.values.dtype}."
            )
        if s.offset is not None:
            expect_shape(operation, "offset", s.offset, "B Hs D", sizes | {"D": (d_head,)})
        if s.bias is not None:
            expect_shape(operation, "bias", s.bias, "B Hs n", {"B": (batch, 1), "Hs": (stored, 1), "n": (n,)})
    if segments[-1].keys.shape[2] < queries:
        raise ValueError(
            f"{operation}: the last segment holds {segments[-1].keys.shape[2]} tokens, but there are {queries} "
            "queries, whose keys should be its last ones."
        )
    if sinks is not None:
        expect_float(operation, sinks=sinks)
        expect_shape(operation, "sinks", sinks, "H", {"H": (heads,)})
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{operation}: softcap should be positive, found {softcap}; None means no cap.")
    call = PackedCall(q, segments, d_head**-0.5 if scale is None else scale, softcap, sinks, full, mass)
    return choose(PATHS, q)(call)
