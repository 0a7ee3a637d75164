"""Expected attention beside the modelling file's own rotation, drawn queries, and plain sums over heads and tokens."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import ThinK
from interp.errors import InterpError
from interp.explaining import explain
from interp.explaining.masks import Masks
from interp.interventions.base import Prompt
from interp.interventions.policies.expected_attention import ExpectedAttention
from tests.interventions.evicting import PROMPT, generated, padded, positions
from tests.interventions.evicting_by_hand import best
from tests.models import shared, tokens

Tensor = torch.Tensor
pytestmark = pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
REFUSES = {"gemma2": "caps its attention logits"}
ROTARY = ["llama", "phi", "gpt_neox", "gpt_oss", "smollm3"]


def events(lens: Any, ids: Tensor, mask: Tensor | None = None) -> dict[int, Any]:
    seen = {}
    hook = lambda event, hook: seen.__setitem__(event.layer, event)  # noqa: E731
    names = [(f"blocks.{i}.attn.hook_event", hook) for i in lens.cfg.full_attention_layers]
    with torch.no_grad():
        lens.run_with_hooks(ids, attention_mask=mask, return_type=None, fwd_hooks=names)
    return seen


def rotated(lens: Any, layer: int, x: Tensor, at: int) -> Tensor:
    """`x [head, d]` rotated to position `at` by the model itself."""
    names = dict(lens.model.named_modules())
    rotary = next(module for name, module in names.items() if name.endswith("rotary_emb"))
    attention = next(
        m for n, m in names.items() if n.endswith((f"layers.{layer}.self_attn", f"layers.{layer}.attention"))
    )
    cos, sin = rotary(x[None, None], torch.tensor([[at]]))
    width = cos.shape[-1] * (2 if type(attention).__name__.startswith("GptOss") else 1)
    turned, rest = x[..., :width], x[..., width:]
    rotate = vars(sys.modules[type(attention).__module__])["apply_rotary_pos_emb"]
    out, _ = rotate(turned[None, :, None], turned[None, :, None], cos, sin)
    return torch.cat([out[0, :, 0], rest], -1)


def scores_by_hand(lens: Any, event: Any, policy: ExpectedAttention, text: int, first: int) -> np.ndarray:
    """`[kv_head, token]` of one text's real tokens."""
    turns = event.unrotate is not None
    q, k, v = (x[text].double() for x in (event.q, event.k, event.v))
    pre = event.unrotate(event.q)[text].double() if turns else q
    some = pre[:, first + policy.sinks :]
    mean = some.mean(1)
    covariance = torch.stack([head.T @ head / len(head) for head in some - mean[:, None]])
    real = k.shape[1] - first
    if turns:
        steps = min(policy.future, real - 1)
        unit = torch.eye(q.shape[-1])
        turn = (
            torch.stack([rotated(lens, event.layer, unit, real - 1 + i) for i in range(1, steps + 1)]).double().mean(0)
        )
        mean, covariance = mean @ turn, turn.T @ covariance @ turn  # rows of `turn` are rotated unit vectors
    group, found = len(q) // len(k), []
    for h in range(len(k)):
        share = np.zeros(real)
        for g in range(h * group, (h + 1) * group):
            exponents = []
            for key in k[h, first:]:
                exponent = event.scale * float(mean[g] @ key)
                if policy.covariance:
                    exponent += event.scale**2 / 2 * float(key @ covariance[g] @ key)
                exponents.append(exponent)
            weights = np.exp(np.array(exponents) - max(exponents))
            share += weights / weights.sum() / group
        norms = v[h, first:].norm(dim=-1).numpy() if policy.value_norm else 1.0
        found.append(share * norms)
    return np.array(found)


@pytest.mark.parametrize("kind", [*ROTARY, "gpt2"])
@pytest.mark.parametrize(
    "changed", [{}, {"future": 7, "value_norm": False}, {"covariance": False, "sinks": 0, "future": 1}], ids=str
)
@pytest.mark.parametrize("pad", [0, 11])
def test_scores_by_hand(kind: str, changed: dict[str, Any], pad: int) -> None:
    lens, policy, (ids, mask) = (
        interp.load(shared(kind)),
        ExpectedAttention(budget=0.5, **changed),
        padded(PROMPT - pad),
    )
    for layer, event in events(lens, ids, mask).items():
        found = policy.scores(layer, event)
        for text, first in enumerate([0, pad]):
            wanted = scores_by_hand(lens, event, policy, text, first)
            np.testing.assert_allclose(found[text, :, first:], wanted, rtol=2e-3, atol=1e-5 * wanted.max())


