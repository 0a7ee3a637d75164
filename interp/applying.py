"""`lens.apply(...)`: interventions in force for the calls of a `with` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interp.cache import LensCache
from interp.errors import InterpError
from interp.interventions.base import CachePolicy, Intervention, Keeper, cache_policies

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


class ApplyMixin:
    """The part of a Lens that puts interventions in force."""

    _policies: tuple[CachePolicy, ...] = ()
    _keepers: list[tuple[Keeper, LensCache]]
    _ledger: bool = False

    @contextmanager
    def apply(self: Any, intervention: Intervention, *, ledger: bool = False) -> Iterator[Any]:
        """Put an intervention in force for calls inside the block: `with lens.apply(ThinK() | SnapKV()): ...`.

        A cache policy acts on the cache of each call that starts one (`generate`, `score`, or a call with
        `use_cache=True`); the cache carries its policy, so a later turn may continue with it inside the block or after.
        The model itself is never changed. With `ledger`, `lens.last_cache.keeper.ledger` lists every eviction.

        Raises InterpError where interventions do not go together or do not fit the model, before anything runs. Warns
        on leaving where nothing was ever dropped: a policy that did not act is no result.
        """
        if self._policies:
            raise InterpError("interventions are in force already; put them together with | in one apply.")
        self._policies = self.policies_of(intervention)
        self._keepers, self._ledger = [], ledger
        try:
            yield self
            _warn_unless_fired(self._policies, self._keepers)
        finally:
            self._policies, self._keepers, self._ledger = (), [], False

    def policies_of(self: Any, intervention: Intervention) -> tuple[CachePolicy, ...]:
        """The cache policies of an intervention, checked against this model; raises what `apply` raises."""
        latent = any(hasattr(block.attention, "kv_lora_rank") for block in self.anatomy.blocks)
        return cache_policies(intervention, self.cfg, latent)

    def _new_cache(self: Any, use_cache: bool) -> LensCache | None:
        """A cache for a call that brought none, under the policies in force."""
        if not self._policies:
            return LensCache(self.model.config) if use_cache else None
        if not use_cache:
            names = ", ".join(policy.name for policy in self._policies)
            raise InterpError(f"{names} acts on a cache, and this call keeps none: pass use_cache=True, or generate.")
        norms = lambda layer: self.output_norms(layer)  # noqa: E731  a bound method could not be copied with the cache
        keeper = Keeper(self._policies, self.cfg, self.cfg.full_attention_layers, norms, self._ledger)
        cache = LensCache(self.model.config, keeper)
        self._keepers.append((keeper, cache))
        return cache

    def _refuse_guessing(self: Any, kwargs: dict[str, Any]) -> None:
        """Assisted generation reads guessed tokens with the prompt: a policy would take them for the prompt's."""
        carries = getattr(kwargs.get("past_key_values"), "keeper", None) is not None
        asked = [name for name in ASSISTED if kwargs.get(name) is not None]
        if asked and (self._policies or carries):
            raise InterpError(f"assisted generation ({asked[0]}) does not go with a cache policy; leave it out.")

    def _check_cache(self: Any, past: Any) -> None:
        """Refuse a cache that was made without the policies in force."""
        made_with = past.keeper.policies if isinstance(past, LensCache) and past.keeper is not None else ()
        if self._policies and made_with != self._policies:
            raise InterpError(
                "this cache was filled without the interventions in force; start a new one inside the block."
            )


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
