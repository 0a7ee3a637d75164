"""Tasks of in-context learning, their learners and models: arguments of every kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp import icl
from interp.icl.tasks import function_classes, shifts, softmax_regression
from tests.fuzzing.drawing import Draw
from tests.fuzzing.trying import fuzz, inputs

MAKERS: dict[Callable[..., Any], dict[str, Any]] = {
    icl.make_regression: {"B": 3, "N": 4, "d": 2, "half_width": 0.5, "noise": 0.1, "d_y": 1, "seed": 0},
    softmax_regression.make_softmax_regression: {"B": 3, "n": 4, "d": 2, "radius": 1.0, "seed": 1},
    shifts.out_of_distribution: {"B": 3, "N": 4, "d": 2, "family": "normal", "alpha": 0.5, "variant": "code"},
    icl.gd: {"steps": 1, "eta": 0.5, "step": "mean"},
    icl.gdpp: {"steps": 1, "eta": 0.5, "gamma": 0.1},
    icl.ridge: {"lam": 0.1},
    icl.bayes_ridge: {"noise_var": 0.1, "prior_cov": 1.0},
    icl.knn: {"k": 2, "weights": "uniform"},
    icl.newton: {"steps": 2},
    icl.sgd_one_pass: {"alpha": 0.1, "lam": 0.1},
    softmax_regression.softmax_gd: {"steps": 1, "eta": 0.5},
    icl.lsa_optimal: {"n": 4, "cov": 1.0, "prior_cov": 1.0, "noise_var": 0.1, "d": 2},
    icl.GDLaw: {"d": 2, "N": 4, "x_variance": 0.1, "kurtosis": 1.8, "noise_var": 0.1},
    icl.nonlinear_step: {"n": 4, "correlation": 0.5, "energy": 1.0},
    icl.relu_network_step: {"n": 4, "d": 2, "hidden": 3, "noise_var": 0.1},
    icl.RegressorConfig: {"d_in": 2, "n_ctx": 4, "n_layers": 1, "n_heads": 1, "attention": "linear", "clamp": 1.0},
    icl.pretrained: {"name": "depth"},
    function_classes.SparseLinear: {"nonzero": 1},
    function_classes.ReLUNetwork: {"hidden": 3},
    function_classes.DecisionTree: {"depth": 2},
    function_classes.Sines: {"amplitude": (0.1, 0.5), "shared_key": False},
    shifts.Quadrants: {"query": "anywhere"},
    shifts.UnitContext: {"alpha": 1.0},
}  # fmt: skip
LARGE = 2**20
"""No number of tasks, tokens or layers is larger: memory that is not there is another matter."""


def made(draw: Draw) -> None:
    make = draw.choice(list(MAKERS))
    given = dict(MAKERS[make])
    for name in draw.sample(sorted(given), min(len(given), draw.choice((1, 1, 1, 2)))):
        value = draw.value()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) > LARGE:
            value = draw.small()
        if isinstance(given[name], str) and draw.often(0.5):
            value = draw.text(given[name])
        if draw.often(0.1):
            del given[name]
        else:
            given[name] = value
    required = [
        name for name, one in inspect.signature(make).parameters.items()
        if one.default is inspect.Parameter.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    draw.trying(make.__name__, given)
    if set(required) <= given.keys():  # else Python says so itself
        found = make(**given)
        repr(found)
        if hasattr(found, "X") and found.X.numel() < 10_000:
            icl.gd(1, 0.1)(found.X, found.y, found.xq)
        elif callable(found) and hasattr(found, "steps"):
            tasks = icl.make_regression(3, 4, 2)
            found(tasks.X, tasks.y, tasks.xq)


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@inputs(600)
def test_tasks_and_learners(count: int) -> None:
    fuzz("tasks and learners", count, made)
