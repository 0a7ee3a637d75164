"""Softmax regression: gradient, constants and the link between moving the weights and moving the data. float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.icl.learners.algorithms import gd
from interp.icl.tasks.softmax_regression import (
    closeness,
    data_constant,
    distribution,
    equivalent_data_shift,
    log10_paper_constant,
    make_softmax_regression,
    shifted_target,
    softmax_gd,
    softmax_gradient,
    softmax_loss,
    tune_softmax_gd,
    weight_constant,
)


def prompts(B=40, n=12, d=5, radius=3.0, seed=0):
    return make_softmax_regression(B, n, d, radius, seed=seed, dtype=torch.float64)


def some(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


shapes = given(
    seed=st.integers(0, 10_000), n=st.integers(2, 9), d=st.integers(1, 6), size=st.sampled_from([1e-3, 0.3, 3.0, 30.0])
)


def test_tasks():
    tasks = prompts(B=20_000)
    torch.testing.assert_close(tasks.y, distribution(tasks.X, tasks.w))
    torch.testing.assert_close(tasks.yq, (tasks.xq * tasks.w).sum(1))
    assert tasks.X.var() == pytest.approx(1 / 5, rel=0.02)
    assert tasks.w.square().sum(1).mean() == pytest.approx(9, rel=0.02)
    assert softmax_loss(tasks.X, tasks.w, tasks.y).abs().max() == 0


@shapes
@settings(max_examples=30, deadline=None)
def test_gradient(seed, n, d, size):
    A, x = some(4, n, d, seed=seed), (size * some(4, d, seed=seed + 1)).requires_grad_()
    b = some(4, n, seed=seed + 2).softmax(1)
    expected = torch.autograd.grad(softmax_loss(A, x, b).sum(), x)[0]
    torch.testing.assert_close(softmax_gradient(A, x.detach(), b), expected, atol=1e-14, rtol=1e-10)


@shapes
@settings(max_examples=60, deadline=None)
def test_neither_shift_moves_f_by_more_than_its_constant(seed, n, d, size):
    A, x = size * some(4, n, d, seed=seed), some(4, d, seed=seed + 1)
    dx, dA = some(4, d, seed=seed + 2), size * some(4, n, d, seed=seed + 3)
    f = distribution(A, x)
    by_weights, by_data = (distribution(A, x + dx) - f).norm(dim=1), (distribution(A + dA, x) - f).norm(dim=1)
    assert (by_weights <= weight_constant(A) * dx.norm(dim=1) * (1 + 1e-9)).all()
    assert (by_data <= data_constant(x) * torch.linalg.matrix_norm(dA, 2) * (1 + 1e-9)).all()


def test_both_constants_are_attained():
    A, x, step = torch.tensor([[[1.0], [-1.0]]]).double(), torch.zeros(1, 1).double(), 1e-5
    moved = (distribution(A, x + step) - distribution(A, x)).norm() / step
    assert moved == pytest.approx(float(weight_constant(A)), rel=1e-9)
    A, x = torch.zeros(1, 2, 1).double(), torch.full((1, 1), 1.7).double()
    dA = step * torch.tensor([[[1.0], [-1.0]]]).double()
    moved = (distribution(A + dA, x) - distribution(A, x)).norm() / torch.linalg.matrix_norm(dA, 2)
    assert moved == pytest.approx(float(data_constant(x)), rel=1e-9)


def test_published_constant():
    assert 10 ** (log10_paper_constant(25, 4) - 71) == pytest.approx(3.8, abs=0.05)
    assert 10 ** log10_paper_constant(25, 1) == pytest.approx(2.8e6, rel=0.02)
    assert log10_paper_constant(9, 2) == pytest.approx(math.log10(27 * math.exp(40)))


@shapes
@settings(max_examples=60, deadline=None)
def test_a_data_shift_does_what_a_weight_shift_does(seed, n, d, size):
    A, x, dx = some(4, n, d, seed=seed), some(4, d, seed=seed + 1), size * some(4, d, seed=seed + 2)
    dA = equivalent_data_shift(A, x, dx)
    torch.testing.assert_close(distribution(A + dA, x), distribution(A, x + dx), atol=1e-11, rtol=0)
    v = torch.einsum("bnd,bd->bn", A, dx)
    v = v - v.mean(1, keepdim=True)
    shortest = torch.linalg.matrix_norm(dA, 2)
    torch.testing.assert_close(shortest, v.norm(dim=1) / x.norm(dim=1))
    # any other shift with this effect: a constant more in the scores, or rows moved across x
    aside = some(4, n, d, seed=seed + 3)
    aside = aside - torch.einsum("bnd,bd->bn", aside, x)[..., None] * (x / x.square().sum(1, keepdim=True))[:, None]
    other = dA + 0.1 * (x / x.square().sum(1, keepdim=True))[:, None] + 0.1 * aside
    torch.testing.assert_close(distribution(A + other, x), distribution(A, x + dx), atol=1e-11, rtol=0)
    assert (torch.linalg.matrix_norm(other, 2) >= shortest).all()


def test_data_cannot_do_it_at_zero():
    with pytest.raises(InterpError, match="after the first step"):
        equivalent_data_shift(some(2, 3, 4), torch.zeros(2, 4).double(), some(2, 4))


def test_a_shift_is_a_change_of_target():
    tasks, moved = prompts(), prompts().w + some(40, 5)
    before, after = distribution(tasks.X, tasks.w), distribution(tasks.X, moved)
    target = shifted_target(before, after, tasks.y)
    torch.testing.assert_close(before - target, after - tasks.y)
    assert (target - tasks.y).norm(dim=1).max() <= (weight_constant(tasks.X) * (moved - tasks.w).norm(dim=1)).max()


def test_the_first_step_is_a_layer_of_linear_attention():
    tasks = prompts()
    layer = gd(1, 7.0).weights(tasks.X, tasks.y - 1 / 12)
    torch.testing.assert_close(softmax_gd(1, 7.0).weights(tasks.X, tasks.y), layer, atol=1e-14, rtol=0)


def test_descent_by_autograd():
    tasks, x = prompts(), torch.zeros(40, 5, dtype=torch.float64)
    for _ in range(4):
        x = x.detach().requires_grad_()
        x = x - 20.0 * torch.autograd.grad(softmax_loss(tasks.X, x, tasks.y).sum(), x)[0]
    found = softmax_gd(4, 20.0)
    torch.testing.assert_close(found.weights(tasks.X, tasks.y), x.detach())
    torch.testing.assert_close(found(tasks.X, tasks.y, tasks.xq), (tasks.xq * x.detach()).sum(1))


@pytest.mark.parametrize("radius", [0.5, 4.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_tuned_step_is_the_best(steps, radius):
    tasks = prompts(B=2000, radius=radius)

    def loss(eta):
        return float(softmax_loss(tasks.X, softmax_gd(steps, eta).weights(tasks.X, tasks.y), tasks.y).mean())

    best = tune_softmax_gd(tasks, steps)
    assert loss(best.eta) < 0.5 * loss(0.0)
    assert all(loss(best.eta) < loss(best.eta * factor) for factor in (0.2, 0.9, 0.99, 1.01, 1.1, 3.0))


def test_closeness_of_descent_to_itself_and_to_half_of_it():
    tasks = prompts(B=200)
    best = tune_softmax_gd(tasks)
    same, half = closeness(best, best, tasks), closeness(softmax_gd(1, best.eta / 2), best, tasks)
    for name in ("distribution_diff", "total_variation", "score_diff", "slope_diff"):
        assert same[name] == pytest.approx(0, abs=1e-12)
    assert (same["shift_cos"], same["slope_cos"]) == pytest.approx((1, 1))
    x = best.weights(tasks.X, tasks.y)
    f, f_half = distribution(tasks.X, x), distribution(tasks.X, x / 2)
    assert half["distribution_diff"] == pytest.approx(float((f - f_half).norm(dim=1).mean()))
    assert half["total_variation"] == pytest.approx(float((f - f_half).abs().sum(1).mean() / 2))
    assert half["score_diff"] == pytest.approx(float((tasks.xq * x / 2).sum(1).abs().mean()))
    assert half["slope_diff"] == pytest.approx(float(x.norm(dim=1).mean() / 2))
    assert half["slope_cos"] == pytest.approx(1)
    moved = (f - 1 / 12).norm(dim=1) / x.norm(dim=1)
    assert half["moved"] == pytest.approx(float(moved.mean()))
    share = moved / (torch.linalg.svdvals(tasks.X)[:, 0] / 2)
    assert half["of_tight_bound"] == pytest.approx(float(share.mean()))
    assert half["of_tight_bound_se"] == pytest.approx(float(share.std()) / 200**0.5)
    assert 0 < half["of_tight_bound"] < 1 < half["log10_paper_constant"]
    assert half.attrs["radius"] == 3.0


def test_a_model_that_is_not_linear_in_the_word():
    tasks = prompts(B=50)
    w = some(50, 5)

    def model(A, b, word):
        return (word * w).sum(1) + word.square().sum(1)

    found = closeness(model, softmax_gd(1, 9.0), tasks)
    scores = torch.einsum("bnd,bd->bn", tasks.X, w) + tasks.X.square().sum(2)
    x = softmax_gd(1, 9.0).weights(tasks.X, tasks.y)
    expected = (scores.softmax(1) - distribution(tasks.X, x)).norm(dim=1).mean()
    assert found["distribution_diff"] == pytest.approx(float(expected))
    assert found["slope_diff"] == pytest.approx(float((w + 2 * tasks.xq - x).norm(dim=1).mean()))


def test_one_distribution_a_prompt():
    tasks = prompts()
    with pytest.raises(InterpError, match="one target distribution"):
        softmax_gd(1, 1.0).weights(tasks.X, torch.stack([tasks.y, tasks.y], 2))
