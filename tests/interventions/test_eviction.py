"""Taking tokens out of a live cache: who is chosen, what is freed, and H2O's steps, beams and further turns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import InterpError, interventions
from interp.cache import LensCache, StoredLayer
from interp.interventions._eviction import chosen, tokens_of
from interp.interventions.base import Prompt
from interp.segments import Segment
from tests.interventions.evicting_by_hand import FullCache, best
from tests.models import shared, tokens

Tensor = torch.Tensor
H2O, H2OPrefill, H2OWindow = interventions.H2O, interventions.H2OPrefill, interventions.H2OWindow
SnapKV, PyramidKV, StreamingLLM = interventions.SnapKV, interventions.PyramidKV, interventions.StreamingLLM
Knorm, RandomTokens, ThinK = interventions.Knorm, interventions.RandomTokens, interventions.ThinK

PROMPT = 40
GENERATED: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None}
EXAMPLES = [
    SnapKV(budget=14, window=6, kernel=3, sinks=2),
    PyramidKV(budget=16, window=4, kernel=3, beta=4),
    H2OPrefill(budget=12, sinks=3),
    H2OWindow(budget=13, window=6),
    StreamingLLM(budget=12),
    StreamingLLM(budget=9, sinks=0),
    Knorm(budget=10),
    Knorm(budget=10, recent=3, sinks=2),
    RandomTokens(budget=12, sinks=2),
    H2O(budget=12),
    H2O(budget=12, sinks=3),
]
every_example = pytest.mark.parametrize("policy", EXAMPLES, ids=lambda p: f"{p.name}-{p.sinks}")


@pytest.fixture
def lens() -> Any:
    return interp.load(shared("llama"))


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def generated(lens: Any, policy: Any, ids: Tensor, *, ledger: bool = False, **how: Any) -> tuple[Any, Any]:
    """(what generate returned, the cache)."""
    with quietly(), lens.apply(policy, ledger=ledger):
        return lens.generate(ids, **GENERATED | how), lens.last_cache


def positions(stored: StoredLayer) -> Tensor:
    """Of all stored tokens `[batch, head, token]`, rising."""
    shape = stored.segments[0].keys.shape[:2]
    return torch.cat([segment.at().expand(*shape, -1) for segment in stored.segments], 2).sort(-1).values


def padded(short: int) -> tuple[Tensor, Tensor]:
    ids = tokens(2, PROMPT)
    mask = torch.ones_like(ids)
    mask[1, : PROMPT - short] = 0
    return ids.masked_fill(mask == 0, 2), mask


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    batch, heads, n = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 12))
    recent = draw(st.integers(0, n))
    heavy = draw(st.integers(0, n - recent))
    values = draw(st.lists(st.integers(-3, 3), min_size=batch * heads * n, max_size=batch * heads * n))  # many ties
    first = draw(st.none() | st.lists(st.integers(0, n - 1), min_size=batch, max_size=batch))
    return {
        "scores": torch.tensor(values, dtype=torch.float32).view(batch, heads, n),
        "padding": None if first is None else torch.tensor(first),
        "heavy": heavy,
        "recent": recent,
        "sinks": draw(st.integers(0, heavy)),
    }


@given(choices())
@settings(max_examples=200, deadline=None)
def test_chosen_is_a_sort_of_plain_lists(case: dict[str, Any]) -> None:
    before = case["scores"].clone()
    kept, dropped = chosen(**case)
    assert torch.equal(case["scores"], before)
    n, heavy, recent, sinks = case["scores"].shape[-1], case["heavy"], case["recent"], case["sinks"]
    first = [0] * len(before) if case["padding"] is None else case["padding"].tolist()
    for text, scores in enumerate(before.tolist()):
        for head, row in enumerate(scores):
            mine, lost = kept[text, head].tolist(), dropped[text, head].tolist()
            assert [*mine, *range(n - recent, n)] == best(row, heavy + recent, recent, sinks, first[text])
            assert sorted(mine + lost) == list(range(n - recent))
            assert (mine, lost) == (sorted(mine), sorted(lost))


@given(choices())
@settings(max_examples=100, deadline=None)
def test_chosen_keeps_sinks_and_drops_padding_first_and_of_equals_the_later(case: dict[str, Any]) -> None:
    kept, dropped = chosen(**case)
    padding = torch.zeros(len(kept), dtype=torch.long) if case["padding"] is None else case["padding"]
    for text, first in enumerate(padding.tolist()):
        for mine, lost, scores in zip(kept[text].tolist(), dropped[text].tolist(), case["scores"][text], strict=True):
            assert not any(first <= p < first + case["sinks"] for p in lost)
            if any(p < first for p in mine):
                assert all(p < first for p in lost)
            beaten = [(p, q) for p in mine if p >= first + case["sinks"] for q in lost if q >= first]
            assert all((scores[p], -p) > (scores[q], -q) for p, q in beaten)


@given(st.integers(1, 400), st.integers(1, 99))
def test_a_share_of_the_prompt_is_rounded_down_once(tokens: int, percent: int) -> None:
    assert tokens_of(percent / 100, tokens) == percent * tokens // 100  # in whole numbers, so exact


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@every_example
def test_bytes_are_those_of_what_is_kept(policy: Any, kind: str) -> None:
    """Keys and values in fp32 for every kept and every new token; an int32 position for each kept old one, whose order
    is no plain run; where account is kept, fp32 mass and a position for all, and one slot to spare."""
    lens = interp.load(shared(kind))
    _, cache = generated(lens, policy, tokens(2, PROMPT))
    prompt, new = Prompt(lens.cfg, (0, 1, 2), PROMPT, lens.output_norms), GENERATED["max_new_tokens"] - 1
    heads, total = {"llama": 2, "gpt2": 8}[kind], 0
    for layer in range(3):
        capacity = policy.capacity(prompt, layer)
        recent = policy.recent_tokens(capacity)
        steps = isinstance(policy, H2O)
        tokens_held = capacity + (0 if steps else new)
        assert cache.stored[layer].kept == tokens_held
        slots, placed = (capacity + 1, capacity + 1) if steps else (tokens_held, capacity - recent)
        total += 2 * heads * (slots * (8 + 8 + steps) * 4 + placed * 4)
    assert cache.nbytes() == total
    report = cache.report()
    assert report["bytes"].sum() == total
    assert report["tokens"].tolist() == [PROMPT + new] * 3


@every_example
def test_positions_are_true_and_no_token_is_held_twice(lens: Any, policy: Any) -> None:
    """Held keys and values are, bit for bit, those that the model wrote at these positions."""
    ids = tokens(2, PROMPT)
    written: dict[str, list[Tensor]] = {}
    keep = lambda value, hook: written.setdefault(hook.name, []).append(value.transpose(1, 2).clone())  # noqa: E731
    with lens.hooks(fwd_hooks=[(lambda name: name.endswith(("hook_rot_k", "hook_v")), keep)]):
        _, cache = generated(lens, policy, ids)
    for layer, stored in cache.stored.items():
        at = positions(stored)
        assert bool((at[..., 1:] > at[..., :-1]).all())
        assert int(at.max()) == stored.seen - 1 == PROMPT + GENERATED["max_new_tokens"] - 2
        for name, held in (("hook_rot_k", "keys"), ("hook_v", "values")):
            everything = torch.cat(written[f"blocks.{layer}.attn.{name}"], 2)
            for segment in stored.segments:
                index = segment.at().expand(segment.keys.shape[:3]).long()[..., None].expand(segment.keys.shape)
                assert torch.equal(getattr(segment, held), everything.gather(2, index))


@pytest.mark.parametrize("short", [30, 20, 6])
@every_example
def test_padding_goes_first_and_sinks_never(lens: Any, policy: Any, short: int) -> None:
    ids, mask = padded(short)
    _, cache = generated(lens, policy, ids, attention_mask=mask)
    for stored in cache.stored.values():
        for text, first in enumerate((0, PROMPT - short)):
            for held in positions(stored)[text].tolist():
                real = set(range(first, stored.seen))
                if any(p < first for p in held):
                    assert real <= set(held)
                assert set(range(first, first + policy.sinks)) <= set(held)


@pytest.mark.parametrize("dense", [8, 10, 11])
def test_sinks_never_go_beside_a_long_dense_window(lens: Any, dense: int) -> None:
    """ThinK's dense tokens then reach back into the sinks, which must not be cut down to nothing as they leave them."""
    policy = H2O(budget=12, sinks=6, recent_share=0.25) | ThinK(ratio=0.5, window=6, recent=dense)
    _, cache = generated(lens, policy, tokens(2, PROMPT))
    for stored in cache.stored.values():
        assert stored.kept == 12
        assert bool((positions(stored)[..., :6] == torch.arange(6)).all())


