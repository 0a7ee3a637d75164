"""Closed forms against a million sampled tasks, and the printed numbers."""

import dataclasses

import pytest
import torch

from interp.errors import InterpError
from interp.icl.learners.algorithms import gd
from interp.icl.learners.gd_losses import GDLaw
from interp.icl.tasks.regression import make_regression
from interp.icl.tasks.shifts import corrupt_targets

LAW = GDLaw()
NORMAL = GDLaw(x_variance=1.0, kurtosis=3.0)
WIDE = GDLaw(x_variance=1 / 3)


def test_printed_numbers():
    assert LAW.crowding == pytest.approx(1.98, abs=1e-12)
    assert LAW.best_eta == pytest.approx(6.0606, abs=5e-5)
    assert (LAW.best_loss, LAW.zero_loss) == pytest.approx((0.20623, 0.41667), abs=5e-6)
    assert (WIDE.best_eta, WIDE.best_loss) == pytest.approx((1.5152, 0.82492), abs=5e-5)
    assert (NORMAL.best_eta, NORMAL.best_loss) == pytest.approx((0.47619, 2.6190), abs=5e-5)
    scaled = [LAW.loss_at_input_scale(alpha) for alpha in (0.5, 1, 1.25, 1.5, 2)]
    assert scaled == pytest.approx([0.08115, 0.20623, 0.42627, 1.2038, 8.4007], abs=5e-5)
    assert [LAW.loss_at_context(N) for N in (5, 20, 40)] == pytest.approx([0.3104, 0.1542, 0.1281], abs=5e-5)
    corrupted = [LAW.loss_with_corrupted_targets(k) for k in (0, 2, 4, 6, 8)]
    assert corrupted == pytest.approx([0.2062, 0.2568, 0.3159, 0.3835, 0.4596], abs=5e-5)
    assert LAW.loss_at_teacher_scale(3.0) == pytest.approx(9 * LAW.best_loss)
    assert LAW.loss_with_corrupted_targets(10) > LAW.zero_loss


@pytest.mark.parametrize("noise_var", [0.0, 0.2])
def test_the_best_step_is_the_minimum(noise_var):
    law = dataclasses.replace(LAW, noise_var=noise_var)
    eta = torch.tensor(law.best_eta, dtype=torch.float64, requires_grad=True)
    loss = law.loss(eta)
    assert loss.item() == pytest.approx(law.best_loss)
    loss.backward()
    assert abs(eta.grad) < 1e-12
    assert law.loss(0.0) == pytest.approx(law.zero_loss)


def chunks(count, N=10, **settings):
    """About `count` tasks a few at a time: the arrays of a million would not fit the cache."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count // 25_000):
        yield make_regression(25_000, N, 10, seed=generator, **settings)


def mean_loss(prompts, eta):
    errors = [(gd(1, eta)(X, y, xq) - yq).square().double().mean() / 2 for X, y, xq, yq in prompts]
    return float(torch.stack(errors).mean())


def test_losses_of_a_million_tasks():
    prompts = [mean_loss([(t.X, t.y, t.xq, t.yq)], eta) for t in chunks(1_000_000) for eta in (LAW.best_eta, 0.0)]
    best, zero = (sum(prompts[i::2]) / 40 for i in (0, 1))
    assert (best, zero) == pytest.approx((LAW.best_loss, LAW.zero_loss), rel=0.01)


CHANGES = {
    "short": (lambda t: (t.X[:, :5], t.y[:, :5], t.xq, t.yq), LAW.loss_at_context(5)),
    "half": (lambda t: (t.X / 2, t.y / 2, t.xq / 2, t.yq / 2), LAW.loss_at_input_scale(0.5)),
    "larger": (lambda t: (1.5 * t.X, 1.5 * t.y, 1.5 * t.xq, 1.5 * t.yq), LAW.loss_at_input_scale(1.5)),
    "two corrupted": (lambda t: (t.X, corrupt_targets(t, 2).y, t.xq, t.yq), LAW.loss_with_corrupted_targets(2)),
    "eight corrupted": (lambda t: (t.X, corrupt_targets(t, 8).y, t.xq, t.yq), LAW.loss_with_corrupted_targets(8)),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_changed_prompts(change, expected):
    assert mean_loss(map(change, chunks(250_000)), LAW.best_eta) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("law", "settings"),
    [
        (NORMAL, {"x": "normal"}),
        (dataclasses.replace(LAW, noise_var=0.25), {"noise": 0.5}),
        (GDLaw(x_variance=2.0, kurtosis=6.0), {"x": "laplace"}),
    ],
    ids=["normal", "noisy", "laplace"],
)
def test_other_laws(law, settings):
    prompts = ((t.X, t.y, t.xq, t.yq) for t in chunks(200_000, **settings))
    assert mean_loss(prompts, law.best_eta) == pytest.approx(law.best_loss, rel=0.01)


@pytest.mark.parametrize("N", [20, 40])
def test_longer_contexts(N):
    prompts = ((t.X, t.y, t.xq, t.yq) for t in chunks(100_000, N))
    assert mean_loss(prompts, LAW.best_eta) == pytest.approx(LAW.loss_at_context(N), rel=0.01)


def test_noise_does_not_scale_with_the_teacher():
    law = dataclasses.replace(LAW, noise_var=0.25)
    prompts = ((t.X, t.y, t.xq, t.yq) for t in chunks(200_000, noise=0.5, prior_cov=4.0))
    assert mean_loss(prompts, law.best_eta) == pytest.approx(law.loss_at_teacher_scale(2.0), rel=0.01)


def test_more_corrupted_labels_than_there_are():
    with pytest.raises(InterpError, match="0 to 10"):
        LAW.loss_with_corrupted_targets(11)


@pytest.mark.parametrize("wrong", [{"N": 0}, {"d": 0}, {"x_variance": -1.0}, {"noise_var": -0.1}, {"kurtosis": 0.9}])
def test_laws_that_cannot_be(wrong):
    with pytest.raises(InterpError, match="is no law"):
        GDLaw(**wrong)
    assert LAW.loss_at_input_scale(0.0) == 0
