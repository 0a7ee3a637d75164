"""Lenses of tiny models of any type, for tests that leave them as they were."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

import interp
from benchmarks.coverage.build import build
from benchmarks.coverage.kinds import FAMILIES
from tests.models import RECENT, tokenizer

Tensor = torch.Tensor
OLDER = ("bamba", "deepseek_v3", "diffllama", "falcon_h1", "gemma2", "gemma4_text", "granitemoehybrid", "nemotron_h",
         "vision-encoder-decoder", "zamba", "zamba2")  # fmt: skip
"""Types that the lowest release supported builds or caches otherwise than recent ones do."""


@cache
def lens_of(kind: str, family: str = "causal") -> interp.Lens:
    """A Lens of the tiny model that `make coverage` measures; skips where transformers has no such type."""
    return interp.load(model_of(kind, family), tokenizer=tokenizer())


@cache
def model_of(kind: str, family: str = "causal") -> torch.nn.Module:
    if kind.partition("@")[0] not in FAMILIES[family][0] or (not RECENT and kind in OLDER):
        pytest.skip(f"this release of transformers has no {kind}, or another one")
    return build(family, kind)


def ids(length: int = 20, batch: int = 1, seed: int = 3) -> Tensor:
    return torch.randint(5, 90, (batch, length), generator=torch.Generator().manual_seed(seed))


def kept(lens: interp.Lens, *points: str) -> dict[str, Tensor]:
    """What the points of all layers saw."""
    return dict(lens.run_with_cache(ids(), names_filter=lambda name: name.endswith(points))[1].items())


@torch.no_grad()
def logits_with(lens: interp.Lens, name: str, edit: object) -> Tensor:
    return lens.run_with_hooks(ids(), fwd_hooks=[(name, edit)])


def by_hand(lens: interp.Lens, module: str, edit: Callable[[Tensor], Tensor], reads: bool = False) -> Tensor:
    """The bare model's logits with a module's output edited, or what it reads."""
    part = lens.model.get_submodule(module)
    if reads:
        handle = part.register_forward_pre_hook(lambda m, args: (edit(args[0]), *args[1:]))
    else:
        handle = part.register_forward_hook(lambda m, a, o: (edit(o[0]), *o[1:]) if isinstance(o, tuple) else edit(o))
    try:
        logits: Tensor = lens.model(ids(), use_cache=False).logits
    finally:
        handle.remove()
    assert not torch.equal(logits, lens.model(ids(), use_cache=False).logits)
    return logits