def layer_with(
    mass: list[float], at: list[int], tail: list[float], seen: int, padding: int | None = None
) -> StoredLayer:
    """One head that holds old tokens at `at` and the newest tokens with mass `tail`."""
    stored, n = StoredLayer(), len(mass)
    key = lambda count: torch.randn(1, 1, count, 4)  # noqa: E731
    old = Segment(key(n), key(n), torch.tensor([[at]], dtype=torch.int32), mass=torch.tensor([[mass]]))
    newest = Segment(key(len(tail)), key(len(tail)), range(seen - len(tail), seen), mass=torch.tensor([[tail]]))
    stored.segments, stored.seen, stored.at_rest = [old, newest], seen, len(tail) - 1
    stored.padding = None if padding is None else torch.tensor([padding])
    return stored


@pytest.mark.parametrize(
    ("mass", "at", "aged", "gone"),
    [
        ([3.0, 1.0, 1.0, 2.0], [0, 2, 5, 6], 9.0, 5),
        ([3.0, 1.0, 1.0, 2.0], [0, 5, 2, 6], 9.0, 5),  # slots are in no order once one was overwritten
        ([3.0, 1.0, 4.0, 2.0], [0, 2, 5, 6], 1.0, 17),
        ([3.0, 1.0, 4.0, 2.0], [0, 2, 5, 6], 0.5, 17),
        ([3.0, 1.0, 4.0, 2.0], [0, 2, 5, 6], 1.5, 2),
    ],
)
def test_a_step_evicts_the_least_attended_and_of_equals_the_later(
    lens: Any, mass: list[float], at: list[int], aged: float, gone: int
) -> None:
    policy = H2O(budget=6)
    plan = policy.begin(Prompt(lens.cfg, (0,), PROMPT, lens.output_norms))
    plan.recent[0] = 2
    stored = layer_with(mass, at, [aged, 0.0, 0.0], seen=20)
    plan.step(0, stored)
    assert positions(stored)[0, 0].tolist() == sorted({*at, 17, 18, 19} - {gone})


