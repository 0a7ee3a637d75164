"""The copying score against finite differences and against a layer whose copying is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import InterpError
from interp.icl.measures import _functions
from interp.icl.measures.copying import copying_score
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.copying_model import copying_recipe
from interp.icl.tasks.regression import make_regression
from interp.results.storage import load, save

N, D = 4, 3
TASKS = make_regression(60, N, D, seed=2, dtype=torch.float64)


def subject(**about) -> AttentionRegressor:
    shape = {"n_layers": 2, "attention": ("softmax", "linear"), "n_pos_enc": 6, "init_std": 0.4}
    return AttentionRegressor(RegressorConfig(d_in=D, n_ctx=N, layout="interleaved", **(shape | about))).double()


def numeric(model: AttentionRegressor, layer: int) -> np.ndarray:
    """S_k(t) by central differences in every coordinate of every token."""
    tokens = model.tokens(TASKS.X, TASKS.y, TASKS.xq)

    def outputs(changed):
        def replace(value, hook):
            return changed

        with torch.no_grad():
            with model.hooks([("hook_embed", replace)]):
                _, cache = model.run_with_cache(TASKS.X, TASKS.y, TASKS.xq)
            return cache["resid_post", layer].sum(-1).mean(0)  # [token]

    gradient = np.zeros((2 * N - 1, 2 * N + 1, D))
    for t in range(2 * N + 1):
        for c in range(D):
            shift = torch.zeros_like(tokens)
            shift[:, t, c] = 1e-5
            gradient[:, t, c] = ((outputs(tokens + shift) - outputs(tokens - shift)) / 2e-5)[: 2 * N - 1]
    return np.linalg.norm(gradient, axis=-1)


@pytest.mark.parametrize("layer", [0, 1])
def test_sensitivity_is_that_of_finite_differences(layer: int) -> None:
    model = subject()
    ds = copying_score(model, TASKS, layer)
    expected = numeric(model, layer)
    np.testing.assert_allclose(ds["sensitivity"], expected, rtol=1e-5, atol=1e-8)
    outputs = range(2 * N - 1)
    assert float(ds["own"]) == pytest.approx(np.mean([expected[k, k] for k in outputs]))
    assert float(ds["next"]) == pytest.approx(np.mean([expected[k, k + 1] for k in outputs]))
    assert float(ds["next_of_x"]) == pytest.approx(np.mean([expected[k, k + 1] for k in outputs[::2]]))
    rest = [expected[k, t] for k in outputs for t in range(2 * N + 1) if t not in (k, k + 1)]
    assert float(ds["others"]) == pytest.approx(np.mean(rest))


def test_a_layer_that_copies_the_next_token_is_seen_to() -> None:
    """One-hot positions: queries ask for the position that follows, values are the token's content."""
    tokens = 2 * N + 1
    model = subject(n_layers=1, attention="softmax", n_pos_enc=tokens)
    shift = torch.eye(tokens, dtype=torch.float64).roll(1, 1)
    eye = torch.eye(D, dtype=torch.float64)
    attention = model.block(0)
    with torch.no_grad():
        for weight in attention.parameters():
            weight.zero_()
        attention.W_Q[0, D:, :tokens] = 400 * shift
        attention.W_K[0, D:, :tokens] = torch.eye(tokens, dtype=torch.float64)
        attention.W_V[0, :D, :D] = eye
        attention.W_O[0, :D, :D] = 0.5 * eye

        def one_hot(value, hook):
            value[..., D:] = torch.eye(tokens, dtype=torch.float64)
            return value

    model.add_hook("hook_embed", one_hot)
    ds = copying_score(model, TASKS)
    assert float(ds["own"]) == pytest.approx(np.sqrt(D))
    assert float(ds["next"]) == pytest.approx(0.5 * np.sqrt(D))
    assert float(ds["others"]) < 1e-10


def test_an_untrained_model_of_the_paper_holds_its_own_token() -> None:
    model = AttentionRegressor(copying_recipe().cfg)
    ds = copying_score(model, make_regression(100, 10, 10))
    assert float(ds["own"]) == pytest.approx(np.sqrt(10), rel=0.02)
    assert float(ds["next"]) < 0.02
    assert ds.sizes == {"output": 19, "token": 21}
    assert ds["token_name"].values[[0, 1, 2, -1]].tolist() == ["x1", "y1", "x2", "xq"]


def test_standard_errors_are_the_spread_over_samples() -> None:
    model = subject()
    samples = [make_regression(60, N, D, seed=seed, dtype=torch.float64) for seed in range(80)]
    found = [copying_score(model, tasks) for tasks in samples]
    for name in ("own", "next", "next_of_x", "others"):
        spread = np.std([float(ds[name]) for ds in found], ddof=1)
        told = np.sqrt(np.mean([float(ds[f"{name}_se"]) ** 2 for ds in found]))
        assert told == pytest.approx(spread, rel=0.25), name


def test_parts_of_the_tasks_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject()
    whole = copying_score(model, TASKS)
    monkeypatch.setattr(_functions, "NUMBERS_AT_ONCE", 20)
    np.testing.assert_allclose(copying_score(model, TASKS)["sensitivity"], whole["sensitivity"], rtol=1e-10)


def test_result_is_stored_and_described(tmp_path) -> None:
    ds = copying_score(subject(), TASKS)
    assert load(save(ds, tmp_path / "copying.nc")).identical(ds)
    assert all(variable.attrs["description"] for variable in ds.data_vars.values())


def test_refusals() -> None:
    for call, says in (
        (lambda: copying_score(AttentionRegressor(RegressorConfig(d_in=D)), TASKS), "layout='interleaved'"),
        (lambda: copying_score(subject(), TASKS, layer=2), "no layer 2; this model has 2"),
        (lambda: copying_score(subject(), TASKS[:19]), "20 tasks or more, for its standard errors, not 19"),
    ):
        with pytest.raises(InterpError, match=says):
            call()
