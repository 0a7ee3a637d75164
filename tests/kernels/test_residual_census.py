"""residual_census against loops and sorted lists in plain Python, on every path that needs no Triton."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import use
from interp_kernels.residual_census import ResidualCensus, residual_census

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PATHS = ["reference", "cpu"]
CPU = import_module("interp_kernels.residual_census.cpu")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest):
    """Each path in turn, chosen while the test runs."""
    with use(request.param):
        yield request.param


def counted(x: torch.Tensor, channels: list[int] | None, top: int, mask: torch.Tensor | None) -> dict[str, Any]:
    """The census by looking at one entry after the other, in fp64."""
    batch, tokens, size = x.shape
    keep = np.ones((batch, tokens), bool) if mask is None else mask.numpy()
    found: dict[str, Any] = {
        "norm": np.zeros((batch, tokens)),
        "rms": np.zeros((batch, tokens)),
        "phi": None if channels is None else np.zeros((batch, tokens)),
        "token_value": np.zeros((batch, tokens, top)),
        "token_channel": np.full((batch, tokens, top), -1),
        "median": np.zeros(batch),
        "psi": np.full(batch, NAN),
        "text_value": np.zeros((batch, top)),
        "text_token": np.full((batch, top), -1),
        "text_channel": np.full((batch, top), -1),
    }
    for b in range(batch):
        entries = []
        for i in range(tokens):
            if not keep[b, i]:
                continue
            row = [abs(v) for v in x[b, i].double().tolist()]
            square = math.fsum(v * v for v in row)
            found["norm"][b, i] = math.sqrt(square)
            found["rms"][b, i] = math.sqrt(square / size + 1e-6)
            if channels is not None:
                found["phi"][b, i] = max(row[d] for d in channels) / math.sqrt(square / size + 1e-6)
            own = sorted((-v, i, d) for d, v in enumerate(row))
            found["token_value"][b, i] = [-v for v, _, _ in own[:top]]
            found["token_channel"][b, i] = [d for _, _, d in own[:top]]
            entries += own
        if entries:
            entries.sort()
            middle = sorted(-v for v, _, _ in entries)[len(entries) // 2]
            found["median"][b] = middle
            largest = -entries[0][0]
            found["psi"][b] = largest / middle if middle else (INF if largest else NAN)
            found["text_value"][b], found["text_token"][b], found["text_channel"][b] = (
                [-v for v, _, _ in entries[:top]],
                [i for _, i, _ in entries[:top]],
                [d for _, _, d in entries[:top]],
            )
    return found


EXACT = ("token_value", "token_channel", "median", "text_value", "text_token", "text_channel")


def assert_counted(census: ResidualCensus, expected: dict[str, Any], rtol: float = 1e-5) -> None:
    assert set(expected) == set(census._fields)
    for name, truth in expected.items():
        found = getattr(census, name)
        if truth is None:
            assert found is None
        else:
            assert found.shape == truth.shape, name
            np.testing.assert_allclose(found.numpy(), truth, rtol=0 if name in EXACT else rtol, err_msg=name)


def drawn(tokens: int, size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Two texts whose entries have very different sizes, as a residual stream's have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, size, generator=generator) * 4 ** torch.randn(size, generator=generator)
    x[1, tokens // 2, size // 2] = -1234.5
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "size", "top"), [(1, 1, 1), (1, 8, 8), (1, 9, 2), (7, 20, 3), (9, 7, 4), (63, 33, 8), (100, 64, 1)]
)
@pytest.mark.parametrize("padding", [None, NAN, 0.0])
def test_every_number_is_as_counted(path, dtype, tokens, size, top, padding) -> None:
    x = drawn(tokens, size, dtype)
    mask = None
    if padding is not None:
        mask = torch.arange(tokens) >= torch.tensor([[0], [(tokens + 1) // 2]])
        x = x.masked_fill(~mask[..., None], padding)
    channels = [size - 1, 0]
    census = residual_census(x, channels, top=top, mask=mask)
    assert_counted(census, counted(x, channels, top, mask), rtol=1e-12 if dtype == torch.float64 else 1e-5)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for name, value in census._asdict().items():
        assert value.dtype == (torch.int64 if name.endswith(("token", "channel")) else wanted), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cells", [1, 50, 333])
def test_blocks_do_not_matter(monkeypatch, dtype, cells) -> None:
    x = drawn(29, 25, dtype, seed=1)
    mask = torch.rand(2, 29, generator=torch.Generator().manual_seed(2)) > 0.4
    monkeypatch.setattr(CPU, "BLOCK_CELLS", cells)
    with use("cpu"):
        assert_counted(residual_census(x, [3], top=5, mask=mask), counted(x, [3], 5, mask))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_numbers_with_many_ties(data) -> None:
    tokens, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    values = st.integers(-3, 3) | st.floats(-1e4, 1e4, width=16)
    x = torch.tensor(data.draw(st.lists(values, min_size=2 * tokens * size, max_size=2 * tokens * size)))
    x = x.to(data.draw(st.sampled_from(DTYPES))).view(2, tokens, size)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=2 * tokens, max_size=2 * tokens))).view(2, tokens)
    top = data.draw(st.integers(1, size))
    for name in PATHS:
        with use(name):
            assert_counted(residual_census(x, [size // 2], top=top, mask=mask), counted(x, [size // 2], top, mask))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_the_median_of_any_floats(values) -> None:
    """Denormal numbers, infinities, zeros of both signs."""
    x = torch.tensor(values)[None, :, None]
    truth = sorted(abs(v) for v in values)[len(values) // 2]
    for name in PATHS:
        with use(name):
            assert residual_census(x, top=1).median.item() == truth


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-2, 1e2))
def test_phi_does_not_see_the_scale_and_has_a_bound(seed, scale) -> None:
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    phi = residual_census(x, [2, 9]).phi
    torch.testing.assert_close(residual_census(scale * x, [2, 9]).phi, phi, rtol=1e-2, atol=0)  # 1e-6 in the rms
    assert phi.max() <= math.sqrt(16)


def test_a_token_that_is_all_sink_reaches_the_bound(path) -> None:
    x = torch.zeros(1, 1, 64)
    x[0, 0, 5] = -300.0
    assert residual_census(x, [1, 5]).phi.item() == pytest.approx(8.0)
    assert residual_census(x, [1, 6]).phi.item() == 0


@pytest.mark.parametrize(("values", "median"), [([5], 5), ([1, -2], 2), ([3, -1, 2], 2), ([4, 1, -3, 2], 3)])
def test_of_two_medians_the_upper_one(path, values, median) -> None:
    assert residual_census(torch.tensor(values, dtype=torch.float32)[None, :, None], top=1).median.item() == median


def test_equal_entries_are_named_in_order(path) -> None:
    x = torch.tensor([[[1.0, -7, 7, 2], [7, 0, -7, 7]]])
    census = residual_census(x, top=4)
    assert census.token_channel.tolist() == [[[1, 2, 3, 0], [0, 2, 3, 1]]]
    assert list(zip(census.text_token[0].tolist(), census.text_channel[0].tolist(), strict=True)) == [
        (0, 1), (0, 2), (1, 0), (1, 2),
    ]  # fmt: skip
    assert residual_census(torch.full((1, 70, 70), -2.0), top=8).text_channel.tolist() == [list(range(8))]


def test_what_a_probe_reads_with_numpy(path) -> None:
    """The largest entry, its place, the median and their ratio, as numpy finds them in one text."""
    x = drawn(50, 48, torch.bfloat16, seed=3)
    census = residual_census(x, top=1)
    for text in range(2):
        size = np.abs(x[text].float().numpy())
        at = np.unravel_index(size.argmax(), size.shape)
        middle = np.partition(size.ravel(), size.size // 2)[size.size // 2]
        assert (census.text_token[text, 0].item(), census.text_channel[text, 0].item()) == at
        assert census.text_value[text, 0].item() == size[at]
        assert census.median[text].item() == middle
        assert census.psi[text].numpy() == size[at] / middle


def test_a_text_without_real_tokens(path) -> None:
    x, mask = torch.full((2, 3, 4), NAN), torch.zeros(2, 3, dtype=torch.bool)
    x[0, 1], mask[0, 1] = 2.0, True
    census = residual_census(x, [0], top=2, mask=mask)
    assert census.phi[0].tolist() == pytest.approx([0, 1, 0])
    assert census.phi[1].tolist() == [0, 0, 0]
    assert census.token_channel.tolist() == [[[-1, -1], [0, 1], [-1, -1]], [[-1, -1]] * 3]
    assert census.median.tolist() == [2, 0]
    assert census.text_value.tolist() == [[2, 2], [0, 0]]
    assert census.text_token.tolist() == [[1, 1], [-1, -1]]
    assert census.text_channel.tolist() == [[0, 1], [-1, -1]]
    assert census.psi[0] == 1
    assert census.psi[1].isnan()


def test_mostly_zeros_have_an_infinite_psi(path) -> None:
    x = torch.zeros(1, 4, 4)
    x[0, 2, 3] = 5
    census = residual_census(x, [3])
    assert census.psi.item() == INF
    assert census.phi[0, 0] == 0
    assert (census.text_token[0, 0], census.text_channel[0, 0]) == (2, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_larger_than_infinity(path, dtype) -> None:
    x = torch.tensor([[[1, -INF, 2], [3, 4, NAN]]], dtype=dtype)
    census = residual_census(x, [2], top=2)
    assert census.text_value[0].isnan().tolist() == [True, False]
    assert census.text_value[0, 1] == INF
    assert census.text_token.tolist() == [[1, 0]]
    assert census.text_channel.tolist() == [[2, 1]]
    assert census.median.item() == 4
    assert census.psi.isnan().all()
    assert census.phi[0, 1].isnan()


def test_strided_input_and_channels_of_any_kind(path) -> None:
    x = drawn(12, 20, torch.float32)
    part = x.mT.contiguous().mT[:, ::2, 1::3]
    expected = counted(part, [4, 1], 3, None)
    for channels in ([4, 1], (4, 1, 4), torch.tensor([1, 4], dtype=torch.int32)):
        assert_counted(residual_census(part, channels), expected)


def test_two_runs_give_the_same_bits_and_leave_x_alone(path) -> None:
    x = drawn(40, 30, torch.float32).requires_grad_()
    before = x.detach().clone()
    first, second = residual_census(x, [7]), residual_census(x, [7])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    assert torch.equal(x, before)


X = torch.zeros(2, 5, 6)
MISTAKES: list[tuple[tuple, dict[str, Any], str]] = [
    ((X[0],), {}, "x should be [B, N, d_model], found [5, 6]"),
    ((X.long(),), {}, "x must be floating point, found torch.int64"),
    ((X[:, :0],), {}, "at least one text, token and channel, found [2, 0, 6]"),
    ((X,), {"top": 0}, "top should be 1 to 6 for 6 channels, found 0"),
    ((X,), {"top": 7}, "top should be 1 to 6 for 6 channels, found 7"),
    ((torch.zeros(1, 1, 20),), {"top": 9}, "top should be 1 to 8 for 20 channels, found 9"),
    ((X,), {"mask": torch.ones(2, 5)}, "mask must be bool with True for what is kept, found torch.float32"),
    ((X,), {"mask": torch.ones(2, 6).bool()}, "mask should be [B=2, N=5], found [2, 6]"),
    ((X, [2, 6]), {}, "channels should lie in 0 to 5, found 6"),
    ((X, [-1, 2]), {}, "channels should lie in 0 to 5, found -1"),
    ((X, []), {}, "at least one channel, found shape [0]; None means no phi"),
    ((X, [[1, 2]]), {}, "at least one channel, found shape [1, 2]"),
    ((X, [0.5]), {}, "channels must be integers, found torch.float32"),
    ((X, torch.ones(6).bool()), {}, "channels must be integers, found torch.bool"),
]


@pytest.mark.parametrize(("arguments", "keywords", "message"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(arguments, keywords, message) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        residual_census(*arguments, **keywords)
    told = str(caught.value)
    assert told.startswith("residual_census: ")
    assert message in told
    assert "\n" not in told
    assert told.endswith(".")
