"""nearest_key and merge_tokens against loops over single tokens, on the plain and the blocked path."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import use
from interp_kernels.nearest_merge import merge_tokens, nearest_key

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 8), (7, 1, 20), (1, 63, 32), (100, 13, 80), (13, 100, 128)]  # evicted, retained, channels
PATHS = ["reference", "cpu"]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.4


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    lengths = math.sqrt(a.dot(a)) * math.sqrt(b.dot(b))
    return a.dot(b).item() / lengths if lengths else 0.0


def nearest_by_loops(evicted, retained, evicted_mask=None, retained_mask=None):
    batch, heads, tokens, _ = evicted.shape
    target = torch.full((batch, heads, tokens), -1)
    similarity = torch.full((batch, heads, tokens), -torch.inf, dtype=torch.float64)
    for place in torch.cartesian_prod(*map(torch.arange, (batch, heads, tokens))).tolist():
        b, h, i = place
        for j in range(retained.shape[2]):
            hidden = retained_mask is not None and not retained_mask[b, h, j]
            if hidden or (evicted_mask is not None and not evicted_mask[b, h, i]):
                continue
            u = cosine(evicted[b, h, i].double(), retained[b, h, j].double())
            if u > similarity[b, h, i]:
                similarity[b, h, i], target[b, h, i] = u, j
    return target, similarity


def merged_by_loops(x, evicted, target, weight, own=1.0, counted=None, merged=None):
    new = x.double().clone()
    counted = weight if counted is None else counted
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for j in range(x.shape[2]):
                top, bottom, any_merged = own * x[b, h, j].double(), own, False
                for i in range(evicted.shape[2]):
                    if target[b, h, i] == j and (merged is None or merged[b, h, i]):
                        top = top + weight[b, h, i].double() * evicted[b, h, i].double()
                        bottom, any_merged = bottom + counted[b, h, i].double(), True
                if any_merged:
                    new[b, h, j] = top / bottom
    return new


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("evicted", "retained", "size"), SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_nearest_key(path, dtype, evicted, retained, size, masked):
    e, r = randn(2, 3, evicted, size, dtype=dtype), randn(2, 3, retained, size, seed=1, dtype=dtype)
    masks = (some(2, 3, evicted), some(2, 3, retained, seed=1)) if masked else (None, None)
    wanted = nearest_by_loops(e, r, *masks)
    if masked:
        masks[1][1, 2] = False  # nothing retained in one head
        wanted[0][1, 2], wanted[1][1, 2] = -1, -torch.inf
        e, r = (x.masked_fill(~mask[..., None], torch.nan) for x, mask in zip((e, r), masks, strict=True))
    with use(path):
        target, similarity = nearest_key(e, r, *masks)
    assert target.dtype == torch.int64
    assert target.equal(wanted[0])
    assert similarity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(similarity.double(), wanted[1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_of_equal_keys_the_first(path):
    r = torch.randint(-3, 4, (1, 2, 40, 16), generator=torch.Generator().manual_seed(0)).float()
    r[:, :, 1] = 2 * r[:, :, 0]
    r[:, :, 20:] = r[:, :, :20]  # small whole numbers: sums are exact, in whatever order
    e = r[:, :, 20:]
    with use(path):
        target, similarity = nearest_key(e, r)
    assert target.equal(nearest_by_loops(e, r)[0])
    assert (target < 20).all()
    torch.testing.assert_close(similarity, torch.ones_like(similarity))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_retained_and_nothing_evicted(path):
    e, none = randn(2, 3, 5, 8), randn(2, 3, 0, 8)
    with use(path):
        target, similarity = nearest_key(e, none)
        assert target.tolist() == [[[-1] * 5] * 3] * 2
        assert (similarity == -torch.inf).all()
        assert [x.shape for x in nearest_key(none, e)] == [(2, 3, 0)] * 2
        assert merge_tokens(e, none, torch.zeros(2, 3, 0).long(), torch.zeros(2, 3, 0)).equal(e)
        assert merge_tokens(none, e, torch.zeros(2, 3, 5).long(), torch.ones(2, 3, 5)).shape == (2, 3, 0, 8)


def test_keys_of_zeros_are_like_nothing():
    e, r = randn(1, 1, 2, 8), randn(1, 1, 3, 8, seed=1)
    e[:, :, 0], r[:, :, :2] = 0.0, 0.0
    for path in PATHS:
        with use(path):
            target, similarity = nearest_key(e, r)
        assert target[0, 0, 0] == 0
        assert similarity[0, 0, 0] == 0
        assert similarity.isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("masked", [False, True])
def test_keys_without_a_length_take_no_part(path, odd, masked):
    """As if they were hidden; one number is enough."""
    e, r = randn(1, 2, 6, 8), randn(1, 2, 9, 8, seed=1)
    e[:, 0, 2, 3] = r[:, 0, 4, 0] = r[:, 0, 5, 7] = odd
    r[:, 1] = odd
    masks = (some(1, 2, 6), some(1, 2, 9, seed=1)) if masked else (None, None)
    finite = [x.isfinite().all(-1) for x in (e, r)]
    hidden = [fits if mask is None else fits & mask for fits, mask in zip(finite, masks, strict=True)]
    wanted = nearest_by_loops(e, r, *hidden)
    with use(path):
        target, similarity = nearest_key(e, r, *masks)
    assert target.equal(wanted[0])
    torch.testing.assert_close(similarity.double(), wanted[1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("evicted", "retained", "size"), SHAPES)
@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("gated", [False, True])
def test_merge_tokens(path, dtype, evicted, retained, size, variant, gated):
    x, e = randn(2, 3, retained, size, dtype=dtype), randn(2, 3, evicted, size, seed=1, dtype=dtype)
    target = torch.randint(-1, retained + 1, (2, 3, evicted), generator=torch.Generator().manual_seed(2))
    u = randn(2, 3, evicted, seed=3).tanh()
    keywords = {"own": torch.e} if variant == "paper" else {"counted": torch.ones_like(u)}
    weight = u.exp() if variant == "paper" else u
    if gated:
        keywords["merged"] = some(2, 3, evicted)
    wanted = merged_by_loops(x, e, target, weight, **keywords)
    if gated:  # what does not merge may hold anything
        e = e.masked_fill(~keywords["merged"][..., None], torch.nan)
        weight = weight.masked_fill(~keywords["merged"], torch.nan)
    before = x.clone()
    with use(path):
        new = merge_tokens(x, e, target, weight, **keywords)
    assert new.dtype == dtype
    torch.testing.assert_close(
        new, wanted.to(dtype), **({} if dtype == torch.bfloat16 else {"atol": 1e-3, "rtol": 1e-3})
    )
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(new.double(), wanted, atol=2e-6, rtol=2e-6)
    assert x.equal(before), "the input was changed"
    reached = torch.zeros(2, 3, retained + 2, dtype=torch.bool)
    goes = target if "merged" not in keywords else target.where(keywords["merged"], retained)
    reached.scatter_(2, goes % (retained + 2), True)
    untouched = ~reached[..., :retained]
    assert new[untouched].equal(x[untouched])


@pytest.mark.parametrize("path", PATHS)
def test_weights_by_hand(path):
    """The weights of D2O for one target and two tokens with similarities 0.8 and 0.6."""
    x, u = torch.tensor([1.0, 0, 0]), torch.tensor([0.8, 0.6])
    e = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    tensors = (x.view(1, 1, 1, 3), e.view(1, 1, 2, 3), torch.zeros(1, 1, 2).long())
    with use(path):
        paper = merge_tokens(*tensors, u.exp().view(1, 1, 2), own=torch.e)
        code = merge_tokens(*tensors, u.view(1, 1, 2), counted=torch.ones(1, 1, 2))
    torch.testing.assert_close(paper.flatten(), torch.tensor([0.402, 0.329, 0.269]), atol=5e-4, rtol=0)
    torch.testing.assert_close(code.flatten(), torch.tensor([0.333, 0.267, 0.2]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_views_of_larger_tensors(path):
    """Tensors that lie in memory with gaps, or channel by channel, are read where they are."""
    wide = randn(2, 30, 3, 18)
    e, r = wide[:, :12, :, 1:17].transpose(1, 2), wide[:, 12:, :, :16].transpose(1, 2).contiguous().mT.contiguous().mT
    with use(path):
        nearest = nearest_key(e, r)
        again = nearest_key(e.contiguous(), r.contiguous())
        assert nearest.target.equal(again.target)
        torch.testing.assert_close(nearest.similarity, again.similarity)
        new = merge_tokens(r, e, nearest.target, nearest.similarity)
        torch.testing.assert_close(new, merge_tokens(r.contiguous(), e.contiguous(), again.target, again.similarity))


@pytest.mark.parametrize("cells", [1, 64, 4096])
def test_block_sizes_change_nothing(cells, monkeypatch):
    e, r = randn(2, 3, 70, 16), randn(2, 3, 45, 16, seed=1)
    u = randn(2, 3, 70, seed=2).tanh()
    with use("cpu"):
        wanted = nearest_key(e, r)
        merged = merge_tokens(r, e, wanted.target, u)
        cpu = import_module("interp_kernels.nearest_merge.cpu")
        monkeypatch.setattr(cpu, "BLOCK_CELLS", cells)
        monkeypatch.setattr(cpu, "BLOCK_ROWS", 9)
        found = nearest_key(e, r)
        assert found.target.equal(wanted.target)
        torch.testing.assert_close(found.similarity, wanted.similarity)
        assert merge_tokens(r, e, wanted.target, u).equal(merged)


def test_runs_are_the_same_to_the_last_bit(set_threads):
    e, r = randn(1, 4, 3000, 32), randn(1, 4, 50, 32, seed=1)
    found = []
    for threads in (1, 2, 2):
        set_threads(threads)
        with use("cpu"):
            target, similarity = nearest_key(e, r)
            found.append((target, similarity, merge_tokens(r, e, target, similarity.exp(), own=torch.e)))
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0][::2], other[::2], strict=True))
    assert found[1][1].equal(found[2][1])


def test_memory_stays_a_block(monkeypatch):
    """No tensor of E by R is made: the largest product is a block of rows."""
    largest = []
    genuine = torch.Tensor.__matmul__

    def spied(a, b):
        product = genuine(a, b)
        largest.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", spied)
    e, r = randn(1, 2, 2000, 8), randn(1, 2, 1500, 8, seed=1)
    with use("cpu"):
        nearest_key(e, r)
    assert 0 < max(largest) <= 2 * 256 * 1500


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 20),
    retained=st.integers(1, 12),
    size=st.integers(1, 9),
    own=st.floats(0.1, 5),
    seed=st.integers(0, 99),
)
def test_a_merge_stays_within_what_it_merges(tokens, retained, size, own, seed):
    """With weights that sum to 1 a merged token lies between the smallest and the largest of its sources; the paths
    agree, and equal tokens merge into themselves."""
    x, e = randn(1, 2, retained, size, seed=seed), randn(1, 2, tokens, size, seed=seed + 1)
    with use("cpu"):
        target, similarity = nearest_key(e, x)
        new = merge_tokens(x, e, target, similarity.exp(), own=own)
    with use("reference"):
        torch.testing.assert_close(new, merge_tokens(x, e, target, similarity.exp(), own=own), atol=1e-5, rtol=1e-5)
    low, high = x.clone(), x.clone()
    for b, h, i in torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(tokens)).tolist():
        j = target[b, h, i]
        low[b, h, j], high[b, h, j] = low[b, h, j].minimum(e[b, h, i]), high[b, h, j].maximum(e[b, h, i])
    assert (new >= low - 1e-5).all()
    assert (new <= high + 1e-5).all()
    with use("cpu"):
        same = merge_tokens(
            x, x.gather(2, target[..., None].expand(-1, -1, -1, size)), target, similarity.exp(), own=own
        )
    torch.testing.assert_close(same, x, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 15), retained=st.integers(2, 15), seed=st.integers(0, 99), factor=st.floats(0.1, 9))
def test_length_and_order_do_not_matter(tokens, retained, seed, factor):
    """Cosines do not change with a key's length, and shuffled retained keys give the shuffled targets."""
    e, r = randn(1, 1, tokens, 6, seed=seed), randn(1, 1, retained, 6, seed=seed + 1)
    order = torch.randperm(retained, generator=torch.Generator().manual_seed(seed))
    with use("cpu"):
        target, similarity = nearest_key(e, r)
        longer = nearest_key(factor * e, r * torch.rand(retained, 1).add(0.5))
        shuffled = nearest_key(e, r[:, :, order])
    torch.testing.assert_close(longer.similarity, similarity, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled.similarity, similarity, atol=1e-5, rtol=1e-5)
    assert order[shuffled.target].equal(target)


