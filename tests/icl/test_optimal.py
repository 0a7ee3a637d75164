"""The optimal layer against Monte Carlo least squares, and the tuned controls against perturbed ones."""

import dataclasses

import pytest
import torch

from interp.errors import InterpError
from interp.icl.learners.algorithms import gd, gdpp
from interp.icl.learners.gd_losses import GDLaw
from interp.icl.learners.optimal import LINE_SEARCH, lsa_optimal, nonlinear_step, relu_network_step, tune_gd, tune_gdpp
from interp.icl.tasks.function_classes import ReLUNetwork
from interp.icl.tasks.regression import Draws, make_regression

SPREAD = torch.tensor([[1.5, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.5]], dtype=torch.float64)
PRIORS = {
    "identity": torch.eye(3, dtype=torch.float64),
    "inverse": SPREAD.inverse(),
    "generic": torch.tensor([[0.6, -0.3, 0.1], [-0.3, 1.4, 0.4], [0.1, 0.4, 2.0]], dtype=torch.float64),
}


def least_squares(chunks):
    """The A that minimises the mean of (bᵀ A xq - yq)² over tasks, b = sum_i y_i x_i, and that minimum."""
    gram, moment, square, count = 0, 0, 0, 0
    for tasks in chunks:
        b = torch.einsum("bn,bnd->bd", tasks.y, tasks.X)
        features = torch.einsum("bi,bj->bij", b, tasks.xq).flatten(1).double()
        target = tasks.yq.double()
        gram, moment = gram + features.T @ features, moment + features.T @ target
        square, count = square + target @ target, count + len(tasks)
    solution = torch.linalg.solve(gram, moment)
    d = tasks.X.shape[-1]
    return solution.reshape(d, d), float(square - moment @ solution) / count


def chunks(count, *args, **settings):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // 25_000):
        yield make_regression(25_000, *args, seed=generator, **settings)


@pytest.mark.parametrize("prior", PRIORS)
def test_optimal_layer_is_the_least_squares_solution(prior):
    n, noise_var, Omega = 8, 0.3, PRIORS[prior]
    best = lsa_optimal(n, SPREAD, Omega, noise_var)
    A, mse = least_squares(chunks(400_000, n, 3, cov=SPREAD, prior_cov=Omega, noise=noise_var**0.5))
    assert torch.linalg.norm(A - best.matrix) <= 0.01 * torch.linalg.norm(best.matrix)
    assert best.mse == pytest.approx(mse, rel=0.01)


def test_optimal_layer_for_independent_uniform_coordinates():
    n, width, Omega = 4, 0.8, PRIORS["generic"]
    best = lsa_optimal(n, width**2 / 3, Omega, kurtosis=1.8)
    A, mse = least_squares(chunks(400_000, n, 3, width, prior_cov=Omega))
    assert torch.linalg.norm(A - best.matrix) <= 0.01 * torch.linalg.norm(best.matrix)
    assert best.mse == pytest.approx(mse, rel=0.01)
    gaussian = lsa_optimal(n, width**2 / 3, Omega).matrix
    assert torch.linalg.norm(A - gaussian) > 0.05 * torch.linalg.norm(gaussian)


@pytest.mark.parametrize("noise_var", [0.0, 0.3])
def test_step_for_a_network_is_the_least_squares_solution(noise_var):
    n, d, B = 10, 3, 25_000
    draws = Draws.of(0)
    along, square = 0.0, 0.0
    for _ in range(6):
        function = ReLUNetwork(8, scale=1.0).draw(B, d, draws)
        X, queries = draws.normal(B, n, d), draws.normal(B, 16, d)
        y = function(X) + noise_var**0.5 * draws.normal(B, n)
        prediction = torch.einsum("bn,bnd,bqd->bq", y, X, queries)
        along += float((prediction * function(queries)).double().sum())
        square += float(prediction.square().double().sum())
    assert relu_network_step(n, d, 8, noise_var) == pytest.approx(along / square, rel=0.015)


