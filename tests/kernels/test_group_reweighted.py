"""group_reweighted_attention on the reference and the blocked path, against formulas written out here."""

from __future__ import annotations

from types import SimpleNamespace

import interp_kernels as ik
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels.group_reweighted_attention import (
    forms,
    group_reweighted_attention,
    knock_out,
    visual_redistribution,
)

from tests.kernels.group_edits import CLEAN, FORMS, add_edit, assert_same, edit, given_factors, written_out


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("per_head", [False, True])
def test_the_written_out_formula(draw, form, facts_name, per_head, renormalise):
    drawn = add_edit(draw(4, 2, 7, 9, torch.float64, facts_name), per_head=per_head)
    wanted = written_out(drawn, given_factors(drawn), renormalise)
    assert_same(edit(drawn, form=form, renormalise=renormalise), wanted, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "heads", "kv_heads"),
    [
        (torch.float64, 1e-12, 3, 3),
        (torch.float32, 1e-5, 6, 2),
        (torch.float16, 1e-5, 8, 1),
        (torch.bfloat16, 1e-5, 6, 3),
    ],
    ids=["fp64", "fp32", "fp16", "bf16"],
)
@pytest.mark.parametrize("form", FORMS)
def test_blocked_equals_reference(draw, form, facts_name, dtype, tolerance, heads, kv_heads):
    lengths = [(1, 1), (63, 63), (1, 100), (150, 63)]
    for seed, (queries, keys) in enumerate(lengths):
        drawn = add_edit(draw(heads, kv_heads, queries, keys, dtype, facts_name, seed), 1 + 2 * seed % 8)
        with ik.use("reference"):
            wanted = edit(drawn)
        found = edit(drawn, form=form)
        assert all(result.dtype == (torch.float64 if dtype is torch.float64 else torch.float32) for result in found)
        assert_same(found, wanted, tolerance)


def test_values_per_query_head_and_inputs_that_are_not_contiguous(draw, form):
    drawn = add_edit(draw(4, 2, 7, 9, torch.float64))
    drawn.v = drawn.x
    wanted = edit(drawn, form=form)
    for name in ("q", "k", "v"):
        setattr(drawn, name, getattr(drawn, name).mT.contiguous().mT)
    assert_same(edit(drawn, form=form), wanted, 1e-14)


@pytest.mark.parametrize("ones", ["tensor", "rule", "no rows"])
def test_factors_of_one_are_plain_attention(draw, form, facts_name, ones):
    drawn = add_edit(draw(4, 2, 33, 40, torch.float64, facts_name))
    plain = ik.attention_apply(drawn.q, drawn.k, drawn.v, **drawn.facts)
    factors = {"tensor": torch.ones(1, 1, 1, 3), "rule": torch.ones_like, "no rows": drawn.factors}[ones]
    rows = torch.full((2, 33), ones != "no rows")
    z, lse, _ = group_reweighted_attention(
        drawn.q, drawn.k, drawn.v, drawn.groups, factors, rows=rows, form=form, **drawn.facts
    )
    assert_same((z, lse), (plain.z, plain.lse), 1e-12)


@pytest.mark.parametrize("name", ["causal", "window", "softcap", "left padding"])
def test_adding_log_factors_to_the_scores_is_the_same(draw, form, name):
    drawn = add_edit(draw(4, 4, 20, 20, torch.float64, name))
    a = ik.attention_pattern(drawn.q, drawn.k, **drawn.facts)
    c = torch.gather(drawn.factors, 3, drawn.groups[:, None, None].expand(2, 4, 20, 20))
    biased = torch.softmax(a.log() + c.log(), -1).nan_to_num() @ drawn.v.nan_to_num()
    some = (a * c).sum(-1, keepdim=True) > 0
    assert_same([edit(drawn, rows=None, form=form).z], [biased.where(some, 0.0)], 1e-12)


