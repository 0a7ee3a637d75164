"""KnockOut against the pattern edited by hand: every architecture, every phase, and what stays as it was."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import KnockOut
from tests.interventions.edited_by_hand import by_hand, check_observables, in_pieces, knocked_out
from tests.interventions.live_cache import close, left_padded
from tests.models import NAMES, SHAPE, shared, tiny, tokens

PIECES = (7, 4, 1, 1, 1)
PADDING = 5
LOOK = [(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]
EXAMPLES = [
    KnockOut(),
    KnockOut(keys=(0, 3, 11), queries=(2, 5, 8, 11), strength=0.75, renormalise=False),
    KnockOut(keys="images", queries="text", strength=0.5),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def padded(length: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    return left_padded(length, PADDING)


@pytest.mark.parametrize("name", NAMES)
def test_prefill_chunks_and_decoding_are_the_pattern_edited_by_hand(name: str) -> None:
    """In a batch with left padding, where each text counts its own positions."""
    lens, (ids, mask) = interp.load(shared(name)), padded()
    asked: dict[str, Any] = {"keys": [0, 3], "layers": [0, 2], "heads": [1, 6], "strength": 0.75}
    wanted = by_hand(lens, ids, knocked_out(**asked, padding=(0, PADDING)), attention_mask=mask)
    real = mask.bool()
    with lens.apply(KnockOut(**asked)):
        whole = lens(ids, attention_mask=mask)
        pieces = in_pieces(lens, ids, PIECES, mask)
        watched = lens.run_with_hooks(ids, attention_mask=mask, fwd_hooks=LOOK)
    for found in (whole, pieces, watched):
        close(found[real], wanted[real], 1e-4)
    assert (lens(ids, attention_mask=mask) - wanted)[real].abs().max() > 0.01


SETTINGS = st.fixed_dictionaries(
    {
        "keys": st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
        "layers": st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
        "heads": st.none() | st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True),
        "queries": st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
        "strength": st.sampled_from([0.25, 0.9, 1.0]),
        "renormalise": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None)
@given(asked=SETTINGS, name=st.sampled_from(["llama", "gpt_oss", "gemma2"]), cut=st.integers(1, 9))
def test_any_settings(asked: dict[str, Any], name: str, cut: int) -> None:
    lens, ids = interp.load(shared(name)), tokens(length=10)
    wanted = by_hand(lens, ids, knocked_out(**asked))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # rows before the keys, or beyond a window, have nothing to lose
        with lens.apply(KnockOut(**asked)):
            close(in_pieces(lens, ids, (cut, 10 - cut)), wanted, 1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}, {"use_cache": False}], ids=str)
def test_generation_is_that_of_the_edited_model(name: str, how: dict[str, Any]) -> None:
    """Every new token is the best one by hand; beams are compared with beams over the whole text at every step."""
    lens, (ids, mask) = interp.load(shared(name)), padded(10)
    asked = {"max_new_tokens": 5, "eos_token_id": None, "attention_mask": mask}
    with lens.apply(KnockOut(keys=[1, 2], heads=[0, 5])):
        out = lens.generate(ids, **asked, **how)
        if "num_beams" in how:
            assert torch.equal(out, lens.generate(ids, **asked, **how, use_cache=False))
            return
    seen = torch.cat([mask, torch.ones(2, 5, dtype=mask.dtype)], 1)
    edit = knocked_out([1, 2], heads=[0, 5], padding=(0, PADDING))
    logits = by_hand(lens, out, edit, attention_mask=seen)
    assert torch.equal(logits[:, -6:-1].argmax(-1), out[:, -5:])


def test_score_and_assisted_generation() -> None:
    lens, ids = interp.load(shared("llama")), tokens(1, 20)
    logits = by_hand(lens, ids, knocked_out([2]))
    wanted = torch.nn.functional.cross_entropy(logits[0, 11:19], ids[0, 12:], reduction="none")
    with lens.apply(KnockOut(keys=2)):
        for chunk in (1, 3, 256):
            close(lens.score(ids[:, :12], ids[:, 12:], chunk=chunk)[0], wanted, 1e-4)
        greedy = lens.generate(ids, max_new_tokens=12, eos_token_id=None)
        guessed = lens.generate(ids, max_new_tokens=12, eos_token_id=None, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, guessed)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma2", "gpt2"])
def test_hooks_see_the_edited_attention(name: str) -> None:
    """The pattern, z with and without a hook on the pattern, and every observable, from one row of numbers each."""
    lens, (ids, mask) = interp.load(shared(name)), padded()
    real = mask.bool()
    edit = knocked_out([0, 4], heads=[1, 2], strength=0.5, padding=(0, PADDING))
    _, plain = lens.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: n.endswith("0.attn.hook_pattern"))
    wanted = edit(0, plain["pattern", 0]).masked_fill(~real[:, None, :, None], 0.0)
    seen = ("pattern", "z", "event", "column_mass", "row_entropy", "lse", "cached_v")
    names = [f"blocks.0.attn.hook_{name}" for name in seen]
    with lens.apply(KnockOut(keys=[0, 4], heads=[1, 2], strength=0.5)):
        _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=names)
        _, fused = lens.run_with_cache(ids, attention_mask=mask, names_filter=names[1:])
    close(cache["pattern", 0][real[:, None].expand(-1, 8, -1)], wanted[real[:, None].expand(-1, 8, -1)])
    close(fused["z", 0][real], cache["z", 0][real])
    check_observables(fused, 0, wanted, real)


def test_probes_read_the_edited_model() -> None:
    lens, ids = interp.load(shared("llama")), tokens(1, 16)
    with lens.apply(KnockOut(keys=0)):
        found = interp.probe(lens, ids, ["text_sinks"])["text_sinks"]
    assert float(found["column_mass"][..., 0].max()) == 0
    totals = found["column_mass"].isel(layer=0).sum("token").values.ravel()
    assert totals == pytest.approx([15] * 8, rel=1e-5)  # the first row has nothing left
    assert float(interp.probe(lens, ids, ["text_sinks"])["text_sinks"]["column_mass"][..., 0].min()) > 0


def test_gradients_are_those_of_the_pattern_edited_by_hand() -> None:
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, num_key_value_heads=2)).double().eval()
    lens, ids = interp.load(model), tokens(length=9)
    asked: dict[str, Any] = {"keys": [0, 2], "heads": [3], "strength": 0.6}

    def gradients(run: Any) -> list[torch.Tensor]:
        with torch.enable_grad():
            loss = run().square().mean()
            return list(torch.autograd.grad(loss, list(model.parameters())))

    wanted = gradients(lambda: by_hand(lens, ids, knocked_out(**asked)))
    with lens.apply(KnockOut(**asked)):
        found = gradients(lambda: lens(ids))
        watched = gradients(lambda: lens.run_with_hooks(ids, fwd_hooks=LOOK))
    for one, two, by in zip(found, watched, wanted, strict=True):
        torch.testing.assert_close(one, by, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(two, by, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_oss"])
def test_what_is_not_edited_keeps_every_bit(name: str) -> None:
    lens, ids = interp.load(shared(name)), tokens()
    z = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    logits, plain = lens.run_with_cache(ids, names_filter=z)
    with lens.apply(KnockOut(keys=0, strength=0.0)):
        assert torch.equal(lens(ids), logits)
        assert torch.equal(lens.run_with_hooks(ids, fwd_hooks=[(z[0], lambda value, hook: None)]), logits)
    with lens.apply(KnockOut(keys=2, layers=1, heads=[3], queries=[5, 8])):
        _, found = lens.run_with_cache(ids, names_filter=z)
    assert torch.equal(found["z", 0], plain["z", 0])
    changed = (found["z", 1] != plain["z", 1]).any(-1)[0]  # row, head
    visible = [5] if name in ("gemma3", "gpt_oss") and lens.cfg.attn_types[1] == "local" else [5, 8]
    assert changed.nonzero().tolist() == [[row, 3] for row in visible]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_oss"])
def test_afterwards_the_model_is_as_before(name: str) -> None:
    model, ids = tiny(name), tokens()
    lens, before, attention = interp.load(model), model(ids).logits, model.config._attn_implementation
    own = lens.generate(ids, max_new_tokens=4)
    with pytest.raises(KeyError), lens.apply(KnockOut()):
        {}[lens.generate(ids, max_new_tokens=4)]
    cache = lens.last_cache
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(lens(ids), before)
    assert torch.equal(lens.generate(ids, max_new_tokens=4), own)
    assert type(lens.last_cache) is not type(cache)
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_half_precision_is_edited_in_fp32() -> None:
    model = tiny("llama").to(torch.bfloat16)
    lens, ids = interp.load(model), tokens()
    with lens.apply(KnockOut(keys=0, layers=0)):
        logits, found = lens.run_with_cache(ids, names_filter="blocks.0.attn.hook_z")
    _, kept = lens.run_with_cache(
        ids, names_filter=["blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k", "blocks.0.attn.hook_v"]
    )
    q, k, v = (x.float().transpose(1, 2).repeat_interleave(8 // x.shape[2], 1) for x in kept.values())
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~torch.ones(12, 12).tril().bool(), -torch.inf)
    scores[..., 0] = -torch.inf
    z = scores[:, :, 1:].softmax(-1) @ v
    assert logits.dtype == found["z", 0].dtype == torch.bfloat16
    torch.testing.assert_close(found["z", 0].transpose(1, 2)[:, :, 1:].float(), z, rtol=1e-2, atol=1e-2)
    assert bool((found["z", 0][:, 0] == 0).all())
