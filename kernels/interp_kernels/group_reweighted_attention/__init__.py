"""Attention edited by groups of keys: every row's mass on a group is scaled, by factors that the masses may decide."""

from __future__ import annotations

from typing import NamedTuple, Unpack

from torch import Tensor

from ..checks import expect_bool, expect_float, expect_shape
from ..dispatch import choose, kernel
from ..facts import MaskFacts, resolve
from . import cpu, reference
from .edit import Edit, Rule, checked_groups
from .forms import check_form
from .rules import knock_out, visual_redistribution

__all__ = ["Reweighted", "group_reweighted_attention", "knock_out", "visual_redistribution"]

PATHS = {
    "reference": reference.group_reweighted_attention,
    "cpu": cpu.group_reweighted_attention,
    "triton": kernel(__name__, "group_reweighted_attention"),
}


class Reweighted(NamedTuple):
    """What `group_reweighted_attention` returns; all in fp32 (fp64 where q is fp64, whatever k and v are)."""

    z: Tensor
    """A' @ v, [B, H, N, R]."""
    lse: Tensor
    """Of the row before the edit, as `attention_apply` returns it: [B, H, N], nats; -inf for an empty row."""
    masses: Tensor
    """Sum of A over each group's keys, [B, H, N, G], before the edit: a row sums to 1, or to less with sinks."""


def group_reweighted_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Tensor,
    rule: Rule | Tensor,
    *,
    rows: Tensor | None = None,
    renormalise: bool = True,
    form: str = "auto",
    group_count: int | None = None,
    **facts: Unpack[MaskFacts],
) -> Reweighted:
    """z = A' @ v, where A'_ij is c_{i, g(j)} A_ij, each row scaled to the sum that it had in A.

    Args:
        q: `[B, H, N, D]`, fp64, fp32, bf16 or fp16.
        k: `[B, Hk, S, D]`, the same dtypes. Hk divides H; query head h reads kv head h // (H // Hk).
        v: `[B, Hk or H, S, R]`, any R.
        groups: which group every key is in, integers 0 .. G-1 with G <= 8: `[B, S]` or `[B, 1, S]`, or `[B, H, S]` to
            differ by query head. At padding keys it may hold anything.
        rule: the factors c, `[B or 1, H or 1, N or 1, G]`; or a function from the masses `[B, H, N, G]` to such
            factors. It is called once, after all masses are known, and may run any torch code. c = 0 removes a group
            from a row.
        rows: bool `[B, H, N]` or `[B, N]`, False for rows that stay as they are; None: all rows are edited.
        renormalise: False leaves A' = c A as it is. A row of which nothing is left is zero either way.
        form: "one_pass" keeps z of each group apart until the rule has spoken: q @ k^T is computed once, and memory is
            G times z. "two_pass" computes the masses first and then q @ k^T again. "auto" takes one pass while
            B H N G R is at most 2^22 (16 MB in fp32), as in decoding, else two. The results are the same up to
            rounding.
        group_count: G for a rule that is a function; None: the largest group in `groups`, and one.
        facts: see `MaskFacts`. With `sinks` the dropped column keeps the probability that it had: only the real keys
            are scaled back to their own sum, so that they and the sink's column sum to 1 as before.

    Returns:
        `Reweighted`, summed and returned in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError, TypeError: in one sentence, on shapes, dtypes and values that do not fit.

    Gradients flow from all three results to q, k, v, sinks and factors given outright, and through a rule that is
    differentiable. Backward rebuilds A in blocks (in torch, for Triton's path too); there are no second derivatives.

    Cost for P visible (query, key) pairs a head: 2 H P (D + R) FLOPs and H P exponentials in one pass (G times as many
    on a GPU, where one pass is for few rows), 2 H P (2 D + R) and 2 H P in two. Reads q and k once a pass, v once, and
    writes H N (R + G + 1) numbers, in one pass G times z as well; extra memory O((N + S) (D + R)) and one block of
    scores. Backward: 12 H P D + 4 H P R FLOPs. That the groups lie in range is looked up, which waits for a GPU once.
    Source: visual attention redistribution (Kang et al. 2025, arXiv:2503.03321) for masses of groups that decide
    factors; adding log c to the scores and taking the softmax again is the same edit.

    Examples:
        >>> groups = torch.tensor([[1, 0, 0, 0, 0, 0]])  # the first key by itself
        >>> edited = interp_kernels.group_reweighted_attention(q, k, v, groups, interp_kernels.knock_out(1))
        >>> edited.z.shape
        torch.Size([1, 4, 6, 8])
    """
    operation = "group_reweighted_attention"
    resolved = resolve(operation, q, k, **facts)
    batch, heads, queries, keys = resolved.shape
    expect_float(operation, v=v)
    expect_shape(operation, "v", v, "B Hk|H S R", {"B": (batch,), "Hk|H": (k.shape[1], heads), "S": (keys,)})
    if rows is not None:
        expect_bool(operation, rows=rows)
        pattern = "B N" if rows.ndim == 2 else "B H N"
        expect_shape(operation, "rows", rows, pattern, {"B": (batch,), "H": (heads,), "N": (queries,)})
        rows = rows if rows.ndim == 3 else rows[:, None]
    check_form(operation, form)
    if isinstance(rule, Tensor):
        sizes = {"B|1": (batch, 1), "H|1": (heads, 1), "N|1": (queries, 1)}
        expect_float(operation, rule=rule)
        expect_shape(operation, "rule", rule, "B|1 H|1 N|1 G", sizes)
        if group_count not in (None, rule.shape[-1]):
            raise ValueError(f"{operation}: group_count {group_count} and rule {list(rule.shape)} differ in G.")
        group_count = rule.shape[-1]
    elif not callable(rule):
        raise TypeError(f"{operation}: rule should be a function or a tensor of factors, found {type(rule).__name__}.")
    groups, group_count = checked_groups(operation, groups, group_count, resolved)
    edit = Edit(groups, group_count, rule, rows, renormalise, form)
    return Reweighted(*choose(PATHS, q)(q, k, v, edit, resolved))
