"""Merging of evicted tokens: worked examples, loops over tokens, and what must hold of any keys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interp_kernels import merge_tokens, nearest_key

from interp.interventions.policies._merging import factors, own_weight

MODES = ["paper", "code"]
quick = settings(max_examples=40, deadline=None)
seeds, few, many = st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 12)


def nearest(evicted: torch.Tensor, retained: torch.Tensor, hidden: torch.Tensor | None = None) -> Any:
    """(similarity, target), 0 where all are hidden."""
    found = nearest_key(evicted, retained, None, None if hidden is None else ~hidden)
    return found.similarity, found.target.clamp(min=0)


def merged(
    retained: torch.Tensor,
    evicted: torch.Tensor,
    target: torch.Tensor,
    similarity: torch.Tensor,
    gate: torch.Tensor,
    weights: Any,
    centre: float = math.e,
) -> torch.Tensor:
    weight, counted = factors(similarity, weights)
    own = own_weight(weights, centre)
    return merge_tokens(retained, evicted, target, weight, counted=counted, own=own, merged=gate)


def drawn(seed: int, batch: int, heads: int, evicted: int, retained: int, d: int = 5) -> dict[str, Any]:
    """Random keys of two sets, with their similarities and a random gate."""
    generator = torch.Generator().manual_seed(seed)
    lost = torch.randn(batch, heads, evicted, d, generator=generator)
    kept = torch.randn(batch, heads, retained, d, generator=generator)
    similarity, target = nearest(lost, kept)
    gate = torch.rand(similarity.shape, generator=generator) < 0.5
    return {"retained": kept, "evicted": lost, "target": target, "similarity": similarity, "gate": gate}


def shares(case: dict[str, Any], weights: Any, centre: float = math.e) -> torch.Tensor:
    """Weight of every token in every new target `[batch, head, R, R + E]`, found by merging unit vectors."""
    r, e = case["retained"].shape[2], case["evicted"].shape[2]
    unit = torch.eye(r + e).expand(*case["target"].shape[:2], -1, -1)
    return merged(unit[:, :, :r], unit[:, :, r:], case["target"], case["similarity"], case["gate"], weights, centre)


@pytest.mark.parametrize(
    ("weights", "centre", "wanted"),
    [
        ("paper", math.e, [0.402, 0.329, 0.269]),
        ("code", math.e, [0.333, 0.267, 0.2]),
        ("paper", 0.1, [0.0239, 0.5368, 0.4395]),  # 0.1, exp(0.8), exp(0.6) over their sum 4.1477
    ],
)
def test_two_tokens_merged_into_one(weights: Any, centre: float, wanted: list[float]) -> None:
    """Similarities 0.8 and 0.6 to the second of three retained tokens."""
    case = {
        "retained": torch.zeros(1, 1, 3, 1), "evicted": torch.zeros(1, 1, 2, 1), "target": torch.tensor([[[1, 1]]]),
        "similarity": torch.tensor([[[0.8, 0.6]]]), "gate": torch.tensor([[[True, True]]]),
    }  # fmt: skip
    found = shares(case, weights, centre)[0, 0]
    torch.testing.assert_close(found[1, [1, 3, 4]], torch.tensor(wanted), rtol=0, atol=5e-4)
    assert torch.equal(found[[0, 2]], torch.eye(5)[[0, 2]])


@pytest.mark.parametrize("weights", MODES)
@quick
@given(seed=seeds, evicted=many)
def test_copies_of_a_token_leave_it_as_it_is(weights: Any, seed: int, evicted: int) -> None:
    """u = 1: keys are copies of retained ones, and so are values."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 2, 3, 6, 5, generator=generator)
    origin = torch.randint(0, 6, (2, 3, evicted), generator=generator)
    index = origin[..., None].expand(-1, -1, -1, 5)
    similarity, target = nearest(keys.gather(2, index), keys)
    assert torch.equal(target, origin)
    torch.testing.assert_close(similarity, torch.ones_like(similarity))
    everywhere = torch.ones_like(target, dtype=torch.bool)
    for x in (keys, values):
        found = merged(x, x.gather(2, index), target, similarity, everywhere, weights)
        torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)


@quick
@given(seed=seeds, batch=few, heads=few, evicted=many, retained=many, centre=st.floats(0.01, 10))
def test_paper_weights_sum_to_one(
    seed: int, batch: int, heads: int, evicted: int, retained: int, centre: float
) -> None:
    found = shares(drawn(seed, batch, heads, evicted, retained), "paper", centre)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


