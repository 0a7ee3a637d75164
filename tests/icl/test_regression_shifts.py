"""Shifted inputs: where they lie, and that the teacher still labels them."""

import pytest
import torch

from interp.errors import InterpError
from interp.icl.tasks.regression import make_regression
from interp.icl.tasks.shifts import (
    CopiedQuery,
    HalfSubspace,
    OrthogonalQuery,
    Quadrants,
    SkewedCovariance,
    UnitContext,
    corrupt_targets,
    out_of_distribution,
    rescale_labels,
)

SHIFTS = [
    SkewedCovariance(),
    HalfSubspace(),
    Quadrants(),
    Quadrants("opposite"),
    OrthogonalQuery(),
    CopiedQuery(),
    UnitContext(2.0),
]


def shifted(shift, B=500, N=5, d=8):
    return make_regression(B, N, d, x="normal", shift=shift, seed=3, dtype=torch.float64)


@pytest.mark.parametrize("shift", SHIFTS, ids=repr)
def test_labels_follow_the_shifted_inputs(shift):
    tasks = shifted(shift)
    torch.testing.assert_close(tasks.y, torch.einsum("bnd,bd->bn", tasks.X, tasks.w))
    torch.testing.assert_close(tasks.yq, torch.einsum("bd,bd->b", tasks.xq, tasks.w))
    both = torch.cat([tasks.X, tasks.xq[:, None]], 1)
    assert tasks.about["x_variance"] == pytest.approx(float(both.var(correction=0)))
    assert tasks.about["shift"] == repr(shift)


def test_skewed_covariance_has_the_spectrum():
    tasks = shifted(SkewedCovariance(), B=100_000, d=4)
    deviations = torch.linalg.eigvalsh(tasks.X.flatten(0, 1).T.cov()).flip(0).sqrt()
    expected = 1 / torch.arange(1, 5, dtype=torch.float64)
    torch.testing.assert_close(deviations / deviations[0], expected, rtol=0.01, atol=0)
    assert tasks.X.square().sum(-1).mean() == pytest.approx(4, rel=0.01)


def test_half_subspace_has_half_the_rank_and_all_the_variance():
    tasks = shifted(HalfSubspace(), B=20_000)
    inputs = torch.cat([tasks.X.flatten(0, 1), tasks.xq])
    assert torch.linalg.matrix_rank(inputs) == 4
    assert inputs.square().sum(-1).mean() == pytest.approx(8, rel=0.01)


def test_quadrants():
    anywhere, opposite = shifted(Quadrants()), shifted(Quadrants("opposite"))
    for tasks in (anywhere, opposite):
        assert (tasks.X.sign() == tasks.X[:, :1].sign()).all()
    assert (opposite.xq.sign() == -opposite.X[:, 0].sign()).all()
    assert (anywhere.xq.sign() == anywhere.X[:, 0].sign()).double().mean() == pytest.approx(0.5, abs=0.03)
    assert opposite.X[..., 0].sign().mean() == pytest.approx(0, abs=0.15)  # another quadrant for each task


def test_an_orthogonal_query_keeps_its_length():
    tasks = shifted(OrthogonalQuery())
    assert torch.einsum("bnd,bd->bn", tasks.X, tasks.xq).abs().max() < 1e-12
    before = make_regression(500, 5, 8, x="normal", seed=3, dtype=torch.float64)
    torch.testing.assert_close(tasks.xq.norm(dim=1), before.xq.norm(dim=1))
    with pytest.raises(InterpError, match="use N < 8"):
        shifted(OrthogonalQuery(), N=8)


def test_a_copied_query_is_one_of_the_context():
    tasks = shifted(CopiedQuery())
    same = tasks.X.eq(tasks.xq[:, None]).all(-1)
    assert (same.sum(1) == 1).all()
    assert (same.double().mean(0) - 0.2).abs().max() < 0.06


@pytest.mark.parametrize("family", ["normal", "exponential", "laplace"])
def test_families_of_code_and_paper(family):
    code = out_of_distribution(1000, 10, 10, family, 1.5, "code", dtype=torch.float64)
    torch.testing.assert_close(code.X.norm(dim=(1, 2)), torch.full((1000,), 1.5, dtype=torch.float64))
    assert (code.about["variant"], code.about["alpha"]) == ("code", 1.5)
    paper = out_of_distribution(1000, 10, 10, family, 1.5, "paper", dtype=torch.float64)
    unit = make_regression(1000, 10, 10, x=family, dtype=torch.float64)
    torch.testing.assert_close(paper.X, 1.5 * unit.X)
    # the query is divided by the context's norm, not by its own
    torch.testing.assert_close(code.xq * (unit.X.norm(dim=(1, 2)) / 1.5)[:, None], unit.xq)


def test_the_uniform_family_is_half_as_wide_in_the_code():
    assert out_of_distribution(9, 3, 2, "uniform", 1.5).about["half_width"] == 0.75
    assert out_of_distribution(9, 3, 2, "uniform", 1.5, "paper").about["half_width"] == 1.5
    with pytest.raises(InterpError, match="'code' or 'paper'"):
        out_of_distribution(9, 3, 2, "uniform", 1.5, "figure")


@pytest.mark.parametrize("d_y", [1, 2])
@pytest.mark.parametrize("k", [0, 3, 6])
def test_corrupted_targets(k, d_y):
    tasks = make_regression(5000, 6, 3, d_y=d_y)
    changed = corrupt_targets(tasks, k)
    differs = (changed.y != tasks.y).reshape(5000, 6, d_y)
    assert (differs.all(-1).sum(1) == k).all()
    assert (differs.any(-1).sum(1) == k).all()
    assert (differs.all(-1).double().mean(0) - k / 6).abs().max() < 0.03
    if k:
        assert changed.y.reshape(5000, 6, d_y)[differs].std() == pytest.approx(1.0, rel=0.03)
    with pytest.raises(InterpError, match="0 to 6"):
        corrupt_targets(tasks, 7)


def test_rescaled_labels_keep_the_task():
    tasks = make_regression(2000, 6, 4, x="normal", noise=1.0, dtype=torch.float64)
    scaled = rescale_labels(tasks)
    assert scaled.y.std() == pytest.approx(2.0)
    torch.testing.assert_close(scaled.yq, torch.einsum("bd,bd->b", scaled.xq, scaled.w))
    torch.testing.assert_close(scaled.y / tasks.y, torch.full_like(tasks.y, scaled.about["label_factor"]))
