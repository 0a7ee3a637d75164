"""residual_census on Triton against the reference; on a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from interp_kernels import use
from interp_kernels.residual_census import ResidualCensus, residual_census

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")
EXACT = ("token_value", "token_channel", "median", "text_value", "text_token", "text_channel")
TRITON = import_module("interp_kernels.residual_census.triton")


@pytest.fixture
def same_census(same):
    """same_census(x, ...): Triton gives what the reference does, and the same bits where nothing is summed."""

    def check(*args, **kwargs) -> None:
        results = []

        def run() -> ResidualCensus:
            results.append(residual_census(*args, **kwargs))
            return results[-1]

        same(torch.float32, run)  # whatever x is, it is widened to fp32 before the first sum
        expected, found = results
        for name in EXACT:
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True, msg=name
            )

    return check


def drawn(tokens: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Two texts whose entries have very different sizes, as a residual stream's have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, size, generator=generator) * 4 ** torch.randn(size, generator=generator)
    x[1, tokens // 2, size // 2] = -1234.5
    return x.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "size", "top"), [(1, 20, 8), (9, 64, 1), (7, 1100, 2)])
@pytest.mark.parametrize("padding", [None, NAN, 0.0])
def test_numbers(tokens: int, size: int, top: int, dtype: torch.dtype, padding: float | None, same_census) -> None:
    x = drawn(tokens, size, dtype)
    mask = torch.arange(tokens, device=DEVICE) >= torch.tensor([[0], [(tokens + 1) // 2]], device=DEVICE)
    if padding is not None:
        x = x.masked_fill(~mask[..., None], padding)
    same_census(x, [size - 1, 0, size // 2], top=top, mask=None if padding is None else mask)


@pytest.mark.parametrize("programs", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shares_of_tokens(monkeypatch, programs: int, dtype: torch.dtype, same_census) -> None:
    """Shares that are no multiple of a block, of which the last is short, and holes in the mask."""
    monkeypatch.setattr(TRITON, "PROGRAMS", programs)
    mask = torch.rand(2, 23, generator=torch.Generator().manual_seed(2)).to(DEVICE) > 0.4
    same_census(drawn(23, 40, dtype, seed=1).masked_fill(~mask[..., None], NAN), top=3, mask=mask)


@pytest.mark.parametrize("count", [9, 10])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_of_the_median(count: int, dtype: torch.dtype, same_census) -> None:
    """Neighbouring floats, which differ in their last bits only; odd and even counts."""
    kind = torch.int32 if dtype == torch.float32 else torch.int16
    least = 0 if dtype != torch.bfloat16 else torch.finfo(dtype).tiny  # the interpreter widens denormal bf16 wrongly
    start = torch.tensor([1.0, least], dtype=dtype).view(kind)
    bits = start[:, None] + torch.arange(count, dtype=kind).flip(0)
    x = -bits.view(dtype)[..., None].to(DEVICE)
    same_census(x, top=1)
    with use("triton"):
        found = residual_census(x, top=1).median.to(dtype)
    assert torch.equal(found.cpu().view(kind), start + count // 2)


def test_ties_zeros_and_what_is_not_finite(same_census) -> None:
    x = torch.randint(-2, 3, (2, 9, 6), generator=torch.Generator().manual_seed(0)).float().to(DEVICE)
    same_census(x, [5], top=6)
    x[1] = 0
    same_census(x, [5], top=6)
    x[0, 3, 2], x[0, 8, 0], x[1, 2, 2] = INF, -INF, NAN
    same_census(x, [2], top=4)


def test_a_text_without_real_tokens(same_census) -> None:
    x, mask = drawn(6, 18, torch.float32), torch.ones(2, 6, dtype=torch.bool, device=DEVICE)
    x[0], mask[0] = NAN, False
    same_census(x, [0], top=3, mask=mask)


def test_strided_input(same_census) -> None:
    same_census(drawn(10, 40, torch.float32).mT.contiguous().mT[:, ::2, ::3], torch.tensor([2], dtype=torch.int32))


def test_two_runs_give_the_same_bits() -> None:
    x = drawn(21, 48, torch.float32)
    with use("triton"):
        first, second = residual_census(x, [7, 3]), residual_census(x, [7, 3])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_strides_of_the_channels_do_not_matter(same) -> None:
    x = torch.randn(1, 5, 16, device=DEVICE)
    same(torch.float32, lambda: residual_census(x, channels=torch.arange(8, device=DEVICE)[::2]).phi)
