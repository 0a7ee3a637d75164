"""What is drawn, and what `about` says of it."""

import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.icl.tasks.function_classes import Quadratic
from interp.icl.tasks.regression import INPUT_LAWS, make_regression, tokenise

SIGMA = torch.tensor([[2.0, 0.6], [0.6, 0.5]])


def test_the_default_is_the_released_code():
    tasks = make_regression(5000, 10, 10)
    assert 0.499 < tasks.X.abs().max() <= 0.5
    assert tasks.about["half_width"] == 0.5
    assert tasks.about["x_variance"] == pytest.approx(1 / 12)
    assert make_regression(10, 2, 2, 1.0).about["x_variance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("law", INPUT_LAWS)
def test_moments_of_each_law(law):
    size = {"half_width": 0.7} if law == "uniform" else {"scale": 0.7}
    tasks = make_regression(100_000, 9, 2, x=law, seed=3, dtype=torch.float64, **size)
    for x in (tasks.X, tasks.xq):
        centred = x - x.mean()
        assert centred.square().mean() == pytest.approx(tasks.about["x_variance"], rel=0.02)
    centred = tasks.X - tasks.X.mean()
    kurtosis = centred.pow(4).mean() / centred.square().mean().square()
    assert kurtosis == pytest.approx(tasks.about["x_kurtosis"], rel=0.06)
    assert tasks.X.mean() == pytest.approx(0.7 if law == "exponential" else 0.0, abs=0.005)


def test_covariance_of_inputs_and_weights():
    tasks = make_regression(200_000, 3, 2, cov=SIGMA, prior_cov=SIGMA.inverse(), seed=1)
    torch.testing.assert_close(tasks.X.flatten(0, 1).T.cov(), SIGMA, atol=0.02, rtol=0)
    torch.testing.assert_close(tasks.xq.T.cov(), SIGMA, atol=0.02, rtol=0)
    torch.testing.assert_close(tasks.w.T.cov(), SIGMA.inverse(), atol=0.03, rtol=0)
    assert tasks.about["x_variance"] == pytest.approx(1.25)
    assert make_regression(50_000, 3, 2, cov=4.0).X.std() == pytest.approx(2.0, rel=0.01)
    assert make_regression(50_000, 3, 2, prior_cov=4.0).w.std() == pytest.approx(2.0, rel=0.01)


def test_a_singular_covariance_gives_inputs_on_its_range():
    X = make_regression(100, 4, 3, cov=torch.ones(3, 3), dtype=torch.float64).X
    torch.testing.assert_close(X[..., 0], X[..., 2])


@pytest.mark.parametrize("d_y", [1, 3])
def test_labels_are_linear_and_noise_is_in_the_context_alone(d_y):
    tasks = make_regression(20_000, 4, 5, d_y=d_y, noise=0.3, dtype=torch.float64)
    w = tasks.w.reshape(-1, d_y, 5)
    clean = torch.einsum("bnd,bod->bno", tasks.X, w).reshape(tasks.y.shape)
    assert (tasks.y - clean).std() == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(tasks.yq, torch.einsum("bd,bod->bo", tasks.xq, w).reshape(tasks.yq.shape))
    assert tasks.y.shape == ((20_000, 4) if d_y == 1 else (20_000, 4, 3))


def test_a_generator_continues_and_a_seed_repeats():
    generator = torch.Generator().manual_seed(5)
    first, second = (make_regression(7, 3, 2, seed=generator) for _ in range(2))
    assert torch.equal(first.X, make_regression(7, 3, 2, seed=5).X)
    assert not torch.equal(first.X, second.X)
    assert first.about["seed"] == "continued generator"
    assert make_regression(7, 3, 2, seed=5).about["seed"] == 5


def test_cutting_and_converting():
    tasks = make_regression(10, 3, 2)
    part = tasks[2:5].to(torch.float64)
    assert (len(tasks), len(part)) == (10, 3)
    assert part.w.dtype == part.yq.dtype == torch.float64
    torch.testing.assert_close(part.X, tasks.X[2:5].double())
    with pytest.raises(InterpError, match="slices"):
        tasks[3]


def test_concatenated_tokens():
    tasks = make_regression(6, 4, 3, d_y=2)
    tokens = tokenise(tasks)
    assert tokens.shape == (6, 5, 5)
    torch.testing.assert_close(tokens[:, :4], torch.cat([tasks.X, tasks.y], 2))
    torch.testing.assert_close(tokens[:, 4, :3], tasks.xq)
    assert (tokens[:, 4, 3:] == 0).all()
    w0 = torch.randn(2, 3)
    torch.testing.assert_close(tokenise(tasks, w0=w0)[:, 4, 3:], -tasks.xq @ w0.T)


def test_interleaved_tokens():
    tasks = make_regression(6, 4, 3)
    tokens = tokenise(tasks, "interleaved")
    assert tokens.shape == (6, 9, 3)
    torch.testing.assert_close(tokens[:, 0:8:2], tasks.X)
    torch.testing.assert_close(tokens[:, 1:8:2, 2], tasks.y)
    assert (tokens[:, 1:8:2, :2] == 0).all()
    torch.testing.assert_close(tokens[:, 8], tasks.xq)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"half_width": 1.0, "cov": 1.0}, "leave out half_width"),
        ({"x": "laplace", "cov": 1.0}, "leave out"),
        ({"x": "normal", "half_width": 1.0}, "give scale"),
        ({"scale": 2.0}, "half_width"),
        ({"x": "cauchy"}, "choose one of uniform"),
        ({"cov": torch.eye(3)}, r"\[2, 2\]"),
        ({"cov": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "negative eigenvalues"),
        ({"cov": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "symmetric"),
        ({"cov": -1.0}, "negative"),
        ({"teacher": "relu"}, "function_classes"),
        ({"teacher": Quadratic}, r"write Quadratic\(\)"),
        ({"noise": -1.0}, "0 or more"),
        ({"half_width": -1.0}, "half_width is positive, not -1"),
        ({"x": "normal", "scale": 0.0}, "scale is positive"),
        ({"d_y": 0}, "d_y is a whole number, 1 or more"),
        ({"seed": None}, "an integer or a torch.Generator, not None"),
        ({"dtype": torch.int64}, "torch.int64 holds none"),
    ],
)
def test_settings_that_exclude_each_other(settings, words):
    with pytest.raises(InterpError, match=words):
        make_regression(4, 3, 2, **settings)


