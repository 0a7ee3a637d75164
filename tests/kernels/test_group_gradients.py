"""Gradients of group_reweighted_attention: exact, the same on every path, and never as large as the pattern."""

from __future__ import annotations

import interp_kernels as ik
import pytest
import torch
from interp_kernels.group_reweighted_attention import group_reweighted_attention, visual_redistribution

from tests.kernels.group_edits import CLEAN, FORMS, add_edit, assert_same, edit


def small(draw, name="causal", **kwargs):
    drawn = add_edit(draw(2, 1, 2, 3, torch.float64, name, size=2, columns=2), **kwargs)
    drawn.leaves = [x.clone().requires_grad_() for x in (drawn.q, drawn.k, drawn.v)]
    return drawn


@pytest.mark.parametrize("name", CLEAN)
def test_gradient_of_factors_given_outright(draw, form, name):
    drawn = small(draw, name, per_head=name == "dense")
    options = {"rows": drawn.rows, "form": form, "renormalise": name in ("causal", "sinks", "dense", "offset")}
    sinks = drawn.facts.pop("sinks", torch.zeros(2)).double().requires_grad_() if name == "sinks" else None

    def run(q, k, v, factors, sinks=None):
        return group_reweighted_attention(q, k, v, drawn.groups, factors, sinks=sinks, **options, **drawn.facts)

    def finite(*inputs):  # gradcheck cannot take the -inf of an empty row
        z, lse, masses = run(*inputs)
        return z, lse[lse > -torch.inf], masses

    inputs = [*drawn.leaves, (drawn.factors + 0.1).requires_grad_()]
    assert torch.autograd.gradcheck(finite, inputs if sinks is None else [*inputs, sinks])


@pytest.mark.parametrize("rule", ["smooth", "VAR"])
@pytest.mark.parametrize("name", ["causal", "softcap", "sinks"])
def test_gradient_through_a_rule(draw, form, name, rule):
    drawn = small(draw, name, count=4)
    rules = {"smooth": lambda masses: (masses.mean(1, keepdim=True) - masses).exp()}
    rules["VAR"] = visual_redistribution(0.4, 0.05, 0.1)

    def run(*leaves):
        return group_reweighted_attention(*leaves, drawn.groups, rules[rule], form=form, group_count=4, **drawn.facts).z

    assert torch.autograd.gradcheck(run, drawn.leaves)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_head", [False, True])
def test_blocked_gradient_equals_the_reference(draw, form, facts_name, dtype, per_head):
    """With NaN in padding, whose gradient is zero, and a rule that divides by masses that may be zero."""
    drawn = add_edit(draw(6, 2, 70, 90, dtype, facts_name), per_head=per_head)
    drawn.v = drawn.x if per_head else drawn.v
    leaves = [x.requires_grad_() for x in (drawn.q, drawn.k, drawn.v)]
    weights = torch.randn(3, 2, 6, 70, 1, dtype=torch.float64)

    def gradients(path):
        with ik.use(path):
            z, lse, masses = group_reweighted_attention(
                *leaves, drawn.groups, lambda m: 1 / (0.1 + m), rows=drawn.rows, form=form, **drawn.facts
            )
        visible = lse.masked_fill(lse == -torch.inf, 0)[..., None]
        loss = sum((w * x).sum() for w, x in zip(weights, (z, visible, masses), strict=True))
        found = torch.autograd.grad(loss, leaves)
        assert all(gradient.dtype == dtype for gradient in found)
        return found

    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert_same(gradients("cpu"), gradients("reference"), tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["offset", "right padding", "nothing visible"])
def test_gradients_of_nan_stay_where_nothing_is_visible(draw, form, name):
    """Rules that divide by a mass of 0, and a loss that compares rows without a key."""
    drawn = add_edit(draw(4, 2, 20, 20, torch.float64, name))
    leaves = [x.requires_grad_() for x in (drawn.q, drawn.k, drawn.v)]

    def gradients(path):
        with ik.use(path):
            z, lse, _ = group_reweighted_attention(*leaves, drawn.groups, lambda m: 1 / m, form=form, **drawn.facts)
        over_heads = lse.logsumexp(1)
        return torch.autograd.grad((z, over_heads), leaves, (torch.ones_like(z), torch.ones_like(over_heads)))

    assert_same(gradients("cpu"), gradients("reference"), 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_that_backward_keeps_is_as_large_as_the_pattern(draw, form):
    drawn = add_edit(draw(2, 1, 400, 400))
    drawn.q.requires_grad_()
    kept = []
    with ik.use("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        edit(drawn, form=form).z.sum().backward()
    assert kept
    assert max(kept) < 2 * 2 * 400 * 32
