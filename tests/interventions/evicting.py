"""What tests of token eviction share: a prompt, a generation under a policy, and where the stored tokens stand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from interp.cache.stored_layer import StoredLayer
from tests.models import tokens

Tensor = torch.Tensor

PROMPT = 40
GENERATED: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None}


@contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def generated(lens: Any, policy: Any, ids: Tensor, *, ledger: bool = False, **how: Any) -> tuple[Any, Any]:
    """(what generate returned, the cache)."""
    with quietly(), lens.apply(policy, ledger=ledger):
        return lens.generate(ids, **GENERATED | how), lens.last_cache


def positions(stored: StoredLayer) -> Tensor:
    """Of all stored tokens `[batch, head, token]`, rising."""
    shape = stored.segments[0].keys.shape[:2]
    return torch.cat([segment.at().expand(*shape, -1) for segment in stored.segments], 2).sort(-1).values


def padded(short: int) -> tuple[Tensor, Tensor]:
    ids = tokens(2, PROMPT)
    mask = torch.ones_like(ids)
    mask[1, : PROMPT - short] = 0
    return ids.masked_fill(mask == 0, 2), mask
