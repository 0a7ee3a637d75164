"""What holds for every cache policy whatever the length of a text: whole numbers are bounds, short texts are read, and
a crop undoes all or nothing."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import interp
from interp import D2O, H2O, InterpError, SnapKV, StreamingLLM, ThinK
from interp.interventions import CachePolicy, available
from interp.interventions.base import Prompt
from tests.interventions.live_cache import close
from tests.models import shared, tokens

Tensor = torch.Tensor
QUIET = {"window": 4, "recent": 3}
"""Sizes for texts of a few dozen tokens, of all methods that have them."""


@pytest.fixture(autouse=True)
def quietly():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(cls: Any, **wanted: Any) -> CachePolicy | None:
    """The policy with those of the settings that it has; None where it refuses them."""
    has = {field.name for field in dataclasses.fields(cls)}
    try:
        policy: CachePolicy = cls(**{name: value for name, value in wanted.items() if name in has})
    except InterpError:
        return None
    return policy


CLASSES = {name: cls for name, cls in available().items() if issubclass(cls, CachePolicy)}
BUDGETED = [n for n, cls in CLASSES.items() if "budget" in {f.name for f in dataclasses.fields(cls)} and n != "d2o"]


def with_defaults(name: str) -> CachePolicy:
    return D2O(skip=()) if name == "d2o" else CLASSES[name]()  # as released it would skip all of three layers


def acts_at_each_step(name: str) -> bool:
    lens = interp.load(shared("llama"))
    return with_defaults(name).begin(Prompt(lens.cfg, lens.cfg.full_attention_layers, 40, lens.output_norms)).each_step


EACH_STEP = [name for name in CLASSES if acts_at_each_step(name)]
AT_REST = ("snapkv", "pyramidkv", "streaming_llm", "expected_attention", "think")
"""Methods whose window or recent tokens, by default, are all of a text of five."""


def held(cache: Any) -> list[int]:
    return [stored.kept for stored in cache.stored.values()]


def total(policy: Any, budget: int, layers: int) -> int:
    """How many tokens all layers together may hold; PyramidKV's whole-number steps exceed its mean by less than one."""
    return layers * budget + (layers if policy.name == "pyramidkv" else 0)


@pytest.mark.parametrize("beside", [None, ThinK(0.5, window=4, recent=3)], ids=["alone", "with think"])
@pytest.mark.parametrize("name", BUDGETED)
@settings(max_examples=4, deadline=None)
@given(
    budget=st.integers(16, 40),
    pieces=st.lists(st.integers(1, 25), min_size=2, max_size=5),
)
def test_a_whole_number_is_a_bound_in_every_turn(name: str, beside: Any, budget: int, pieces: list[int]) -> None:
    """At every moment where a method acts at every step; else after every turn, what was generated since on top."""
    policy = made(CLASSES[name], budget=budget, beta=2, **QUIET)
    assert policy is not None
    lens = interp.load(shared("llama"))
    with torch.no_grad(), lens.apply(policy if beside is None else policy | beside):
        lens(tokens(2, pieces[0]), use_cache=True)
        cache, since = lens.last_cache, 0
        for n, length in enumerate(pieces[1:]):
            logits = lens(tokens(2, length, seed=n), past_key_values=cache, use_cache=True)
            assert bool(logits.isfinite().all())
            since = 0 if name in EACH_STEP or length > 1 else since + 1
            assert sum(held(cache)) <= total(policy, budget + since, 3)
            assert cache.get_seq_length() == sum(pieces[: n + 2])


@pytest.mark.parametrize(("budget", "first"), [(30, 30), (29, 30), (40, 30), (31, 30)])
def test_h2o_grows_up_to_its_budget_and_no_further(budget: int, first: int) -> None:
    lens = interp.load(shared("llama"))
    with lens.apply(H2O(budget=budget)):
        lens.generate(tokens(2, first), max_new_tokens=20, eos_token_id=None)
    assert held(lens.last_cache) == [min(budget, first + 19)] * 3


