"""Measuring in evaluation mode: a model as a training loop left it has its dropout live.

What measures (`generate`, `score`, `probe`, `patch`, `explain`, `side_by_side`) runs the model in evaluation mode and
puts every module's own mode back. A plain call of a Lens is also how one trains through it, so that leaves the mode
alone; where somebody looks on, it says that dropout is live.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from interp.errors import InterpError
from interp.undoing import Gate, undoing

P = ParamSpec("P")
R = TypeVar("R")


class _Modes:
    """Modules that were in train mode when the first of several overlapping measurements began."""

    def __init__(self) -> None:
        self.users: set[object] = set()
        self.training: list[nn.Module] = []


_gate = Gate()
_modes: WeakKeyDictionary[nn.Module, _Modes] = WeakKeyDictionary()


@contextmanager
def evaluating(lens: object) -> Iterator[None]:
    """Evaluation mode for the model of a lens while the block runs; see `evaluation_mode`."""
    held = [part for name in ("model", "bridge") if isinstance(part := getattr(lens, name, None), nn.Module)]
    roots = held or ([lens] if isinstance(lens, nn.Module) else [])
    with evaluation_mode(*roots) if roots else nullcontext():  # whoever is called with something else says what it is
        yield


@contextmanager
def evaluation_mode(*roots: nn.Module) -> Iterator[None]:
    """Evaluation mode for modules and all inside them while the block runs; then every module has its own mode again.

    Measurements of several threads may overlap: the last one to end puts the modes back.
    """
    user = object()
    with undoing() as undo:
        undo.later(_put_back, roots[0], user)
        with _gate.held():
            kept = _modes.setdefault(roots[0], _Modes())
            kept.users.add(user)
            kept.training += (modules := [m for root in roots for m in root.modules() if m.training])
            for module in modules:
                module.training = False
        yield


def _put_back(root: nn.Module, user: object) -> None:
    with _gate.held():
        if (kept := _modes.get(root)) is None:
            return
        kept.users.discard(user)
        if not kept.users:
            for module in kept.training:
                module.training = True
            kept.training.clear()


def in_evaluation_mode(measure: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is a lens, run in evaluation mode."""

    @functools.wraps(measure)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        with evaluating(args[0] if args else kwargs.get("lens")):
            return measure(*args, **kwargs)

    return measured


def check_mode(modules: Iterable[nn.Module], hooked: bool, use_cache: bool) -> None:
    """Look at the mode in which a plain call is about to run a model of these modules.

    hooked: whether hooks or edits are on. Raises InterpError where layers would run a second time in the backward
    pass, without those, or where no cache would be kept; warns of live dropout where somebody looks on.
    """
    training = [m for m in modules if m.training]
    if not training:
        return
    again = any(m.__dict__.get("gradient_checkpointing", False) for m in training)
    if again and hooked and torch.is_grad_enabled():
        raise InterpError(
            "gradient checkpointing runs every layer again in the backward pass, without the hooks and edits of this "
            "call; call lens.model.gradient_checkpointing_disable() first, or lens.model.eval()."
        )
    if again and use_cache:
        raise InterpError(
            "a model in train mode with gradient checkpointing keeps no cache; call lens.model.eval() first."
        )
    if (hooked or not torch.is_grad_enabled()) and any(map(_drops, training)):
        warnings.warn(
            "the model is in train mode, so dropout is live and numbers differ from call to call; unless that is "
            "meant, call lens.model.eval() first.",
            stacklevel=8,
        )


def _drops(module: nn.Module) -> bool:
    """Whether a module in train mode leaves something to chance: `nn.Dropout` or a rate among its own numbers."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(_is_rate(name, value) for name, value in vars(module).items())


def _is_rate(name: str, value: Any) -> bool:
    return isinstance(value, float) and value > 0 and ("drop" in name or "jitter" in name)
