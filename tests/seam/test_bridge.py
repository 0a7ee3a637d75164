"""A TransformerBridge behind the same interface agrees with the Lens on every point that both have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import interp
from interp.errors import InterpError, UnsupportedModelError
from interp.lens.loading import is_bridge
from tests.models import shared, tokens

NAMES = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_neox", "gpt2", "phi3", "olmo2", "gpt_oss", "granite",
         "cohere", "stablelm", "phi")  # fmt: skip


def bridged(name: str) -> Any:
    """A bridge over a deep copy: it changes its model for good."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = copy.deepcopy(shared(name))
    return build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def compare(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: list[str]) -> None:
    for name in names:
        a, b = one[name], other[name]
        real = (a > -1e30) & (b > -1e30)  # masked scores sit at the dtype's minimum, infinite rows of padding at -inf
        error = ((a - b).abs() / b.abs().clamp_min(1))[real]
        assert error.max() <= 1e-5, (name, float(error.max()))


def both_have(lens: Any, bridge: Any) -> list[str]:
    return [n for n in lens.hook_dict if n in bridge.hook_dict and not n.endswith("hook_event")]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_shared_point_agrees(name: str) -> None:
    lens, bridge = interp.load(shared(name)), interp.load(bridged(name))
    names = both_have(lens, bridge)
    assert len(names) >= 20
    if name not in ("gpt_neox", "phi3", "gpt_oss", "phi"):
        assert any(n.endswith("column_mass") for n in names)
    _, ours = lens.run_with_cache(tokens(), names_filter=names)
    _, theirs = bridge.run_with_cache(tokens(), names_filter=names)
    compare(ours, theirs, names)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_padding_agrees(name: str) -> None:
    lens, bridge = interp.load(shared(name)), interp.load(bridged(name))
    ids, mask = tokens(), torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    names = [n for n in both_have(lens, bridge) if n.endswith(("column_mass", "row_entropy"))]
    _, ours = lens.run_with_cache(ids, attention_mask=mask, names_filter=names)
    _, theirs = bridge.run_with_cache(ids, attention_mask=mask, names_filter=names)
    compare(ours, theirs, names)


@torch.no_grad()
def test_reading_out_agrees() -> None:
    for name in ("llama", "gemma2", "gpt2", "olmo2", "granite"):
        lens, bridge = interp.load(shared(name)), interp.load(bridged(name))
        _, cache = lens.run_with_cache(tokens(batch=1))
        resid, z = cache["resid_post", -1], cache["z", 1]
        torch.testing.assert_close(bridge.unembed(bridge.ln_final(resid)), lens.unembed(lens.ln_final(resid)))
        torch.testing.assert_close(bridge.head_contributions(1, z), lens.head_contributions(1, z), rtol=1e-4, atol=1e-4)


def test_what_a_bridge_lacks_is_refused_by_name() -> None:
    with pytest.raises(interp.UnknownNameError, match="never fires"):
        interp.load(bridged("phi3")).run_with_cache(tokens(), names_filter="blocks.0.attn.hook_rot_q")
    with pytest.raises(interp.UnknownNameError, match="never fires"):
        interp.load(bridged("phi3")).run_with_cache(tokens(), names_filter="blocks.0.attn.hook_column_mass")
    with pytest.raises(interp.UnknownNameError, match="QK-norm"):
        interp.load(bridged("qwen3")).run_with_cache(tokens(), names_filter="blocks.0.attn.hook_pre_rot_k")
    with pytest.raises(interp.UnknownNameError, match="learned sinks"):
        interp.load(bridged("gpt_oss")).run_with_cache(tokens(), names_filter="blocks.0.attn.hook_lse")
    bridge = interp.load(bridged("llama"))
    with (
        bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_lse", lambda x, hook: None)]),
        pytest.raises(interp.UnsupportedModelError, match="not in generate"),
    ):
        bridge.generate(tokens())


def test_interventions_are_refused() -> None:
    for intervention in (interp.ThinK(), interp.KnockOut()):
        with pytest.raises(UnsupportedModelError, match="out of reach of cache policies and attention edits"):
            interp.load(bridged("llama")).apply(intervention)
    with pytest.raises(InterpError, match="explain needs a Lens"):
        interp.explain(interp.load(bridged("llama")), interp.ThinK(), tokens(1, 40), tokens(1, 4))


def test_alibi_is_noticed() -> None:
    """Bloom adds a bias by distance, which a bridge does not show: observables are refused, not computed without it."""
    import transformers

    model = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=8))
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = interp.load(build_bridge_from_module(model.eval(), "BloomForCausalLM", hf_config=model.config))
    with pytest.raises(interp.UnknownNameError, match=r"ALiBi|never fires|hands attention"):
        bridge.run_with_cache(tokens(), names_filter="blocks.0.attn.hook_column_mass")


def test_telling_a_bridge_imports_nothing() -> None:
    import subprocess
    import sys

    code = "import sys, interp.lens.loading as l; l.is_bridge(object()); print('transformer_lens' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
    assert not is_bridge(shared("llama"))
