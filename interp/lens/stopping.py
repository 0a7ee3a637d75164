"""`stop_at_layer`: a call that runs up to a block and returns the residual stream that would enter it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from interp.errors import InterpError
from interp.lens.first_look import first
from interp.lens.parts import Anatomy
from interp.undoing import Undo, undoing

Tensor = torch.Tensor


class Stopped(Exception):  # no error: the way out of a model's forward pass
    """Ends a model's forward pass; `resid` is the residual stream `[batch, pos, d_model]` at that place."""

    def __init__(self, resid: Tensor) -> None:
        super().__init__("this pass ends here")
        self.resid = resid


def layer_asked(layer: Any, n_layers: int, return_type: str | None, call: Mapping[str, Any]) -> int | None:
    """Before which block a call stops, `n_layers` for after the last, from what was passed as `stop_at_layer`; None:
    nowhere. A negative number counts from the end."""
    if layer is None:
        return None
    if isinstance(layer, bool) or not isinstance(layer, int) or not -n_layers <= layer <= n_layers:
        raise InterpError(
            f"stop_at_layer is a number of blocks to run, up to {n_layers}, or counted from the end; found {layer!r}."
        )
    if return_type in ("loss", "both"):
        raise InterpError("stop_at_layer leaves before there are logits, so there is no loss; leave return_type out.")
    if call.get("use_cache") or call.get("past_key_values") is not None:
        raise InterpError("stop_at_layer would leave a cache with some layers unfilled; leave the cache out.")
    return layer + n_layers if layer < 0 else layer


@contextmanager
def stopping(layer: int | None, anatomy: Anatomy, call: Undo | None) -> Iterator[None]:
    """While the block runs, a pass of the model ends in `Stopped` before that block, and before its hooks."""

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise Stopped(args[0] if args else kwargs["hidden_states"])

    def after(module: Any, args: tuple[Any, ...], out: Any) -> None:
        raise Stopped(first(out))

    with undoing(call) as undo:
        if layer is not None and layer < len(anatomy.blocks):
            undo.hook(anatomy.blocks[layer].block, before, pre=True, prepend=True, with_kwargs=True)
        elif layer is not None:  # put there last, so that it sees what hooks on hook_resid_post left
            undo.hook(anatomy.blocks[-1].block, after)
        yield
