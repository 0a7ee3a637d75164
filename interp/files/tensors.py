"""Tensors with a few words about them in one safetensors file, and a checksum of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from interp.errors import InterpError
from interp.files.reading import expect_regular
from interp.files.writing import write as write_file


def write(path: str | Path, tensors: Mapping[str, Tensor], key: str, about: Any) -> Path:
    """Write a file that `read` reads; it appears complete or not at all. `about` is what JSON can hold.

    Raises `StorageError` where the disk refuses.
    """
    text = json.dumps(about)
    return write_file(path, save(dict(tensors), {key: text, "sha256": checksum(tensors, text)}))


def read(path: str | Path, key: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors and what is said about them under `key`; None for a file that says nothing there. They are in memory,
    and no longer the file's: what becomes of it later changes none of them.

    Raises InterpError for a damaged file; OSError, SafetensorError or ValueError for one that is none of this kind. A
    file of before there were checksums is read without one.
    """
    expect_regular(path)
    with safe_open(path, "pt") as file:
        said = file.metadata() or {}
        # what it hands out lies in the file: an interp that goes on with it would die where somebody cuts that short
        tensors: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    text = said.get(key)
    if text is None:
        return tensors, None
    if "sha256" in said and said["sha256"] != checksum(tensors, text):
        raise InterpError(f"{path} is damaged or was changed: its checksum is not that of its content; remove it.")
    try:
        return tensors, json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of names, types, shapes and values, and of a text, in hexadecimal."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError)
"""What reading something else as such a file ends in."""
