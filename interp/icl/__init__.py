"""In-context learning as gradient descent: regression tasks, algorithms, constructions, and what they say of a model.

    import interp

    tasks = interp.icl.make_regression(10_000, N=10, d=10, seed=1)
    model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=10, n_ctx=10))
    interp.icl.construct_gd(model, eta=6.06)
    interp.icl.align(model, interp.icl.gd(1, 6.06), tasks)

Names are fetched on first use. More of them are in the modules `function_classes`, `shifts`, `softmax_regression` and
`rollout`; what is measured on real language models is in `interp.icl.language`, and the studies that redraw the papers'
figures are in `interp.icl.studies`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.icl import function_classes, language, rollout, shifts, softmax_regression, studies
    from interp.icl.algorithms import Algorithm, bayes_ridge, gd, gdpp, knn, newton, ols, ridge, sgd_one_pass
    from interp.icl.alignment import align
    from interp.icl.construction import construct_gd, construct_gdpp
    from interp.icl.copying import copying_score
    from interp.icl.copying_model import copying_recipe
    from interp.icl.extraction import effective_predictor, in_gauge, interpolate, lsa_products, with_products
    from interp.icl.gd_losses import GDLaw
    from interp.icl.optimal import lsa_optimal, nonlinear_step, relu_network_step, tune_gd, tune_gdpp
    from interp.icl.regression import Tasks, make_regression, tokenise
    from interp.icl.rollout import rollout_losses
    from interp.icl.similarity import best_matching_steps
    from interp.icl.sine_model import SineRegressor, sine_tasks
    from interp.icl.training import Recipe, recipe, train
    from interp.icl.trajectory import Trajectory
    from interp.icl.weights import pretrained
    from interp.subjects.attention_regressor import AttentionRegressor, RegressorConfig

_WHERE = {
    name: module
    for module, names in {
        "interp.icl.algorithms": "Algorithm bayes_ridge gd gdpp knn newton ols ridge sgd_one_pass",
        "interp.icl.alignment": "align",
        "interp.icl.construction": "construct_gd construct_gdpp",
        "interp.icl.copying": "copying_score",
        "interp.icl.copying_model": "copying_recipe",
        "interp.icl.extraction": "effective_predictor in_gauge interpolate lsa_products with_products",
        "interp.icl.gd_losses": "GDLaw",
        "interp.icl.optimal": "lsa_optimal nonlinear_step relu_network_step tune_gd tune_gdpp",
        "interp.icl.regression": "Tasks make_regression tokenise",
        "interp.icl.rollout": "rollout_losses",
        "interp.icl.similarity": "best_matching_steps",
        "interp.icl.sine_model": "SineRegressor sine_tasks",
        "interp.icl.training": "Recipe recipe train",
        "interp.icl.trajectory": "Trajectory",
        "interp.icl.weights": "pretrained",
        "interp.subjects.attention_regressor": "AttentionRegressor RegressorConfig",
    }.items()
    for name in names.split()
}
_MODULES = ("function_classes", "language", "rollout", "shifts", "softmax_regression", "studies")

__all__ = [
    "Algorithm",
    "AttentionRegressor",
    "GDLaw",
    "Recipe",
    "RegressorConfig",
    "SineRegressor",
    "Tasks",
    "Trajectory",
    "align",
    "bayes_ridge",
    "best_matching_steps",
    "construct_gd",
    "construct_gdpp",
    "copying_recipe",
    "copying_score",
    "effective_predictor",
    "function_classes",
    "gd",
    "gdpp",
    "in_gauge",
    "interpolate",
    "knn",
    "language",
    "lsa_optimal",
    "lsa_products",
    "make_regression",
    "newton",
    "nonlinear_step",
    "ols",
    "pretrained",
    "recipe",
    "relu_network_step",
    "ridge",
    "rollout",
    "rollout_losses",
    "sgd_one_pass",
    "shifts",
    "sine_tasks",
    "softmax_regression",
    "studies",
    "tokenise",
    "train",
    "tune_gd",
    "tune_gdpp",
    "with_products",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"interp.icl.{name}")
    raise AttributeError(f"module 'interp.icl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_MODULES])
