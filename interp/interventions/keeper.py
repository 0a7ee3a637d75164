"""The keeper of a cache: applies policies to its layers as the prompt and the tokens after it arrive."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.base import CachePolicy, ChannelEntry, Entry, Intervention, Moment, Plan, Prompt, parts
from interp.seam.event import AttentionEvent
from interp.undoing import undoing

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer
    from interp.seam.config import LensConfig

Tensor = torch.Tensor
Unrotate = Callable[[Tensor], Tensor]


class Keeper:
    """Applies cache policies to the layers of one cache: at most one for tokens, then at most one for channels."""

    def __init__(
        self,
        policies: tuple[CachePolicy, ...],
        cfg: LensConfig,
        layers: tuple[int, ...],
        output_norms: Callable[[int], Tensor],
        ledger: bool = False,
    ) -> None:
        self.policies, self.cfg, self.layers, self.output_norms = policies, cfg, layers, output_norms
        self.ledger: list[Entry] | None = [] if ledger else None
        self.channel_ledger: list[ChannelEntry] | None = [] if ledger else None
        self.plans: dict[str, Plan] = {}
        self.compressed: set[int] = set()
        self.prompt_tokens: int | None = None
        self.reads_back = False
        """Whether what comes after the prompt continues it, however many tokens come at once, and is no other turn."""
        self._earlier_queries: dict[int, list[Tensor]] = {}
        self._earlier_unrotate: dict[int, list[tuple[int, Unrotate | None]]] = {}
        """Lengths of a prompt's earlier chunks, and how each is rotated back, where a plan asks for it."""
        self._earlier_masks: dict[int, list[Tensor | None]] = {}
        """What the queries that were kept of them see, where that is no plain causal mask."""

    def expect(self, tokens: int, seen: int = 0) -> None:
        """Tell how long the text will be when the tokens that are about to follow the first `seen` ones have arrived.

        The first call says how long the prompt is. In later ones several tokens at once are another turn, which
        policies have to have room for.
        """
        if self.prompt_tokens is not None and tokens - seen > 1 and seen >= self.prompt_tokens and not self.reads_back:
            for policy in self.policies:
                policy.check(Prompt(self.cfg, self.layers, tokens, self.output_norms))
        if self.prompt_tokens is None:
            prompt = Prompt(self.cfg, self.layers, tokens, self.output_norms)
            for policy in self.policies:
                policy.check(prompt)
            self.plans = {policy.stage: policy.begin(prompt) for policy in self.policies}
            for plan in self.plans.values():
                plan.ledger, plan.channel_ledger = self.ledger, self.channel_ledger
            self.prompt_tokens = tokens

    @property
    def moment(self) -> Moment:
        return self.plans["tokens"].moment if "tokens" in self.plans else "layer"

    def needs_more_than(self, seen: int) -> bool:
        """Whether policies have yet to compress a prompt that is longer than `seen` tokens."""
        return self.prompt_tokens is not None and seen < self.prompt_tokens and self._uncompressed

    def waits(self, seen: int) -> bool:
        """Whether policies wait for the first token after the prompt, when `seen` tokens were read."""
        read = self.prompt_tokens is not None and seen >= self.prompt_tokens
        return read and self.moment == "first_decode" and self._uncompressed

    @property
    def _uncompressed(self) -> bool:
        return bool(self.plans) and not self.compressed.issuperset(self.layers)

    def attended(
        self,
        layer: int,
        stored: Mapping[int, StoredLayer] | Sequence[Any],
        q: Tensor,
        event: Callable[[], AttentionEvent],
    ) -> None:
        """A layer has attended with queries q `[batch, head, new, d_head]`, whose keys are stored by now.

        stored: what holds each layer's keys, by number; a cache's `layers` will do.
        """
        assert self.prompt_tokens is not None
        own = stored[layer]
        if layer in self.compressed:
            tokens = self.plans.get("tokens")
            if tokens is not None and tokens.each_step:
                tokens.step(layer, own)
            elif tokens is not None and q.shape[2] > 1 and not self.reads_back:
                tokens.another_turn(layer, own, event)
            return
        if own.seen < self.prompt_tokens:
            self._keep_queries(layer, q, event)
            return
        if own.seen == self.prompt_tokens:
            seen = self._whole(layer, q, event())
            own.padding = padding_of(seen.facts)
        else:
            seen = event()
        for plan in self.plans.values():
            plan.observe(layer, seen)
        if self.moment == "layer":
            self.compress(layer, own)
        elif layer == self.layers[-1] and (self.moment == "prefill_end" or own.seen > self.prompt_tokens):
            for each in self.layers:
                self.compress(each, stored[each])

    def attend_and_step(self, layer: int, stored: StoredLayer, q: Tensor, **maths: Any) -> Tensor:
        """Attention of a layer in slots, and what `attended` would do after it."""
        return self.plans["tokens"].attend_and_step(layer, stored, q, **maths)

    def _keep_queries(self, layer: int, q: Tensor, event: Callable[[], AttentionEvent]) -> None:
        """Keep the queries of a chunk of the prompt, as far as a plan may want to see them when the prompt is read."""
        needed = [plan.queries_needed for plan in self.plans.values()]
        most = None if None in needed else max(n for n in needed if n is not None)
        earlier = self._earlier_queries.setdefault(layer, [])
        if any(plan.needs_unrotated for plan in self.plans.values()):
            self._earlier_unrotate.setdefault(layer, []).append((q.shape[2], event().unrotate))
        if most == 0:
            return
        masks = self._earlier_masks.setdefault(layer, [])
        masks.append(event().facts.get("mask"))
        earlier.append(q)
        if most is not None:
            earlier[:] = [torch.cat(earlier, 2)[:, :, -most:].clone()]
            masks[:] = [rows if rows is None else rows[:, :, -most:].clone() for rows in [_rows_of(masks)]]

    def _whole(self, layer: int, q: Tensor, event: AttentionEvent) -> AttentionEvent:
        """The event of the whole prompt, or of as many of its newest queries as plans look at: those that were kept of
        earlier chunks are put in front."""
        earlier = self._earlier_queries.pop(layer, None)
        chunks = [*self._earlier_unrotate.pop(layer, []), (q.shape[2], event.unrotate)]
        if not earlier:
            return event
        facts = dict(event.facts)
        masks = [*self._earlier_masks.pop(layer, []), facts.get("mask")]
        q = torch.cat([*earlier, q], 2)
        keys, queries = event.k.shape[2], q.shape[2]
        if (rows := _rows_of(masks)) is not None:
            facts["mask"] = rows
        else:
            facts["offset"] = keys - queries
        if facts.get("key_mask") is not None:
            facts["query_mask"] = facts["key_mask"][:, keys - queries :]
        return dataclasses.replace(event, q=q, facts=facts, unrotate=_by_chunk(chunks, queries))

    def compress(self, layer: int, stored: StoredLayer) -> None:
        """Let the policies drop from a layer what they drop, with what they have observed of it."""
        for stage in ("tokens", "channels"):
            if stage in self.plans:
                self.plans[stage].compress(layer, stored)
        stored.newest_at_compression = len(stored.segments[-1])
        self.compressed.add(layer)
        if "tokens" in self.plans and self.plans["tokens"].each_step:
            self.plans["tokens"].move_to_slots(layer, stored)

    def reset(self) -> None:
        """Forget the sequence: the next tokens are a new prompt."""
        self.plans, self.prompt_tokens, self.reads_back = {}, None, False
        self.compressed.clear()
        for kept in (self._earlier_queries, self._earlier_unrotate, self._earlier_masks):
            kept.clear()
        for ledger in (self.ledger, self.channel_ledger):
            if ledger is not None:
                ledger.clear()

    def reorder(self, rows: Tensor) -> None:
        """The batch goes on with `rows` of it, as in beam search."""
        for plan in self.plans.values():
            plan.reorder(rows)
        for layer, earlier in self._earlier_queries.items():
            self._earlier_queries[layer] = [q.index_select(0, rows.to(q.device)) for q in earlier]
        for layer, masks in self._earlier_masks.items():
            self._earlier_masks[layer] = [
                mask if mask is None or len(mask) == 1 else mask.index_select(0, rows.to(mask.device)) for mask in masks
            ]


