"""Triton's paths of merging and evicting against the references; without a GPU in Triton's interpreter."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from interp_kernels import use
from interp_kernels.decode_step import Merge, decode_step
from interp_kernels.nearest_merge import merge_tokens, nearest_key

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.4).to(DEVICE)


def padded(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(~mask[..., None], torch.nan)


@pytest.fixture
def many_slices(monkeypatch):
    """Slices so small that a test has several."""
    monkeypatch.setattr(import_module("interp_kernels.nearest_merge.triton"), "LEAST_SLICE", 33)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("evicted", "retained", "size"), [(1, 1, 16), (1, 130, 64), (17, 65, 20), (70, 7, 128), (65, 129, 80), (3, 40, 256)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_nearest_key(evicted, retained, size, dtype, masked, same) -> None:
    e, r = randn(2, 3, evicted, size, dtype=dtype), randn(2, 3, retained, size, dtype=dtype, seed=1)
    if not masked:
        return same(dtype, nearest_key, e, r)
    masks = some(2, 3, evicted), some(2, 3, retained, seed=1)
    masks[1][1, 2] = False  # nothing retained in one head
    return same(dtype, nearest_key, padded(e, masks[0]), padded(r, masks[1]), *masks)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of the interpreter
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_keys_without_a_length_take_no_part(odd, same) -> None:
    e, r = randn(1, 2, 6, 16), randn(1, 2, 70, 16, seed=1)
    e[:, 0, 2, 3] = r[:, 0, 4, 0] = r[:, 0, 65, 7] = odd
    r[:, 1] = odd
    same(torch.float32, nearest_key, e, r)


@pytest.mark.parametrize("evicted", [1, 20])
def test_slices_of_retained_keys_change_nothing(evicted, many_slices, same) -> None:
    e, r = randn(2, 3, evicted, 32), randn(2, 3, 130, 32, seed=1)
    same(torch.float32, nearest_key, e, r)
    same(torch.float32, nearest_key, e, r, None, some(2, 3, 130) & (torch.arange(130, device=DEVICE) > 70))


@pytest.mark.parametrize("small", [False, True])
def test_of_equal_keys_the_first(small, same, request) -> None:
    """Also where they lie in different blocks or slices. Small whole numbers, so that sums are exact in any order."""
    if small:
        request.getfixturevalue("many_slices")
    r = torch.randint(-3, 4, (1, 2, 120, 16), generator=torch.Generator().manual_seed(0)).float()
    r[:, :, 40:80] = r[:, :, 80:] = r[:, :, :40]
    e = r[:, :, 50:90].to(DEVICE)
    with use("triton"):
        target, _ = nearest_key(e, r.to(DEVICE))
    assert (target < 40).all()
    same(torch.float32, nearest_key, e, r.to(DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("evicted", "retained", "size"), [(1, 1, 16), (1, 15, 64), (130, 3, 20), (21, 7, 80), (5, 2, 256)]
)
@pytest.mark.parametrize(("variant", "gated"), [("paper", False), ("code", True)])
def test_merge_tokens(evicted, retained, size, dtype, variant, gated, same) -> None:
    x, e = randn(2, 2, retained, size, dtype=dtype), randn(2, 2, evicted, size, dtype=dtype, seed=1)
    target = torch.randint(-1, retained + 1, (2, 2, evicted), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    u = randn(2, 2, evicted, seed=3).tanh()
    weight, counted, own = (u.exp(), None, torch.e) if variant == "paper" else (u, torch.ones_like(u), 1.0)
    merged = None
    if gated:
        merged = some(2, 2, evicted)
        e, weight = padded(e, merged), weight.masked_fill(~merged, torch.nan)
    same(dtype, merge_tokens, x, e, target, weight, counted=counted, own=own, merged=merged)


def test_what_nothing_is_merged_into_stays_to_the_last_bit() -> None:
    for dtype in DTYPES:
        x, e = randn(1, 2, 10, 24, dtype=dtype), randn(1, 2, 9, 24, dtype=dtype, seed=1)
        target = torch.arange(9, device=DEVICE).expand(1, 2, -1) % 3
        with use("triton"):
            new = merge_tokens(x, e, target, torch.ones(1, 2, 9, device=DEVICE), own=0.7)
        assert new[:, :, 3:].equal(x[:, :, 3:])
        assert not new[:, :, :3].equal(x[:, :, :3])


def test_views_of_larger_tensors(same) -> None:
    """Tensors that lie in memory with gaps, or channel by channel, are read where they are."""
    wide = randn(2, 30, 3, 18)
    e, r = wide[:, :12, :, 1:17].transpose(1, 2), wide[:, 12:, :, :16].transpose(1, 2).contiguous().mT.contiguous().mT
    same(torch.float32, nearest_key, e, r)
    target = torch.arange(12, device=DEVICE).expand(2, 3, -1)
    same(torch.float32, merge_tokens, r, e, target, torch.ones(2, 3, 12, device=DEVICE))


def test_runs_are_the_same_to_the_last_bit() -> None:
    e, r = randn(1, 2, 65, 32), randn(1, 2, 20, 32, seed=1)
    with use("triton"):
        first, second = (nearest_key(e, r) for _ in range(2))
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))
        assert merge_tokens(r, e, *first).equal(merge_tokens(r, e, *first))


def stepped(q, keys, values, mass, positions, merge=None, **facts) -> list[torch.Tensor]:
    """What `decode_step` returns and what it leaves behind, as one list; the inputs stay as they are."""
    state = [x.clone() for x in (keys, values, mass, positions)]
    z, evicted, merged = decode_step(q, *state, merge=merge, **facts)
    return [z, *evicted, *(merged or ()), *(x[:, :, :-1] for x in state)]


def drawn(n: int, stored: int, size: int, size_v: int, dtype: torch.dtype, padding: torch.Tensor | None = None):
    """A batch of two with 6 query heads; slots in random order, the new token last; padding holds NaN."""
    order = torch.rand(2, stored, n + 4, generator=torch.Generator().manual_seed(n)).argsort(-1)[..., : n - 1]
    positions = torch.cat([order, torch.full((2, stored, 1), n + 4)], -1).to(DEVICE, torch.int32)
    keys, values = randn(2, stored, n, size, dtype=dtype, seed=1), randn(2, stored, n, size_v, dtype=dtype, seed=2)
    mass = 3 * randn(2, stored, n, seed=3).abs()
    mass[..., -1] = torch.nan  # nobody wrote it
    if padding is not None:
        real = positions >= padding[:, None, None]
        keys, values = padded(keys, real), padded(values, real)
    return randn(2, 6, 1, size, dtype=dtype), keys, values, mass, positions


STEPS = {
    "plain": {},
    "kept": {"keep_oldest": 3, "keep_newest": 4, "scale": 0.1},
    "all kept": {"keep_newest": 1000},
    "padding": {
        "padding": torch.tensor([0, 5], device=DEVICE),
        "keep_oldest": 5,
        "sinks": torch.arange(6.0, device=DEVICE),
    },
    "only padding": {"padding": torch.tensor([3, 5], device=DEVICE), "keep_newest": 1000, "softcap": 1.5},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("facts", [STEPS["kept"], STEPS["padding"]], ids=["kept", "padding"])
@pytest.mark.parametrize(
    ("n", "stored", "size", "size_v"),
    [(1, 6, 16, 16), (65, 1, 20, 33), (20, 2, 64, 80), (130, 2, 128, 128), (40, 3, 256, 256)],
)
def test_decode_step(n, stored, size, size_v, dtype, facts, same) -> None:
    same(dtype, stepped, *drawn(n, stored, size, size_v, dtype, facts.get("padding")), **facts)


@pytest.fixture
def many_parts(monkeypatch):
    """Parts and blocks so small that a test has several, of unequal size."""
    module = import_module("interp_kernels.decode_step.triton")
    monkeypatch.setattr(module, "LEAST_PART", 30)
    monkeypatch.setattr(module, "BLOCK_CELLS", 32)


@pytest.mark.parametrize("facts", STEPS.values(), ids=STEPS)
def test_parts_and_blocks_of_slots_change_nothing(facts, many_parts, same) -> None:
    same(torch.float32, stepped, *drawn(70, 2, 16, 16, torch.float32, facts.get("padding")), **facts)


@pytest.mark.parametrize("several", [False, True])
def test_of_equally_attended_tokens_the_latest_goes(several, request, same) -> None:
    if several:
        request.getfixturevalue("many_parts")
    q, keys, values, mass, positions = drawn(100, 2, 16, 16, torch.float32)
    keys.zero_()  # everybody receives the same
    mass[:] = 2.0
    mass[..., 10:80:7] = 1.0
    with use("triton"):
        found = stepped(q, keys, values, mass, positions, keep_newest=1)
    assert found[2].equal(positions[..., 10:80:7].amax(-1))
    same(torch.float32, stepped, q, keys, values, mass, positions, keep_newest=1)


@pytest.mark.parametrize(("order", "goes"), [(1, 6), (-1, 30)])
def test_kept_tokens_end_where_they_should(order, goes, same) -> None:
    """Tokens at positions 2 to 34, the newest two of which are kept, and the oldest two after the padding below 4."""
    q, keys, values, mass, positions = drawn(33, 2, 16, 16, torch.float32)
    positions = positions.argsort(-1).argsort(-1).int() + 2
    mass = order * positions.float()
    facts = {"padding": torch.tensor([4, 4], device=DEVICE), "keep_oldest": 2, "keep_newest": 4}
    mass[positions < 4] = 100.0
    same(torch.float32, stepped, q, keys, values, mass, positions, **facts)
    gone = positions >= 4  # the padding leaves, one token after the other
    keys, values = (x[gone].view(2, 2, 31, -1) for x in (keys, values))
    mass, positions = mass[gone].view(2, 2, 31), positions[gone].view(2, 2, 31)
    with use("triton"):
        assert (stepped(q, keys, values, mass, positions, **facts)[2] == goes).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("facts", [STEPS["plain"], STEPS["padding"]], ids=["plain", "padding"])
def test_decode_step_with_a_merge(dtype, facts, same) -> None:
    merge = Merge(lambda similarity, real: (similarity >= 0.2, similarity.exp(), None), own=torch.e)
    same(dtype, stepped, *drawn(40, 2, 20, 16, dtype, facts.get("padding")), merge=merge, **facts)


def test_a_cache_is_changed_where_it_lies(same) -> None:
    """With room to spare, laid out channel by channel, positions in 64 bits."""
    q, keys, values, mass, positions = drawn(30, 2, 16, 24, torch.float32)
    state = [keys, values.mT.contiguous().mT, mass, positions.long()]
    wide = [torch.full((*x.shape[:2], 40, *x.shape[3:]), 7, dtype=x.dtype, device=DEVICE) for x in state]
    wide[1] = wide[1].mT.contiguous().mT
    views = [x[:, :, :30].copy_(own) for x, own in zip(wide, state, strict=True)]
    with use("triton"):
        decode_step(q, *views, keep_oldest=2)
    with use("reference"):
        decode_step(q, *state, keep_oldest=2)
    for x, wanted in zip(wide, state, strict=True):
        torch.testing.assert_close(x[:, :, :29], wanted[:, :, :29])
        assert (x[:, :, 30:] == 7).all()


def test_two_steps_are_the_same_to_the_last_bit() -> None:
    with use("triton"):
        first, second = (stepped(*drawn(70, 2, 32, 32, torch.float32)) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_strides_of_the_target_do_not_matter(same) -> None:
    x, evicted = torch.randn(2, 3, 5, 16, device=DEVICE), torch.randn(2, 3, 8, 16, device=DEVICE)
    target = torch.randint(0, 5, (2, 8, 3), device=DEVICE).transpose(1, 2)
    weight = torch.rand(2, 8, 3, device=DEVICE).transpose(1, 2)
    same(torch.float32, merge_tokens, x, evicted, target, weight)
