"""decode_step against loops over single slots on the plain and the blocked path, and over many steps by hand."""

from __future__ import annotations

import math
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import use
from interp_kernels.decode_step import Merge, decode_step

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PATHS = ["reference", "cpu"]
CASES = {
    "plain": {},
    "kept": {"keep_oldest": 3, "keep_newest": 4},
    "all kept": {"keep_oldest": 10, "keep_newest": 100},
    "padding": {"padding": torch.tensor([0, 6]), "keep_oldest": 2, "keep_newest": 3},
    "only padding": {"padding": torch.tensor([0, 6]), "keep_oldest": 100},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": torch.linspace(-1, 2, 6)},
    "all at once": {
        "padding": torch.tensor([5, 0]),
        "keep_oldest": 2,
        "keep_newest": 2,
        "softcap": 3.0,
        "sinks": torch.linspace(-1, 2, 6),
        "scale": 0.3,
    },
}


def drawn(n: int = 19, stored: int = 2, size: int = 16, dtype=torch.float32, case: str = "plain", seed: int = 0):
    """A batch of two with 6 query heads and Dv 10; slots in random order, the new token last; padding holds NaN."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)

    text = n + 5  # tokens seen so far; each head has lost five of them
    positions = torch.rand(2, stored, text - 1, generator=generator).argsort(-1)[..., : n - 1]
    positions = torch.cat([positions, torch.full((2, stored, 1), text - 1)], -1).int()
    drawn = SimpleNamespace(
        q=randn(6, 1, size),
        keys=randn(stored, n, size),
        values=randn(stored, n, 10),
        mass=torch.rand(2, stored, n, generator=generator),
        positions=positions,
        keywords=dict(CASES[case]),
    )
    drawn.mass[..., -1] = torch.nan  # nobody wrote it
    if "padding" in drawn.keywords:
        hidden = positions < drawn.keywords["padding"][:, None, None]
        drawn.keys.masked_fill_(hidden[..., None], torch.nan)
        drawn.values.masked_fill_(hidden[..., None], torch.nan)
    return drawn


def stepped(path: str, case: SimpleNamespace, **keywords):
    """(what decode_step returns, the tensors as it leaves them); the case stays as it is."""
    state = {name: getattr(case, name).clone() for name in ("keys", "values", "mass", "positions")}
    with use(path):
        result = decode_step(case.q, *state.values(), **case.keywords, **keywords)
    return result, SimpleNamespace(**state)


def by_loops(case: SimpleNamespace):
    """(z, mass after, slot that goes), in fp64, one score at a time."""
    facts = {"keep_oldest": 0, "keep_newest": 0, "softcap": None, "sinks": None} | case.keywords
    q, keys, values = case.q.double(), case.keys.double(), case.values.double()
    batch, heads, _, size = q.shape
    stored, n = keys.shape[1:3]
    z, mass = torch.zeros(batch, heads, 1, 10, dtype=torch.float64), case.mass.double()
    mass[..., -1] = 0
    slot = torch.zeros(batch, stored, dtype=torch.long)
    for b in range(batch):
        first = case.keywords["padding"][b].item() if "padding" in case.keywords else 0
        for h in range(heads):
            s, weights = h // (heads // stored), {}
            for i in range(n):
                if case.positions[b, s, i] < first:
                    continue
                score = facts.get("scale", 1 / math.sqrt(size)) * q[b, h, 0].dot(keys[b, s, i]).item()
                if facts["softcap"] is not None:
                    score = facts["softcap"] * math.tanh(score / facts["softcap"])
                weights[i] = math.exp(score)
            total = sum(weights.values()) + (0 if facts["sinks"] is None else math.exp(facts["sinks"][h]))
            for i, weight in weights.items():
                z[b, h, 0] += weight / total * values[b, s, i]
                mass[b, s, i] += weight / total
        for s in range(stored):
            at = case.positions[b, s].tolist()
            rank = {}
            for i in range(n):  # padding first, then by mass; of equals the latest in the text
                stays = at[i] < first + facts["keep_oldest"] or at[i] > at[-1] - facts["keep_newest"]
                worth = -math.inf if at[i] < first else math.inf if stays else mass[b, s, i].item()
                rank[i] = (worth, -at[i])
            slot[b, s] = min(rank, key=rank.get)
    return z, mass, slot


def rebuilt(x: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """x [B, Hs, n, ...] with the new token in the place of the one that goes, without the last slot."""
    kept = x.clone()
    for b, s in torch.cartesian_prod(*map(torch.arange, slot.shape)).tolist():
        kept[b, s, slot[b, s]] = x[b, s, -1]
    return kept[:, :, :-1]


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    atol, rtol = {torch.float16: (2e-3, 1e-2), torch.bfloat16: (1e-2, 2e-2)}.get(dtype, (1e-5, 1e-5))
    torch.testing.assert_close(found.double(), wanted.double(), atol=atol, rtol=rtol, equal_nan=True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stored", [1, 2, 6])
def test_against_loops(path, dtype, case, stored):
    drawing = drawn(stored=stored, dtype=dtype, case=case, size=20)
    z, mass, slot = by_loops(drawing)
    result, state = stepped(path, drawing)
    close(result.z, z, dtype)
    assert result.z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result.merged is None
    evicted = result.evicted
    assert evicted.slot.equal(slot)
    where = slot[..., None]
    assert evicted.position.equal(drawing.positions.gather(2, where)[..., 0])
    close(evicted.mass, mass.gather(2, where)[..., 0], dtype)
    for name, lost in (("keys", evicted.key), ("values", evicted.value)):
        x = getattr(drawing, name)
        torch.testing.assert_close(
            lost, x.gather(2, where[..., None].expand(-1, -1, 1, x.shape[-1])), atol=0, rtol=0, equal_nan=True
        )
        torch.testing.assert_close(getattr(state, name)[:, :, :-1], rebuilt(x, slot), atol=0, rtol=0, equal_nan=True)
    assert state.positions[..., :-1].equal(rebuilt(drawing.positions, slot))
    close(state.mass[..., :-1], rebuilt(mass, slot), dtype)
    if case == "all kept":
        assert (slot == drawing.keys.shape[2] - 1).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [1, 2, 63, 100])
def test_odd_sizes(path, n):
    drawing = drawn(n=n, seed=n)
    z, mass, slot = by_loops(drawing)
    result, state = stepped(path, drawing)
    close(result.z, z, torch.float32)
    assert result.evicted.slot.equal(slot)
    close(state.mass[..., :-1], rebuilt(mass, slot), torch.float32)


@pytest.mark.parametrize("path", PATHS)
def test_of_equals_the_latest_in_the_text(path):
    """As in a library that ranks by position: where the token lies does not matter."""
    drawing = drawn()
    drawing.keys.zero_()  # everybody receives the same
    drawing.mass[:] = 1.0
    drawing.mass[..., 3:9] = 0.5
    result, _ = stepped(path, drawing, keep_newest=1)
    expected = drawing.positions[..., 3:9].amax(-1)
    assert result.evicted.position.equal(expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("order", "goes"), [(1, 6), (-1, 19)])
def test_kept_tokens_end_where_they_should(path, order, goes):
    """Tokens at positions 4 to 22; kept are the oldest two, counted from the padding that was there, and the newest
    three."""
    drawing = drawn()
    drawing.positions = drawing.positions.argsort(-1).argsort(-1).int() + 4
    drawing.mass = 10.0 * order * drawing.positions
    result, _ = stepped(path, drawing, padding=torch.tensor([4, 4]), keep_oldest=2, keep_newest=3)
    assert (result.evicted.position == goes).all()


def test_blocks_of_slots_change_nothing(monkeypatch):
    drawing = drawn(n=50, case="padding", dtype=torch.float16)
    wanted, state = stepped("cpu", drawing)
    monkeypatch.setattr(import_module("interp_kernels.decode_step.cpu"), "BLOCK_SLOTS", 7)
    found, again = stepped("cpu", drawing)
    torch.testing.assert_close(found.z, wanted.z)
    assert found.evicted.slot.equal(wanted.evicted.slot)
    torch.testing.assert_close(again.mass, state.mass)


def test_runs_are_the_same_to_the_last_bit():
    merge = Merge(lambda similarity, real: (real, similarity.exp(), None), own=torch.e)
    drawing = drawn(n=100)
    (first, before), (second, after) = (stepped("cpu", drawing, merge=merge) for _ in range(2))
    assert first.z.equal(second.z)
    for name in vars(before):
        assert getattr(before, name).equal(getattr(after, name))


@pytest.mark.parametrize("path", PATHS)
def test_views_of_a_larger_cache(path):
    """A cache with room to spare, or laid out channel by channel, is changed where it lies."""
    drawing = drawn(case="kept")
    wanted, state = stepped(path, drawing)
    wide = {name: getattr(state, name).new_full((2, 2, 30, *getattr(state, name).shape[3:]), 7) for name in vars(state)}
    wide["values"] = wide["values"].mT.contiguous().mT
    views = {name: x[:, :, :19].copy_(getattr(drawing, name)) for name, x in wide.items()}
    with use(path):
        found = decode_step(drawing.q, *(views[name] for name in vars(state)), **drawing.keywords)
    torch.testing.assert_close(found.z, wanted.z)
    for name, x in wide.items():
        torch.testing.assert_close(x[:, :, :18], getattr(state, name)[:, :, :18])
        assert (x[:, :, 19:] == 7).all()


def merging(weights: str, least: float, seen: list | None = None):
    def decide(similarity, real):
        if seen is not None:
            seen.append((similarity.clone(), real.clone()))
        if weights == "paper":
            return similarity >= least, similarity.exp(), None
        return similarity >= least, similarity, torch.ones_like(similarity)

    return Merge(decide, own=torch.e if weights == "paper" else 1.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["paper", "code"])
@pytest.mark.parametrize("case", ["plain", "padding", "only padding", "all kept"])
def test_a_merge_by_hand(path, dtype, weights, case):
    drawing = drawn(dtype=dtype, case=case)
    evicted_only, before = stepped(path, drawing)
    seen = []
    result, state = stepped(path, drawing, merge=merging(weights, 0.2, seen))
    for a, b in zip(result.evicted, evicted_only.evicted, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0, equal_nan=True)
    padding = case in ("padding", "only padding") and drawing.keywords["padding"]
    some = False
    for b, s in torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist():
        first = int(padding[b]) if case in ("padding", "only padding") else 0
        lost, best, target = result.evicted.key[b, s, 0].double(), -math.inf, -1
        for i in range(18):
            if before.positions[b, s, i] >= first and result.evicted.position[b, s] >= first:
                key = before.keys[b, s, i].double()
                u = lost.dot(key).item() / math.sqrt(lost.dot(lost)) / math.sqrt(key.dot(key))
                if u > best:
                    best, target = u, i
        assert result.merged.target[b, s] == target
        assert result.merged.similarity[b, s] == pytest.approx(best, abs=1e-5)
        assert seen[0][1][b, s, 0] == (target >= 0)
        goes = target >= 0 and best >= 0.2
        assert result.merged.merged[b, s] == goes
        for name, gone in (("keys", result.evicted.key), ("values", result.evicted.value)):
            wanted = getattr(before, name)[b, s].double().clone()
            if goes:
                some = True
                own, weight = (math.e, math.exp(best)) if weights == "paper" else (1.0, best)
                total = own + (weight if weights == "paper" else 1.0)
                wanted[target] = (own * wanted[target] + weight * gone[b, s, 0].double()) / total
            close(getattr(state, name)[b, s, :18], wanted[:18], dtype)
    assert some or case == "only padding" or dtype != torch.float32, "nothing was merged, so nothing was tested"
    assert state.positions.equal(before.positions)
    torch.testing.assert_close(state.mass, before.mass, equal_nan=True)


def test_keys_can_stay_as_they_are():
    drawing = drawn()
    _, before = stepped("cpu", drawing)
    merge = Merge(lambda similarity, real: (real, similarity.exp(), None), keys=False)
    result, after = stepped("cpu", drawing, merge=merge)
    assert result.merged.merged.all()
    assert after.keys.equal(before.keys)
    assert not after.values.equal(before.values)


@pytest.mark.parametrize("path", [*PATHS, "triton"])
@pytest.mark.parametrize("weights", [None, "paper", "code"])
def test_values_that_are_a_view_of_keys_move_with_them(path, weights):
    """As those of a copy do: nothing is averaged twice, and the value that went is not the one that came."""
    if path == "triton":
        pytest.importorskip("triton")
    drawing = drawn(case="kept")
    drawing.values = drawing.keys[..., :10].clone()
    merge = None if weights is None else merging(weights, 0.2)
    wanted, state = stepped(path, drawing, merge=merge)
    keys, mass, positions = (getattr(drawing, name).clone() for name in ("keys", "mass", "positions"))
    with use(path):
        found = decode_step(drawing.q, keys, keys[..., :10], mass, positions, **drawing.keywords, merge=merge)
    torch.testing.assert_close(found.z, wanted.z)
    for a, b in zip(found.evicted, wanted.evicted, strict=True):
        torch.testing.assert_close(a, b)
    assert merge is None or bool(found.merged.merged.any())
    torch.testing.assert_close(keys[:, :, :18], state.keys[:, :, :18])
    torch.testing.assert_close(keys[:, :, :18, :10], state.values[:, :, :18])


@pytest.mark.parametrize("nearest", [17, 18])
def test_the_last_slot_that_stays_and_the_new_token_are_targets(nearest):
    drawing = drawn()
    drawing.mass[:, :, 4] = -9.0
    drawing.keys[:, :, nearest] = 2 * drawing.keys[:, :, 4]
    result, _ = stepped("cpu", drawing, merge=merging("paper", 0.2))
    assert (result.evicted.slot == 4).all()
    assert (result.merged.target == (17 if nearest == 17 else 4)).all()
    torch.testing.assert_close(result.merged.similarity, torch.ones(2, 2))


def test_padding_is_merged_into_nothing():
    drawing = drawn(case="only padding")
    drawing.positions[1, :, :3] = torch.arange(3).int()  # the second text has padding to lose, the first has not
    _, before = stepped("cpu", drawing)
    everything = Merge(lambda similarity, real: (torch.ones_like(real), torch.ones_like(similarity), None))
    result, after = stepped("cpu", drawing, merge=everything)
    assert result.merged.merged.tolist() == [[True, True], [False, False]]
    assert after.keys[1].nan_to_num().equal(before.keys[1].nan_to_num())
    assert not after.keys[0].equal(before.keys[0])


def test_a_cache_that_lives_for_many_steps():
    """Steps one after the other are attention over the tokens that a list of survivors says are left."""
    generator = torch.Generator().manual_seed(0)
    capacity, steps, oldest, newest = 6, 15, 1, 2
    text_k, text_v = (torch.randn(capacity + steps, 8, generator=generator) for _ in range(2))
    queries = torch.randn(capacity + steps, 8, generator=generator)
    keys, values = torch.zeros(2, 1, 1, capacity + 1, 8)
    keys[0, 0, :capacity], values[0, 0, :capacity] = text_k[:capacity], text_v[:capacity]
    mass, positions = torch.zeros(1, 1, capacity + 1), torch.arange(capacity + 1).view(1, 1, -1).clone()
    received = dict.fromkeys(range(capacity), 0.0)  # by position, of tokens that are left
    for at in range(capacity, capacity + steps):
        keys[..., -1, :], values[..., -1, :], positions[..., -1] = text_k[at], text_v[at], at
        with use("cpu"):
            result = decode_step(
                queries[at].view(1, 1, 1, 8), keys, values, mass, positions, keep_oldest=oldest, keep_newest=newest
            )
        received[at] = 0.0
        left = sorted(received)
        weights = (text_k[left] @ queries[at] / math.sqrt(8)).softmax(0)
        torch.testing.assert_close(result.z.flatten(), weights @ text_v[left])
        for token, weight in zip(left, weights.tolist(), strict=True):
            received[token] += weight
        goes = min((p for p in left if oldest <= p <= at - newest), key=received.get)
        assert result.evicted.position.item() == goes
        assert result.evicted.mass.item() == pytest.approx(received.pop(goes), abs=1e-5)
        assert sorted(positions[0, 0, :-1].tolist()) == sorted(received)
        torch.testing.assert_close(mass[0, 0, :-1], torch.tensor([received[p] for p in positions[0, 0, :-1].tolist()]))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 30),
    stored=st.sampled_from([1, 2, 3, 6]),
    oldest=st.integers(0, 8),
    newest=st.integers(0, 8),
    seed=st.integers(0, 999),
)
def test_what_is_to_be_kept_is_kept_and_mass_is_conserved(n, stored, oldest, newest, seed):
    drawing = drawn(n=n, stored=stored, seed=seed)
    drawing.keywords = {"keep_oldest": oldest, "keep_newest": newest}
    result, state = stepped("cpu", drawing)
    at, new = result.evicted.position, drawing.positions[..., -1]
    free = (drawing.positions >= oldest) & (drawing.positions <= new[..., None] - newest)
    goes = (at >= oldest) & (at <= new - newest)
    assert (goes | ~free.any(-1)).all()
    assert (at == new)[~free.any(-1)].all()
    drawing.mass[..., -1] = 0
    total = drawing.mass.sum(-1) + 6 // stored  # each query head's row of attention sums to 1
    torch.testing.assert_close(state.mass[..., :-1].sum(-1) + result.evicted.mass, total)
    other, again = stepped("reference", drawing)
    torch.testing.assert_close(other.z, result.z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.mass, state.mass, atol=1e-5, rtol=1e-5)


Q, K, V = torch.zeros(2, 6, 1, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 5)
MASS, AT = torch.zeros(2, 3, 7), torch.zeros(2, 3, 7).int()
MISTAKES = [
    ((Q.expand(-1, -1, 2, -1), K, V, MASS, AT), {}, "q should be [B, H, N=1, D], found [2, 6, 2, 8]"),
    ((Q, K[..., :4], V, MASS, AT), {}, "keys should be [B=2, Hs, n, D=8], found [2, 3, 7, 4]"),
    ((Q, K[:, [0, 1, 2, 0]], V, MASS, AT), {}, "4 stored heads do not divide 6 query heads."),
    ((Q, K[:, :, :0], V[:, :, :0], MASS[..., :0], AT[..., :0]), {}, "keys has no slot"),
    ((Q, K, V[:, :, 1:], MASS, AT), {}, "values should be [B=2, Hs=3, n=7, Dv], found [2, 3, 6, 5]"),
    ((Q, K, V, MASS[:1], AT), {}, "mass should be [B=2, Hs=3, n=7], found [1, 3, 7]"),
    ((Q, K, V, MASS.half(), AT), {}, "mass should be torch.float32, found torch.float16"),
    ((Q, K, V, MASS.double(), AT), {}, "mass should be torch.float32, found torch.float64 with torch.float32 q."),
    ((Q, K, V, MASS, AT[..., 0]), {}, "positions should be [B=2, Hs=3, n=7], found [2, 3]"),
    ((Q, K, V, MASS, MASS), {}, "positions should hold integers, found torch.float32."),
    ((Q, K, V, MASS, AT[:, :1].expand(-1, 3, -1)), {}, "positions is written in place and must not be expanded"),
    ((Q, K[:1].expand(2, -1, -1, -1), V, MASS, AT), {}, "keys is written in place and must not be expanded"),
    ((Q, K, V, MASS, AT), {"padding": torch.zeros(3).int()}, "padding should be [B=2], found [3]"),
    ((Q, K, V, MASS, AT), {"padding": torch.zeros(2)}, "padding should hold integers, found torch.float32."),
    ((Q, K, V, MASS, AT), {"sinks": torch.zeros(3)}, "sinks should be [H=6], found [3]"),
    ((Q, K, V, MASS, AT), {"keep_newest": -1}, "should be at least 0, found 0 and -1."),
    ((Q, K, V, MASS, AT), {"merge": Merge(lambda *_: None, own=0.0)}, "own, the retained token's weight, should be"),
    ((Q, K, V, MASS, AT), {"merge": Merge(lambda u, real: (u, u, None))}, "merged must be bool with True for"),
    ((Q, K, V, MASS, AT), {"merge": Merge(lambda u, real: (real, u[0], None))}, "weight should be [B=2, Hs=3, E=1]"),
    ((Q, K, V, MASS, AT), {"merge": Merge(lambda u, real: (real, u, real))}, "counted must be floating point"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "keywords", "message"), MISTAKES)
def test_mistakes_are_told_in_one_sentence(arguments, keywords, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        decode_step(*arguments, **keywords)
    told = str(caught.value)
    assert told.startswith("decode_step: ")
    assert message in told
    assert "\n" not in told