@pytest.mark.parametrize("name", ["causal", "bidirectional", "right padding", "softcap"])
def test_knock_out_hides_the_keys(draw, form, name):
    drawn = add_edit(draw(4, 2, 30, 30, torch.float64, name))
    kept = (drawn.groups == 1)[:, None, None].expand(2, 1, 30, 30)
    facts = {fact: value for fact, value in drawn.facts.items() if fact != "causal"}
    mask = kept if name == "bidirectional" else kept & torch.ones(30, 30, dtype=torch.bool).tril()
    hidden = ik.attention_apply(drawn.q, drawn.k, drawn.v, mask=mask, **facts)
    found = group_reweighted_attention(
        drawn.q, drawn.k, drawn.v, drawn.groups, knock_out([0, 2]), form=form, **drawn.facts
    )
    assert_same([found.z], [hidden.z], 1e-12)
    one = group_reweighted_attention(drawn.q, drawn.k, drawn.v, drawn.groups, knock_out(2), form=form, **drawn.facts)
    both = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3)
    other = group_reweighted_attention(drawn.q, drawn.k, drawn.v, drawn.groups, both, form=form, **drawn.facts)
    assert_same(one, other, 0.0)


def test_a_sink_keeps_its_own_probability(draw, form):
    """A column of ones in v shows the sum of a row of A'."""
    drawn = add_edit(draw(4, 2, 12, 12, torch.float64, "sinks"))
    drawn.v = torch.ones_like(drawn.v)
    drawn.factors += 0.1
    z, lse, masses = edit(drawn, form=form)
    beside = 1 - torch.sigmoid(drawn.facts["sinks"][:, None] - lse)
    assert_same([z, masses.sum(-1)], [beside[..., None].expand_as(z), beside], 1e-12)


def test_negative_factors_and_rows_with_nothing_left(draw, form):
    drawn = add_edit(draw(2, 2, 8, 8, torch.float64))
    drawn.factors -= 1.5
    assert_same(edit(drawn, form=form), written_out(drawn, given_factors(drawn)), 1e-9)
    nothing = group_reweighted_attention(
        drawn.q, drawn.k, drawn.v, drawn.groups, torch.zeros(1, 1, 1, 3), form=form, **drawn.facts
    )
    assert not nothing.z.any()


def test_a_rule_sees_all_masses_once(draw, form):
    drawn = add_edit(draw(4, 2, 9, 9, torch.float64))
    calls = []

    def rule(masses):
        calls.append(masses)
        return masses.mean((0, 1, 2), keepdim=True)

    found = group_reweighted_attention(
        drawn.q, drawn.k, drawn.v, drawn.groups, rule, form=form, group_count=5, **drawn.facts
    )
    assert [masses.shape for masses in calls] == [(2, 4, 9, 5)]
    assert torch.equal(calls[0], found.masses)
    drawn.factors = calls[0].mean((0, 1, 2), keepdim=True)
    assert_same(found, edit(drawn, rows=None, form=form), 0.0)


def test_nonsense_where_a_row_is_empty_stays_there(draw, form):
    """A rule that divides by the masses says NaN for rows without any; groups of padding may be anything."""
    drawn = add_edit(draw(4, 2, 9, 9, torch.float64, "right padding"))
    rule = lambda masses: 1 / masses  # noqa: E731
    wanted = group_reweighted_attention(drawn.q, drawn.k, drawn.v, drawn.groups, rule, form=form, **drawn.facts)
    drawn.groups[~drawn.facts["key_mask"]] = -7
    found = group_reweighted_attention(drawn.q, drawn.k, drawn.v, drawn.groups, rule, form=form, **drawn.facts)
    assert_same(found, wanted, 0.0)


