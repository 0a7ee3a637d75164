"""The probe of regression models: constructed models whose answer is known, and who may be asked what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.icl.learners.optimal import lsa_optimal, tune_gd, tune_gdpp
from interp.icl.measures.copying import copying_score
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd, construct_gdpp
from interp.icl.tasks.function_classes import ReLUNetwork
from interp.icl.tasks.regression import make_regression
from interp.icl.tasks.shifts import corrupt_targets
from interp.probes import TaskProbe, available, resolve
from interp.probes.icl_gd import IclGd
from tests.models import shared, tokenizer
from tests.probes.schema import check_result

N, D = 8, 4
UNEVEN = torch.tensor([[1.0, 0.2, 0, 0], [0.2, 2, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]])
TASKS = make_regression(400, N, D, seed=3, dtype=torch.float64)


def regressor(**about) -> AttentionRegressor:
    return AttentionRegressor(RegressorConfig(d_in=D, n_ctx=N, **about)).double()


def measured(model: AttentionRegressor, probe: str | IclGd = "icl_gd", tasks=TASKS) -> xr.Dataset:
    return interp.probe(model, tasks, probe)["icl_gd"]


def test_one_constructed_layer_is_gradient_descent(tmp_path: Path) -> None:
    eta = tune_gd(TASKS).eta
    ds = measured(construct_gd(regressor(), eta))
    check_result(ds, tmp_path)
    assert ds["algorithm"].values.tolist() == ["gd"]
    for name, value in {"model_cos": 1, "preds_diff": 0, "spd": 0, "ilwd": 0, "loss_ratio": 1}.items():
        assert float(ds[name].sel(algorithm="gd")) == pytest.approx(value, abs=1e-10), name
    np.testing.assert_allclose(ds["A_eff"].sel(layer=0), eta / N * np.eye(D), atol=1e-12)
    assert float(ds["effective_eta"].sel(layer=0)) == pytest.approx(eta)
    for name in ("distance_to_identity", "x_leak", "y_leak"):
        assert float(ds[name].max()) == pytest.approx(0, abs=1e-12)
    assert float(ds["x_leak_se"]) == float(ds["y_leak_se"]) == 0
    assert float(ds["main"]) == pytest.approx(float(tune_gd(TASKS)(TASKS.X, TASKS.y, TASKS.xq).square().mean().sqrt()))
    first, second = IclGd().findings(ds)
    assert "Beside 1 step of gradient descent: loss" in first
    assert "(ratio 1.000 ± 0.000), cosine of the sensitivities 1.0000" in first
    assert f"by layer: {eta:.3g} (off the identity by 0.0%); the first layer's leak terms are 0.00% and 0.00%" in second


@pytest.mark.parametrize("recurrent", [True, False])
def test_constructed_layers_of_gdpp_are_closer_to_it_than_to_descent(recurrent: bool) -> None:
    best = tune_gdpp(TASKS, 2, shared=recurrent)
    model = construct_gdpp(regressor(n_layers=2, recurrent=recurrent), best.eta, best.gamma)
    ds = measured(model)
    assert float(ds["model_cos"].sel(algorithm="gd++")) == pytest.approx(1, abs=1e-10)
    assert float(ds["preds_diff"].sel(algorithm="gd++")) == pytest.approx(0, abs=1e-10)
    assert float(ds["model_cos"].sel(algorithm="gd")) < 0.999
    assert ds["layer"].values.tolist() == ([0] if recurrent else [0, 1])
    assert "A_optimal" not in ds
    assert len(IclGd().findings(ds)) == 3


def test_number_of_steps_can_be_chosen() -> None:
    ds = measured(construct_gd(regressor(n_layers=2), 3.0), IclGd(steps=1))
    assert ds["algorithm"].values.tolist() == ["gd"]
    assert ds.attrs["steps"] == 1


@pytest.mark.parametrize(
    ("law", "optimal"),
    [
        ({"half_width": 1.0, "noise": 0.3}, {"cov": 1 / 3, "noise_var": 0.09, "kurtosis": 1.8, "d": D}),
        ({"cov": UNEVEN}, {"cov": UNEVEN}),
        ({"x": "normal", "prior_cov": 2.0}, {"prior_cov": 2.0, "d": D}),
    ],
)  # fmt: skip
def test_best_layer_is_that_of_the_tasks_law(law: dict, optimal: dict) -> None:
    tasks = make_regression(400, N, D, dtype=torch.float64, **law)
    ds = measured(construct_gd(regressor(), 1.0), tasks=tasks)
    expected = lsa_optimal(N, **{"cov": 1.0, "prior_cov": 1.0, "noise_var": 0.0, **optimal}).matrix
    np.testing.assert_allclose(ds["A_optimal"], expected, rtol=1e-6)


def test_leak_terms_are_measured_with_their_spread_over_samples() -> None:
    model = regressor(init_std=0.5)
    samples = [make_regression(60, N, D, seed=seed, dtype=torch.float64) for seed in range(40)]
    found = [IclGd().measure(model, tasks) for tasks in samples]
    for name in ("main", "x_leak", "y_leak"):
        spread = np.std([float(ds[name]) for ds in found], ddof=1)
        told = np.sqrt(np.mean([float(ds[f"{name}_se"]) ** 2 for ds in found]))
        assert told == pytest.approx(spread, rel=0.35), name


@pytest.mark.parametrize(
    "tasks",
    [
        make_regression(400, N, D, teacher=ReLUNetwork(), dtype=torch.float64),
        make_regression(400, N, D, x="exponential", dtype=torch.float64),  # its mean is not zero
        corrupt_targets(TASKS, 2),
    ],
    ids=["not linear", "not centred", "corrupted"],
)
def test_there_is_no_best_layer_for_a_law_that_is_not_solved(tasks) -> None:
    assert "A_optimal" not in measured(construct_gd(regressor(), 1.0), tasks=tasks)


def test_a_layer_without_a_predictor_says_why() -> None:
    ds = measured(regressor(attention="softmax", n_heads=2))
    assert "A_eff" not in ds
    assert "linear attention" in ds.attrs["no_effective_predictor"]
    assert len(IclGd().findings(ds)) == 1


def test_copying_models_are_scored_and_take_a_step_less(tmp_path: Path) -> None:
    model = regressor(n_layers=2, layout="interleaved", attention=("softmax", "linear"), n_pos_enc=4, init_std=0.3)
    ds = measured(model)
    check_result(ds, tmp_path)
    assert ds.attrs["steps"] == 1
    scores = copying_score(model, TASKS)
    for name in scores.data_vars:
        np.testing.assert_array_equal(ds[f"copying_{name}"], scores[name])
    assert f"hold {float(scores['next_of_x']):.3g} of the y that follows" in IclGd().findings(ds)[-1]


def test_all_probes_are_those_that_can_read_what_is_given() -> None:
    assert "icl_gd" not in available()
    tasks = list(available("tasks"))
    assert "icl_gd" in tasks
    assert not set(tasks) & set(available())
    assert [p.name for p in resolve(None, "tasks")] == tasks
    assert list(interp.probe(construct_gd(regressor(), 1.0), TASKS)) == tasks
    text = interp.probe(interp.load(shared("llama"), tokenizer()), "w5 w6 w7")
    assert list(text) == list(available())


def test_progress_counts_probes() -> None:
    seen = []
    interp.probe(construct_gd(regressor(), 1.0), TASKS, progress=lambda done, of: seen.append((done, of)))
    probes = len(available("tasks"))
    assert seen == [(done, probes) for done in range(1, probes + 1)]


def test_refusals() -> None:
    lens, model = interp.load(shared("llama"), tokenizer()), construct_gd(regressor(), 1.0)
    here = r"icl_gd reads an interp\.icl\.AttentionRegressor .* measured by interp\.icl\.language\.$"
    for call, says in (
        (lambda: interp.probe(lens, "w5 w6", ["text_sinks", "icl_gd"]), here),
        (lambda: interp.probe(lens, TASKS, "icl_gd"), here),
        (lambda: IclGd().begin(None), here),
        (
            lambda: interp.probe(model, TASKS, "text_sinks"),
            f"text_sinks reads text, not regression tasks; those are read by {', '.join(available('tasks'))}",
        ),
        (lambda: interp.probe(model, "w5 w6"), "read by a Lens from interp.load, and this is AttentionRegressor"),
        (lambda: interp.probe(model, TASKS, tokens=3), r"of tasks take a part with tasks\[:n\]"),
        (lambda: interp.probe(model, TASKS, "icl_gf"), "did you mean 'icl_gd'"),
        (lambda: IclGd(steps=0), "1 step or more, not 0"),
        (lambda: interp.probe(model, TASKS, []), f"no probe was asked for; there are {', '.join(available('tasks'))}"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            call()
    assert issubclass(IclGd, TaskProbe)