def _rows_of(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Rows of masks `[batch, 1, query, key]` one after the other, which see no key of later chunks; None where all are
    plain causal ones."""
    held = [mask for mask in masks if mask is not None]
    if not held:
        return None
    if len(held) < len(masks):
        raise InterpError("a cache policy cannot follow a chunked prefill whose mask is not always plain.")
    most = max(mask.shape[-1] for mask in held)
    return torch.cat([torch.nn.functional.pad(mask, (0, most - mask.shape[-1])) for mask in held], 2)


def _by_chunk(chunks: Sequence[tuple[int, Unrotate | None]], tokens: int) -> Unrotate | None:
    """What rotates `tokens` back that came in chunks of the given lengths; None where not all of them can be."""
    lengths = [length for length, _ in chunks]
    back = [unrotate for _, unrotate in chunks if unrotate is not None]
    if sum(lengths) != tokens or len(back) != len(chunks):
        return None
    return lambda x: torch.cat([of(part) for of, part in zip(back, torch.split(x, lengths, 2), strict=True)], 2)


def padding_of(facts: Mapping[str, Any]) -> Tensor | None:
    """Padding columns on the left of each text `[batch]`, or None where there is none."""
    keep: Tensor | None = facts.get("key_mask")
    if keep is None or bool(keep.all()):
        return None
    count = (~keep).sum(-1)
    if bool((keep.cumsum(-1) > 0).eq(keep).all()):
        return count
    raise InterpError("a cache policy needs padding on the left of each text; this attention mask has holes elsewhere.")


def cache_policies(intervention: Intervention, cfg: LensConfig) -> tuple[CachePolicy, ...]:
    """The cache policies of an intervention, checked against the model.

    Raises InterpError for what is no cache policy, UnsupportedModelError where no layer has a cache that a policy
    could act on, or a policy cannot act on it.
    """
    for member in parts(intervention):
        if not isinstance(member, CachePolicy):
            raise InterpError(f"apply takes interventions such as interp.ThinK(ratio=0.5), not {member!r}.")
    members = tuple(member for member in parts(intervention) if isinstance(member, CachePolicy))
    by_stage = {member.stage: member.granularity for member in members}
    if (by_stage.get("tokens"), by_stage.get("channels")) == ("query_head", "kv_head"):
        names = " and ".join(member.name for member in members)
        raise InterpError(f"{names}: tokens of every query head need channels of every query head; set granularity.")
    if set(cfg.latent_layers).intersection(cfg.full_attention_layers):
        _refuse_on_latents(members, cfg)
    _say_which_layers(cfg)
    return members


def _refuse_on_latents(members: tuple[CachePolicy, ...], cfg: LensConfig) -> None:
    """Refuse what cannot be done where one latent a token is key and value of all heads."""
    reasons = [(member.name, reason) for member in members if (reason := member.unfit_for_latents(cfg)) is not None]
    apart = [member.name for member in members if member.values_apart]
    if apart and len(members) > 1:
        reasons.append((f"{apart[0]} with {members[-1].name}", "a summary's value is no part of its key"))
    for name, reason in reasons:
        raise UnsupportedModelError(f"{name} cannot act on the latent attention of {cfg.architecture}: {reason}.")


_said: ContextVar[bool] = ContextVar("interp_layers_said", default=False)
LEFT_ALONE = {
    "local": "have a sliding window",
    "shared": "read keys and values of an earlier layer",
    "other": "keep something else in their cache than the keys that they attend to, or attend in their own code",
    "none": "have no attention",
}


@contextmanager
def said_already() -> Iterator[None]:
    """Inside, in this thread, nothing is said of the layers that stay as they are."""
    with undoing() as undo:
        undo.later(_said.set, _said.get())
        _said.set(True)
        yield


def _say_which_layers(cfg: LensConfig) -> None:
    """Raise where no layer has a cache that policies act on; warn of those that stay as they are."""
    by_kind = {kind: [i for i, own in enumerate(cfg.attn_types) if own == kind] for kind in LEFT_ALONE}
    if len(by_kind["local"]) == cfg.n_layers:
        window = f" of {cfg.window_size} tokens" if cfg.window_size else ", or attends in chunks"
        raise UnsupportedModelError(
            f"every layer of {cfg.architecture} has a sliding window{window}, so its cache is bounded already; cache "
            "policies act on full-attention layers only."
        )
    told = [f"{len(layers)} of {cfg.n_layers} layers {LEFT_ALONE[kind]}" for kind, layers in by_kind.items() if layers]
    if not cfg.full_attention_layers:
        raise UnsupportedModelError(
            f"{cfg.architecture} has no layer whose cache a policy could act on: {'; '.join(told)}."
        )
    if _said.get():
        return
    for said, layers in zip(told, filter(None, by_kind.values()), strict=True):
        warnings.warn(f"{said} and stay as they are: {layers}.", stacklevel=6)  # the line of the `with`