def test_auto_takes_one_pass_while_it_is_small(draw, monkeypatch):
    drawn = add_edit(draw(4, 2, 100, 100, name="sinks"))
    results = {}
    with ik.use("cpu"):
        for form in FORMS:
            results[form] = edit(drawn, form=form).z
        assert not torch.equal(results["one_pass"], results["two_pass"])  # so that the next lines can fail
        assert torch.equal(edit(drawn).z, results["one_pass"])
        numbers = 2 * 4 * 100 * 3 * drawn.v.shape[-1]
        monkeypatch.setattr(forms, "ONE_PASS_NUMBERS", numbers)
        assert torch.equal(edit(drawn).z, results["one_pass"])
        monkeypatch.setattr(forms, "ONE_PASS_NUMBERS", numbers - 1)
        assert torch.equal(edit(drawn).z, results["two_pass"])


@pytest.mark.parametrize("form", FORMS)
def test_threads_give_the_same_answer(draw, set_threads, form):
    drawn = add_edit(draw(2, 1, 300, 5000, name="all at once"), dtype=torch.float32)
    drawn.facts.pop("query_mask"), drawn.facts.pop("key_mask")
    leaves = [x.nan_to_num().requires_grad_() for x in (drawn.q, drawn.k, drawn.v)]
    drawn.q, drawn.k, drawn.v = leaves

    def results():
        z, lse, masses = edit(drawn, form=form)
        return z, lse, masses, *torch.autograd.grad(z.square().sum() + masses.square().sum(), leaves)

    with ik.use("cpu"):
        set_threads(3)
        threaded, again = results(), results()
        set_threads(1)
        alone = results()
    assert all(map(torch.equal, threaded, again))
    assert_same(threaded, alone, 1e-5)


# VAR: the edit of each key as the paper states it, from its own row of A.
TEXT_SINKS, VISUAL_SINKS, IMAGE = {0, 9}, {3, 5}, set(range(2, 8))
VAR_GROUPS = [0 if j in TEXT_SINKS else 1 if j in VISUAL_SINKS else 2 if j in IMAGE else 3 for j in range(12)]


GAINING = {"images": IMAGE - VISUAL_SINKS, "text": {1, 8, 10, 11}, "both": IMAGE - VISUAL_SINKS | {1, 8, 10, 11}}


def paper_factors(remove, ratio, floor, seen_rows, give_to="images"):
    def factors(b, h, i, row):
        visual = sum(p for j, p in row.items() if j in IMAGE)
        rest = sum(p for j, p in row.items() if j in IMAGE - VISUAL_SINKS)
        sinks = TEXT_SINKS | VISUAL_SINKS
        gaining = sum(p for j, p in row.items() if j in GAINING[give_to])
        looks = visual >= floor and visual > 0 and rest / visual >= ratio
        if not (looks and gaining and VISUAL_SINKS & set(row)):
            return dict.fromkeys(row, 1.0)
        seen_rows.append((b, h, i))
        budget = remove * sum(p for j, p in row.items() if j in sinks)
        after = {j: p * (1 - remove) if j in sinks else p for j, p in row.items()}
        for j in row:
            if j in GAINING[give_to]:
                after[j] += budget * row[j] / gaining
        return {j: after[j] / row[j] for j in row}

    return factors


@pytest.mark.parametrize(
    "settings",
    [(0.6, 0.7, 0.2), (1.0, 0.5, 0.5), (0.25, 0.9, 0.0), (0.6, 0.7, 0.2, "text"), (0.8, 0.5, 0.2, "both")],
    ids=str,
)
@pytest.mark.parametrize("name", ["causal", "sinks", "all at once"])
def test_visual_redistribution_is_the_paper(draw, form, name, settings):
    drawn = draw(4, 2, 12, 12, torch.float64, name, seed=1)
    drawn.groups = torch.tensor(VAR_GROUPS).expand(2, -1)
    drawn.factors = torch.empty(4)
    edited = []
    wanted = written_out(drawn, paper_factors(*settings[:3], edited, *settings[3:]), renormalise=False)
    assert 0 < len(edited) < 2 * 4 * 12
    rule = visual_redistribution(*settings)
    for renormalise in (True, False):  # the rule conserves a row's mass by itself
        found = group_reweighted_attention(
            drawn.q, drawn.k, drawn.v, drawn.groups, rule, renormalise=renormalise, form=form, **drawn.facts
        )
        assert_same(found, wanted, 1e-12)


