"""Decoding that runs the model on a second text within a call: right under policies, refused under edits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from tests.models import shared, tokens

TEXT = tokens(2, 40)
POLICIES = {
    "none": None,
    "snapkv": interp.SnapKV(budget=16, window=8),
    "think": interp.ThinK(ratio=0.7, window=8, recent=8),
    "h2o": interp.H2O(budget=16),
    "d2o": interp.D2O(budget=0.4, skip=()),
    "streaming": interp.StreamingLLM(budget=16) | interp.ThinK(ratio=0.5, window=4, recent=4),
}


def guided_by_hand(lens: Any, steps: int, strength: float) -> torch.Tensor:
    """Classifier-free guidance with the unconditional text read anew, without a cache or anything in force."""
    text, unguided = TEXT, TEXT[:, -1:]
    logits = lens(text, use_cache=True)[:, -1]
    cache = lens.last_cache
    for _ in range(steps):
        other = lens.model(unguided, use_cache=False).logits[:, -1].log_softmax(-1)
        token = (strength * (logits.log_softmax(-1) - other) + other).argmax(-1, keepdim=True)
        text, unguided = torch.cat([text, token], 1), torch.cat([unguided, token], 1)
        logits = lens(token, use_cache=True, past_key_values=cache)[:, -1]
    return text


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_guidance_reads_its_second_text_in_full(name: str, policy: str) -> None:
    lens, given = interp.load(shared(name)), POLICIES[policy]
    block = lens.apply(given) if given is not None else nullcontext()
    with block:
        out = lens.generate(TEXT, max_new_tokens=6, min_new_tokens=6, guidance_scale=3.0, eos_token_id=None)
        wanted = guided_by_hand(lens, 6, 3.0)
    assert torch.equal(out, wanted)


class Second(hf.LogitsProcessor):
    """A user's own: looks at what the model says of the last tokens alone."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        self.model, self.kwargs = model, kwargs

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores - 0.1 * self.model(input_ids[:, -3:], **self.kwargs).logits[:, -1]


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_a_logits_processor_that_runs_the_model(use_cache: bool) -> None:
    lens = interp.load(shared("llama"))
    with lens.apply(interp.H2O(budget=16)):
        out = lens.generate(TEXT, max_new_tokens=5, min_new_tokens=5, eos_token_id=None,
                            logits_processor=[Second(lens.model, use_cache=use_cache)])  # fmt: skip
        text, logits = TEXT, lens(TEXT, use_cache=True)[:, -1]
        cache = lens.last_cache
        for _ in range(5):
            token = (logits - 0.1 * lens.model(text[:, -3:]).logits[:, -1]).argmax(-1, keepdim=True)
            text = torch.cat([text, token], 1)
            logits = lens(token, use_cache=True, past_key_values=cache)[:, -1]
    assert torch.equal(out, text)


@pytest.mark.parametrize("edit", [interp.KnockOut(keys=0), interp.Temperature(temperature=2.0)], ids=lambda e: e.name)
@pytest.mark.parametrize("how", ["guidance", "processor"])
def test_an_edit_cannot_tell_two_texts_apart(edit: Any, how: str) -> None:
    lens = interp.load(shared("llama"))
    second = {"guidance_scale": 3.0} if how == "guidance" else {"logits_processor": [Second(lens.model)]}
    for block in (edit, edit | interp.H2O(budget=16)):
        with pytest.raises(interp.InterpError, match="second text"), lens.apply(block):
            lens.generate(TEXT, max_new_tokens=3, **second)


@pytest.mark.parametrize("where", ["argument", "config of the call", "config of the model"])
def test_assisted_decoding_is_refused_wherever_it_is_asked_for(where: str) -> None:
    lens = interp.load(shared("llama"))
    own = lens.model.generation_config.prompt_lookup_num_tokens
    asked: dict[str, Any] = {"max_new_tokens": 3}
    if where == "argument":
        asked["prompt_lookup_num_tokens"] = 2
    elif where == "config of the call":
        asked["generation_config"] = hf.GenerationConfig(prompt_lookup_num_tokens=2)
    try:
        if where == "config of the model":
            lens.model.generation_config.prompt_lookup_num_tokens = 2
        with pytest.raises(interp.InterpError, match="assisted generation"), lens.apply(interp.H2O(budget=16)):
            lens.generate(TEXT[:1], **asked)
    finally:
        lens.model.generation_config.prompt_lookup_num_tokens = own
