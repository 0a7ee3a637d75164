"""One pass or two: how the blocked paths put an edit together.

With A split by groups, z_i = sum_g f_ig y_ig, where y_ig = sum of A_ij v_j over the keys of group g, and f follows
from the factors and the masses. One pass computes y next to the masses; two passes compute the masses, then z with A's
cells scaled by f. The softmax here is over the real keys alone: a sink's column only scales f.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

import torch
from torch import Tensor

from ..blocks import HALF_LIFT, lift
from ..checks import accumulator
from ..facts import Facts
from .backward import output_with_gradient, shares_with_gradient
from .edit import Edit

FORMS = ("auto", "one_pass", "two_pass")
ONE_PASS_NUMBERS = 1 << 22  # of y: 16 MB in fp32

Sums = Callable[[Tensor, Tensor, Tensor | None, Edit, Facts], tuple[Tensor | None, Tensor, Tensor]]
"""(q, k, v, edit, facts) -> y [B, H, N, G, R] (None without v), the groups' shares [B, H, N, G], lse [B, H, N]."""
Output = Callable[[Tensor, Tensor, Tensor, Edit, Tensor, Tensor, Facts], Tensor]
"""(q, k, v, edit, f [B, H, N, G], lse, facts) -> z [B, H, N, R], by scaling A's cells."""


def check_form(operation: str, form: str) -> None:
    """Raise ValueError unless there is such a form."""
    if form not in FORMS:
        near = get_close_matches(str(form), FORMS, n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'{operation}: form should be "auto", "one_pass" or "two_pass", found "{form}"{hint}.')


def reweight(
    sums: Sums, output: Output, q: Tensor, k: Tensor, v: Tensor, edit: Edit, facts: Facts
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, lse, masses) as documented in the package, with gradients."""
    keys_only = replace(facts, sinks=None)
    one_pass = edit.form == "one_pass" or (edit.form == "auto" and _fits(edit, v, facts))
    with torch.no_grad():
        parts, shares, lse = sums(q, k, v if one_pass else None, edit, keys_only)
    q_wide, k_wide = _wide(q), _wide(k)
    shares, lse = shares_with_gradient(shares, lse, q_wide, k_wide, edit, keys_only)
    kept = _beside_sink(lse, facts)
    masses = shares * kept
    scaling = _scaling(edit, edit.factors(masses), shares) * kept
    with torch.no_grad():
        if parts is None:
            factor = 1.0 if lift(v) is None else _row_lift(scaling, shares)
            z = output(q, k, v, edit, scaling * factor, lse, keys_only) / factor
        else:
            z = _combined(parts, scaling)
    return output_with_gradient(z, q_wide, k_wide, v, scaling, lse, edit, keys_only), lse, masses


def _wide(x: Tensor) -> Tensor:
    """x in accumulation dtype where its gradient is wanted: its two terms may cancel, so they are rounded as a sum."""
    return x.to(accumulator(x)) if x.requires_grad else x


def _row_lift(scaling: Tensor, shares: Tensor) -> Tensor:
    """A power of 2 for each row [B, H, N, 1] that lifts its cells as far as fp16 reaches.

    No cell is more than the edited share of its group, so none becomes more than 2 ** HALF_LIFT.
    """
    _, exponent = torch.frexp((scaling * shares).amax(-1, keepdim=True))
    return torch.exp2(HALF_LIFT - exponent)


def _fits(edit: Edit, v: Tensor, facts: Facts) -> bool:
    batch, heads, queries, _ = facts.shape
    return batch * heads * queries * edit.count * v.shape[-1] <= ONE_PASS_NUMBERS


def _beside_sink(lse: Tensor, facts: Facts) -> Tensor:
    """What the sink's column leaves to the real keys, [B, H, N, 1]."""
    if facts.sinks is None:
        return torch.ones_like(lse)[..., None]
    return torch.sigmoid(lse - facts.sinks.to(lse.dtype)[:, None])[..., None]


def _scaling(edit: Edit, factors: Tensor, shares: Tensor) -> Tensor:
    """f for a softmax over real keys alone, [B, H, N, G]; 0 where a row or group holds nothing, whatever c is there."""
    factors = torch.where(shares > 0, factors, 0.0)
    if not edit.renormalise:
        return factors
    total = (factors * shares).sum(-1, keepdim=True)
    nothing = total == 0
    return torch.where(nothing, 0.0, factors / torch.where(nothing, 1.0, total))


def _combined(parts: Tensor, scaling: Tensor) -> Tensor:
    """sum_g f_g y_g, a group at a time: no second array of G times z."""
    z = parts[..., 0, :] * scaling[..., 0, None]
    for group in range(1, parts.shape[-2]):
        z.addcmul_(parts[..., group, :], scaling[..., group, None])
    return z
