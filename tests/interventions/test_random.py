"""Random eviction: a seed is a choice, and another seed another one."""

from __future__ import annotations

import torch

import interp
from interp import RandomTokens
from tests.models import shared, tokens


@torch.no_grad()
def test_the_seed_decides() -> None:
    lens, kept = interp.load(shared("llama")), []
    for seed in (0, 1, 0):
        with lens.apply(RandomTokens(budget=12, seed=seed)):
            lens(tokens(length=40), use_cache=True)
        kept.append([stored.segments[0].at().clone() for stored in lens.last_cache.stored.values()])
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))
