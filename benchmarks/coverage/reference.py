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
PROMPT, SHORT, PADDING, NEW, WRITTEN = 24, 14, 4, 5, 9


@dataclass(frozen=True)
class Texts:
    """Tokens that stand for text: one short, one long enough for policies to act on, and two with padding."""

    short: Tensor
    prompt: Tensor
    padded: Tensor
    mask: Tensor
    written: Tensor
    """What a decoder reads where an encoder reads those: one text."""

    @classmethod
    def some(cls) -> Texts:
        random = torch.Generator().manual_seed(3)
        shapes = ((1, SHORT), (1, PROMPT), (2, SHORT), (1, WRITTEN))
        short, prompt, padded, written = (torch.randint(5, 90, shape, generator=random) for shape in shapes)
        mask = torch.ones_like(padded)
        mask[0, :PADDING] = padded[0, :PADDING] = 0
        return cls(short, prompt, padded, mask, written)


class Bare:
    """The model itself, and what it answers. `eager` is a copy that computes its attention in the open."""

    def __init__(self, model: Any) -> None:
        self.model, self.texts = model, Texts.some()
        self.two_texts = bool(getattr(model.config, "is_encoder_decoder", False))
        self.logits = self.run(model)
        self.eager = _eager(model)

    def run(self, model: Any) -> Tensor:
        """Logits of the short text."""
        logits: Tensor = model(self.texts.short, use_cache=False, **self.beside(self.texts.short)).logits
        return logits

    def beside(self, tokens: Tensor) -> dict[str, Tensor]:
        """What a decoder reads beside the tokens that its encoder reads, as arguments; nothing in other models."""
        return {"decoder_input_ids": self.texts.written.expand(len(tokens), -1)} if self.two_texts else {}

    def real(self, mask: Tensor) -> Tensor:
        """Which positions of the logits are no padding, of texts with that mask."""
        return torch.ones(len(mask), WRITTEN, dtype=torch.bool) if self.two_texts else mask.bool()

    def on_padding(self) -> Tensor | None:
        """Logits of the padded texts with positions that follow the mask; None where the model takes no mask."""
        mask = self.texts.mask
        takes = inspect.signature(self.model.forward).parameters
        positions = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        asks = bool({"position_ids", "kwargs"} & set(takes)) and not self.two_texts
        for options in [positions, {}] if asks else [{}]:
            given = options | self.beside(self.texts.padded)
            try:
                logits: Tensor = self.model(self.texts.padded, attention_mask=mask, use_cache=False, **given).logits
            except Exception:  # whatever a model says that does not know an argument
                continue
            return logits
        return None

    def continued(self, tokens: Tensor, mask: Tensor | None = None, cached: bool = False) -> Tensor:
        """Greedily, as the model does by default; `cached` hands it a cache, which most make themselves."""
        told: dict[str, Any] = {"attention_mask": torch.ones_like(tokens) if mask is None else mask}
        if cached and not self.two_texts:
            told["past_key_values"] = transformers.DynamicCache(config=self.model.config)
        text: Tensor = self.model.generate(tokens, max_new_tokens=NEW, do_sample=False, **told)
        return text

    def patterns(self, layers: int, tokens: Tensor, **given: Any) -> list[Tensor] | None:
        """Weights `[batch, head, query, key]` of so many layers: what the model itself reports or, where it reports
        none, what the attention function of its own file returns. None where neither is to be had, or where the model
        run eagerly computes something else (PaliGemma)."""
        real = self.real(given.get("attention_mask", torch.ones_like(tokens)))
        given = given | self.beside(tokens)
        for weights_of in (self._reported, self._overheard):
            try:
                logits = self.model(tokens, use_cache=False, **given).logits[real]
                weights, seen = weights_of(tokens, given)
            except Exception:  # whatever a model says that reports none, is not run eagerly, or knows no positions
                continue
            if self.two_texts:  # those of the encoder come first, where a Lens may have none
                weights = weights[-layers:]
            if len(weights) == layers and torch.allclose(seen[real], logits, rtol=1e-3, atol=1e-3 * _size(logits)):
                return weights
        return None

    def _reported(self, tokens: Tensor, given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        out = self.eager(tokens, use_cache=False, output_attentions=True, **given)
        names = ("encoder_attentions", "decoder_attentions", "cross_attentions") if self.two_texts else ("attentions",)
        found = [weights for name in names for weights in getattr(out, name, None) or ()]
        if self.two_texts and not all(bool((w.sum(-1) > 0.99).all()) for w in found[-1:]):
            raise ValueError("one pattern over both texts is reported in two parts (T5Gemma 2)")
        return [w for w in found if isinstance(w, Tensor) and w.ndim == 4], out.logits

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
