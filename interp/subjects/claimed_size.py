"""What a config claims of a model, held against what its weights say, before memory and time are spent on it.

A config is a few lines of somebody else's: a digit too many, and transformers builds layers until the machine has no
memory left. It builds a model without weights first, so what is too large is seen while modules are put together.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as registry

from interp.errors import InterpError
from interp.undoing import undoing

AT_LEAST_ONE = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "hidden_size", "n_embd", "d_model", "num_attention_heads",
    "n_head", "n_heads", "num_heads", "vocab_size",
)  # fmt: skip
"""Fields of configs that count something of which a model with attention has one or more; absent or null says
nothing, and a list says it layer by layer."""
NOT_NEGATIVE = (
    "encoder_layers", "decoder_layers", "num_decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
    "num_key_value_heads", "head_dim", "d_kv", "intermediate_size", "ffn_dim", "d_ff", "n_inner", "num_experts",
    "num_local_experts",
)  # fmt: skip
"""Those that some models have none of, or leave at 0 where another field says it."""
SMALL = ("eps", "epsilon")
INSIDE = ("text_config", "decoder", "encoder")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODULES_PER_TENSOR, MODULES = 10, 1_000
"""A block has some 1.5 modules a tensor; of experts, more tensors than modules."""
NUMBERS_PER_NUMBER, NUMBERS = 16, 10_000_000
"""Weights that several layers share are counted as often, and once more when they are tied."""
PACKED = 8
"""Numbers of a quantised model in one number of its file."""
MODULES_OF_ANY = 300_000


class Held(NamedTuple):
    """What weights files hold."""

    tensors: int
    numbers: int


def refuse_impossible(config: Mapping[str, Any], name: str) -> None:
    """Raise InterpError where a config, as its file has it, says what no model can be."""
    for place, value in _values(config, ""):
        if isinstance(value, float) and math.isnan(value):
            raise InterpError(f"the config of {name} says that {place} is not a number; mend its config.json.")
    for part in (config, *(config[key] for key in INSIDE if isinstance(config.get(key), dict))):
        for key in AT_LEAST_ONE:
            _refuse(name, key, part.get(key), 1)
        for key in NOT_NEGATIVE:
            _refuse(name, key, part.get(key), 0)
        for key, value in part.items():
            small = isinstance(key, str) and key.endswith(SMALL)
            if small and isinstance(value, int | float) and not 0 <= value < math.inf:
                raise InterpError(
                    f"the config of {name} says {key} = {value}, where a small number stands; mend its config.json."
                )


def _refuse(name: str, key: str, value: Any, least: int) -> None:
    if value is None or isinstance(value, list | dict):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InterpError(
            f"the config of {name} says {key} = {_short(value)}, which should be a whole number of at least {least}; "
            "mend its config.json."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}..."


def _values(part: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All that is no list and no dict in one, by its place."""
    items = part.items() if isinstance(part, Mapping) else enumerate(part) if isinstance(part, list) else None
    if items is None:
        yield place, part
        return
    for key, value in items:
        yield from _values(value, f"{place}.{key}" if place else f"{key}")


def held_in(folder: Path) -> Held | None:
    """What the safetensors files of a folder hold, by their headers; None where there are none.

    Raises InterpError where its index names files that are not in the folder.
    """
    from safetensors import safe_open

    tensors = numbers = 0
    for file in _weight_files(folder):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no dict
                tensors += 1
                numbers += math.prod(weights.get_slice(name).get_shape())
    return Held(tensors, numbers) if tensors else None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        said = json.loads(index.read_text(encoding="utf-8"))
        names = set(said["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InterpError(
            f"{index} is damaged: it should say which file holds which tensor; download it again."
        ) from None
    for name in names:
        path = PurePosixPath(name) if isinstance(name, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or "\\" in str(path):
            raise InterpError(f"{index} names {name!r}, which is no file of its folder; download the model again.")
        if not (folder / path).is_file():
            raise InterpError(f"{index} names {name!r}, which is not there; download the model again.")
    return [folder / name for name in sorted(names)]


@contextmanager
def bounded(name: str, held: Callable[[], Held | None], quantised: bool) -> Iterator[None]:
    """Inside, this thread builds no model that is far larger than its weights.

    held: what they hold; asked when the first module is there, for by then they have been fetched.
    Raises InterpError as soon as there are more modules or parameters.
    """
    with undoing() as undo:
        count = _Count(name, held, quantised)
        for kept, hook in (
            (registry._global_module_registration_hooks, count.module),
            (registry._global_parameter_registration_hooks, count.parameter),
        ):
            key = id(count)
            undo.later(kept.pop, key, None)
            kept[key] = hook
        yield


class _Count:
    """Of what one thread puts together."""

    def __init__(self, name: str, held: Callable[[], Held | None], quantised: bool) -> None:
        self.name, self._held = name, held
        self._packed = PACKED if quantised else 1
        self._thread = threading.get_ident()
        self._limits: tuple[float, float] | None = None
        self.modules = self.numbers = 0

    def module(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if threading.get_ident() != self._thread:
            return
        self.modules += 1
        if self.modules > self.limits[0]:
            self._refuse(f"more than {self.modules - 1:,} parts")

    def parameter(self, parent: nn.Module, name: str, weight: torch.Tensor | None) -> None:
        if threading.get_ident() != self._thread or weight is None or not weight.is_meta:
            return
        self.numbers += weight.numel()
        if self.numbers > self.limits[1]:
            self._refuse(f"{self.numbers:,} numbers and more")

    @property
    def limits(self) -> tuple[float, float]:
        """Modules and numbers at most."""
        if self._limits is None:
            found = self._held()
            self._limits = (
                (MODULES_OF_ANY, math.inf)
                if found is None
                else (
                    MODULES + MODULES_PER_TENSOR * self._packed * found.tensors,
                    NUMBERS + NUMBERS_PER_NUMBER * self._packed * found.numbers,
                )
            )
        return self._limits

    def _refuse(self, much: str) -> None:
        found = self._held()
        there = f"its weights have {found.tensors:,} tensors of {found.numbers:,} numbers" if found else "no model has"
        raise InterpError(
            f"the config of {self.name} asks for a model of {much}, and {there}; one of its layers, heads, widths or "
            "its vocabulary is wrong, so fetch it again."
        )
