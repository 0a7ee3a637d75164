"""`lens.apply(...)`: interventions in force for the calls of a `with` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, TypeVar

from interp.cache.lens_cache import LensCache
from interp.cache.paired import PairedCache, of_own_tokens
from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.base import CachePolicy, Intervention, parts
from interp.interventions.edits._edit_memory import EditedCache, EditMemory
from interp.interventions.edits._editing import EditAccount, Editing, LayerEdits
from interp.interventions.edits.base import AttentionEdit
from interp.interventions.keeper import Keeper
from interp.lens.parts import Anatomy
from interp.lens.protocol import InterventionLens
from interp.lens.readout import output_norms
from interp.seam.attention import Site
from interp.seam.config import LensConfig
from interp.seam.softmax_seam import only_open
from interp.undoing import Undo, undoing


@dataclass
class Block:
    """One `apply` block: what it puts in force, and what came of it."""

    owner: InForce | None
    policies: tuple[CachePolicy, ...] = ()
    edits: tuple[AttentionEdit, ...] = ()
    ledger: bool = False
    keepers: list[tuple[Keeper, LensCache]] = field(default_factory=list)
    account: EditAccount = field(default_factory=EditAccount)
    open: bool = True


NOTHING = Block(None)
_open: ContextVar[tuple[Block, ...]] = ContextVar("interp_apply", default=())
"""The blocks that this thread, or this task of an event loop, is in; another one is in none of them."""
Applied = TypeVar("Applied", bound=InterventionLens)


class InForce:
    """The interventions in force on a Lens, with the account of what they did; none outside an `apply` block.

    It knows the parts of a Lens and not the Lens itself, so that a Lens nobody holds any more is freed at once.
    """

    cfg: LensConfig
    anatomy: Anatomy
    caches: bool
    """Whether the model goes on from a cache of keys and values that it is given."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def _block(self) -> Block:
        return next((block for block in reversed(_open.get()) if block.owner is self and block.open), NOTHING)

    @property
    def policies(self) -> tuple[CachePolicy, ...]:
        return self._block.policies

    @property
    def edits(self) -> tuple[AttentionEdit, ...]:
        return self._block.edits

    @contextmanager
    def apply(self, lens: Applied, intervention: Intervention, ledger: bool) -> Iterator[Applied]:
        """What `Lens.apply` does; `lens` is what the block gets."""
        if self.policies or self.edits:
            raise InterpError("interventions are in force already; put them together with | in one apply.")
        edits = tuple(part for part in parts(intervention) if isinstance(part, AttentionEdit))
        others = [part for part in parts(intervention) if not isinstance(part, AttentionEdit)]
        for edit in edits:
            edit.check(self.cfg)
        self.refuse_inside(intervention)
        if ledger and not others:
            raise InterpError("a ledger lists what cache policies evict, and there is none among the interventions.")
        policies = lens.policies_of(reduce(or_, others)) if others else ()
        block = Block(self, policies, edits, ledger)
        with undoing() as undo:
            undo.later(_shut, block)
            _open.set((*_open.get(), block))
            yield lens
            if policies:
                _warn_unless_fired(policies, block.keepers)
            for told in block.account.silent(edits):
                warnings.warn(told, stacklevel=3)  # the line of the `with`

    def refuse_inside(self, intervention: Intervention) -> None:
        """Refuse what needs queries and keys where these stay inside the attention modules."""
        inside = [block.attention for _, block in self.anatomy.attending if block.seam == "softmax"]
        acting = [part.name for part in parts(intervention) if isinstance(part, (CachePolicy, AttentionEdit))]
        if acting and inside and inside[0] is not None:
            raise UnsupportedModelError(f"{', '.join(acting)} cannot act here: {only_open(inside[0])}.")
        edits = [part.name for part in parts(intervention) if isinstance(part, AttentionEdit)]
        if edits and any(block.whole for _, block in self.anatomy.attending):
            raise UnsupportedModelError(
                f"{', '.join(edits)} cannot act here: {self.cfg.architecture} attends to its own tokens and the "
                "encoder's at once, and an edit counts tokens of one text."
            )

    def new_cache(self, use_cache: bool) -> LensCache | PairedCache | None:
        """A cache for a call that brought none, under the interventions in force."""
        if self.policies and not use_cache:
            names = ", ".join(policy.name for policy in self.policies)
            raise InterpError(f"{names} acts on a cache, and this call keeps none: pass use_cache=True, or generate.")
        if not use_cache:
            return None
        if not self.caches:
            raise InterpError(
                f"{self.cfg.architecture} takes no cache of keys and values, so no call goes on from another; leave "
                "use_cache out, and lens.score too, which reads the prompt first."
            )
        if self.anatomy.own_cache:
            if self.edits:
                raise UnsupportedModelError(
                    f"{self.cfg.architecture} keeps a cache of its own making, in which attention edits cannot "
                    "remember what they saw; run it without one (use_cache=False)."
                )
            return None  # the model makes one; hooks may look at new keys and values then, not change them
        keeper = self.keeper_of(self.policies, self._block.ledger) if self.policies else None
        decoder = self.anatomy.decoder
        config = getattr(decoder, "config", self.model.config)
        cache = EditedCache(config, keeper, self.edits) if self.edits else LensCache(config, keeper)
        return cache if decoder is None else PairedCache(cache)

    def keeper_of(self, policies: tuple[CachePolicy, ...], ledger: bool = False) -> Keeper:
        """What applies policies to the cache of a new sequence."""
        # no bound method: it could not be copied with the cache
        norms = lambda layer: output_norms(self.cfg, self.anatomy.blocks[layer], layer)  # noqa: E731
        return Keeper(policies, self.cfg, self.cfg.full_attention_layers, norms, ledger)

    def attach_edits(self, sites: Mapping[int, Site], cache: Any, prompt: int | None, undo: Undo) -> None:
        """Let the edits in force act at the attention of a call's layers, until the end of `undo`.

        prompt: how many columns are the prompt of what is generated; None in other calls.
        """
        own = of_own_tokens(cache)
        memory = own.memory if isinstance(own, EditedCache) else EditMemory()
        seen = (lambda: 0) if cache is None else cache.get_seq_length
        editing = Editing(self.edits, self.cfg, memory, seen, self._block.account)
        if prompt is not None:
            undo.later(setattr, memory, "prompt", None)
            memory.prompt = prompt

        def arrive(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if cache is not None and kwargs.get("past_key_values") is not cache:
                raise InterpError(
                    f"{editing.names}: the model was run on a second text within one call (guidance_scale does, and a "
                    "logits processor may), which an attention edit would take for the first; leave that out."
                )
            editing.arrive(model, args, kwargs)

        reader = self.model if self.anatomy.decoder is None else self.anatomy.decoder
        undo.hook(reader, arrive, pre=True, with_kwargs=True)
        for i, site in sites.items():
            layer = LayerEdits(i, editing)
            if layer.acting:
                site.edits = layer
            if layer.reads_residual:
                block = self.anatomy.blocks[i].block
                undo.hook(block, layer.enter, pre=True, with_kwargs=True)

    def refuse_guessing(self, asked: Sequence[str], past: Any) -> None:
        """Assisted generation reads guessed tokens with the prompt: a policy would take them for the prompt's."""
        if asked and (self.policies or getattr(past, "keeper", None) is not None):
            raise InterpError(f"assisted generation ({asked[0]}) does not go with a cache policy; leave it out.")

    def admit_cache(self, past: Any) -> None:
        """Refuse a cache that was made without the interventions in force; keep account of the others."""
        if past is None:
            return
        policies = past.keeper.policies if isinstance(past, LensCache) and past.keeper is not None else ()
        own = of_own_tokens(past)
        edits = own.edits if isinstance(own, EditedCache) else ()
        if (self.policies and policies != self.policies) or (self.edits and edits != self.edits):
            raise InterpError(
                "this cache was filled without the interventions in force; start a new one inside the block."
            )
        if self.policies and all(cache is not past for _, cache in self._block.keepers):
            self._block.keepers.append((past.keeper, past))


def _shut(block: Block) -> None:
    block.open = False  # for whoever was started inside and outlives the block
    _open.set(tuple(other for other in _open.get() if other is not block))


def _warn_unless_fired(policies: tuple[CachePolicy, ...], keepers: list[tuple[Keeper, LensCache]]) -> None:
    names = ", ".join(policy.name for policy in policies)
    keepers = [(keeper, cache) for keeper, cache in keepers if keeper.prompt_tokens is not None]
    if not keepers:
        warnings.warn(f"{names}: no call inside apply() used a cache, so nothing was changed.", stacklevel=4)
    elif not any(layer.lost_something for _, cache in keepers for layer in cache.stored.values()):
        tokens = max(keeper.prompt_tokens or 0 for keeper, _ in keepers)
        warnings.warn(
            f"{names} dropped nothing: the prompt of {tokens} tokens fits what it keeps, or ended before it acts.",
            stacklevel=4,
        )