def test_printed_steps():
    eye = torch.eye(5, dtype=torch.float64)
    cases = {
        lsa_optimal(20, 1.0, 1.0, 0.5, d=5): 1 / 26.5,  # 0.037736
        lsa_optimal(20, eye): 1 / 26,
        lsa_optimal(10, 1 / 12, 1.0, 0.09, d=10, kurtosis=1.8): 1 / 1.74,  # 0.5747
        lsa_optimal(10, 1 / 12, d=10, kurtosis=1.8): GDLaw().best_eta / 10,
    }
    for best, step in cases.items():
        expected = step * torch.eye(len(best.matrix), dtype=torch.float64)
        torch.testing.assert_close(best.matrix, expected, atol=1e-12, rtol=0)
    assert relu_network_step(20, 5, 8, 0.3) == pytest.approx(10 / 331.5, abs=1e-12)
    assert relu_network_step(20, 5, 8, 0.3) == pytest.approx(0.03017, abs=5e-6)
    # linear targets are a special case: c_f = w
    assert nonlinear_step(20, correlation=5, energy=5 * (5 + 2 + 0.5)) == pytest.approx(1 / 26.5, abs=1e-12)


@pytest.mark.parametrize("given", [(0, 1.0, 1.0), (3, -1.0, 5.0), (3, 1.0, 0.0)])
def test_a_step_of_impossible_moments_is_refused(given):
    with pytest.raises(InterpError, match="nonlinear_step takes n of at least 1"):
        nonlinear_step(*given)


def test_special_cases_of_the_papers():
    n, s2, eye = 20, 0.5, torch.eye(3, dtype=torch.float64)
    assert lsa_optimal(n, 1.0, 1.0, s2, d=5).mse == pytest.approx(5 * 6.5 / 26.5, abs=1e-12)
    assert lsa_optimal(n, 1.0, 1.0, s2, d=5).mse == pytest.approx(1.226, abs=5e-4)
    ahn = torch.linalg.inv((n + 1) * SPREAD + SPREAD.trace() * eye)
    torch.testing.assert_close(lsa_optimal(n, SPREAD).matrix, ahn, atol=1e-12, rtol=0)
    mahankali = SPREAD.inverse() / (n + 3 + 1 + s2)
    torch.testing.assert_close(lsa_optimal(n, SPREAD, SPREAD.inverse(), s2).matrix, mahankali, atol=1e-12, rtol=0)
    gamma = (1 + 1 / n) * SPREAD + SPREAD.trace() * eye / n
    torch.testing.assert_close(lsa_optimal(n, SPREAD).matrix, gamma.inverse() / n, atol=1e-12, rtol=0)


def test_optimal_layer_predicts_with_its_matrix():
    tasks = make_regression(9, 6, 3, cov=SPREAD, d_y=2, dtype=torch.float64)
    best = lsa_optimal(6, SPREAD, PRIORS["generic"], 0.1)
    expected = torch.einsum("bno,bnd,de,be->bo", tasks.y, tasks.X, best.matrix, tasks.xq)
    torch.testing.assert_close(best(tasks.X, tasks.y, tasks.xq), expected)


def test_what_leaves_the_optimal_layer_open():
    with pytest.raises(InterpError, match="not given: pass d"):
        _ = lsa_optimal(5).matrix
    with pytest.raises(InterpError, match="at once"):
        _ = lsa_optimal(5, SPREAD, d=4).matrix
    with pytest.raises(InterpError, match="at once"):
        _ = lsa_optimal(5, SPREAD, torch.eye(2)).matrix
    with pytest.raises(InterpError, match="diagonal"):
        lsa_optimal(5, SPREAD, kurtosis=1.8)
    with pytest.raises(InterpError, match="symmetric"):
        _ = lsa_optimal(5, SPREAD.triu()).matrix
    for n, noise_var in ((0, 0.0), (5, -0.1)):
        with pytest.raises(InterpError, match=f"not n = {n} and noise_var = {noise_var}"):
            lsa_optimal(n, SPREAD, noise_var=noise_var)
    tasks = make_regression(3, 5, 4)
    with pytest.raises(InterpError, match="best for 3 inputs, and the prompts have 4"):
        lsa_optimal(5, SPREAD).weights(tasks.X, tasks.y)


def test_covariances_may_be_numpys():
    expected = lsa_optimal(5, SPREAD, PRIORS["generic"]).matrix
    torch.testing.assert_close(lsa_optimal(5, SPREAD.numpy(), PRIORS["generic"].tolist()).matrix, expected)
    one = lsa_optimal(5, SPREAD.numpy(), 2.0).matrix
    torch.testing.assert_close(one, lsa_optimal(5, SPREAD, 2.0).matrix)


def test_what_has_no_best_step():
    for steps in (0, -1):
        with pytest.raises(InterpError, match=f"{steps} steps have no step size"):
            tune_gd(make_regression(9, 3, 2), steps)
    for tasks in (make_regression(9, 0, 2), make_regression(9, 3, 2, prior_cov=0.0)):
        with pytest.raises(InterpError, match="no label but 0"):
            tune_gd(tasks)


