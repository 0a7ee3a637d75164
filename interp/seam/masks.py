"""Masks as facts: what transformers asked for of each mask, remembered beside the mask that it got.

transformers builds masks through a registry of mask functions. Models may compute with what comes back (sparse
attention does), so a model always gets its own mask. While a Lens call is on, what was asked of it (causal, window,
offsets, padding) is remembered for as long as the mask lives, and tells the kernels what a queries x keys tensor would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from interp.errors import UnsupportedModelError

Tensor = torch.Tensor


def same_function(f: Any, g: Any) -> bool:
    """Whether two mask functions are the same code over equal closures (transformers rebuilds them at every call)."""
    if not callable(f) or not hasattr(f, "__code__"):
        return bool(type(f) is type(g) and f == g)
    if getattr(g, "__code__", None) is not f.__code__:
        return False
    cells = zip(f.__closure__ or (), g.__closure__ or (), strict=True)
    return all(_same_cell(a.cell_contents, b.cell_contents) for a, b in cells)


def _same_cell(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same_function, a, b))
    return same_function(a, b)


class AskedMask:
    """What transformers asked of a mask.

    Keyword arguments are those of transformers' mask functions; `attention_mask` is the 2-D padding mask
    `[batch, tokens seen]`, True for real tokens.
    """

    def __init__(self, **asked: Any) -> None:
        self.asked = asked
        self.thread = threading.get_ident()

    @property
    def first_new(self) -> int:
        """Column of the first new key."""
        return int(self.asked["q_offset"]) - int(self.asked["kv_offset"])

    def kernel_facts(self) -> dict[str, Any]:
        """The mask in the keywords of `interp_kernels`.

        Causal, offset and window where transformers' mask is exactly that; for any other pattern (packed sequences,
        chunks, overlays) a dense boolean mask `[batch, 1, query, key]`.
        """
        asked = self.asked
        facts: dict[str, Any] = {"offset": self.first_new, **self.padding()}
        pattern, window = asked["mask_function"], asked.get("local_size")
        if same_function(pattern, causal_mask_function):
            return {"causal": True, **facts}
        if same_function(pattern, bidirectional_mask_function):
            return {"causal": False, **facts}
        if window is not None and same_function(pattern, sliding_window_causal_mask_function(window)):
            return {"causal": True, "window": int(window), **facts}
        return {"mask": sdpa_mask(**{**asked, "allow_is_causal_skip": False}), **self.padding()}

    def padding(self) -> dict[str, Tensor | None]:
        """Which keys and which query rows are real tokens; None where all are."""
        asked, seen = self.asked, self.asked.get("attention_mask")
        written = self.first_new + asked["q_length"]  # a static cache has columns beyond, not yet written
        if same_function(asked["mask_function"], bidirectional_mask_function):
            written = asked["kv_length"]  # in cross-attention there may be more keys than queries, and all are there
        if seen is None and written < asked["kv_length"]:
            seen = torch.ones(asked["batch_size"], int(asked["kv_offset"]) + written, dtype=torch.bool)
            seen = seen.to(asked["device"])
        if seen is None or (bool(seen.all()) and written == asked["kv_length"]):
            return {"key_mask": None, "query_mask": None}

        def columns(start: int, length: int) -> Tensor:
            part = seen[:, start : start + length].bool()
            return nn.functional.pad(part, (0, length - part.shape[1]))

        return {
            "key_mask": columns(int(asked["kv_offset"]), asked["kv_length"]),
            "query_mask": columns(int(asked["q_offset"]), asked["q_length"]),
        }


_asked: MutableMapping[Tensor, AskedMask] = WeakTensorKeyDictionary()
"""`AskedMask` of every mask that lives and was built during a Lens call."""


def remembering(build: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function of transformers that also remembers what was asked of each mask that it builds."""

    def mask(**asked: Any) -> Any:
        made = build(**asked)
        if isinstance(made, Tensor):
            _asked[made] = AskedMask(**asked)
        return made

    return mask


def kernel_facts(module: nn.Module, q: Tensor, k: Tensor, mask: Any, causal: bool) -> dict[str, Any]:
    """Mask facts for `interp_kernels`, from whatever the model handed to its attention.

    causal: whether the model's own attention function is causal where it gets no mask. Then, as in torch's SDPA, the
    new tokens are the first columns: a cache that has more, a static one, has not written them yet.
    """
    new, keys = q.shape[2], k.shape[2]
    if mask is None and (new == 1 or not causal):
        return {"causal": new == 1}
    if mask is None:
        written = torch.arange(keys, device=k.device) < new
        return {"causal": True, "offset": 0, "key_mask": None if keys == new else written.expand(k.shape[0], -1)}
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"{type(module).__name__} passes a {type(mask).__name__} to its attention, which scores, pattern and "
            "observables cannot read; load the model with attn_implementation='sdpa'."
        )
    asked = _asked.get(mask)
    if asked is not None and asked.asked["kv_length"] == k.shape[2]:
        return asked.kernel_facts()
    return {**facts_of_dense_mask(mask), **_padding_of(q, k)}


def _padding_of(q: Tensor, k: Tensor) -> dict[str, Tensor | None]:
    """Which keys and queries are real where a model made a mask of its own out of the one that it had built (sparse
    attention): as in the masks of this call, which live as long as it runs."""
    sizes = (q.shape[0], q.shape[2], k.shape[2])
    for asked in list(_asked.values()):
        of = asked.asked
        if asked.thread == threading.get_ident() and (of["batch_size"], of["q_length"], of["kv_length"]) == sizes:
            return asked.padding()
    return {}


def additive_mask(scores: Tensor, mask: Any, causal: bool) -> Tensor:
    """The mask as something to add to scores `[batch, head, query, key]`."""
    lowest = torch.finfo(scores.dtype).min
    if isinstance(mask, Tensor):
        additive = mask.dtype != torch.bool
        return mask if additive else torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, lowest)
    if not causal or scores.shape[2] == 1:
        return torch.zeros((), dtype=scores.dtype, device=scores.device)
    return torch.full(scores.shape[2:], lowest, dtype=scores.dtype, device=scores.device).triu(1)


def facts_of_dense_mask(mask: Tensor) -> dict[str, Any]:
    """Mask facts of a 4-D mask that the caller prepared: boolean, or additive with 0 for visible cells."""
    if mask.dtype == torch.bool:
        return {"mask": mask}
    visible = mask == 0
    if not bool((visible | (mask <= torch.finfo(mask.dtype).min / 2)).all()):
        raise UnsupportedModelError(
            "the attention mask carries a bias (values other than 0 and -inf), which observables would ignore; "
            "hook hook_pattern instead, or pass a 0/-inf mask."
        )
    return {"mask": visible}


def first_new(k: Tensor, n_new: int, mask: Any, causal: bool) -> int:
    """Where in `k [batch, kv_head, key, d_head]` the keys of the `n_new` new tokens begin; see `kernel_facts`."""
    asked = _asked.get(mask) if isinstance(mask, Tensor) else None
    if asked is not None:
        return asked.first_new
    return 0 if mask is None and causal and n_new > 1 else k.shape[2] - n_new