def test_a_step_evicts_padding_before_a_token_without_any_attention(lens: Any) -> None:
    plan = H2O(budget=6).begin(Prompt(lens.cfg, (0,), PROMPT, lens.output_norms))
    plan.recent[0] = 2
    stored = layer_with([0.0, 0.0, 3.0, 1.0], [7, 2, 5, 6], [2.0, 0.0, 0.0], seen=20, padding=4)
    plan.step(0, stored)
    assert positions(stored)[0, 0].tolist() == [5, 6, 7, 17, 18, 19]


@pytest.mark.parametrize("make", [SnapKV, H2OPrefill, H2OWindow, StreamingLLM, PyramidKV, Knorm, RandomTokens, H2O])
def test_a_prompt_that_fits_is_left_alone_with_a_warning(lens: Any, make: Callable[..., Any]) -> None:
    ids = tokens(2, PROMPT)
    how = GENERATED | {"output_logits": True, "return_dict_in_generate": True}
    plain = lens.generate(ids, **how)
    room = {"budget": PROMPT * 41} if make is PyramidKV else {"budget": PROMPT}  # its last layer gets least
    with pytest.warns(UserWarning, match="dropped nothing: the prompt of 40 tokens"), lens.apply(make(**room)):
        out = lens.generate(ids, **how)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))
    assert [stored.kept for stored in lens.last_cache.stored.values()] == [PROMPT + 7] * 3


def test_only_the_layers_with_too_little_room_are_cut(lens: Any) -> None:
    policy = PyramidKV(budget=30, window=4, beta=20)
    _, cache = generated(lens, policy, tokens(2, PROMPT))
    most = PROMPT - 4  # 2 * 26 - 1 would be more than the prompt has, so the last layer gets what the first leaves
    least = 2 * 26 - most
    assert 26 // 20 < least < 26
    step = (most - least) // 2
    assert [stored.kept for stored in cache.stored.values()] == [4 + most - i * step + 7 for i in range(3)]


