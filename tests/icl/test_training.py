"""The trainer: its hand-written gradients, going on after a stop, and what its subjects become."""

import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.icl.learners.algorithms import gd, gdpp
from interp.icl.learners.optimal import lsa_optimal
from interp.icl.models._single_layer_step import is_one_linear_layer, single_layer_gradients
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd, construct_gdpp
from interp.icl.models.extraction import effective_predictor, in_gauge, interpolate, lsa_products
from interp.icl.models.training import autograd_gradients, recipe, train
from interp.icl.tasks.regression import make_regression
from interp.results import storage

BEST_ETA = 6.0606  # N = d = 10, inputs uniform on ±0.5
draw = partial(make_regression, N=10, d=10)
small = partial(make_regression, N=4, d=3)


def small_model(**shape):
    return AttentionRegressor(RegressorConfig(d_in=3, n_ctx=4, **shape), seed=1)


def half_mse(model, tasks):
    return float(0.5 * (model(tasks.X, tasks.y, tasks.xq) - tasks.yq).detach().square().mean())


def cosine(model, algorithm, tasks):
    """Mean cosine of the derivatives of the two predictions in the query."""
    xq = tasks.xq.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(tasks.X, tasks.y, xq).sum(), xq)
    return float(torch.cosine_similarity(slope, algorithm.weights(tasks.X, tasks.y)).mean())


@given(
    seed=st.integers(0, 999), heads=st.integers(1, 3), width=st.integers(1, 5), sign=st.sampled_from([-1, 1]),
    context=st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_gradients_by_hand_are_those_of_autograd(seed, heads, width, sign, context):
    cfg = RegressorConfig(d_in=3, n_heads=heads, d_head=width, readout_sign=sign, init_std=0.5)
    model = AttentionRegressor(cfg, seed=seed).double()
    tasks = make_regression(9, context, 3, 1.0, seed=seed, dtype=torch.float64)
    loss = (
        0.5 * (model.read_out(model.plain(model.tokens(tasks.X, tasks.y, tasks.xq))[:, -1]) - tasks.yq).square().mean()
    )
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert float(single_layer_gradients(model, tasks)) == pytest.approx(loss.item(), rel=1e-12)
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "shape",
    [
        {"n_layers": 2}, {"attention": "softmax"}, {"d_mlp": 4}, {"layer_norm": True}, {"clamp": 1.0}, {"n_pos_enc": 2},
        {"layout": "interleaved"}, {"d_out": 2}, {"readout": "last", "n_pos_enc": 2},
    ],
)  # fmt: skip
def test_other_models_are_left_to_autograd(shape):
    assert is_one_linear_layer(small_model(n_heads=2))
    assert not is_one_linear_layer(small_model(**shape))
    started_elsewhere = construct_gd(small_model(), 0.5, torch.ones(1, 3))
    assert not is_one_linear_layer(started_elsewhere)


def test_loss_of_vector_targets_is_summed_over_targets():
    model = small_model(d_out=2)
    tasks = small(16, d_y=2, seed=0)
    expected = 0.5 * (model(tasks.X, tasks.y, tasks.xq) - tasks.yq).square().sum(1).mean()
    torch.testing.assert_close(autograd_gradients(model, tasks), expected.detach())


SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.98), "clip": 0.5, "batch": 32, "seed": 3, "every": 4}


@pytest.mark.parametrize("shape", [{}, {"n_layers": 2, "recurrent": True}, {"attention": "softmax", "d_mlp": 4}])
def test_a_stopped_run_goes_on_to_the_same_bits(shape, tmp_path):
    def look(step, model):
        return {"norm": float(model.block(0).W_Q.detach().norm())}

    def die(step, model):
        if step == 8:
            raise KeyboardInterrupt
        return look(step, model)

    whole, stopped = small_model(**shape), small_model(**shape)
    curve = train(whole, small, 14, **SETTINGS, on_step=look)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(stopped, small, 14, **SETTINGS, on_step=die, checkpoint=path)
    resumed = small_model(**shape)  # another process has nothing but the file
    again = train(resumed, small, 14, **SETTINGS, on_step=look, checkpoint=path)
    for name, weight in whole.weights().items():
        assert torch.equal(weight, resumed.weights()[name]), name
    for name in ("loss", "grad_norm", "norm", "measured_step"):
        assert again[name].values.tolist() == curve[name].values.tolist()
    assert again.measured_step.values.tolist() == [0, 4, 8, 12, 14]
    finished = small_model(**shape)
    train(finished, small, 14, **SETTINGS, checkpoint=path)
    assert torch.equal(finished.block(0).W_Q, whole.block(0).W_Q)


