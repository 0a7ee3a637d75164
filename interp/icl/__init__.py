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

from typing import TYPE_CHECKING

from interp.discovery import fetching

if TYPE_CHECKING:
    from interp.icl import language, studies
    from interp.icl.learners.algorithms import Algorithm, bayes_ridge, gd, gdpp, knn, newton, ols, ridge, sgd_one_pass
    from interp.icl.learners.gd_losses import GDLaw
    from interp.icl.learners.optimal import lsa_optimal, nonlinear_step, relu_network_step, tune_gd, tune_gdpp
    from interp.icl.measures import rollout
    from interp.icl.measures.alignment import align
    from interp.icl.measures.copying import copying_score
    from interp.icl.measures.rollout import rollout_losses
    from interp.icl.measures.similarity import best_matching_steps
    from interp.icl.measures.trajectory import Trajectory
    from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
    from interp.icl.models.construction import construct_gd, construct_gdpp
    from interp.icl.models.copying_model import copying_recipe
    from interp.icl.models.extraction import effective_predictor, in_gauge, interpolate, lsa_products, with_products
    from interp.icl.models.sine_model import SineRegressor, sine_tasks
    from interp.icl.models.training import Recipe, recipe, train
    from interp.icl.tasks import function_classes, shifts, softmax_regression
    from interp.icl.tasks.regression import Tasks, make_regression, tokenise
    from interp.icl.weights import pretrained

_WHERE = {
    name: module
    for module, names in {
        "interp.icl.learners.algorithms": "Algorithm bayes_ridge gd gdpp knn newton ols ridge sgd_one_pass",
        "interp.icl.measures.alignment": "align",
        "interp.icl.models.construction": "construct_gd construct_gdpp",
        "interp.icl.measures.copying": "copying_score",
        "interp.icl.models.copying_model": "copying_recipe",
        "interp.icl.models.extraction": "effective_predictor in_gauge interpolate lsa_products with_products",
        "interp.icl.learners.gd_losses": "GDLaw",
        "interp.icl.learners.optimal": "lsa_optimal nonlinear_step relu_network_step tune_gd tune_gdpp",
        "interp.icl.tasks.regression": "Tasks make_regression tokenise",
        "interp.icl.measures.rollout": "rollout_losses",
        "interp.icl.measures.similarity": "best_matching_steps",
        "interp.icl.models.sine_model": "SineRegressor sine_tasks",
        "interp.icl.models.training": "Recipe recipe train",
        "interp.icl.measures.trajectory": "Trajectory",
        "interp.icl.weights": "pretrained",
        "interp.icl.models.attention_regressor": "AttentionRegressor RegressorConfig",
    }.items()
    for name in names.split()
}
_MODULES = {
    "function_classes": "interp.icl.tasks.function_classes",
    "language": "interp.icl.language",
    "rollout": "interp.icl.measures.rollout",
    "shifts": "interp.icl.tasks.shifts",
    "softmax_regression": "interp.icl.tasks.softmax_regression",
    "studies": "interp.icl.studies",
}

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


__getattr__ = fetching(__name__, _WHERE, _MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_MODULES])