def test_h2o_that_grew_is_h2o_on_the_whole_text() -> None:
    """With account kept from the first token on, what goes at the first step beyond is what received least."""
    lens, ids = interp.load(shared("llama")), tokens(2, 34)
    with lens.apply(H2O(budget=33, recent_share=0.0)):
        lens(ids[:, :30], use_cache=True)
        grown = lens.last_cache
        for part in ids[:, 30:].split(1, 1):
            lens(part, past_key_values=grown, use_cache=True)
    with lens.apply(H2O(budget=33, recent_share=0.0)):
        lens(ids, use_cache=True)
    for i, stored in grown.stored.items():
        places = [s.places().sort(-1).values for s in (stored, lens.last_cache.stored[i])]
        assert torch.equal(*places)


def test_a_turn_that_has_no_room_is_refused_before_it_is_read() -> None:
    lens = interp.load(shared("llama"))
    with lens.apply(SnapKV(budget=20, window=32)):
        lens(tokens(2, 10), use_cache=True)  # fits
        with pytest.raises(InterpError, match=r"20 of 40 tokens \(layer 0\) has no room for 0 sinks and 32 recent"):
            lens(tokens(2, 30), past_key_values=lens.last_cache, use_cache=True)
    assert lens.last_cache.get_seq_length() == 10


@pytest.mark.parametrize("name", BUDGETED)
def test_a_text_that_is_read_back_is_no_other_turn(name: str) -> None:
    lens, policy = interp.load(shared("llama")), made(CLASSES[name], budget=16, beta=2, **QUIET)
    with lens.apply(policy):
        one, other = (lens.score(tokens(1, 30), tokens(1, 20, seed=3), chunk=chunk) for chunk in (1, 256))
    if name not in EACH_STEP:
        close(one, other, 1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("name", CLASSES)
def test_short_texts_are_read_with_default_settings(name: str, length: int) -> None:
    """And say once that nothing was dropped, where nothing was; in a padded batch they are what they are alone."""
    lens, policy = interp.load(shared("llama")), with_defaults(name)
    ids, new = tokens(1, length), tokens(1, 4, seed=5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with lens.apply(policy):
            lens.generate(ids, max_new_tokens=4, eos_token_id=None)
    nothing = not any(stored.lost_something for stored in lens.last_cache.stored.values())
    assert sum("dropped nothing" in str(each.message) for each in told) == nothing
    if length <= 5 and name in AT_REST:
        assert nothing
    if name == "d2o":
        policy = D2O(skip=(), metric="uniform")  # other shares follow the mean over the batch
    with lens.apply(policy):
        rows = torch.cat([tokens(1, 45, seed=7), torch.cat([torch.full((1, 45 - length), 2), ids], 1)])
        mask = torch.ones_like(rows)
        mask[1, : 45 - length] = 0
        lens(rows, attention_mask=mask, use_cache=True)
        batch = lens.last_cache
        lens(ids, use_cache=True)
        alone = lens.last_cache
        for part in new.split(1, 1):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], 1)
            found = lens(part.repeat(2, 1), attention_mask=mask, past_key_values=batch, use_cache=True)
            close(found[1:], lens(part, past_key_values=alone, use_cache=True), 1e-4)


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=5, deadline=None)
@example(
    budget=0.75, sinks=0, lengths=[5, 15]
)  # the longer one keeps all in PyramidKV's first layer, the other does not
@given(
    budget=st.one_of(st.floats(0.05, 0.95), st.integers(16, 45)),
    sinks=st.integers(0, 3),
    lengths=st.lists(st.integers(1, 50), min_size=2, max_size=3),
)
def test_a_row_of_a_padded_batch_is_the_text_alone(name: str, budget: Any, sinks: int, lengths: list[int]) -> None:
    settings_of = {"budget": budget, "sinks": sinks, "ratio": 0.5, "beta": 2, "skip": (), "metric": "uniform", **QUIET}
    policy = made(CLASSES[name], **settings_of)
    if policy is None:
        return
    lens, width, new = interp.load(shared("llama")), max(lengths), tokens(len(lengths), 6, seed=5)
    texts = [tokens(1, length, seed=10 + i) for i, length in enumerate(lengths)]
    rows = torch.cat([torch.nn.functional.pad(text, (width - text.shape[1], 0), value=2) for text in texts])
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    with torch.no_grad(), warnings.catch_warnings(), lens.apply(policy):
        warnings.simplefilter("ignore")
        lens(rows, attention_mask=mask, use_cache=True)
        batch, caches = lens.last_cache, []
        for text in texts:
            lens(text, use_cache=True)
            caches.append(lens.last_cache)
        for part in new.split(1, 1):
            mask = torch.cat([mask, torch.ones_like(part)], 1)
            found = lens(part, attention_mask=mask, past_key_values=batch, use_cache=True)
            for row, cache in enumerate(caches):
                close(found[row : row + 1], lens(part[row : row + 1], past_key_values=cache, use_cache=True), 1e-3)
    for i, stored in batch.stored.items():
        assert stored.kept == max(cache.stored[i].kept for cache in caches)


