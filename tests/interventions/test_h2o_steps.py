"""H2O while it generates: which token goes at each step, a cache that keeps its size, beams and further turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import H2O, ThinK
from interp.cache.lens_cache import LensCache
from interp.cache.segments import Segment
from interp.cache.stored_layer import StoredLayer
from interp.interventions.base import Prompt
from tests.interventions.evicting import GENERATED, PROMPT, generated, padded, positions, quietly
from tests.interventions.evicting_by_hand import FullCache, best
from tests.models import shared, tokens

Tensor = torch.Tensor


@pytest.fixture
def lens() -> Any:
    return interp.load(shared("llama"))


def layer_with(
    mass: list[float], at: list[int], tail: list[float], seen: int, padding: int | None = None
) -> StoredLayer:
    """One head that holds old tokens at `at` and the newest tokens with mass `tail`."""
    stored, n = StoredLayer(), len(mass)
    key = lambda count: torch.randn(1, 1, count, 4)  # noqa: E731
    old = Segment(key(n), key(n), torch.tensor([[at]], dtype=torch.int32), mass=torch.tensor([[mass]]))
    newest = Segment(key(len(tail)), key(len(tail)), range(seen - len(tail), seen), mass=torch.tensor([[tail]]))
    stored = stored.holding([old, newest])
    stored.seen, stored.newest_at_compression = seen, len(tail) - 1
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


@pytest.mark.parametrize("dense", [8, 10, 11])
def test_sinks_never_go_beside_a_long_dense_window(lens: Any, dense: int) -> None:
    """ThinK's dense tokens then reach back into the sinks, which must not be cut down to nothing as they leave them."""
    policy = H2O(budget=12, sinks=6, recent_share=0.25) | ThinK(ratio=0.5, window=6, recent=dense)
    _, cache = generated(lens, policy, tokens(2, PROMPT))
    for stored in cache.stored.values():
        assert stored.kept == 12
        assert bool((positions(stored)[..., :6] == torch.arange(6)).all())


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
