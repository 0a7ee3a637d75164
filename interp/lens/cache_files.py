"""A cache in a file, to go on from in another process: what policies left, and where each of them stands."""

from __future__ import annotations

import hashlib
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.cache.lens_cache import LensCache
from interp.cache.packing import fill, layers_apart, put_together, taken_apart
from interp.errors import InterpError
from interp.files import tensors as tensor_file
from interp.interventions._specs import from_toml, to_toml

if TYPE_CHECKING:
    from interp.lens.lens import Lens

KEY = "interp cache"
FORMAT = 1
NOT_OF_THE_SEQUENCE = ("policy", "prompt", "ledger", "channel_ledger", "queries_needed")
"""What of a plan its policy gives it anew."""


def save_cache(lens: Lens, path: str | Path, cache: LensCache | None = None) -> Path:
    """Write a cache to a safetensors file, which `load_cache` reads in any process that has the same model.

    Args:
        lens: the Lens that filled it.
        path: the file; it appears complete or not at all.
        cache: the cache; `lens.last_cache` where none is given.

    Raises:
        InterpError: there is no cache, its policies have yet to compress the prompt, attention edits have something to
            remember of its text, or a policy holds what no file can.
        StorageError: the disk refuses.

    Examples:
        >>> with lens.apply(interp.SnapKV(budget=12, window=8)):
        ...     logits = lens(prompt, use_cache=True)
        >>> path = interp.save_cache(lens, "prompt.safetensors")
        >>> cache = interp.load_cache(lens, path)
        >>> cache.nbytes() == lens.last_cache.nbytes()
        True
        >>> lens(torch.tensor([[9, 8]]), past_key_values=cache, use_cache=True).shape[:2]
        torch.Size([1, 2])
    """
    cache = lens.last_cache if cache is None else cache
    if cache is None:
        raise InterpError("there is no cache to save: the last call kept none (pass use_cache=True).")
    if type(cache) is not LensCache:
        raise InterpError(
            f"a {type(cache).__name__} cannot be saved: only caches of decoders read without attention edits can, "
            "which hold nothing but keys, values and what policies left of them."
        )
    held: dict[str, torch.Tensor] = {}
    about = {
        "format": FORMAT,
        "model": _model(lens),
        "layers": layers_apart(cache, held),
        "keeper": None if cache.keeper is None else _keeper(cache, held),
    }
    return tensor_file.write(path, {name: tensor.cpu() for name, tensor in held.items()}, KEY, about)


def load_cache(lens: Lens, path: str | Path) -> LensCache:
    """The cache that `save_cache` wrote, on the Lens' device: pass it on as `past_key_values`.

    It carries its policies, which go on as they would have; ledgers begin anew. Nothing in the file is run.

    Raises InterpError for a file that is missing, damaged or no cache, and for a cache of another model.

    Examples:
        >>> logits = lens(prompt, use_cache=True)
        >>> cache = interp.load_cache(lens, interp.save_cache(lens, "prompt.safetensors"))
        >>> lens(torch.tensor([[9, 8]]), past_key_values=cache, use_cache=True).shape[:2]
        torch.Size([1, 2])
    """
    tensors, about = _read(path)
    if about["model"] != (own := _model(lens)):
        said = about["model"] if isinstance(about["model"], dict) else {}
        differing = ", ".join(f"{k} {said.get(k)!r}, here {v!r}" for k, v in own.items() if said.get(k) != v)
        raise InterpError(f"{path} is a cache of another model: {differing}.")
    device = lens.model.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        return _put_together(lens, about, tensors, device)
    except _OTHER_WORDS as error:
        raise InterpError(f"{path} does not hold a cache that this model could go on from: {error}") from None


_OTHER_WORDS = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
"""What words that `save_cache` did not write end in."""


def _put_together(lens: Lens, about: dict[str, Any], tensors: dict[str, torch.Tensor], device: Any) -> LensCache:
    said, keeper = about["keeper"], None
    if said is not None:
        keeper = lens._interventions.keeper_of(lens.policies_of(from_toml(said["policies"])))
    cache = LensCache(lens.model.config, keeper)
    fill(cache, about["layers"], tensors, device)
    if keeper is not None:
        _go_on(keeper, said, tensors)
    return cache


def _read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors, about = tensor_file.read(path, KEY)
    except tensor_file.UNREADABLE as error:
        raise InterpError(
            f"{path} is no cache that interp.save_cache wrote: {' '.join(str(error).split())[:160]}"
        ) from None
    if not isinstance(about, dict) or not {"format", "model", "layers", "keeper"} <= about.keys():
        raise InterpError(f"{path} is no cache that interp.save_cache wrote; pass one that is.")
    if about["format"] != FORMAT:
        raise InterpError(f"{path} is a cache in format {about['format']}; this release reads {FORMAT}.")
    return tensors, about


def _keeper(cache: LensCache, held: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What policies know of the sequence, in words."""
    keeper = cache.keeper
    if keeper.needs_more_than(0):
        raise InterpError(
            "the policies of this cache have yet to compress its prompt; read the next token, and save then."
        )
    plans = {}
    for stage, plan in keeper.plans.items():
        own = {name: value for name, value in vars(plan).items() if name not in NOT_OF_THE_SEQUENCE}
        try:
            plans[stage] = {name: taken_apart(value, held, f"{stage}.{name}") for name, value in own.items()}
        except TypeError as error:
            name = type(plan).__name__
            raise InterpError(f"a cache under {name} cannot be saved: {error}, which has no place in a file.") from None
    return {
        "policies": to_toml(reduce(or_, keeper.policies)),
        "prompt_tokens": keeper.prompt_tokens,
        "compressed": sorted(keeper.compressed),
        "reads_back": keeper.reads_back,
        "plans": plans,
    }


def _go_on(keeper: Any, said: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Let the policies of a fresh keeper stand where those of the saved one stood."""
    if said["prompt_tokens"] is None:
        return
    keeper.expect(int(said["prompt_tokens"]))
    keeper.compressed, keeper.reads_back = set(said["compressed"]), bool(said["reads_back"])
    if keeper.plans.keys() != said["plans"].keys():
        raise ValueError("its policies do not act as they say.")
    for stage, plan in keeper.plans.items():
        own = {name: put_together(words, tensors) for name, words in said["plans"][stage].items()}
        if own.keys() != vars(plan).keys() - set(NOT_OF_THE_SEQUENCE):
            raise ValueError(f"{type(plan).__name__} of this release keeps something else.")
        vars(plan).update(own)


def _model(lens: Lens) -> dict[str, Any]:
    """What has to be the same for a cache to mean the same: shape, dtype and weights of the model."""
    cfg = lens.cfg
    names = ("architecture", "n_layers", "n_heads", "n_key_value_heads", "d_head", "d_model", "d_vocab", "dtype")
    return {**{name: getattr(cfg, name) for name in names}, "weights": _weights(lens.model)}


@torch.no_grad()
def _weights(model: Any) -> str:
    """SHA-256 of the first numbers of every parameter: enough to tell models apart, and read in no time."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # offloaded
            continue
        some = parameter.detach().reshape(-1)[:64].cpu().float().numpy()
        found.update(name.encode() + some.tobytes())
    return found.hexdigest()
