"""Does a model of regression prompts learn in context by gradient descent?

A model that reads (x, y) pairs is compared, on the same tasks, with gradient descent (GD) and GD++ of as many steps as
it has layers, whose step sizes are the best for these tasks (von Oswald et al. 2023, arXiv:2212.07677). Of each linear
layer the exact effective predictor A_eff is read off the weights: one step of GD has a multiple of the identity, the
best layer for a known law of tasks has A* (Mahankali et al. 2023, Ahn et al. 2023, Zhang et al. 2023), and the two leak
terms beside it are what no gradient descent has. Models that read x and y as separate tokens need a first layer that
copies; theirs is scored by what its outputs hold of the next token, and they take one step less than they have layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.icl.learners.optimal import lsa_optimal, tune_gd, tune_gdpp
from interp.icl.measures._means import mean
from interp.icl.measures.alignment import align
from interp.icl.measures.copying import copying_score
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.models.extraction import effective_predictor
from interp.icl.tasks.regression import INPUT_LAWS, Tasks
from interp.probes.base import TaskProbe

GROUPS = 20
"""Groups of tasks from whose spread the standard errors of the leak terms are."""


@dataclass(frozen=True)
class IclGd(TaskProbe):
    """Alignment with GD and GD++, effective predictors of the layers, and copying.

    Args:
        steps: of the algorithms; None: one a layer that does not copy.

    GD++ is there from two steps on, with one pair of step sizes for a recurrent model and one for each layer otherwise.
    What prefixes of the prompts would tell is left to `interp.icl.best_matching_steps`, because a model trained at one
    length steps in proportion to the number of pairs and these algorithms do not.

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=4))
        >>> tasks = interp.icl.make_regression(100, N=4, d=3, seed=1)
        >>> interp.probe(interp.icl.construct_gd(model, 1.0), tasks, ["icl_gd"])["icl_gd"].attrs["title"]
        'In-context learning as gradient descent'
    """

    name: ClassVar[str] = "icl_gd"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise InterpError(f"icl_gd compares with 1 step or more, not {self.steps}; None takes one a layer.")

    def measure(self, model: Any, tasks: Tasks) -> xr.Dataset:
        if not isinstance(model, AttentionRegressor):
            raise self.refusal()
        copies = model.cfg.layout == "interleaved"
        steps = self.steps or max(1, model.cfg.n_layers - copies)
        algorithms: dict[str, Any] = {"gd": tune_gd(tasks, steps)}
        if steps > 1:
            algorithms["gd++"] = tune_gdpp(tasks, steps, shared=model.cfg.recurrent)
        found = align(model, algorithms, tasks, parts=("query", "function"))
        try:
            found = found.merge(_predictors(model, tasks), combine_attrs="override")
        except InterpError as error:
            found.attrs["no_effective_predictor"] = str(error)
        if copies:
            scores = copying_score(model, tasks)
            found = found.merge(scores.rename({n: f"copying_{n}" for n in scores.data_vars}), combine_attrs="override")
        title = "In-context learning as gradient descent"
        description = "A model on regression tasks beside gradient descent with the best step sizes for these tasks."
        return found.assign_attrs(title=title, description=description, steps=steps)

    def findings(self, result: xr.Dataset) -> list[str]:
        sentences = [_aligned(result.sel(algorithm=name)) for name in result["algorithm"].values]
        if "A_eff" in result:
            sentences.append(_effective(result))
        if "copying_next" in result:
            own, follower, others = (float(result[f"copying_{n}"]) for n in ("own", "next_of_x", "others"))
            sentences.append(
                f"The first layer's outputs at x tokens hold {follower:.3g} of the y that follows, against "
                f"{others:.3g} of other tokens (their own: {own:.3g})."
            )
        return sentences


def _predictors(model: AttentionRegressor, tasks: Tasks) -> xr.Dataset:
    """Effective predictors of all layers with weights of their own; leak terms of the first, which reads the tasks."""
    if tasks.X.shape[2] != model.cfg.d_in:
        raise InterpError("its layers read features of x, so they have no predictor in x.")
    layers = range(1 if model.cfg.recurrent else model.cfg.n_layers)
    first = effective_predictor(model, 0, tasks)
    each = [first[["A_eff", "scale", "distance_to_identity"]], *(effective_predictor(model, l) for l in layers[1:])]
    found = xr.concat(each, "layer", combine_attrs="drop").assign_coords(layer=list(layers))
    found["scale"] *= tasks.X.shape[1]
    found = found.rename({"scale": "effective_eta"})
    groups = [effective_predictor(model, 0, tasks[i::GROUPS]) for i in range(min(GROUPS, len(tasks)))]
    for term in ("main", "x_leak", "y_leak"):
        found[term] = first[term]
        square = mean(torch.tensor([float(group[term]) ** 2 for group in groups]))
        root = float(first[term])
        found[f"{term}_se"] = square.se / (2 * root) if root else 0.0  # of the root of a mean, by the delta method
    optimal = _optimal(model, tasks)
    if optimal is not None:
        found["A_optimal"] = (("input", "query_input"), optimal.matrix.numpy())
    for name in found.data_vars:
        units, description = VARIABLES[str(name)]
        found[name].attrs = {"units": units, "description": description}
    return found


def _optimal(model: AttentionRegressor, tasks: Tasks) -> lsa_optimal | None:
    """The best single layer for the tasks' law, where the model is one layer and the law is one that is solved: linear
    teachers and inputs of mean zero whose fourth moments are known."""
    about = tasks.about
    solved = about.get("teacher") == "linear" and "x_kurtosis" in about and INPUT_LAWS[about["x_law"]].mean == 0
    if model.cfg.n_layers > 1 or not solved or about.get("corrupted_targets"):
        return None
    _, N, d = tasks.X.shape
    stated = about.get("x_cov", about["x_variance"]), about["prior_cov"]
    cov, prior = (torch.tensor(matrix, dtype=torch.float64) for matrix in stated)
    return lsa_optimal(N, cov, prior, about["noise_std"] ** 2, d=d, kurtosis=about["x_kurtosis"])


def _aligned(result: xr.Dataset) -> str:
    value = {str(name): float(v) for name, v in result.data_vars.items() if v.ndim == 0}
    steps = result.attrs["steps"]
    name = {"gd": "gradient descent", "gd++": "GD++"}[str(result["algorithm"].values)]
    return (
        f"Beside {steps} step{'s' * (steps > 1)} of {name}: loss {value['loss_model']:.4g} against "
        f"{value['loss_algorithm']:.4g} (ratio {value['loss_ratio']:.3f} ± {value['loss_ratio_se']:.3f}), cosine of "
        f"the sensitivities {value['model_cos']:.4f} (norms {value['grad_norm_model']:.3g} and "
        f"{value['grad_norm_algorithm']:.3g}), predictions {value['relative_preds_diff']:.1%} apart."
    )


def _effective(result: xr.Dataset) -> str:
    away, eta = (np.atleast_1d(result[name].values) for name in ("distance_to_identity", "effective_eta"))
    leaks = [float(result[name] / result["main"]) for name in ("x_leak", "y_leak")]
    each = ", ".join(f"{e:.3g} (off the identity by {a:.1%})" for e, a in zip(eta, away, strict=True))
    return (
        f"Effective step size by layer: {each}; the first layer's leak terms are {leaks[0]:.2%} and {leaks[1]:.2%} of "
        "its main term."
    )


# name: (units, description)
VARIABLES: dict[str, tuple[str, str]] = {
    "A_eff": ("1/x²", "effective predictor of the layer as if it were the only one: prediction (Σ y x)ᵀ A_eff x_q"),
    "effective_eta": ("1/x²", "mean step size N c of the multiple of the identity c I that is nearest to A_eff"),
    "distance_to_identity": ("1", "min over c of ‖A_eff - c I‖_F / ‖A_eff‖_F"),
    "main": ("y", "root mean square over tasks of the first layer's main term, (Σ y x)ᵀ A_eff x_q"),
    "x_leak": ("y", "root mean square of its term in Σ x xᵀ, which knows no y"),
    "y_leak": ("y", "root mean square of its term in Σ y², which knows no x"),
    **{f"{term}_se": ("y", f"standard error of {term} over tasks") for term in ("main", "x_leak", "y_leak")},
    "A_optimal": ("1/x²", "A* of the best single layer of linear attention for the law of the tasks"),
}
