"""Products, the exact predictor and interpolation against the model's own predictions."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.construction import construct_gd, construct_gdpp
from interp.icl.models.extraction import effective_predictor, in_gauge, interpolate, lsa_products, with_products
from interp.icl.tasks.regression import make_regression

D, N = 4, 6


def model_of(seed=0, **shape):
    return AttentionRegressor(RegressorConfig(d_in=D, n_ctx=N, init_std=0.4, **shape), seed=seed).double()


def tasks_of(seed=0):
    return make_regression(30, N, D, 1.0, seed=seed, dtype=torch.float64)


def test_products_are_what_acts_on_tokens():
    model, tasks = model_of(n_heads=2, d_head=3), tasks_of()
    KQ, PV = lsa_products(model)
    _, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    tokens = cache["resid_pre", 0]
    scores = torch.einsum("bki,hij,bpj->bhpk", tokens[:, :-1], KQ, tokens)
    torch.testing.assert_close(scores, cache["attn_scores", 0])
    added = torch.einsum("bhpk,hij,bkj->bpi", scores, PV, tokens[:, :-1])
    torch.testing.assert_close(added, cache["attn_out", 0])


def test_products_of_a_softmax_layer_include_its_scale():
    model, tasks = model_of(attention="softmax"), tasks_of()
    _, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    tokens = cache["resid_pre", 0]
    scores = torch.einsum("bki,hij,bpj->bhpk", tokens[:, :-1], lsa_products(model).KQ, tokens)
    torch.testing.assert_close(scores, cache["attn_scores", 0])


@given(seed=st.integers(0, 1000), heads=st.integers(1, 3), sign=st.sampled_from([-1, 1]), width=st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_three_terms_are_the_whole_prediction(seed, heads, sign, width):
    model, tasks = model_of(seed, n_heads=heads, readout_sign=sign, d_head=width), tasks_of(seed)
    found = effective_predictor(model, tasks=tasks)
    A = torch.from_numpy(found.A_eff.values)
    predicted = model(tasks.X, tasks.y, tasks.xq).detach()
    main = torch.einsum("bn,bni,ij,bj->b", tasks.y, tasks.X, A, tasks.xq)
    flipped = model(tasks.X, -tasks.y, tasks.xq).detach()  # the leaks are even in y, A_eff's term is odd
    torch.testing.assert_close((predicted - flipped) / 2, main, rtol=1e-9, atol=1e-12)
    assert float(found.main) == pytest.approx(float(main.square().mean().sqrt()), rel=1e-9)
    unlabelled = model(tasks.X, 0 * tasks.y, tasks.xq).detach()
    assert float(found.x_leak) == pytest.approx(float(unlabelled.square().mean().sqrt()), rel=1e-9)
    y_leak = (predicted + flipped) / 2 - unlabelled
    assert float(found.y_leak) == pytest.approx(float(y_leak.square().mean().sqrt()), rel=1e-9)


def test_one_step_of_descent_is_its_own_predictor():
    model = construct_gd(model_of(), 1.5)
    found = effective_predictor(model, tasks=tasks_of())
    assert float(found.scale) == pytest.approx(1.5 / N, abs=1e-15)
    assert float(found.distance_to_identity) == float(found.x_leak) == float(found.y_leak) == 0
    skewed = construct_gd(model_of(), 1.0, step="sum", precond=torch.diag(torch.tensor([1.0, 1.0, 1.0, 3.0])).double())
    assert float(effective_predictor(skewed).distance_to_identity) == pytest.approx((3 / 12) ** 0.5)


def test_layers_without_such_a_predictor_are_refused():
    for shape in ({"attention": "softmax"}, {"layout": "interleaved"}, {"d_out": 2}, {"d_mlp": 3}, {"n_pos_enc": 2}):
        with pytest.raises(InterpError, match="exact predictor"):
            effective_predictor(model_of(**shape))
    with pytest.raises(InterpError, match="W0 = 0"):
        effective_predictor(construct_gd(model_of(), 0.5, torch.ones(1, D)))
    with pytest.raises(InterpError, match="not layer 1"):
        effective_predictor(model_of(n_layers=2), layer=1, tasks=tasks_of())
    for wrong in (make_regression(9, N, D + 1), make_regression(9, N, D, d_y=2)):
        with pytest.raises(InterpError, match=r"this model reads X \[batch, N, 4\]"):
            effective_predictor(model_of(), tasks=wrong)


def test_interpolation_ends_at_the_two_models():
    tasks = tasks_of()
    model, target = model_of(n_layers=3, recurrent=True, d_head=7), construct_gdpp(model_of(n_layers=3), 0.7, 0.1)
    for weight, end in ((0.0, model), (1.0, target)):
        mixed = interpolate(model, target, weight)
        expected = end(tasks.X, tasks.y, tasks.xq)
        torch.testing.assert_close(mixed(tasks.X, tasks.y, tasks.xq), expected, rtol=1e-9, atol=1e-11)
    halfway = lsa_products(interpolate(model, target))
    for mine, ours, theirs in zip(halfway, in_gauge(lsa_products(model), D), lsa_products(target), strict=True):
        torch.testing.assert_close(mine, (ours + theirs) / 2)


@given(factor=st.floats(0.1, 10.0), sign=st.sampled_from([-1, 1]))
@settings(max_examples=15, deadline=None)
def test_interpolation_ignores_the_gauge(factor, sign):
    target, tasks = construct_gd(model_of(), 0.8), tasks_of()
    KQ, PV = lsa_products(target)
    rescaled = with_products(target, type(lsa_products(target))(KQ * factor * sign, PV / (factor * sign)))
    mixed = interpolate(rescaled, target)
    torch.testing.assert_close(mixed(tasks.X, tasks.y, tasks.xq), target(tasks.X, tasks.y, tasks.xq))


def test_what_cannot_be_interpolated_is_refused():
    target = construct_gd(model_of(n_layers=2), 0.8)
    with pytest.raises(InterpError, match="one set of weights"):
        interpolate(model_of(n_layers=2), target)
    with pytest.raises(InterpError, match="one set of weights"):
        interpolate(model_of(n_heads=2), target)
    with pytest.raises(InterpError, match="n_layers=2 and the model n_layers=1"):
        interpolate(model_of(), target)
    with pytest.raises(InterpError, match="readout_sign=-1 and the model readout_sign=1"):
        interpolate(model_of(readout_sign=1), construct_gd(model_of(), 0.8))
    untrained = AttentionRegressor(replace(model_of().cfg, init_std=1e-5)).double()
    with pytest.raises(InterpError, match="too small to divide by"):
        interpolate(untrained, construct_gd(model_of(), 0.8))
