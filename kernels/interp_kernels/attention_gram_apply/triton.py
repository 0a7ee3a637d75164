"""attention_gram_apply as an `attention_apply` and an `attention_transpose_apply`.

Summing both at once would need additions to memory in no fixed order: rows of A are whole in a block of rows, and
columns in a block of keys. So the scores are computed twice.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..attention_apply.triton import attention_apply
from ..attention_transpose_apply.triton import attention_transpose_apply
from ..blocks import LOG2E, row_shift
from ..facts import Facts


def attention_gram_apply(q: Tensor, k: Tensor, lse: Tensor, x: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """(A @ x [B, H, N, R], A^T @ A @ x [B, H, S, R])."""
    applied, own, *_ = attention_apply(q, k, x, (), replace(facts, sinks=None))
    assert applied is not None  # x was given
    # its rows sum to 1; those of A have the denominators that lse and the sinks say
    weight = torch.exp2(own * LOG2E - row_shift(lse, facts, torch.float32))
    applied = applied * weight[..., None]
    # the second product is in the precision of the first
    return applied, attention_transpose_apply(q, k, lse, applied.to(x.dtype), facts)
