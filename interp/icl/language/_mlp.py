"""The linear maps that read a block's MLP input, what they see in a run, and their gradients.

Found as `interp.lens.anatomy` finds a block's parts, without a table of architectures: outside attention, the first
linear map that runs reads the MLP's input, and so do others that are given the same values (the gate of a gated MLP).
These are modules inside a block and no hook points, so torch's own forward hooks watch them for the time of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn
from transformers.pytorch_utils import Conv1D

from interp.errors import InterpError, UnsupportedModelError
from interp.icl.language._layers import attention_everywhere
from interp.lens.lens import Lens
from interp.lens.protocol import TextLens
from interp.undoing import undoing

Tensor = torch.Tensor
Note = Callable[[nn.Module, Tensor, Tensor], None]
"""Called with a module, its input `[batch, pos, d_in]` and its output."""


@contextmanager
def watching(modules: list[nn.Module], note: Note) -> Iterator[None]:
    """`note` is told of every call of `modules` while the block runs."""

    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if args and isinstance(args[0], Tensor):
            note(module, args[0], out)

    with undoing() as undo:
        for module in modules:
            undo.hook(module, hook)
        yield


@torch.no_grad()
def input_projections(lens: TextLens, tokens: Int[Tensor, "1 pos"]) -> list[dict[str, nn.Module]]:
    """For each layer the linear maps `[d_model -> d_mlp]` that read the MLP's input, by their own names.

    Raises UnsupportedModelError where there is none (mixtures of experts keep their weights in one tensor), where
    something else reads the MLP's input too, where layers differ, and for a TransformerBridge.
    """
    if not isinstance(lens, Lens):
        raise UnsupportedModelError(
            "the implicit MLP update watches the model's own modules, which a TransformerBridge wraps in its own; load "
            "the model itself with interp.load."
        )
    attention_everywhere(lens, "the implicit MLP update")
    leaves = [_leaves(part.block, part.attention) for part in lens.anatomy.blocks if part.attention]
    given: dict[nn.Module, Tensor] = {}
    with watching([module for block in leaves for module in block.values()], lambda m, x, out: given.update({m: x})):
        lens(tokens, return_type=None, **lens.last_logits_only)
    found = [_reading_the_same(lens, layer, block, given) for layer, block in enumerate(leaves)]
    if any(found[0].keys() != one.keys() for one in found):
        raise UnsupportedModelError(f"the MLPs of {lens.cfg.architecture} differ between layers, so they do not stack.")
    return found


def _leaves(block: nn.Module, attention: nn.Module) -> dict[str, nn.Module]:
    """Modules with weights and without children outside attention, by the last part of their names."""
    inside = set(attention.modules())
    return {
        name.rpartition(".")[2]: module
        for name, module in block.named_modules()
        if module not in inside and not list(module.children()) and list(module.parameters(recurse=False))
    }


def _reading_the_same(
    lens: TextLens, layer: int, leaves: dict[str, nn.Module], given: dict[nn.Module, Tensor]
) -> dict[str, nn.Module]:
    """Of the modules of one block those that read what the first linear map to run (`given` is in that order) reads."""
    names = {module: name for name, module in leaves.items()}
    x = next((x for module, x in given.items() if module in names and _linear(module)), None)
    if x is None:
        raise UnsupportedModelError(
            f"layer {layer} of {lens.cfg.architecture} has no linear map that reads its MLP's input (experts keep "
            "their weights in one tensor); the implicit update is defined for dense MLPs."
        )
    readers = {
        names[module]: module
        for module, own in given.items()
        if module in names and own.numel() == x.numel() and torch.equal(own.flatten(), x.flatten())
    }
    if other := [name for name, module in readers.items() if not _linear(module)]:
        raise UnsupportedModelError(
            f"in layer {layer} of {lens.cfg.architecture} {', '.join(other)} reads the MLP's input too and is not "
            "linear; the implicit update is defined for dense MLPs."
        )
    return readers


def _linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


@dataclass(frozen=True)
class LastToken:
    """What enters and leaves each block's MLP at the last token of a prompt."""

    read: dict[nn.Module, Float[Tensor, " d_model"]]
    """Input of each projection."""
    projected: dict[nn.Module, Float[Tensor, " d_mlp"]]
    """Its output, bias included."""
    written: list[Float[Tensor, " d_model"]]
    """What the MLP adds to the residual stream, by layer."""
    beside: list[Float[Tensor, " d_model"]]
    """The residual stream after the block without what the MLP added."""

    @classmethod
    @torch.no_grad()
    def of(cls, lens: TextLens, tokens: Int[Tensor, "1 pos"], modules: list[nn.Module]) -> LastToken:
        read: dict[nn.Module, Tensor] = {}
        projected: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, x: Tensor, out: Tensor) -> None:
            read[module], projected[module] = x.flatten(0, -2)[-1], out.flatten(0, -2)[-1]

        layers = range(lens.cfg.n_layers)
        names = [f"blocks.{layer}.{point}" for layer in layers for point in ("hook_mlp_out", "hook_resid_post")]
        with watching(modules, note):
            _, cache = lens.run_with_cache(tokens, names_filter=names, return_type=None, **lens.last_logits_only)
        written = [cache[f"blocks.{layer}.hook_mlp_out"][0, -1] for layer in layers]
        after = [cache[f"blocks.{layer}.hook_resid_post"][0, -1] for layer in layers]
        return cls(read, projected, written, [x - out for x, out in zip(after, written, strict=True)])


def weight_gradients(
    lens: TextLens, modules: list[nn.Module], loss: Callable[[Any], Tensor]
) -> Iterator[Float[Tensor, "d_mlp d_model"]]:
    """The gradient of `loss(lens)` with respect to the weight of each module, one after the other.

    The sum over all tokens of every call of (gradient at the output) (input)ᵀ, so that only activations are kept for
    all layers at once, and frozen weights have gradients too. Raises InterpError where the loss carries none.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, x: Tensor, out: Tensor) -> None:
        calls.append((module, x.detach(), out.requires_grad_()))

    with torch.enable_grad(), watching(modules, note):
        value = loss(lens)
    if not value.requires_grad:
        raise InterpError("the fine-tuning loss carries no gradient; compute it from the lens' logits without no_grad.")
    at_outputs = torch.autograd.grad(value, [out for _, _, out in calls], allow_unused=True, materialize_grads=True)
    for wanted in modules:
        yield torch.stack(
            [
                grad.flatten(0, -2).T @ x.flatten(0, -2)
                for (module, x, _), grad in zip(calls, at_outputs, strict=True)
                if module is wanted
            ]
        ).sum(0)


def rank_one_update(
    module: nn.Module, a0: Float[Tensor, " d_model"], a1: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """The factors u, r of the smallest change ΔW = u rᵀ of a linear map W with (W + ΔW) a0 = W a1."""
    change = a1 - a0
    return module(change) - module(torch.zeros_like(change)), a0 / a0.square().sum()
