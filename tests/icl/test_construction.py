"""Constructed weights against gradient descent and GD++ written out over single pairs."""

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd, construct_gdpp
from interp.icl.tasks.regression import make_regression

N, D = 7, 5


def tasks_of(d_y=1, context=N, seed=0):
    return make_regression(20, context, D, 1.0, d_y=d_y, seed=seed, dtype=torch.float64)


def model_of(**shape):
    return AttentionRegressor(RegressorConfig(d_in=D, n_ctx=N, **shape), seed=3).double()


def descend(X, Y, W, etas, precond=None):
    """W [d_y, d] of one task after one step for each of `etas`, pair by pair."""
    precond = np.eye(X.shape[1]) if precond is None else precond
    for eta in etas:
        gradient = sum(np.outer(W @ x - y, x) for x, y in zip(X, Y, strict=True))
        W = W - eta * gradient @ precond.T
    return W


def descended(tasks, start, etas, precond=None):
    X, y, xq = (t.numpy() for t in (tasks.X, tasks.y, tasks.xq))
    y = y.reshape(*y.shape[:2], -1)
    ends = [descend(X[b], y[b], start, etas, precond) @ xq[b] for b in range(len(X))]
    return np.array(ends).reshape(tasks.yq.shape)


def predict(model, tasks):
    return model(tasks.X, tasks.y, tasks.xq).detach().numpy()


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("d_y", [1, 3])
def test_k_layers_are_k_steps_from_any_start(d_y, steps, recurrent):
    tasks = tasks_of(d_y, seed=steps)
    W0 = torch.randn(d_y, D, generator=torch.Generator().manual_seed(d_y), dtype=torch.float64)
    model = construct_gd(model_of(d_out=d_y, n_layers=steps, recurrent=recurrent), 0.6, W0)
    expected = descended(tasks, W0.numpy(), [0.6 / N] * steps)
    assert np.abs(predict(model, tasks) - expected).max() <= 1e-12
    assert np.abs(expected).max() > 0.1


def test_the_context_then_holds_residuals():
    tasks = tasks_of()
    model = construct_gd(model_of(n_layers=2), 0.6)
    _, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    X, y = tasks.X.numpy(), tasks.y.numpy()
    for b in range(3):
        w = descend(X[b], y[b][:, None], np.zeros((1, D)), [0.6 / N])[0]
        np.testing.assert_allclose(cache["resid_post", 0][b, :-1, -1], y[b] - X[b] @ w, atol=1e-12)
    torch.testing.assert_close(cache["resid_post", 1][..., :-1], cache["resid_pre", 0][..., :-1])


def test_each_untied_layer_takes_its_own_step():
    tasks, etas = tasks_of(), [0.9, 0.2, 0.5]
    model = construct_gd(model_of(n_layers=3), etas)
    expected = descended(tasks, np.zeros((1, D)), [eta / N for eta in etas])
    assert np.abs(predict(model, tasks) - expected).max() <= 1e-12
    with pytest.raises(InterpError, match="2 values for 3 layers"):
        construct_gd(model, [0.1, 0.2])
    with pytest.raises(InterpError, match="3 values for 1 layers"):
        construct_gd(model_of(n_layers=3, recurrent=True), etas)


def test_sum_step_and_other_context_lengths():
    longer = tasks_of(context=2 * N)
    mean = construct_gd(model_of(), 0.6)
    assert np.abs(predict(mean, longer) - descended(longer, np.zeros((1, D)), [0.6 / N])).max() <= 1e-12
    summed = construct_gd(model_of(), 0.07, step="sum")
    assert np.abs(predict(summed, longer) - descended(longer, np.zeros((1, D)), [0.07])).max() <= 1e-12


def test_a_preconditioner_multiplies_every_gradient():
    tasks = tasks_of()
    precond = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = construct_gd(model_of(n_layers=2, recurrent=True), 0.3, precond=precond)
    expected = descended(tasks, np.zeros((1, D)), [0.3 / N] * 2, precond.numpy())
    assert np.abs(predict(model, tasks) - expected).max() <= 1e-12


def test_a_single_layer_and_spare_heads():
    tasks = tasks_of()
    model = model_of(n_heads=3)
    construct_gd(model.block(0), 0.6)
    assert np.abs(predict(model, tasks) - descended(tasks, np.zeros((1, D)), [0.6 / N])).max() <= 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gdpp_transforms_inputs_as_it_descends(steps):
    tasks = tasks_of(seed=9)
    etas, gammas = [0.6, 0.9, 0.3][:steps], [0.05, 0.1, 0.2][:steps]
    model = construct_gdpp(model_of(n_layers=steps), etas, gammas)
    expected = []
    for X, y, xq in zip(tasks.X.numpy(), tasks.y.numpy(), tasks.xq.numpy(), strict=True):
        residuals, prediction = y.copy(), 0.0
        for eta, gamma in zip(etas, gammas, strict=True):
            towards_query, among = X @ xq, X @ X.T
            prediction = prediction + eta / N * residuals @ towards_query
            residuals = residuals - eta / N * among @ residuals
            X, xq = X - gamma * among @ X, xq - gamma * X.T @ towards_query
        expected.append(prediction)
    assert np.abs(predict(model, tasks) - np.array(expected)).max() <= 1e-12


def test_recurrent_gdpp_is_one_pair_of_numbers():
    tasks = tasks_of()
    tied = construct_gdpp(model_of(n_layers=3, recurrent=True), 0.6, 0.1)
    untied = construct_gdpp(model_of(n_layers=3), [0.6] * 3, [0.1] * 3)
    assert np.abs(predict(tied, tasks) - predict(untied, tasks)).max() <= 1e-14


@pytest.mark.parametrize(
    ("shape", "obstacle"),
    [
        ({"attention": "softmax"}, "softmax attention"),
        ({"d_mlp": 8}, "an MLP"),
        ({"layer_norm": True}, "LayerNorm"),
        ({"layout": "interleaved"}, "interleaved tokens"),
        ({"residual": False}, "no residual stream"),
        ({"readout_sign": 1}, "read-out"),
        ({"d_head": 3}, "heads of size 3"),
    ],
)
def test_models_that_cannot_be_descent_are_refused(shape, obstacle):
    with pytest.raises(InterpError, match=obstacle):
        construct_gd(model_of(**shape), 0.6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"step": "batch"}, "'mean' .* or 'sum'"),
        ({"W0": torch.ones(D, 3)}, r"labels of 3 is \[3, 5\], not \[5, 3\]"),
        ({"precond": torch.eye(4)}, r"precond is \[5, 5\] for this model, not \[4, 4\]"),
        ({"precond": torch.ones(5)}, r"precond is \[5, 5\]"),
        ({"eta": [0.1, 0.2]}, "eta has 2 values for 3 layers"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings, words):
    with pytest.raises(InterpError, match=words):
        construct_gd(model_of(d_out=3, n_layers=3), **{"eta": 0.6, **settings})


def test_only_regressors_can_be_written_to():
    with pytest.raises(InterpError, match="not Linear"):
        construct_gd(torch.nn.Linear(5, 1), 0.6)


def test_step_sizes_and_start_in_other_forms():
    tasks, start = tasks_of(), torch.linspace(-1, 1, D, dtype=torch.float64)
    etas = torch.tensor([0.5, 0.25])
    one = construct_gd(model_of(n_layers=2), etas, start)
    other = construct_gd(model_of(n_layers=2), [0.5, 0.25], start[None])
    assert np.array_equal(predict(one, tasks), predict(other, tasks))
