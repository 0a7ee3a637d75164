"""The study of one layer, cut to a few steps: its numbers against independent ones, and verdicts that follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from interp.icl.learners.algorithms import gd
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.models.construction import construct_gd
from interp.icl.studies import single_layer
from interp.icl.studies.single_layer import SingleLayer
from interp.icl.studies.verdicts import NOT_FOUND, NOT_REPRODUCED, REPRODUCED
from interp.icl.tasks.regression import make_regression


class Short(SingleLayer):
    """Twenty steps."""

    steps = 20


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> xr.Dataset:
    return Short(quick=True, seeds=3).run(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def perfect(result) -> xr.Dataset:
    """The result as it would be had training ended in the construction."""
    study = SingleLayer()
    tasks = study.draw()
    model = construct_gd(AttentionRegressor(study.recipe.cfg), study.law.best_eta)
    ds = result.assign(study._afterwards(model, tasks).expand_dims(seed=[0, 1, 2]))
    step = gd(1, study.law.best_eta / 10, step="sum")
    ds = ds.assign(study._far(step, tasks, "gd"))
    same = {"loss_ratio": 1.0, "model_cos": 1.0, "preds_diff": 0.0, "model_diff": 0.0}
    ds = ds.assign({name: xr.full_like(ds[name], value) for name, value in same.items()})
    ds["loss_interpolated"] = xr.full_like(ds["loss_interpolated"], float(ds["gd_loss"]))
    ds["rollout_gd"] = ds["rollout"].isel(seed=0, drop=True)
    return ds.isel(measured_step=[-1]).assign_coords(measured_step=[1000]).assign_attrs(training_steps=2000)


def test_as_many_seeds_are_trained_as_are_asked_for(result):
    assert result.sizes["seed"] == 3
    claims = [row.claim for row in Short(quick=True, seeds=3).verdicts(result)]
    assert "cosine of the sensitivities, worst of 3 seeds at step 20" in claims


def test_the_control_is_gradient_descent(result):
    """Loss on the tasks themselves, computed by hand."""
    tasks = SingleLayer(quick=True).draw()
    step = 6.0606060606 / 10
    w = step * torch.einsum("bnd,bn->bd", tasks.X, tasks.y)
    by_hand = 0.5 * ((w * tasks.xq).sum(1) - tasks.yq).square().mean()
    assert float(result["gd_loss"]) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(result["best_loss"]) == pytest.approx(0.20623, abs=5e-6)


def test_closed_forms_off_the_law_are_the_papers(result):
    np.testing.assert_allclose(
        result["law_inputs"].sel(scale=[0.5, 1, 1.25, 1.5, 2]), [0.08115, 0.20623, 0.42627, 1.2038, 8.4007], rtol=1e-4
    )
    np.testing.assert_allclose(result["law_pairs"], [0.3104, 0.2062, 0.1542, 0.1281], atol=6e-5)
    np.testing.assert_allclose(result["law_corrupted"], [0.2062, 0.2568, 0.3159, 0.3835, 0.4596], atol=6e-5)


def test_a_layer_that_is_descent_is_found_to_be_descent(perfect):
    rows = SingleLayer().verdicts(perfect)
    wrong = [row for row in rows if row.verdict == NOT_REPRODUCED and "line search" not in row.claim]
    assert not wrong, wrong
    assert len([row for row in rows if row.verdict == REPRODUCED]) >= 15


@pytest.mark.parametrize(
    ("variable", "value", "claim"),
    [
        ("loss_ratio", 1.02, "loss over that of gradient descent"),
        ("model_cos", 0.99, "cosine of the sensitivities"),
        ("scale_of_A", 0.5, "step size in the weights"),
        ("y_leak", 1.0, "even in y"),
        ("loss_inputs", 0.5, "inputs scaled"),
        ("rollout", 0.3, "50 applications, damped"),
        ("rollout", 0.3, "undamped, 50 applications: least"),
        ("rollout", 0.3, "undamped, 5 applications"),
        ("rollout_gd", 0.3, "undamped, 20 applications: loss of descent"),
    ],
)
def test_one_wrong_number_turns_its_claim(perfect, variable, value, claim):
    values = xr.full_like(perfect[variable], value)
    if variable in ("loss_ratio", "model_cos"):  # one seed is enough
        values = values.where(values["seed"] == 1, perfect[variable])
    changed = perfect.assign({variable: values})
    (row, *_) = [row for row in SingleLayer().verdicts(changed) if claim in row.claim]
    assert row.verdict == NOT_REPRODUCED


def test_a_step_per_pair_does_not_depend_on_the_prompts_length():
    model = construct_gd(AttentionRegressor(SingleLayer().recipe.cfg), 6.06).double()
    tasks = make_regression(50, 40, 10, seed=3, dtype=torch.float64)
    said = single_layer._per_pair(model, 40)(tasks.X, tasks.y, tasks.xq)
    by_hand = 6.06 / 40 * torch.einsum("bnd,bn,bd->b", tasks.X, tasks.y, tasks.xq)
    torch.testing.assert_close(said, by_hand)


def test_the_papers_variant_has_the_papers_inputs():
    study = SingleLayer(variant="paper")
    assert study.recipe.half_width == 1.0
    assert study.law.best_loss == pytest.approx(0.82492, abs=5e-5)
    assert {choice.variant for choice in study.choices()} == {"paper"}


class Interrupted(Short):
    """Long enough to leave a checkpoint."""

    steps = 60


def test_the_seconds_of_an_interrupted_training_are_not_judged(tmp_path):
    def stop(fraction: float, what: str) -> None:
        if fraction == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted(quick=True, seeds=1).run(tmp_path, stop)
    ds = Interrupted(quick=True, seeds=1).run(tmp_path)
    full = ds.assign_coords(measured_step=ds["measured_step"] * 20).assign_attrs(training_steps=1200)
    (row,) = [row for row in SingleLayer().verdicts(full) if row.claim.startswith("seconds")]
    assert row.verdict == NOT_FOUND
