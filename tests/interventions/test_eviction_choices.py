"""Which tokens an eviction chooses, how many a budget is, and budgets and settings that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import H2O, H2OPrefill, H2OWindow, InterpError, Knorm, PyramidKV, RandomTokens, SnapKV, StreamingLLM
from interp.interventions.policies._eviction import chosen, tokens_of
from tests.interventions.evicting import GENERATED, PROMPT, generated
from tests.interventions.evicting_by_hand import best
from tests.models import shared, tokens

Tensor = torch.Tensor


@pytest.fixture
def lens() -> Any:
    return interp.load(shared("llama"))


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


@pytest.mark.parametrize("make", [SnapKV, H2OPrefill, H2OWindow, StreamingLLM, PyramidKV, Knorm, RandomTokens, H2O])
def test_a_prompt_that_fits_is_left_alone_with_a_warning(lens: Any, make: Callable[..., Any]) -> None:
    ids = tokens(2, PROMPT)
    how = GENERATED | {"output_logits": True, "return_dict_in_generate": True}
    plain = lens.generate(ids, **how)
    room = {"budget": PROMPT * 41 if make is PyramidKV else PROMPT + 7}  # its last layer gets least
    with pytest.warns(UserWarning, match="dropped nothing: the prompt of 40 tokens"), lens.apply(make(**room)):
        out = lens.generate(ids, **how)
    for found, wanted in zip(out.logits, plain.logits, strict=True):  # H2O keeps account, which rounds otherwise
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
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
        SnapKV(budget=8, window=6, sinks=4),
        PyramidKV(budget=4, window=8),
        PyramidKV(budget=12, window=8, sinks=3),  # enough in the mean, too little in the last layer
        StreamingLLM(budget=3),
        Knorm(budget=5, recent=4, sinks=2),
        H2O(budget=6, sinks=4),
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
