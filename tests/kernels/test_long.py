"""Lengths at which every path works in many blocks, odd ones too, against the reference."""

from __future__ import annotations

import interp_kernels as ik
import pytest
import torch


@pytest.mark.parametrize("length", [2048, 4097])
@pytest.mark.parametrize("window", [None, 1000])
def test_blocked_paths_at_length(length: int, window: int | None, same) -> None:
    q, k, v = (torch.randn(1, heads, length, 32).double() for heads in (2, 1, 1))
    y = torch.randn(1, 2, length, 3).double()
    lse = ik.attention_apply(q, k, window=window).lse
    every = ("lse", "entropy", "square", "column_mass")
    same(torch.float32, ik.attention_apply, q, k, v, path="cpu", statistics=every, window=window)
    same(torch.float32, ik.attention_transpose_apply, q, k, lse, y, path="cpu", window=window)
    same(torch.float32, ik.attention_gram_apply, q, k, lse, y, path="cpu", window=window)


def test_decoding_at_length(same) -> None:
    q, k, v = torch.randn(1, 4, 2, 64), torch.randn(1, 2, 4097, 64), torch.randn(1, 2, 4097, 64)
    channels = torch.arange(0, 64, 2).expand(1, 2, -1)
    old = ik.KeySegment(ik.think_pack(k[:, :, :-32], channels), v[:, :, :-32], channels)
    new = ik.KeySegment(k[:, :, -32:], v[:, :, -32:])
    same(torch.float32, ik.packed_decode, q, [old, new], path="cpu")


def test_widest_heads_in_triton(same) -> None:
    pytest.importorskip("triton")
    q, k, v = (torch.randn(1, heads, 33, 256) for heads in (2, 1, 1))
    same(torch.float32, ik.attention_apply, q, k, v)
    same(torch.float32, ik.attention_transpose_apply, q, k, ik.attention_apply(q, k).lse, q[..., :5])
