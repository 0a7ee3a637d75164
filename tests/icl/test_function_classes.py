"""Each function class against an evaluation by hand, one function at a time."""

import math

import pytest
import torch

from interp.errors import InterpError
from interp.icl.tasks.function_classes import DecisionTree, Quadratic, ReLUNetwork, Sines, SparseLinear
from interp.icl.tasks.regression import Draws, make_regression

TEACHERS = [SparseLinear(), Quadratic(), ReLUNetwork(), DecisionTree()]


@pytest.mark.parametrize("teacher", TEACHERS, ids=lambda teacher: type(teacher).__name__)
def test_one_function_labels_context_and_query(teacher):
    tasks = make_regression(50, 6, 8, x="normal", teacher=teacher, seed=2)
    assert tasks.w is None
    assert tasks.about["teacher"] == repr(teacher)
    function = teacher.draw(50, 8, Draws.of(4))
    x = torch.randn(50, 6, 8)
    together = function(x)
    assert together.shape == (50, 6)
    one_by_one = torch.stack([function(x[:, i : i + 1])[:, 0] for i in range(6)], dim=1)
    torch.testing.assert_close(together, one_by_one)


def test_sparse_linear_sees_three_coordinates():
    function = SparseLinear(3).draw(200, 10, Draws.of(0, torch.float64))
    w = function(torch.eye(10, dtype=torch.float64).expand(200, 10, 10))
    assert ((w != 0).sum(1) == 3).all()
    assert ((w != 0).float().mean(0) - 0.3).abs().max() < 0.15
    x = torch.randn(200, 4, 10, dtype=torch.float64)
    torch.testing.assert_close(function(x), torch.einsum("bmd,bd->bm", x, w))


def test_quadratic_scales_with_the_square():
    function = Quadratic().draw(20_000, 3, Draws.of(0, torch.float64))
    x = torch.randn(20_000, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(function(-2 * x), 4 * function(x))
    assert function(torch.ones(20_000, 1, 3, dtype=torch.float64)).var() == pytest.approx(1.0, rel=0.05)


def test_relu_network_is_piecewise_linear_and_of_unit_gain():
    d = 5
    function = ReLUNetwork(50).draw(20_000, d, Draws.of(0, torch.float64))
    x = torch.randn(20_000, 1, d, dtype=torch.float64)
    torch.testing.assert_close(function(3 * x), 3 * function(x))
    assert function(x).square().mean() == pytest.approx(d, rel=0.08)
    assert not torch.allclose(function(-x), -function(x))


def test_a_decision_tree_follows_one_path():
    teacher, d = DecisionTree(2), 3
    draws = Draws.of(9)
    tested, leaves = draws.integers(d, 40, 3), draws.normal(40, 4)  # what the teacher draws, in its order
    x = torch.randn(40, 5, d)
    found = teacher.draw(40, d, Draws.of(9))(x)
    for task in range(40):
        root, left, right = tested[task].tolist()
        for i in range(5):
            at = x[task, i]
            first = at[root] > 0
            leaf = 2 * int(first) + int(at[right if first else left] > 0)
            assert found[task, i] == leaves[task, leaf]


def test_sines():
    x = torch.linspace(-5, 5, 200, dtype=torch.float64).expand(3000, 200)[..., None]
    for amplitude in ((0.1, 0.5), (0.1, 5.0)):
        y = Sines(amplitude).draw(3000, 1, Draws.of(0, torch.float64))(x)
        quarter = x + math.pi / 2  # sin² + cos² of the same wave
        square = y.square() + Sines(amplitude).draw(3000, 1, Draws.of(0, torch.float64))(quarter).square()
        heights = square[:, 0].sqrt()
        torch.testing.assert_close(square, square[:, :1].expand_as(square))
        assert (heights.min(), heights.max()) == pytest.approx(amplitude, abs=0.01 * amplitude[1])


@pytest.mark.parametrize("shared_key", [False, True])
def test_amplitude_and_phase_are_one_number_only_with_a_shared_key(shared_key):
    function = Sines(shared_key=shared_key).draw(5000, 1, Draws.of(1, torch.float64))
    sine, cosine = (function(torch.full((5000, 1, 1), at, dtype=torch.float64))[:, 0] for at in (0.0, math.pi / 2))
    amplitude, phase = torch.hypot(sine, cosine), torch.atan2(sine, cosine)
    assert (phase.min(), phase.max()) == pytest.approx((0, math.pi), abs=0.01)
    if shared_key:
        torch.testing.assert_close(phase, math.pi * (amplitude - 0.1) / 0.4)
    else:
        assert abs(torch.corrcoef(torch.stack([phase, amplitude]))[0, 1]) < 0.05


def test_what_a_nonlinear_teacher_refuses():
    with pytest.raises(InterpError, match="one output"):
        make_regression(4, 3, 2, teacher=Quadratic(), d_y=2)
    with pytest.raises(InterpError, match="leave it out"):
        make_regression(4, 3, 2, teacher=Quadratic(), prior_cov=2.0)
    with pytest.raises(InterpError, match="choose 1 to 2"):
        make_regression(4, 3, 2, teacher=SparseLinear(3))
    with pytest.raises(InterpError, match="one input"):
        make_regression(4, 3, 2, teacher=Sines())