def test_curves_are_of_the_steps():
    model, twin = small_model(), small_model()
    curve = train(model, small, 3, **SETTINGS)
    tasks = small(32, seed=torch.Generator().manual_seed(3))
    loss = autograd_gradients(twin, tasks)
    norm = torch.cat([weight.grad.flatten() for weight in twin.parameters()]).norm()
    assert curve.step.values.tolist() == [1, 2, 3]
    assert float(curve.loss[0]) == pytest.approx(float(loss), rel=1e-5)
    assert float(curve.grad_norm[0]) == pytest.approx(float(norm), rel=1e-4)
    assert curve.attrs["tasks"]["half_width"] == 0.5


def test_curves_can_be_kept(tmp_path):
    curve = train(small_model(), small, 3, lr=1e-3, batch=8, on_step=lambda step, model: {"seen": float(step)})
    kept = storage.load(storage.save(curve, tmp_path / "curve.nc"))
    assert kept.seen.values.tolist() == [0, 3]
    assert json.loads(kept.attrs["cfg"])["d_in"] == 3
    assert kept.attrs["clip"] == "none"


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    train(small_model(), small, 4, **SETTINGS, checkpoint=path)
    for changed, message in (({"lr": 0.5}, r"lr=\[\[0, 0\.01\]\], and lr=\[\[0, 0\.5\]\]"), ({"seed": 4}, "seed=3")):
        with pytest.raises(InterpError, match=message):
            train(small_model(), small, 8, **{**SETTINGS, **changed}, checkpoint=path)
    with pytest.raises(InterpError, match="dtype="):
        train(small_model().double(), small, 8, **SETTINGS, checkpoint=path)
    with pytest.raises(InterpError, match="cfg="):
        train(small_model(n_heads=2), small, 8, **SETTINGS, checkpoint=path)
    with pytest.raises(InterpError, match=r"tasks of .*'half_width': 0\.5"):
        train(small_model(), partial(small, half_width=1.0), 8, **SETTINGS, checkpoint=path)
    for wrong in ({"steps": -1}, {"every": 0}, {"batch": 0}):
        with pytest.raises(InterpError, match="every and batch 1 or more"):
            train(small_model(), small, **{"steps": 8, **SETTINGS, **wrong})
    with pytest.raises(InterpError, match="at step 4, past the 2"):
        train(small_model(), small, 2, **SETTINGS, checkpoint=path)
    path.write_text("no run")
    with pytest.raises(InterpError, match="no checkpoint of a training run"):
        train(small_model(), small, 8, **SETTINGS, checkpoint=path)


def test_a_loss_that_explodes_is_an_error():
    with pytest.raises(InterpError, match="at step 20; lower lr"):
        train(small_model(n_layers=4), small, 20, lr=50.0, batch=32)


def test_learning_rates_begin_at_their_steps(tmp_path):
    moved = {}

    def look(step, model):
        moved[step] = model.block(0).W_Q.detach().clone()

    settings_ = {**SETTINGS, "every": 1, "betas": (0.0, 0.0), "clip": None}  # then Adam moves each weight by lr
    path = tmp_path / "run.safetensors"
    train(small_model(), small, 3, **{**settings_, "lr": {0: 1e-2, 2: 1e-4}}, on_step=look, checkpoint=path)
    train(small_model(), small, 4, **{**settings_, "lr": {0: 1e-2, 2: 1e-4}}, on_step=look, checkpoint=path)
    sizes = [float((moved[step] - moved[step - 1]).abs().median()) for step in (1, 2, 3, 4)]
    assert sizes == pytest.approx([1e-2, 1e-2, 1e-4, 1e-4], rel=0.1)
    with pytest.raises(InterpError, match="nothing of the first step"):
        train(small_model(), small, 3, **{**SETTINGS, "lr": {5: 1e-3}})


def test_frozen_weights_stay(tmp_path):
    model = construct_gd(small_model(n_layers=2), 0.5)
    for weight in model.block(1).parameters():
        weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.weights().items()}
    train(model, small, 3, **SETTINGS, checkpoint=tmp_path / "run.safetensors")
    for name, weight in model.weights().items():
        assert torch.equal(weight, before[name]) == (not name.startswith("blocks.0")), name


