"""Refusing, before it starts, what would not fit into this machine's memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

from interp.errors import InterpError

SPARE = 0.9  # share of the free memory that may be taken
NUMBERS_A_TOKEN = 40  # fp32 numbers of a layer's width that probing holds for each token, layers one after the other


def check_weights(path: Path, dtype: str) -> None:
    """Raise InterpError where a local model's weights are larger than what is free. A hub id is not looked up."""
    if os.path.isdir(path):  # unlike Path's own, it takes any name
        held = sum(file.stat().st_size for file in path.glob("*.safetensors") if os.path.isfile(file))
    elif path.suffix == ".gguf" and os.path.isfile(path):
        held = path.stat().st_size * 8  # at most: 4-bit weights become fp32
    else:
        return
    _check(held, "its weights", "load it on a larger machine")


def check_reading(cfg: Any, tokens: int) -> None:
    """Raise InterpError where reading so many tokens with probes would not fit."""
    width = cfg.d_model + cfg.n_heads * cfg.d_head
    logits = cfg.d_vocab * 4
    kept = cfg.n_layers * cfg.n_heads * tokens * 4 * 4  # what probes keep of every head and token
    _check(tokens * width * NUMBERS_A_TOKEN * 4 + kept + logits, f"reading {tokens:,} tokens", "choose fewer tokens")


def _check(needed: int, what: str, instead: str) -> None:
    free = psutil.virtual_memory().available * SPARE
    if needed > free:
        raise InterpError(
            f"{what} would take about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free here: {instead}."
        )
