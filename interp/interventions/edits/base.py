"""What an attention edit is: which rows, heads and groups of keys it changes, and at which stage.

An `AttentionEdit` sorts keys into a few groups and says which rows it may change. There are two stages:

    `LogitEdit`    before the softmax: each group's logits are scaled, and a bias is added.
    `PatternEdit`  after it: from the masses of a row's groups it decides by what factor each is multiplied.

Everything else (chunks, padding, caches, hooks, gradients, what is fused) is `_editing.py`'s part. A new method is one
new file: its groups, its rows, and its `change` or its `factors`.

Logit edits act first, then pattern edits, each kind in the order in which `|` puts them: a logit edit sees logits and a
pattern edit sees masses as those before it left them. Edits act before cache policies: what a policy observes is the
attention that the edited model pays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import InterpError
from interp.interventions.base import Intervention

if TYPE_CHECKING:
    from interp.seam.config import LensConfig

Tensor = torch.Tensor
Numbers = int | tuple[int, ...]
Tokens = Numbers | Literal["images", "text"]
"""Positions of tokens, or all that stand for images, or all others."""


@dataclass(frozen=True)
class NewTokens:
    """The texts of a batch when a layer attends: all tokens so far, of which the last `new` have just arrived."""

    layer: int
    new: int
    positions: Int[Tensor, "batch token"]
    """Place in its own text, counted from 0; -1 at padding."""
    ids: Int[Tensor, "batch token"]
    images: Bool[Tensor, "batch token"]
    """Which tokens stand for images; none in models that read text alone."""
    generated: int
    """How many of the new tokens, the last ones, are no part of a prompt: what `generate` wrote, what `score` reads
    after its prompt, and a token that comes alone to others that are stored."""
    residual: Float[Tensor, "batch new d_model"] | None
    """The residual stream of the new tokens as it enters the layer, for edits with `reads_residual`."""


@dataclass(frozen=True, kw_only=True)
class AttentionEdit(Intervention, ABC):
    """Changes the attention that rows pay to groups of keys. Methods derive from `LogitEdit` or `PatternEdit`.

    Args:
        layers: numbers of the layers that are edited; None: all.
        heads: numbers of the query heads that are edited; None: all.
    """

    group_count: ClassVar[int]
    """How many groups of keys it tells apart; what it knows nothing of belongs to one of them too."""
    idle_at: ClassVar[Mapping[str, Any]] = {}
    """Settings that together ask for no change at all, such as a strength of 0."""
    layers: Numbers | None = None
    heads: Numbers | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._as_tuples("layers", "heads")

    def _as_tuples(self, *names: str) -> None:
        """Make settings that name tokens, layers or heads tuples of distinct numbers, however they were given."""
        for name in names:
            given = getattr(self, name)
            if given is None or isinstance(given, str):
                continue
            numbers = (given,) if isinstance(given, int) else tuple(int(number) for number in given)
            if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
                found = list(numbers)
                raise InterpError(f"{self.name}: {name} should be distinct numbers counted from 0, found {found}.")
            object.__setattr__(self, name, numbers)

    @property
    def idle(self) -> bool:
        """Whether the settings ask for no change at all: then attention is left to the model, bit for bit."""
        return bool(self.idle_at) and all(getattr(self, name) == value for name, value in self.idle_at.items())

    @property
    def reads_residual(self) -> bool:
        """Whether `groups` and `rows` look at the residual stream."""
        return False

    @property
    def reads_images(self) -> bool:
        """Whether the settings tell tokens of images from others."""
        return any(isinstance(getattr(self, name, None), str) for name in ("keys", "queries"))

    def check(self, cfg: LensConfig) -> None:
        """Raise InterpError where the settings name something that the model does not have."""
        if self.reads_images and cfg.image_token_id is None:
            raise InterpError(
                f"{self.name}: {cfg.architecture} reads text and no images, so there are no image tokens to edit "
                "attention to; load a vision-language model."
            )
        for name, given, count in (("layers", self.layers, cfg.n_layers), ("heads", self.heads, cfg.n_heads)):
            if missing := [str(number) for number in several(given) if number >= count]:
                raise InterpError(
                    f"{self.name}: {cfg.architecture} has {name} 0 to {count - 1}, found {', '.join(missing)}."
                )
        if without := [str(layer) for layer in several(self.layers) if layer not in cfg.attention_layers]:
            raise InterpError(
                f"{self.name}: layers {', '.join(without)} of {cfg.architecture} have no attention to edit; those that "
                f"have are {', '.join(map(str, cfg.attention_layers))}."
            )
        if cfg.n_ctx and (unmet := self.unmet(cfg.n_ctx)):
            raise InterpError(f"{self.name}: {unmet}, the context of {cfg.architecture}.")

    def acts_in(self, layer: int, depth: int) -> bool:
        """Whether a layer of a model with `depth` of them is edited."""
        return self.layers is None or layer in several(self.layers)

    @abstractmethod
    def groups(self, text: NewTokens) -> Int[Tensor, "batch new"]:
        """The group of each new token's key, 0 to group_count - 1. Asked once a token and layer, when it arrives."""

    def rows(self, text: NewTokens) -> Bool[Tensor, "batch new"]:
        """Which of the new tokens' rows may change."""
        return torch.ones_like(text.positions[:, -text.new :], dtype=torch.bool)

    def same_in_all_layers(self, text: NewTokens) -> bool:
        """Whether `groups` and `rows` answer the same in every layer, of these tokens; then only one asks."""
        return False

    def unmet(self, longest: int) -> str | None:
        """What the settings name that texts of up to `longest` tokens do not have, in words; None: nothing."""
        return None


