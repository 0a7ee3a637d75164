"""Missed mass and direct errors, against sums over the full pattern and zeroed keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from interp.explaining import explain
from interp.explaining.missed_mass import MissedMass
from interp.interventions.base import Plan, Prompt
from interp.interventions.policies.d2o import D2O
from interp.interventions.policies.think import ThinK
from tests.explaining.cases import THINK, Drop, G, S, ask, case_of
from tests.models import tokens


def test_missed_mass_is_the_patterns_mass_at_evicted_positions(lens):
    ds = ask(lens, Drop(), "missed_mass")
    text = torch.cat([tokens(1, S), tokens(1, G + 1, seed=5)[:, :-1]], 1)
    _, cache = lens.run_with_cache(text, names_filter=lambda n: n.endswith("hook_pattern"))
    for layer in range(3):
        pattern = cache["pattern", layer][0, :, S:].numpy()  # [head, step, token]
        for head in range(8):
            kv = head // 4
            gone = [i for i in range(S - 4) if i % 4 == kv]
            missed = pattern[head][:, gone].sum(-1)
            np.testing.assert_allclose(ds["missed_mass"][layer, head], missed, atol=1e-5)
            for step in range(G):
                row = np.sort(pattern[head, step, : S + step + 1])[::-1]
                least = row[S + step + 1 - len(gone) :].sum()
                top = int(np.ceil(0.2 * (S + step + 1) - 1e-9))
                np.testing.assert_allclose(ds["least_missed"][layer, head, step], least, atol=1e-5)
                np.testing.assert_allclose(ds["top_mass"][layer, head, step], row[:top].sum(), atol=1e-5)
                best = np.argsort(-pattern[head, step])[:top]
                recall = np.mean([i not in gone for i in best])
                np.testing.assert_allclose(ds["top_recall"][layer, head, step], recall, atol=1e-6)
    assert (ds["least_missed"] <= ds["missed_mass"] + 1e-6).all()


def test_a_policy_of_query_heads_that_waits_for_the_first_token(lens):
    """Until then the cache has the model's own heads; each query head misses what it evicted itself."""
    case = case_of(lens, D2O(budget=0.3, sinks=2, skip=(0,), granularity="query_head"))
    ds = MissedMass().ask(case)
    assert (ds["missed_mass"][0] == 0).all(), "a skipped layer holds everything"
    assert (ds["missed_mass"][:, :, 0] == 0).all(), "nor was anything gone at the first step"
    for layer in (1, 2):
        pattern = case.full.events[layer].pattern()[0]
        entries = [entry for entry in case.policy.ledger if entry.layer == layer]
        for head, step in ((h, t) for h in range(8) for t in range(1, G)):
            gone = torch.cat([e.evicted[0, head] for e in entries if e.step <= S + step])
            expected = pattern[head, step, gone].sum()
            np.testing.assert_allclose(ds["missed_mass"][layer, head, step], expected, atol=1e-5)


def test_tokens_evicted_at_a_step_are_missed_only_from_then_on(lens):
    case = case_of(lens, Drop(every=S, stepping=True))
    ds = MissedMass().ask(case)
    pattern = torch.stack([case.full.events[layer].pattern()[0] for layer in range(3)]).numpy()
    # the prompt's first eviction takes token h from head h; step t then takes the oldest that is left
    for head in range(8):
        kv = head // 4
        order = [kv] + [i for i in range(S) if i != kv]
        for step in range(G):
            expected = pattern[:, head, step, order[: step + 1]].sum(-1)
            np.testing.assert_allclose(ds["missed_mass"][:, head, step], expected, atol=1e-5)
    assert "logit_error" not in ds
    assert "acts at every step" in ds.attrs["absent"]


@pytest.mark.filterwarnings("ignore:.*dropped nothing")
@pytest.mark.parametrize("policy", [Drop(every=1000), ThinK(ratio=0.0, window=8), Drop(every=1000, stepping=False)])
def test_a_policy_that_drops_nothing_misses_and_moves_nothing(lens, policy):
    if isinstance(policy, Drop):
        policy = Nothing(policy.every)
    why = explain(lens, policy, tokens(1, S), tokens(1, G + 1, seed=5), ["missed_mass", "perturbation"])
    assert (why["missed_mass"]["missed_mass"] == 0).all()
    assert (why["missed_mass"]["least_missed"] == 0).all()
    assert (why["missed_mass"]["top_recall"] == 1).all()
    assert (why["missed_mass"]["logit_error"] == 0).all()
    assert why["missed_mass"]["output_error"].max() < 1e-5
    for name in ("head_error", "layer_error", "attn_out_error", "nll_difference", "kl"):
        assert (why["perturbation"][name] == 0).all(), name


@dataclass(frozen=True)
class Nothing(Drop):
    """Evicts nothing."""

    name: ClassVar[str] = "nothing"

    def begin(self, prompt: Prompt) -> Plan:
        return NothingPlan()


class NothingPlan(Plan):
    def compress(self, layer, stored):
        pass


def test_direct_errors_of_channels_against_zeroed_keys(lens):
    case = case_of(lens, THINK)
    ds = MissedMass().ask(case)
    for layer in range(3):
        event = case.full.events[layer]
        dense = case.policy.rest.stored[layer].keys  # zeros where a channel was dropped
        keys = torch.cat([dense, event.k[:, :, S:]], 2).repeat_interleave(4, 1)
        true = event.k.repeat_interleave(4, 1)
        causal = torch.ones(G, S + G, dtype=torch.bool).tril(S)
        scores, pruned = (event.q @ k.mT for k in (true, keys))
        error = ((scores - pruned) * causal).norm(dim=-1) / (scores * causal).norm(dim=-1)
        np.testing.assert_allclose(ds["logit_error"][layer], error[0], rtol=1e-4)
        weights = (pruned * event.scale).masked_fill(~causal, -torch.inf).softmax(-1)
        z = weights @ event.v.repeat_interleave(4, 1)
        full = (scores * event.scale).masked_fill(~causal, -torch.inf).softmax(-1) @ event.v.repeat_interleave(4, 1)
        np.testing.assert_allclose(
            ds["output_error"][layer], ((z - full).norm(dim=-1) / full.norm(dim=-1))[0], rtol=1e-4
        )
