"""Triton's paths over channels against the references; on a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from interp_kernels import channel_energy

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (7, 20), (65, 64), (130, 128)])
@pytest.mark.parametrize("padded", [False, True])
def test_channel_energy(tokens: int, size: int, dtype: torch.dtype, padded: bool, same) -> None:
    x = torch.randn(2, 3, tokens, size, device=DEVICE).to(dtype)
    mask = torch.arange(tokens, device=DEVICE) >= torch.tensor([[0], [tokens // 2]], device=DEVICE)
    if padded:
        x = x.masked_fill(~mask[:, None, :, None], torch.nan)
    same(dtype, channel_energy, x, mask if padded else None)
