"""The models that ship do what they are said to do."""

from __future__ import annotations

import pytest

from interp.errors import UnknownNameError
from interp.icl.learners.algorithms import gd
from interp.icl.learners.gd_losses import GDLaw
from interp.icl.learners.optimal import tune_gd, tune_gdpp
from interp.icl.measures.alignment import align
from interp.icl.tasks.regression import make_regression
from interp.icl.weights import FOLDER, MODELS, pretrained


@pytest.fixture(scope="module")
def tasks():
    return make_regression(4_000, 10, 10, seed=77)


def test_the_single_layer_is_one_step_of_descent(tasks):
    found = align(pretrained("single-layer"), gd(1, GDLaw(10, 10).best_eta), tasks, parts="query")
    assert float(found["model_cos"]) > 0.998
    assert float(found["loss_ratio"]) == pytest.approx(1, abs=0.01)


def test_two_layers_are_closer_to_gdpp_than_to_descent(tasks):
    found = align(
        pretrained("two-layers"), {"gd": tune_gd(tasks, 2), "gdpp": tune_gdpp(tasks, 2)}, tasks, parts="query"
    )
    cosine = found["model_cos"]
    assert float(cosine.sel(algorithm="gdpp")) > 0.99
    assert float(cosine.sel(algorithm="gdpp")) > float(cosine.sel(algorithm="gd")) + 0.02
    assert float(found["loss_ratio"].sel(algorithm="gdpp")) < 1.03


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'single-layer'"):
        pretrained("single_layer")


def test_they_are_small():
    assert sum((FOLDER / f"{name}.safetensors").stat().st_size for name in MODELS) < 2_000_000
