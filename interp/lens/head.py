"""From the last block's output to logits: the final norm, and what follows it, found in one run on two tokens.

What follows is the unembedding alone in most models; RoBERTa and ModernBERT's decoder put a layer, an activation and a
norm before it, MiniCPM scales the stream. Each module is known by what it reads: what the one before it put out, times
a constant. The whole way is run once more and has to end at the model's logits, or it counts as unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from interp.lens.writers import ModuleCall

Tensor = torch.Tensor
Step = Callable[[Tensor], Tensor]
# How far logits may be from a map of the unembedding's output that is the right one, relative.
FIT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def find_head(
    model: Any, after: list[ModuleCall], resid_post: Tensor, logits: Tensor
) -> tuple[nn.Module | None, Step | None]:
    """The final norm, and the map from what it puts out to logits; None where there is none or it is unknown.

    after: the modules that finished after the last block, in that order.
    """
    way = _way(model, after, resid_post)
    norm = _norm_of(way)
    modules = way[1:] if norm is not None else way
    if not modules or modules[-1][2].shape != logits.shape:
        return norm, None
    config = model.config.get_text_config(decoder=True)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    last = logit_map(modules[-1][2], logits, cap)
    if last is None:
        return norm, None
    steps = [(module, factor) for module, factor, _ in modules]

    def unembed(normalized: Tensor) -> Tensor:
        for module, factor in steps:
            normalized = module(normalized if factor == 1.0 else normalized * factor)
        return last(normalized)

    start = resid_post if norm is None else norm(resid_post)
    fit = max(FIT[x.dtype] for x in (logits, *(out for _, _, out in way)))  # the model may autocast in its own pass
    return norm, unembed if torch.allclose(unembed(start), logits, rtol=fit, atol=fit / 10) else None


def final_norm(model: Any, after: list[ModuleCall], resid_post: Tensor) -> nn.Module | None:
    """The norm that reads the last block's output, of a stack that ends in no logits; None where there is none."""
    return _norm_of(_way(model, after, resid_post))


def _norm_of(way: list[tuple[nn.Module, float, Tensor]]) -> nn.Module | None:
    return way[0][0] if way and way[0][1] == 1.0 and _is_norm(way[0][0]) else None


def _way(model: Any, after: list[ModuleCall], resid_post: Tensor) -> list[tuple[nn.Module, float, Tensor]]:
    """Modules that lead on from the last block's output, outermost first choice: (module, factor, what it puts out)."""
    way: list[tuple[nn.Module, float, Tensor]] = []
    reads, rest = resid_post, after
    while True:
        found = next(
            (
                (at, factor)
                for same in (True, False)
                for at in reversed(range(len(rest)))
                if rest[at].out is not None and (factor := _factor(reads, rest[at].given, same)) is not None
            ),
            None,
        )
        if found is None:
            return way
        call = rest[found[0]]
        assert call.out is not None
        way.append((model.get_submodule(call.name), found[1], call.out))
        reads, rest = call.out, rest[found[0] + 1 :]


def _factor(x: Tensor, y: Tensor | None, same: bool) -> float | None:
    """c with y = c·x, or None; only 1 where they should be the `same`."""
    if y is None or y.shape != x.shape:
        return None
    if same:
        return 1.0 if torch.equal(x, y) else None
    size = float(x.float().square().sum())
    factor = float((x.float() * y.float()).sum()) / size if size else 0.0
    close = factor != 0 and torch.allclose(x * factor, y, rtol=4 * torch.finfo(x.dtype).eps, atol=0)
    return factor if close else None


def _is_norm(module: nn.Module) -> bool:
    """A norm has no matrix; whether it is linear but for its scale is asked where that is used."""
    return all(parameter.ndim < 2 for parameter in module.parameters())


def logit_map(raw: Tensor, logits: Tensor, softcap: float | None) -> Step | None:
    """How the unembedding's output becomes logits: unchanged, times a constant (Cohere, Granite), or softcapped (Gemma
    2), perhaps after a constant (Muse); some columns may be ruled out for good (Chameleon's image tokens)."""
    fit, raw = max(FIT[raw.dtype], FIT[logits.dtype]), raw.to(logits.dtype)  # autocast in the model's own forward pass
    lowest = torch.finfo(logits.dtype).min
    ruled_out = (logits <= lowest).flatten(0, -2).all(0)
    x, y = raw[..., ~ruled_out], logits[..., ~ruled_out]
    factor = _fit(x, y)
    candidates: list[Step] = [lambda x: x, lambda x: x * factor]
    if softcap is not None:
        before = _fit_before_cap(x.double(), y.double(), softcap)
        candidates += [partial(_capped, factor=c, cap=softcap) for c in (1.0, before)]
    # small logits hardly meet a cap, so that several maps may fit: the nearest is meant, of equals the first
    nearest = min(candidates, key=lambda candidate: float((candidate(x) - y).abs().max()))
    if not torch.allclose(nearest(x), y, rtol=fit, atol=1e-6):
        return None
    return _without(nearest, ruled_out, lowest) if bool(ruled_out.any()) else nearest


def _fit_before_cap(x: Tensor, y: Tensor, cap: float) -> float:
    """c with y = cap * tanh(c * x / cap), as nearly as it can be: from where the tangent is nearly straight, and then
    by Gauss and Newton over all."""
    small = y.abs() < cap / 2
    factor = _fit(x[small], torch.atanh(y[small] / cap) * cap) if bool(small.any()) else 1.0
    for _ in range(4):
        tangent = torch.tanh(factor * x / cap)
        slope = x * (1 - tangent.square())
        factor += float(((y - cap * tangent) * slope).sum() / slope.square().sum())
    return factor


def _capped(x: Tensor, factor: float, cap: float) -> Tensor:
    return torch.tanh(x * factor / cap) * cap


def _without(step: Step, ruled_out: Tensor, lowest: float) -> Step:
    return lambda x: step(x).masked_fill(ruled_out.to(x.device), lowest)


def _fit(x: Tensor, y: Tensor) -> float:
    """c with y = c·x, as nearly as it can be."""
    return float((x * y).sum() / x.square().sum())


def gain(norm: nn.Module, epsilon: float, like: Tensor) -> Float[Tensor, " d_model"]:
    """What a LayerNorm or RMSNorm multiplies each channel of `like [..., d_model]` by, once that is scaled.

    Read off from what it does to one vector, so that Gemma's 1 + weight or a norm without weights needs no case.
    """
    x = torch.ones_like(like.reshape(-1, like.shape[-1])[0])
    x[::2] = -1
    x = x - x.mean()
    factor: Tensor = (norm(x) - norm(torch.zeros_like(x))) / x * (x.square().mean() + epsilon).sqrt()
    return factor
