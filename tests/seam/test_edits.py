"""What a hook returns takes effect: on every editable point, in prefill and decoding, with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from tests.models import NAMES, PARALLEL, shared, tiny, tokens

ROTATED = {True: ("rot_q", "rot_k"), False: ("q", "k")}


def names_of(lens: interp.Lens) -> tuple[str, str]:
    return ROTATED[lens.cfg.positional_embedding_type == "rotary"]


def set_to(value: torch.Tensor) -> Any:
    return lambda given, hook: value.to(given.dtype).expand_as(given).clone()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_q_k_v_and_z(name: str) -> None:
    """Replace q, k and v of one layer by those of another input: z is that input's, and so is everything after z."""
    lens, one, other = interp.load(shared(name)), tokens(seed=1), tokens(seed=2)
    q, k = names_of(lens)
    _, theirs = lens.run_with_cache(other)
    swaps = [(f"blocks.1.attn.hook_{n}", set_to(theirs[f"blocks.1.attn.hook_{n}"])) for n in (q, k, "v")]
    with lens.hooks(fwd_hooks=swaps):
        _, mixed = lens.run_with_cache(one)
    torch.testing.assert_close(mixed["z", 1], theirs["z", 1])
    swap = [("blocks.1.attn.hook_z", set_to(theirs["blocks.1.attn.hook_z"]))]
    with lens.hooks(fwd_hooks=swap):
        _, moved = lens.run_with_cache(one)
    for after in {"hook_attn_out", "hook_mlp_out", "hook_resid_post"}:
        torch.testing.assert_close(moved[f"blocks.1.{after}"], mixed[f"blocks.1.{after}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_scores_and_pattern(name: str) -> None:
    """Flat scores make a flat pattern over visible keys; a pattern of ones at the first key makes z its value."""
    lens, ids = interp.load(shared(name)), tokens()
    flat = ("blocks.1.attn.hook_attn_scores", lambda s, hook: torch.where(s > -1e30, 0.0, s))
    with lens.hooks(fwd_hooks=[flat]):
        _, cache = lens.run_with_cache(ids, names_filter=lambda n: n.endswith("hook_pattern"))
    pattern = cache["pattern", 1]
    visible = pattern > 0
    for row in range(pattern.shape[2]):
        shares = pattern[0, 0, row][visible[0, 0, row]]
        torch.testing.assert_close(shares, shares[:1].expand_as(shares))

    def first_key(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(pattern.shape[:-1], dtype=torch.long), pattern.shape[-1]).to(
            pattern
        )

    with lens.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", first_key)]):
        _, cache = lens.run_with_cache(ids)
    value = cache["v", 1][:, :1].repeat_interleave(lens.cfg.n_heads // lens.cfg.n_key_value_heads, dim=2)
    torch.testing.assert_close(cache["z", 1], value.expand_as(cache["z", 1]))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_residual_stream_adds_up(name: str) -> None:
    """resid_pre + attn_out = resid_mid, + mlp_out = resid_post = the next resid_pre; parallel blocks skip resid_mid."""
    lens, ids = interp.load(shared(name)), tokens()
    _, cache = lens.run_with_cache(ids)
    for layer in range(lens.cfg.n_layers):
        middle = cache["resid_pre", layer] + cache["attn_out", layer]
        if name in PARALLEL:
            assert f"blocks.{layer}.hook_resid_mid" not in cache
        else:
            torch.testing.assert_close(cache["resid_mid", layer], middle)
        torch.testing.assert_close(cache["resid_post", layer], middle + cache["mlp_out", layer], rtol=1e-4, atol=1e-4)
        if layer:
            assert torch.equal(cache["resid_pre", layer], cache["resid_post", layer - 1])
    assert torch.equal(lens.ln_final(cache["resid_post", -1]), cache["ln_final.hook_normalized"])
    torch.testing.assert_close(lens.unembed(cache["ln_final.hook_normalized"]), lens(ids))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_residual_edits_move_the_residual(name: str) -> None:
    """Adding δ at resid_pre, at attn_out or at resid_mid moves what follows; resid_mid and attn_out agree."""
    lens, ids = interp.load(shared(name)), tokens()
    delta = torch.randn(lens.cfg.d_model, generator=torch.Generator().manual_seed(0))

    def logits(point: str, by: torch.Tensor) -> torch.Tensor:
        return lens.run_with_hooks(ids, fwd_hooks=[(point, lambda x, hook: x + by)])

    plain = lens(ids)
    by_attention = logits("blocks.1.hook_attn_out", delta)
    assert not torch.allclose(by_attention, plain, atol=1e-3)
    if name not in PARALLEL:
        torch.testing.assert_close(logits("blocks.1.hook_resid_mid", delta), by_attention, rtol=1e-3, atol=1e-3)
    post, pre = logits("blocks.0.hook_resid_post", delta), logits("blocks.1.hook_resid_pre", delta)
    torch.testing.assert_close(post, pre)
    last = logits(f"blocks.{lens.cfg.n_layers - 1}.hook_mlp_out", delta)
    torch.testing.assert_close(
        last, logits(f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post", delta), rtol=1e-3, atol=1e-3
    )
    assert not torch.allclose(logits("hook_embed", delta), plain, atol=1e-3)
    assert not torch.allclose(logits("ln_final.hook_normalized", delta), plain, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_changes_in_place_count(name: str) -> None:
    """TransformerLens' users write `x[:] = 0; return x` as often as `return x * 0`: both take effect everywhere."""
    lens, ids = interp.load(shared(name)), tokens()

    def in_place(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x[:, -3:] = 0.25
        return x

    def returned(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x = x.clone()
        x[:, -3:] = 0.25
        return x

    plain = lens(ids)
    for point in [n for n, p in lens.point_table.items() if p.mode == "edit" and not n.startswith("blocks.0")]:
        one = lens.run_with_hooks(ids, fwd_hooks=[(point, in_place)])
        other = lens.run_with_hooks(ids, fwd_hooks=[(point, returned)])
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(one, plain, atol=1e-3), point


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2"])
def test_a_value_that_a_hook_keeps_has_a_gradient(name: str) -> None:
    """The gradient of the loss at the value that a hook saw, against a difference along it."""
    lens, ids = interp.load(tiny(name)), tokens(length=6)
    for short in ("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"):
        kept: list[torch.Tensor] = []

        def keep(x: torch.Tensor, hook: Any, kept: list[torch.Tensor] = kept) -> None:
            x.retain_grad()
            kept.append(x)

        point = f"blocks.1.{short}"
        lens.run_with_hooks(ids, return_type="loss", fwd_hooks=[(point, keep)]).backward()
        gradient = kept[0].grad
        assert gradient is not None
        step = 1e-2 * gradient / gradient.norm()
        with torch.no_grad():
            up, down = (
                lens.run_with_hooks(ids, return_type="loss", fwd_hooks=[(point, lambda x, hook, by=s * step: x + by)])
                for s in (1, -1)
            )
        torch.testing.assert_close((up - down) / 2e-2, gradient.norm(), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_edit_is_what_the_cache_stores(name: str) -> None:
    """Keys and values edited in prefill are attended to in decoding, without any hook then."""
    lens, ids = interp.load(shared(name)), tokens(length=6)
    _, k = names_of(lens)
    edits = [(f"blocks.1.attn.hook_{n}", lambda x, hook: x * 0.5 + 1) for n in (k, "v")]
    full = lens.run_with_hooks(
        ids, fwd_hooks=[(n, lambda x, hook: torch.cat([x[:, :5] * 0.5 + 1, x[:, 5:]], 1)) for n, _ in edits]
    )
    with lens.hooks(fwd_hooks=edits):
        lens(ids[:, :5], use_cache=True)
    decoded = lens(ids[:, 5:], use_cache=True, past_key_values=lens.last_cache)
    torch.testing.assert_close(decoded[:, -1], full[:, -1], rtol=1e-4, atol=1e-4)
    plain = lens(ids)
    assert not torch.allclose(decoded[:, -1], plain[:, -1], atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_edits_in_every_step_of_generation(name: str) -> None:
    """A head knocked out during generate is knocked out at each step: same tokens as without a cache."""
    lens, ids = interp.load(shared(name)), tokens(length=5)

    def knock_out(z: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, 1:]], 2)

    how = {"max_new_tokens": 5, "eos_token_id": None}
    with lens.hooks(fwd_hooks=[(lambda n: n.endswith("hook_z"), knock_out)]):
        assert torch.equal(lens.generate(ids, **how), lens.generate(ids, use_cache=False, **how))


@pytest.mark.parametrize("point", ["rot_q", "rot_k", "v", "attn_scores", "pattern", "z"])
def test_gradients_flow_through_hooks(point: str) -> None:
    """The derivative of the loss by a hook's own parameter against a central difference, in fp64.

    StableLM: grouped-query, partly rotated, and its LayerNorm stays in fp64 where Llama's RMSNorm rounds to fp32.
    """
    lens, ids = interp.load(tiny("stablelm").double()), tokens(length=6)

    def loss(strength: torch.Tensor) -> torch.Tensor:
        name = f"blocks.1.attn.hook_{point}"
        return lens.run_with_hooks(
            ids, return_type="loss", fwd_hooks=[(name, lambda x, hook: torch.where(x > -1e30, x * strength, x))]
        )

    strength = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(strength), strength)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(strength + step) - loss(strength - step)) / (2 * step)
    assert abs(float(slope)) > 1e-6
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-8)


def test_backward_hooks_and_gradient_cache() -> None:
    lens, ids = interp.load(tiny("llama")), tokens(length=6)
    _, cache = lens.run_with_cache(
        ids, return_type="loss", incl_bwd=True, names_filter=["blocks.1.attn.hook_pattern", "blocks.0.hook_resid_post"]
    )
    for name in ("blocks.1.attn.hook_pattern", "blocks.0.hook_resid_post"):
        assert cache[f"{name}_grad"].shape == cache[name].shape
        assert cache[f"{name}_grad"].abs().sum() > 0
