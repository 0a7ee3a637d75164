"""Overlap and drift of channel sets, against the sets that a cache stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.explaining.masks import Masks, chance_overlap, jaccard
from interp.interventions.policies.think import ThinK
from tests.explaining.cases import THINK, Drop, G, S, ask
from tests.models import tokens


def test_jaccard_and_its_expectation_by_chance():
    a = torch.tensor([True, True, False, False])
    assert jaccard(a, a) == 1
    assert jaccard(a, ~a) == 0
    assert jaccard(a, torch.tensor([True, False, True, False])) == pytest.approx(1 / 3)
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(rng.uniform(size=(2, 20_000, 16)).argsort(-1) < 5)
    assert jaccard(*drawn).mean() == pytest.approx(chance_overlap(16, 5), abs=0.005)


def test_masks_are_the_stored_channels_and_identical_prompts_agree(lens):
    ds = ask(lens, THINK, Masks(other_prompts=(tokens(1, S), tokens(1, S, seed=9)), checkpoints=(0, 3, G)))
    with lens.apply(THINK):
        lens(tokens(1, S), use_cache=True)
    for layer, stored in lens.last_cache.stored.items():
        kept = [np.flatnonzero(ds["kept"][layer, head]).tolist() for head in range(2)]
        assert kept == stored.segments[0].channels[0].tolist()
        a, b = map(set, kept)
        assert ds["overlap_heads"][layer, 0, 1] == pytest.approx(len(a & b) / len(a | b))
    assert (ds["overlap_prompts"][..., 0, 1] == 1).all()
    assert (ds["overlap_prompts"][..., 0, 2] < 1).any()
    assert (ds["drift"].sel(checkpoint=0) == 1).all(), "chosen again at once, the same policy chooses the same"


@pytest.mark.parametrize("policy", [THINK, Drop() | THINK])
def test_drift_is_what_the_policy_chooses_for_the_longer_prompt(lens, policy):
    ds = ask(lens, policy, Masks(checkpoints=(4, G)))
    text = torch.cat([tokens(1, S), tokens(1, G + 1, seed=5)], 1)
    for checkpoint in (4, G):
        with lens.apply(policy):
            lens(text[:, : S + checkpoint], use_cache=True)
        for layer, stored in lens.last_cache.stored.items():
            later = next(s for s in stored.segments if s.channels is not None).channels[0]
            for head in range(2):
                a, b = set(np.flatnonzero(ds["kept"][layer, head])), set(later[head].tolist())
                assert ds["drift"].sel(checkpoint=checkpoint)[layer, head] == pytest.approx(len(a & b) / len(a | b))


def test_masks_of_value_channels(lens):
    policy = ThinK(ratio=0.0, value_ratio=0.25, window=8, recent=8)
    ds = ask(lens, policy, "masks")
    assert ds.attrs["of"] == "values"
    assert (ds["kept"].sum("channel") == 6).all()
