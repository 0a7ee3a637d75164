"""Masks as facts: what transformers asked for, kept instead of a queries x keys tensor.

transformers builds one mask a forward pass through a registry of mask functions. The Lens' entry there keeps what was
asked (causal, window, offsets, padding) and builds a dense mask only for a delegate that needs one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
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
    """What transformers asked of a mask, kept as facts instead of a queries x keys tensor.

    Keyword arguments are those of transformers' mask functions; `attention_mask` is the 2-D padding mask
    `[batch, tokens seen]`, True for real tokens.
    """

    def __init__(self, **asked: Any) -> None:
        self.asked = asked
        self._for_delegate: dict[str, Any] = {}

    def for_delegate(self, implementation: str) -> Any:
        """The mask that transformers would have built for `implementation`, None where it would build none."""
        if implementation not in self._for_delegate:
            self._for_delegate[implementation] = ALL_MASK_ATTENTION_FUNCTIONS[implementation](**self.asked)
        return self._for_delegate[implementation]

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
        facts: dict[str, Any] = {"offset": self.first_new, **self._padding()}
        pattern, window = asked["mask_function"], asked.get("local_size")
        if same_function(pattern, causal_mask_function):
            return {"causal": True, **facts}
        if same_function(pattern, bidirectional_mask_function):
            return {"causal": False, **facts}
        if window is not None and same_function(pattern, sliding_window_causal_mask_function(window)):
            return {"causal": True, "window": int(window), **facts}
        return {"mask": sdpa_mask(**{**asked, "allow_is_causal_skip": False}), **self._padding()}

    def _padding(self) -> dict[str, Tensor | None]:
        """Which keys and which query rows are real tokens; None where all are."""
        asked, seen = self.asked, self.asked.get("attention_mask")
        written = self.first_new + asked["q_length"]  # a static cache has columns beyond, not yet written
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


def kernel_facts(module: nn.Module, q: Tensor, k: Tensor, mask: Any) -> dict[str, Any]:
    """Mask facts for `interp_kernels`, from whatever the model handed to its attention."""
    if isinstance(mask, AskedMask):
        if mask.asked["kv_length"] != k.shape[2]:
            raise UnsupportedModelError(
                f"{type(module).__name__} attends to {k.shape[2]} keys but its mask was built for "
                f"{mask.asked['kv_length']}; pass no past_key_values and let the Lens make the cache."
            )
        return mask.kernel_facts()
    if isinstance(mask, Tensor):
        return facts_of_dense_mask(mask)
    if q.shape[2] > 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} passes no mask to its attention, so causality is unknown; scores, pattern and "
            "observables are refused for it."
        )
    return {"causal": True}


def additive_mask(module: nn.Module, mask: Any, scores: Tensor) -> Tensor:
    """The mask as something to add to scores `[batch, head, query, key]`."""
    if isinstance(mask, AskedMask):
        dense: Tensor = mask.for_delegate("eager")
        return dense
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        return mask
    if isinstance(mask, Tensor):
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, torch.finfo(scores.dtype).min)
    kernel_facts(module, scores, scores.transpose(2, 3), None)
    return torch.zeros((), dtype=scores.dtype, device=scores.device)


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


def first_new(mask: Any, k: Tensor, n_new: int) -> int:
    """Where in `k [batch, kv_head, key, d_head]` the keys of the `n_new` new tokens begin."""
    return mask.first_new if isinstance(mask, AskedMask) else k.shape[2] - n_new
