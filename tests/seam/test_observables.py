"""Observables equal what the materialised pattern gives, under every mask a real model makes."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.models import NAMES, shared, tokens

OBSERVED = ("column_mass", "lse", "row_entropy", "key_energy", "query_energy")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-5 absolute below 1, relative above."""
    assert torch.isfinite(found).all()
    error = (found - expected).abs() / expected.abs().clamp_min(1)
    assert error.max() <= 1e-5, float(error.max())


def expected_of(cache: dict, layer: int, real: torch.Tensor, n_new: int) -> dict[str, torch.Tensor]:
    """From pattern and scores in the open, padded rows left out (`real [batch, key]`)."""
    rows = real[:, -n_new:]
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"].double() * rows[:, None, :, None]
    scores = cache[f"blocks.{layer}.attn.hook_attn_scores"].double()
    scores = scores.masked_fill(scores < -1e30, -torch.inf)
    names = [f"blocks.{layer}.attn.hook_{n}" for n in ("rot_q", "q")]
    q = next(cache[n] for n in names if n in cache).double()
    k = cache[f"blocks.{layer}.attn.hook_cached_k"].double()

    def energy(x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        weights = of[:, :, None, None].double()
        return (x.square() * weights).sum(1) / weights.sum(1)

    return {
        "column_mass": pattern.sum(2),
        "lse": scores.logsumexp(-1),
        "row_entropy": torch.special.entr(pattern).sum(-1),
        "key_energy": energy(k, real[:, -k.shape[1] :]),
        "query_energy": energy(q, rows),
    }


def check(lens: interp.Lens, ids: torch.Tensor, mask: torch.Tensor, **kwargs: object) -> None:
    wanted = [n for n in lens.hook_dict if "attn" in n and not n.endswith(("hook_event", "hook_z", "hook_v"))]
    _, cache = lens.run_with_cache(ids, names_filter=wanted, attention_mask=mask, **kwargs)
    n_new, real = ids.shape[1], mask.bool()
    rows = real[:, -n_new:, None].transpose(1, 2)
    for layer in range(lens.cfg.n_layers):
        for name, expected in expected_of(cache, layer, real, n_new).items():
            found = cache[name, layer].double()
            if name in ("lse", "row_entropy"):
                found, expected = found.where(rows, 0.0), expected.where(rows, 0.0)
            close(found, expected)


@pytest.mark.parametrize("length", [1, 7, 23])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prefill(name: str, length: int) -> None:
    ids = tokens(length=length)
    check(interp.load(shared(name)), ids, torch.ones_like(ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding(name: str, side: str) -> None:
    ids = tokens(length=17)
    mask = torch.ones_like(ids)
    mask[1, slice(0, 6) if side == "left" else slice(-6, None)] = 0
    check(interp.load(shared(name)), ids, mask)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cached_decoding(name: str) -> None:
    """A chunk of three tokens after a padded prefix that is longer than the sliding window."""
    lens, ids = interp.load(shared(name)), tokens(length=14)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    lens(ids[:, :11], attention_mask=mask[:, :11], use_cache=True)
    check(lens, ids[:, 11:], mask, use_cache=True, past_key_values=lens.last_cache)


@torch.no_grad()
def test_packed_sequences_take_the_dense_path() -> None:
    """Position ids that restart make transformers mask across sequences, which is no plain causal mask."""
    lens, ids = interp.load(shared("llama")), tokens(batch=1, length=10)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]])
    _, cache = lens.run_with_cache(
        ids, position_ids=positions, names_filter=lambda n: "pattern" in n or "column_mass" in n
    )
    pattern = cache["pattern", 1]
    assert (pattern[..., 6:, :6] == 0).all()
    close(cache["column_mass", 1], pattern.sum(2))


@torch.no_grad()
def test_a_mask_of_the_callers_own() -> None:
    lens, ids = interp.load(shared("llama")), tokens(batch=1, length=9)
    visible = torch.ones(9, 9).tril().bool() & (torch.rand(9, 9, generator=torch.Generator().manual_seed(3)) > 0.3)
    visible |= torch.eye(9).bool()
    bias = torch.zeros(1, 1, 9, 9).masked_fill(~visible, torch.finfo(torch.float32).min)
    for mask in (bias, visible[None, None]):
        wanted = [n for n in lens.hook_dict if n.endswith(("hook_pattern", "hook_column_mass", "hook_lse"))]
        _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=wanted)
        assert (cache["pattern", 0][0, :, ~visible] == 0).all()
        close(cache["column_mass", 0], cache["pattern", 0].sum(2))


@torch.no_grad()
def test_learned_sink_mass() -> None:
    """gpt-oss: what a row lacks to 1 is sigmoid(sink - lse)."""
    model = shared("gpt_oss")
    lens = interp.load(model)
    _, cache = lens.run_with_cache(tokens(), names_filter=lambda n: n.endswith(("hook_pattern", "hook_lse")))
    for layer, block in enumerate(lens.anatomy.blocks):
        sink = torch.sigmoid(block.attention.sinks[None, :, None] - cache["lse", layer])
        torch.testing.assert_close(1 - cache["pattern", layer].sum(-1), sink, rtol=1e-5, atol=1e-5)