def loss(algorithm, tasks):
    return float((algorithm(tasks.X, tasks.y, tasks.xq) - tasks.yq).double().square().sum())


@pytest.mark.parametrize("d_y", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_tuned_gd_is_the_best_step(steps, d_y):
    tasks = make_regression(3000, 8, 5, noise=0.2, d_y=d_y, dtype=torch.float64)
    best = tune_gd(tasks, steps)
    for factor in (0.3, 0.97, 0.999, 1.001, 1.03, 2.0):
        assert loss(best, tasks) < loss(gd(steps, best.eta * factor), tasks)


def test_tuned_gd_finds_the_closed_form():
    assert tune_gd(make_regression(50_000, 10, 10)).eta == pytest.approx(GDLaw().best_eta, rel=0.02)


def test_line_search_takes_the_best_of_its_grid():
    tasks = make_regression(3000, 8, 5, dtype=torch.float64)
    found = tune_gd(tasks, 2, "line_search")
    losses = torch.tensor([loss(gd(2, float(eta)), tasks) for eta in LINE_SEARCH])
    assert found.eta == float(LINE_SEARCH[losses.argmin()])
    assert abs(found.eta - tune_gd(tasks, 2).eta) <= 0.1
    with pytest.raises(InterpError, match="'line_search'"):
        tune_gd(tasks, 2, "bisection")


@pytest.mark.parametrize("steps", [2, 4])
def test_tuned_gdpp_is_a_minimum_and_beats_gd(steps):
    tasks = make_regression(3000, 8, 5, dtype=torch.float64)
    best = tune_gdpp(tasks, steps)
    assert loss(best, tasks) < loss(tune_gd(tasks, steps), tasks)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert loss(best, tasks) < loss(dataclasses.replace(best, eta=best.eta * factor), tasks)
        assert loss(best, tasks) < loss(dataclasses.replace(best, gamma=best.gamma * factor), tasks)


def test_a_pair_for_each_step_is_better_on_new_tasks_too():
    tasks, new = (make_regression(4000, 10, 10, seed=seed, dtype=torch.float64) for seed in (1, 2))
    shared, each = tune_gdpp(tasks, 3), tune_gdpp(tasks, 3, shared=False)
    assert loss(each, tasks) < 0.97 * loss(shared, tasks)
    assert loss(each, new) < 0.97 * loss(shared, new)
    assert len(each.eta) == len(each.gamma) == 3
    assert each.gamma[-1] == 0
    with pytest.raises(InterpError, match="tune_gd"):
        tune_gdpp(tasks, 1)


@pytest.mark.parametrize(("N", "gamma"), [(10, 0.179), (25, 0.099), (50, 0.056), (100, 0.029)])
def test_gamma_of_two_steps_as_read_off_trained_weights(N, gamma):
    tasks = make_regression(20_000, N, 10, seed=1)
    assert tune_gdpp(tasks, 2).gamma == pytest.approx(gamma, rel=0.05)


@pytest.mark.slow
def test_population_losses_by_depth():
    """Half mean squared errors over 250,000 new tasks."""
    tasks = make_regression(50_000, 10, 10, seed=1)
    new = make_regression(250_000, 10, 10, seed=2)
    found = {f"gd {steps}": tune_gd(tasks, steps) for steps in (1, 2, 3, 5)}
    found["gd 10"] = gd(10, 4.9)  # a larger step is no better, and its error hangs on a few tasks
    found |= {"gd++ 2": tune_gdpp(tasks, 2), "gd++ 5 untied": tune_gdpp(tasks, 5, shared=False)}
    expected = {"gd 1": 0.2062, "gd 2": 0.157, "gd 3": 0.133, "gd 5": 0.1086, "gd 10": 0.0835}
    expected |= {"gd++ 2": 0.1107, "gd++ 5 untied": 0.042}
    losses = {name: loss(algorithm, new) / 2 / len(new) for name, algorithm in found.items()}
    assert losses == pytest.approx(expected, rel=0.03)
    # three and ten shared steps of GD++: pairs at the end of a short run of Adam cost 0.081 and 0.048
    assert loss(tune_gdpp(tasks, 3), new) / 2 / len(new) == pytest.approx(0.0779, rel=0.02)
    assert loss(gdpp(10, 18.5, 0.13), new) / 2 / len(new) == pytest.approx(0.0477, rel=0.02)
    assert loss(tune_gdpp(tasks[:10_000], 10), new) / 2 / len(new) < 0.04
