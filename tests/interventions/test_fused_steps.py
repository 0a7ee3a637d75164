"""Steps in slots, one kernel each, beside the same steps on segments: tokens, keys, attention received and ledger."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import interp
from interp import D2O, H2O, InterpError, ThinK
from interp.cache.lens_cache import LensCache
from interp.interventions.base import Entry
from interp.interventions.policies import _steps
from tests.interventions.d2o_reference import deep
from tests.interventions.live_cache import close, left_padded
from tests.models import shared, tokens

Tensor = torch.Tensor
PROMPT = 30
EVERYWHERE = {"metric": "uniform", "skip": (), "compress_at": "prefill_end"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are"),
    pytest.mark.filterwarnings("ignore:.*dropped nothing"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def kernel_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of slots with every step that is one kernel."""
    done, kernel = [], _steps.decode_step

    def counted(q: Tensor, keys: Tensor, *args: Any, **kwargs: Any) -> Any:
        done.append(keys.shape[2])
        return kernel(q, keys, *args, **kwargs)

    monkeypatch.setattr(_steps, "decode_step", counted)
    return done


def begun(lens: Any, policy: Any, ids: Tensor, mask: Tensor | None = None, slots: bool = True) -> LensCache:
    """The cache of a prompt; without `slots` its layers stay on segments for good."""
    with lens.apply(policy, ledger=True):
        lens(ids, use_cache=True, attention_mask=mask)
    if not slots:
        for layer in lens.last_cache.stored.values():
            layer.leave_slots()
            layer.move_to_slots = lambda: None
    return lens.last_cache


def read(lens: Any, kept: LensCache, new: Tensor, mask: Tensor | None = None, hooked: Sequence[str] = ()) -> list:
    """z of every layer, then logits."""
    seen: list[Tensor] = []
    hooks = [(f"blocks.1.attn.hook_{name}", lambda value, hook: None) for name in hooked]
    hooks.append((lambda name: name.endswith("attn.hook_z"), lambda value, hook: seen.append(value.clone())))
    with lens.hooks(fwd_hooks=hooks):
        return [*seen, lens(new, past_key_values=kept, use_cache=True, attention_mask=mask)]


def held(stored: Any) -> list[Tensor]:
    """Positions, keys, values and attention received, in the text's order; any padding is the same as any other."""
    at = torch.cat([segment.at().expand(segment.keys.shape[:3]) for segment in stored.segments], 2).long()
    if stored.padding is not None:
        at = at.where(at >= stored.padding[:, None, None], -1)
    at, order = at.sort(-1)
    parts = [stored.keys, stored.values]
    if stored.keeps_mass:
        parts.append(torch.cat([segment.mass for segment in stored.segments], 2)[..., None])
    index = order[..., None]
    return [at, *(x.gather(2, index.expand_as(x)).masked_fill((at < 0)[..., None], 0.0) for x in parts)]


def check_the_same(found: LensCache, wanted: LensCache, tolerance: float = 1e-5) -> None:
    for layer, stored in found.stored.items():
        (at, *parts), (wanted_at, *wanted_parts) = held(stored), held(wanted.stored[layer])
        assert torch.equal(at, wanted_at)
        for part, wanted_part in zip(parts, wanted_parts, strict=True):
            close(part, wanted_part, tolerance)
        assert stored.seen == wanted.stored[layer].seen
    ledgers = found.keeper.ledger, wanted.keeper.ledger
    assert len(ledgers[0]) == len(ledgers[1])
    for entry, wanted_entry in zip(*ledgers, strict=True):
        check_entry(entry, wanted_entry, tolerance)


