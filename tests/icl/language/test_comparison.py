"""Measures over demonstrations and labels, on changes small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from interp.icl.language.changes import Change
from interp.icl.language.comparison import compared
from interp.icl.language.label_tasks import Example, LabelPrompts
from interp.icl.language.readings import Reading

LABELS = (3, 4)
LEAN = {3: [0.0, 0, 0, 2, 1] + 7 * [-1.0], 4: [0.0, 0, 0, 1, 2] + 7 * [-1.0]}
"""Logits over 12 tokens that lean to one of the labels."""


def prompts(answers: list[int]) -> LabelPrompts:
    queries = tuple(Example((0, 1), answer) for answer in answers)
    return LabelPrompts("made up", (), (), (Example((0, 1), 3),) * 2, queries, (), LABELS)


def change(logits: list[list[float]], demo_scores: list[list[float]]) -> Change:
    n = len(logits)
    same = torch.ones(n, 1, 1)
    scores = [torch.tensor(s).expand(n, 1, -1) for s in demo_scores]
    return Change(same, same[..., None], same[..., None], scores, torch.tensor(logits))


def bare(logits: list[list[float]]) -> Reading:
    n = len(logits)
    return Reading(
        torch.ones(n, 1, 1), torch.ones(n, 1, 1, 1), torch.ones(n, 1, 1), torch.ones(n, 1, 0), torch.tensor(logits)
    )


def one(icl: list[list[float]], ft: list[list[float]]):
    """Everything about two sets of demonstration scores, for one query whose labels do not matter."""
    logits = [LEAN[3]]
    return compared(bare(logits), change(logits, icl), change(logits, ft), prompts([3]))


def test_tokens_of_unlike_demonstrations_are_paired_from_the_label_backwards():
    ds = one([[9.0, 1.0, 2.0], [4.0, 3.0]], [[1.0, 2.0], [9.0, -9.0, 4.0, 3.0]])
    # pairs: (1, 1) (2, 2) of the first, (4, 4) (3, 3) of the second: all in the same order
    assert float(ds["kendall_tokens"]) == pytest.approx(1.0)
    assert float(ds["top_tokens_shared"]) == 1.0
    turned = one([[9.0, 1.0, 2.0], [4.0, 3.0]], [[2.0, 1.0], [9.0, -9.0, 4.0, 3.0]])
    assert float(turned["kendall_tokens"]) == pytest.approx((5 - 1) / 6)  # one pair of six is turned


def test_a_demonstration_weighs_the_softmax_mass_of_its_tokens():
    # Masses e^2 + e^2, e^2.5, e^0 + e^0 + e^0: by mean or by greatest the first two would be the other way around.
    icl = [[2.0, 2.0], [2.5], [0.0, 0.0, 0.0]]
    ft = [[3.0], [2.0], [1.0]]
    assert 2 * math.exp(2) > math.exp(2.5)
    assert float(one(icl, ft)["kendall_demos"]) == pytest.approx(1.0)
    assert float(one(icl, [[2.0], [3.0], [1.0]])["kendall_demos"]) == pytest.approx(1 / 3)


def test_the_top_quarter_of_demonstrations_is_compared():
    icl = [[3.0], [2.0], [1.0], [0.0]]
    for ft, shared in (([[9.0], [0.0], [1.0], [2.0]], 1.0), ([[2.0], [3.0], [1.0], [0.0]], 0.0)):
        assert float(one(icl, ft)["top_demos_shared"]) == shared
        assert float(one(icl, ft)["top_tokens_shared"]) == shared


def test_next_tokens_of_both_runs_are_compared():
    icl = torch.arange(12.0)  # the ten likeliest are 2 to 11
    ft = icl.roll(1)  # and here 0 and 3 to 11
    demos = [[1.0, 2.0], [3.0, 4.0]]
    ds = compared(bare([LEAN[3]]), change([icl.tolist()], demos), change([ft.tolist()], demos), prompts([3]))
    assert float(ds["token_overlap"]) == pytest.approx(0.9)
    p, q = (logits.double().softmax(-1)[3:] for logits in (icl, ft))
    expected = (p * q).sum() / ((p * p).sum() * (q * q).sum() + 1).sqrt()  # one token is not shared
    assert float(ds["overlap_cosine"]) == pytest.approx(float(expected), rel=1e-6)


def test_labels_decide_accuracy_agreement_and_recovery():
    answers = [3, 3, 4, 4]
    zsl = [LEAN[3], LEAN[4], LEAN[3], LEAN[3]]  # right on the first
    icl = [LEAN[3], LEAN[3], LEAN[4], LEAN[3]]  # right on three
    ft = [LEAN[4], LEAN[3], LEAN[3], LEAN[4]]  # learns the second and the last, loses the first
    demos = [[1.0, 2.0], [3.0, 4.0]]
    ds = compared(bare(zsl), change(icl, demos), change(ft, demos), prompts(answers))
    found = {name: float(ds[name]) for name in ("accuracy_zsl", "accuracy_icl", "accuracy_ft", "label_agreement")}
    assert found == {"accuracy_zsl": 0.25, "accuracy_icl": 0.75, "accuracy_ft": 0.5, "label_agreement": 0.25}
    assert (float(ds["rec2ftp"]), int(ds["rec2ftp_queries"])) == (0.5, 2)
    assert float(ds["rec2ftp_se"]) == pytest.approx(0.5)  # of 1 and 0: sqrt(1/2) over sqrt(2), as for every other mean
    assert float(ds["accuracy_icl_se"]) == pytest.approx((3 * 0.25**2 + 0.75**2) ** 0.5 / 3**0.5 / 4**0.5)


def test_a_share_of_one_query_has_no_standard_error():
    zsl, icl, ft = [LEAN[4], LEAN[3]], [LEAN[3], LEAN[3]], [LEAN[3], LEAN[3]]
    demos = [[1.0, 2.0], [3.0, 4.0]]
    ds = compared(bare(zsl), change(icl, demos), change(ft, demos), prompts([3, 3]))
    assert (float(ds["rec2ftp"]), int(ds["rec2ftp_queries"])) == (1.0, 1)
    assert math.isnan(float(ds["rec2ftp_se"]))
