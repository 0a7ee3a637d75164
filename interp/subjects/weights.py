"""Load a `.gguf` file as an ordinary transformers model, slowly once and quickly from then on.

transformers unpacks a GGUF file in pure Python (tens of seconds for 135 million parameters) and refuses to save the
result. The result is plain weights, so it is stripped of what marks it as quantised, saved as safetensors in a cache
folder named after the file's content and the dtype, and loaded from there. The cached model is equal bit by bit.
Weights come from GGUF and safetensors only: no pickle, no remote code, no network.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from interp.errors import InterpError, StorageError
from interp.files.private import NoHomeError
from interp.files.reading import opened
from interp.subjects.claimed_size import bounded
from interp.subjects.gguf_contents import held_in_gguf, noting_dropped_tensors, skipped_settings
from interp.subjects.panics import panics_caught
from interp.subjects.quiet import loading, quiet_transformers
from interp.subjects.weight_cache import ClosedError, filled, identity, is_whole, source_sha256, weights_home

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MAGIC = b"GGUF"
QUANTISED = ("hf_quantizer", "is_quantized", "quantization_method")  # what marks a model that cannot be saved


class WeightsError(InterpError):
    """A weights file that is missing, damaged, or of a kind that transformers cannot read."""


def load_gguf(path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode on the CPU, and the tokenizer of a GGUF file, with weights of `dtype`.

    The first load of a file fills `$INTERP_CACHE/weights` (or the system's cache folder) and logs one line at INFO. A
    cache that cannot be written or read costs a warning and the time, not the load. `model.config.name_or_path` is the
    file's stem. Raises `WeightsError` for a file that is missing, truncated, not GGUF, of an architecture unknown to
    transformers, or with tensors or settings that its reader leaves out.
    """
    source = Path(path)
    _require_gguf(source)
    read = identity(source)
    try:
        home = weights_home()
        digest = source_sha256(source, home)
        folder = home / f"{digest[:16]}-{str(dtype).removeprefix('torch.')}"
        whole = is_whole(folder)
    except (NoHomeError, ClosedError) as reason:
        logger.warning("the cache of unpacked weights cannot be used, so this load is slow: %s", reason)
        model, tokenizer = _unpack(source, dtype, read)
        return _named(model, source), tokenizer
    if not whole:
        logger.info("unpacking %s into %s, once; this can take a minute", source.name, folder)
        model, tokenizer = _unpack(source, dtype, read)
        try:
            _store(model, tokenizer, folder, source, digest)
        except (OSError, StorageError) as error:
            logger.warning("the unpacked weights are not kept, so the next load is slow again: %s", error)
            return _named(model, source), tokenizer
        del model, tokenizer  # so that never two copies of the weights are in memory
    model, tokenizer = _reload(folder, dtype)
    return _named(model, source), tokenizer


def _require_gguf(source: Path) -> None:
    with os.fdopen(opened(source, "weights file", WeightsError), "rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise WeightsError(f"{source} is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}; name a .gguf file")


def _unpack(source: Path, dtype: torch.dtype, read: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`read`: the file's identity when it was looked at."""
    try:
        held = held_in_gguf(source)
        with noting_dropped_tensors() as dropped, bounded(str(source), lambda: held, quantised=False):
            model, tokenizer = _from_pretrained(source.parent, dtype, gguf_file=source.name)
    except InterpError:
        raise
    except Exception as error:  # a damaged file breaks the reader in many ways (numpy, struct, unicode, keys)
        raise WeightsError(
            f"transformers cannot read the weights in {source} ({_first_line(error)}); "
            f"if this file of {source.stat().st_size:,} bytes is incomplete, fetch it again"
        ) from error
    if left := [*dropped, *skipped_settings(source, model.config)]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise WeightsError(
            f"{source} holds what transformers' GGUF reader leaves out ({', '.join(left[:3])}{more}), so the model "
            "would compute something else; load its safetensors (a folder or a hub id) instead"
        )
    # transformers takes every GGUF model for a quantised one and refuses to save it, but these weights are unpacked.
    for owner, name in (*((model, name) for name in QUANTISED), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
    if identity(source) != read:
        raise WeightsError(f"{source} was changed while it was read; load it again")
    return model, tokenizer


def _store(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, source: Path, digest: str) -> None:
    import transformers

    status = source.stat()
    provenance = {
        "source": {"name": source.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest},
        "transformers": transformers.__version__,
    }
    with filled(folder, provenance) as draft, quiet_transformers():
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)


def _reload(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return _from_pretrained(folder, dtype, use_safetensors=True)
    except Exception as error:  # its bytes were verified, so it was written by a version that this one does not follow
        raise WeightsError(
            f"this transformers cannot load the cached weights in {folder} ({_first_line(error)}); "
            "delete that folder and load again"
        ) from error


def _from_pretrained(
    folder: Path, dtype: torch.dtype, **kind: str | bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = {"trust_remote_code": False, "local_files_only": True, **kind}
    with quiet_transformers(), loading():
        model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **local)
        with panics_caught():
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        raise ValueError(f"{len(missing)} tensors are missing, {missing[0]} among them")
    return model, tokenizer


def _named(model: PreTrainedModel, source: Path) -> PreTrainedModel:
    model.config.name_or_path = source.stem  # otherwise the cache folder, which tells a reader nothing
    return model


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0].rstrip('.')}"
