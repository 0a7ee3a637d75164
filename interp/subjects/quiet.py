"""Silence around loads that are quick or that report on themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers shows no progress bar and logs errors only; the caller's settings come back on leaving.

    The bar of its GGUF reader follows no setting, so the reader's own name for `tqdm` is replaced while inside; a
    version that has no such name merely shows its bar.
    """
    from huggingface_hub import utils as hub
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()  # transformers' switch moves this one too
    bar = getattr(gguf_reader, "tqdm", None)
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if bar is not None:
            gguf_reader.tqdm = partial(bar, disable=True)
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not hub_bars:
            hub.disable_progress_bars()
        elif not bars:
            hub.enable_progress_bars()
        if bar is not None:
            gguf_reader.tqdm = bar
