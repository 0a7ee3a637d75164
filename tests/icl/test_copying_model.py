"""The two-layer model on separate x and y tokens: its shape, and that it can be trained at all."""

import math
from functools import partial

import pytest
import torch

from interp.errors import InterpError
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.models.copying_model import copying_recipe
from interp.icl.models.training import train
from interp.icl.tasks.regression import make_regression


def test_shape_of_the_released_code_and_of_the_paper():
    code, paper = copying_recipe(), copying_recipe(variant="paper")
    assert code.cfg.d_model == 20
    assert paper.cfg.d_model == 30
    assert (code.half_width, paper.half_width) == (0.5, 1.0)
    assert code.cfg.attention == ("softmax", "linear")
    assert code.cfg.init_std == pytest.approx(math.sqrt(0.02 / 40))
    with pytest.raises(InterpError, match="'code' or 'paper'"):
        copying_recipe(variant="figure")


def test_tokens_alternate_and_the_prediction_is_the_last_coordinate():
    model = AttentionRegressor(copying_recipe().cfg)
    tasks = make_regression(3, 10, 10, seed=0)
    out, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    tokens = cache["embed"]
    assert tokens.shape == (3, 21, 20)
    torch.testing.assert_close(tokens[:, 0:-1:2, :10], tasks.X)
    torch.testing.assert_close(tokens[:, 1::2, 9], tasks.y)
    assert not tokens[:, 1::2, :9].any()
    torch.testing.assert_close(tokens[:, -1, :10], tasks.xq)
    torch.testing.assert_close(out, -cache["resid_post", 1][:, -1, 19])


def test_training_lowers_the_loss():
    settings = copying_recipe(d_in=3, n_ctx=4)
    model = AttentionRegressor(settings.cfg)
    curve = train(model, partial(make_regression, N=4, d=3), 60, **{**settings.optimiser, "batch": 256})
    zero_predictor = 0.5 * 3 / 12
    assert float(curve.loss[:3].mean()) > 1.2 * zero_predictor  # the read-out starts at a position feature
    assert float(curve.loss[-10:].mean()) < 1.1 * zero_predictor
