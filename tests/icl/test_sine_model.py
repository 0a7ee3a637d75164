"""Sine regression: the features, the fixed step on top of them, and the law of the sines."""

import copy
import math

import pytest
import torch

from interp.errors import InterpError
from interp.icl.models.sine_model import SineRegressor, sine_tasks
from interp.icl.models.training import train
from interp.icl.tasks.function_classes import Sines
from interp.icl.tasks.regression import make_regression


def tasks_of(batch=6):
    return sine_tasks()(batch, seed=0)


def features_by_hand(model, x, y):
    embedded = x * model.W_E[0] + y * model.W_E[1]
    mlp = model.features
    hidden = torch.nn.functional.gelu(embedded @ mlp.W_in + mlp.b_in, approximate="tanh")
    return embedded + hidden @ mlp.W_out + mlp.b_out


def test_the_fixed_layer_is_one_mean_step_on_the_features():
    model, tasks = SineRegressor.with_gd_layer(0.1, seed=2), tasks_of()
    with torch.no_grad():
        context = torch.stack([
            torch.stack([features_by_hand(model, x, y) for x, y in zip(X[:, 0], row, strict=True)])
            for X, row in zip(tasks.X, tasks.y, strict=True)
        ])  # fmt: skip
        query = torch.stack([features_by_hand(model, x, torch.tensor(0.0)) for x in tasks.xq[:, 0]])
        w = 0.1 / 10 * torch.einsum("bn,bni->bi", context[..., 39], context[..., :39])
        expected = (w * query[:, :39]).sum(1) - query[:, 39]
        torch.testing.assert_close(model(tasks.X, tasks.y, tasks.xq), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.before_attention(tasks.X, tasks.y, tasks.xq), -query[:, 39])


def test_hooks_see_the_features():
    model, tasks = SineRegressor(), tasks_of()
    out, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    torch.testing.assert_close(cache["embed"], model.tokens(tasks.X, tasks.y, tasks.xq))
    assert cache["embed"].shape == (6, 11, 40)
    torch.testing.assert_close(out, model(tasks.X, tasks.y, tasks.xq), rtol=1e-4, atol=1e-6)


def test_model_and_control_start_from_the_same_features():
    model, control = SineRegressor(seed=4), SineRegressor.with_gd_layer(seed=4)
    for name in ("W_E", "features.W_in", "features.W_out"):
        assert torch.equal(model.weights()[name], control.weights()[name])
    assert float(model.features.W_in.detach().std()) == pytest.approx(1 / math.sqrt(40), rel=0.05)


def test_training_the_control_leaves_its_step_alone(tmp_path):
    control = SineRegressor.with_gd_layer()
    layer = copy.deepcopy(control).block(0)
    curve = train(control, sine_tasks(), 40, lr=3e-3, batch=128, checkpoint=tmp_path / "run.safetensors")
    for mine, before in zip(control.block(0).parameters(), layer.parameters(), strict=True):
        assert torch.equal(mine, before)
    assert float(curve.loss[-5:].mean()) < 0.5 * float(curve.loss[0])


def test_a_saved_model_comes_back(tmp_path):
    model, tasks = SineRegressor(seed=1), tasks_of()
    loaded = SineRegressor.load(model.save(tmp_path / "sine.safetensors"))
    assert torch.equal(loaded(tasks.X, tasks.y, tasks.xq), model(tasks.X, tasks.y, tasks.xq))
    with pytest.raises(InterpError, match=r"X \[batch, N, 1\]"):
        model(tasks.X.expand(-1, -1, 2), tasks.y, tasks.xq)


def test_tasks_are_sines_of_the_released_code_unless_another_teacher_is_given():
    for sample, teacher in ((sine_tasks(), Sines()), (sine_tasks(Sines((0.1, 5.0))), Sines((0.1, 5.0)))):
        tasks = sample(7, seed=3)
        expected = make_regression(7, 10, 1, 5.0, teacher=teacher, seed=3)
        assert torch.equal(tasks.y, expected.y)
        assert tasks.about == expected.about
        assert float(tasks.X.abs().max()) > 4