def check_entry(found: Entry, wanted: Entry, tolerance: float) -> None:
    assert (found.layer, found.step) == (wanted.layer, wanted.step)
    assert torch.equal(found.evicted, wanted.evicted)
    close(found.score, wanted.score, tolerance)
    if wanted.similarity is None:
        assert found.target is found.similarity is found.threshold is found.merged is None
        return
    assert torch.equal(found.merged, wanted.merged)
    close(found.similarity, wanted.similarity, tolerance)
    torch.testing.assert_close(found.threshold, wanted.threshold, atol=tolerance, rtol=tolerance, equal_nan=True)
    assert torch.equal(*(entry.target.where(entry.evicted >= 0, -1) for entry in (found, wanted)))


STEPS = 14
POLICIES = {
    "h2o": H2O(budget=12),
    "h2o, sinks": H2O(budget=12, sinks=3, recent_share=0.25),
    "h2o, nothing but sinks and recent tokens": H2O(budget=4, sinks=2, recent_share=0.25),
    "h2o, one token": H2O(budget=1),
    "h2o, no recent tokens": H2O(budget=3, recent_share=0.0),
    "h2o, nearly all": H2O(budget=PROMPT - 1, recent_share=0.9),
    "d2o": D2O(budget=0.4, **EVERYWHERE),
    "d2o, as in the paper": D2O(budget=0.4, variant="paper"),
    "d2o, as released": D2O(budget=0.4, skip=(1,), granularity="query_head"),
}


OTHER_KINDS = [(name, kind) for kind in ("qwen3", "gpt_neox", "gemma2", "gpt_oss") for name in ("h2o, sinks", "d2o")]


