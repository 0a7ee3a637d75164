"""What an intervention is, and how cache policies act on a live cache.

An `Intervention` is a frozen dataclass of its hyper-parameters; `a | b` makes one of both. A `CachePolicy` decides what
a full-attention layer's cache keeps. It works in one of two stages: `tokens` (which tokens stay, perhaps merged) acts
before `channels` (which channels of the stored keys and values stay), and a composition has at most one of each.

For each sequence `policy.begin(...)` makes a fresh `Plan`, so that nothing outlives the cache it belongs to. A plan
sees every layer's attention over the prompt (`observe`) and then compresses (`compress`), layer by layer as the prompt
passes or for all layers together where budgets depend on all of them; a plan with `each_step` acts again at every
later token. Prefill is never changed: the prompt attends to the whole prompt, and so the first generated token is the
model's own.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from interp.errors import InterpError
from interp.seam.event import AttentionEvent
from interp.settings.checking import check_types

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer
    from interp.seam.config import LensConfig

Tensor = torch.Tensor
Moment = Literal["layer", "prefill_end", "first_decode"]


class Intervention:
    """A change to the running model. Subclasses are frozen dataclasses whose fields are the method's parameters."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_types(self)

    def __or__(self, other: Intervention) -> Composition:
        if not isinstance(other, Intervention):
            return NotImplemented
        return Composition((*parts(self), *parts(other)))

    def settings(self) -> dict[str, Any]:
        """Name and parameters, as plain values."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]  # subclasses are dataclasses


@dataclass(frozen=True)
class Composition(Intervention):
    """Several interventions at once."""

    members: tuple[Intervention, ...]
    name: ClassVar[str] = "composition"

    def __post_init__(self) -> None:
        for stage in ("tokens", "channels"):
            same = [m.name for m in self.members if isinstance(m, CachePolicy) and m.stage == stage]
            if len(same) > 1:
                raise InterpError(f"{' and '.join(same)} both decide about {stage} of the cache; apply one of them.")

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "members": [member.settings() for member in self.members]}


def parts(intervention: Intervention) -> tuple[Intervention, ...]:
    """An intervention's members: itself, unless it is a composition."""
    return intervention.members if isinstance(intervention, Composition) else (intervention,)


@dataclass(frozen=True)
class Prompt:
    """What a plan knows when it begins: the model's shape, the layers it may act on, the prompt's length in tokens."""

    cfg: LensConfig
    layers: tuple[int, ...]
    tokens: int
    output_norms: Callable[[int], Tensor]
    """Norms of W_O's rows of a layer, `[head, d_value]`: how far a unit of z moves the residual stream."""


class CachePolicy(Intervention, ABC):
    """Decides what the cache of a full-attention layer keeps."""

    stage: ClassVar[Literal["tokens", "channels"]]
    granularity: ClassVar[str] = "kv_head"
    """Whether tokens or channels are stored for every key/value head or, with "query_head", for every query head. A
    method that leaves the choice to its user makes it a field."""
    values_apart: ClassVar[bool] = False
    """Whether it stores tokens whose value is no part of their key, also where the model's tokens are latents."""

    def unfit_for_latents(self, cfg: LensConfig) -> str | None:
        """Why the policy cannot act on latent attention (`interp.cache.latent`), whose one stored head has values that
        are the first channels of its keys; None where it can. A channel policy says so itself: it has to choose among
        the rotated channels, which are keys alone."""
        if self.granularity == "query_head":
            return "it stores one head, so nothing is kept by query head"
        return "its channels are values too, which it does not reckon with" if self.stage == "channels" else None

    def check(self, prompt: Prompt) -> None:
        """Raise InterpError, before any compute, where the parameters make no sense for this prompt."""

    @abstractmethod
    def begin(self, prompt: Prompt) -> Plan:
        """A fresh plan for one sequence (or one batch of them)."""


@dataclass(frozen=True)
class Entry:
    """One eviction of a token policy in one layer: n tokens of every stored head, and where they went."""

    layer: int
    step: int
    """Tokens seen when it happened."""
    evicted: Tensor
    """Positions in the input `[batch, head, n]`; negative where a head evicted fewer (padding counts as nothing)."""
    score: Tensor | None
    """What the policy ranked them by `[batch, head, n]`; None: it ranked by nothing that could be written down."""
    target: Tensor | None = None
    """Position of the most similar retained token `[batch, head, n]`, for policies that merge; -1 where none is."""
    similarity: Tensor | None = None
    threshold: Tensor | None = None
    """What the similarity had to reach `[batch, head]`."""
    merged: Tensor | None = None
    """Whether the token was merged into its target `[batch, head, n]`, bool."""
    summary: Tensor | None = None
    """Number of the summary token that stands for it `[batch, head, n]`, for policies that make such; -1 for none."""
    share: Tensor | None = None
    """How much of its summary it is `[batch, head, n]`: a summary's shares add up to 1, its value is their mean."""


