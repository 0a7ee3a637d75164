"""`align` against plain loops over tasks, against repeated sampling, and where a measure is not defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import InterpError
from interp.icl.learners.algorithms import gd, knn, ols, ridge
from interp.icl.measures import _functions
from interp.icl.measures.alignment import MEASURES, PARTLY_DEFINED, align
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd
from interp.icl.tasks.regression import make_regression
from interp.results.storage import load, save

F64 = torch.float64


def tasks_of(B=40, N=6, d=3, seed=0, **about):
    return make_regression(B, N, d, seed=seed, **{"dtype": F64, "x": "normal", "noise": 0.3, **about})


def bent(X, y, xq):
    """A predictor that is linear neither in the query nor in the labels."""
    seen = torch.einsum("bnd,bd->bn", X, xq)
    return torch.tanh(torch.einsum("bn,bn->b", seen, y)) + 0.1 * seen.square().sum(1)


def values(ds) -> dict[str, float]:
    return {str(name): float(v) for name, v in ds.data_vars.items()}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("d_y", [1, 3])
def test_a_constructed_model_is_the_algorithm(layers: int, d_y: int) -> None:
    tasks = tasks_of(200, 10, 5, d_y=d_y)
    generator = torch.Generator().manual_seed(1)
    w0 = torch.randn(d_y, 5, dtype=F64, generator=generator)
    cfg = RegressorConfig(d_in=5, d_out=d_y, n_layers=layers, n_ctx=10)
    model = construct_gd(AttentionRegressor(cfg).double(), 0.4, w0)
    found = values(align(model, gd(layers, 0.4, w0=w0), tasks, parts=("query", "function")))
    for name in ("preds_diff", "model_diff", "spd", "ilwd", "relative_preds_diff"):
        assert abs(found[name]) < 1e-10, name
    for name in ("model_cos", "norm_ratio", "loss_ratio", "rescale", "fit_r2"):
        assert found[name] == pytest.approx(1, abs=1e-10), name
    assert found["loss_model"] > 0.01


def test_a_constructed_model_takes_the_same_steps_after_every_prefix() -> None:
    tasks = tasks_of(200, 10, 5)
    model = construct_gd(AttentionRegressor(RegressorConfig(d_in=5, n_ctx=10)).double(), 0.4)
    found = values(align(model, gd(1, 0.04, step="sum"), tasks, parts="prefixes"))
    assert [found[name] for name in ("sim_e", "sim_p", "sim_w")] == pytest.approx([1, 1, 1], abs=1e-10)
    other = values(align(model, ols(), tasks, parts="prefixes"))
    assert max(other[name] for name in ("sim_e", "sim_p", "sim_w")) < 0.99


def numeric_gradient(model, X, y, xq, step=1e-6) -> np.ndarray:
    """Central differences for one task `[x]`."""
    shifts = step * torch.eye(xq.shape[1], dtype=F64)
    return np.array([float(model(X, y, xq + s) - model(X, y, xq - s)) / (2 * step) for s in shifts])


def test_measures_at_the_query_are_what_a_loop_over_tasks_finds() -> None:
    tasks, algorithm = tasks_of(25), ridge(0.5)
    rows = []
    for i in range(len(tasks)):
        one = tasks[i : i + 1]
        p, q = (float(m(one.X, one.y, one.xq)) for m in (bent, algorithm))
        g, h = (numeric_gradient(m, one.X, one.y, one.xq) for m in (bent, algorithm))
        rows.append((p, q, float(one.yq), g, h))
    p, q, y, g, h = (np.array(column) for column in zip(*rows, strict=True))
    size, size_h = np.linalg.norm(g, axis=1), np.linalg.norm(h, axis=1)
    rescale = (g * h).sum() / (h * h).sum()
    expected = {
        "loss_model": 0.5 * np.mean((p - y) ** 2),
        "loss_algorithm": 0.5 * np.mean((q - y) ** 2),
        "loss_ratio": np.mean((p - y) ** 2) / np.mean((q - y) ** 2),
        "preds_diff": np.mean(np.abs(p - q)),
        "relative_preds_diff": np.mean(np.abs(p - q)) / np.sqrt(np.mean(q**2)),
        "model_diff": np.mean(np.linalg.norm(g - h, axis=1)),
        "model_cos": np.mean((g * h).sum(1) / size / size_h),
        "norm_ratio": np.mean(size / size_h),
        "grad_norm_model": size.mean(),
        "grad_norm_algorithm": size_h.mean(),
        "rescale": rescale,
        "preds_diff_rescaled": np.mean(np.abs(p - rescale * q)),
        "model_diff_rescaled": np.mean(np.linalg.norm(g - rescale * h, axis=1)),
    }
    found = values(align(bent, algorithm, tasks, parts="query"))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["preds_diff_se"] == pytest.approx(np.std(np.abs(p - q), ddof=1) / 5)


def test_measures_at_fresh_queries_are_what_a_loop_over_tasks_finds() -> None:
    tasks, algorithm = tasks_of(12), knn(2, "distance")
    queries = torch.randn(12, 15, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    spd, ilwd, left, whole = [], [], [], []
    for X, y, x in zip(tasks.X, tasks.y, queries, strict=True):
        f, h = (np.array([float(m(X[None], y[None], each[None])) for each in x]) for m in (bent, algorithm))
        w, v = (np.linalg.lstsq(x.numpy(), said, rcond=None)[0] for said in (f, h))
        spd.append(np.mean((f - h) ** 2))
        ilwd.append(np.sum((w - v) ** 2))
        left.append(np.sum((f - x.numpy() @ w) ** 2))
        whole.append(np.sum(f**2))
    found = values(align(bent, algorithm, tasks, parts="function", queries=queries))
    assert found["spd"] == pytest.approx(np.mean(spd))
    assert found["ilwd"] == pytest.approx(np.mean(ilwd))
    assert found["fit_r2"] == pytest.approx(1 - np.sum(left) / np.sum(whole))
    assert found["fit_r2"] < 0.99
    assert found["spd_se"] == pytest.approx(np.std(spd, ddof=1) / np.sqrt(12))


def test_a_linear_algorithm_is_asked_for_its_own_weights() -> None:
    class Doubled(gd):
        def weights(self, X, y):
            return 2 * super().weights(X, y)

        def __call__(self, X, y, xq):
            raise AssertionError("its weights say everything")

    tasks = tasks_of()
    own, fitted = (
        values(align(model, ridge(0.5), tasks, parts="function"))
        for model in (Doubled(2, 0.3), lambda X, y, xq: 2 * gd(2, 0.3)(X, y, xq))
    )
    assert own == pytest.approx(fitted, abs=1e-12)


def test_measures_over_prefixes_are_what_a_loop_over_tasks_finds() -> None:
    tasks, algorithm = tasks_of(10, 4), gd(2, 0.3)
    queries = torch.randn(10, 12, 3, dtype=F64, generator=torch.Generator().manual_seed(4))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    sims = []
    for i in range(10):
        X, y, ends = tasks.X[i], tasks.y[i], []
        inputs, labels = torch.cat([X, tasks.xq[i : i + 1]]), torch.cat([y, tasks.yq[i : i + 1]])
        errors, said, weights = ([], []), ([], []), []
        for t in range(1, 5):
            fits = []
            x = torch.cat([queries[i], inputs[t : t + 1]])
            for m, model in enumerate((bent, algorithm)):
                at = np.array([float(model(X[None, :t], y[None, :t], each[None])) for each in x])
                fits.append(np.linalg.lstsq(x.numpy(), at, rcond=None)[0])
                said[m].append(at[-1])
                errors[m].append(at[-1] - float(labels[t]))
            weights.append(cosine(*fits))
        ends = [cosine(*map(np.array, errors)), cosine(*map(np.array, said)), np.mean(weights)]
        sims.append(ends)
    found = values(align(bent, algorithm, tasks, parts="prefixes", queries=queries))
    assert [found[name] for name in ("sim_e", "sim_p", "sim_w")] == pytest.approx(np.mean(sims, 0).tolist())


def test_vector_targets_count_all_their_components() -> None:
    tasks, model, algorithm = tasks_of(30, d_y=2), ridge(2.0), ols()
    found = values(align(model.__call__, algorithm, tasks))
    w, v = model.weights(tasks.X, tasks.y), algorithm.weights(tasks.X, tasks.y)
    said, said_a = model(tasks.X, tasks.y, tasks.xq), algorithm(tasks.X, tasks.y, tasks.xq)
    assert w.shape == (30, 2, 3)
    assert found["preds_diff"] == pytest.approx(float((said - said_a).norm(dim=1).mean()))
    assert found["model_diff"] == pytest.approx(float((w - v).flatten(1).norm(dim=1).mean()))
    assert found["ilwd"] == pytest.approx(float((w - v).square().sum((1, 2)).mean()))
    assert found["loss_model"] == pytest.approx(float((said - tasks.yq).square().sum(1).mean() / 2))
    assert found["model_cos"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(w.flatten(1), v.flatten(1)).mean())
    )


def test_a_model_that_says_nothing_has_no_cosine_but_norms() -> None:
    tasks = tasks_of()
    found = values(align(lambda X, y, xq: 0 * xq.sum(1), gd(1, 0.3), tasks))
    for name in ("model_cos", "sim_p", "sim_w"):
        assert np.isnan(found[name]), name
        assert found[f"{name}_tasks"] == 0
    assert found["grad_norm_model"] == 0
    assert found["norm_ratio"] == 0
    assert found["model_diff"] == pytest.approx(found["grad_norm_algorithm"])
    assert np.isnan(found["fit_r2"])
    assert np.isfinite(found["sim_e"])


def test_tasks_without_a_cosine_are_counted_and_left_out() -> None:
    tasks = tasks_of()
    silent = (tasks.y[:, 0] > 0).to(F64)
    found = values(align(lambda X, y, xq: (y[:, 0] <= 0) * gd(1, 0.3)(X, y, xq), gd(1, 0.7), tasks, parts="query"))
    assert 0 < silent.sum() < len(tasks)
    assert found["model_cos"] == pytest.approx(1)
    assert found["model_cos_tasks"] == len(tasks) - int(silent.sum())
    assert found["norm_ratio_tasks"] == len(tasks)
    assert found["norm_ratio"] == pytest.approx((1 - float(silent.mean())) * 3 / 7)


def test_a_tiny_model_keeps_its_direction() -> None:
    found = values(align(lambda X, y, xq: 1e-7 * gd(1, 0.3)(X, y, xq), gd(1, 0.3), tasks_of(), parts="query"))
    assert found["model_cos"] == pytest.approx(1, abs=1e-10)
    assert found["grad_norm_model"] < 1e-6


def test_predictions_without_a_gradient_have_no_sensitivity() -> None:
    found = values(align(lambda X, y, xq: y.mean(1), gd(1, 0.3), tasks_of(), parts="query"))
    assert np.isnan(found["grad_norm_model"])
    assert found["model_cos_tasks"] == 0
    assert np.isfinite(found["preds_diff"])


def test_predictions_that_overflow_are_not_left_out_of_a_mean() -> None:
    found = values(align(lambda X, y, xq: xq[:, 0] / (y[:, 0] > 0), gd(1, 0.3), tasks_of(), parts="query"))
    assert not np.isfinite(found["preds_diff"])
    assert not np.isfinite(found["loss_model"])


def test_callers_without_gradients_and_trainable_models_are_served() -> None:
    model = AttentionRegressor(RegressorConfig(d_in=3, n_ctx=6, init_std=0.3)).double()
    with torch.no_grad():
        quiet = values(align(model, gd(1, 0.3), tasks_of(), parts="query"))
    assert quiet == values(align(model, gd(1, 0.3), tasks_of(), parts="query"))
    assert all(weight.grad is None for weight in model.parameters())


def test_dtype_is_that_of_the_tasks() -> None:
    seen = set()

    def model(X, y, xq):
        seen.update((X.dtype, y.dtype, xq.dtype))
        return torch.einsum("bnd,bd,bn->b", X, xq, y) * 0.05

    exact = values(align(model, gd(1, 0.05, step="sum"), tasks_of()))
    assert seen == {F64}
    rounded = values(align(model, gd(1, 0.05, step="sum"), tasks_of().to(torch.float32)))
    assert exact["spd"] < 1e-28
    assert 1e-18 < rounded["spd"] < 1e-10


def test_parts_of_the_tasks_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tasks_of(23)
    whole = values(align(bent, ridge(0.5), tasks))
    largest = []
    monkeypatch.setattr(_functions, "NUMBERS_AT_ONCE", 1500)

    def watched(X, y, xq):
        largest.append(X.numel() + y.numel())
        return bent(X, y, xq)

    assert values(align(watched, ridge(0.5), tasks)) == pytest.approx(whole, rel=1e-12)
    assert max(largest) <= 1500 * 14 / 13
    assert len(largest) > 20


def test_several_algorithms_are_a_dimension() -> None:
    tasks, algorithms = tasks_of(), {"one": gd(1, 0.3), "best": ols()}
    both = align(bent, algorithms, tasks)
    assert both.sizes == {"algorithm": 2}
    for name, algorithm in algorithms.items():
        alone = values(align(bent, algorithm, tasks))
        assert {str(n): float(v) for n, v in both.sel(algorithm=name).data_vars.items()} == pytest.approx(alone)


def test_standard_errors_are_the_spread_over_samples() -> None:
    """Estimates of 200 independent samples of 60 tasks scatter as each sample says; the spread is known to 5 %."""
    algorithm = ridge(2.0)
    found = [
        values(align(gd(1, 0.5), algorithm, tasks_of(60, seed=seed)))
        for seed in range(200)
    ]  # fmt: skip
    for name in set(MEASURES) - {"fit_r2", "fit_r2_algorithm"}:
        spread = np.std([one[name] for one in found], ddof=1)
        told = np.sqrt(np.mean([one[f"{name}_se"] ** 2 for one in found]))
        assert told == pytest.approx(spread, rel=0.2), name


def test_default_queries_are_other_tasks_inputs() -> None:
    tasks = tasks_of(9, 4, 3)
    queries = _functions.fresh_queries(tasks)
    assert queries.shape == (9, 12, 3)
    for i, own in enumerate(queries):
        assert torch.equal(own, torch.cat([tasks.X[(i + k) % 9] for k in (1, 2, 3)]))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_a_scaled_model_differs_only_in_size(scale: float, seed: int) -> None:
    tasks = tasks_of(15, seed=seed)
    found = values(align(lambda X, y, xq: scale * ridge(0.7)(X, y, xq), ridge(0.7), tasks))
    assert found["model_cos"] == pytest.approx(1)
    assert found["rescale"] == pytest.approx(scale)
    assert found["norm_ratio"] == pytest.approx(scale)
    assert found["sim_p"] == pytest.approx(1)
    assert found["sim_w"] == pytest.approx(1)
    assert found["model_diff_rescaled"] < 1e-10 * scale * found["grad_norm_algorithm"]


def test_refusals() -> None:
    tasks = tasks_of()
    for call, says in (
        (lambda: align(bent, gd(1, 1.0), tasks, parts="qurey"), "parts query, function, prefixes, not qurey"),
        (lambda: align(bent, gd(1, 1.0), tasks, parts=()), "not nothing"),
        (lambda: align(bent, gd(1, 1.0), tasks[:2]), "from 2 other tasks, and there are only 2"),
        (lambda: align(bent, gd(1, 1.0), tasks, queries=tasks.X), r"\[40, 12 or more, 3\] here, not \[40, 6, 3\]"),
        (lambda: align(bent, gd(1, 1.0), (tasks.X, tasks.y)), "what make_regression returns, not tuple"),
        (lambda: align(bent, gd(1, 1.0), tasks[:0]), "0 tasks of 6 pairs"),
        (lambda: align(bent, gd(1, 1.0), tasks_of(N=0)), "40 tasks of 0 pairs"),
        (lambda: align("bent", gd(1, 1.0), tasks), "'bent' cannot be"),
        (lambda: align(bent, {"least squares": ols}, tasks), "ols'> cannot be"),
        (lambda: align(bent, {}, tasks), "this mapping has none"),
    ):
        with pytest.raises(InterpError, match=says):
            call()


def test_result_describes_itself(tmp_path) -> None:
    ds = align(bent, gd(1, 0.3), tasks_of())
    assert set(MEASURES) <= set(ds.data_vars)
    for name, variable in ds.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["description"], name
    for name in MEASURES:
        assert f"{name}_se" in ds
        assert (f"{name}_tasks" in ds) == (name in PARTLY_DEFINED)
    assert ds.attrs["model"] == "bent"
    assert ds.attrs["algorithm"].startswith("gd(steps=1")
    assert load(save(ds, tmp_path / "alignment.nc")).identical(ds)