masses_of_four = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)
fraction = st.floats(0, 1)


@given(rows=st.lists(masses_of_four, min_size=1, max_size=6), remove=fraction, ratio=st.floats(0.01, 1), floor=fraction)
@settings(max_examples=100, deadline=None)
def test_visual_redistribution_conserves_mass(rows, remove, ratio, floor):
    masses = torch.tensor(rows, dtype=torch.float64)[None, None]
    masses /= masses.sum(-1, keepdim=True)
    c = visual_redistribution(remove, ratio, floor)(masses)
    torch.testing.assert_close((c * masses).sum(-1), masses.sum(-1), rtol=1e-13, atol=0)
    assert (c >= 0).all()
    if not masses[..., 1].any():
        assert torch.equal(c, torch.ones_like(c))


def test_rows_without_visual_sinks_are_left_alone():
    """Whichever rows come in the same call: as many at once as there are is how a prompt happens to be read."""
    masses = torch.tensor([[[[0.3, 0.0, 0.6, 0.1]]], [[[0.3, 0.1, 0.5, 0.1]]]])
    rule = visual_redistribution(0.5, 0.5)
    c = rule(masses)
    assert torch.equal(c[0], torch.ones(1, 1, 4))
    assert torch.equal(rule(masses.transpose(0, 2)), c.transpose(0, 2))
    torch.testing.assert_close(c[1, 0, 0], torch.tensor([0.5, 0.5, 1 + 0.2 / 0.5, 1.0]))


shapes = st.fixed_dictionaries(
    {
        "kv_heads": st.integers(1, 2),
        "queries": st.integers(1, 150),
        "keys": st.integers(1, 150),
        "size": st.integers(1, 40),
        "columns": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
    }
)


@given(
    shape=shapes,
    ratio=st.integers(1, 3),
    count=st.integers(1, 8),
    per_head=st.booleans(),
    name=st.sampled_from([*CLEAN, "left padding", "all at once"]),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=40, deadline=None)
def test_random_groups(draw, shape, ratio, count, per_head, name, form):
    """Against A written out; the numbers of the groups do not matter, nor does splitting one in two."""
    drawn = draw(shape["kv_heads"] * ratio, dtype=torch.float64, name=name, **shape)
    drawn = add_edit(drawn, count, per_head, shape["seed"] % 1000)
    with ik.use("cpu"):
        found = edit(drawn, form=form)
    a = ik.attention_pattern(drawn.q, drawn.k, **drawn.facts)
    groups = (drawn.groups if per_head else drawn.groups[:, None])[:, :, None].expand_as(a)
    scaled = a * torch.where(drawn.rows[..., None], torch.gather(drawn.factors, 3, groups), 1.0)
    left = scaled.sum(-1, keepdim=True)
    scaled *= torch.where(left > 0, a.sum(-1, keepdim=True) / left, 0.0)
    values = drawn.v.nan_to_num().repeat_interleave(ratio, 1)
    assert_same([found.z], [scaled @ values], 1e-11)
    assert_same([found.masses.sum(-1)], [a.sum(-1)], 1e-12)

    order = torch.randperm(count)
    drawn.groups, drawn.factors = order.argsort()[drawn.groups], drawn.factors[..., order]
    with ik.use("cpu"):
        renamed = edit(drawn, form=form)
    assert_same([renamed.z, renamed.masses], [found.z, found.masses[..., order]], 1e-11)


def test_empty_inputs(form):
    for batch, queries, keys in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        q, k = torch.ones(batch, 2, queries, 4), torch.ones(batch, 1, keys, 4)
        groups = torch.zeros(batch, keys, dtype=torch.long)
        found = group_reweighted_attention(q, k, k, groups, torch.ones_like, form=form)
        assert found.z.shape == (batch, 2, queries, 4)
        assert not found.z.any()


