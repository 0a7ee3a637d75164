"""Attention as the prompt's last queries see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float

from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


def last_queries(event: AttentionEvent, window: int) -> tuple[Tensor, dict[str, Any]]:
    """The event's last `window` queries `[batch, head, window, d_head]` and the maths that goes with them."""
    first = max(0, event.q.shape[2] - window)
    maths = event.maths
    if maths.get("mask") is not None:
        maths["mask"] = maths["mask"][:, :, first:]
    else:
        offset = maths.get("offset")
        maths["offset"] = first + (event.k.shape[2] - event.q.shape[2] if offset is None else offset)
    if maths.get("query_mask") is not None:
        maths["query_mask"] = maths["query_mask"][:, first:]
    return event.q[:, :, first:], maths


def window_mass(event: AttentionEvent, window: int) -> Float[Tensor, "batch head key"]:
    """Attention that each key receives from the last `window` queries."""
    return _of_last_queries(event, window).column_mass


def window_read(event: AttentionEvent, window: int) -> Float[Tensor, "batch head query d_value"]:
    """What the last `window` queries read: z = A[window] V."""
    return _of_last_queries(event, window).apply(event.v)


def _of_last_queries(event: AttentionEvent, window: int) -> AttentionEvent:
    """The event as if its last `window` queries were all there are."""
    q, maths = last_queries(event, window)
    facts = {name: fact for name, fact in maths.items() if name not in ("scale", "softcap", "sinks")}
    return replace(event, q=q, facts=facts)
