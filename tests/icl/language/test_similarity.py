"""Measures against numbers worked out by hand, and against what they must not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.icl import language
from interp.icl.language.similarity import (
    cosine,
    kendall,
    overlap_cosine,
    rec2ftp,
    simam,
    simaou,
    token_overlap,
    top_overlap,
)


def test_rec2ftp_counts_only_what_fine_tuning_learnt():
    #                   known, learnt by both, learnt by FT only, by ICL only
    zsl = torch.tensor([True, False, False, False])
    icl = torch.tensor([True, True, False, True])
    ft = torch.tensor([True, True, True, False])
    assert rec2ftp(zsl, icl, ft) == (0.5, 2)


def test_rec2ftp_is_undefined_where_nothing_was_learnt():
    right = torch.tensor([True, True])
    ratio, n = rec2ftp(right, right, right)
    assert math.isnan(ratio)
    assert n == 0


def test_simaou_by_hand():
    zsl = torch.tensor([3.0, 0.0])
    icl = torch.tensor([0.0, 2.0])  # unit: (0, 1), change (-1, 1)
    ft = torch.tensor([3.0, 4.0])  # unit: (.6, .8), change (-.4, .8)
    expected = (0.4 + 0.8) / (math.sqrt(2) * math.sqrt(0.16 + 0.64))
    assert simaou(zsl, icl, ft) == pytest.approx(expected, rel=1e-6)
    assert simaou(zsl, icl, 7 * icl) == pytest.approx(1.0, rel=1e-6)  # lengths do not matter
    assert torch.isnan(simaou(zsl, icl, zsl))


def test_simam_is_the_mean_over_heads_in_which_it_is_defined():
    m = torch.tensor([[[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]])  # [query, layer, head, token]
    other = torch.tensor([[[[1.0, 1.0], [2.0, 2.0], [1.0, 0.0]]]])
    assert simam(m, other).shape == (1, 1)
    assert float(simam(m, other)) == pytest.approx((math.sqrt(0.5) + 1) / 2)


def test_padding_with_zeros_leaves_a_cosine_alone():
    x, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    padded = [torch.cat([torch.zeros(3), v]) for v in (x, y)]
    torch.testing.assert_close(cosine(*padded), cosine(x, y))


@given(st.permutations(range(7)))
def test_kendall_counts_pairs(order):
    x, y = torch.arange(7.0), torch.tensor(order, dtype=torch.float32)
    pairs = [(i, j) for i in range(7) for j in range(i)]
    agree = sum(1 if order[i] > order[j] else -1 for i, j in pairs)
    assert float(kendall(x[None], y[None])) == pytest.approx(agree / len(pairs))


def test_kendall_takes_any_number_of_dimensions():
    x, y = torch.arange(4.0), torch.tensor([0.0, 1.0, 3.0, 2.0])
    assert kendall(x, y).shape == ()
    assert float(kendall(x, y)) == pytest.approx(4 / 6)
    assert kendall(x.expand(2, 3, 4), y.expand(2, 3, 4)).tolist() == [[pytest.approx(4 / 6)] * 3] * 2


def test_kendall_of_two():
    assert kendall(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[3.0, 4.0], [4.0, 3.0]])).tolist() == [1, -1]


def test_kendall_of_a_constant_is_undefined():
    assert torch.isnan(kendall(torch.ones(1, 4), torch.arange(4.0)[None])).all()


def test_top_overlap_and_its_limits():
    x, y = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([4.0, 1.0, 2.0, 3.0])
    assert float(top_overlap(x, y, 1)) == 1.0
    assert float(top_overlap(x, y, 2)) == 0.5
    assert float(top_overlap(x, y, 4)) == 1.0
    with pytest.raises(InterpError, match="the 5 largest of 4"):
        top_overlap(x, y, 5)


def test_overlap_cosine_with_and_without_penalty():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.4, 0.1, 0.0, 0.5])
    # the two likeliest are {0, 1} and {3, 0}: one shared, one missing
    assert float(overlap_cosine(p, q, 2, penalty=False)) == pytest.approx(1.0)
    assert float(overlap_cosine(p, q, 2)) == pytest.approx(0.2 / math.sqrt(0.25 * 0.16 + 1))


def test_no_shared_token_is_nothing_alike():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(overlap_cosine(p, q, 1)) == 0.0
    assert torch.isnan(overlap_cosine(p, q, 1, penalty=False))


def test_token_overlap_is_that_of_the_ten_likeliest():
    p, q = torch.arange(30.0).softmax(0), torch.arange(30.0).roll(5)
    assert float(token_overlap(p, q)) == 0.5  # ids 20 to 29, and ids 25 to 29 with 0 to 4
    assert language.token_overlap is token_overlap
