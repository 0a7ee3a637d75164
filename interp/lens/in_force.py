"""`lens.apply(...)`: interventions in force for the calls of a `with` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import or_
from typing import Any

from interp.cache.lens_cache import LensCache
from interp.errors import InterpError
from interp.interventions.base import CachePolicy, Intervention, parts
from interp.interventions.edits._edit_memory import EditedCache, EditMemory
from interp.interventions.edits._editing import EditAccount, Editing, LayerEdits
from interp.interventions.edits.base import AttentionEdit
from interp.interventions.keeper import Keeper, cache_policies
from interp.seam.attention import Site

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


class ApplyMixin:
    """The part of a Lens that puts interventions in force."""

    _policies: tuple[CachePolicy, ...] = ()
    _keepers: list[tuple[Keeper, LensCache]]
    _ledger: bool = False
    _edits: tuple[AttentionEdit, ...] = ()
    _account: EditAccount

    @contextmanager
    def apply(self: Any, intervention: Intervention, *, ledger: bool = False) -> Iterator[Any]:
        """Put an intervention in force for calls inside the block: `with lens.apply(KnockOut(keys=0) | ThinK()): ...`.

        A cache policy acts on the cache of each call that starts one (`generate`, `score`, or a call with
        `use_cache=True`); the cache carries its policy, so a later turn may continue with it inside the block or after.
        An attention edit acts in every call, with a cache or without, and ends with the block; a policy beside it sees
        the attention that the edited model pays. The model itself is never changed. With `ledger`,
        `lens.last_cache.keeper.ledger` lists every eviction.

        Raises InterpError where interventions do not go together or do not fit the model, before anything runs. Warns
        on leaving where nothing was ever dropped, or no attention changed: what did not act is no result.
        """
        if self._policies or self._edits:
            raise InterpError("interventions are in force already; put them together with | in one apply.")
        edits = tuple(part for part in parts(intervention) if isinstance(part, AttentionEdit))
        others = [part for part in parts(intervention) if not isinstance(part, AttentionEdit)]
        for edit in edits:
            edit.check(self.cfg)
        if ledger and not others:
            raise InterpError("a ledger lists what cache policies evict, and there is none among the interventions.")
        self._policies = self.policies_of(reduce(or_, others)) if others else ()
        self._keepers, self._ledger = [], ledger
        self._edits, self._account = edits, EditAccount()
        try:
            yield self
            if self._policies:
                _warn_unless_fired(self._policies, self._keepers)
            for told in self._account.silent(self._edits):
                warnings.warn(told, stacklevel=3)  # the line of the `with`
        finally:
            self._policies, self._keepers, self._ledger, self._edits = (), [], False, ()

    @property
    def edits_in_force(self) -> tuple[AttentionEdit, ...]:
        """The attention edits of the `apply` block that is open, in order."""
        return self._edits

    def policies_of(self: Any, intervention: Intervention) -> tuple[CachePolicy, ...]:
        """The cache policies of an intervention of nothing else, checked against this model; raises what `apply` raises
        for them."""
        if edits := [part.name for part in parts(intervention) if isinstance(part, AttentionEdit)]:
            raise InterpError(
                f"{' and '.join(edits)} edits attention and drops nothing from a cache; leave it out here."
            )
        latent = any(hasattr(block.attention, "kv_lora_rank") for block in self.anatomy.blocks)
        return cache_policies(intervention, self.cfg, latent)

    def _new_cache(self: Any, use_cache: bool) -> LensCache | None:
        """A cache for a call that brought none, under the interventions in force."""
        if self._policies and not use_cache:
            names = ", ".join(policy.name for policy in self._policies)
            raise InterpError(f"{names} acts on a cache, and this call keeps none: pass use_cache=True, or generate.")
        if not use_cache:
            return None
        norms = lambda layer: self.output_norms(layer)  # noqa: E731  a bound method could not be copied with the cache
        layers = self.cfg.full_attention_layers
        keeper = Keeper(self._policies, self.cfg, layers, norms, self._ledger) if self._policies else None
        config = self.model.config
        return EditedCache(config, keeper, self._edits) if self._edits else LensCache(config, keeper)

    def _attach_edits(self: Any, sites: list[Site], cache: Any, stack: ExitStack) -> None:
        """Let the edits in force act at the attention of a call's layers, until `stack` is closed."""
        memory = cache.memory if isinstance(cache, EditedCache) else EditMemory()
        seen = (lambda: 0) if cache is None else cache.get_seq_length
        editing = Editing(self._edits, memory, seen, self._account)
        stack.callback(self.model.register_forward_pre_hook(editing.arrive, with_kwargs=True).remove)
        for site, part in zip(sites, self.anatomy.blocks, strict=True):
            layer = LayerEdits(site.layer, editing)
            if layer.acting:
                site.edits = layer
            if layer.reads_residual:
                stack.callback(part.block.register_forward_pre_hook(layer.enter, with_kwargs=True).remove)

    def _refuse_guessing(self: Any, kwargs: dict[str, Any]) -> None:
        """Assisted generation reads guessed tokens with the prompt: a policy would take them for the prompt's."""
        carries = getattr(kwargs.get("past_key_values"), "keeper", None) is not None
        asked = [name for name in ASSISTED if kwargs.get(name) is not None]
        if asked and (self._policies or carries):
            raise InterpError(f"assisted generation ({asked[0]}) does not go with a cache policy; leave it out.")

    def _admit_cache(self: Any, past: Any) -> None:
        """Refuse a cache that was made without the interventions in force; keep account of the others."""
        if past is None:
            return
        policies = past.keeper.policies if isinstance(past, LensCache) and past.keeper is not None else ()
        edits = past.edits if isinstance(past, EditedCache) else ()
        if (self._policies and policies != self._policies) or (self._edits and edits != self._edits):
            raise InterpError(
                "this cache was filled without the interventions in force; start a new one inside the block."
            )
        if self._policies and all(cache is not past for _, cache in self._keepers):
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
