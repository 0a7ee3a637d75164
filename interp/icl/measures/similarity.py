"""Which number of steps of an algorithm each layer of a model resembles most.

Fu, Chen, Jia and Sharan 2024 ("Transformers achieve second-order convergence rates for in-context linear regression",
arXiv:2310.17086): a layer's prediction is a linear read-out of its query token, trained while the model stays as it is;
a family of algorithms (`newton`, `lambda k: gd(k, eta)`) is run for many numbers of steps; the step that resembles a
layer most is its best-matching step. Their finding on GPT-2: Newton steps grow linearly with depth, those of gradient
descent exponentially.

Here the read-out is least squares with an intercept, solved exactly on tasks that are not compared on, instead of SGD;
and beside their two measures stands the cosine of the predictions themselves, because errors share what no algorithm
can know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.icl.measures._functions import (
    Model,
    check_comparable,
    components,
    cosine,
    facts,
    fresh_queries,
    named,
    parts_of,
    prefix,
    weights_at,
)
from interp.icl.measures._means import mean, mean_of_defined
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.tasks.regression import Tasks
from interp.results.described import described

MEASURES = ("errors", "predictions", "weights")


class _Compared(NamedTuple):
    similarity: Tensor
    """`[measure, layer, step, task]`"""
    layer_error: Tensor
    """`[layer, task]`, mean squared error over prefixes."""
    step_error: Tensor
    """`[step, task]`"""


def best_matching_steps(
    model: AttentionRegressor | Mapping[int, Model],
    family: Callable[[int], Model],
    tasks: Tasks,
    steps: Sequence[int],
    *,
    fit_on: Tasks | None = None,
    queries: Tensor | None = None,
) -> xr.Dataset:
    """Similarity of every layer to every number of steps, and the step that each layer resembles most.

    Args:
        model: a regressor, whose layers get read-outs of their own; or predictors by the number of their layer,
            compared as they are (another algorithm by its steps, layers that were read out elsewhere).
        family: makes the algorithm of so many steps.
        tasks: their growing prefixes are compared. The read-outs of a regressor are fitted to the first half of them
            and everything is measured on the second, unless `fit_on` gives tasks to fit to.
        steps: numbers of steps, increasing.
        queries: fresh queries for the weights, as in `align`, one set for each task that is compared on.

    Returns a dataset with `similarity(measure, layer, step)`, the mean over tasks of the cosine over growing prefixes
    of errors (SimE) or predictions, or the mean cosine of linear weights fitted at fresh queries (SimW);
    `best_step(measure, layer)`; and the mean squared error over prefixes of each layer's read-out and each step.

    Raises InterpError for steps that do not increase, for `fit_on` with predictors that need no fit, and for what is no
    predictor, no family or no tasks.

    Examples:
        >>> tasks = interp.icl.make_regression(200, N=10, d=3, seed=1)
        >>> steps = {n: interp.icl.gd(n, 1.0) for n in (1, 2)}
        >>> interp.icl.best_matching_steps(steps, lambda n: interp.icl.gd(n, 1.0), tasks, [1, 2, 3]).similarity.dims
        ('measure', 'layer', 'step')
    """
    if not callable(family):
        raise InterpError(f"family makes the algorithm of so many steps, such as newton; {family!r} cannot be called.")
    check_comparable(tasks, *(model.values() if isinstance(model, Mapping) else [model]))
    steps = list(steps)
    if not steps or steps != sorted(set(steps)):
        raise InterpError(f"steps are increasing numbers of steps, not {steps}.")
    labels: Sequence[int]
    layers: _Each | _Layers
    if isinstance(model, AttentionRegressor):
        if fit_on is None:
            half = len(tasks) // 2
            fit_on, tasks = tasks[:half], tasks[half:]
        labels, layers = range(model.cfg.n_layers), _Layers(model, fit_on)
    elif fit_on is not None:
        raise InterpError("fit_on is for the read-outs of a regressor; these predictors are compared as they are.")
    else:
        labels, layers = list(model), _Each(list(model.values()))
    algorithms = [family(step) for step in steps]
    compared = _compare(layers, _Each(algorithms), tasks, fresh_queries(tasks, queries))
    subject = named(model) if isinstance(model, AttentionRegressor) else f"{len(model)} predictors"
    about = facts(tasks) | {"model": subject, "algorithm": named(algorithms[-1])}
    return _dataset(compared, list(labels), steps, about)


class _Each:
    """Predictors side by side."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = models

    def at(self, X: Tensor, y: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions `[row, task, query, component]` and linear weights `[row, task, component, x]` at queries."""
        said, weights, _ = zip(*(weights_at(model, X, y, queries) for model in self.models), strict=True)
        return torch.stack(said), torch.stack(weights)


class _Layers:
    """The layers of a regressor, each with a linear read-out of the query token that leaves it."""

    def __init__(self, model: AttentionRegressor, tasks: Tasks) -> None:
        self.model = model
        self.names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
        self.read_out = self._fit(tasks)  # [layer, d_model + 1, component]

    def _fit(self, tasks: Tasks) -> Tensor:
        """Least squares on all prefixes, from second moments in float64."""
        square, product = torch.zeros(()), torch.zeros(())
        for part in parts_of(tasks):
            for length in range(1, tasks.X.shape[1] + 1):
                X, y, xq, yq = prefix(tasks[part], length)
                states = self._states(X, y, xq).double()
                square = square + states.mT @ states
                product = product + states.mT @ components(yq).double()
        # slots that are always zero make `square` singular, which only this driver takes, and only on a CPU
        fitted: Tensor = torch.linalg.lstsq(square.cpu(), product.cpu(), driver="gelsd").solution.to(tasks.X)
        return fitted

    def _states(self, X: Tensor, y: Tensor, xq: Tensor) -> Tensor:
        """`[layer, task, d_model + 1]`, the last a constant for the intercept."""
        _, cache = self.model.run_with_cache(X, y, xq, names_filter=self.names)
        return torch.nn.functional.pad(torch.stack([cache[name][:, -1] for name in self.names]), (0, 1), value=1.0)

    def at(self, X: Tensor, y: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """As `_Each.at`, with a row for each layer."""
        tasks, count, _ = queries.shape
        X, y = X.repeat_interleave(count, 0), y.repeat_interleave(count, 0)
        states = self._states(X, y, queries.flatten(0, 1))
        said = (states @ self.read_out).unflatten(1, (tasks, count))
        weights = torch.linalg.lstsq(queries.expand(len(said), -1, -1, -1), said).solution.mT
        return said, weights


@torch.no_grad()
def _compare(layers: _Each | _Layers, algorithms: _Each, tasks: Tasks, queries: Tensor) -> _Compared:
    parts = [
        _compare_part(layers, algorithms, tasks[part], queries[part]) for part in parts_of(tasks, queries.shape[1])
    ]
    return _Compared(*(torch.cat(column, -1) for column in zip(*parts, strict=True)))


def _compare_part(layers: _Each | _Layers, algorithms: _Each, tasks: Tasks, queries: Tensor) -> _Compared:
    said, said_a, targets, weights = [], [], [], []
    for length in range(1, tasks.X.shape[1] + 1):
        X, y, xq, yq = prefix(tasks, length)
        asked = torch.cat([queries, xq[:, None]], 1)  # the prefix's own query is one more fresh one
        (f, w), (f_a, w_a) = (rows.at(X, y, asked) for rows in (layers, algorithms))
        said.append(f[:, :, -1])
        said_a.append(f_a[:, :, -1])
        targets.append(components(yq))
        weights.append(_crossed(w.flatten(2), w_a.flatten(2)))
    p, p_a, target = (torch.cat(each, -1) for each in (said, said_a, targets))  # [row, task, prefix and component]
    similarity = torch.stack([_crossed(p - target, p_a - target), _crossed(p, p_a), torch.stack(weights).nanmean(0)])
    return _Compared(similarity, *((rows - target).square().mean(-1).double() for rows in (p, p_a)))


def _crossed(rows: Tensor, others: Tensor) -> Tensor:
    """Cosines `[row, other, task]` of each of `rows [row, task, x]` with each of `others [other, task, x]`."""
    return torch.stack([cosine(row, others) for row in rows])


def _dataset(compared: _Compared, layers: list[int], steps: list[int], about: dict[str, Any]) -> xr.Dataset:
    means = [[[mean_of_defined(tasks) for tasks in row] for row in measure] for measure in compared.similarity]
    values, errors = (np.array([[[m[i] for m in row] for row in rows] for rows in means]) for i in (0, 1))
    best = np.where(np.isnan(values).all(-1), np.nan, np.array(steps, float)[np.nan_to_num(values, nan=-2).argmax(-1)])
    dims = ("measure", "layer", "step")
    layer_mse, step_mse = ([mean(tasks) for tasks in rows] for rows in (compared.layer_error, compared.step_error))
    variables = {
        "similarity": (dims, values, "1", "mean over tasks of the cosine of layer and algorithm"),
        "similarity_se": (dims, errors, "1", "standard error of similarity over tasks"),
        "best_step": (dims[:2], best, "step", "the step of greatest similarity"),
        "layer_mse": ("layer", [m.value for m in layer_mse], "y²",
                      "mean squared error of the layer's read-out over growing prefixes"),
        "layer_mse_se": ("layer", [m.se for m in layer_mse], "y²", "its standard error over tasks"),
        "step_mse": ("step", [m.value for m in step_mse], "y²",
                     "mean squared error after so many steps over growing prefixes"),
        "step_mse_se": ("step", [m.se for m in step_mse], "y²", "its standard error over tasks"),
    }  # fmt: skip
    attrs = {
        "title": "Steps of an algorithm that each layer resembles",
        "description": "Cosines of errors, predictions and implicit weights over growing prefixes of the same prompts.",
    }
    return described(variables, {"measure": list(MEASURES), "layer": layers, "step": steps}, attrs | about)
