"""What is passed to the methods that hook and cache: pairs of a name and a function, and slices of positions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from interp.errors import InterpError

with warnings.catch_warnings():  # as in strict_hooks
    from transformer_lens.utilities import Slice


def pairs(hooks: Any, argument: str) -> list[tuple[Any, Callable[..., Any]]]:
    """The hooks of a list, each with what selects its points. Raises InterpError for anything else."""
    found = None
    with suppress(TypeError):
        found = None if isinstance(hooks, (str, Mapping)) else [tuple(pair) for pair in hooks]
    if found is None or not all(len(pair) == 2 and callable(pair[1]) for pair in found):
        raise InterpError(f"{argument} is a list of pairs (name of a hook point, function), not {_shortly(hooks)}.")
    return [(name, hook) for name, hook in found]


def selectors(names: Any) -> list[Any]:
    """The members of what selects several hook points. Raises InterpError where that is no collection."""
    with suppress(TypeError):  # an array of no axis looks like a collection
        if isinstance(names, Iterable) and not isinstance(names, (bytes, bytearray, Tensor)):
            return list(names)
    raise InterpError(
        f"hook points are selected by a name, a list of names or a function of names, not by {_shortly(names)}."
    )


def positions(pos_slice: Any) -> Slice:
    """Which positions are kept. Raises InterpError for what is no index and no slice."""
    try:
        cut = Slice.unwrap(pos_slice)
        cut.indices(1 << 20)  # far enough for any index that means something; a slice has a whole step
    except (ValueError, TypeError, IndexError, RuntimeError):
        raise _no_slice(pos_slice) from None
    return cut


def cut_out(cut: Slice, value: Tensor, axis: int, name: str) -> Tensor:
    """The positions of a value that a slice keeps."""
    try:
        kept: Tensor = cut.apply(value, dim=axis)
    except IndexError:
        raise InterpError(f"pos_slice reaches beyond the {value.shape[axis]} positions of {name}.") from None
    except (ValueError, TypeError):  # torch has no negative steps
        raise _no_slice(cut.slice) from None
    return kept


def _no_slice(given: Any) -> InterpError:
    return InterpError(
        "pos_slice is the number of a position, a list of them, or (start, stop) or (start, stop, step) with a "
        f"positive step, not {_shortly(given)}."
    )


def _shortly(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
