"""Every algorithm against its definition, computed another way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.icl.learners.algorithms import bayes_ridge, gd, gdpp, knn, newton, ols, ridge, sgd_one_pass
from interp.icl.tasks.regression import make_regression

LINEAR = [
    gd(3, 2.0),
    gd(2, (0.1, 0.3), step="sum"),
    gdpp(3, 6.0, 0.15),
    newton(4),
    ols(),
    ridge(0.2),
    bayes_ridge(0.2, 1.5),
    sgd_one_pass(0.2, 0.1),
]


def prompts(B=20, N=7, d=4, **settings):
    return make_regression(B, N, d, 1.0, noise=0.1, dtype=torch.float64, **settings)


@pytest.mark.parametrize("d_y", [1, 3])
@pytest.mark.parametrize("N", [3, 7])
@pytest.mark.parametrize("algorithm", LINEAR, ids=lambda a: a.name)
def test_predictions_weights_and_sensitivities_agree(algorithm, N, d_y):
    tasks = prompts(N=N, d_y=d_y)
    xq = tasks.xq.clone().requires_grad_()
    prediction, w = algorithm(tasks.X, tasks.y, xq), algorithm.weights(tasks.X, tasks.y)
    assert prediction.shape == tasks.yq.shape
    assert w.shape == tasks.w.shape
    torch.testing.assert_close(prediction, torch.einsum("bod,bd->bo", w.reshape(20, d_y, 4), xq).reshape_as(prediction))
    component = prediction.reshape(20, d_y)[:, -1].sum()
    torch.testing.assert_close(torch.autograd.grad(component, xq)[0], w.reshape(20, d_y, 4)[:, -1])


@pytest.mark.parametrize("algorithm", [*LINEAR, knn(3, "distance")], ids=lambda a: a.name)
def test_derivatives_in_the_whole_prompt(algorithm):
    tasks = prompts(B=2, N=5, d=3)
    leaves = [tensor.clone().requires_grad_() for tensor in (tasks.X, tasks.y, tasks.xq)]
    assert torch.autograd.gradcheck(algorithm, leaves)


@pytest.mark.parametrize("step", ["mean", "sum"])
@pytest.mark.parametrize("d_y", [1, 3])
def test_gd_descends_the_gradient_of_the_loss(step, d_y):
    tasks = prompts(d_y=d_y)
    torch.manual_seed(0)
    w0, precond = torch.randn(d_y, 4).double(), torch.randn(4, 4).double()
    w = w0.expand(20, d_y, 4)
    y = tasks.y.reshape(20, 7, d_y)
    for eta in (0.3, 0.2, 0.1):
        w = w.detach().clone().requires_grad_()
        loss = (torch.einsum("bnd,bod->bno", tasks.X, w) - y).square().sum() / 2
        gradient = torch.autograd.grad(loss, w)[0] / (7 if step == "mean" else 1)
        w = w - eta * torch.einsum("ij,boj->boi", precond, gradient)
    found = gd(3, (0.3, 0.2, 0.1), step, precond, w0).weights(tasks.X, tasks.y)
    torch.testing.assert_close(found, w.detach().reshape_as(found))


@pytest.mark.parametrize("d_y", [1, 2])
def test_gdpp_moves_tokens_and_query(d_y):
    """The update of every token of one prompt at a time, as the transformer does it."""
    tasks, etas, gammas = prompts(B=3, d_y=d_y), (3.0, 2.0, 4.0), (0.1, 0.2, 0.3)
    for task in range(3):
        x = [*tasks.X[task], tasks.xq[task]]
        r = [*tasks.y[task].reshape(7, d_y), torch.zeros(d_y, dtype=torch.float64)]
        for eta, gamma in zip(etas, gammas, strict=True):
            # the query is moved by the context but is no part of it
            drop = [eta / 7 * sum(r[i] * (x[i] @ x[j]) for i in range(7)) for j in range(8)]
            turn = [gamma * sum(x[i] * (x[i] @ x[j]) for i in range(7)) for j in range(8)]
            r, x = [a - b for a, b in zip(r, drop, strict=True)], [a - b for a, b in zip(x, turn, strict=True)]
        found = gdpp(3, etas, gammas)(tasks.X, tasks.y, tasks.xq)[task]
        torch.testing.assert_close(found.reshape(d_y), -r[-1])


def test_gdpp_without_gamma_is_gd_and_its_last_gamma_is_idle():
    tasks = prompts()
    torch.testing.assert_close(gdpp(4, 1.5, 0.0).weights(tasks.X, tasks.y), gd(4, 1.5).weights(tasks.X, tasks.y))
    idle = [gdpp(2, 1.5, (0.1, last)).weights(tasks.X, tasks.y) for last in (0.0, 9.0)]
    assert torch.equal(*idle)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(0, 6), N=st.integers(2, 12))
def test_newton_squares_the_residual(seed, steps, N):
    X = make_regression(3, N, 4, 1.0, seed=seed, dtype=torch.float64).X
    S, eye = X.mT @ X, torch.eye(4, dtype=torch.float64)
    before, after = (eye - newton(k).inverse(X) @ S for k in (steps, steps + 1))
    torch.testing.assert_close(after, before @ before, atol=1e-11, rtol=0)


def test_newton_starts_as_released_and_ends_at_least_squares():
    tasks = prompts(N=12)
    S = tasks.X.mT @ tasks.X
    start = newton(0).inverse(tasks.X)
    expected = S / (S @ S).square().sum((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(start, expected)
    w = ols().weights(tasks.X, tasks.y)
    torch.testing.assert_close(newton(40).weights(tasks.X, tasks.y), w, atol=1e-8, rtol=0)


@pytest.mark.parametrize("N", [2, 4, 9])
def test_least_squares_and_ridge_against_numpy(N):
    tasks = prompts(N=N)
    for task in range(5):
        X, y = tasks.X[task].numpy(), tasks.y[task].numpy()
        least = np.linalg.lstsq(X, y)[0]  # of least norm where N < d
        np.testing.assert_allclose(ols().weights(tasks.X, tasks.y)[task], least, atol=1e-9)
        prior = np.diag([1.0, 2.0, 3.0, 4.0])
        for algorithm, penalty in (
            (ridge(0.3), np.sqrt(0.3) * np.eye(4)),
            (bayes_ridge(0.3), np.sqrt(0.3) * np.eye(4)),
            (bayes_ridge(0.3, torch.from_numpy(prior)), np.sqrt(0.3) * np.linalg.inv(np.sqrt(prior))),
        ):
            penalised = np.linalg.lstsq(np.vstack([X, penalty]), np.append(y, np.zeros(4)))[0]
            np.testing.assert_allclose(algorithm.weights(tasks.X, tasks.y)[task], penalised, atol=1e-9)


@pytest.mark.parametrize("N", [1, 2, 3, 4, 9])
def test_ridge_without_a_penalty_is_least_squares(N):
    tasks = prompts(N=N)
    torch.testing.assert_close(ridge(0.0).weights(tasks.X, tasks.y), ols().weights(tasks.X, tasks.y))


def test_bayes_ridge_has_the_least_error_of_all_ridges():
    tasks = make_regression(4000, 6, 8, x="normal", noise=0.5, dtype=torch.float64)
    error = {lam: (ridge(lam)(tasks.X, tasks.y, tasks.xq) - tasks.yq).square().mean() for lam in (0.05, 0.25, 1.0)}
    assert min(error, key=error.get) == 0.25


def test_one_pass_of_sgd_by_hand():
    tasks = prompts(B=2)
    for task in range(2):
        w = np.zeros(4)
        for x, y in zip(tasks.X[task].numpy(), tasks.y[task].numpy(), strict=True):
            w = w - 2 * 0.1 * (x * (x @ w) - x * y + 0.05 * w)
        np.testing.assert_allclose(sgd_one_pass(0.1, 0.05).weights(tasks.X, tasks.y)[task], w, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(7)), seed=st.integers(0, 1000))
def test_full_batch_gd_does_not_see_the_order_of_the_context(order, seed):
    tasks = prompts(B=3, seed=seed)
    for algorithm in (gd(5, 1.0), gdpp(3, 2.0, 0.1)):
        before = algorithm(tasks.X, tasks.y, tasks.xq)
        after = algorithm(tasks.X[:, order], tasks.y[:, order], tasks.xq)
        torch.testing.assert_close(before, after, atol=1e-12, rtol=0)


def test_one_pass_of_sgd_does_see_the_order():
    tasks = prompts()
    before = sgd_one_pass(0.3).weights(tasks.X, tasks.y)
    after = sgd_one_pass(0.3).weights(tasks.X.flip(1), tasks.y.flip(1))
    assert (before - after).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("d_y", [1, 2])
@pytest.mark.parametrize(("k", "weights"), [(3, "uniform"), (3, "distance"), (50, "distance")])
def test_nearest_neighbours_by_hand(k, weights, d_y):
    tasks = prompts(d_y=d_y)
    found = knn(k, weights)(tasks.X, tasks.y, tasks.xq)
    assert knn(k, weights).weights(tasks.X, tasks.y) is None
    for task in range(20):
        distance = np.linalg.norm(tasks.X[task].numpy() - tasks.xq[task].numpy(), axis=1)
        nearest = np.argsort(distance)[:k]
        share = np.ones(len(nearest)) if weights == "uniform" else 1 / distance[nearest] ** 2
        expected = np.average(tasks.y[task].numpy()[nearest], axis=0, weights=share)
        np.testing.assert_allclose(found[task], expected, atol=1e-12)


def test_a_neighbour_at_the_query_is_the_answer():
    tasks = prompts()
    assert torch.equal(knn(3, "distance")(tasks.X, tasks.y, tasks.X[:, 2]), tasks.y[:, 2])
    xq = tasks.xq.clone().requires_grad_()
    assert (torch.autograd.grad(knn()(tasks.X, tasks.y, xq).sum(), xq)[0] == 0).all()


def test_an_algorithm_is_named_by_the_call_that_makes_it():
    assert gd(2, 0.5).name == "gd(steps=2, eta=0.5, step='mean', precond=None, w0=None)"
    assert "precond=<[3, 3]>" in gd(2, 0.5, precond=torch.eye(3)).name
    assert ridge(0.1).name == repr(ridge(0.1))
    assert eval(repr(gdpp(2, (1, 2), 0.5))) == gdpp(2, (1.0, 2.0), 0.5)


def test_settings_that_make_no_algorithm():
    with pytest.raises(InterpError, match="tune_gd"):
        gd(3)
    with pytest.raises(InterpError, match="step should be one of mean, sum"):
        gd(1, 0.5, step="batch")
    with pytest.raises(InterpError, match="eta has 2 values for 3 steps"):
        gd(3, (0.1, 0.2))
    with pytest.raises(InterpError, match="gamma has 1 values for 2 steps"):
        gdpp(2, 0.1, (0.2,))
    with pytest.raises(InterpError, match="weighting should be one of uniform, distance"):
        knn(3, "near")
    with pytest.raises(InterpError, match="ols"):
        bayes_ridge(0.0)
    with pytest.raises(InterpError, match="0 or more, not -1"):
        ridge(-1.0)
    with pytest.raises(InterpError, match="no 0 nearest neighbours"):
        knn(0)
    for make in (lambda steps: gd(steps, 0.1), lambda steps: gdpp(steps, 0.1, 0.1), newton):
        for steps in (-1, 1.5):
            with pytest.raises(InterpError, match=f"whole number of steps, 0 or more, not {steps}"):
                make(steps)


def test_step_sizes_may_come_as_a_tensor():
    sizes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    assert gd(2, sizes).eta == (0.5, 0.25)
    assert gdpp(2, sizes, torch.tensor(0.5)).gamma == 0.5
    with pytest.raises(InterpError, match="eta has 2 values for 3 steps"):
        gd(3, sizes)


@pytest.mark.parametrize("d_y", [1, 3])
@pytest.mark.parametrize("algorithm", [*LINEAR, knn(3), knn(3, "distance")], ids=lambda a: a.name)
def test_without_a_pair_nothing_has_been_learned(algorithm, d_y):
    tasks = prompts(N=0, d_y=d_y)
    prediction = algorithm(tasks.X, tasks.y, tasks.xq)
    assert prediction.shape == tasks.yq.shape
    assert (prediction == 0).all()
    w0 = torch.arange(4.0).double().expand(d_y, 4)
    start = gd(2, 0.3, w0=w0).weights(tasks.X, tasks.y)
    assert (start.reshape(20, d_y, 4) == w0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X, y, xq: (X, y[:, :2], xq), r"not \[20, 7, 4\], \[20, 2\], \[20, 4\]"),
        (lambda X, y, xq: (X, y, xq[:, :3]), r"\[20, 3\]"),
        (lambda X, y, xq: (X[0], y[0], xq[0]), r"not \[7, 4\], \[7\], \[4\]"),
        (lambda X, y, xq: (X, y.float(), xq), "one dtype, not torch.float32 and torch.float64"),
    ],
)
@pytest.mark.parametrize("algorithm", [gd(1, 0.5), knn()], ids=lambda a: a.name)
def test_tensors_that_make_no_prompts(algorithm, change, words):
    tasks = prompts()
    with pytest.raises(InterpError, match=words):
        algorithm(*change(tasks.X, tasks.y, tasks.xq))


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (gd(1, 0.5, precond=torch.eye(3)), r"precond is \[4, 4\] for these prompts, not \[3, 3\]"),
        (gd(1, 0.5, precond=torch.ones(4)), r"precond is \[4, 4\]"),
        (gd(1, 0.5, w0=torch.ones(2, 4)), r"labels of 1 is \[1, 4\] or \[4\], not \[2, 4\]"),
        (bayes_ridge(0.1, torch.eye(3)), r"prior_cov is \[4, 4\] or a number for these prompts, not \[3, 3\]"),
    ],
    ids=lambda a: getattr(a, "name", ""),
)
def test_settings_that_do_not_fit_the_prompts(algorithm, words):
    tasks = prompts()
    with pytest.raises(InterpError, match=words):
        algorithm.weights(tasks.X, tasks.y)
