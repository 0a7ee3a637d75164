"""One load at a time, which asks nobody anything, and silence around loads that are quick or report on themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from interp.subjects.panics import panics_caught
from interp.undoing import Gate, undoing

LOADING = Gate()
"""Held while transformers loads or saves something: for that time it changes torch's default dtype and initialisers,
and we its logging, all of which belong to the whole process."""


@contextmanager
def loading() -> Iterator[None]:
    """For a block in which transformers loads something: one load at a time, and a panic is an ordinary error.

    Where transformers would ask on standard input whether code of the model's may run, the answer is no.
    """
    from transformers import dynamic_module_utils as asks

    with undoing() as undo:
        LOADING.hold(undo)
        undo.later(asks.__dict__.pop, "input", None)
        asks.input = _no_answer  # found there before the builtin of that name
        with panics_caught(unseen=False):  # bars of downloads are to be seen
            yield


def _no_answer(question: str = "") -> str:
    raise EOFError("nobody is asked")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers shows no progress bar and logs errors only; the caller's settings come back on leaving.

    Other threads that load something wait. The bar of its GGUF reader follows no setting, so the reader's own name for
    `tqdm` is replaced while inside; a version that has no such name merely shows its bar.
    """
    from huggingface_hub import utils as hub
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    with undoing() as undo:
        LOADING.hold(undo)
        # transformers' switch of its bars moves the hub's too, so that one comes back last
        undo.later(_show_bars, hub, not hub.are_progress_bars_disabled())
        undo.later(_show_bars, logging, logging.is_progress_bar_enabled())
        undo.later(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_error()
        _show_bars(logging, False)
        if (bar := getattr(gguf_reader, "tqdm", None)) is not None:
            undo.later(setattr, gguf_reader, "tqdm", bar)
            gguf_reader.tqdm = partial(bar, disable=True)
        yield


def _show_bars(library: Any, shown: bool) -> None:
    """Of transformers, whose switch has one name, and of the hub, whose switch has another."""
    plural = "s" if hasattr(library, "enable_progress_bars") else ""
    getattr(library, f"{'enable' if shown else 'disable'}_progress_bar{plural}")()