@pytest.mark.parametrize("make", [SnapKV, H2O, H2OWindow, StreamingLLM, PyramidKV, Knorm, RandomTokens])
@pytest.mark.parametrize("budget", [0, -1, -0.5, 1.5, float("nan"), float("inf")])
def test_a_bad_budget_is_one_clear_sentence(make: Callable[..., Any], budget: float) -> None:
    with pytest.raises(InterpError, match="budget") as error:
        make(budget=budget)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (H2O, {"sinks": -1}),
        (H2O, {"recent_share": 1.0}),
        (H2OPrefill, {"recent_share": -0.1}),
        (Knorm, {"recent": -1}),
        (SnapKV, {"window": 0}),
        (SnapKV, {"kernel": 4}),
        (SnapKV, {"pool": "min"}),
        (PyramidKV, {"beta": 0.5}),
    ],
)
def test_bad_settings_are_one_clear_sentence(make: Callable[..., Any], setting: dict[str, Any]) -> None:
    with pytest.raises(InterpError, match=next(iter(setting))) as error:
        make(**setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "policy",
    [
        SnapKV(budget=39, window=41),
        PyramidKV(budget=39, window=41),
        H2OWindow(budget=30, window=41),
        H2OWindow(budget=30, window=0),
        SnapKV(budget=8, window=6, sinks=4),
        PyramidKV(budget=4, window=8),
        PyramidKV(budget=12, window=8, sinks=3),  # enough in the mean, too little in the last layer
        StreamingLLM(budget=3),
        Knorm(budget=5, recent=4, sinks=2),
        H2O(budget=6, sinks=4),
        RandomTokens(budget=0.02),  # no token at all
    ],
    ids=repr,
)
def test_settings_that_do_not_fit_the_prompt_are_refused_before_the_model_runs(lens: Any, policy: Any) -> None:
    ran = []
    hook = lens.model.register_forward_pre_hook(lambda module, args: ran.append(1))
    try:
        with pytest.raises(InterpError) as error, lens.apply(policy):
            lens.generate(tokens(2, PROMPT), **GENERATED)
    finally:
        hook.remove()
    assert not ran
    assert "\n" not in str(error.value)
    assert policy.name in str(error.value)


@every_example
def test_two_runs_are_identical(lens: Any, policy: Any) -> None:
    runs = [generated(lens, policy, tokens(2, PROMPT), output_logits=True, return_dict_in_generate=True) for _ in "ab"]
    (a, cache), (b, other) = runs
    assert torch.equal(a.sequences, b.sequences)
    assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits, strict=True))
    assert all(torch.equal(positions(cache.stored[i]), positions(other.stored[i])) for i in cache.stored)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("budget", [1, 2, 12])
def test_h2o_keeps_its_size_at_every_step(lens: Any, budget: int, share: float) -> None:
    ids, new = tokens(2, PROMPT), tokens(2, 12, seed=5)
    full = FullCache("llama", ids)
    with torch.no_grad(), lens.apply(H2O(budget=budget, recent_share=share)):
        lens(ids, use_cache=True)
        cache = lens.last_cache
        sizes = {cache.nbytes()}
        full.evict_least_attended(budget, int(budget * share), 0)
        for part in new.split(1, 1):
            logits = lens(part, use_cache=True, past_key_values=cache)
            torch.testing.assert_close(logits, full.feed(part), rtol=1e-4, atol=1e-4)
            full.evict_least_attended(budget, int(budget * share), 0)
            sizes.add(cache.nbytes())
            assert {i: positions(cache.stored[i]).tolist() for i in full.layers} == {
                i: full.kept(i) for i in full.layers
            }
    assert len(sizes) == 1


@pytest.mark.parametrize("granularity", ["kv_head", "query_head"])
@pytest.mark.parametrize("dense", [3, 6, 9])
def test_h2o_with_think_keeps_its_size_too(lens: Any, dense: int, granularity: str) -> None:
    policy = H2O(budget=12) | ThinK(ratio=0.5, window=6, recent=dense, granularity=granularity)
    sizes = {generated(lens, policy, tokens(2, PROMPT), max_new_tokens=n)[1].nbytes() for n in (1, 2, 5, 9, 17)}
    assert len(sizes) == 1


def mass_by_position(stored: StoredLayer) -> Tensor:
    """Attention received `[batch, head, token]`, in the order of positions."""
    order = torch.cat([segment.at().expand(segment.keys.shape[:3]) for segment in stored.segments], 2).argsort(-1)
    return torch.cat([segment.mass for segment in stored.segments if segment.mass is not None], 2).gather(2, order)


