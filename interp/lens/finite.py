"""Numbers that are not finite, found before anything is said of them.

When float16 overflows, or a weight is NaN, what follows is NaN too, and means over what is left say things that are
not so. So what measures looks once at the residual stream and at the logits, at the cost of one pass over each; only
where something is lost the model runs again, and every module is asked who lost it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import nn

from interp.errors import InterpError
from interp.lens.arguments import arguments
from interp.seam.config import LensConfig
from interp.undoing import undoing, without_gradients

Tensor = torch.Tensor
WIDER = {torch.float16: "bfloat16 or float32", torch.bfloat16: "float32", torch.float32: "float64"}


class NonFiniteError(InterpError):
    """A model computed numbers that are not finite, so there is nothing to say about them.

    Examples:
        >>> import torch
        >>> broken = torch.nn.Linear(2, 2)
        >>> _ = broken.weight.data.fill_(torch.nan)
        >>> interp.lens.finite.refuse_weights(broken)
        Traceback (most recent call last):
        ...
        interp.lens.finite.NonFiniteError: ...weight...
    """


class LostError(Exception):
    """Of numbers that were taken some are not finite, so that what goes on with them may stop."""


class Measured(Protocol):
    """What measures run: a Lens, or a bridge's."""

    model: Any

    @property
    def cfg(self) -> LensConfig: ...


class Put(NamedTuple):
    """What one module was given and put out."""

    name: str
    given: Tensor | None
    out: Tensor | None


class Numbers:
    """Numbers that have to be finite, of which the least and the largest are kept; asked at the end, so that no device
    is waited for in between."""

    def __init__(self) -> None:
        self._limits: list[Tensor] = []

    def take(self, x: Tensor) -> None:
        if x.numel():
            self._limits += torch.aminmax(x.detach())  # of anything and NaN the limits are NaN

    def take_logits(self, logits: Tensor) -> None:
        """Of logits `[..., d_vocab]` one that is -inf is a token that cannot be."""
        if logits.numel():
            self.take(logits.detach().amax(-1))

    def take_event(self, event: Any) -> None:
        """What one layer's attention is made of: torch's may hide a query that is NaN."""
        for x in (event.q, event.k, event.v):
            self.take(x)

    @property
    def lost_last(self) -> bool:
        """Whether what was taken last is lost."""
        return not all(map(_finite, self._limits[-2:]))

    @property
    def lost(self) -> bool:
        return not all(map(_finite, self._limits))


@contextmanager
def finite(
    lens: Measured, rows: Iterable[Tensor | Mapping[str, Any]] | None, numbers: Numbers | None = None
) -> Iterator[Numbers]:
    """For a block that measures a model on texts: raises NonFiniteError where numbers that it takes are not finite.

    rows: the texts `[1, pos]`, to see why, or all that the model is given where that is images too; None where they
        cannot be read again (embeddings, a cache from before).
    numbers: those to look at, where something else takes them and says by a LostError that they are lost.
    An exception of the block, too, is put down to that where the model's own numbers are not finite.
    """
    given, numbers = numbers, numbers or Numbers()
    try:
        yield numbers
        lost = numbers.lost
    except LostError:
        lost = True
    except Exception as error:
        if given is not None and not given.lost:
            raise
        lost_at = None
        with suppress(Exception):  # what stopped the block may stop this too
            lost_at = _where(lens, rows)
        if lost_at is not None:
            raise NonFiniteError(lost_at) from error
        raise
    if lost:
        if rows is None:
            raise NonFiniteError(
                f"{lens.cfg.architecture} computes numbers that are not finite here, in {lens.cfg.dtype}; probe "
                "the same as a text to see in which layer, or load the model in float32."
            )
        raise NonFiniteError(
            _where(lens, rows)
            or f"{lens.cfg.architecture} computes numbers that are not finite here, and finite ones when it is left "
            "alone: what is in force or hooked makes them; change its settings, or load the model in float32."
        )


