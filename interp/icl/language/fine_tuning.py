"""Fine-tuning on demonstrations the way in-context learning is supposed to do it, and undoing it exactly.

Recipe of Dai et al. 2023 (section 4, and the files of their release): plain SGD without momentum, one epoch, batch size
1, demonstrations in the order of the prompt, each read alone, the loss only on its label token, and only the key and
value projections updated. `recipe="layer_causal"` is the variant of Deutch et al. 2024 (section 5): the input of every
layer is detached and every layer's output is read out with the final norm and the unembedding, so a layer learns only
from what layers up to itself know, as it does in context. Their losses are summed.

Differs from both: the learning rate is chosen on held-out examples of each task, since theirs belong to models of 1.3
billion parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.icl.language.key_value_weights import KeyValueWeight, key_value_weights
from interp.icl.language.label_tasks import Example, LabelPrompts
from interp.icl.language.readings import next_token_logits
from interp.lens.protocol import InterventionLens, TextLens
from interp.undoing import undoing

Tensor = torch.Tensor
Recipe = Literal["sgd", "layer_causal"]
RECIPES: tuple[Recipe, ...] = ("sgd", "layer_causal")
LEARNING_RATES: dict[Recipe, tuple[float, ...]] = {"sgd": (1e-3, 3e-3, 1e-2), "layer_causal": (3e-4, 1e-3, 3e-3)}
"""What is tried by default; smaller for the layer-causal variant, whose loss is a sum over layers."""


class DivergedError(InterpError):
    """A learning rate with which the loss or the weights are no longer finite."""


def check_recipe(recipe: str) -> None:
    """Raise InterpError for a recipe that does not exist."""
    if recipe not in RECIPES:
        raise InterpError(f"a fine-tuning recipe is one of {', '.join(RECIPES)}, not {recipe!r}.")


@dataclass(frozen=True)
class Training:
    """What was seen while training: the loss of each demonstration before its step, and its queries at every layer."""

    losses: Float[Tensor, " demo"]
    """Nats; summed over layers for the layer-causal variant."""
    queries: list[Float[Tensor, "layer token head_channel"]]
    """Of each demonstration's tokens but the first, all heads beside each other, scaled, after rotary embedding."""


@contextmanager
def fine_tuned(lens: TextLens, prompts: LabelPrompts, lr: float, recipe: Recipe = "sgd") -> Iterator[Training]:
    """Within the block the model is fine-tuned on the demonstrations of `prompts`; afterwards it is as before, bit for
    bit.

    Raises InterpError for an unknown recipe, weights that are not float32 or float64 (steps would be rounded away);
    DivergedError where the loss or a weight is no longer finite; UnsupportedModelError where key and value weights
    cannot be told from others.
    """
    check_recipe(recipe)
    weights = key_value_weights(lens)
    if narrow := next((w for w in weights if w.parameter.dtype not in (torch.float32, torch.float64)), None):
        raise InterpError(
            f"{narrow.name} is {narrow.parameter.dtype}, in which small steps round to nothing; load the model with "
            "dtype=torch.float32."
        )
    before = [(w.parameter.detach().clone(), w.parameter.requires_grad) for w in weights]
    with undoing() as undo:
        for weight, (value, requires_grad) in zip(weights, before, strict=True):
            undo.later(weight.parameter.data.copy_, value)
            undo.later(weight.parameter.requires_grad_, requires_grad)
            weight.parameter.requires_grad_(True)
        yield _train(lens, prompts, weights, lr, recipe)


def _train(lens: TextLens, prompts: LabelPrompts, weights: list[KeyValueWeight], lr: float, recipe: Recipe) -> Training:
    parameters = [w.parameter for w in weights]
    losses: list[float] = []
    queries: list[Tensor] = []
    for demo in prompts.demos:
        with torch.enable_grad():
            loss, seen = _label_loss(lens, prompts.start, demo, recipe)
            gradients = torch.autograd.grad(loss, parameters)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"fine-tuning on {prompts.task} diverged at demonstration {len(losses)} with lr={lr}; take less."
            )
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                step = gradient if weight.mask is None else gradient * weight.mask
                weight.parameter.sub_(step, alpha=lr)
        losses.append(float(loss.detach()))
        queries.append(seen)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):  # no loss follows the last step
        raise DivergedError(f"fine-tuning on {prompts.task} diverged at its last demonstration at lr={lr}; take less.")
    return Training(torch.tensor(losses), queries)


