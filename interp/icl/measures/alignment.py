"""How closely a model that reads regression prompts does what a learning algorithm does on the same prompts.

A *model* is any callable `(X [task, pair, x], y [task, pair], xq [task, x]) -> [task]` that torch can differentiate in
`xq`, and whose prediction for one task does not depend on the others of its batch: a trained transformer, or another
algorithm. Vector targets have one more axis, of components, behind `y` and the predictions.

`align` measures in three parts, in order of their cost:

- `query`: predictions and sensitivities (gradients of the prediction in the query's x) at each task's own query, von
  Oswald et al. 2023 (arXiv:2212.07677, section 3 and appendix). The sensitivity of a linear predictor is its implicit
  weight vector. The paper adds 1e-8 to the norms of a cosine, which makes the cosine of two small vectors look like
  disagreement; here the cosine is exact and undefined where a norm is below 1e-8.
- `function`: both as functions of a fresh query x', Akyürek et al. 2023 (arXiv:2211.15661, section 4): SPD and ILWD.
- `prefixes`: both after each prefix of the prompt, Fu et al. 2024 (arXiv:2310.17086, section 4): SimE and SimW. The
  errors that SimE compares share what no algorithm can know, above all while there are fewer pairs than dimensions;
  `sim_p` compares the predictions instead. A model that was trained on prompts of N pairs takes steps in proportion to
  the length of the prefix: its counterpart is `gd(..., eta / N, step="sum")`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.icl.measures._functions import (
    NOTHING,
    at_query,
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
from interp.icl.measures._functions import Model as Model
from interp.icl.measures._means import Mean, mean, mean_of_defined, ratio
from interp.icl.tasks.regression import Tasks
from interp.results.described import Row, described, with_error

PARTS = ("query", "function", "prefixes")


def align(
    model: Model,
    algorithm: Model | Mapping[str, Model],
    tasks: Tasks,
    *,
    parts: Iterable[str] = PARTS,
    queries: Tensor | None = None,
) -> xr.Dataset:
    """Compare a model with an algorithm on the same tasks: every measure as a scalar, `<measure>_se` beside it.

    Args:
        model, algorithm: see the module. `algorithm` is the reference: ratios are relative to it. Where one of them is
            an `Algorithm` with weights, these are used; those of anything else are fitted to its predictions. Several
            algorithms, by the names they are to have, give the result a dimension `algorithm`.
        tasks: as `make_regression` makes them; dtype and device are those of the model.
        parts: of `query`, `function`, `prefixes`; what is left out is not in the result. `prefixes` needs a model that
            reads prompts of any length; it costs as many calls as there are pairs.
        queries: `[task, query, x]`, fresh x' for `function` and `prefixes`, at least four for each dimension of x and
            independent of the task. None takes context inputs of the tasks that follow, whose law is the context's.

    Returns scalars, float64. Measures that are undefined for some tasks (a cosine with a vector of zeros) are means
    over the others, whose number is `<measure>_tasks`; NaN where there is none. Standard errors are over tasks.

    Raises InterpError for a part that does not exist, for too few fresh queries, and for what is no model or no tasks.

    Examples:
        >>> tasks = interp.icl.make_regression(500, N=10, d=3, seed=1)
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> one_step = interp.icl.gd(1, eta=5.0)
        >>> found = interp.icl.align(interp.icl.construct_gd(model, 5.0), one_step, tasks)
        >>> round(float(found.model_cos), 4)
        1.0
    """
    parts = _known(parts)
    check_comparable(tasks, model, *(algorithm.values() if isinstance(algorithm, Mapping) else [algorithm]))
    if isinstance(algorithm, Mapping):
        if not algorithm:
            raise InterpError("align compares with one algorithm or several, and this mapping has none.")
        each = [align(model, one, tasks, parts=parts, queries=queries) for one in algorithm.values()]
        joined = xr.concat(each, "algorithm", combine_attrs="drop_conflicts").assign_coords(algorithm=list(algorithm))
        return joined.assign_attrs(algorithm="; ".join(one.attrs["algorithm"] for one in each))
    found: dict[str, Mean] = {}
    if "query" in parts:
        found |= _at_query(model, algorithm, tasks)
    if parts & {"function", "prefixes"}:
        queries = fresh_queries(tasks, queries)
        if "function" in parts:
            found |= _on_fresh_queries(model, algorithm, tasks, queries)
        if "prefixes" in parts:
            found |= _on_prefixes(model, algorithm, tasks, queries)
    return _dataset(found, model, algorithm, tasks)


def _known(parts: Iterable[str]) -> set[str]:
    asked = {parts} if isinstance(parts, str) else set(parts)
    if not asked or asked - set(PARTS):
        raise InterpError(f"align measures the parts {', '.join(PARTS)}, not {', '.join(sorted(asked)) or 'nothing'}.")
    return asked


def _at_query(model: Model, algorithm: Model, tasks: Tasks) -> dict[str, Mean]:
    said, g = (t.double() for t in at_query(model, tasks))
    said_a, g_a = (t.double() for t in at_query(algorithm, tasks))
    target = components(tasks.yq).double()
    size, size_a = g.flatten(1).norm(dim=1), g_a.flatten(1).norm(dim=1)
    square, square_a = (0.5 * (s - target).square().sum(1) for s in (said, said_a))
    along, below = (g * g_a).flatten(1).sum(1), size_a.square()
    rescale = ratio(along, below)
    moves = (along - rescale.value * below) / below.mean()  # of `rescale`, by each task
    return {
        "loss_model": mean(square),
        "loss_algorithm": mean(square_a),
        "loss_ratio": ratio(square, square_a),
        "preds_diff": mean((said - said_a).norm(dim=1)),
        "relative_preds_diff": _over_rms((said - said_a).norm(dim=1), said_a),
        "model_diff": mean((g - g_a).flatten(1).norm(dim=1)),
        "model_cos": mean_of_defined(cosine(g.flatten(1), g_a.flatten(1))),
        "norm_ratio": mean_of_defined(torch.where(size_a > NOTHING, size / size_a, torch.nan)),
        "grad_norm_model": mean(size),
        "grad_norm_algorithm": mean(size_a),
        "rescale": rescale,
        "preds_diff_rescaled": _rescaled(said, said_a, rescale.value, moves),
        "model_diff_rescaled": _rescaled(g.flatten(1), g_a.flatten(1), rescale.value, moves),
    }


def _rescaled(a: Tensor, b: Tensor, c: float, moves: Tensor) -> Mean:
    """Mean of ‖a - c b‖ over tasks, where c is estimated from the same tasks: its error counts by the delta method."""
    rest = a - c * b
    size = rest.norm(dim=1)
    slope = -((rest * b).sum(1) / size).nan_to_num(0.0).mean()
    return mean(size)._replace(se=mean(size + slope * moves).se)


def _over_rms(values: Tensor, of: Tensor) -> Mean:
    """Mean of `values [task]` over the root mean square of `of [task, component]`; delta method as in `ratio`."""
    square = of.square().sum(1)
    over = ratio(values, square)  # a mean over a mean square, to be multiplied by the root of that mean square
    rms = float(square.mean().sqrt())
    pull = values - 0.5 * over.value * square  # d(a / sqrt(b)) = (da - a / (2 b) db) / sqrt(b)
    return Mean(over.value * rms, mean(pull).se / rms if rms else math.nan, len(values))


@torch.no_grad()
def _on_fresh_queries(model: Model, algorithm: Model, tasks: Tasks, queries: Tensor) -> dict[str, Mean]:
    rows = []
    for part in parts_of(tasks, queries.shape[1]):
        fresh = queries[part]
        f, w, own = weights_at(model, tasks.X[part], tasks.y[part], fresh)
        f_a, w_a, own_a = weights_at(algorithm, tasks.X[part], tasks.y[part], fresh)
        apart = [(f - f_a).square().sum(2).mean(1), (w - w_a).square().sum((1, 2))]
        rows.append(torch.stack([*apart, *_unexplained(f, w, fresh, own), *_unexplained(f_a, w_a, fresh, own_a)]))
    spd, ilwd, left, whole, left_a, whole_a = torch.cat(rows, 1)
    return {
        "spd": mean(spd),
        "ilwd": mean(ilwd),
        "fit_r2": _one_minus(ratio(left, whole)),
        "fit_r2_algorithm": _one_minus(ratio(left_a, whole_a)),
    }


def _unexplained(f: Tensor, w: Tensor, queries: Tensor, own: bool) -> tuple[Tensor, Tensor]:
    """Squares that linear weights leave of predictions, and all of them: `[task]` each."""
    whole = f.square().sum((1, 2))
    return (torch.zeros_like(whole) if own else (f - queries @ w.mT).square().sum((1, 2))), whole


def _one_minus(share: Mean) -> Mean:
    return share._replace(value=1 - share.value)


@torch.no_grad()
def _on_prefixes(model: Model, algorithm: Model, tasks: Tasks, queries: Tensor) -> dict[str, Mean]:
    columns = []
    for part in parts_of(tasks, queries.shape[1]):
        here, fresh = tasks[part], queries[part]
        said, said_a, target, cosines = [], [], [], []
        for length in range(1, tasks.X.shape[1] + 1):
            X, y, xq, yq = prefix(here, length)
            asked = torch.cat([fresh, xq[:, None]], 1)  # the prefix's own query is one more fresh one
            (f, w, _), (f_a, w_a, _) = (weights_at(each, X, y, asked) for each in (model, algorithm))
            said.append(f[:, -1])
            said_a.append(f_a[:, -1])
            target.append(components(yq))
            cosines.append(cosine(w.flatten(1), w_a.flatten(1)))
        p, p_a, t = (torch.cat(each, 1) for each in (said, said_a, target))
        columns.append(torch.stack([cosine(p - t, p_a - t), cosine(p, p_a), torch.stack(cosines, 1).nanmean(1)]))
    sim_e, sim_p, sim_w = torch.cat(columns, 1)
    return {"sim_e": mean_of_defined(sim_e), "sim_p": mean_of_defined(sim_p), "sim_w": mean_of_defined(sim_w)}


def _dataset(found: dict[str, Mean], model: Model, algorithm: Model, tasks: Tasks) -> xr.Dataset:
    variables: dict[str, Row] = {}
    for name, (value, se, count) in found.items():
        units, description = MEASURES[name]
        variables |= with_error(name, Row((), value, units, description), se, " over tasks")
        if name in PARTLY_DEFINED:
            about = f"tasks for which {name} is defined, of which it is the mean"
            variables[f"{name}_tasks"] = Row((), count, "task", about)
    attrs = {
        "title": "Alignment of a model with a learning algorithm",
        "description": "Predictions, sensitivities and implicit weights of the two on the same regression tasks.",
        "model": named(model),
        "algorithm": named(algorithm),
    }
    return described(variables, attrs=attrs | facts(tasks))


# name: (units, description)
MEASURES: dict[str, tuple[str, str]] = {
    "loss_model": ("y²", "half the mean square error of the model at the tasks' queries, whose targets have no noise"),
    "loss_algorithm": ("y²", "half the mean square error of the algorithm at the same queries"),
    "loss_ratio": ("1", "loss_model over loss_algorithm"),
    "preds_diff": ("y", "mean over tasks of |ŷ - ŷ'|, the Euclidean norm for vector targets"),
    "relative_preds_diff": ("1", "preds_diff over the root mean square of the algorithm's predictions"),
    "model_diff": ("y/x", "mean over tasks of ‖g - g'‖, g the gradient of the prediction in the query's x"),
    "model_cos": ("1", "mean over tasks of the cosine of g and g'"),
    "norm_ratio": ("1", "mean over tasks of ‖g‖ / ‖g'‖"),
    "grad_norm_model": ("y/x", "mean over tasks of ‖g‖; where it is near zero the cosine is noise"),
    "grad_norm_algorithm": ("y/x", "mean over tasks of ‖g'‖"),
    "rescale": ("1", "the factor c of the algorithm that makes Σ‖g - c g'‖² least: the best change of its step size"),
    "preds_diff_rescaled": ("y", "preds_diff to the algorithm times `rescale`"),
    "model_diff_rescaled": ("y/x", "model_diff to the algorithm times `rescale`"),
    "spd": ("y²", "squared difference of the predictions at fresh queries, summed over components"),
    "ilwd": ("(y/x)²", "squared distance of the implicit linear weights; means little where fit_r2 is low"),
    "fit_r2": ("1", "share of the mean square of the model's predictions at fresh queries that is linear"),
    "fit_r2_algorithm": ("1", "the same of the algorithm; 1 where it has weights of its own"),
    "sim_e": ("1", "mean over tasks of the cosine of the two error vectors over growing prefixes, noise included"),
    "sim_p": ("1", "mean over tasks of the cosine of the two prediction vectors over growing prefixes"),
    "sim_w": ("1", "mean over tasks and growing prefixes of the cosine of the implicit linear weights"),
}
PARTLY_DEFINED = ("model_cos", "norm_ratio", "sim_e", "sim_p", "sim_w")