def refuse_lost(lens: Measured, row: Int[Tensor, "1 pos"], logits: Tensor) -> None:
    """Raise NonFiniteError where the logits of a text are not finite."""
    with finite(lens, [row]) as numbers:
        numbers.take_logits(logits)


def _where(lens: Measured, rows: Iterable[Tensor | Mapping[str, Any]] | None) -> str | None:
    if rows is None:
        return None
    bridge = getattr(lens, "bridge", None)
    if bridge is not None:
        return where_lost(bridge, rows, bridge)
    return where_lost(lens.model, rows, partial(_read_by, lens.model))


def _read_by(model: Any, row: Tensor | Mapping[str, Any]) -> Any:
    return model(**(row if isinstance(row, Mapping) else arguments(model, row, row)), use_cache=False)


def where_lost(model: nn.Module, rows: Iterable[Any], run: Callable[[Any], Any]) -> str | None:
    """Which module of a model puts out numbers that are not finite first, and why, when `run` reads texts.

    None where all are finite.
    """
    for row in rows:
        seen: list[Put] = []
        with without_gradients(), undoing() as undo:
            for name, module in model.named_modules():
                undo.hook(module, _noting(name, seen), with_kwargs=True)
            out = run(row)
        logits = getattr(out, "logits", out)
        # what is lost inside a block may be hidden again: by torch's SDPA, of queries that are NaN
        if (said := said_of(model, seen, logits) or _said(model, seen, logits)) is not None:
            return said
    return None


def _noting(name: str, seen: list[Put]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        out = out[0] if isinstance(out, (tuple, list)) and out else out
        # the limits alone: what is changed in place later is none of this module's
        seen.append(Put(name, _limits(given), _limits(out)))

    return note


def said_of(model: nn.Module, seen: Sequence[Any], logits: Any) -> str | None:
    """What to say of a pass in which modules were `seen` to put out numbers, in the order in which they finished.

    None where the blocks' outputs and the logits are finite; what modules keep among themselves (a mask) need not be.
    """
    handed_on = [call.out for call in seen if call.name.rpartition(".")[2].isdigit()]
    outer = [logits.amax(-1)] if isinstance(logits, Tensor) and logits.is_floating_point() else []
    return None if all(map(_finite, [*handed_on, *outer])) else _said(model, seen, logits)


def _said(model: nn.Module, seen: Sequence[Any], logits: Any) -> str | None:
    first = next((call for call in seen if not _finite(call.out)), None)
    if first is None and _finite(logits):
        return None
    name = "the logits" if first is None else first.name
    if first is not None and not _finite(first.given):
        name = name.rpartition(".")[0] or name  # it was lost on the way from the module before
    dtype = logits.dtype if first is None else first.out.dtype
    layer = next((part for part in name.split(".") if part.isdigit()), None)
    place = name if layer is None else f"layer {layer} ({name})"
    start = f"{type(model).__name__} computes numbers that are not finite, first in {place}"
    if (weight := _broken(model)) is not None:
        return f"{start}: {weight}; load weights that are whole, or mend that parameter."
    largest = f"{str(dtype).removeprefix('torch.')}, whose largest number is {torch.finfo(dtype).max:.3g}"
    todo = f"; load the model in {WIDER[dtype]}" if dtype in WIDER else ""
    return f"{start}, in {largest}{todo}."


def refuse_weights(model: nn.Module) -> None:
    """Raise NonFiniteError where a parameter holds numbers that are not finite."""
    if (weight := _broken(model)) is not None:
        raise NonFiniteError(f"in this {type(model).__name__} {weight}; load weights that are whole, or mend it.")


def _broken(model: nn.Module) -> str | None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not _finite(weight.detach()):
            return f"the parameter {name} has {int((~torch.isfinite(weight)).sum())} of {weight.numel():,}"
    return None


def _limits(x: Any) -> Tensor | None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
        return None
    return torch.stack(torch.aminmax(x.detach()))


def _finite(x: Tensor | None) -> bool:
    return x is None or bool(torch.isfinite(x).all())