class PatternEdit(AttentionEdit):
    """Multiplies the attention that rows pay to groups of keys, after the softmax."""

    @property
    def keeps_sums(self) -> bool:
        """Whether an edited row is scaled back to the sum that it had."""
        return True

    @abstractmethod
    def factors(self, masses: Float[Tensor, "batch head row group"]) -> Tensor:
        """What each group's attention is multiplied by, `[batch or 1, head or 1, row or 1, group]`, from the attention
        that a row pays to each group. A rule of `interp_kernels` will do; factors carry gradients."""


Values = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class LogitChange:
    """What becomes of a logit: `scale * logit + bias`. A scale of 0 sets it to the bias.

    Each is one number, one for each group of keys, or a tensor that broadcasts to `[batch, head, row, group]`.
    """

    scale: Values = 1.0
    bias: Values = 0.0
    sink_scale: Values = 1.0
    """What learned sink logits (gpt-oss) are multiplied by: one number, or `[batch or 1, head or 1, row or 1, 1]`."""


class LogitEdit(AttentionEdit):
    """Scales the logits that rows give to groups of keys and adds a bias to them, before the softmax.

    A logit is what enters the softmax: the scaled product of query and key, softcap applied. What a row does not see it
    does not see after an edit either, whatever the edit says; and how many tokens a stored summary counts for is no
    part of its logit.
    """

    @abstractmethod
    def change(self, positions: Int[Tensor, "batch row"]) -> LogitChange:
        """What happens to the logits of each group of keys, in rows at these places in their text (-1 at padding)."""


def several(numbers: Tokens | None) -> tuple[int, ...]:
    """Numbers of a setting, which may be one alone; None, or a word for tokens: none."""
    if numbers is None or isinstance(numbers, str):
        return ()
    return (numbers,) if isinstance(numbers, int) else numbers


def at_positions(text: NewTokens, positions: Tokens) -> Bool[Tensor, "batch new"]:
    """Which of the new tokens stand at one of the positions in their text, or are what a word says."""
    new = text.positions[:, -text.new :]
    if isinstance(positions, str):
        images = text.images[:, -text.new :]
        return images if positions == "images" else ~images & (new >= 0)
    return torch.isin(new, _told(several(positions), new.device))


@lru_cache(maxsize=64)
def _told(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, " position"]:
    """Numbers as a tensor: each step of generation asks for the same in every layer."""
    return torch.tensor(numbers, device=device)


def beyond(longest: int, **named: Tokens | None) -> str | None:
    """Which positions, by the setting that names them, texts of `longest` tokens do not have; None: they have all."""
    missing = [f"{name} {n}" for name, given in named.items() for n in several(given) if n >= longest]
    return f"{', '.join(missing)} would lie beyond {longest:,} tokens" if missing else None
