"""Triton's paths over channels against the references; on a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from interp_kernels import channel_energy, channel_gram, think_pack, use

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "size"), [(1, 16), (7, 20), (65, 64), (130, 128)])
@pytest.mark.parametrize("padded", [False, True])
def test_channel_energy(tokens: int, size: int, dtype: torch.dtype, padded: bool, same) -> None:
    x = torch.randn(2, 3, tokens, size, device=DEVICE).to(dtype)
    mask = torch.arange(tokens, device=DEVICE) >= torch.tensor([[0], [tokens // 2]], device=DEVICE)
    if padded:
        x = x.masked_fill(~mask[:, None, :, None], torch.nan)
    same(dtype, channel_energy, x, mask if padded else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("heads", "stored", "tokens", "size"),
    [
        (1, 1, 1, 16),
        (1, 1, 7, 16),
        (4, 2, 33, 20),
        (2, 2, 65, 20),
        (3, 3, 5, 64),
        (3, 3, 130, 64),
        (6, 2, 63, 80),
        (2, 2, 2, 80),
        (2, 1, 40, 128),
        (1, 1, 31, 128),
    ],
)
def test_channel_gram(heads, stored, tokens, size, padded: bool, dtype: torch.dtype, same) -> None:
    x = torch.randn(2, heads, tokens, size, device=DEVICE).to(dtype)
    mask = torch.arange(tokens, device=DEVICE) >= torch.tensor([[0], [(tokens + 1) // 2]], device=DEVICE)
    if padded:
        x.masked_fill_(~mask[:, None, :, None], torch.nan)
    same(dtype, channel_gram, x / 8, mask if padded else None, heads=stored)


@pytest.mark.parametrize(("size", "most"), [(200, 128), (96, 32), (33, 16)])
@pytest.mark.parametrize("step", [64, 256])
def test_gram_in_tiles_and_slices(size: int, most: int, step: int, same, monkeypatch) -> None:
    """More channels than a tile has, more tokens than a slice; queries with strides, and the last of them."""
    module = import_module("interp_kernels.channel_gram.triton")
    monkeypatch.setattr(module, "MOST_CHANNELS", most)
    monkeypatch.setattr(module, "LEAST_SLICE", step)
    x = torch.randn(1, 150, 4, size, device=DEVICE).transpose(1, 2) / 8
    mask = torch.rand(1, 150, device=DEVICE) < 0.7
    same(torch.float32, channel_gram, x, mask, heads=2)
    same(torch.float32, channel_gram, x[:, :, -32:], heads=1)


def test_gram_runs_are_bit_identical(monkeypatch) -> None:
    monkeypatch.setattr(import_module("interp_kernels.channel_gram.triton"), "LEAST_SLICE", 64)
    x = torch.randn(1, 2, 150, 20, device=DEVICE)
    with use("triton"):
        assert torch.equal(channel_gram(x, heads=1), channel_gram(x, heads=1))


def test_gram_without_tokens(same) -> None:
    same(torch.float32, channel_gram, torch.zeros(2, 2, 0, 16, device=DEVICE))
    nothing = torch.zeros(1, 5, dtype=torch.bool, device=DEVICE)
    same(torch.float32, channel_gram, torch.full((1, 2, 5, 16), torch.nan, device=DEVICE), nothing)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize(
    ("tokens", "size", "kept"), [(1, 16, 1), (7, 20, 13), (65, 64, 39), (130, 128, 128), (3, 8, 0)]
)
def test_think_pack(tokens: int, size: int, kept: int, dtype: torch.dtype) -> None:
    """Random bits arrive as they are, NaNs of all kinds among them, from keys of any strides."""
    wide = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (2, tokens, 3, size * wide), dtype=torch.uint8)
    k = raw.to(DEVICE).view(dtype).transpose(1, 2)
    channels = torch.rand(2, 3, size, device=DEVICE).argsort(-1)[..., :kept].to(torch.int16)
    with use("reference"):
        wanted = think_pack(k, channels)
    with use("triton"):
        found = think_pack(k, channels)
    assert found.is_contiguous()
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
