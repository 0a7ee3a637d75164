"""`lens.apply`: in force inside the block, gone afterwards, and every mistake told before anything is computed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from interp import H2O, InterpError, ThinK
from interp.errors import UnknownNameError, UnsupportedModelError
from interp.interventions import Composition, available, named, parts
from tests.lens.many import model_of
from tests.models import shared, tiny, tokenizer, tokens

POLICY = ThinK(ratio=0.5, window=8, recent=6)
ARCHITECTURES = ("llama", "gpt2", "phi", "gemma3", "gpt_oss")


@contextmanager
def nothing_computed(model: Any) -> Iterator[None]:
    """Fails where the model ran inside the block."""
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda *args: calls.append(1))
    try:
        yield
    finally:
        hook.remove()
    assert not calls


def one_sentence(error: BaseException) -> str:
    told = str(error)
    assert "\n" not in told
    assert told.endswith(".")
    return told


@pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_afterwards_the_model_is_as_before(name: str) -> None:
    """Bit-identical logits, the same attention function, no hook left, no cache policy on a new cache."""
    model, ids = tiny(name), tokens(length=30)
    lens, attention = interp.load(model), model.config._attn_implementation
    before, generated = model(ids).logits, lens.generate(ids, max_new_tokens=5)
    with lens.apply(POLICY):
        inside = lens.generate(ids, max_new_tokens=5, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(lens(ids), before)
    assert torch.equal(lens.generate(ids, max_new_tokens=5), generated)
    assert lens.last_cache.keeper is None
    assert lens.last_cache.stored == {}
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    own = lens.generate(ids, max_new_tokens=5, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(inside.logits[0], own.logits[0])
    assert not torch.equal(inside.logits[1], own.logits[1])


@torch.no_grad()
def test_an_exception_inside_restores_everything() -> None:
    """Raised by the caller between calls, and by a hook in the middle of a compressed decoding step."""
    model, ids = tiny("llama"), tokens(length=30)
    lens, before = interp.load(model), model(ids).logits

    def fail(value: torch.Tensor, hook: Any) -> None:
        if value.shape[1] == 1:
            raise ZeroDivisionError

    with pytest.raises(KeyError), lens.apply(POLICY):
        {}[lens.generate(ids, max_new_tokens=2)]
    with pytest.raises(ZeroDivisionError), lens.apply(POLICY), lens.hooks(fwd_hooks=[("blocks.1.attn.hook_z", fail)]):
        lens.generate(ids, max_new_tokens=5)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(lens(ids), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with lens.apply(POLICY):  # and apply can be used again
        lens.generate(ids, max_new_tokens=2)
    assert lens.last_cache.stored[1].compressed


@pytest.mark.parametrize(
    "policy", [POLICY, ThinK(0.5, 8, 6, 2, True, selector="gram", value_ratio=0.3)], ids=["a", "b"]
)
@torch.no_grad()
def test_two_runs_are_one(policy: ThinK) -> None:
    """In one block, in two blocks, with another prompt in between: bit for bit, bytes too."""
    lens, ids = interp.load(shared("qwen3")), tokens(length=30)
    asked = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_logits": True}
    runs, held = [], []
    for _ in range(2):
        with lens.apply(policy):
            for prompt in (ids, tokens(length=40, seed=7), ids):
                out = lens.generate(prompt, **asked)
                if prompt is ids:
                    runs.append(torch.stack(out.logits))
                    held.append(lens.last_cache)
    assert all(torch.equal(run, runs[0]) for run in runs)
    assert len({cache.nbytes() for cache in held}) == 1
    assert torch.equal(held[0].stored[2].keys, held[3].stored[2].keys)


@torch.no_grad()
def test_every_call_starts_its_own_cache() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    with lens.apply(POLICY):
        lens(ids, use_cache=True)
        first = lens.last_cache
        lens(ids, use_cache=True)
    assert first is not lens.last_cache
    assert first.keeper is not lens.last_cache.keeper
    assert first.get_seq_length() == 30


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 1.0}, "ratio should be at least 0 and below 1, found 1.0"),
    ({"ratio": -0.1}, "ratio should be at least 0 and below 1, found -0.1"),
    ({"ratio": float("nan")}, "ratio should be a finite number, found nan"),
    ({"value_ratio": 1.5}, "value_ratio should be at least 0 and below 1, found 1.5"),
    ({"window": 0}, "window should be at least 1"),
    ({"recent": -1}, "recent"),
    ({"sinks": -1}, "sinks"),
    ({"ridge": 0.0}, "ridge above 0"),
    ({"selector": "thinks"}, "selector should be one of think, gram, surgeon, key_norm, random, found 'thinks'"),
    ({"granularity": "head"}, "granularity should be one of kv_head, query_head, found 'head'"),
    ({"score_tokens": "old"}, "score_tokens should be one of all, prunable, found 'old'"),
    ({"rounding": "up"}, "rounding should be one of code, paper, found 'up'"),
    ({"ratio": "half"}, "ratio"),
    ({"window": 8.5}, "window"),
    ({"recent": 2.5}, "recent"),
    ({"sinks": 0.5}, "sinks"),
    ({"ridge": float("nan")}, "ridge should be a finite number, found nan"),
    ({"ridge": float("inf")}, "ridge should be a finite number, found inf"),
    ({"seed": -1}, "seed"),
    ({"compensate": "no"}, "compensate"),
    ({"value_score": "wo"}, "value_score should be one of magnitude, attn, attn_wo, found 'wo'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_a_bad_setting_is_told_when_it_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InterpError) as caught:
        ThinK(**settings)
    assert message in one_sentence(caught.value)
    assert one_sentence(caught.value).startswith("think: ")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: shared("mistral"), "every layer of MistralForCausalLM has a sliding window of 5"),
        (lambda: model_of("jetmoe"), "JetMoeForCausalLM has no layer whose cache a policy could act on"),
    ],
    ids=["sliding", "other"],
)
def test_a_model_without_such_a_cache_is_refused(model: Any, message: str) -> None:
    made = model()
    lens = interp.load(made)
    with nothing_computed(made), pytest.raises(UnsupportedModelError) as caught, lens.apply(POLICY):
        pass
    assert message in one_sentence(caught.value)
    lens(tokens(), use_cache=True)  # and the Lens goes on
    assert lens.last_cache.keeper is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("think", "apply takes interventions such as interp.ThinK(ratio=0.5), not 'think'"),
        (ThinK, "apply takes interventions"),
        (None, "apply takes interventions"),
    ],
    ids=["name", "class", "nothing"],
)
def test_what_apply_cannot_take(given: Any, message: str) -> None:
    model = shared("llama")
    lens = interp.load(model)
    with nothing_computed(model), pytest.raises(InterpError) as caught, lens.apply(given):
        pass
    assert message in one_sentence(caught.value)


def test_two_policies_of_one_stage_do_not_go_together() -> None:
    with pytest.raises(
        InterpError, match="think and think both decide about channels of the cache; apply one"
    ) as error:
        POLICY | ThinK(0.2)
    one_sentence(error.value)


def test_a_window_longer_than_the_prompt_is_all_of_it() -> None:
    model = tiny("llama")
    lens = interp.load(model, tokenizer())
    calls = [
        lambda: lens.generate(tokens(length=12), max_new_tokens=2),
        lambda: lens(tokens(length=12), use_cache=True),
        lambda: lens.score(tokens(length=12), tokens(length=3)),
        lambda: lens.generate("w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15", max_new_tokens=2),
    ]
    for call in calls:
        held = []
        for window in (13, 12, None):
            with lens.apply(ThinK(0.5, window=window, recent=4)):
                call()
            held.append(torch.cat([s.segments[0].channels.flatten() for s in lens.last_cache.stored.values()]))
        assert torch.equal(held[0], held[1])
        assert torch.equal(held[0], held[2])


@pytest.mark.filterwarnings("ignore:think. no call inside apply")
def test_a_call_without_a_cache_is_refused() -> None:
    model, ids = shared("llama"), tokens(length=30)
    lens = interp.load(model)
    with nothing_computed(model), lens.apply(POLICY):
        for call in (lambda: lens(ids), lambda: lens.generate(ids, use_cache=False), lambda: lens.run_with_cache(ids)):
            with pytest.raises(InterpError, match="acts on a cache, and this call keeps none") as caught:
                call()
            one_sentence(caught.value)


@pytest.mark.filterwarnings("ignore:think. no call inside apply")
@torch.no_grad()
def test_a_cache_made_without_the_policy_is_refused() -> None:
    """A Lens' own, transformers' own, and one that another policy fills."""
    model, ids = shared("llama"), tokens(length=30)
    lens = interp.load(model)
    lens(ids, use_cache=True)
    plain, theirs = lens.last_cache, hf.DynamicCache(config=model.config)
    with lens.apply(ThinK(0.25, 8, 6)):
        lens(ids, use_cache=True)
    other = lens.last_cache
    with nothing_computed(model), lens.apply(POLICY):
        for cache in (plain, theirs, other):
            with pytest.raises(InterpError, match="start a new one inside the block"):
                lens(ids[:, :1], past_key_values=cache, use_cache=True)


def test_apply_inside_apply_is_refused_and_the_outer_one_stays() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    with lens.apply(POLICY):
        with pytest.raises(InterpError, match=r"put them together with \|") as caught, lens.apply(ThinK(0.2)):
            pass
        one_sentence(caught.value)
        lens.generate(ids, max_new_tokens=2)
    assert lens.last_cache.keeper.policies == (POLICY,)


def test_padding_must_be_on_the_left() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    mask = torch.ones_like(ids)
    mask[1, 10:12] = 0
    with lens.apply(POLICY):
        with pytest.raises(InterpError, match="left of each text") as caught:
            lens(ids, attention_mask=mask, use_cache=True)
        lens(ids, use_cache=True)
    one_sentence(caught.value)


def test_a_policy_that_did_nothing_says_so() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    with pytest.warns(UserWarning, match="no call inside apply"), lens.apply(POLICY):
        pass
    with pytest.warns(UserWarning, match="dropped nothing: the prompt of 30 tokens"), lens.apply(ThinK(0.5, 8, 30)):
        lens(ids, use_cache=True)
    with pytest.warns(UserWarning, match="dropped nothing"), lens.apply(ThinK(0.1, 8, 6)):  # ⌊0.1 * 8⌋ = 0 channels
        lens(ids, use_cache=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lens.apply(POLICY):
            lens(ids, use_cache=True)
        with lens.apply(POLICY):  # a cache that is continued counts as used
            lens(ids[:, :1], past_key_values=lens.last_cache, use_cache=True)


def test_sliding_layers_are_named_and_left_alone() -> None:
    lens, ids = interp.load(shared("gemma3")), tokens(length=30)
    with (
        pytest.warns(UserWarning, match=r"2 of 3 layers have a sliding window and stay as they are: \[0, 2\]"),
        lens.apply(POLICY),
    ):
        lens(ids, use_cache=True)
    assert list(lens.last_cache.stored) == [1]
    assert lens.last_cache.stored[1].compressed


def test_interventions_are_values() -> None:
    assert ThinK(0.4) == ThinK() != ThinK(0.5)
    assert ThinK(0.3).settings()["name"] == "think"
    assert ThinK(0.3).settings()["ratio"] == 0.3
    both = ThinK(0.1) | H2O(0.2)
    assert isinstance(both, Composition)
    assert parts(both) == (ThinK(0.1), H2O(0.2))
    assert both.settings() == {"name": "composition", "members": [ThinK(0.1).settings(), H2O(0.2).settings()]}
    assert parts(POLICY) == (POLICY,)
    assert eval(repr(POLICY)) == POLICY
    with pytest.raises(TypeError):
        ThinK(0.1) | 3
    with pytest.raises(AttributeError):
        POLICY.ratio = 0.1


def test_interventions_are_found_by_name() -> None:
    assert available()["think"] is ThinK
    assert named("think", ratio=0.2) == ThinK(0.2)
    assert list(available()) == sorted(available())
    with pytest.raises(UnknownNameError, match="did you mean 'think'"):
        named("thnk")
    with pytest.raises(UnknownNameError, match="has no setting 'ration'; did you mean 'ratio'"):
        named("think", ration=0.2)
