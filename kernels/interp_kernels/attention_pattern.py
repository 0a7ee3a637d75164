"""The attention matrix itself, for inputs short enough to hold it."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from .explicit import masked_scores, pattern
from .facts import MaskFacts, resolve


@torch.no_grad()
def attention_pattern(q: Tensor, k: Tensor, **facts: Unpack[MaskFacts]) -> Tensor:
    """A = softmax(scale * q @ k^T + mask), written out: [B, H, N, S] in fp32 (fp64 for fp64 inputs).

    Args:
        q: `[B, H, N, D]`, fp64, fp32, bf16 or fp16.
        k: `[B, Hk, S, D]`, the same dtypes. Hk divides H; query head h reads kv head h // (H // Hk).
        facts: see `MaskFacts`. With `sinks` the sink's column is dropped, and rows sum to less than 1.

    Raises:
        ValueError, TypeError: in one sentence, on shapes and dtypes that do not fit.

    Examples:
        >>> interp_kernels.attention_pattern(q, k)[0, 0, 0]  # the first query sees the first key alone
        tensor([1., 0., 0., 0., 0., 0.])
    """
    resolved = resolve("attention_pattern", q, k, **facts)
    scores = masked_scores(q, k, resolved)
    return pattern(scores, torch.logsumexp(scores, dim=-1), resolved)
