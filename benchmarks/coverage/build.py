"""A tiny random model of any type that transformers' auto classes know. Nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.coverage.exceptions import CAUSAL_IF_TOLD, CLASSES, EXCEPTIONS, VARIANTS
from benchmarks.coverage.kinds import FAMILIES
from benchmarks.coverage.sizes import Shrinking

MOST_PARAMETERS = 40_000_000
LEFT_AS_MADE = ("A_log", "dt_bias", "D", "time_decay", "time_first", "lambda_p")
"""Parameters of recurrences whose ranges keep the state finite."""


def build(family: str, kind: str) -> Any:
    """The model, in eval mode. Raises whatever its config or its class does not like."""
    plain = kind.partition("@")[0]
    config = small_config(family, kind)
    cls = FAMILIES[family][1] if plain not in CLASSES else getattr(transformers, CLASSES[plain][0])
    make = getattr(cls, "from_config" if plain not in CLASSES else "_from_config")
    with without_timm():
        if (size := _parameters(make, config)) > MOST_PARAMETERS:
            raise ValueError(f"it would have {size / 1e6:.0f} million parameters")
        torch.manual_seed(0)
        model = make(config).eval()
    enliven(model)
    if (generation := getattr(model, "generation_config", None)) is not None:  # so that texts have the length asked for
        generation.eos_token_id, generation.pad_token_id, generation.forced_eos_token_id = None, 0, None
        if getattr(model.config, "is_encoder_decoder", False) and generation.decoder_start_token_id is None:
            generation.decoder_start_token_id = 3
    return model


def small_config(family: str, kind: str) -> Any:
    """The type's default config, made small."""
    plain, _, variant = kind.partition("@")
    default = (
        getattr(transformers, CLASSES[plain][1])() if plain in CLASSES else transformers.AutoConfig.for_model(plain)
    )
    exceptions = EXCEPTIONS.get(plain, {}) | (VARIANTS[kind] if variant else {})
    if family in ("causal", "variant") and plain in CAUSAL_IF_TOLD:
        exceptions = {"is_decoder": True} | exceptions
    return type(default)(**Shrinking(exceptions).small(default.to_dict()))


def _parameters(make: Any, config: Any) -> int:
    """How many it would have, asked of a model without memory where its class allows one."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in make(copy.deepcopy(config)).parameters())
    except (NotImplementedError, RuntimeError):
        return 0


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Weights of unit gain, so that attention is far from uniform; biases, norms and sinks that do something."""
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if not parameter.is_floating_point() or last in LEFT_AS_MADE:
            continue
        if not torch.isfinite(parameter).all():
            parameter.zero_()
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim < 2:
            parameter.copy_(noise) if "sink" in last else parameter.add_(0.1 * noise)
        elif "embed" in name or "wte" in name:
            parameter.copy_(0.7 * noise)
        else:
            width = parameter.shape[-1] if parameter.ndim <= 3 else parameter[0].numel()
            parameter.copy_(noise * width**-0.5)


class _Tower(transformers.PreTrainedModel):
    """Stands in for timm's vision towers, which a text never reaches: timm need not be installed for it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projection = nn.Linear(4, 4)


@contextmanager
def without_timm() -> Iterator[None]:
    own = transformers.AutoModel.from_config

    def from_config(config: Any, **kwargs: Any) -> Any:
        try:
            return own(config, **kwargs)
        except ImportError as error:
            if "timm" not in str(error):
                raise
            return _Tower(config)

    transformers.AutoModel.from_config = from_config
    try:
        yield
    finally:
        transformers.AutoModel.from_config = own
