"""What `interp bench kernels` times of group_reweighted_attention."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..timing import PREFILL, Maker, Timed
from . import group_reweighted_attention

GROUPS = 4


def timed(make: Maker) -> Iterator[Timed]:
    (q, k, v), out = make.pairs(), make.d * make.column_bytes(4)
    for name, form, passes in (("one pass", "one_pass", 1), ("two passes", "two_pass", 2)):
        yield Timed(
            f"group reweighting, {name}", partial(_reweighted, q, k, v, form), PREFILL,
            (passes + 1) * make.products * make.d, (passes + 1) * make.key_bytes + passes * make.query_bytes + out,
        )  # fmt: skip


def _reweighted(q: Tensor, k: Tensor, v: Tensor, form: str, layer: int) -> Any:
    """Four groups of keys of which one gives half of its mass to the others, decided from the masses."""
    groups = torch.arange(k.shape[2], device=k.device)[None] % GROUPS
    return group_reweighted_attention(q, k, v, groups, _give_half, form=form)


def _give_half(masses: Tensor) -> Tensor:
    return torch.cat([torch.full_like(masses[..., :1], 0.5), torch.ones_like(masses[..., 1:])], -1)
