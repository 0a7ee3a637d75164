"""What the seam asks of attention edits: the edits that act in one layer, during one Lens call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int

from interp.seam.call import AttentionCall
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


class Edits(Protocol):
    """Changes the attention of one layer, at its logits, at its pattern, or at both. `interp.interventions.edits` has
    what does."""

    def of(self, event: AttentionEvent, places: Int[Tensor, "batch stored key"] | None = None) -> AttentionEvent:
        """A layer's attention as the edits leave it.

        places: the column in the input of every key, where they are not simply the newest tokens so far.
        """

    def attend(
        self,
        call: AttentionCall,
        event: Callable[[AttentionCall], AttentionEvent],
        own: Float[Tensor, "batch query head d_value"],
        weights: Any,
    ) -> tuple[Tensor, Any]:
        """z and weights of a call for which the model itself computes `own` and `weights`, which may be None.

        event: makes of a call what the model itself attends to.
        """

    def attend_stored(self, event: AttentionEvent, mass: bool) -> tuple[Tensor, Tensor | None]:
        """z of attention over what a cache policy left, and if asked for the attention that each key receives."""

    def logits(
        self, call: AttentionCall, scores: Float[Tensor, "batch head query key"], mask: Tensor
    ) -> tuple[Float[Tensor, "batch head query key"], Tensor | None]:
        """Scores in the open, edited and then masked, and the logits of learned sinks: `[head]` or, where edits scale
        them, `[batch, head, query]`; None in models without any."""

    def pattern(
        self, call: AttentionCall, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head query key"]:
        """A pattern in the open, edited."""
