"""What hooks see, change and differentiate while a compressed cache decodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import ThinK
from tests.interventions.live_cache import Newest, close, name_of, prefill
from tests.interventions.zero_fill import plain
from tests.models import shared, tokens

POLICY = ThinK(ratio=0.5, window=8, recent=6, sinks=2)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def look(seen: dict[str, torch.Tensor]) -> Any:
    def keep(value: torch.Tensor, hook: Any) -> None:
        seen[hook.name.split("hook_")[1]] = value.detach().clone()

    return keep


@pytest.mark.parametrize("policy", [POLICY, Newest(10), Newest(10) | ThinK(0.5, 8, 4)], ids=name_of)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("new", [1, 3])
def test_what_hooks_see_while_decoding_is_what_is_computed(name: str, policy: Any, new: int) -> None:
    """Rows of the pattern sum to 1, pattern and cached values make z, and looking changes no logit."""
    lens, ids, later = interp.load(shared(name)), tokens(length=30), tokens(length=new, seed=3)
    cache, watched = prefill(lens, policy, ids), prefill(lens, policy, ids)
    seen: dict[str, torch.Tensor] = {}
    points = [f"blocks.1.attn.hook_{n}" for n in ("pattern", "attn_scores", "z", "cached_k", "cached_v", "column_mass")]
    with lens.hooks(fwd_hooks=[(point, look(seen)) for point in points]):
        found = lens(later, past_key_values=watched, use_cache=True)
    close(found, lens(later, past_key_values=cache, use_cache=True))
    stored = watched.stored[1]
    pattern, kept = seen["pattern"], stored.kept
    assert pattern.shape == seen["attn_scores"].shape == (2, 8, new, kept)
    close(pattern.sum(-1), torch.ones(2, 8, new))
    assert torch.equal(pattern, seen["attn_scores"].softmax(-1))
    later_keys = torch.ones(new, new, dtype=torch.bool).triu(1)
    assert (pattern[..., -new:].masked_select(later_keys) == 0).all()
    assert torch.equal(seen["cached_k"].transpose(1, 2), stored.keys)
    values = seen["cached_v"].transpose(1, 2).repeat_interleave(8 // stored.keys.shape[1], 1)
    close(seen["z"], (pattern @ values).transpose(1, 2))
    close(seen["column_mass"], pattern.sum(2))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_edits_take_effect_while_decoding(name: str) -> None:
    """A pattern of ones on one stored token: z is its value, and what follows is changed."""
    lens, ids, new = interp.load(shared(name)), tokens(length=30), tokens(length=1, seed=3)
    cache, edited, noop = (prefill(lens, POLICY, ids) for _ in range(3))
    seen: dict[str, torch.Tensor] = {}

    def only_fourth(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([4]), 1.0)

    hooks = [("blocks.1.attn.hook_pattern", only_fourth), ("blocks.1.attn.hook_z", look(seen))]
    with lens.hooks(fwd_hooks=hooks):
        moved = lens(new, past_key_values=edited, use_cache=True)
    value = edited.stored[1].segments[0].values[:, None, :, 4].repeat_interleave(8 // edited.stored[1].keys.shape[1], 2)
    close(seen["z"], value)
    own = lens(new, past_key_values=cache, use_cache=True)
    assert (moved - own).abs().max() > 1e-3
    key = "blocks.1.attn.hook_rot_k" if name == "llama" else "blocks.1.attn.hook_k"
    with lens.hooks(fwd_hooks=[(key, lambda k, hook: k + 3)]):
        assert (lens(new, past_key_values=noop, use_cache=True) - own).abs().max() > 1e-4
    close(noop.stored[1].segments[-1].keys[:, :, -1], cache.stored[1].segments[-1].keys[:, :, -1] + 3)
    assert torch.equal(noop.stored[0].segments[-1].keys, cache.stored[0].segments[-1].keys)


@pytest.mark.parametrize("new", [1, 3])
def test_gradients_pass_through_a_compressed_cache(new: int) -> None:
    """Of the queries' weights, against the plain model over zero-filled keys."""
    model, ids, later = shared("llama"), tokens(length=30), tokens(length=new, seed=3)
    lens, wanted = interp.load(model), plain("llama", ids)
    wanted.prune([0, 1, 2], 4, 8, 6, 2)
    cache = prefill(lens, POLICY, ids)
    weight = model.model.layers[1].self_attn.q_proj.weight
    with torch.enable_grad():
        (own,) = torch.autograd.grad(wanted.step(later).square().sum(), weight)
        (found,) = torch.autograd.grad(
            lens(later, past_key_values=cache, use_cache=True).square().sum(), weight, allow_unused=True
        )
    assert own.abs().max() > 0
    assert found is not None
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4 * own.abs().max().item())
