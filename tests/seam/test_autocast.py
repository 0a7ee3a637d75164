"""`torch.autocast`, under which queries, keys and values of one call come in two dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.interventions import available
from interp.patching import logit_difference
from tests.models import shared, tokenizer, tokens

TEXT, MORE = tokens(2, 40), tokens(2, 8, 3)
PROMPT = " ".join(f"w{i}" for i in range(4, 60))
HALVES = [torch.bfloat16, torch.float16]
SETTINGS: dict[str, dict[str, Any]] = {
    "think": {"ratio": 0.5, "window": 8, "recent": 8},
    "snapkv": {"budget": 16, "window": 8},
    "pyramidkv": {"budget": 16, "window": 4},
    "h2o_window": {"budget": 16, "window": 8},
    "d2o": {"budget": 0.4, "skip": ()},
    "knock_out": {"keys": 0},
    "temperature": {"temperature": 2.0},
    "attention_bias": {"bias": -1.0},
    "recall": {"budget": 0.5},
}


def made(name: str) -> Any:
    kind = available()[name]
    try:
        return kind(**SETTINGS.get(name, {}))
    except (TypeError, interp.InterpError):
        return kind(budget=16)


@pytest.fixture(params=HALVES, ids=["bfloat16", "float16"])
def half(request: Any) -> torch.autocast:
    return torch.autocast("cpu", dtype=request.param)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2", "gpt_oss"])
def test_delegation_is_the_models_own_bit_for_bit(half: torch.autocast, name: str) -> None:
    lens = interp.load(shared(name))
    points = [n for n in lens.hook_dict if n.endswith(("hook_z", "hook_v", "rot_k", "hook_resid_post"))]
    with half, torch.no_grad():
        plain = lens.model(TEXT).logits
        for use_cache in (False, True):
            hooked = lens.run_with_hooks(
                TEXT, use_cache=use_cache, fwd_hooks=[(n, lambda value, hook: None) for n in points]
            )
            assert torch.equal(hooked, plain)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_patterns_and_observables_are_near_those_in_full_precision(half: torch.autocast, name: str) -> None:
    lens = interp.load(shared(name))
    for point in ("pattern", "column_mass", "lse", "row_entropy", "key_energy"):
        names = [f"blocks.{layer}.attn.hook_{point}" for layer in range(1)]
        with torch.no_grad():
            wanted = lens.run_with_cache(TEXT, names_filter=names)[1]
            with half:
                found = lens.run_with_cache(TEXT, names_filter=names)[1]
        for each in names:
            torch.testing.assert_close(found[each].float(), wanted[each], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("intervention", sorted(available()))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_interventions_do_what_they_do_in_full_precision(half: torch.autocast, name: str, intervention: str) -> None:
    lens = interp.load(shared(name))
    try:
        given = made(intervention)
        with lens.apply(given):
            wanted = lens.score(TEXT, MORE, chunk=1)
    except interp.InterpError as refusal:
        pytest.skip(str(refusal))
    with half, lens.apply(given):
        found = lens.score(TEXT, MORE, chunk=1)
        out = lens.generate(TEXT, max_new_tokens=4, min_new_tokens=4)
    assert out.shape == (2, 44)
    # choices between near equals may fall otherwise, so most tokens have nearly the loss that they had
    assert float((found - wanted).abs().median()) < 0.25


def test_what_is_stored_has_one_dtype(half: torch.autocast) -> None:
    lens = interp.load(shared("llama"))
    with half, lens.apply(interp.SnapKV(budget=16, window=8)):
        lens.generate(TEXT, max_new_tokens=4)
    kinds = {part: tensor.dtype for _, part, tensor in lens.last_cache.parts() if part in ("keys", "values")}
    assert set(kinds.values()) == {half.fast_dtype}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_every_probe_reads(half: torch.autocast, name: str) -> None:
    lens = interp.load(shared(name), tokenizer())
    asked = ["attention_rank", "channel_imbalance", "logit_lens", "text_sinks"]
    wanted = interp.probe(lens, PROMPT, asked)
    with half:
        found = interp.probe(lens, PROMPT, asked)
    for probe in asked:
        for variable, values in wanted[probe].data_vars.items():
            if values.dtype.kind != "f" or "seconds" in str(variable):
                continue
            here, there = found[probe][variable].values, values.values
            assert (np.isnan(here) == np.isnan(there)).all(), variable
            scale = float(np.nanmax(np.abs(there), initial=0)) + 1e-6
            assert float(np.nanmedian(np.abs(here - there))) <= 0.1 * scale, variable


def test_patching_and_explaining(half: torch.autocast) -> None:
    lens = interp.load(shared("llama"), tokenizer())
    other = TEXT.clone()
    other[:, 5] = 7
    with half:
        back = interp.patch(lens, TEXT, other, "attn.hook_z", logit_difference(8, 9), together=True)
        assert np.isfinite(back.recovered.values).all()
        for policy in (interp.ThinK(ratio=0.5, window=8, recent=8), interp.H2O(budget=0.5), interp.Recall(budget=0.5)):
            why = interp.explain(lens, policy, PROMPT, "w9 w8 w7 w6 w5")
            assert why
        both = interp.side_by_side(lens, PROMPT, interp.StreamingLLM(budget=0.5), max_new_tokens=4)
    assert np.isfinite(both.logprob.values).any()


def test_double_precision_stays(half: torch.autocast) -> None:
    from tests.models import tiny

    lens = interp.load(tiny("llama").double())
    with lens.apply(interp.KnockOut(keys=0)), torch.no_grad():
        wanted = lens(TEXT)
        with half:
            assert lens(TEXT).shape == wanted.shape


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2"])
def test_a_lens_made_under_autocast_knows_what_it_would_know(half: torch.autocast, name: str) -> None:
    from tests.models import tiny

    model = tiny(name)
    wanted = interp.load(model)
    with half:
        found = interp.load(model)
    assert found.cfg == wanted.cfg
    assert list(found.hook_dict) == list(wanted.hook_dict)
    assert found.absent == wanted.absent


def test_autocast_inside_the_models_own_forward_pass(half: torch.autocast) -> None:
    """As accelerate prepares a model: bfloat16 within, float32 logits."""
    from tests.models import tiny

    model, lens = tiny("llama"), interp.load(tiny("llama"))
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with half:
            out = plain(*args, **kwargs)
        out.logits = out.logits.float()
        return out

    model.forward = forward
    prepared = interp.load(model)
    for policy in (interp.H2O(budget=16), interp.SnapKV(budget=16, window=8), interp.KnockOut(keys=0)):
        with lens.apply(policy):
            wanted = lens.score(TEXT, MORE, chunk=1)
        with prepared.apply(policy):
            found = prepared.score(TEXT, MORE, chunk=1)
        assert float((found - wanted).abs().median()) < 0.25
    with torch.no_grad():
        _, cache = prepared.run_with_cache(TEXT, names_filter="ln_final.hook_normalized")
        assert prepared.unembed(cache["ln_final.hook_normalized"].float()).isfinite().all()
