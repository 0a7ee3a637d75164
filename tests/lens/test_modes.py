"""A model as a training loop leaves it: measured in evaluation mode, trained in its own, never noisy without a word."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import xarray as xr

import interp
from interp.lens.evaluating import evaluating
from interp.patching import logit_difference
from interp.runs import generating
from tests.models import SHAPE, tiny, tokenizer, tokens
from tests.seam.test_bridge import bridged

PROMPT = " ".join(f"w{i}" for i in range(4, 30))


def noisy(kind: str) -> Any:
    """A model whose dropout is live in train mode: as modules (GPT-2), as a rate of its attention (Llama)."""
    if kind == "gpt2":
        return tiny("gpt2").train()
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, attention_dropout=0.4)).train()


def _patched(lens: Any) -> Any:
    ids, other = tokens(1), tokens(1)
    other[0, 5] = 7
    return interp.patch(lens, ids, other, "hook_resid_pre", logit_difference(8, 9), by="position")


MEASURES: dict[str, Callable[[Any], Any]] = {
    "generate": lambda lens: lens.generate(tokens(), max_new_tokens=4).numpy(),
    "score": lambda lens: lens.score(tokens(), tokens(seed=2)).numpy(),
    "probe": lambda lens: interp.probe(lens, PROMPT, ["channel_imbalance"])["channel_imbalance"],
    "many texts": lambda lens: interp.probe(lens, [PROMPT, PROMPT], ["text_sinks"])["text_sinks"].drop_vars(
        "seconds_forward", errors="ignore"
    ),
    "patch": _patched,
    "explain": lambda lens: interp.explain(
        lens, interp.ThinK(ratio=0.5, window=8, recent=8), PROMPT, "w9 w8 w7", ["perturbation"]
    )["perturbation"],
    "side_by_side": lambda lens: interp.side_by_side(lens, PROMPT, interp.StreamingLLM(budget=0.5), max_new_tokens=4),
    "an account": lambda lens: generating.generate(lens, PROMPT, max_new_tokens=4)["new_token_ids"],
    "icl score": lambda lens: interp.icl.language.icl_score(lens, tokens(length=20), late=15, early=5),
}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("measure", MEASURES)
def test_what_measures_runs_in_evaluation_mode_and_puts_modes_back(kind: str, measure: str) -> None:
    model = noisy(kind)
    lens = interp.load(model, tokenizer())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dropout")
        found = MEASURES[measure](lens)
    assert all(m.training for m in model.modules())
    model.eval()
    wanted = MEASURES[measure](lens)
    if isinstance(wanted, xr.Dataset):
        xr.testing.assert_equal(found, wanted)
    else:
        np.testing.assert_array_equal(found, wanted)


def test_every_module_has_its_own_mode_back_after_an_exception() -> None:
    model = noisy("gpt2")
    model.transformer.h[1].eval()
    before = [m.training for m in model.modules()]
    lens = interp.load(model)

    def fail(value: Any, hook: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError), lens.hooks(fwd_hooks=[("blocks.0.attn.hook_z", fail)]):
        lens.generate(tokens(), max_new_tokens=2)
    assert [m.training for m in model.modules()] == before


def test_overlapping_measurements_put_modes_back_once() -> None:
    model = noisy("gpt2")
    lens, other = interp.load(model), interp.load(model)
    with evaluating(lens):
        with evaluating(other):
            assert not model.training
        assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.modules())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: lens.score(tokens(), tokens(seed=2)), range(8)))
    assert all(torch.equal(found[0], nats) for nats in found)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_live_dropout_is_told_to_who_looks(kind: str) -> None:
    model = noisy(kind)
    lens = interp.load(model)
    for look in (
        lambda: lens.run_with_cache(tokens()),
        lambda: lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: None)]),
        torch.no_grad()(lambda: lens(tokens())),
    ):
        with pytest.warns(UserWarning, match="dropout is live"):
            look()


def test_training_through_a_lens_is_left_alone() -> None:
    model = noisy("gpt2")
    lens = interp.load(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.manual_seed(0)
        loss = lens(tokens(), return_type="loss")
        loss.backward()
    torch.manual_seed(0)
    torch.testing.assert_close(loss, model(tokens(), labels=tokens()).loss)
    assert model.training


def test_train_mode_without_anything_random_is_no_matter() -> None:
    lens = interp.load(tiny("llama").train())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lens.run_with_cache(tokens())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_gradient_checkpointing(kind: str) -> None:
    """Layers that run again in the backward pass would do so without hooks, and keep no cache in the first place."""
    model = tiny(kind)
    lens = interp.load(model)
    hooks = [("blocks.1.hook_resid_post", lambda value, hook: value * 0.5)]
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(interp.InterpError, match="runs every layer again"):
        lens.run_with_hooks(tokens(), fwd_hooks=hooks)
    with pytest.raises(interp.InterpError, match="runs every layer again"), lens.apply(interp.KnockOut(keys=0)):
        lens(tokens())
    with pytest.raises(interp.InterpError, match="keeps no cache"):
        lens(tokens(), use_cache=True)
    lens(tokens(), return_type="loss").backward()  # nothing to lose without hooks
    assert lens.score(tokens(), tokens(seed=2)).shape == (2, 12)
    model.eval()
    edited = lens.run_with_hooks(tokens(), fwd_hooks=hooks)
    model.gradient_checkpointing_disable()
    assert torch.equal(edited, lens.run_with_hooks(tokens(), fwd_hooks=hooks))


def test_a_bridge_in_train_mode() -> None:
    """Its points are tried on two tokens when a lens is made, where dropout would make them look wrong."""
    bridge = bridged("gpt2")
    wanted = interp.load(bridge, tokenizer())
    bridge.train()
    lens = interp.load(bridge, tokenizer())
    assert lens.hook_dict.keys() == wanted.hook_dict.keys()
    first, second = (interp.probe(lens, PROMPT, ["text_sinks"])["text_sinks"] for _ in range(2))
    xr.testing.assert_equal(first, second)
    assert bridge.training
    with pytest.warns(UserWarning, match="dropout is live"):
        lens.run_with_cache(tokens())
