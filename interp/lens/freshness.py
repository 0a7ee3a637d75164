"""Whether a model is still the one that was taken apart.

A Lens learns the parts of its model once. Later the model may get adapters, another dtype or device, another attention
implementation, a larger vocabulary; `Fingerprint` holds what those facts were read from, and comparing takes a
fraction of a millisecond, so that it can be done at every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from interp.errors import UnsupportedModelError
from interp.lens.positions import OFFSET
from interp.seam.config import LensConfig

PLAIN = (int, float, str, bool, type(None))
# Of a module's own numbers those that say nothing about its maths.
MOODS = frozenset({"training", "gradient_checkpointing", "_is_full_backward_hook", OFFSET})
NAMED = ("_compiled_call_impl", "config")
COMPILED = "_torchdynamo_orig_callable"


class Fingerprint:
    """A model as it was: its modules, the settings that they compute by, its configs, place and kind of its weights.

    Looked at are modules that have children: layers, attention, models. A leaf's maths is its class and its weights,
    which are read when they are needed.
    """

    def __init__(self, model: Any) -> None:
        self.modules = tuple(model.modules())
        self._inner = [module for module in self.modules if module._modules]
        self._own = [vars(module) for module in self._inner]
        self._children = [tuple(module._modules.values()) for module in self._inner]
        self._asked = [_plain(own) for own in self._own]
        self._settings = self._read()
        configs = {id(config): config for own in self._own if (config := own.get("config")) is not None}
        self._configs = [(vars(config), _copied(vars(config))) for config in configs.values()]
        held = [(module._parameters, n) for module in self.modules for n in module._parameters]
        # the first floating weight, which is what a transformers model takes its own dtype and device from
        self._first = next((place for place in held if _floating(*place)), None)
        self._weights = self._where()

    def _where(self) -> tuple[torch.dtype, torch.device] | None:
        weight = None if self._first is None else self._first[0].get(self._first[1])
        return None if weight is None else (weight.dtype, weight.device)

    def _read(self) -> list[Any]:
        own = zip(self._inner, self._own, self._asked, strict=True)
        # somebody's own forward function, to skip a layer say, runs where the module does; a compiled one does not
        return [
            (type(module), getattr(held.get("forward"), COMPILED, None), *map(held.get, NAMED), *map(held.get, names))
            for module, held, names in own
        ]

    def same_parts(self, model: nn.Module) -> bool:
        """Whether the model has the same modules, which compute by the same settings."""
        return (
            model is self.modules[0]
            and [tuple(module._modules.values()) for module in self._inner] == self._children
            and self._read() == self._settings
            and all(now == before for now, before in self._configs)
        )

    def same_weights(self) -> bool:
        """Whether its weights are where they were, in the same dtype."""
        return self._where() == self._weights


def _plain(own: dict[str, Any]) -> tuple[str, ...]:
    """Names of a module's plain settings: numbers and words."""
    return tuple(name for name, value in own.items() if type(value) in PLAIN and name not in MOODS)


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are now, lists and tables among them."""
    return {name: value.copy() if isinstance(value, list | dict) else value for name, value in settings.items()}


def _floating(parameters: Mapping[str, nn.Parameter | None], name: str) -> bool:
    weight = parameters[name]
    return weight is not None and weight.is_floating_point()


def refuse_unrunnable(model: nn.Module) -> None:
    """Raise UnsupportedModelError where a model has no numbers to compute with, or hides its layers from hooks."""
    if without := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise UnsupportedModelError(
            f"{len(without)} weights of {type(model).__name__} ({without[0]} is one) are on the meta device, where "
            "there are no numbers; load the whole model onto one or more devices, with nothing offloaded."
        )
    for name, module in model.named_modules():
        own = vars(module)
        compiled = own.get("_compiled_call_impl") or hasattr(own.get("forward"), COMPILED)
        if compiled or hasattr(module, "_orig_mod"):
            raise UnsupportedModelError(
                f"{name or type(module).__name__} is compiled, and compiled code passes hooks by; give interp the "
                "model as it was before torch.compile, and compile a copy of it."
            )


def refuse_lossy_delegates(cfg: LensConfig) -> None:
    """SDPA knows neither logit softcaps nor learned sinks; some transformers releases drop them without a word."""
    for feature, present in (
        ("an attention softcap", cfg.attn_softcap is not None),
        ("learned sinks", cfg.learned_sinks),
    ):
        if present and cfg.attention == "sdpa":
            raise UnsupportedModelError(
                f"{cfg.architecture} has {feature}, which sdpa ignores; load it with attn_implementation='eager'."
            )
