"""Rolled-out layers against damped descent written out, and against its losses measured elsewhere."""

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.icl.measures.rollout import rollout, rollout_losses
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd
from interp.icl.models.extraction import lsa_products
from interp.icl.tasks.regression import make_regression

BEST_ETA = 6.0606  # N = d = 10, inputs uniform on ±0.5


def constructed(eta=BEST_ETA, d_out=1):
    return construct_gd(AttentionRegressor(RegressorConfig(d_out=d_out)).double(), eta)


@pytest.mark.parametrize("d_y", [1, 2])
def test_a_constructed_layer_rolls_out_as_damped_descent(d_y):
    tasks = make_regression(20, 10, 10, d_y=d_y, seed=0, dtype=torch.float64)
    found = rollout(constructed(5.0, d_y), tasks, 6, damping=0.8)
    y = tasks.y.reshape(20, 10, d_y)
    W = torch.zeros(20, d_y, 10, dtype=torch.float64)
    for step in range(7):
        torch.testing.assert_close(found[step], (W @ tasks.xq[..., None])[..., 0].reshape(tasks.yq.shape))
        W = W + 0.8 * 5.0 / 10 * (y - tasks.X @ W.mT).mT @ tasks.X


def test_one_undamped_application_is_the_model():
    tasks = make_regression(20, 10, 10, seed=0, dtype=torch.float64)
    model = AttentionRegressor(RegressorConfig(init_std=0.3)).double()
    torch.testing.assert_close(rollout(model, tasks, 1)[1], model(tasks.X, tasks.y, tasks.xq))


def test_only_targets_move():
    tasks = make_regression(20, 10, 10, seed=0, dtype=torch.float64)
    model = AttentionRegressor(RegressorConfig(init_std=0.3)).double()
    KQ, PV = (product[0] for product in lsa_products(model))
    y, yq = tasks.y, torch.zeros(20, dtype=torch.float64)
    found = rollout(model, tasks, 3, damping=0.7)
    for step in range(4):
        torch.testing.assert_close(found[step], -yq)
        context, query = torch.cat([tasks.X, y[..., None]], -1), torch.cat([tasks.xq, yq[:, None]], -1)
        written = context @ PV[-1]
        y = y + 0.7 * torch.einsum("bi,bid,de,bje->bj", written, context, KQ, context)
        yq = yq + 0.7 * torch.einsum("bi,bid,de,be->b", written, context, KQ, query)


def test_losses_of_damped_descent():
    tasks = make_regression(10_000, 10, 10, seed=0, dtype=torch.float64)
    losses = rollout_losses({"descent": constructed()}, tasks, 50, [0.75]).sel(model="descent", damping=0.75)
    known = {0: 5 / 12, 1: 0.2213, 5: 0.1194, 10: 0.0892, 20: 0.0663, 50: 0.0449}
    for step, value in known.items():
        found = losses.sel(step=step)
        assert abs(float(found.loss) - value) < 4 * float(found.loss_se), step


def test_too_little_damping_diverges():
    tasks = make_regression(3000, 10, 10, seed=0, dtype=torch.float64)
    loss = rollout_losses({"descent": constructed()}, tasks, 50, [1.0, 0.875]).loss.sel(model="descent")
    assert float(loss.sel(damping=1.0, step=5)) == pytest.approx(0.113, rel=0.1)
    assert float(loss.sel(damping=1.0, step=20)) > 10  # single tasks with a large eigenvalue explode
    assert float(loss.sel(damping=0.875, step=50)) > float(loss.sel(damping=0.875, step=10))


def test_losses_have_standard_errors_of_the_mean():
    tasks = make_regression(50, 10, 10, seed=0, dtype=torch.float64)
    model = constructed()
    losses = rollout_losses({"a": model, "b": model}, tasks, 2, [0.75])
    halves = 0.5 * (rollout(model, tasks, 2, 0.75)[2] - tasks.yq).square()
    for name in ("a", "b"):
        found = losses.sel(model=name, damping=0.75, step=2)
        assert float(found.loss) == pytest.approx(float(halves.mean()))
        assert float(found.loss_se) == pytest.approx(float(halves.std()) / np.sqrt(50))


@pytest.mark.parametrize("shape", [{"layout": "interleaved"}, {"d_mlp": 5}, {"layer_norm": True}, {"clamp": 10.0}])
def test_blocks_that_do_more_than_attend_are_refused(shape):
    with pytest.raises(InterpError, match="rolled out"):
        rollout(AttentionRegressor(RegressorConfig(**shape)), make_regression(2, 10, 10), 1)
    with pytest.raises(InterpError, match="not -1"):
        rollout(constructed(), make_regression(2, 10, 10), -1)
