"""One attention module during a Lens call: hook points around the attention maths.

`Site.attend` fires the layer's hook points and otherwise hands the call to what the model would have used (SDPA, flash,
or the modelling file's eager function), with that function's own mask, so the result is bit-identical. A layer computes
scores eagerly only when someone hooks its scores or pattern. `routing.py` brings a model's calls here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from interp_kernels import packed_decode
from torch import nn

from interp.cache.latent import StoredLatent
from interp.cache.lens_cache import LensCache
from interp.cache.stored_layer import StoredLayer
from interp.errors import InterpError, UnsupportedModelError
from interp.seam.call import AttentionCall
from interp.seam.edits import Edits
from interp.seam.event import AttentionEvent
from interp.seam.latent import Expansion, chosen, showing
from interp.seam.masks import additive_mask, first_new
from interp.seam.points import live
from interp.seam.precision import alike, in_one_dtype
from interp.seam.rotation import Rotation

Tensor = torch.Tensor


def show(point: nn.Module, value: Any) -> None:
    """Let hooks look at a value that they may not replace, nor change in place."""
    before = _version(value)
    if point(value) is not value or _version(value) != before:
        raise InterpError(f"a hook on {point.name} changed a value, but that point is read-only; return None there.")


def _version(value: Any) -> int:
    """torch's count of in-place changes; tensors of inference mode have none."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


