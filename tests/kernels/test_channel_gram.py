"""channel_gram against loops over pairs of channels, and against the loss that two of them stand for."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import channel_energy, channel_gram, use

PATHS = ["reference", "cpu"]


def drawn(
    heads: int = 4,
    kv_heads: int = 2,
    queries: int = 5,
    keys: int = 7,
    size: int = 6,
    dtype=torch.float64,
    seed: int = 0,
) -> SimpleNamespace:
    """Random q and k of two texts, the second padded: NaN where the masks are False."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, heads, queries, size, generator=generator, dtype=torch.float64).to(dtype)
    k = torch.randn(2, kv_heads, keys, size, generator=generator, dtype=torch.float64).to(dtype)
    query_mask = torch.arange(queries) < torch.tensor([[queries], [(queries + 1) // 2]])
    key_mask = torch.arange(keys) >= torch.tensor([[0], [keys // 2]])
    q.masked_fill_(~query_mask[:, None, :, None], torch.nan)
    k.masked_fill_(~key_mask[:, None, :, None], torch.nan)
    return SimpleNamespace(q=q, k=k, masks={"query_mask": query_mask, "key_mask": key_mask})


def product(case: SimpleNamespace) -> torch.Tensor:
    """M [B, Hk, D, D], the sum of (Q^T Q) * (K^T K), element by element, over the query heads Q of each key head K."""
    queries = channel_gram(case.q, case.masks["query_mask"], heads=case.k.shape[1])
    return queries * channel_gram(case.k, case.masks["key_mask"])


def by_pairs(case: SimpleNamespace) -> torch.Tensor:
    """M, one pair of channels after the other, in Python's own numbers."""
    (batch, heads, _, size), kv_heads = case.q.shape, case.k.shape[1]
    total = torch.zeros(batch, kv_heads, size, size, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            stored = h // (heads // kv_heads)
            query = case.q[b, h][case.masks["query_mask"][b]].double().tolist()
            key = case.k[b, stored][case.masks["key_mask"][b]].double().tolist()
            for i in range(size):
                for j in range(size):
                    total[b, stored, i, j] += sum(x[i] * x[j] for x in query) * sum(x[i] * x[j] for x in key)
    return total


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (4, 2), (5, 1)])
@pytest.mark.parametrize(("queries", "keys", "size"), [(1, 1, 1), (4, 9, 3), (7, 2, 5)])
def test_product_follows_from_its_definition(path: str, heads, kv_heads, queries, keys, size) -> None:
    case = drawn(heads, kv_heads, queries, keys, size)
    with use(path):
        found = product(case)
    torch.testing.assert_close(found, by_pairs(case), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), group=st.integers(1, 3), size=st.integers(1, 9), data=st.data())
def test_the_form_is_the_loss_of_dropping_channels(path: str, seed: int, group: int, size: int, data) -> None:
    """z^T M z is what the logits of all query heads lose, for any set of channels."""
    case = drawn(2 * group, 2, 4, 5, size, seed=seed)
    z = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.float64)
    with use(path):
        m = product(case)
    q, k = (case.q.nan_to_num(0.0), case.k.nan_to_num(0.0).repeat_interleave(group, 1))
    lost = q @ k.mT - (q * (1 - z)) @ k.mT
    wanted = lost.square().sum((2, 3)).unflatten(1, (2, group)).sum(2)
    torch.testing.assert_close(torch.einsum("i,bhij,j->bh", z, m, z), wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_the_diagonal_is_the_energy_of_channels(path: str) -> None:
    case = drawn()
    mask = case.masks["query_mask"]
    with use(path):
        energy = channel_gram(case.q, mask).diagonal(dim1=-2, dim2=-1) / mask.sum(1)[:, None, None]
    torch.testing.assert_close(energy, channel_energy(case.q, mask))


@pytest.mark.parametrize("path", PATHS)
def test_a_group_is_summed_as_one_long_text(path: str) -> None:
    """As a policy sums the queries of a group: a window of all heads, with strides of a [B, N, H, D] tensor."""
    q = torch.randn(2, 11, 6, 8).transpose(1, 2)
    with use(path):
        found = channel_gram(q[:, :, -4:], heads=3)
    rows = q[:, :, -4:].reshape(2, 3, 8, 8)
    torch.testing.assert_close(found, torch.einsum("bhtc,bhtd->bhcd", rows, rows))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.float16, 1e-5), (torch.bfloat16, 1e-5)],
)
@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_the_two_paths_agree(dtype: torch.dtype, tolerance: float, tokens: int, monkeypatch) -> None:
    """In blocks of any number of tokens; sums are wide, so half precision costs nothing but its own rounding."""
    monkeypatch.setattr(import_module("interp_kernels.channel_gram.cpu"), "BLOCK_TOKENS", tokens)
    case = drawn(queries=21, keys=33, size=20, dtype=dtype)
    with use("reference"):
        wanted = product(case)
    with use("cpu"):
        found = product(case)
    assert found.dtype == wanted.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("path", PATHS)
def test_without_tokens_there_is_nothing(path: str) -> None:
    with use(path):
        assert torch.equal(channel_gram(torch.ones(1, 2, 0, 3)), torch.zeros(1, 2, 3, 3))
        nothing = channel_gram(torch.full((1, 2, 4, 3), torch.nan), torch.zeros(1, 4, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros(1, 2, 3, 3))


def test_runs_are_bit_identical_and_leave_inputs_alone() -> None:
    case = drawn(dtype=torch.float32)
    q, k = case.q.clone(), case.k.clone()
    with use("cpu"):
        first, second = (product(case) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close((case.q, case.k), (q, k), atol=0, rtol=0, equal_nan=True)


Q, KEEP = torch.zeros(2, 4, 5, 6), torch.ones(2, 7, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((Q[0],), {}, "x should be [B, H, N, D], found [4, 5, 6]"),
        ((Q.long(),), {}, "x must be floating point, found torch.int64"),
        ((Q,), {"heads": 3}, "3 heads should divide 4 heads evenly"),
        ((Q,), {"heads": 0}, "0 heads should divide 4 heads evenly"),
        ((Q,), {"mask": KEEP}, "mask should be [B=2, N=5], found [2, 7]"),
        ((Q,), {"mask": KEEP[:, :5].float()}, "mask must be bool"),
    ],
)
def test_mistakes_are_told_in_one_sentence(arguments, keywords, message) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        channel_gram(*arguments, **keywords)
    told = str(caught.value)
    assert told.startswith("channel_gram: ")
    assert message in told
    assert "\n" not in told
    assert told.endswith(".")