@pytest.mark.parametrize(("name", "kind"), [*((n, k) for n in POLICIES for k in ("llama", "gpt2")), *OTHER_KINDS])
def test_steps_in_slots_are_the_steps_on_segments(name: str, kind: str, kernel_steps: list[int]) -> None:
    lens, policy, ids = interp.load(shared(kind)), POLICIES[name], tokens(length=PROMPT)
    found, wanted = (begun(lens, policy, ids, slots=slots) for slots in (True, False))
    for new in tokens(length=STEPS, seed=5).split(1, 1):
        for x, y in zip(read(lens, found, new), read(lens, wanted, new), strict=True):
            close(x, y)
        check_the_same(found, wanted)
    acted_on = {entry.layer for entry in found.keeper.ledger}
    waited = name == "d2o, as released"
    assert len(kernel_steps) == len(acted_on) * (STEPS - waited) > 0
    assert all(found.stored[layer].in_slots for layer in acted_on)


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "paper_raw"}, {"gate": "per_head"}, {"weights": "paper"}, {"weights": "paper", "centre": 0.1},
        {"gate": "per_head", "beta": 0.9}, {"recent_share": 0.0}, {"recent_share": 0.9}, {"sinks": 0}, {"skip": (2,)},
        {"merge": "value"}, {"merge": "none"}, {"budget": 0.9}, {"compress_at": "first_decode"},
    ],
    ids=str,
)  # fmt: skip
def test_all_that_d2o_may_do(changed: dict[str, Any], kernel_steps: list[int]) -> None:
    lens, ids, mask = interp.load(five_layers()), tokens(length=PROMPT), torch.ones(2, PROMPT, dtype=torch.long)
    mask[:, :9] = 0  # as much in both: where texts keep different numbers of tokens, no layer lies in slots
    policy = D2O(**{"budget": 0.4, **EVERYWHERE, **changed})
    found, wanted = (begun(lens, policy, ids, mask, slots) for slots in (True, False))
    for new in tokens(length=6, seed=2).split(1, 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        close(read(lens, found, new, mask)[-1], read(lens, wanted, new, mask)[-1])
        check_the_same(found, wanted)
    assert kernel_steps
    merged = [entry.merged for entry in found.keeper.ledger if entry.evicted.shape[-1] == 1]
    assert policy.merge == "none" or torch.cat([x.flatten() for x in merged]).any()


five_layers = cache(lambda: deep("llama"))


@pytest.mark.parametrize("padding", [8, 20, 27])
@pytest.mark.parametrize("name", ["h2o, sinks", "h2o, one token", "h2o, nearly all", "d2o", "d2o, as released"])
def test_padding_goes_first(name: str, padding: int) -> None:
    """Also where it reaches into the recent window."""
    lens, policy = interp.load(shared("llama")), POLICIES[name]
    ids, mask = left_padded(PROMPT, padding)
    found, wanted = (begun(lens, policy, ids, mask, slots) for slots in (True, False))
    for new in tokens(length=STEPS, seed=5).split(1, 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        close(read(lens, found, new, mask)[-1], read(lens, wanted, new, mask)[-1])
        check_the_same(found, wanted)


def test_sinks_never_go_however_little_attention_they_receive(kernel_steps: list[int]) -> None:
    """They stand after the padding."""
    lens, (ids, mask) = interp.load(shared("llama")), left_padded(PROMPT, 9)
    kept = begun(lens, H2O(budget=12, sinks=3), ids, mask)
    for stored in kept.stored.values():
        stored.slots.mass[0].masked_fill_(stored.slots.positions[0] < 3, -100.0)
        stored.slots.mass[1].masked_fill_(stored.slots.positions[1] < 12, -100.0)
    for new in tokens(length=4, seed=5).split(1, 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        read(lens, kept, new, mask)
    assert len(kernel_steps) == 12
    for stored in kept.stored.values():
        assert (held(stored)[0][0, :, :3] == torch.arange(3)).all()
        assert (held(stored)[0][1, :, :3] == torch.arange(9, 12)).all()


def test_a_prompt_read_in_inference_mode_may_go_on_outside_of_it(kernel_steps: list[int]) -> None:
    """torch lets nobody write in place to what was made there."""
    lens, ids = interp.load(shared("llama")), tokens(length=PROMPT)
    with torch.inference_mode():
        found = begun(lens, H2O(budget=12), ids)
        read(lens, found, tokens(length=1, seed=4))
    wanted = begun(lens, H2O(budget=12), ids)
    read(lens, wanted, tokens(length=1, seed=4))
    for new in (tokens(length=n, seed=n) for n in (1, 3, 1)):
        close(read(lens, found, new)[-1], read(lens, wanted, new)[-1])
        check_the_same(found, wanted)
    assert len(kernel_steps) == 3 * 2 * 3


def hooked(lens: Any, kept: LensCache, name: str) -> None:
    read(lens, kept, tokens(length=1), hooked=[name])


def with_gradients(lens: Any, kept: LensCache) -> None:
    with torch.enable_grad():
        read(lens, kept, tokens(length=1))


NOT_IN_ONE_KERNEL = {
    "scores": lambda lens, kept: hooked(lens, kept, "attn_scores"),
    "pattern": lambda lens, kept: hooked(lens, kept, "pattern"),
    "cached keys": lambda lens, kept: hooked(lens, kept, "cached_k"),
    "cached values": lambda lens, kept: hooked(lens, kept, "cached_v"),
    "an observable": lambda lens, kept: hooked(lens, kept, "column_mass"),
    "gradients": with_gradients,
    "several tokens": lambda lens, kept: read(lens, kept, tokens(length=3)),
    "code that is no Lens": lambda lens, kept: lens.model(tokens(length=1), past_key_values=kept, use_cache=True),
}


@pytest.mark.parametrize("what", NOT_IN_ONE_KERNEL)
def test_what_one_kernel_cannot_do_goes_the_other_way(what: str, kernel_steps: list[int]) -> None:
    """And afterwards the layers are in slots again, of the same size."""
    lens, ids = interp.load(shared("llama")), tokens(length=PROMPT)
    found, wanted = (begun(lens, H2O(budget=12, sinks=2), ids, slots=slots) for slots in (True, False))
    size = found.nbytes()
    read(lens, found, tokens(length=1, seed=7))
    read(lens, wanted, tokens(length=1, seed=7))
    assert kernel_steps == [13, 13, 13]
    NOT_IN_ONE_KERNEL[what](lens, found)
    NOT_IN_ONE_KERNEL[what](lens, wanted)
    of_all_layers = {"several tokens", "code that is no Lens", "gradients"}
    assert len(kernel_steps) == (3 if what in of_all_layers else 5)
    for new in tokens(length=3, seed=8).split(1, 1):
        close(read(lens, found, new)[-1], read(lens, wanted, new)[-1])
        check_the_same(found, wanted)
    if what != "gradients":  # such tokens stay differentiable, and slots are written in place
        assert all(layer.in_slots for layer in found.stored.values())
        assert found.nbytes() == size


@pytest.mark.parametrize(
    "policy",
    [
        H2O(budget=12) | ThinK(ratio=0.5, window=6, recent=4),
        H2O(budget=12) | ThinK(ratio=0.5, window=6, recent=4, sinks=2, granularity="query_head"),
        interp.SnapKV(budget=12, window=8),
        H2O(budget=1.0),
    ],
    ids=lambda policy: repr(policy)[:60],
)
def test_other_layers_never_lie_in_slots(policy: Any, kernel_steps: list[int]) -> None:
    """Of channels pruned; of policies that act once; those with room for the whole prompt."""
    lens = interp.load(shared("llama"))
    found = begun(lens, policy, tokens(length=PROMPT))
    read(lens, found, tokens(length=1, seed=5))
    assert not kernel_steps
    assert not any(layer.in_slots for layer in found.stored.values())


ACTIONS = ["step", "step", "look", "three", "crop", "reorder", "copy"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["h2o, sinks", "d2o"]),
    actions=st.lists(st.sampled_from(ACTIONS), min_size=2, max_size=8),
    padding=st.sampled_from([0, 11]),
)
def test_whatever_is_done_in_between(name: str, actions: list[str], padding: int) -> None:
    lens, (ids, mask) = interp.load(shared("llama")), left_padded(PROMPT, padding)
    both = [begun(lens, POLICIES[name], ids, mask, slots) for slots in (True, False)]
    for i, action in enumerate([*actions, "step"]):
        if action in ("step", "look", "three"):
            new = tokens(length=3 if action == "three" else 1, seed=i)
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            watched = ["pattern"] if action == "look" else []
            found, wanted = (read(lens, kept, new, mask, watched)[-1] for kept in both)
            close(found, wanted, 1e-4)
        elif action == "crop":  # what steps have evicted and added up does not come back
            for kept in both:
                with pytest.raises(InterpError, match="does not come back"):
                    kept.crop(-2)
        elif action == "reorder":
            rows = torch.tensor([1, 0])
            mask = mask[rows]
            for kept in both:
                kept.reorder_cache(rows)
        elif action == "copy":
            left, both = both, copy.deepcopy(both)
            for layer in (layer for kept in left for layer in kept.stored.values()):
                for segment in layer.segments:
                    segment.keys.fill_(torch.nan)  # the copy shares nothing with it
    check_the_same(*both, 1e-4)


def test_a_step_makes_no_tensor_of_the_size_of_the_cache() -> None:
    """Keys and values stay where they lie, and are what the cache says it holds."""
    lens = interp.load(shared("llama"))
    kept = begun(lens, H2O(budget=12), tokens(length=PROMPT))
    where = {(i, name): x.data_ptr() for i, name, x in kept.parts()}
    for new in tokens(length=4, seed=5).split(1, 1):
        read(lens, kept, new)
    assert {(i, name): x.data_ptr() for i, name, x in kept.parts()} == where
    assert {name for _, name in where} == {"keys", "values", "positions", "mass"}
    assert kept.report().kept.tolist() == [12] * 3
    assert kept.nbytes() == kept.report().bytes.sum() == 3 * 2 * 2 * 13 * (8 + 8 + 1 + 1) * 4
