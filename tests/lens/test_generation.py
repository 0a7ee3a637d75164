"""`lens.generate`: whose settings hold, what comes back, and activations of all steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import interp
from interp.lens.bridge import BridgeLens
from interp.runs.generating import generate as account
from tests.lens.test_token_text import lens_of
from tests.lens.tokenizers_of_each_kind import KINDS
from tests.models import NAMES, shared, tiny, tokenizer, tokens

LONG = {"eos_token_id": None}


@pytest.fixture
def lens() -> Iterator[interp.Lens]:
    """One whose model may have defaults of its own."""
    made = interp.load(shared("llama"), tokenizer())
    before = made.model.generation_config
    made.model.generation_config = GenerationConfig.from_dict(before.to_dict())
    yield made
    made.model.generation_config = before


OWN: list[dict[str, Any]] = [
    {"use_cache": False},
    {"use_cache": True},
    {"num_beams": 3},
    {"num_beams": 2, "use_cache": False},
    {"repetition_penalty": 1.9},
    {"no_repeat_ngram_size": 1, "use_cache": False},
    {"eos_token_id": [39, 46]},
    {"suppress_tokens": [26, 39]},
    {"min_new_tokens": 4, "eos_token_id": 39},
    {"forced_eos_token_id": 7},
    {"bad_words_ids": [[39]]},
    {"cache_implementation": "static"},
    {"cache_implementation": "dynamic"},
]


@pytest.mark.parametrize("own", OWN, ids=str)
@pytest.mark.parametrize("padding", [0, 3])
def test_defaults_come_from_where_transformers_takes_them(lens: interp.Lens, own: dict[str, Any], padding: int) -> None:
    lens.model.generation_config.update(**own)
    ids, mask = tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[0, :padding] = 0
    how = {"attention_mask": mask, "max_new_tokens": 6}
    bare = lens.model.generate(ids, do_sample=False, **how)
    assert torch.equal(lens.generate(ids, **how), bare)
    with lens.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: None)]):
        assert torch.equal(lens.generate(ids, **how), bare)
    assert torch.equal(lens.generate(ids, generation_config=GenerationConfig(), **how), bare)
    assert (lens.last_cache is None) == (own.get("use_cache") is False)


@pytest.mark.parametrize("name", NAMES)
def test_no_model_writes_other_tokens_without_a_cache(name: str) -> None:
    model = tiny(name)
    lens = interp.load(model)
    model.generation_config.use_cache = False
    bare = model.generate(tokens(), max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(tokens()), **LONG)
    assert torch.equal(lens.generate(tokens(), max_new_tokens=4, **LONG), bare)
    assert lens.last_cache is None


def test_a_policy_asks_for_a_cache(lens: interp.Lens) -> None:
    """The account of a run, too, is about a cache."""
    with lens.apply(interp.SnapKV(budget=0.5, window=4)):
        wanted = lens.generate(tokens(), max_new_tokens=5, **LONG)
    lens.model.generation_config.use_cache = False
    with lens.apply(interp.SnapKV(budget=0.5, window=4)):
        assert torch.equal(lens.generate(tokens(), max_new_tokens=5, **LONG), wanted)
        assert lens.last_cache is not None
        with pytest.raises(interp.InterpError, match="keeps none"):
            lens.generate(tokens(), max_new_tokens=5, use_cache=False)
    told = account(lens, "w4 w5 w6", max_new_tokens=3)
    assert told["cache"]["tokens"] == told["prompt_tokens"] + told["new_tokens"] - 1
    lens.model.generation_config.return_dict_in_generate = True
    assert account(lens, [4, 5, 6], max_new_tokens=3)["new_tokens"] <= 3
    with pytest.raises(interp.InterpError, match="one prompt is continued at a time, and these are 2"):
        account(lens, ["w4", "w5"], max_new_tokens=3)


ASKED: dict[str, tuple[dict[str, Any], dict[str, Any] | None, int]] = {
    "nothing": ({}, None, 64),
    "ours by keyword": ({"max_new_tokens": 3}, None, 3),
    "length by keyword": ({"max_length": 15}, None, 3),
    "both by keyword": ({"max_length": 15, "max_new_tokens": 2}, None, 2),
    "passed": ({}, {"max_new_tokens": 3}, 3),
    "passed length": ({}, {"max_length": 16}, 4),
    "passed both": ({}, {"max_length": 16, "max_new_tokens": 3}, 3),
    "passed without": ({}, {"top_k": 5}, 64),
    "keyword before passed": ({"max_new_tokens": 2}, {"max_new_tokens": 3}, 2),
    "length before passed": ({"max_length": 14}, {"max_new_tokens": 3}, 2),
    "keyword before passed length": ({"max_new_tokens": 5}, {"max_length": 14}, 5),
}


@pytest.mark.parametrize("own", [{}, {"max_new_tokens": 7}, {"max_length": 20}], ids=str)
@pytest.mark.parametrize("case", ASKED)
def test_as_many_tokens_as_were_asked_for(lens: interp.Lens, case: str, own: dict[str, Any]) -> None:
    lens.model.generation_config.update(**own)
    keywords, passed, new = ASKED[case]
    given = {} if passed is None else {"generation_config": GenerationConfig(**passed)}
    assert lens.generate(tokens(), **keywords, **given, **LONG).shape == (2, 12 + new)
    if passed is not None:
        assert given["generation_config"].to_diff_dict().keys() <= {*passed, "transformers_version"}, "left as it was"


@settings(max_examples=40, deadline=None)
@given(
    keywords=st.fixed_dictionaries({}, optional={
        "max_new_tokens": st.integers(1, 5), "num_beams": st.integers(1, 3), "do_sample": st.booleans(),
        "use_cache": st.booleans(), "repetition_penalty": st.sampled_from([1.0, 1.5])}),
    passed=st.fixed_dictionaries({}, optional={
        "max_new_tokens": st.integers(1, 5), "num_beams": st.integers(1, 3), "do_sample": st.booleans(),
        "use_cache": st.booleans(), "top_k": st.integers(1, 9), "temperature": st.sampled_from([0.5, 2.0])}),
    own=st.fixed_dictionaries({}, optional={
        "max_new_tokens": st.integers(1, 5), "num_beams": st.integers(1, 3), "use_cache": st.booleans(),
        "no_repeat_ngram_size": st.integers(0, 2)}),
)  # fmt: skip
def test_the_caller_then_what_he_passed_then_ours_then_the_models(
    keywords: dict[str, Any], passed: dict[str, Any], own: dict[str, Any]
) -> None:
    lens = interp.load(shared("llama"))
    before = lens.model.generation_config
    try:
        lens.model.generation_config = GenerationConfig.from_dict(before.to_dict() | own)
        ours = {"max_new_tokens": 64, "do_sample": False}
        asked = {**own, **ours, **passed, **keywords}
        torch.manual_seed(3)
        bare = lens.model.generate(tokens(), attention_mask=torch.ones_like(tokens()), **asked)
        torch.manual_seed(3)
        found = lens.generate(tokens(), generation_config=GenerationConfig(**passed), **keywords)
        assert torch.equal(found, bare)
    finally:
        lens.model.generation_config = before


def test_sampling_that_was_asked_for(lens: interp.Lens) -> None:
    config = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=5.0)
    ones = torch.ones_like(tokens())
    torch.manual_seed(0)
    bare = lens.model.generate(tokens(), generation_config=config, attention_mask=ones, **LONG)
    torch.manual_seed(0)
    assert torch.equal(lens.generate(tokens(), generation_config=config, **LONG), bare)
    greedy = lens.generate(tokens(), generation_config=config, do_sample=False, **LONG)
    assert torch.equal(greedy, lens.generate(tokens(), max_new_tokens=5, **LONG))
    lens.model.generation_config.update(do_sample=True)
    assert torch.equal(lens.generate(tokens(), max_new_tokens=5, **LONG), greedy), "greedy unless the caller says so"


SEVERAL: list[dict[str, Any]] = [
    {"do_sample": True, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 4, "num_return_sequences": 2},
    {"generation_config": GenerationConfig(do_sample=True, num_return_sequences=3)},
]


@pytest.mark.parametrize("how", SEVERAL, ids=["sampled", "all beams", "best beams", "passed"])
@pytest.mark.parametrize("prompt", ["w4 w5", ["w4 w5"], ["w4 w5 w6", "w7"], torch.tensor([[4, 5, 6], [7, 8, 9]])])
def test_all_sequences_come_back(lens: interp.Lens, prompt: Any, how: dict[str, Any]) -> None:
    many = how.get("num_return_sequences", 3)
    batch = 1 if isinstance(prompt, str) else len(prompt)
    torch.manual_seed(0)
    found = lens.generate(prompt, max_new_tokens=3, **how, **LONG)
    ids, mask = lens.tokens_and_mask(prompt)
    torch.manual_seed(0)
    bare = lens.generate(ids, max_new_tokens=3, attention_mask=mask, **how, **LONG)
    assert bare.shape == (batch * many, ids.shape[1] + 3)
    if isinstance(prompt, torch.Tensor):
        assert torch.equal(found, bare)
    else:
        assert found == lens.tokenizer.batch_decode(bare, skip_special_tokens=True)


@pytest.mark.parametrize("prompt", ["w4 w5", ["w4 w5 w6", "w7"], torch.tensor([[4, 5, 6]]), [4, 5, 6]])
@pytest.mark.parametrize("where", ["keyword", "passed", "own"])
def test_transformers_own_output_comes_back(lens: interp.Lens, prompt: Any, where: str) -> None:
    how: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
    if where == "passed":
        how = {"generation_config": GenerationConfig(**how)}
    if where == "own":
        lens.model.generation_config.update(**how)
        how = {}
    out = lens.generate(prompt, max_new_tokens=3, **how, **LONG)
    assert len(out.scores) == 3
    assert out.sequences.shape[1] == lens.to_tokens(prompt).shape[1] + 3


def test_a_chat_with_several_replies(lens: interp.Lens) -> None:
    lens.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w9"
    how = {"chat": True, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 3, **LONG}
    replies = lens.generate("w4 w5", **how)
    assert len(replies) == 2
    assert all(len(reply.split()) == 3 for reply in replies)
    assert lens.generate(["w4 w5", "w6"], **how)[:2] == replies
    out = lens.generate("w4 w5", chat=True, max_new_tokens=2, return_dict_in_generate=True, **LONG)
    assert out.sequences.shape[1] == len(lens.token_ids("w4 w5 w9")) + 2


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
def test_stop_strings_have_the_tokenizer(kind: str) -> None:
    lens = lens_of(KINDS[kind]())
    plain = lens.generate("The capital of", max_new_tokens=12, **LONG)
    stop = plain.removeprefix("The capital of").strip()[3:5]
    found = lens.generate("The capital of", max_new_tokens=12, stop_strings=[stop], **LONG)
    assert plain.startswith(found.rstrip())
    assert stop in found.removeprefix("The capital of")
    passed = GenerationConfig(stop_strings=[stop], max_new_tokens=12)
    assert lens.generate("The capital of", generation_config=passed, **LONG) == found
    assert lens.generate(lens.to_tokens("The capital of"), stop_strings=stop, max_new_tokens=12, **LONG).shape[1] <= 20
    with pytest.raises(interp.InterpError, match="stop_strings are read with a tokenizer"):
        interp.load(lens.model).generate([4, 5], stop_strings=["a"])


def test_streamers_and_processors(lens: interp.Lens) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen.append(value.reshape(-1))

        def end(self) -> None: ...

    def only_seven(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    processors = hf.LogitsProcessorList([only_seven])
    streamer = Streamer()
    text = lens.generate("w4 w5", 3, streamer=streamer, logits_processor=processors, **LONG)
    assert text == "w4 w5 w7 w7 w7"
    assert torch.cat(streamer.seen).tolist() == [0, 4, 5, 7, 7, 7]
    with pytest.raises(ZeroDivisionError):
        lens.generate("w4", 3, logits_processor=hf.LogitsProcessorList([lambda ids, scores: 1 / 0]))

    def own(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        lens.generate("w4", 3, logits_processor=hf.LogitsProcessorList([own]))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"max_new_tokens": 0}, "max_new_tokens should be a number of at least 1, found 0"),
    "negative": ({"max_new_tokens": -3}, "at least 1, found -3"),
    "half": ({"max_new_tokens": 2.5}, "at least 1, found 2.5"),
    "words": ({"max_new_tokens": "3"}, "at least 1, found '3'"),
    "short": ({"max_length": 5}, "max_length=5 counts the prompt, which has 12 tokens"),
    "a dictionary": ({"generation_config": {"max_new_tokens": 3}}, "is a transformers.GenerationConfig, not dict"),
    "no such": ({"max_token": 3}, r"does not generate with these settings: .*max_token"),
    "cold": ({"do_sample": True, "temperature": 0.0}, "does not generate with these settings"),
    "no beams": ({"num_beams": 0}, "num_beams should be a number of at least 1, found 0"),
    "greedy several": ({"num_return_sequences": 3}, "does not generate with these settings: Greedy"),
    "streamed beams": ({"num_beams": 2, "streamer": hf.TextStreamer(tokenizer())}, "streamer"),
    "a cache of theirs": ({"cache_implementation": "static"}, "pass no cache_implementation"),
    "passed cache": ({"generation_config": GenerationConfig(cache_implementation="static")}, "no cache_implementation"),
    "long": ({"max_new_tokens": 600}, "exceed the context"),
    "long passed": ({"generation_config": GenerationConfig(max_length=600)}, "exceed the context"),
    "guesses": ({"names_filter": "hook_embed", "prompt_lookup_num_tokens": 2}, "leave names_filter out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be(lens: interp.Lens, case: str) -> None:
    how, says = REFUSED[case]
    for prompt in (tokens(1), "w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14"):
        with pytest.raises(interp.InterpError, match=says) as caught:
            lens.generate(prompt, **how)
        assert "\n" not in str(caught.value)


ENDLESS = [math.nan, math.inf, -math.inf, 2.5, -1, True, "3", [3], np.float64("nan"), torch.tensor(2.0)]


@pytest.mark.parametrize("value", ENDLESS, ids=str)
def test_numbers_that_never_end_are_refused_before_anything_is_read(value: Any) -> None:
    lens = interp.load(shared("llama"))  # without a tokenizer a text cannot be read, which would be said instead
    bridge: Any = BridgeLens.generate
    for name in ("max_new_tokens", "max_length", "min_new_tokens", "num_beams", "num_return_sequences"):
        with pytest.raises(interp.InterpError, match=f"{name} should be a number of at least"):
            lens.generate("w4", **{name: value})
        with pytest.raises(interp.InterpError, match=f"{name} should be a number of at least"):
            bridge(SimpleNamespace(hook_dict={}), "w4", **{name: value})
    for run in (account, interp.side_by_side):
        with pytest.raises(interp.InterpError, match="max_new_tokens should be a number of at least 1"):
            run(lens, "w4", interp.SnapKV(budget=0.5), value)
    for seconds in (math.nan, math.inf, 0, -1, "3", [3]):
        with pytest.raises(interp.InterpError, match="max_time should be a finite number of seconds above 0"):
            lens.generate("w4", max_time=seconds)


@pytest.mark.parametrize("where", ["keyword", "passed", "own"])
def test_guessing_does_not_go_with_a_policy_wherever_it_was_asked_for(lens: interp.Lens, where: str) -> None:
    how: dict[str, Any] = {"prompt_lookup_num_tokens": 2}
    if where == "own":
        lens.model.generation_config.update(**how)
    given = {"keyword": how, "passed": {"generation_config": GenerationConfig(**how)}, "own": {}}[where]
    with pytest.raises(interp.InterpError, match="assisted"), lens.apply(interp.SnapKV(budget=0.5, window=4)):
        lens.generate(tokens(1), max_new_tokens=3, **given)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_activations_of_all_steps(name: str, use_cache: bool) -> None:
    lens = interp.load(shared(name))
    kept = ["hook_resid_post", "attn.hook_z", "attn.hook_v", "attn.hook_row_entropy", "hook_mlp_out"]
    wanted = [f"blocks.1.{point}" for point in kept]
    out, cache = lens.generate(tokens(), 5, names_filter=wanted, use_cache=use_cache, **LONG)
    assert torch.equal(out, lens.generate(tokens(), 5, use_cache=use_cache, **LONG))
    _, whole = lens.run_with_cache(out[:, :-1], names_filter=wanted)
    for point in wanted:
        torch.testing.assert_close(cache[point], whole[point], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cache["z", 1], whole["z", 1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_grows_comes_step_by_step(lens: interp.Lens) -> None:
    text, cache = lens.generate("w4 w5 w6", 4, names_filter=lambda name: name.endswith("1.attn.hook_pattern"), **LONG)
    assert isinstance(text, str)
    assert [step.shape[-2:] for step in cache["pattern", 1]] == [(4, 4), (1, 5), (1, 6), (1, 7)]
    with pytest.raises(interp.UnknownNameError, match="did you mean"):
        lens.generate("w4", 2, names_filter="blocks.0.hook_residpost")
    assert not any(hook for point in lens.hook_dict.values() for hook in point.fwd_hooks)


GIVEN: dict[str, Callable[[], Any]] = {
    "left": lambda: {"input_ids": [[2, 2, 4, 5], [6, 7, 8, 9]], "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]]},
    "right": lambda: {"input_ids": [[4, 5, 2, 2], [6, 7, 8, 9]], "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]]},
    "both": lambda: {"input_ids": [[2, 4, 5, 2], [6, 7, 8, 9]], "attention_mask": [[0, 1, 1, 0], [1, 1, 1, 1]]},
    "none": lambda: [[4, 5], [6, 7, 8, 9]],
}


@pytest.mark.parametrize("side", GIVEN)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prompt_padded_anywhere_goes_on_as_it_would_alone(name: str, side: str) -> None:
    lens = interp.load(shared(name))
    out = lens.generate(GIVEN[side](), max_new_tokens=4, **LONG)
    for row, ids in zip(out, ([4, 5], [6, 7, 8, 9]), strict=True):
        assert torch.equal(row[-len(ids) - 4 :], lens.generate([ids], max_new_tokens=4, **LONG)[0])


@pytest.mark.parametrize("name", ["pad", "eos"])
def test_padding_that_is_no_special_token_stays_out_of_the_text(name: str) -> None:
    words = tokenizer()
    for special in ("pad_token", "eos_token"):
        setattr(words, special, None)
    if name == "eos":
        words.eos_token = "w9"
    lens = interp.load(shared("llama"), words)
    both = lens.generate(["w4 w5 w6", "w7"], max_new_tokens=3, **LONG)
    assert both[1] == lens.generate("w7", max_new_tokens=3, **LONG)