@quick
@given(seed=seeds, batch=few, heads=few, evicted=many, retained=many)
def test_released_weights_sum_to_at_most_one(seed: int, batch: int, heads: int, evicted: int, retained: int) -> None:
    """(1 + Σ u) / (1 + n), so less than 1 unless all are alike."""
    case = drawn(seed, batch, heads, evicted, retained)
    found = shares(case, "code").sum(-1)
    assert (found <= 1 + 1e-6).all()
    u = case["similarity"].where(case["gate"], 0.0)
    n = torch.zeros_like(found).scatter_add_(2, case["target"], case["gate"].float())
    torch.testing.assert_close(found, (1 + torch.zeros_like(found).scatter_add_(2, case["target"], u)) / (1 + n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", MODES)
@quick
@given(seed=seeds, batch=few, heads=few, evicted=many, retained=many)
def test_tokens_that_nothing_is_merged_into_keep_every_bit(
    weights: Any, dtype: torch.dtype, seed: int, batch: int, heads: int, evicted: int, retained: int
) -> None:
    case = drawn(seed, batch, heads, evicted, retained)
    kept, lost = case["retained"].to(dtype), case["evicted"].to(dtype)
    found = merged(kept, lost, case["target"], case["similarity"], case["gate"], weights)
    touched = torch.zeros(kept.shape[:3], dtype=torch.long).scatter_add_(2, case["target"], case["gate"].long()) > 0
    assert found.dtype == dtype
    assert torch.equal(found[~touched], kept[~touched])
    none = merged(kept, lost, case["target"], case["similarity"], torch.zeros_like(case["gate"]), weights)
    assert torch.equal(none, kept)


@pytest.mark.parametrize("weights", MODES)
@quick
@given(seed=seeds, evicted=many, retained=many, centre=st.floats(0.05, 5))
def test_merges_one_token_at_a_time_by_hand(
    weights: Any, seed: int, evicted: int, retained: int, centre: float
) -> None:
    case = drawn(seed, 2, 2, evicted, retained)
    found = merged(**case, weights=weights, centre=centre)
    for b, h, j in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(retained)).tolist():
        top, bottom = case["retained"][b, h, j].double(), 1.0
        if weights == "paper":
            top, bottom = centre * top, centre
        for i in range(evicted):
            if case["target"][b, h, i] == j and case["gate"][b, h, i]:
                u = float(case["similarity"][b, h, i])
                top = top + (math.exp(u) if weights == "paper" else u) * case["evicted"][b, h, i].double()
                bottom += math.exp(u) if weights == "paper" else 1.0
        torch.testing.assert_close(found[b, h, j].double(), top / bottom, rtol=1e-5, atol=1e-6)


def test_half_precision_merges_are_averaged_in_fp32() -> None:
    """300 tokens at 300 each: a sum in fp16 would be infinite, the mean is 300."""
    case = {
        "target": torch.zeros(1, 1, 300, dtype=torch.long), "similarity": torch.ones(1, 1, 300),
        "gate": torch.ones(1, 1, 300, dtype=torch.bool),
    }  # fmt: skip
    for weights in MODES:
        kept, lost = torch.full((1, 1, 1, 2), 300.0).half(), torch.full((1, 1, 300, 2), 300.0).half()
        assert (merged(kept, lost, **case, weights=weights) == 300).all()  # type: ignore[arg-type]


@quick
@given(seed=seeds, batch=few, heads=few, evicted=many, retained=many)
def test_nearest_is_the_largest_cosine(seed: int, batch: int, heads: int, evicted: int, retained: int) -> None:
    """Against torch's own cosine similarity of every pair; hidden tokens are never found."""
    case = drawn(seed, batch, heads, evicted, retained)
    kept, lost = case["retained"], case["evicted"]
    every = torch.cosine_similarity(lost[:, :, :, None], kept[:, :, None], dim=-1)
    torch.testing.assert_close(case["similarity"], every.amax(-1))
    torch.testing.assert_close(every.gather(-1, case["target"][..., None])[..., 0], every.amax(-1))
    hidden = torch.rand(kept.shape[:3], generator=torch.Generator().manual_seed(seed + 1)) < 0.4
    similarity, target = nearest(lost, kept, hidden)
    wanted = every.masked_fill(hidden[:, :, None], -torch.inf).amax(-1)
    torch.testing.assert_close(similarity, wanted)
    some = (~hidden).any(-1)
    assert not hidden.gather(2, target)[some].any()
    assert (similarity[~some] == -torch.inf).all()


def test_similarity_does_not_overflow_in_half_precision() -> None:
    """Keys beyond 255 have squares beyond fp16."""
    keys = torch.tensor([[300.0, 400.0], [400.0, -300.0]]).half()[None, None]
    similarity, target = nearest(keys[:, :, :1] * 2, keys)
    assert target.item() == 0
    torch.testing.assert_close(similarity, torch.ones(1, 1, 1))