def test_it_is_the_expectation_over_normal_queries() -> None:
    """Drawn queries, rotated nowhere: the mean of exp(s q·k) over 400,000 of them."""
    lens = interp.load(shared("gpt2"))
    event = events(lens, tokens(1, PROMPT))[1]
    q = event.q[0, 0, 4:].double()
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(torch.cov(q.T, correction=0) + 1e-9 * torch.eye(8, dtype=torch.float64))
    draws = torch.randn(400_000, 8, generator=generator, dtype=torch.float64) @ root.T + q.mean(0)
    k = event.k[0, 0].double()
    small = 0.3 / (event.scale * (q.norm(dim=-1).max() * k.norm(dim=-1).max()))  # so that the mean settles
    event.k, event.v = event.k * float(small), torch.ones_like(event.v)
    policy = ExpectedAttention(budget=0.5, value_norm=False)
    expected = (event.scale * float(small) * draws @ k.T).exp().mean(0)
    np.testing.assert_allclose(policy.scores(1, event)[0, 0], expected / expected.sum(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [0, 11])
def test_the_best_of_each_head_stay(kind: str, pad: int) -> None:
    lens, policy, (ids, mask) = interp.load(shared(kind)), ExpectedAttention(budget=16), padded(PROMPT - pad)
    _, kept = generated(lens, policy, ids, attention_mask=mask, max_new_tokens=1)
    for layer, event in events(lens, ids, mask).items():
        scores = policy.scores(layer, event)
        wanted = [[best(h.tolist(), 16, 4, 4, first) for h in scores[b]] for b, first in enumerate([0, pad])]
        assert positions(kept.stored[layer]).tolist() == wanted


@pytest.mark.parametrize("chunk", [1, 7, 39])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_a_prompt_in_chunks_is_the_prompt(kind: str, chunk: int) -> None:
    lens, ids, mask = interp.load(shared(kind)), *padded(29)
    held = []
    for more in ({}, {"prefill_chunk_size": chunk}):
        out, kept = generated(lens, ExpectedAttention(budget=14), ids, attention_mask=mask, **more)
        held.append((out, [positions(stored) for stored in kept.stored.values()]))
    assert torch.equal(held[0][0], held[1][0])
    assert all(torch.equal(a, b) for a, b in zip(held[0][1], held[1][1], strict=True))


def test_explain_asks_it_about_longer_prompts_too() -> None:
    lens = interp.load(shared("llama"))
    policy = ExpectedAttention(budget=20) | ThinK(ratio=0.5, window=8, recent=4)
    ds = explain(lens, policy, tokens(1, PROMPT), tokens(1, 9, seed=5), Masks(checkpoints=(3, 8)))["masks"]
    for n in (3, 8):
        longer = torch.cat([tokens(1, PROMPT), tokens(1, 9, seed=5)[:, :n]], 1)
        again = explain(lens, policy, longer, tokens(1, 4, seed=6), Masks())["masks"]
        both = (again["kept"] * ds["kept"]).sum("channel") / (again["kept"] | ds["kept"]).sum("channel")
        np.testing.assert_allclose(ds["drift"].sel(checkpoint=n), both)


def test_texts_of_few_tokens_and_of_sinks_alone() -> None:
    lens = interp.load(shared("llama"))
    for length in (1, 2, 4, 5):
        policy = ExpectedAttention(budget=4)
        for event in events(lens, tokens(2, length)).values():
            assert torch.isfinite(policy.scores(0, event)).all()
    _, kept = generated(lens, ExpectedAttention(budget=4, recent_share=0.0), tokens(2, 5), max_new_tokens=1)
    assert {stored.kept for stored in kept.stored.values()} == {4}


def test_what_it_cannot_do_is_refused() -> None:
    lens = interp.load(shared("gemma2"))
    prompt = Prompt(lens.cfg, (1,), PROMPT, lens.output_norms)
    with pytest.raises(InterpError, match="caps its attention logits"):
        ExpectedAttention().check(prompt)
    with pytest.raises(InterpError, match="future should be at least 1"):
        ExpectedAttention(future=0)
    assert ExpectedAttention().recent_tokens(40) == 10