class Site:
    """One attention module during a Lens call: its layer and its hook points.

    `points` maps names relative to the block (`attn.hook_z`) to hook points. `position_embeddings` is filled by a pre-
    hook on the module, `stored_new` by the Lens' cache; both belong to the call in progress. `cache` is the Lens' cache
    where policies act on it, `edits` the attention edits that act in this layer. `whole`: it attends to tokens of
    another stack (cross-attention), so that `hook_k` and `hook_v` are all keys and values of every call, and nothing is
    stored.
    """

    def __init__(
        self, layer: int, points: Mapping[str, nn.Module], rotation: Rotation | str, whole: bool = False
    ) -> None:
        self.layer, self.points, self.rotation = layer, points, rotation
        self.lender: Site | None = None
        """The site of the earlier layer whose keys and values this one attends to, where layers share them."""
        self.through_cache = False
        """Whether the keys of its last call came through the Lens' cache. Those of a second text do not, on which
        guided decoding runs the model within one call."""
        self.rotary = "attn.hook_rot_q" in points
        self.position_embeddings: tuple[Tensor, Tensor] | None = None
        self.stored_new = False
        self.cache: LensCache | None = None
        self.edits: Edits | None = None
        self.latent = False
        """Whether its cache holds latents, of which the module makes keys and values (`interp.seam.latent`)."""
        self.whole = whole
        self.real: Tensor | None = None
        """Which of the new tokens are no padding `[batch, pos]`, where the mask of the call speaks of other tokens."""

    def point(self, name: str) -> nn.Module:
        """`q` and `k` are the rotated points where the model rotates; everything else is literal."""
        if name in ("q", "k"):
            name = f"rot_{name}" if self.rotary else name
        return self.points[f"attn.hook_{name}"]

    def store(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values `[batch, kv_head, new, d_head]`, or latents, on their way into the Lens' cache."""
        self.stored_new = True
        if not self.latent:
            k, v = self._edit("k", k), self._edit("v", v)
        if self.cache is not None:  # what policies act on has one dtype
            k, v = alike(k, v)
        return k, v

    def _edit(self, name: str, x: Tensor) -> Tensor:
        """Fire an editable point; hooks see TransformerLens' `[batch, pos, head, d_head]`, the maths `[batch, head,
        pos, d_head]`."""
        point = self.point(name)
        return point(x.transpose(1, 2)).transpose(1, 2) if live(point) else x

    def _new_keys_values(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Fire the points of the new keys and values unless the cache already has."""
        k, v, n_new = call.k, call.v, call.q.shape[2]
        if self.whole:
            return self._edit("k", k), self._edit("v", v)
        stored, self.stored_new = self.stored_new, False
        if stored and not self.latent:
            return k, v
        if k.shape[2] == n_new and self.lender is None and not stored:
            return self._edit("k", k), self._edit("v", v)
        start = 0 if k.shape[2] == n_new else first_new(k, n_new, call.mask, call.causal)
        # a cache that is not ours, or another layer's, has them, or what they are made of: don't touch
        for name, x in (("k", k), ("v", v)):
            if live(self.point(name)):
                show(self.point(name), x[:, :, start : start + n_new].transpose(1, 2))
        return k, v

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """One attention call with hook points around it; returns z `[batch, pos, head, d_head]` and weights or None."""
        q = self._edit("q", call.q)
        self.through_cache = self.stored_new if self.lender is None else self.lender.through_cache
        k, v = self._new_keys_values(call)
        home = self.layer if self.lender is None else self.lender.layer
        stored = self.cache.layers[home] if self.cache is not None and self.through_cache else None
        latent = stored if isinstance(stored, StoredLatent) else None
        expansion = None if latent is None else Expansion.of(call.module, *latent.widths, like=call.v)
        if q is not call.q or k is not call.k or v is not call.v:
            call = replace(call, q=q, k=k, v=v)
        with in_one_dtype(call) as even:
            if isinstance(stored, StoredLayer) and self.lender is not None:
                z, weights = self._attend_lent(even, stored)
            elif latent is not None and expansion is not None:
                z, weights = self._attend_latent(even, latent, expansion)
            elif isinstance(stored, StoredLayer):
                z, weights = self._attend_stored(even, stored)
            else:
                z, weights = self._attend(even)
        return (self.point("z")(z) if live(self.point("z")) else z), weights

    def _attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self._show(call)
        if self._eagerly or (self.edits is not None and call.biased):  # kernels know of no bias by query and key
            return self._eager(call)
        z, weights = call.answer()
        return (z, weights) if self.edits is None else self.edits.attend(call, self._unedited, z, weights)

    @property
    def _eagerly(self) -> bool:
        return live(self.point("attn_scores")) or live(self.point("pattern"))

    def _attend_stored(self, call: AttentionCall, stored: StoredLayer) -> tuple[Tensor, Tensor | None]:
        """Attention over a layer that policies act on, and then the policies' turn."""
        assert self.cache is not None
        if self._in_one_kernel(call, stored):
            return self._attend_and_step(call, stored), None
        event = partial(self._stored_event, call, stored) if stored.compressed else partial(self._event, call)
        if not stored.compressed:
            z, weights = self._attend(call)
        elif self._in_the_open(call):
            z, weights = self._attend_dense(call, stored)
        elif self.edits is not None:
            z, weights = self._attend_edited(call, stored), None
        else:
            z, weights = self._attend_packed(call, stored), None
        self.cache.keeper.attended(self.layer, self.cache.layers, call.q, event)
        return z, weights

    def _attend_latent(
        self, call: AttentionCall, stored: StoredLatent, expansion: Expansion
    ) -> tuple[Tensor, Tensor | None]:
        """The same where latents are stored: policies see them, and what was compressed is attended to, as one head."""
        assert self.cache is not None
        absorbed = expansion.absorbed(call, stored.widths[0])
        if stored.compressed:
            z, weights = self._attend_stored(replace(absorbed, visible=chosen(absorbed, stored)), stored)
            return expansion.expanded(z), weights
        z, weights = self._attend(call)
        keys, values = stored.dense()
        event = partial(self._event, replace(absorbed, k=keys, v=values))
        self.cache.keeper.attended(self.layer, self.cache.layers, absorbed.q, event)
        return z, weights

    def _attend_lent(self, call: AttentionCall, stored: StoredLayer) -> tuple[Tensor, Tensor | None]:
        """Attention over what policies left of another layer's keys: it neither counts for them nor makes them act.

        While the prompt is read that layer may have been compressed already, and all its keys are in the call still.
        """
        if not stored.compressed or call.k.shape[2] == stored.seen:
            return self._attend(call)
        if self._in_the_open(call):
            return self._attend_dense(call, stored, counts=False)
        if self.edits is not None:
            return self._attend_edited(call, stored, counts=False), None
        return self._attend_packed(call, stored, counts=False), None

    def _in_one_kernel(self, call: AttentionCall, stored: StoredLayer) -> bool:
        """Whether a step's attention and the policy's turn are one kernel, in place.

        So it is for one new token in a layer in slots, unless somebody wants the layer's attention in the open. In
        slots lie layers that a policy of every step has compressed, if their tokens are dense (`stepping.fit`); several
        new tokens, or code that is no Lens, take them out of there (`StoredLayer.update`).
        """
        return stored.newest_in_slot and self.edits is None and not self._in_the_open(call)

    def _in_the_open(self, call: AttentionCall) -> bool:
        """Whether somebody wants scores, pattern, all keys and values or observables, or gradients through them; edits
        of attention to tokens that the model chooses are made there too."""
        edited = call.visible is not None and self.edits is not None
        return edited or self._eagerly or self._looked_at or (torch.is_grad_enabled() and call.q.requires_grad)

    @property
    def _looked_at(self) -> bool:
        return any(map(live, self._shown))

    def _attend_and_step(self, call: AttentionCall, stored: StoredLayer) -> Tensor:
        assert self.cache is not None
        z: Tensor = self.cache.keeper.attend_and_step(self.layer, stored, call.q, **call.maths())
        return z.to(call.q.dtype).transpose(1, 2).contiguous()

    def _attend_packed(self, call: AttentionCall, stored: StoredLayer, counts: bool = True) -> Tensor:
        if call.visible is not None:
            return self._attend_chosen(call, stored, call.visible)
        z, mass = packed_decode(
            call.q, stored.for_kernel(), **call.maths(), d_value=stored.d_value, mass=counts and stored.keeps_mass
        )
        if mass is not None and (counted := stored.queries_counted(call.q.shape[2])) < call.q.shape[2]:
            q = call.q[:, :, -counted:]
            _, mass = packed_decode(q, stored.for_kernel(), **call.maths(), d_value=stored.d_value, mass=True)
        if mass is not None:
            stored.receive(mass)
        return z.to(call.q.dtype).transpose(1, 2).contiguous()

    def _attend_chosen(self, call: AttentionCall, stored: StoredLayer, visible: Tensor) -> Tensor:
        """The same where each query sees tokens of its own, one query after the other."""
        rows: list[Tensor] = []
        received: list[tuple[Tensor, ...]] = []
        for q, seen in zip(torch.split(call.q, 1, 2), visible.unbind(2), strict=True):
            segments = showing(stored.for_kernel(), seen)
            z, mass = packed_decode(q, segments, **call.maths(), d_value=stored.d_value, mass=stored.keeps_mass)
            rows.append(z)
            received += [] if mass is None else [mass]
        if received:
            counted = received[-stored.queries_counted(len(rows)) :]
            stored.receive(tuple(torch.stack(of_segment).sum(0) for of_segment in zip(*counted, strict=True)))
        return torch.cat(rows, 2).to(call.q.dtype).transpose(1, 2).contiguous()

    def _attend_dense(self, call: AttentionCall, stored: StoredLayer, counts: bool = True) -> tuple[Tensor, Tensor]:
        """The same for eyes and gradients: dense keys and values, scores and pattern in the open."""
        bias = stored.additive_mask(call.q.shape[2])
        if call.visible is not None:
            bias = bias.masked_fill(~call.visible, -torch.inf)
        bias = bias.repeat_interleave(call.q.shape[1] // bias.shape[1], 1).to(call.q.dtype)
        keys, values = stored.dense()
        open_call = replace(call, k=keys, v=values, mask=bias, places=stored.places())
        self._show(open_call)
        z, pattern = self._eager(open_call)
        if not counts:
            return z, pattern
        counted = pattern.detach().float()[:, :, -stored.queries_counted(call.q.shape[2]) :]
        received = by_stored_head(counted.sum(2), keys.shape[1])
        stored.receive(torch.split(received, [len(segment) for segment in stored.segments], -1))
        return z, pattern

    def _attend_edited(self, call: AttentionCall, stored: StoredLayer, counts: bool = True) -> Tensor:
        """The same under attention edits, without scores of all new tokens and keys at once."""
        assert self.edits is not None
        z, mass = self.edits.attend_stored(self._stored_event(call, stored), counts and stored.keeps_mass)
        if mass is not None and (counted := stored.queries_counted(call.q.shape[2])) < call.q.shape[2]:
            newest = self._stored_event(replace(call, q=call.q[:, :, -counted:]), stored)
            _, mass = self.edits.attend_stored(newest, True)
        if mass is not None:
            received = by_stored_head(mass, stored.segments[0].keys.shape[1])
            stored.receive(torch.split(received, [len(segment) for segment in stored.segments], -1))
        return z

    def _stored_event(self, call: AttentionCall, stored: StoredLayer) -> AttentionEvent:
        """Attention of the call's queries to all that a compressed layer stores."""
        keys, values = stored.dense()
        full = replace(call, k=keys, v=values, places=stored.places())
        if call.visible is not None:
            return self._event(full, {"mask": call.visible})
        bias = stored.additive_mask(1).repeat_interleave(call.q.shape[1] // stored.segments[0].keys.shape[1], 1)
        return self._event(full, {"causal": True, "bias": bias})

    @cached_property
    def _shown(self) -> tuple[nn.Module, ...]:
        """The points that `_show` may have to fire; each step of generation asks for them in every layer."""
        names = ("cached_k", "cached_v", *OBSERVABLES)
        return tuple(self.points[f"attn.hook_{name}"] for name in names if f"attn.hook_{name}" in self.points)

    def _show(self, call: AttentionCall) -> None:
        """Fire the points that hooks may look at: what is attended to, and observables of it."""
        if self._looked_at:
            self._show_some(call)

    @torch.no_grad()
    def _show_some(self, call: AttentionCall) -> None:
        for name, x in (("cached_k", call.k), ("cached_v", call.v)):
            if live(self.point(name)):
                show(self.point(name), x.transpose(1, 2))
        points = {name: self.points.get(f"attn.hook_{name}") for name in OBSERVABLES}
        wanted = {name: point for name, point in points.items() if live(point)}
        if not wanted:
            return
        try:
            event = self._event(call)
        except UnsupportedModelError:
            if not all(getattr(point, "where_it_can", False) for point in wanted.values()):
                raise
            return  # nobody asked for this layer by name
        for name, point in wanted.items():
            show(point, OBSERVABLES[name](event))

    def _event(self, call: AttentionCall, facts: dict[str, Any] | None = None) -> AttentionEvent:
        """The call as probes and policies see it; facts of its mask, where the mask itself does not tell them."""
        event = self._unedited(call, facts)
        return event if self.edits is None else self.edits.of(event, call.places)

    def _unedited(self, call: AttentionCall, facts: dict[str, Any] | None = None) -> AttentionEvent:
        """What the model itself attends to."""
        call.refuse_unknown()
        return AttentionEvent(
            layer=self.layer,
            q=call.q,
            k=call.k,
            v=call.v,
            scale=call.scale,
            facts=self._facts(call) if facts is None else facts,
            softcap=call.rest.get("softcap"),
            sinks=call.rest.get("s_aux"),
            tied=call.tied,
            expanded=call.expanded,
            unrotate=self._unrotate(),
        )

    def _facts(self, call: AttentionCall) -> dict[str, Any]:
        facts = call.facts()
        if self.whole:  # its mask is of another stack's tokens: it says nothing of queries, nor of what comes later
            facts |= {"query_mask": self.real}
            facts.pop("offset", None)
        return facts

    def _unrotate(self) -> Callable[[Tensor], Tensor] | None:
        if isinstance(self.rotation, str) or self.position_embeddings is None:
            return None
        rotation, (cos, sin) = self.rotation, self.position_embeddings
        return lambda k: rotation.undo(k, cos, sin)

    def _eager(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Attention with scores and pattern in the open: softmax in fp32, masked cells at the dtype's minimum."""
        call.refuse_unknown()
        groups = call.q.shape[1] // call.k.shape[1]
        k, v = call.k.repeat_interleave(groups, 1), call.v.repeat_interleave(groups, 1)
        scores = call.q @ k.transpose(2, 3) * call.scale
        if (softcap := call.rest.get("softcap")) is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if call.bias is not None:
            scores = scores + call.bias
        mask, sinks = additive_mask(scores, call.mask, call.causal), call.rest.get("s_aux")
        scores, sinks = (scores + mask, sinks) if self.edits is None else self.edits.logits(call, scores, mask)
        pattern = softmax_with_sinks(self.point("attn_scores")(scores), sinks)
        if self.edits is not None:
            pattern = self.edits.pattern(call, pattern)
        pattern = self.point("pattern")(pattern.to(call.q.dtype))
        dropped = nn.functional.dropout(pattern, p=call.rest.get("dropout", 0.0), training=call.module.training)
        return (dropped @ v).transpose(1, 2).contiguous(), pattern


OBSERVABLES: dict[str, Callable[[AttentionEvent], Any]] = {
    "event": lambda event: event,
    "pre_rot_k": lambda event: None if event.pre_rotary_k is None else event.pre_rotary_k.transpose(1, 2),
    "column_mass": lambda event: event.column_mass,
    "lse": lambda event: event.lse,
    "row_entropy": lambda event: event.entropy,
    "key_energy": lambda event: event.key_energy,
    "query_energy": lambda event: event.query_energy,
}


def by_stored_head(mass: Tensor, stored_heads: int) -> Tensor:
    """Attention received `[batch, head, key]`, summed over the query heads that read each stored head."""
    batch, _, keys = mass.shape
    return mass.reshape(batch, stored_heads, -1, keys).sum(2)


def softmax_with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over keys, in fp32 at least; learned sink logits, `[head]` or `[batch, head, query]`, join as an extra
    column that is dropped (gpt-oss)."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return scores.softmax(-1, dtype=dtype)
    by_row = sinks[..., None] if sinks.ndim == 3 else sinks.reshape(1, -1, 1, 1)
    column = by_row.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1, dtype=dtype)[..., :-1]
