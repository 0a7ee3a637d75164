"""D2O: layer budgets, eviction, and recall by merging (Wan et al., ICLR 2025, arXiv:2406.13035)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from interp_kernels import Merge
from jaxtyping import Bool, Float

from interp.errors import InterpError
from interp.interventions.base import Moment, Plan, Prompt
from interp.interventions.keeper import padding_of
from interp.interventions.policies import _layer_budgets as budgets
from interp.interventions.policies import _merging as merging
from interp.interventions.policies._eviction import Eviction, lengths
from interp.interventions.policies._steps import StepPlan
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer
    from interp.seam.config import LensConfig

Tensor = torch.Tensor


@dataclass(frozen=True)
class D2O(Eviction):
    """Keep heavy hitters and recent tokens, with more room in layers of dense attention, and merge what is evicted into
    the most similar retained token where it is similar enough.

    Settings that are None follow `variant`: "paper" as the text describes it (where it leaves something open, ports
    were followed), "code" as released. Each can be set by itself.

    Args:
        budget: a share of the prompt over all layers; in a padded batch of each text, without its padding.
        sinks: tokens at the text's beginning that always stay.
        variant: "paper" or "code", what settings that are None follow.
        metric: what layer budgets follow, see `_layer_budgets.density`; "uniform" gives every layer `budget`. A layer
            has one share for all texts of a batch, from the mean over them, and a warning says so: a text alone has
            shares of its own.
        recent_share: part of a layer's budget for the newest tokens. Paper 1/4 (N:M = 3:1), code 1/2.
        skip: layers that are left alone, though they count in the budgets' softmax. Paper none; code the first two and
            the last, so that its mean budget is larger than `budget`.
        merge: "key_value", "value" (keys stay as they are), or "none".
        weights: of a merge, see `_merging`. Paper "paper", code "code".
        centre: the target's own weight with weights "paper".
        gate: which evicted tokens merge: "per_head", those whose similarity reaches the threshold; "slot_mean" (code),
            the n-th evicted tokens of all heads together, by their mean similarity.
        beta: the threshold is the mean similarity at the first eviction, later (1 - beta) * threshold + beta * x with x
            the similarity just seen; it is updated before it is used. Paper 0.7, code 0.5.
        compress_at: "prefill_end", or "first_decode": attend in full once more and count that row too (code). The
            first token after the prompt then has to come by itself, as it does in `generate` and `lens.score`.
        granularity: "kv_head", attention summed over the group; "query_head" as released, keys stored g times.

    Differs from the release, whose nine bugs are not copied: the threshold belongs to one sequence; any head count and
    size; batches with left padding; sums in fp32; sink scores stay finite; sizes are rounded down once. No N x N
    map is made: budgets and scores come from the column mass. A layer keeps at least the sinks and one more token, and
    at most all: `lens.last_cache.report()` has what each kept, whose mean need not be `budget`.

    Examples:
        >>> with lens.apply(interp.D2O(budget=0.5, variant="paper", metric="uniform")):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [20]
    """

    name: ClassVar[str] = "d2o"
    granularity: Literal["kv_head", "query_head"] = "kv_head"  # type: ignore[misc]  # a setting here, fixed elsewhere
    sinks: int = 4
    variant: Literal["paper", "code"] = "code"
    metric: budgets.Metric | None = None
    recent_share: float | None = None
    skip: tuple[int, ...] | None = None
    merge: Literal["key_value", "value", "none"] = "key_value"
    weights: merging.Weights | None = None
    centre: float = 2.718281828459045
    gate: Literal["per_head", "slot_mean"] | None = None
    beta: float | None = None
    compress_at: Literal["prefill_end", "first_decode"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget >= 1:
            raise InterpError(f"d2o: budget is a share of the prompt, above 0 and below 1, found {self.budget}.")
        for name in ("recent_share", "beta"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise InterpError(f"d2o: {name} should be at least 0 and below 1, found {value}.")
        if not self.centre > 0:
            raise InterpError(f"d2o: centre, a target's own weight, should be above 0, found {self.centre}.")
        if self.skip is not None and min(self.skip, default=0) < 0:
            raise InterpError(f"d2o: skip should be a tuple of layer numbers, such as (0, 1), found {self.skip!r}.")

    def setting(self, name: str) -> Any:
        """A setting, or what `variant` says about it."""
        value = getattr(self, name)
        return BY_VARIANT[self.variant][name] if value is None else value

    def unfit_for_latents(self, cfg: LensConfig) -> str | None:
        if self.merge == "value":
            return "a latent is key and value at once, so no value is merged without its key"
        return super().unfit_for_latents(cfg)

    def skipped(self, prompt: Prompt) -> set[int]:
        """Numbers of the layers that are left alone."""
        if self.skip is not None:
            return set(self.skip)
        return set() if self.variant == "paper" else {0, 1, prompt.cfg.n_layers - 1}

    def check(self, prompt: Prompt) -> None:
        if beyond := [i for i in self.skip or () if i >= prompt.cfg.n_layers]:
            raise InterpError(f"d2o: skip names layer {beyond[0]}, and layers are 0 to {prompt.cfg.n_layers - 1}.")
        if not set(prompt.layers) - self.skipped(prompt):
            raise InterpError("d2o: every layer is skipped; pass skip=() to act on all of them.")

    def scores(self, layer: int, event: AttentionEvent) -> Tensor:
        return event.column_mass

    def begin(self, prompt: Prompt) -> Plan:
        return D2OPlan(self, prompt)


BY_VARIANT: dict[str, dict[str, Any]] = {
    "paper": {
        "metric": "paper_raw", "recent_share": 0.25, "weights": "paper", "gate": "per_head", "beta": 0.7,
        "compress_at": "prefill_end",
    },
    "code": {
        "metric": "code_minmax", "recent_share": 0.5, "weights": "code", "gate": "slot_mean", "beta": 0.5,
        "compress_at": "first_decode",
    },
}  # fmt: skip


class D2OPlan(StepPlan):
    policy: D2O

    def __init__(self, policy: D2O, prompt: Prompt) -> None:
        super().__init__(policy, prompt)
        self.moment: Moment = policy.setting("compress_at")
        self.variance: dict[int, Float[Tensor, " head"]] = {}
        self.shares: dict[int, float] = {}
        """Of the prompt, by layer; known once all layers have been seen."""

    def observe(self, layer: int, event: AttentionEvent) -> None:
        seen = self._by_stored_head(event.column_mass, event.k.shape[1])
        if layer in self.scored:  # the first decoded token's row on top of the prompt's sums
            before = self.scored[layer]
            seen = seen + torch.nn.functional.pad(before, (0, seen.shape[-1] - before.shape[-1]))
        else:
            self.variance[layer] = budgets.head_variance(event.column_mass, padding_of(event.facts))
        self.scored[layer] = seen

    def compress(self, layer: int, stored: StoredLayer) -> None:
        of_text = lengths(stored)
        if not self.shares:
            metric, tokens = self.policy.setting("metric"), sum(of_text) // len(of_text)
            self._say_that_shares_are_shared(len(of_text), metric)
            densities = [budgets.density(self.variance[i], tokens, metric) for i in self.prompt.layers]
            shares = budgets.layer_shares(densities, self.policy.budget)
            self.shares = dict(zip(self.prompt.layers, shares, strict=True))
        scores = self.scored.pop(layer)
        if layer in self.policy.skipped(self.prompt) or self.shares[layer] == 1.0:
            return
        # never fewer than the sinks and one more, whatever the budget: a layer of sinks alone would forget the text
        beyond = stored.seen - self.prompt.tokens - (self.moment == "first_decode")  # however many are fed at a time
        sizes = [max(self.policy.sinks + 1, int(self.shares[layer] * (n - beyond) + 1e-9)) for n in of_text]
        self.evict_or_grow(layer, stored, scores, sizes, self.recents(sizes))

    def recents(self, sizes: Sequence[int]) -> list[int]:
        share = self.policy.setting("recent_share")
        return [min(int(size * share), size - self.policy.sinks) for size in sizes]

    def _say_that_shares_are_shared(self, texts: int, metric: budgets.Metric) -> None:
        if texts > 1 and metric != "uniform":
            warnings.warn(
                f"d2o: a layer has one share for all {texts} texts of this batch, from the mean over them, so that "
                "each keeps other tokens than it would alone; read them one by one, or set metric='uniform'.",
                stacklevel=2,
            )

    def merge(self, layer: int) -> Merge | None:
        """Into the most similar retained token, if that is similar enough."""
        if self.policy.merge == "none":
            return None
        weights = self.policy.setting("weights")

        def decide(similarity: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            return self._gate(layer, similarity, real), *merging.factors(similarity, weights)

        own = merging.own_weight(weights, self.policy.centre)
        return Merge(decide, own, keys=self.policy.merge == "key_value")

    def _update_threshold(self, layer: int, similarity: Tensor, real: Tensor) -> None:
        """Threshold `[batch, head]`; with the released gate it is the same for all heads."""
        over = (1, 2) if self.policy.setting("gate") == "slot_mean" else (2,)
        count = real.sum(over, keepdim=True).clamp_min(1)
        seen = (similarity.where(real, 0.0).sum(over, keepdim=True) / count)[..., 0].expand(similarity.shape[:2])
        # NaN until a real token is evicted: a short text may lose nothing but padding at first
        before = self.threshold.get(layer, torch.full_like(seen, torch.nan))
        beta = self.policy.setting("beta")
        updated = torch.where(before.isnan(), seen, (1 - beta) * before + beta * seen)
        self.threshold[layer] = updated.where(real.any(over, keepdim=True)[..., 0], before)

    def _gate(self, layer: int, similarity: Tensor, real: Tensor) -> Bool[Tensor, "batch head E"]:
        """Which evicted tokens are similar enough to be merged, by the threshold that they have moved."""
        self._update_threshold(layer, similarity, real)
        threshold = self.threshold[layer][..., None]
        if self.policy.setting("gate") == "slot_mean":
            similarity = similarity.where(real, 0.0).mean(1, keepdim=True).expand_as(similarity)
        return (similarity >= threshold) & real

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.threshold = {layer: tau.index_select(0, rows.to(tau.device)) for layer, tau in self.threshold.items()}
