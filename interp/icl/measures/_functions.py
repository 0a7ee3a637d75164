"""Models and learning algorithms as functions: at a task's own query, at fresh ones, after growing prefixes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.icl.learners.algorithms import Algorithm
from interp.icl.tasks.regression import Tasks

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(X, y, xq) -> prediction`, as `interp.icl.measures.alignment` says."""

NOTHING = 1e-8
"""A vector of this norm or less has no direction that a cosine could compare."""
NUMBERS_AT_ONCE = 1 << 22
"""Most numbers of context that a model is handed in one call: 16 MiB in float32."""


def check_comparable(tasks: Tasks, *models: object) -> None:
    """Raise InterpError unless there are tasks with a context, and models that can be called."""
    if not isinstance(tasks, Tasks):
        raise InterpError(f"the tasks are what make_regression returns, not {type(tasks).__name__}.")
    if not len(tasks) or not tasks.X.shape[1]:
        raise InterpError(
            f"there are {len(tasks)} tasks of {tasks.X.shape[1]} pairs, and it takes at least one of each."
        )
    if strange := [model for model in models if isinstance(model, type) or not callable(model)]:
        raise InterpError(f"models and algorithms are called as model(X, y, xq), and {strange[0]!r} cannot be.")


class AtQuery(NamedTuple):
    """What a model says at each task's own query."""

    prediction: Tensor
    """`[task, component]`"""
    sensitivity: Tensor
    """`[task, component, x]`, the prediction's gradient in the query's x; NaN where the prediction has none."""


def at_query(model: Model, tasks: Tasks) -> AtQuery:
    """Predictions and sensitivities of a model, computed a part of the tasks at a time."""
    said = [_one_backward(model, tasks[part]) for part in parts_of(tasks)]
    return AtQuery(*(torch.cat(column) for column in zip(*said, strict=True)))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last axis of `a` and `b [..., x]`: `[...]`, float64, NaN where one of them is nothing."""
    a, b = a.double(), b.double()
    size_a, size_b = a.norm(dim=-1), b.norm(dim=-1)
    defined = (size_a > NOTHING) & (size_b > NOTHING)
    return torch.where(defined, (a * b).sum(-1) / (size_a * size_b), torch.nan)


def prefix(tasks: Tasks, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`X, y, xq, yq` of the tasks with their first `length` pairs as context; the pair that follows is the query, and
    the tasks' own query where none follows."""
    X, y = tasks.X[:, :length], tasks.y[:, :length]
    if length == tasks.X.shape[1]:
        return X, y, tasks.xq, tasks.yq
    return X, y, tasks.X[:, length], tasks.y[:, length]


def fresh_queries(tasks: Tasks, queries: Tensor | None = None) -> Tensor:
    """`queries` if they suffice for a linear fit in every task, else context inputs of the tasks that follow each one
    (the first ones after the last): `[task, 4 x, x]`."""
    B, N, d = tasks.X.shape
    if queries is not None:
        if queries.ndim != 3 or queries.shape[0] != B or queries.shape[2] != d or queries.shape[1] < 4 * d:
            raise InterpError(
                f"queries are [task, query, x] = [{B}, {4 * d} or more, {d}] here, not {list(queries.shape)}."
            )
        return queries
    follow = -(-4 * d // N)
    if follow >= B:
        raise InterpError(
            f"fresh queries are taken from {follow} other tasks, and there are only {B} tasks; "
            "pass more tasks, or queries [task, query, x]."
        )
    others = (torch.arange(B)[:, None] + torch.arange(1, follow + 1)) % B
    return tasks.X[others.to(tasks.X.device)].flatten(1, 2)[:, : 4 * d]


def parts_of(tasks: Tasks, copies: int = 1) -> Iterator[slice]:
    """Slices of the tasks, each small enough for so many copies of its contexts."""
    each = copies * (tasks.X[0].numel() + tasks.y[0].numel())
    size = max(1, NUMBERS_AT_ONCE // each)
    return (slice(start, start + size) for start in range(0, len(tasks), size))


def weights_at(model: Model, X: Tensor, y: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, bool]:
    """A model's prediction at fresh `queries [task, query, x]` as a linear function of them.

    Returns the predictions `[task, query, component]`, the weights `[task, component, x]`, and whether these are the
    model's own (an `Algorithm` that is linear in the query has them) or least squares on the predictions.
    """
    own = model.weights(X, y) if isinstance(model, Algorithm) else None
    if own is not None:
        w = own if own.ndim == 3 else own[:, None]
        return queries @ w.mT, w, True
    count = queries.shape[1]
    X, y = X.repeat_interleave(count, 0), y.repeat_interleave(count, 0)
    predictions = components(model(X, y, queries.flatten(0, 1))).unflatten(0, (-1, count))
    return predictions, torch.linalg.lstsq(queries, predictions).solution.mT, False


def components(y: Tensor) -> Tensor:
    """`[task]` or `[task, component]` as `[task, component]`."""
    return y if y.ndim == 2 else y[:, None]


def _one_backward(model: Model, tasks: Tasks) -> AtQuery:
    """Tasks of a batch do not see each other, so the gradient of the sum holds the gradient of each."""
    xq = tasks.xq.detach().requires_grad_()
    with torch.enable_grad():
        said = components(model(tasks.X, tasks.y, xq))
        if not said.requires_grad:
            return AtQuery(said, torch.full((*said.shape, xq.shape[1]), torch.nan, dtype=said.dtype, device=xq.device))
        gradients = [
            torch.autograd.grad(column.sum(), xq, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for column in said.unbind(1)
        ]
    return AtQuery(said.detach(), torch.stack(gradients, 1))


def facts(tasks: Tasks) -> dict[str, str | int]:
    """What a result says of the tasks it was measured on."""
    B, N, d = tasks.X.shape
    dtype = str(tasks.X.dtype).removeprefix("torch.")
    return {"tasks": B, "pairs": N, "d": d, "law": json.dumps(tasks.about, default=str), "dtype": dtype}


def named(model: Model) -> str:
    """How results name a model or an algorithm."""
    if isinstance(model, Algorithm):
        return model.name
    return str(getattr(model, "__name__", type(model).__name__))
