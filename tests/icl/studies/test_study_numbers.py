"""Pieces of studies against closed forms, Monte Carlo, and cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from interp.icl.learners.algorithms import gd
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.studies import algorithms, depth, optimal, softmax_heads, softmax_regression
from interp.icl.studies._algorithms_figures import doubling
from interp.icl.studies._regressors import farthest, half_mse, over_seeds
from interp.icl.tasks.regression import make_regression


def test_error_of_a_gradient_step_is_its_closed_form():
    tasks = make_regression(200_000, 4, 8, cov=1.0, seed=1, dtype=torch.float64)
    for eta in (0.04, 1 / 13):
        error = 2 * half_mse(gd(1, eta, step="sum"), tasks)
        assert algorithms._gd_error(4, eta) == pytest.approx(error, rel=0.02)
    assert algorithms._gd_error(4, None) == pytest.approx(algorithms._gd_error(4, 1 / 13), rel=1e-12)


def test_error_at_doubled_inputs_is_its_closed_form():
    tasks = make_regression(100_000, algorithms.MANY, 8, cov=1.0, seed=2, dtype=torch.float64)
    step = gd(1, 1 / (algorithms.MANY + 9), step="sum")
    error = 2 * half_mse(step, algorithms._scaled(tasks, 2.0, 2.0)) / float((2 * tasks.yq).square().mean())
    assert algorithms.gd_error_at_twice_the_inputs() == pytest.approx(error, rel=0.03)


def test_scaled_inputs_are_the_papers_law_in_another_unit():
    """Ridge on N(0, I/12) with a twelfth of noise and penalty is ridge on N(0, I)."""
    generator = torch.Generator().manual_seed(0)
    X, w = torch.randn(5, 6, 8, generator=generator), torch.randn(5, 8, generator=generator)
    y = torch.einsum("bnd,bd->bn", X, w) + 0.5 * torch.randn(5, 6, generator=generator)
    small = algorithms.X_VARIANCE**0.5
    same = algorithms.penalised("1/4").weights(small * X, small * y)
    by_hand = torch.linalg.solve(X.mT @ X + 0.25 * torch.eye(8), torch.einsum("bnd,bn->bd", X, y))
    torch.testing.assert_close(same, by_hand, rtol=1e-4, atol=1e-5)


def test_the_closest_penalty_is_that_of_ridge_itself():
    tasks = algorithms.draw(200, algorithms.FEW, "1/4", dtype=torch.float64)
    for place in (20, 47, 60):
        penalty = algorithms.PENALTIES[place]
        model = algorithms.ridge(penalty * algorithms.X_VARIANCE)
        assert algorithms._closest_penalty(model, tasks) == pytest.approx(penalty)


def test_the_diagonal_is_counted():
    table = xr.DataArray(1 - np.eye(5), dims=("penalty", "noise"))
    assert algorithms._least_on_diagonal(table) == 5
    table[0, 3] = -1
    assert algorithms._least_on_diagonal(table) == 4


def test_doubling_reads_the_slope_and_leaves_out_the_ceiling():
    steps, ceiling = np.arange(1, 9), 512
    best = np.minimum(3.0 * 2.0**steps, ceiling)
    ds = xr.Dataset(
        {"newton_best_gd": (("measure", "newton_step"), best[None])},
        coords={"measure": ["predictions"], "newton_step": steps, "gd_step": [1, ceiling]},
    )
    slope, r2 = doubling(ds)
    assert slope == pytest.approx(1, abs=1e-12)
    assert r2 == pytest.approx(1, abs=1e-12)


def test_least_squares_recovers_a_matrix_that_explains_all():
    tasks = optimal.draw(2_000, prior="identity", seed=1).to(torch.float64)
    A = torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    said = torch.einsum("bnd,bn,de,be->b", tasks.X, tasks.y, A, tasks.xq)
    exact = type(tasks)(tasks.X, tasks.y, tasks.xq, said, None, tasks.about)
    torch.testing.assert_close(optimal._least_squares(exact), A, rtol=1e-8, atol=1e-8)
    assert optimal._distance(A, A) == 0
    assert optimal._distance(2 * A, A) == pytest.approx(1)


@pytest.mark.parametrize("prior", optimal.PRIORS)
def test_the_formula_is_within_monte_carlo_of_least_squares(prior):
    fitted = optimal._least_squares(optimal.draw(100_000, prior=prior, seed=5))
    assert optimal._distance(fitted, optimal.optimum(prior).matrix) < 0.03


def test_heads_that_cancel_are_seen_to_cancel():
    model = AttentionRegressor(RegressorConfig(n_heads=2, attention="softmax"))
    layer = model.block(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        other = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
        for head, sign in enumerate((1.0, -1.0)):
            layer.W_K[head, :10, :10] = torch.eye(10)
            layer.W_Q[head, :10, :10] = (other + sign * torch.eye(10)).T
            layer.W_V[head, 10, 10] = -sign
            layer.W_O[head, 10, 10] = 3.0
    found = softmax_heads._cancellation(model)
    assert float(found["off_diagonal_sum"]) == pytest.approx(0, abs=1e-5)
    assert float(found["off_diagonal_head"].min()) > 0.5
    assert float(found["offset_left"]) == 0
    assert float(found["step_of_sum"]) == pytest.approx(3 * 2 / 11**0.5 / 10, rel=1e-5)


def test_depth_controls_beat_what_they_contain():
    found = depth._controls(500, 0.5)
    loss = found["gd_loss"].values
    assert (np.diff(loss) < 0).all(), "more steps of descent are better"
    assert float(found["gdpp_loss"].sel(steps=2)) < float(found["gd_loss"].sel(steps=2))
    assert float(found["untied_loss"]) < float(found["gd_loss"].sel(steps=5))


def test_shifts_stay_within_their_tight_bounds():
    found = softmax_regression._shifts(100)
    assert 0 < float(found["weight_share"].max()) <= 1
    assert 0 < float(found["data_share"].max()) <= 1
    assert float(found["attained"]) == pytest.approx(1, abs=1e-6)
    assert float(found["equivalent_error"]) < 1e-14
    assert float(found["first_step_error"]) < 1e-12


def test_seeds_are_put_side_by_side():
    joined = over_seeds([xr.Dataset({"loss": ("step", [1.0, 2.0])}), xr.Dataset({"loss": ("step", [3.0, 5.0])})])
    assert joined["loss"].dims == ("seed", "step")
    assert farthest(joined["loss"], 2.0) == 5.0
