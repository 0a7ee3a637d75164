"""Events and contexts for probe tests: random ones with the structure of real attention, and hand-made ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from interp.probes import Context
from interp.seam.event import AttentionEvent


def random_event(
    tokens: int, *, layer: int = 0, heads: int = 4, kv_heads: int = 2, d_head: int = 16, seed: int = 0, **facts: Any
) -> AttentionEvent:
    """Unstructured queries, keys and values; `softcap`, `sinks`, `unrotate` go to the event, the rest are its facts."""
    draw = torch.Generator().manual_seed(seed)
    own = {name: facts.pop(name) for name in ("softcap", "sinks", "unrotate") if name in facts}
    q = torch.randn(1, heads, tokens, d_head, generator=draw)
    k, v = (torch.randn(1, kv_heads, tokens, d_head, generator=draw) for _ in range(2))
    return AttentionEvent(layer, q, k, v, d_head**-0.5, facts, **own)


def lifelike_event(tokens: int, layer: int = 0, heads: int = 4, seed: int = 0) -> AttentionEvent:
    """Heads as in real models: positions that attend nearby, a sink on the first token, and content of some low rank.

    How much of each a head has differs, so that the spectra run from nearly rank one to nearly full.
    """
    draw = torch.Generator().manual_seed(seed)
    d_head = 32
    turn = torch.arange(tokens)[:, None] * 0.5 ** torch.arange(8.0)
    where = torch.cat([turn.cos(), turn.sin()], -1)  # [token, 16]: near tokens have near vectors
    local, sink = torch.linspace(0.1, 2.0, heads), torch.linspace(9, 1, heads)
    match = torch.linspace(0.4, 0.9, heads)
    content_q, content_k = (
        match[:, None, None] * torch.randn(heads, tokens, d_head - 17, generator=draw) for _ in range(2)
    )
    one = torch.ones(heads, tokens, 1)
    first = torch.zeros(heads, tokens, 1)
    first[:, 0] = 1
    q = torch.cat([where * local[:, None, None], content_q, one * sink[:, None, None]], -1)
    k = torch.cat([where.expand(heads, -1, -1), content_k, first], -1)
    return AttentionEvent(layer, q[None], k[None], torch.randn(1, heads, tokens, d_head, generator=draw), 1.0, {})


def written_out(event: AttentionEvent) -> torch.Tensor:
    """The pattern `[head, query, key]` in fp64, from its definition (causal, window, softcap, learned sinks)."""
    q, k = event.q[0].double(), event.k[0].double()
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    scores = event.scale * q @ k.mT
    if event.softcap is not None:
        scores = event.softcap * torch.tanh(scores / event.softcap)
    distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
    visible = (distance >= 0) & (distance < (event.facts.get("window") or distance.shape[1]))
    scores = scores.masked_fill(~visible, -torch.inf)
    if event.sinks is not None:
        extra = event.sinks.double()[:, None, None].expand(-1, q.shape[1], 1)
        return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
    return scores.softmax(-1)


def context(tokens: int, layers: int = 1, text: list[str] | None = None, **lens: Any) -> Context:
    words = [f"w{i}" for i in range(tokens)] if text is None else text
    model = SimpleNamespace(absent={}, cfg=SimpleNamespace(n_layers=layers), **lens)
    return Context(model, torch.arange(tokens)[None], words)
