"""Best-matching steps: an algorithm beside itself, beside a slower one, and layers that are read out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import InterpError
from interp.icl.learners.algorithms import gd, knn, newton
from interp.icl.measures import _functions
from interp.icl.measures.alignment import align
from interp.icl.measures.similarity import best_matching_steps
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd
from interp.icl.tasks.regression import make_regression
from interp.results.storage import load, save

F64 = torch.float64


def tasks_of(B=60, N=8, d=4, seed=0, **about):
    return make_regression(B, N, d, seed=seed, **{"x": "normal", "dtype": F64, **about})


def descent(steps: int) -> gd:
    return gd(steps, 0.04, step="sum")


@pytest.mark.parametrize("d_y", [1, 2])
def test_every_step_resembles_itself_most(d_y: int) -> None:
    steps = range(1, 7)
    ds = best_matching_steps({k: newton(k) for k in steps}, newton, tasks_of(d_y=d_y), steps)
    assert ds["best_step"].values.tolist() == [list(steps)] * 3
    diagonal = np.diagonal(ds["similarity"].values, axis1=1, axis2=2)
    np.testing.assert_allclose(diagonal, 1, atol=1e-12)
    np.testing.assert_allclose(ds["layer_mse"], ds["step_mse"])


def test_each_cell_is_what_align_finds() -> None:
    tasks, layers = tasks_of(), {0: knn(2, "distance"), 5: descent(3)}
    ds = best_matching_steps(layers, newton, tasks, [2, 4])
    for layer, model in layers.items():
        for step in (2, 4):
            cell, found = ds.sel(layer=layer, step=step), align(model, newton(step), tasks, parts="prefixes")
            for measure, name in (("errors", "sim_e"), ("predictions", "sim_p"), ("weights", "sim_w")):
                assert float(cell["similarity"].sel(measure=measure)) == pytest.approx(float(found[name]))
                assert float(cell["similarity_se"].sel(measure=measure)) == pytest.approx(float(found[f"{name}_se"]))


def test_gradient_descent_needs_ever_more_steps_for_one_of_newton() -> None:
    doubling = [2**k for k in range(9)]
    ds = best_matching_steps({k: newton(k) for k in range(1, 7)}, descent, tasks_of(), doubling)
    best = ds["best_step"].sel(measure="weights").values
    assert (np.diff(best) >= 0).all()
    assert best[-1] >= 8 * best[0]


def test_layers_of_a_constructed_model_take_one_step_each() -> None:
    """Their read-out is the y slot, whose sign and scale a linear fit recovers; x is noise to it."""
    tasks = tasks_of(400)
    model = construct_gd(AttentionRegressor(RegressorConfig(d_in=4, n_layers=4, n_ctx=8)).double(), 0.04, step="sum")
    ds = best_matching_steps(model, descent, tasks, range(1, 8))
    for measure in ("predictions", "weights"):
        assert ds["best_step"].sel(measure=measure).values.tolist() == [1, 2, 3, 4]
    exact = best_matching_steps({k: descent(k + 1) for k in range(4)}, descent, tasks[200:], range(1, 8))
    np.testing.assert_array_less(ds["layer_mse"], 1.02 * exact["layer_mse"])
    assert (np.diff(ds["layer_mse"]) < 0).all()


def test_read_outs_are_fitted_to_tasks_that_are_not_compared_on() -> None:
    """The first half of the tasks by default; and the fit is least squares over all prefixes."""
    cfg = RegressorConfig(d_in=6, n_ctx=8, init_std=0.5)
    model, tasks = AttentionRegressor(cfg).double(), tasks_of(40, d=6)
    halves = best_matching_steps(model, newton, tasks, [1])
    given = best_matching_steps(model, newton, tasks[20:], [1], fit_on=tasks[:20])
    np.testing.assert_allclose(halves["similarity"], given["similarity"])
    assert halves.attrs["tasks"] == 20
    fitted = best_matching_steps(model, newton, tasks[:20], [1], fit_on=tasks[:20])
    labels = torch.cat([tasks.y[:20, 1:], tasks.yq[:20, None]], 1)
    states = []
    for t in range(1, 9):
        _, _, xq, _ = _functions.prefix(tasks[:20], t)
        _, cache = model.run_with_cache(tasks.X[:20, :t], tasks.y[:20, :t], xq)
        states.append(cache["resid_post", 0][:, -1])
    rows = torch.stack(states, 1).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=F64)], 1).numpy()
    solution = np.linalg.lstsq(rows, labels.flatten().numpy(), rcond=None)[0]
    least = np.mean((rows @ solution - labels.flatten().numpy()) ** 2)
    assert float(fitted["layer_mse"].sel(layer=0)) == pytest.approx(least, rel=1e-6)


def test_parts_of_the_tasks_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tasks = AttentionRegressor(RegressorConfig(d_in=4, n_layers=2, n_ctx=8, init_std=0.5)).double(), tasks_of(31)
    whole = best_matching_steps(model, newton, tasks, [1, 3])
    monkeypatch.setattr(_functions, "NUMBERS_AT_ONCE", 2000)
    parts = best_matching_steps(model, newton, tasks, [1, 3])
    np.testing.assert_allclose(parts["similarity"], whole["similarity"], rtol=1e-8)
    np.testing.assert_allclose(parts["layer_mse_se"], whole["layer_mse_se"], rtol=1e-8)


def test_what_says_nothing_resembles_nothing(tmp_path) -> None:
    ds = best_matching_steps({0: lambda X, y, xq: 0 * xq[:, 0]}, newton, tasks_of(), [1, 2])
    assert ds["best_step"].sel(measure=["predictions", "weights"]).isnull().all()
    assert ds["best_step"].sel(measure="errors").notnull().all()
    assert load(save(ds, tmp_path / "steps.nc")).identical(ds)
    for name, variable in ds.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["description"], name


def test_refusals() -> None:
    tasks = tasks_of()
    for call, says in (
        (
            lambda: best_matching_steps({0: newton(1)}, newton, tasks, [2, 1]),
            r"increasing numbers of steps, not \[2, 1\]",
        ),
        (lambda: best_matching_steps({0: newton(1)}, newton, tasks, []), "increasing numbers"),
        (lambda: best_matching_steps({0: newton(1)}, newton(1).name, tasks, [1]), "cannot be called"),
        (lambda: best_matching_steps({0: newton}, newton, tasks, [1]), "newton'> cannot be"),
        (lambda: best_matching_steps({0: newton(1)}, newton, tasks, [1], fit_on=tasks), "compared as they are"),
    ):
        with pytest.raises(InterpError, match=says):
            call()