def _label_loss(lens: TextLens, start: tuple[int, ...], demo: Example, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Loss on one demonstration's label (nats), and the queries of its tokens `[layer, token, head_channel]`.

    The label itself is read too, though nothing is learnt from what follows it: its queries belong to the record.
    """
    tokens = torch.tensor([[*start, *demo.prompt, demo.label]], device=lens.device)
    asked = tokens.shape[1] - 2  # the position that predicts the label
    target = tokens[0, -1:]
    queries: list[Tensor] = []
    resid: list[Tensor] = []

    def note(event: Any, hook: Any) -> None:
        own = event.q.detach()[0, :, len(start) + 1 :] * event.scale  # [head, token, d_head]
        queries.append(own.transpose(0, 1).flatten(1).float().cpu())

    def cut(value: Tensor, hook: Any) -> Tensor:
        return value.detach()

    def keep(value: Tensor, hook: Any) -> None:
        resid.append(value[0, asked])

    layers = range(lens.cfg.n_layers)
    hooks: list[tuple[str, Any]] = [(f"blocks.{layer}.attn.hook_event", note) for layer in layers]
    if recipe == "layer_causal":
        hooks += [(f"blocks.{layer}.hook_resid_pre", cut) for layer in layers]
        hooks += [(f"blocks.{layer}.hook_resid_post", keep) for layer in layers]
    column = torch.tensor([asked], device=lens.device)
    with lens.hooks(fwd_hooks=hooks):
        if lens.last_logits_only:
            logits = lens(tokens, logits_to_keep=column)
        else:
            logits = lens(tokens)[:, column]
    if recipe == "sgd":
        return nn.functional.cross_entropy(logits[0], target), torch.stack(queries)
    if not hasattr(lens, "ln_final"):
        raise UnsupportedModelError(
            f"{lens.cfg.architecture} has no final norm that could be found to read layers out."
        )
    by_layer = lens.unembed(lens.ln_final(torch.stack(resid)))
    return nn.functional.cross_entropy(by_layer, target.expand(len(resid)), reduction="sum"), torch.stack(queries)


def label_loss(logits: Float[Tensor, "example d_vocab"], prompts: LabelPrompts, examples: Sequence[Example]) -> float:
    """Mean cross entropy of the right label among the task's label words, in nats."""
    among = torch.tensor(prompts.label_tokens)
    right = torch.tensor([prompts.label_tokens.index(example.label) for example in examples])
    return float(nn.functional.cross_entropy(logits[:, among], right))


def choose_learning_rate(
    lens: InterventionLens, prompts: LabelPrompts, recipe: Recipe = "sgd", grid: Sequence[float] | None = None
) -> tuple[float, dict[float, float]]:
    """The learning rate after which held-out examples are labelled best, and the loss after each.

    `grid` is what is tried, by default the recipe's `LEARNING_RATES`. The loss is the mean cross entropy over the
    task's label words only, in nats; a rate that diverges counts as infinite.

    Raises InterpError for an unknown recipe, without held-out examples or rates, and where every rate diverges.
    """
    check_recipe(recipe)
    if not prompts.held_out:
        raise InterpError("choose_learning_rate: draw the task with held_out examples to choose on.")
    grid = LEARNING_RATES[recipe] if grid is None else grid
    if not len(grid):
        raise InterpError("choose_learning_rate: the grid is empty; name at least one learning rate.")
    losses: dict[float, float] = {}
    for lr in grid:
        try:
            with fine_tuned(lens, prompts, lr, recipe):
                logits = next_token_logits(lens, prompts, prompts.held_out, demos=False)
                losses[lr] = label_loss(logits, prompts, prompts.held_out)
        except DivergedError:
            losses[lr] = math.inf
        losses[lr] = math.inf if math.isnan(losses[lr]) else losses[lr]
    best = min(losses, key=losses.__getitem__)
    if losses[best] == math.inf:
        raise InterpError(
            f"fine-tuning on {prompts.task} diverges with every learning rate of {list(grid)}; add smaller."
        )
    return best, losses
