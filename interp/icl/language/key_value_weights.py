"""Which parameters of a model make its keys and values: found by differentiating, not by name.

In a run on a few tokens every parameter of an attention module is asked whether the layer's keys, values and queries
depend on it. Norms do too, but are no projections. A fused projection makes queries as well; which of its entries make
only keys or values shows in the same gradients, so those can be trained alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interp.errors import UnsupportedModelError
from interp.icl.language._layers import attention_everywhere
from interp.lens.protocol import TextLens

Tensor = torch.Tensor


@dataclass(frozen=True)
class KeyValueWeight:
    """A weight or bias that makes keys or values."""

    name: str
    parameter: nn.Parameter
    mask: Tensor | None
    """True at the entries that make keys or values, where others make queries; None where all do."""


def key_value_weights(lens: TextLens) -> list[KeyValueWeight]:
    """Weights and biases of the key and value projections of all layers.

    Raises UnsupportedModelError for a Lens around a bridge, where a layer makes no keys and values of its own, or where
    one entry of a parameter makes queries too.
    """
    if not hasattr(lens, "anatomy"):
        raise UnsupportedModelError(
            f"key and value weights are found through a Lens; load the model itself instead of a {type(lens).__name__}."
        )
    ids = torch.arange(1, 4, device=lens.device)[None] * (lens.cfg.d_vocab // 5)
    attention_everywhere(lens, "fine-tuning keys and values alone")
    modules = [part.attention for part in lens.anatomy.blocks if part.attention]
    before = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    made: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}

    def keep(name: str) -> Any:
        return lambda value, hook: made[name].append(value)

    rotary = "rot_" if "blocks.0.attn.hook_rot_q" in lens.hook_dict else ""
    points = {"q": f"hook_{rotary}q", "k": f"hook_{rotary}k", "v": "hook_v"}
    hooks = [
        (lambda name, point=point: name.endswith(f".attn.{point}"), keep(which)) for which, point in points.items()
    ]
    try:
        for p, _ in before:
            p.requires_grad_(True)
        with torch.enable_grad():
            lens.run_with_hooks(ids, return_type=None, fwd_hooks=hooks)
            return [weight for layer in range(lens.cfg.n_layers) for weight in _of_layer(lens, layer, made)]
    finally:
        for p, requires_grad in before:
            p.requires_grad_(requires_grad)


def _of_layer(lens: TextLens, layer: int, made: dict[str, list[Tensor]]) -> list[KeyValueWeight]:
    part = lens.anatomy.blocks[layer]
    assert part.attention is not None
    projections = [m for m in part.attention.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    inside = {id(p) for m in projections for p in m.parameters(recurse=False)}
    named = {name: p for name, p in part.attention.named_parameters() if id(p) in inside}
    touched = {which: _touched(values[layer], list(named.values())) for which, values in made.items()}
    found = []
    for i, (name, parameter) in enumerate(named.items()):
        keys_values = touched["k"][i] | touched["v"][i]
        queries = touched["q"][i]
        if not keys_values.any():
            continue
        if (keys_values & queries).any():
            raise UnsupportedModelError(
                f"{part.attention_name}.{name} makes queries with the same numbers as keys or values, so those cannot "
                "be trained alone; take a model that projects them apart."
            )
        full_name = f"{part.attention_name}.{name}"
        found.append(KeyValueWeight(full_name, parameter, ~queries if queries.any() else None))
    if not all(any(t.any() for t in touched[which]) for which in ("k", "v")):
        raise UnsupportedModelError(f"layer {layer} of {lens.cfg.architecture} makes no keys and values of its own.")
    return found


def _touched(made: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Entries of each parameter that `made` depends on, seen in the gradient of a random sum of it."""
    weights = torch.rand(made.shape, generator=torch.Generator().manual_seed(0)).to(made) + 1
    gradients = torch.autograd.grad(made, parameters, weights, retain_graph=True, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return [torch.zeros_like(p, dtype=torch.bool) if g is None else g != 0 for p, g in pairs]
