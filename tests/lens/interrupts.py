"""An exception at any one line of the rooms that touch a model, and what has to be as before afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import interp
from interp.lens import evaluating, in_force
from interp.seam import routing

HOME = Path(interp.__file__).parent
ROOMS = (*(f"{HOME / room}/" for room in ("seam", "lens", "cache", "interventions")), str(HOME / "undoing.py"))
HOOKS = tuple(name for name in vars(torch.nn.Module()) if name.endswith(("_hooks", "_with_kwargs", "_always_called")))


POINTS = ("fwd_hooks", "bwd_hooks")


class Interrupt(KeyboardInterrupt):
    """The one that is thrown here."""


class Thrower:
    """Counts the lines of the rooms that `run` executes in this thread, and raises at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines = at, 0
        self.where = ""
        self.passed: dict[tuple[str, int], list[int]] = {}
        """When each line was reached."""

    def __call__(self, run: Callable[[], Any]) -> BaseException | None:
        """The exception that came out of `run`, with all that its traceback holds."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run()
        except BaseException as error:
            return error
        finally:
            sys.settrace(before)
        return None

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(ROOMS) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines += 1
            self.passed.setdefault((frame.f_code.co_filename, frame.f_lineno), []).append(self.lines)
            if self.lines == self.at:
                self.where = f"{frame.f_code.co_filename.rpartition('interp/')[2]}:{frame.f_lineno}"
                raise Interrupt
        return self._line


_elsewhere = ThreadPoolExecutor(1)


def free(gate: Any) -> bool:
    """Whether another thread gets a gate at once."""

    def try_it() -> bool:
        return gate._lock.acquire(blocking=False) and gate._lock.release() is None

    return _elsewhere.submit(try_it).result(60)


def hooked(modules: Any) -> set[str]:
    """Names of the modules that somebody hooks."""
    return {name for name, module in modules if any(getattr(module, held, ()) for held in (*HOOKS, *POINTS))}


def left(lens: Any, model: torch.nn.Module, names: dict[int, dict[str, Any]], before: set[str]) -> list[str]:
    """What a call left behind, where `before` was hooked and `names` led to what they led to."""
    found = [f"{name} is hooked" for name in hooked([*model.named_modules(), *lens.hook_dict.items()]) - before]
    gates = {"lens": lens._gate, "routing": routing._gate, "evaluating": evaluating._gate}
    turn = getattr(lens, "_turn", None)
    state = {
        "routes": routing._routes,
        "sites": list(routing._sites),
        "names": registered() != names,
        "modes": _get_current_function_mode_stack(),
        "gradients off": not torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "level": lens.context_level,
        "depth": lens._calls_of.depth,
        "call": turn and turn.call,
        "blocks": in_force._open.get(),
        "in force": (*lens.edits_in_force, *lens.policies_in_force),
        "evaluation mode": [n for n, m in model.named_modules() if not m.training],
        **{f"the lock of {name}": not free(gate) for name, gate in gates.items()},
    }
    return [*found, *(f"{name}: {value}" for name, value in state.items() if value)]


def registered() -> dict[int, dict[str, Any]]:
    """What names of attention functions and masks lead to."""
    registries = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
    return {id(registry): {**registry._global_mapping, **registry._local_mapping} for registry in registries}
