"""What the figures of regression models show: the numbers of their results, in their places."""

from __future__ import annotations

import numpy as np
import pytest

from interp import figures
from interp.figures._need import FigureError
from tests.icl.example_measurements import example_measurements


@pytest.fixture(scope="module")
def results():
    return example_measurements(layers=4, width=5, tokens=24)


def test_alignment_draws_each_measure_of_each_algorithm(results):
    ds = results["align"]
    fig = figures.icl_alignment(ds)
    drawn = {(trace.name, trace.xaxis): trace for trace in fig.data if trace.name}
    for axis, measure in (("x", "loss_algorithm"), ("x2", "preds_diff"), ("x3", "model_diff"), ("x4", "model_cos")):
        expected = ds[measure].sel(algorithm="gd")
        np.testing.assert_allclose(drawn["gd", axis].y, expected, rtol=1e-6)
    np.testing.assert_allclose(drawn["the model", "x"].y, ds["loss_model"].isel(algorithm=0), rtol=1e-6)
    assert drawn["gd", "x"].line.dash == "dash"
    assert sum(trace.showlegend is True for trace in fig.data) == 3
    low, high = (t for t in fig.data if t.xaxis == "x4" and t.line.width == 0 and t.legendgroup == "gd")
    np.testing.assert_allclose(high.y - low.y, 4 * ds["model_cos_se"].sel(algorithm="gd"), rtol=1e-4)


def test_alignment_with_one_algorithm_needs_no_dimension_for_it(results):
    ds = results["align"].isel(algorithm=0, drop=True).assign_attrs(algorithm="gd(steps=1)")
    assert "gd(steps=1)" in {trace.name for trace in figures.icl_alignment(ds).data}
    with pytest.raises(FigureError, match="which has step"):
        figures.icl_alignment(ds.isel(step=0, drop=True))


def test_effective_predictor_stands_beside_the_best_or_the_nearest_step(results):
    several = results["icl_gd"]
    fig = figures.icl_effective_predictor(several, layer=2)
    A = several["A_eff"].sel(layer=2).values
    np.testing.assert_array_equal(fig.data[0].z, A)
    np.testing.assert_allclose(fig.data[1].z, np.diagonal(A).mean() * np.eye(5), rtol=1e-6)
    np.testing.assert_allclose(fig.data[2].z, fig.data[0].z - fig.data[1].z)
    one = example_measurements(layers=1, width=5)["icl_gd"]
    np.testing.assert_array_equal(figures.icl_effective_predictor(one).data[1].z, one["A_optimal"].values)
    with pytest.raises(FigureError, match="layer 4 is not in this result, which has 0 to 3"):
        figures.icl_effective_predictor(several, layer=4)


def test_rings_mark_the_steps_that_layers_resemble_most(results):
    ds = results["best_matching_steps"]
    fig = figures.icl_matching_steps(ds)
    heat, rings = fig.data[2], fig.data[3]
    assert len(rings.x) == 4
    for x, y, text in zip(rings.x, rings.y, rings.text, strict=True):
        row = list(heat.y).index(y)
        assert heat.z[row].argmax() == x
        assert int(text) == ds["step"].values[x]
    assert len(fig.data[1].x) == 3, "a layer that resembles nothing has no ring"


def test_copying_is_drawn_once_or_over_training(results):
    ds = results["copying_score"]
    bars = [trace for trace in figures.icl_copying(ds).data if trace.type == "bar"]
    assert [float(bar.y[0]) for bar in bars] == pytest.approx([3.1, 1.0, 0.005])
    assert [float(bar.error_y.array[0]) for bar in bars] == pytest.approx([0.02] * 3)
    over = ds.expand_dims(step=[0, 100]).copy(deep=True)
    over["sensitivity"][0] = 0
    fig = figures.icl_copying(over)
    np.testing.assert_array_equal(fig.data[0].z, ds["sensitivity"].values)
    assert [trace.x.tolist() for trace in fig.data if trace.type == "scatter"] == [[0, 100]] * 3