@pytest.mark.parametrize(
    ("variant", "layers", "lr", "clip", "clamp", "init_std"),
    [
        ("code", 1, 1e-3, 0.001, None, None), ("code", 2, 1e-3, 0.001, None, None), ("code", 3, 1e-3, 10.0, None, None),
        ("code", 4, 5e-4, 10.0, 10.0, None), ("paper", 1, 1e-3, 10.0, None, 0.002),
        ("paper", 2, 1e-3, 10.0, None, 0.001),
        ("paper", 3, 5e-4, 10.0, 10.0, 0.002 / 3),
    ],
)  # fmt: skip
def test_recipes_by_depth(variant, layers, lr, clip, clamp, init_std):
    found = recipe(RegressorConfig(n_layers=layers), variant)
    assert (found.lr, found.clip, found.cfg.clamp, found.cfg.init_std) == (lr, clip, clamp, init_std)
    assert found.betas == ((0.9, 0.98) if variant == "code" else (0.9, 0.999))
    assert found.half_width == (0.5 if variant == "code" else 1.0)
    assert recipe(RegressorConfig(n_layers=layers, clamp=3.0, init_std=0.1), variant).cfg.clamp == 3.0
    with pytest.raises(InterpError, match="'code' or 'paper'"):
        recipe(RegressorConfig(), "figure")


def assert_one_step_of_descent(seed, steps=1000):
    settings_ = recipe(RegressorConfig())
    model = AttentionRegressor(settings_.cfg, seed=seed)
    train(model, draw, steps, seed=seed, **settings_.optimiser)
    held_out = make_regression(10_000, 10, 10, seed=10_000 + seed)
    step = gd(1, BEST_ETA)
    target = construct_gd(AttentionRegressor(settings_.cfg), BEST_ETA)
    best = half_mse(target, held_out)
    assert half_mse(model, held_out) == pytest.approx(best, rel=0.01)
    assert cosine(model, step, held_out) >= 0.998
    assert half_mse(interpolate(model, target), held_out) == pytest.approx(best, rel=0.01)
    found = effective_predictor(model, tasks=held_out)
    assert float(found.scale) == pytest.approx(BEST_ETA / 10, rel=0.04)
    assert float(found.distance_to_identity) < 0.05
    assert float(found.x_leak) + float(found.y_leak) < 0.05 * float(found.main)


def test_a_trained_layer_is_one_step_of_descent():
    assert_one_step_of_descent(seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_every_seed_is_one_step_of_descent(seed):
    assert_one_step_of_descent(seed)


@pytest.mark.slow
def test_two_recurrent_layers_become_gdpp():
    settings_ = recipe(RegressorConfig(n_layers=2, recurrent=True))
    model = AttentionRegressor(settings_.cfg)
    held_out = make_regression(20_000, 10, 10, seed=10_000)
    to_gd = []
    watch = {"on_step": lambda step, model: to_gd.append(cosine(model, gd(2, 6.01), held_out)), "every": 250}
    train(model, draw, 3000, **watch, **settings_.optimiser)
    target = construct_gdpp(AttentionRegressor(settings_.cfg), 13.59, 0.176)
    to_gdpp = cosine(model, gdpp(2, 13.59, 0.176), held_out)
    assert to_gdpp > 0.99
    assert to_gdpp > to_gd[-1]
    assert max(to_gd) > 0.985  # on the way there it was gradient descent
    assert max(to_gd) > to_gd[-1] + 0.02
    assert to_gd[0] < 0.9
    assert half_mse(model, held_out) < 0.115
    assert half_mse(interpolate(model, target), held_out) < 0.115
    PV = in_gauge(lsa_products(model), 10).PV[0]
    assert -float(PV[:10, :10].diagonal().mean()) == pytest.approx(0.176, rel=0.05)


def covariance(seed):
    vectors, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return vectors @ torch.diag(torch.tensor([0.5, 0.75, 1.0, 1.25, 1.75], dtype=torch.float64)) @ vectors.T


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["identity", "inverse", "generic"])
def test_training_finds_the_optimal_layer(prior):
    n, d, noise_var, cov = 20, 5, 0.5, covariance(3)
    prior_cov = {"identity": torch.eye(d).double(), "inverse": torch.linalg.inv(cov), "generic": covariance(4)}[prior]
    law = {"N": n, "d": d, "cov": cov, "prior_cov": prior_cov, "noise": noise_var**0.5}
    model = AttentionRegressor(RegressorConfig(d_in=d, n_ctx=n, residual=False, readout_sign=1))
    rates = {0: 3e-3, 1500: 5e-4, 2500: 5e-5}
    train(model, partial(make_regression, **law), 3500, lr=rates, betas=(0.9, 0.99), batch=4096)
    best = lsa_optimal(n, cov, prior_cov, noise_var).matrix
    found = effective_predictor(model, tasks=make_regression(10_000, **law, seed=1))
    apart = torch.from_numpy(found.A_eff.values).double() - best
    assert float(apart.norm() / best.norm()) < 0.02
    assert float(found.x_leak) + float(found.y_leak) < 0.02 * float(found.main)