@dataclass(frozen=True)
class ChannelEntry:
    """What a channel policy ranked the channels of one layer by when it dropped some: its own score of all of them."""

    layer: int
    of: Literal["keys", "values"]
    score: Tensor
    """By stored head `[batch, head, channel]`: the very numbers that the choice was made by, NaN for those without."""
    about: str
    """What the number is, in words that complete "the policy's own score is"."""


class Plan(ABC):
    """A policy at work on one sequence. Tensors: `[batch, head, ...]`; `layer` is the layer's number.

    **The prompt.** When a layer has attended over the whole prompt, `observe` is called with that attention (of a
    prompt that came in chunks: with its newest `queries_needed` queries at least), and `compress` when `moment` says:
    right after it ("layer"), when all layers have read the prompt ("prefill_end"), or when they have attended for the
    first token after it, with which `observe` is called once more ("first_decode"). `compress` changes the layer by the
    methods of `StoredLayer`. Without `each_step` later tokens are added at the layer's end, and where several come at
    once, another turn, `another_turn` is called; a text that is read back (`lens.score`) is no other turn.

    **Every step.** With `each_step`, `step` is called each time the layer has attended for new tokens: one in
    generation, several where several come at once (`lens.score(chunk=...)`, another turn). They are stored by then, at
    the end of the last segment, and counted in `stored.seen`. A plan lets tokens go by `stored.evict_one`.

    **Attention received.** A plan that wants to know it opens an account in `compress`, with
    `stored.keep(..., mass=...)`: what each kept token starts from. From then on the attention seam adds, after
    attention and before `step`, what each stored token receives from the new queries, itself included, summed over the
    query heads that read a stored head (`StoredLayer.receive`); `stored.mass()` and `segment.mass` have it. With
    `keep(..., newest_query_only=True)` nothing is added up: the account is the newest query's row of the pattern, also
    where several came at once. A plan may change an account in place, and nobody else does. Nothing is computed where
    there is no account. A token that moves keeps its own.

    **Padding, beams, crop.** `stored.padding` says how many columns on the left of each text are padding: such tokens
    are stored until the plan drops them, and it should drop them first. Positions count columns. What the layer holds,
    accounts included, is reordered with the cache; what the plan itself keeps by batch, `reorder` must. A cropped cache
    forgets tokens that came after anything was dropped or added to an account, and refuses to forget others.

    **One kernel a step.** A plan may let a layer of dense tokens with an account lie in slots (`move_to_slots`). Then
    attention and `step` for a single new token become one call of `attend_and_step`, which attends, adds to the account
    and lets a token go in place, as `interp_kernels.decode_step` does. Whatever that cannot do (several tokens, hooks
    on scores, gradients, edits) leaves the slots and comes by `step`. See `interp.cache.slots` and, for eviction,
    `interp.interventions.policies._steps`.
    """

    moment: Moment = "layer"
    each_step: bool = False
    queries_needed: int | None = None
    """How many of the prompt's newest queries `observe` looks at, at most; None: all of them. A chunked prefill keeps
    only so many of each layer, and the event that follows it may hold no more."""
    needs_unrotated: bool = False
    """Whether it looks at `event.unrotate`. Of a chunked prefill that is then kept with all queries, else left out."""
    ledger: list[Entry] | None = None
    """Where a token policy writes down what it evicts, if somebody keeps account (`lens.apply(..., ledger=True)`)."""
    channel_ledger: list[ChannelEntry] | None = None
    """Where a channel policy then writes down what it ranked by. `interp.explain` compares effects with what stands in
    the ledgers and with nothing else: of a policy that writes nothing down it says "not recorded"."""

    def observe(self, layer: int, event: AttentionEvent) -> None:
        """A layer has attended over the prompt (with `moment` "first_decode" also: over the first generated token)."""

    @abstractmethod
    def compress(self, layer: int, stored: StoredLayer) -> None:
        """Drop from a layer's cache what the policy drops. Called once a layer, after all that it waited for."""

    def another_turn(self, layer: int, stored: StoredLayer, event: Callable[[], AttentionEvent]) -> None:
        """Several tokens have come at once after the prompt, and a layer has attended for them; they are stored by now.
        Only called without `each_step`. `event()` is their attention over all that is stored, with dense keys and
        values in storage order."""

    def step(self, layer: int, stored: StoredLayer) -> None:
        """A layer has attended for newly generated tokens, already stored. Only called with `each_step`."""

    def move_to_slots(self, layer: int, stored: StoredLayer) -> None:
        """All policies have compressed a layer: let its tokens lie in slots, if `attend_and_step` is to act on them.
        Only called with `each_step`."""

    def attend_and_step(self, layer: int, stored: StoredLayer, q: Tensor, **maths: Any) -> Tensor:
        """Attention and `step` at once, for a layer in slots whose last one holds the newest token.

        q `[batch, head, 1, d_head]`; maths: scale, softcap and sinks as `interp_kernels.decode_step` takes them.
        Returns z `[batch, head, 1, d_value]`. Only called after `move_to_slots` has let the layer lie in slots.
        """
        raise NotImplementedError

    def reorder(self, rows: Tensor) -> None:
        """Beam search goes on with `rows [batch]` of the batch: reorder what the plan itself keeps by batch."""
