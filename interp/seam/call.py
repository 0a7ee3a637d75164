"""One call of a model's attention: what the model passes, and what the model itself would have computed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from interp.errors import UnsupportedModelError
from interp.seam.masks import AskedMask

Tensor = torch.Tensor


# Keyword arguments that say nothing about the attention maths, or that the maths below honours.
UNDERSTOOD = {
    "position_ids", "use_cache", "is_causal", "sliding_window", "softcap", "s_aux", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "cache_position", "position_embeddings",
    "token_type_ids", "num_items_in_batch", "dropout",
}  # fmt: skip


@cache
def _eager_of(modelling_file: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention function that a modelling file defines for its own models."""
    function: Callable[..., tuple[Tensor, Tensor]] | None = vars(sys.modules[modelling_file]).get(
        "eager_attention_forward"
    )
    if function is None:
        raise UnsupportedModelError(
            f"{modelling_file} defines no eager attention function to delegate to; load with sdpa."
        )
    return function


@dataclass(frozen=True)
class AttentionCall:
    """What a model passes to its attention: q `[batch, head, new, d_head]`, k and v `[batch, kv_head, key, d_head]`
    (after rotary embedding, cached keys included), a mask, the scale of the scores, and what else it may say."""

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Any
    scaling: float | None
    rest: Mapping[str, Any]
    places: Tensor | None = None
    """Column in the input of every key `[batch, stored head, key]`, where keys are not simply the newest tokens."""

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    def delegate(self, implementation: str) -> tuple[Tensor, Tensor | None]:
        """What the model would have called without us, with the mask that function expects."""
        mask = self.mask.for_delegate(implementation) if isinstance(self.mask, AskedMask) else self.mask
        eager = implementation == "eager"
        function = _eager_of(type(self.module).__module__) if eager else ALL_ATTENTION_FUNCTIONS[implementation]
        return function(self.module, self.q, self.k, self.v, mask, scaling=self.scaling, **self.rest)

    def maths(self) -> dict[str, Any]:
        """What `interp_kernels` has to know of the call beside its tensors; refuses what the kernels would ignore."""
        self.refuse_unknown()
        return {"scale": self.scale, "softcap": self.rest.get("softcap"), "sinks": self.rest.get("s_aux")}

    def refuse_unknown(self) -> None:
        """Refuse to compute attention ourselves where the model passes something that we would ignore."""
        unknown = sorted(name for name, value in self.rest.items() if value is not None and name not in UNDERSTOOD)
        if unknown:
            raise UnsupportedModelError(
                f"{type(self.module).__name__} passes {', '.join(unknown)} to its attention, which scores, pattern and "
                "observables would ignore; hook q, k, v or z of this model instead."
            )
