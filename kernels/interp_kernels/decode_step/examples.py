"""Calls of decode_step that every path should answer alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..operations import Draw, Example
from . import decode_step


def examples(draw: Draw, n: int) -> Iterator[Example]:
    keys, values, mass = draw(2, n, draw.size), draw(2, n, 5), draw.even(2, n)
    positions = torch.arange(n, device=draw.device).repeat(2, 2, 1)
    facts = {"softcap": 4.0, "sinks": draw.even(4)[0], "padding": torch.tensor([0, n // 4], device=draw.device)}
    arguments = (draw(4, 1, draw.size), keys, values, mass, positions)
    yield Example(decode_step, arguments, {"keep_oldest": 1, "keep_newest": 2, **facts})