GOOD = SimpleNamespace(
    q=torch.zeros(2, 6, 5, 8),
    k=torch.zeros(2, 3, 7, 8),
    v=torch.zeros(2, 3, 7, 4),
    groups=torch.zeros(2, 7, dtype=torch.long),
    rule=torch.ones(1, 1, 1, 2),
)
MISTAKES = [
    ({"v": GOOD.v[:, :2]}, "v should be [B=2, Hk|H=3 or 6, S=7, R], found [2, 2, 7, 4]"),
    ({"groups": GOOD.groups[:, :5]}, "groups should be [B=2, S=7], found [2, 5]"),
    ({"groups": GOOD.groups[:, None].repeat(1, 5, 1)}, "groups should be [B=2, H|1=6 or 1, S=7], found [2, 5, 7]"),
    ({"bias": torch.zeros(1, 1, 1, 7, requires_grad=True)}, "bias gets no gradient; pass bias.detach()"),
    ({"groups": GOOD.groups.float()}, "groups must be integers, found torch.float32"),
    ({"groups": GOOD.groups == 0}, "groups must be integers, found torch.bool"),
    ({"groups": GOOD.groups + 2}, "groups should lie in 0 to 1, found 2 to 2"),
    ({"groups": GOOD.groups - 1}, "groups should lie in 0 to 1, found -1 to -1"),
    ({"groups": GOOD.groups + 9, "rule": torch.ones_like}, "there should be 1 to 8 groups, found 10"),
    ({"rule": torch.ones(1, 1, 1, 9)}, "there should be 1 to 8 groups, found 9"),
    ({"rule": torch.ones(2)}, "rule should be [B|1=2 or 1, H|1=6 or 1, N|1=5 or 1, G], found [2]"),
    ({"rule": torch.ones(1, 1, 1, 2).long()}, "rule must be floating point, found torch.int64"),
    ({"rule": [1.0, 0.0]}, "rule should be a function or a tensor of factors, found list"),
    ({"rule": lambda m: 1.0}, "rule should return a tensor, found float"),
    ({"rule": lambda m: m[..., 0]}, "what rule returns should be [B|1=2 or 1, H|1=6 or 1, N|1=5 or 1, G=1], found"),
    ({"rule": lambda m: m > 0}, "what rule returns must be floating point, found torch.bool"),
    ({"rule": knock_out([0, 3])}, "knock_out: groups_removed should lie in 0 to 0, found [0, 3]"),
    ({"rule": visual_redistribution()}, "text sink, visual sink, visual, other, found 1; pass group_count=4"),
    ({"group_count": 3}, "group_count 3 and rule [1, 1, 1, 2] differ in G"),
    ({"rows": torch.ones(2, 5)}, "rows must be bool with True for what is kept, found torch.float32"),
    ({"rows": torch.ones(2, 7).bool()}, "rows should be [B=2, N=5], found [2, 7]"),
    ({"form": "two-pass"}, 'form should be "auto", "one_pass" or "two_pass", found "two-pass" (did you mean'),
    ({"windows": 2}, 'no mask fact is called "windows"; did you mean "window"?'),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_are_told_in_one_sentence(form, change, message):
    with pytest.raises((TypeError, ValueError)) as error:
        group_reweighted_attention(**(vars(GOOD) | change))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1.5, 0.5), "remove_fraction should be in 0 to 1, found 1.5"),
        ((0.5, 0.0), "min_nonsink_ratio should be above 0"),
        ((0.5, 0.5, -1.0), "min_visual_mass should be in 0 to 1, found -1.0"),
        ((0.5, 0.5, 0.2, "all"), "give_to should be images, text or both, found 'all'"),
    ],
)
def test_numbers_out_of_range(numbers, message):
    with pytest.raises(ValueError, match=message):
        visual_redistribution(*numbers)
