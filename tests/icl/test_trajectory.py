"""Measurements over training: in order, complete after an interruption, and never mixed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from interp import InterpError
from interp.icl.learners.algorithms import gd, ols
from interp.icl.measures.alignment import align
from interp.icl.measures.trajectory import Trajectory
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd
from interp.icl.models.training import train
from interp.icl.tasks.regression import make_regression

TASKS = make_regression(50, 6, 3, seed=1)
CFG = RegressorConfig(d_in=3, n_ctx=6)
ALGORITHMS = {"gd": gd(1, 5.0), "ols": ols()}


def measure(model):
    return align(model, ALGORITHMS, TASKS, parts="query")


def taught(eta: float) -> AttentionRegressor:
    return construct_gd(AttentionRegressor(CFG), eta)


def test_checkpoints_are_put_in_order_of_steps() -> None:
    ds = Trajectory.of(((step, taught(step / 4)) for step in (20, 0, 10)), measure).dataset()
    assert ds["step"].values.tolist() == [0, 10, 20]
    np.testing.assert_allclose(ds["rescale"].sel(algorithm="gd"), [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(ds["model_cos"].sel(algorithm="gd"), [np.nan, 1, 1], atol=1e-6)
    assert ds["model_cos_tasks"].sel(algorithm="ols").values.tolist() == [0, 50, 50]
    for step in (10, 20):
        assert ds.sel(step=step, drop=True).equals(measure(taught(step / 4)))


def test_training_is_watched_at_its_steps() -> None:
    watch = Trajectory(measure)
    model = AttentionRegressor(CFG)
    draw = partial(make_regression, N=6, d=3)
    train(model, draw, 40, lr=1e-2, batch=256, every=20, on_step=watch)
    ds = watch.dataset()
    assert ds["step"].values.tolist() == [0, 20, 40]
    assert ds.sel(step=40, drop=True).equals(measure(model))
    assert float(ds["loss_model"].sel(step=40, algorithm="gd")) < float(ds["loss_model"].sel(step=0, algorithm="gd"))


def test_what_was_collected_before_an_interruption_is_kept(tmp_path) -> None:
    path = tmp_path / "trajectory.nc"
    whole = Trajectory(measure)
    first = Trajectory(measure, path)
    for step in (0, 10, 20):
        whole(step, taught(step / 4))
        first(step, taught(step / 4))
    second = Trajectory(measure, path)
    for step in (20, 30):  # a resumed training measures its checkpoint's step again
        whole(step, taught(step / 4))
        second(step, taught(step / 4))
    assert second.dataset().identical(whole.dataset())
    assert Trajectory(measure, path).dataset().identical(whole.dataset())


def test_another_measurement_is_not_mixed_in(tmp_path) -> None:
    Trajectory(measure, tmp_path / "one.nc")(0, taught(1.0))
    other = Trajectory(lambda model: align(model, ALGORITHMS, TASKS[:20], parts="query"), tmp_path / "one.nc")
    with pytest.raises(InterpError, match=r"one\.nc holds another measurement"):
        other(10, taught(1.0))


def test_an_empty_trajectory_says_how_to_fill_it() -> None:
    with pytest.raises(InterpError, match="empty; hand it to train"):
        Trajectory(measure).dataset()
    assert torch.is_grad_enabled()
