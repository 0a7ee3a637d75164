"""What is true of a model, seen without a Lens: its logits, its text, and the weights of its attention."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

Tensor = torch.Tensor
PROMPT, SHORT, PADDING, NEW = 24, 14, 4, 5


@dataclass(frozen=True)
class Texts:
    """Tokens that stand for text: one short, one long enough for policies to act on, and two with padding."""

    short: Tensor
    prompt: Tensor
    padded: Tensor
    mask: Tensor

    @classmethod
    def some(cls) -> Texts:
        random = torch.Generator().manual_seed(3)
        shapes = ((1, SHORT), (1, PROMPT), (2, SHORT))
        short, prompt, padded = (torch.randint(5, 90, shape, generator=random) for shape in shapes)
        mask = torch.ones_like(padded)
        mask[0, :PADDING] = padded[0, :PADDING] = 0
        return cls(short, prompt, padded, mask)


class Bare:
    """The model itself, and what it answers. `eager` is a copy that computes its attention in the open."""

    def __init__(self, model: Any) -> None:
        self.model, self.texts = model, Texts.some()
        self.logits: Tensor = model(self.texts.short, use_cache=False).logits
        self.eager = _eager(model)

    def on_padding(self) -> Tensor | None:
        """Logits of the padded texts with positions that follow the mask; None where the model takes no mask."""
        mask = self.texts.mask
        takes = inspect.signature(self.model.forward).parameters
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        for options in [positions, {}] if {"position_ids", "kwargs"} & set(takes) else [{}]:
            try:
                logits: Tensor = self.model(self.texts.padded, attention_mask=mask, use_cache=False, **options).logits
            except Exception:  # whatever a model says that does not know an argument
                continue
            return logits
        return None

    def continued(self, tokens: Tensor, mask: Tensor | None = None, cached: bool = False) -> Tensor:
        """Greedily, as the model does by default; `cached` hands it a cache, which most make themselves."""
        told: dict[str, Any] = {"attention_mask": torch.ones_like(tokens) if mask is None else mask}
        if cached:
            told["past_key_values"] = transformers.DynamicCache(config=self.model.config)
        text: Tensor = self.model.generate(tokens, max_new_tokens=NEW, do_sample=False, **told)
        return text

    def patterns(self, layers: int, tokens: Tensor, **given: Any) -> list[Tensor] | None:
        """Weights `[batch, head, query, key]` of so many layers: what the model itself reports or, where it reports
        none, what the attention function of its own file returns. None where neither is to be had, or where the model
        run eagerly computes something else (PaliGemma)."""
        real = given.get("attention_mask", torch.ones_like(tokens)).bool()
        for weights_of in (self._reported, self._overheard):
            try:
                logits = self.model(tokens, use_cache=False, **given).logits[real]
                weights, seen = weights_of(tokens, given)
            except Exception:  # whatever a model says that reports none, is not run eagerly, or knows no positions
                continue
            if len(weights) == layers and torch.allclose(seen[real], logits, rtol=1e-3, atol=1e-3 * _size(logits)):
                return weights
        return None

    def _reported(self, tokens: Tensor, given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        out = self.eager(tokens, use_cache=False, output_attentions=True, **given)
        return [w for w in out.attentions or () if isinstance(w, Tensor) and w.ndim == 4], out.logits

    def _overheard(self, tokens: Tensor, given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        with _listening(self.model) as (other, heard):
            logits = other(tokens, use_cache=False, **given).logits
        return [weights for weights in heard if isinstance(weights, Tensor)], logits


def _size(logits: Tensor) -> float:
    return float(logits[logits > torch.finfo(logits.dtype).min].abs().max())  # columns may be ruled out for good


def _eager(model: Any) -> Any:
    other = copy.deepcopy(model)
    try:
        other.set_attn_implementation("eager")
        for part in other.modules():  # models that compute attention in their own code do not let it be set (Falcon)
            if isinstance(part, transformers.PreTrainedModel):
                part.config._attn_implementation_internal = "eager"
    except Exception:  # whatever a model says that has no such choice
        return model
    return other


@contextmanager
def _listening(model: nn.Module) -> Iterator[tuple[nn.Module, list[Any]]]:
    """A copy of the model that is run eagerly, and the weights that its file's attention function returns."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    heard: list[Any] = []
    model = copy.deepcopy(model)
    for part in model.modules():  # models with a vision part do not all pass set_attn_implementation on
        if isinstance(part, transformers.PreTrainedModel):
            part.config._attn_implementation_internal = "eager"

    def attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        files = (vars(sys.modules[cls.__module__]) for cls in type(module).__mro__)
        own = next(file["eager_attention_forward"] for file in files if "eager_attention_forward" in file)
        if kwargs.get("scaling") is None:
            kwargs["scaling"] = args[0].shape[-1] ** -0.5
        out, weights = own(module, *args, **kwargs)
        heard.append(weights)
        return out, weights

    local = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = local.get("eager")
    local["eager"] = attend
    try:
        yield model, heard
    finally:
        local.pop("eager")
        if before is not None:
            local["eager"] = before
