"""`lens.apply(...)`: interventions in force for the calls of a `with` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import or_
from typing import Any, TypeVar

from interp.cache.lens_cache import LensCache
from interp.errors import InterpError
from interp.interventions.base import CachePolicy, Intervention, parts
from interp.interventions.edits._edit_memory import EditedCache, EditMemory
from interp.interventions.edits._editing import EditAccount, Editing, LayerEdits
from interp.interventions.edits.base import AttentionEdit
from interp.interventions.keeper import Keeper
from interp.lens.anatomy import Anatomy
from interp.lens.protocol import InterventionLens
from interp.lens.readout import output_norms
from interp.seam.attention import Site
from interp.seam.config import LensConfig

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
Applied = TypeVar("Applied", bound=InterventionLens)


class InForce:
    """The interventions in force on a Lens, with the account of what they did; none outside an `apply` block.

    It knows the parts of a Lens and not the Lens itself, so that a Lens nobody holds any more is freed at once.
    """

    def __init__(self, model: Any, cfg: LensConfig, anatomy: Anatomy) -> None:
        self.model, self.cfg, self.anatomy = model, cfg, anatomy
        self.policies: tuple[CachePolicy, ...] = ()
        self.edits: tuple[AttentionEdit, ...] = ()
        self._keepers: list[tuple[Keeper, LensCache]] = []
        self._ledger = False
        self._account = EditAccount()

    @contextmanager
    def apply(self, lens: Applied, intervention: Intervention, ledger: bool) -> Iterator[Applied]:
        """What `Lens.apply` does; `lens` is what the block gets."""
        if self.policies or self.edits:
            raise InterpError("interventions are in force already; put them together with | in one apply.")
        edits = tuple(part for part in parts(intervention) if isinstance(part, AttentionEdit))
        others = [part for part in parts(intervention) if not isinstance(part, AttentionEdit)]
        for edit in edits:
            edit.check(self.cfg)
        if ledger and not others:
            raise InterpError("a ledger lists what cache policies evict, and there is none among the interventions.")
        self.policies = lens.policies_of(reduce(or_, others)) if others else ()
        self._keepers, self._ledger = [], ledger
        self.edits, self._account = edits, EditAccount()
        try:
            yield lens
            if self.policies:
                _warn_unless_fired(self.policies, self._keepers)
            for told in self._account.silent(self.edits):
                warnings.warn(told, stacklevel=3)  # the line of the `with`
        finally:
            self.policies, self._keepers, self._ledger, self.edits = (), [], False, ()

    def new_cache(self, use_cache: bool) -> LensCache | None:
        """A cache for a call that brought none, under the interventions in force."""
        if self.policies and not use_cache:
            names = ", ".join(policy.name for policy in self.policies)
            raise InterpError(f"{names} acts on a cache, and this call keeps none: pass use_cache=True, or generate.")
        if not use_cache:
            return None
        if own := self.anatomy.own_cache:
            if self.edits:
                raise InterpError(
                    f"{self.cfg.architecture} keeps a cache of its own ({own}), which edits cannot follow from step to "
                    "step; pass use_cache=False."
                )
            return None  # it makes one itself; hooks read what it stores
        # no bound method: it could not be copied with the cache
        norms = lambda layer: output_norms(self.cfg, self.anatomy.blocks[layer], layer)  # noqa: E731
        layers = self.cfg.full_attention_layers
        keeper = Keeper(self.policies, self.cfg, layers, norms, self._ledger) if self.policies else None
        config = self.model.config
        return EditedCache(config, keeper, self.edits) if self.edits else LensCache(config, keeper)

    def attach_edits(self, sites: Mapping[int, Site], cache: Any, stack: ExitStack) -> None:
        """Let the edits in force act at the attention of a call's layers, until `stack` is closed."""
        memory = cache.memory if isinstance(cache, EditedCache) else EditMemory()
        seen = (lambda: 0) if cache is None else cache.get_seq_length
        editing = Editing(self.edits, memory, seen, self._account)
        stack.callback(self.model.register_forward_pre_hook(editing.arrive, with_kwargs=True).remove)
        for i, site in sites.items():
            layer = LayerEdits(i, editing)
            if layer.acting:
                site.edits = layer
            if layer.reads_residual:
                block = self.anatomy.blocks[i].block
                stack.callback(block.register_forward_pre_hook(layer.enter, with_kwargs=True).remove)

    def refuse_guessing(self, kwargs: dict[str, Any]) -> None:
        """Assisted generation reads guessed tokens with the prompt: a policy would take them for the prompt's."""
        carries = getattr(kwargs.get("past_key_values"), "keeper", None) is not None
        asked = [name for name in ASSISTED if kwargs.get(name) is not None]
        if asked and (self.policies or carries):
            raise InterpError(f"assisted generation ({asked[0]}) does not go with a cache policy; leave it out.")

    def admit_cache(self, past: Any) -> None:
        """Refuse a cache that was made without the interventions in force; keep account of the others."""
        if past is None:
            return
        policies = past.keeper.policies if isinstance(past, LensCache) and past.keeper is not None else ()
        edits = past.edits if isinstance(past, EditedCache) else ()
        if (self.policies and policies != self.policies) or (self.edits and edits != self.edits):
            raise InterpError(
                "this cache was filled without the interventions in force; start a new one inside the block."
            )
        if self.policies and all(cache is not past for _, cache in self._keepers):
            self._keepers.append((past.keeper, past))


def _warn_unless_fired(policies: tuple[CachePolicy, ...], keepers: list[tuple[Keeper, LensCache]]) -> None:
    names = ", ".join(policy.name for policy in policies)
    keepers = [(keeper, cache) for keeper, cache in keepers if keeper.prompt_tokens is not None]
    if not keepers:
        warnings.warn(f"{names}: no call inside apply() used a cache, so nothing was changed.", stacklevel=4)
    elif not any(layer.compressed for _, cache in keepers for layer in cache.stored.values()):
        tokens = max(keeper.prompt_tokens or 0 for keeper, _ in keepers)
        warnings.warn(
            f"{names} dropped nothing: the prompt of {tokens} tokens fits what it keeps, or ended before it acts.",
            stacklevel=4,
        )
