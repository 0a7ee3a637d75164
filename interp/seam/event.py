"""One attention layer at the moment it attends: what every probe and intervention sees.

An `AttentionEvent` carries queries, keys and values as they enter the attention maths (after rotary embedding) and the
facts of the mask. What can be derived from them is computed on first use and remembered, so that three probes that ask
for the log-sum-exp pay for it once. Nothing but `pattern()` holds an array of size queries x keys.

Tensors use the layout of torch's SDPA: `[batch, head, position, d_head]`; keys and values have `kv_head` heads and
query head h reads key/value head `h // (heads // kv_heads)`.

Under attention edits q, k, v and the facts stay the model's own, and what is computed from them shows the edited
attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from typing import Any, TypeVar

import torch
from interp_kernels import (
    Attended,
    attention_apply,
    attention_gram_apply,
    attention_pattern,
    attention_transpose_apply,
    channel_energy,
)
from jaxtyping import Float

Tensor = torch.Tensor
E = TypeVar("E", bound="AttentionEvent")


@dataclass
class AttentionEvent:
    """Queries, keys, values and mask facts of one layer, with observables on demand.

    `facts` are the keyword arguments that `interp_kernels` understands (`causal`, `offset`, `window`, `key_mask`,
    `query_mask`, `mask`). `scale` multiplies the dot products, `softcap` bounds them (Gemma 2), `sinks` are learned
    logits of one extra softmax column that is dropped (gpt-oss): rows of the pattern then sum to less than 1.
    """

    layer: int
    q: Float[Tensor, "batch head query d_head"]
    k: Float[Tensor, "batch kv_head key d_head"]
    v: Float[Tensor, "batch kv_head key d_value"]
    scale: float
    facts: dict[str, Any] = field(default_factory=dict)
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    tied: int | None = None
    """How many of a key's first channels are its value: of latent attention as its cache stores it. None: values are
    their own."""
    expanded: Callable[[Tensor], Tensor] | None = None
    """Maps what heads read from tied values, `[batch, query, head, tied]`, to their outputs z; None: that is z."""
    unrotate: Callable[[Tensor], Tensor] | None = None
    """Maps the new keys back to what they were before rotation; None where the architecture makes that impossible."""

    def become(self, kind: type[E], **changes: Any) -> E:
        """An event of another kind with what this one knows of the model's own attention; nothing is computed yet.

        changes: fields that `kind` has besides, and those that should hold something else.
        """
        own = {name: getattr(self, name) for name in _fields()}
        return kind(**{**own, **changes})

    @property
    def maths(self) -> dict[str, Any]:
        """Keyword arguments for any attention operation of `interp_kernels` on this event."""
        return {"scale": self.scale, "softcap": self.softcap, "sinks": self.sinks, **self.facts}

    def facts_of(self, rows: slice) -> dict[str, Any]:
        """The facts of some of its rows, as if they were all."""
        facts = dict(self.facts)
        if facts.get("offset") is None:
            facts["offset"] = self.k.shape[2] - self.q.shape[2]
        facts["offset"] += rows.start
        if facts.get("query_mask") is not None:
            facts["query_mask"] = facts["query_mask"][:, rows]
        for name in ("mask", "bias"):
            if facts.get(name) is not None and facts[name].shape[2] > 1:
                facts[name] = facts[name][:, :, rows]
        return facts

    def _statistics(self, *asked: str) -> Attended:
        """lse and what else is asked of rows and columns, in one pass."""
        return attention_apply(self.q, self.k, statistics=asked, **self.maths)

    @cached_property
    def _sums(self) -> Attended:
        """lse, squares and column mass: each of them adds little to the scores they share."""
        return self._statistics("square", "column_mass")

    @property
    def lse(self) -> Float[Tensor, "batch head query"]:
        """Log-sum-exp of each row's scores over its visible real keys, learned sinks not included (nats)."""
        return self._sums.lse

    @property
    def sink_logits(self) -> Float[Tensor, "#batch head #query"] | None:
        """The logit that each row gives to the learned sink, beside `lse`; None in models without one."""
        return None if self.sinks is None else self.sinks[None, :, None]

    @property
    def square(self) -> Float[Tensor, "batch head query"]:
        """Sum of squared probabilities of each row; summed over rows it is the squared Frobenius norm."""
        assert self._sums.square is not None
        return self._sums.square

    @property
    def column_mass(self) -> Float[Tensor, "batch head key"]:
        """Attention that each key receives, summed over the queries."""
        assert self._sums.column_mass is not None
        return self._sums.column_mass

    @cached_property
    def entropy(self) -> Float[Tensor, "batch head query"]:
        """Entropy of each row of the pattern (nats); a pass of its own."""
        entropy = self._statistics("entropy").entropy
        assert entropy is not None
        return entropy

    @property
    def unedited(self) -> AttentionEvent:
        """What the model itself would attend to: the numbers that go with q and k as they stand here."""
        return self

    @cached_property
    def key_energy(self) -> Float[Tensor, "batch kv_head d_head"]:
        """Mean square of each key channel over the real tokens, after rotary embedding."""
        return channel_energy(self.k, self.facts.get("key_mask"))

    @cached_property
    def query_energy(self) -> Float[Tensor, "batch head d_head"]:
        """Mean square of each query channel over the real tokens, after rotary embedding."""
        return channel_energy(self.q, self.facts.get("query_mask"))

    @cached_property
    def pre_rotary_k(self) -> Float[Tensor, "batch kv_head query d_head"] | None:
        """The new keys before rotation (after QK-norm where the model has one), or None where they cannot be had."""
        n_new, n_keys = self.q.shape[2], self.k.shape[2]
        start = self.facts.get("offset", n_keys - n_new)
        return None if self.unrotate is None else self.unrotate(self.k[:, :, start : start + n_new])

    def apply(self, x: Float[Tensor, "batch head key r"]) -> Float[Tensor, "batch head query r"]:
        """A @ x for the pattern A of every head."""
        z = attention_apply(self.q, self.k, x, **self.maths).z
        assert z is not None
        return z

    def transpose_apply(self, y: Float[Tensor, "batch head query r"]) -> Float[Tensor, "batch head key r"]:
        """Aᵀ @ y."""
        return attention_transpose_apply(self.q, self.k, self.lse, y, **self.maths)

    def gram_apply(self, x: Float[Tensor, "batch head key r"]) -> tuple[Tensor, Tensor]:
        """(A @ x, Aᵀ A x) in one sweep over the scores."""
        return attention_gram_apply(self.q, self.k, self.lse, x, **self.maths)

    def pattern(self) -> Float[Tensor, "batch head query key"]:
        """The materialised pattern, learned sink column dropped. For short inputs and tests: it needs queries x keys
        memory."""
        return attention_pattern(self.q, self.k, **self.maths)


@cache
def _fields() -> tuple[str, ...]:
    """What every event knows of the model's own attention."""
    return tuple(known.name for known in fields(AttentionEvent))
