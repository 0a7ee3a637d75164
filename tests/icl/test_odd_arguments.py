"""Arguments of tasks, laws and steps that are of no use end in a sentence that names them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from interp import icl
from interp.errors import InterpError
from interp.icl.tasks import function_classes, shifts, softmax_regression

LAW = {"B": 3, "N": 4, "d": 2}


@pytest.mark.parametrize(
    ("make", "given", "named"),
    [
        (icl.nonlinear_step, {"n": 4, "correlation": 0.5, "energy": "a"}, "energy"),
        (icl.nonlinear_step, {"n": 4, "correlation": None, "energy": 1.0}, "correlation"),
        (icl.relu_network_step, {"n": 4, "d": [2], "hidden": 3}, "d should be"),
        (icl.relu_network_step, {"n": 4, "d": 2, "hidden": 0}, "hidden of at least 1"),
        (icl.gd, {"eta": 0.5, "step": np.array([1, 2])}, "step should be one of mean, sum"),
        (icl.knn, {"weights": np.array([1, 2])}, "weighting should be one of uniform, distance"),
        (icl.pretrained, {"name": {}}, "pretrained model"),
        (icl.GDLaw, {"noise_var": ","}, "noise_var"),
        (icl.make_regression, {**LAW, "half_width": np.array("a")}, "half_width"),
        (icl.make_regression, {**LAW, "N": True}, "N is a whole number"),
        (icl.make_regression, {**LAW, "x": ["normal"]}, "law of inputs"),
        (softmax_regression.make_softmax_regression, {"B": 3, "n": 4, "d": b""}, "d should be"),
        (softmax_regression.make_softmax_regression, {"B": 3, "n": 0, "d": 2}, "n should be at least 1"),
        (softmax_regression.make_softmax_regression, {"B": 3, "n": 4, "d": 2, "radius": {}}, "radius"),
        (shifts.out_of_distribution, {**LAW, "family": "normal", "alpha": ()}, "alpha"),
        (shifts.out_of_distribution, {**LAW, "family": ["normal"], "alpha": 1.0}, "law of inputs"),
        (shifts.UnitContext, {"alpha": "a"}, "alpha"),
        (shifts.Quadrants, {"query": "somewhere"}, "query should be one of anywhere, opposite"),
        (function_classes.SparseLinear, {"nonzero": "a"}, "nonzero"),
        (function_classes.ReLUNetwork, {"hidden": 0}, "hidden unit"),
        (function_classes.DecisionTree, {"depth": 200}, "deep"),
        (function_classes.Sines, {"amplitude": (0.1,)}, "amplitude"),
    ],
)
def test_odd_arguments(make: Any, given: dict[str, Any], named: str) -> None:
    with pytest.raises(InterpError, match=named):
        make(**given)