@pytest.mark.parametrize(("sizes", "words"), [((0, 3, 2), "B is"), ((4, -1, 2), "N is"), ((4, 2.5, 2), "not 2.5")])
def test_sizes_that_are_none(sizes, words):
    with pytest.raises(InterpError, match=words):
        make_regression(*sizes)


def test_covariances_and_seeds_may_be_numpys():
    given = {"cov": SIGMA.numpy(), "prior_cov": SIGMA.tolist(), "seed": np.int64(3)}
    found, expected = make_regression(5, 3, 2, **given), make_regression(5, 3, 2, cov=SIGMA, prior_cov=SIGMA, seed=3)
    assert torch.equal(found.X, expected.X)
    assert torch.equal(found.w, expected.w)
    assert found.about == expected.about


def test_tokens_that_cannot_be():
    tasks = make_regression(4, 3, 2, d_y=3)
    with pytest.raises(InterpError, match="do not fit"):
        tokenise(tasks, "interleaved")
    with pytest.raises(InterpError, match="no label slot"):
        tokenise(make_regression(4, 3, 2), "interleaved", w0=torch.zeros(2))
    with pytest.raises(InterpError, match="'concat' or 'interleaved'"):
        tokenise(tasks, "stacked")
    with pytest.raises(InterpError, match=r"is \[3, 2\], not \[2, 3\]"):
        tokenise(tasks, w0=torch.zeros(2, 3))
