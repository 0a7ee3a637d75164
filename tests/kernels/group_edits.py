"""Random edits of attention by groups of keys, and what they should give, written out cell by cell."""

from __future__ import annotations

import math

import torch
from interp_kernels.group_reweighted_attention import group_reweighted_attention

FORMS = ["one_pass", "two_pass"]
CLEAN = ["causal", "window", "softcap", "sinks", "offset", "dense", "bidirectional", "bias by key"]
"""Facts that pad nothing."""


def add_edit(drawn, count=3, per_head=False, seed=0, dtype=torch.float64):
    """Put random groups, factors and edited rows next to drawn inputs."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, queries, _ = drawn.q.shape
    shape = (batch, heads, drawn.k.shape[2]) if per_head else (batch, drawn.k.shape[2])
    drawn.groups = torch.randint(0, count, shape, generator=generator)
    drawn.factors = 2 * torch.rand(batch, heads, queries, count, generator=generator, dtype=dtype)
    drawn.factors[..., 0] *= torch.rand(batch, heads, queries, generator=generator) > 0.3  # some groups are removed
    drawn.rows = torch.rand(batch, heads, queries, generator=generator) > 0.3
    return drawn


def visible(facts, b, h, i, j, queries, keys):
    """Whether query i sees key j, read off the facts' documentation."""
    kept = all(
        mask[b, at] for mask, at in ((facts.get("key_mask"), j), (facts.get("query_mask"), i)) if mask is not None
    )
    mask = facts.get("mask")
    if mask is not None:
        return bool(kept and mask[b % mask.shape[0], h % mask.shape[1], i, j])
    distance = i + facts.get("offset", keys - queries) - j
    window = facts.get("window")
    behind = distance >= 0 or (window is None and not facts.get("causal", True))
    return bool(kept and behind and (window is None or distance < window))


def row_of_a(drawn, b, h, i):
    """A's row as a dictionary of its visible keys, and its lse, by the definition of a softmax."""
    (_, heads, queries, size), (_, stored, keys, _) = drawn.q.shape, drawn.k.shape
    facts = drawn.facts
    scores = {}
    for j in range(keys):
        if visible(facts, b, h, i, j, queries, keys):
            score = (drawn.q[b, h, i] @ drawn.k[b, h // (heads // stored), j]).item() * facts.get("scale", size**-0.5)
            cap = facts.get("softcap")
            scores[j] = score if cap is None else cap * math.tanh(score / cap)
            if "bias" in facts:
                bias = facts["bias"]
                scores[j] += bias[b % bias.shape[0], h % bias.shape[1], i % bias.shape[2], j].item()
    total = sum(map(math.exp, scores.values()))
    sink = math.exp(facts["sinks"][h]) if "sinks" in facts else 0.0
    lse = math.log(total) if scores else -math.inf
    return {j: math.exp(score) / (total + sink) for j, score in scores.items()}, lse


def written_out(drawn, factors_of, renormalise=True):
    """(z, lse, masses) by loops over every row; factors_of(b, h, i, A's row by key) -> factor by key."""
    batch, heads, queries, _ = drawn.q.shape
    count = drawn.factors.shape[-1]
    z = torch.zeros(batch, heads, queries, drawn.v.shape[-1], dtype=torch.float64)
    lse, masses = torch.zeros(z.shape[:3], dtype=torch.float64), torch.zeros(*z.shape[:3], count, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            values = drawn.v[b, h // (heads // drawn.v.shape[1])]
            for i in range(queries):
                row, lse[b, h, i] = row_of_a(drawn, b, h, i)
                factors = factors_of(b, h, i, row)
                edited = {j: factors[j] * p for j, p in row.items()}
                left = sum(edited.values())
                scale = sum(row.values()) / left if renormalise and left else 1.0
                for j, p in row.items():
                    masses[b, h, i, group_of(drawn, b, h, j)] += p
                    z[b, h, i] += scale * edited[j] * values[j]
    return z, lse, masses


def group_of(drawn, b, h, j):
    return int(drawn.groups[b, j] if drawn.groups.ndim == 2 else drawn.groups[b, h, j])


def given_factors(drawn):
    """Factors by key from drawn.factors, where drawn.rows says that the row is edited."""

    def factors(b, h, i, row):
        edited = drawn.rows[b, h, i]
        return {j: drawn.factors[b, h, i, group_of(drawn, b, h, j)].item() if edited else 1.0 for j in row}

    return factors


def assert_same(found, wanted, tolerance):
    """Equal to tolerance, absolute below 1 and relative above; -inf only where wanted, and NaN nowhere."""
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert not one.isnan().any()
        infinite = other == -torch.inf
        assert torch.equal(one == -torch.inf, infinite)
        error = (one - other).abs() / other.abs().clamp(min=1)
        assert error.masked_fill(infinite, 0).max() <= tolerance


def edit(drawn, **kwargs):
    return group_reweighted_attention(
        drawn.q, drawn.k, drawn.v, drawn.groups, drawn.factors, **({"rows": drawn.rows} | kwargs), **drawn.facts
    )
