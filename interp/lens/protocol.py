"""What others need of a Lens: hook points and text of any (`TextLens`), interventions of one (`InterventionLens`).

A `Lens` is both and a `BridgeLens` the first; `interp.lens` has mypy see to it. Probes, runs and explanations name
these in their signatures, so that an editor completes a lens there and mypy sees what is asked of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeGuard

import torch
from jaxtyping import Float, Int

from interp.cache.lens_cache import LensCache
from interp.interventions.base import CachePolicy, Intervention
from interp.interventions.edits.base import AttentionEdit
from interp.lens.parts import Anatomy
from interp.lens.reading_input import Read
from interp.lens.readout import FinalNorm
from interp.lens.spelling import Spelling
from interp.lens.strict_hooks import HookPoint, Hooks
from interp.seam.config import LensConfig
from interp.seam.points import Point

Tensor = torch.Tensor


class TextLens(Protocol):
    """A model that reads text, with hook points: a `Lens` or a `BridgeLens`."""

    model: Any
    """The transformers model, whose classes have no types that mypy could follow."""
    tokenizer: Any
    processor: Any
    """What makes of images what the model reads; None where it sees none."""
    point_table: dict[str, Point]
    absent: dict[str, str]
    ln_final: FinalNorm
    """Missing where the model has no final norm that could be found."""

    @property
    def cfg(self) -> LensConfig: ...

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def hook_dict(self) -> dict[str, HookPoint]: ...

    @property
    def last_logits_only(self) -> Mapping[str, Any]: ...

    @property
    def edits_in_force(self) -> tuple[AttentionEdit, ...]: ...

    @property
    def policies_in_force(self) -> tuple[CachePolicy, ...]: ...

    def __call__(self, input: Any = None, return_type: str | None = "logits", **kwargs: Any) -> Any: ...

    def point_names(self, name: Any) -> list[str]: ...

    def hooks(self, fwd_hooks: Hooks = ..., bwd_hooks: Hooks = ...) -> AbstractContextManager[Any]: ...

    def run_with_hooks(self, *args: Any, fwd_hooks: Hooks = ..., bwd_hooks: Hooks = ..., **kwargs: Any) -> Any: ...

    def run_with_cache(self, *args: Any, names_filter: Any = None, **kwargs: Any) -> Any: ...

    def tokens_and_mask(
        self, input: Any, attention_mask: Any = None, chat: bool = False
    ) -> tuple[Tensor, Tensor | None]: ...

    def to_tokens(self, input: Any, *, truncate: int | None = None) -> Int[Tensor, "batch pos"]: ...

    def to_str_tokens(self, input: Any) -> list[Any]: ...

    def rows(
        self, input: Any, attention_mask: Any = None, truncate: int | None = None
    ) -> tuple[list[Int[Tensor, "1 pos"]], bool]: ...

    def continuation_rows(self, prompt: Any, continuation: Any) -> list[Int[Tensor, " pos"]]: ...

    def plain_rows(self, input: Any) -> tuple[list[Int[Tensor, " pos"]], bool]: ...

    def token_ids(self, text: str) -> list[int]: ...

    def check_length(self, n_tokens: int) -> None: ...

    def unembed(self, normalized: Tensor) -> Tensor: ...

    def normalized(self, resid: Tensor) -> Tensor: ...

    def final_norm_frozen(self, resid: Tensor) -> Callable[[Tensor], Tensor]: ...

    def output_norms(self, layer: int) -> Float[Tensor, "head d_head"]: ...

    def head_contributions(self, layer: int, z: Tensor, pos: int = -1) -> Float[Tensor, "head d_model"]: ...


class InterventionLens(TextLens, Protocol):
    """A Lens whose attention and cache interventions can reach: a `Lens`."""

    last_cache: LensCache | None

    def apply(self, intervention: Intervention, *, ledger: bool = False) -> AbstractContextManager[Any]: ...

    def policies_of(self, intervention: Intervention) -> tuple[CachePolicy, ...]: ...

    def score(
        self, prompt: Any, continuation: Any, *, chunk: int = 256, images: Any = None
    ) -> Float[Tensor, "batch token"]: ...

    def read_arguments(
        self,
        input: Any,
        attention_mask: Any,
        arguments: dict[str, Any],
        spelled: Spelling,
        chat: bool = False,
        *,
        goes_on: bool = False,
    ) -> Read: ...

    def generate(
        self, input: Any = None, max_new_tokens: int | None = None, chat: bool = False, **kwargs: Any
    ) -> Any: ...


def reads_text(model: object) -> TypeGuard[TextLens]:
    """Whether this is a lens at all; a model of regression tasks (`interp.icl.AttentionRegressor`) has hook points too,
    and no text."""
    # no isinstance: it would ask for every member, and a lens may lack `ln_final`; nor does it find what torch's Module
    # holds for a lens (`model`) from Python 3.12 on
    return hasattr(model, "tokens_and_mask")


def takes_interventions(lens: TextLens) -> TypeGuard[InterventionLens]:
    """Whether interventions reach this lens; a TransformerBridge computes attention out of their reach."""
    return hasattr(lens, "policies_of")  # as above; a bridge has `apply` too, which only raises