def test_layer_shares_of_a_batch_are_said_to_be_shared() -> None:
    lens = interp.load(shared("llama"))
    with pytest.warns(UserWarning, match="one share for all 2 texts"), lens.apply(D2O(skip=())):
        lens.generate(tokens(2, 40), max_new_tokens=3, eos_token_id=None)


def refusal_of_a_crop(cache: Any, back: int) -> str | None:
    try:
        cache.crop(-back)
    except InterpError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=5, deadline=None)
@given(read=st.integers(0, 8), back=st.integers(0, 12), share=st.sampled_from([0.3, 0.9, 30, 60]))
def test_a_crop_undoes_all_or_nothing(name: str, read: int, back: int, share: Any) -> None:
    """After it the text goes on as if what it forgot had never been read, or it says in one sentence that it cannot."""
    policy = made(CLASSES[name], budget=share, ratio=0.5, beta=2, skip=(), **QUIET)
    if policy is None:
        return
    lens, ids, later = interp.load(shared("llama")), tokens(2, 40), tokens(2, 8, seed=3)
    with torch.no_grad(), warnings.catch_warnings(), lens.apply(policy):
        warnings.simplefilter("ignore")
        lens(ids, use_cache=True)
        cache, copies = lens.last_cache, []
        for part in later[:, :read].split(1, 1) if read else ():
            copies.append(copy.deepcopy(cache))
            lens(part, past_key_values=cache, use_cache=True)
        copies.append(copy.deepcopy(cache))
        wanted = copies[-1]  # where it is refused, nothing was changed
        if told := refusal_of_a_crop(cache, back):
            assert "\n" not in told
            assert told.endswith(".")
        elif back:
            idle = not any(stored.lost_something for stored in copies[-1].stored.values())
            assert back <= read or idle, "a prompt that a policy has acted on is never cut"
            if back > read:
                return
            wanted = copies[read - back]
        for part in tokens(2, 3, seed=9).split(1, 1):
            close(*(lens(part, past_key_values=each, use_cache=True) for each in (cache, wanted)), 1e-5)


@pytest.mark.parametrize("policy", [H2O(budget=12), StreamingLLM(budget=12), ThinK(0.5, window=4, recent=4)], ids=repr)
def test_a_reset_cache_begins_anew(policy: Any) -> None:
    lens = interp.load(shared("llama"))
    with lens.apply(policy):
        lens(tokens(2, 30), use_cache=True)
        cache = lens.last_cache
        lens(tokens(2, 3, seed=4), past_key_values=cache, use_cache=True)
        cache.reset()
        for part in tokens(2, 34, seed=8).split([30, 1, 1, 1, 1], 1):
            lens(part, past_key_values=cache, use_cache=True)
        lens(tokens(2, 34, seed=8)[:, :30], use_cache=True)
        other = lens.last_cache
        for part in tokens(2, 34, seed=8)[:, 30:].split(1, 1):
            lens(part, past_key_values=other, use_cache=True)
        assert cache.nbytes() == other.nbytes()
        part = tokens(2, 1, seed=6)
        close(*(lens(part, past_key_values=each, use_cache=True) for each in (cache, other)))


def test_a_window_that_has_moved_on_says_so() -> None:
    lens = interp.load(shared("mistral"))
    lens(tokens(2, 12), use_cache=True)
    cache = lens.last_cache
    cache.crop(0)
    cache.crop(40)  # nothing to forget
    with pytest.raises(InterpError, match="the window of layer 0 has moved on"):
        cache.crop(-2)
    assert cache.get_seq_length() == 12