E, R = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)
AT, U = torch.zeros(2, 3, 5).long(), torch.zeros(2, 3, 5)
MISTAKES = [
    (nearest_key, (E[0], R), {}, "evicted should be [B, H, evicted, D], found [3, 5, 8]"),
    (nearest_key, (E, R[:, :2]), {}, "retained should be [B=2, H=3, retained, D=8], found [2, 2, 7, 8]"),
    (nearest_key, (E, R.long()), {}, "retained must be floating point, found torch.int64"),
    (nearest_key, (E, R.half()), {}, "evicted and retained should have one dtype, found torch.float32 and"),
    (nearest_key, (E, R, U), {}, "evicted_mask must be bool with True for what is kept"),
    (nearest_key, (E, R, None, U.bool()), {}, "retained_mask should be [B=2, H=3, retained=7], found [2, 3, 5]"),
    (merge_tokens, (R, E[..., :4], AT, U), {}, "evicted should be [B=2, H=3, evicted, D=8], found [2, 3, 5, 4]"),
    (merge_tokens, (R, E, U, U), {}, "target should hold integers, places in x, found torch.float32"),
    (merge_tokens, (R, E, AT[..., :2], U), {}, "target should be [B=2, H=3, evicted=5], found [2, 3, 2]"),
    (merge_tokens, (R, E, AT, AT), {}, "weight must be floating point, found torch.int64"),
    (merge_tokens, (R, E, AT, U), {"counted": U[:1]}, "counted should be [B=2, H=3, evicted=5], found [1, 3, 5]"),
    (merge_tokens, (R, E, AT, U), {"merged": U}, "merged must be bool with True for what is kept"),
    (merge_tokens, (R, E, AT, U), {"own": 0.0}, "own, the retained token's weight, should be above 0, found 0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "arguments", "keywords", "message"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(operation, arguments, keywords, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        operation(*arguments, **keywords)
    told = str(caught.value)
    assert told.startswith(f"{operation.__name__}: ")
    assert message in told
    assert "\n" not in told
