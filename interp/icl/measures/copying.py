"""Does the first layer of a model that reads x and y as separate tokens copy each one's neighbour into it?

von Oswald et al. 2023 (arXiv:2212.07677, section 5): with tokens x_1, y_1, x_2, ... gradient descent needs one token
that holds a pair, so a first layer has to copy y_i next to x_i. Their probe is S_k(t), the norm of the mean over tasks
of the gradient of the sum of the layer's output at token k in the content of token t: how far output k holds token t.

The released code counts the next token among the others too, while dividing by their number without it. Here "others"
are all tokens but k and its follower. The content of a token is what precedes the position features; outputs are summed
over both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.icl.measures._functions import facts, named, parts_of
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.tasks.regression import Tasks
from interp.results.described import Row, described, with_error

GROUPS = 20
"""Groups of tasks that the jackknife leaves out in turn."""


def copying_score(model: AttentionRegressor, tasks: Tasks, layer: int = 0) -> xr.Dataset:
    """What the output of a layer at each context token but the last holds of itself, the next token, and the others.

    Returns `sensitivity(output, token)`, S_k(t) for k = 0 .. 2N - 2 and t = 0 .. 2N, the query token last, and its
    means over k: `own` (t = k), `next` (t = k + 1) and `others`, with `next_of_x` over the k that are x tokens, whose
    next is their y. Norms are of a mean over tasks; their standard errors are from a jackknife over groups of tasks.

    Raises InterpError for a model whose tokens hold x and y together, a layer that is not there, and fewer tasks than
    the groups of the jackknife.

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.copying_recipe(d_in=3, n_ctx=4).cfg)
        >>> tasks = interp.icl.make_regression(200, N=4, d=3, seed=1)
        >>> interp.icl.copying_score(model, tasks).sensitivity.shape
        (7, 9)
    """
    if model.cfg.layout != "interleaved":
        raise InterpError("a copying score needs separate tokens for x and y: a model with layout='interleaved'.")
    if not 0 <= layer < model.cfg.n_layers:
        raise InterpError(f"there is no layer {layer}; this model has {model.cfg.n_layers} layers.")
    if len(tasks) < GROUPS:
        raise InterpError(f"a copying score needs {GROUPS} tasks or more, for its standard errors, not {len(tasks)}.")
    outputs, tokens = 2 * tasks.X.shape[1] - 1, 2 * tasks.X.shape[1] + 1
    group = torch.arange(len(tasks)) * GROUPS // len(tasks)
    sums = torch.zeros(GROUPS, outputs, tokens, model.cfg.d_token, dtype=torch.float64)
    for part in parts_of(tasks, outputs):
        sums.index_add_(0, group[part], _gradients(model, tasks[part], layer, outputs).double().cpu())
    whole, kept = sums.sum(0), len(tasks) - group.bincount()
    sensitivity = (whole / len(tasks)).norm(dim=-1)
    without_one = ((whole - sums) / kept[:, None, None, None]).norm(dim=-1)
    return _dataset(sensitivity, without_one, {"model": named(model), "layer": layer} | facts(tasks))


def _gradients(model: AttentionRegressor, tasks: Tasks, layer: int, outputs: int) -> Tensor:
    """Gradients of each summed output in each token's content: `[task, output, token, content]`."""
    seen: dict[str, Tensor] = {}

    def start(tokens: Tensor, hook: object) -> Tensor:
        seen["tokens"] = tokens.detach().requires_grad_()
        return seen["tokens"]

    def stop(output: Tensor, hook: object) -> None:
        seen["output"] = output

    hooks = [("hook_embed", start), (f"blocks.{layer}.hook_resid_post", stop)]
    with torch.enable_grad():
        model.run_with_hooks(tasks.X, tasks.y, tasks.xq, fwd_hooks=hooks)
        summed = seen["output"].sum((0, 2))[:outputs]  # tasks do not see each other, so they may be summed over
        gradients = [torch.autograd.grad(output, seen["tokens"], retain_graph=True)[0] for output in summed]
    return torch.stack(gradients, 1)[..., : model.cfg.d_token]


def _scores(sensitivity: Tensor) -> dict[str, Tensor]:
    """Means over outputs of `sensitivity [..., output, token]`."""
    tokens = sensitivity.shape[-1]
    own, follower = sensitivity.diagonal(0, -2, -1), sensitivity.diagonal(1, -2, -1)
    others = (sensitivity.sum(-1) - own - follower) / (tokens - 2)
    return {
        "own": own.mean(-1),
        "next": follower.mean(-1),
        "next_of_x": follower[..., ::2].mean(-1),
        "others": others.mean(-1),
    }


def _jackknife(without_one: Tensor) -> np.ndarray:
    """Standard error from values `[group, ...]` that leave out one group each."""
    n = len(without_one)
    error: np.ndarray = ((n - 1) ** 0.5 * without_one.std(0, correction=0)).numpy()
    return error


def _dataset(sensitivity: Tensor, without_one: Tensor, about: dict[str, Any]) -> xr.Dataset:
    dims = ("output", "token")
    values = {"sensitivity": (dims, sensitivity)} | {n: ((), v) for n, v in _scores(sensitivity).items()}
    repeats = {"sensitivity": without_one} | _scores(without_one)
    variables: dict[str, Row] = {}
    for name, (dim, value) in values.items():
        how = f", by a jackknife over {GROUPS} groups of tasks"
        variables |= with_error(name, Row(dim, value, "1", MEASURES[name]), _jackknife(repeats[name]), how)
    outputs, tokens = sensitivity.shape
    names = [f"{'xy'[t % 2]}{t // 2 + 1}" for t in range(tokens - 1)] + ["xq"]
    attrs = {
        "title": "Copying between neighbouring tokens",
        "description": "How far a layer's output at each context token holds its own token, the next, and the others.",
    }
    coords = {"output": np.arange(outputs), "token": np.arange(tokens), "token_name": ("token", names)}
    return described(variables, coords, attrs | about)


MEASURES = {
    "sensitivity": "norm of the mean over tasks of the gradient of the summed output in the content of a token",
    "own": "mean sensitivity of outputs to their own token",
    "next": "mean sensitivity of outputs to the token that follows",
    "next_of_x": "the same of the x tokens only, which their y follows",
    "others": "mean sensitivity of outputs to all tokens but their own and the next",
}
