"""Triton's group_reweighted_attention against the reference; on a machine without a GPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from interp_kernels import use
from interp_kernels.group_reweighted_attention import group_reweighted_attention, knock_out, visual_redistribution

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = ["one_pass", "two_pass"]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def on_device(drawn):
    """Everything that was drawn, where the kernels run."""
    for name in ("q", "k", "v", "x"):
        setattr(drawn, name, getattr(drawn, name).to(DEVICE))
    drawn.facts = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in drawn.facts.items()}
    return drawn


def edit_of(drawn, count, per_head=False, seed=0):
    """(groups, factors) that remove a group from some rows, and keep all of it in others."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, queries, _ = drawn.q.shape
    keys = drawn.k.shape[2]
    groups = torch.randint(0, count, (batch, heads, keys) if per_head else (batch, keys), generator=generator)
    factors = 2 * torch.rand(batch, heads, queries, count, generator=generator)
    factors[..., 0] *= torch.rand(batch, heads, queries, generator=generator) > 0.3
    return groups.to(DEVICE), factors.to(DEVICE)


@pytest.mark.parametrize("form", FORMS)
def test_facts(draw, facts_name, form, same):
    queries, keys = (13, 37) if form == "one_pass" else (37, 45)
    drawn = on_device(draw(2, 1, queries, keys, F32, facts_name))
    groups, factors = edit_of(drawn, 3)
    same(F32, group_reweighted_attention, drawn.q, drawn.k, drawn.v, groups, factors, form=form, **drawn.facts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("renormalise", [True, False])
def test_groups_and_values_per_query_head(draw, renormalise, form, same):
    drawn = on_device(draw(4, 2, 10, 45, F32, "all at once"))
    groups, factors = edit_of(drawn, 3, per_head=True)
    rest = {"form": form, "renormalise": renormalise, **drawn.facts}
    same(F32, group_reweighted_attention, drawn.q, drawn.k, drawn.x, groups, factors, **rest)


SHAPES = [  # heads, stored heads, queries, keys, size, columns, groups
    (3, 3, 1, 1, 16, 5, 1),
    (4, 2, 7, 40, 20, 20, 2),
    (3, 1, 5, 33, 64, 64, 3),
    (2, 2, 1, 130, 128, 128, 4),
    (2, 1, 20, 40, 80, 3, 8),
    (2, 1, 5, 9, 256, 256, 5),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(draw, shape, dtype, form, same):
    heads, kv_heads, queries, keys, size, columns, count = shape
    drawn = on_device(draw(heads, kv_heads, queries, keys, dtype, "left padding", size=size, columns=columns))
    groups, factors = edit_of(drawn, count)
    rows = torch.rand(2, queries, device=DEVICE) > 0.3
    same(
        dtype, group_reweighted_attention, drawn.q, drawn.k, drawn.v, groups, factors,
        rows=rows, form=form, **drawn.facts,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["causal", "window", "nothing visible"])
@pytest.mark.parametrize("queries", [1, 3])
def test_one_pass_in_pieces_of_the_keys(draw, queries, name, same):
    drawn = on_device(draw(1, 1, queries, 600, F32, name))
    groups, factors = edit_of(drawn, 4)
    same(F32, group_reweighted_attention, drawn.q, drawn.k, drawn.v, groups, factors, form="one_pass", **drawn.facts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", [visual_redistribution(0.6, 0.3, 0.1), knock_out([0, 3])], ids=["VAR", "knock-out"])
def test_rules(draw, form, rule, same):
    drawn = on_device(draw(2, 1, 9, 70, F32, "sinks"))
    groups, _ = edit_of(drawn, 4)
    same(
        F32, group_reweighted_attention, drawn.q, drawn.k, drawn.v, groups, rule,
        form=form, group_count=4, **drawn.facts,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_what_a_sink_leaves_is_not_lost_to_rounding(form, dtype, same):
    """Scores 20 below the sink's, whose exponentials fp16 cannot hold, decide all once the sink is cut."""
    q = torch.ones(1, 1, 4, 16, device=DEVICE, dtype=dtype)
    k = torch.randn(1, 1, 60, 16, device=DEVICE).to(dtype) / 4
    k[:, :, 0] += 5
    v = torch.randn(1, 1, 60, 8, device=DEVICE).to(dtype)
    groups = (torch.arange(60, device=DEVICE) > 0).long()[None]
    arguments = (q, k, v, groups, knock_out(0))
    facts = {"form": form, "causal": False, "group_count": 2}
    same(dtype, group_reweighted_attention, *arguments, **facts)
    with use("triton"):
        assert group_reweighted_attention(*arguments, **facts).masses[..., 0].min() > 1 - 1e-5


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_many_small_probabilities_are_not_lost_in_fp16(form, renormalise):
    """300 keys with about 3e-8 of the row each, half of what fp16 can tell from 0, add up to most of z."""
    q = torch.full((1, 1, 20, 16), 1.0, device=DEVICE, dtype=F16)
    k = torch.zeros(1, 1, 301, 16, device=DEVICE, dtype=F16)
    k[:, :, 0] = 4.33  # exp(-17.3) is 3e-8
    v = torch.full((1, 1, 301, 3), 1e4, device=DEVICE, dtype=F16)
    v[:, :, 0] = 0
    groups = torch.arange(301, device=DEVICE)[None] % 2
    factors = torch.tensor([1.0, 2.0], device=DEVICE).view(1, 1, 1, 2)
    facts = {"form": form, "renormalise": renormalise, "causal": False}
    with use("triton"):
        found = group_reweighted_attention(q, k, v, groups, factors, **facts).z
    with use("reference"):
        wanted = group_reweighted_attention(q, k, v, groups, factors, **facts).z
    assert wanted.min() > 0.1
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)


@pytest.mark.parametrize("factor", [1e-6, 1e5])
def test_factors_of_any_size_stay_within_fp16(draw, factor, same):
    drawn = on_device(draw(2, 1, 9, 33, F16))
    groups, factors = edit_of(drawn, 3)
    with use("reference"):
        wanted = group_reweighted_attention(drawn.q, drawn.k, drawn.v, groups, factors, renormalise=False).z
    with use("triton"):
        found = group_reweighted_attention(
            drawn.q, drawn.k, drawn.v, groups, factor * factors, renormalise=False, form="two_pass"
        ).z
    torch.testing.assert_close(found / factor, wanted, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_and_two_runs(draw, form):
    drawn = on_device(draw(2, 1, 9, 33, F32, "right padding"))
    groups, _ = edit_of(drawn, 3)
    leaves = [x.requires_grad_() for x in (drawn.q, drawn.k, drawn.v)]

    def run(path):
        with use(path):
            z, _, masses = group_reweighted_attention(*leaves, groups, lambda m: (-m).exp(), form=form, **drawn.facts)
        return z, masses, *torch.autograd.grad(z.square().sum() + masses.square().sum(), leaves)

    first, second, wanted = run("triton"), run("triton"), run("reference")
    assert all(map(torch.equal, first, second))
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_mixed_dtypes_and_inputs_that_are_not_contiguous(draw, form, same):
    drawn = on_device(draw(2, 1, 9, 33, F32))
    groups, factors = edit_of(drawn, 3)
    q, k = drawn.q.mT.contiguous().mT.half(), drawn.k.transpose(1, 2).contiguous().transpose(1, 2)
    same(F16, group_reweighted_attention, q, k, drawn.v.bfloat16(), groups, factors, form=form)
    same(F32, group_reweighted_attention, q.float(), k.double(), drawn.v.double(), groups, factors, form=form)