@pytest.mark.parametrize(
    "policy", [H2O(budget=8, recent_share=0.25), H2O(budget=12, sinks=2) | ThinK(ratio=0.5, window=6, recent=4)]
)
def test_beam_search_goes_on_as_if_each_beam_had_been_read_alone(
    lens: Any, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam that takes over another's row takes its tokens and its account of attention along."""
    ids, n, reorder = tokens(1, PROMPT), 12, LensCache.reorder_cache
    seen: list[dict[int, tuple[Tensor, Tensor]]] = []

    def watched(cache: LensCache, rows: Tensor) -> None:  # before the reordering that follows the last token
        seen[:] = [{i: (positions(s), mass_by_position(s)) for i, s in cache.stored.items()}]
        reorder(cache, rows)

    monkeypatch.setattr(LensCache, "reorder_cache", watched)
    how: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0, "max_new_tokens": n}
    out, _ = generated(lens, policy, ids, return_dict_in_generate=True, output_scores=True, **how)
    assert bool((out.beam_indices[:, 1:n] != out.beam_indices[:, : n - 1]).any())  # some beam did change its row
    for beam, score, row in zip(out.sequences, out.sequences_scores, out.beam_indices[:, n - 1], strict=True):
        with quietly(), lens.apply(policy):
            alone = -lens.score(ids, beam[None, PROMPT:], chunk=1).sum()
        torch.testing.assert_close(score, alone, rtol=1e-4, atol=1e-4)
        for layer, stored in lens.last_cache.stored.items():
            held, mass = seen[0][layer]
            assert torch.equal(held[row], positions(stored)[0])
            torch.testing.assert_close(mass[row], mass_by_position(stored)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded_turn", [False, True])
def test_another_turn_goes_on_evicting_one_token_for_each_new_one(lens: Any, padded_turn: bool) -> None:
    """The second turn arrives as one piece: all of it attends, then as many tokens go as came."""
    ids, mask = padded(25) if padded_turn else (tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.long))
    policy, full = H2O(budget=14, sinks=2), FullCache("llama", ids, mask)
    by_layer = {i: zip(full.mass[i].tolist(), full.first, strict=True) for i in full.layers}
    full.hide_all_but({i: [[best(h, 14, 7, 2, pad) for h in text] for text, pad in by_layer[i]] for i in full.layers})
    with quietly(), lens.apply(policy):
        first = lens.generate(ids, attention_mask=mask, **GENERATED)
        cache = lens.last_cache
        user = tokens(2, 9, seed=7)
        both = torch.cat([first, user], 1)
        longer = torch.cat([mask, torch.ones(2, both.shape[1] - PROMPT, dtype=torch.long)], 1)
        second = lens.generate(both, attention_mask=longer, past_key_values=cache, **GENERATED)
    pieces = [
        *first[:, PROMPT:-1].split(1, 1),
        torch.cat([first[:, -1:], user], 1),
        *second[:, both.shape[1] : -1].split(1, 1),
    ]
    logits = [full.logits]
    for piece in pieces:
        logits.append(full.feed(piece))
        full.evict_least_attended(14, 7, 2)
    predicted = torch.stack([part[:, -1].argmax(-1) for part in logits], 1)
    assert torch.equal(predicted, torch.cat([first[:, PROMPT:], second[:, both.shape[1] :]], 1))
    for layer in full.layers:
        assert cache.stored[layer].kept == 14
        assert positions(cache.stored[layer]).tolist() == full.kept(layer)


@pytest.mark.parametrize("short", [PROMPT, 25])
@every_example
def test_the_ledger_lists_exactly_what_is_gone(lens: Any, policy: Any, short: int) -> None:
    ids, mask = padded(short)
    _, cache = generated(lens, policy, ids, attention_mask=mask, ledger=True)
    entries = cache.keeper.ledger
    for layer, stored in cache.stored.items():
        own = [entry for entry in entries if entry.layer == layer]
        assert [entry.step for entry in own] == [
            PROMPT,
            *(range(PROMPT + 1, stored.seen + 1) if isinstance(policy, H2O) else ()),
        ]
        held = positions(stored)
        for text, first in enumerate((0, PROMPT - short)):
            for head, kept in enumerate(held[text].tolist()):
                gone = [p for entry in own for p in entry.evicted[text, head].tolist() if p >= 0]
                assert sorted(gone + [p for p in kept if p >= first]) == list(range(first, stored.seen))


def test_the_ledger_says_what_tokens_were_ranked_by(lens: Any) -> None:
    ids = tokens(2, PROMPT)
    full = FullCache("llama", ids)
    for policy, score in (
        (Knorm(budget=10), {i: -full.keys[i].norm(dim=-1) for i in full.layers}),
        (H2OPrefill(budget=10), full.mass),
        (H2O(budget=10), full.mass),
    ):
        _, cache = generated(lens, policy, ids, ledger=True, max_new_tokens=1)
        assert [entry.layer for entry in cache.keeper.ledger] == full.layers
        for entry in cache.keeper.ledger:
            expected = score[entry.layer].gather(2, entry.evicted)
            torch.testing.assert_close(entry.score, expected, rtol=1e-4, atol=1e-4)


def test_no_ledger_is_kept_unless_asked_for(lens: Any) -> None:
    assert generated(lens, H2O(budget=10), tokens(2, PROMPT))[1].keeper.ledger is None
