"""Summary tokens stand for evicted tokens and are none of the text's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from interp.explaining.memberships import memberships
from interp.explaining.missed_mass import MissedMass
from interp.explaining.restoring import with_channels, with_tokens
from interp.explaining.scores import channel_scores, token_scores
from interp.interventions.policies.recall import Recall
from interp.interventions.policies.think import ThinK
from tests.explaining.cases import THINK, S, case_of
from tests.explaining.test_attribution import check_all_put_back
from tests.models import tokens

RECALL = Recall(budget=0.5, sinks=2)
MANY = Recall(budget=0.9, sinks=2, summaries=0.5)  # of single tokens, most of them
WITH_CHANNELS = {
    "packed": RECALL | dataclasses.replace(THINK, recent=2),
    "dense": RECALL | dataclasses.replace(THINK, recent=10, sinks=1),
    "sinks": RECALL | dataclasses.replace(THINK, recent=2, sinks=12),
    "query heads": RECALL | dataclasses.replace(THINK, recent=2, granularity="query_head"),
    "values": RECALL | ThinK(ratio=0.0, value_ratio=0.5, window=8, recent=2),
}


def evicted(case) -> dict[int, torch.Tensor]:
    """Positions that the policy wrote down as evicted, by layer: `[head, E]`."""
    return {entry.layer: entry.evicted[0] for entry in case.policy.ledger}


@pytest.mark.parametrize("policy", [RECALL, MANY, *WITH_CHANNELS.values()])
def test_a_summary_holds_no_token_of_the_text(lens, policy):
    case = case_of(lens, policy)
    missed = MissedMass().ask(case)
    for layer, gone in evicted(case).items():
        heads = case.policy.evicted_at[layer].shape[0]
        for head in range(heads):
            lost = gone[head * 2 // heads].tolist()
            found = case.policy.evicted_at[layer][head]
            assert (found == 0).nonzero()[:, 0].tolist() == sorted(lost)
        pattern = case.full.events[layer].pattern()[0]  # [head, step, token]
        for head in range(8):
            mass = pattern[head][:, gone[head // 4]].sum(-1)
            torch.testing.assert_close(torch.from_numpy(missed["missed_mass"].values)[layer, head], mass)


@pytest.mark.parametrize("policy", [RECALL, MANY])
def test_logits_of_the_tokens_that_are_held_are_exact(lens, policy):
    assert (MissedMass().ask(case_of(lens, policy))["logit_error"] == 0).all()


@pytest.mark.parametrize("policy", [RECALL, MANY, *WITH_CHANNELS.values()])
def test_a_summarys_value_is_the_mean_of_its_members(lens, policy):
    case = case_of(lens, policy)
    with lens.apply(RECALL if policy is not MANY else MANY):
        lens(case.prompt, use_cache=True)
    stored = lens.last_cache.stored
    members = memberships(case)
    assert sorted(members) == [0, 1, 2]
    for layer, member in members.items():
        spread = member.share.shape[0] // 2
        values = case.full.events[layer].v[0, :, :S].repeat_interleave(spread, 0)
        made = stored[layer].segments[1].values[0].repeat_interleave(spread, 0)
        for head, summary in ((h, s) for h in range(len(values)) for s in range(member.count)):
            own = member.summary[head] == summary
            assert own.any()
            mean = (member.share[head][own, None] * values[head][own]).sum(0)
            torch.testing.assert_close(mean, made[head, summary], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("policy", [RECALL, MANY])
def test_putting_all_tokens_back_is_the_full_cache(lens, policy):
    case = case_of(lens, policy)
    check_all_put_back(case, "tokens", list(token_scores(case)))


@pytest.mark.parametrize("policy", [RECALL, *WITH_CHANNELS.values()])
def test_a_token_that_comes_back_takes_its_attention_and_value_along(lens, policy):
    """Attention that the prompt's last quarter pays to the summary falls by what it paid to the token."""
    case = case_of(lens, policy)
    member = memberships(case)[1]
    _, seen = lens.run_with_cache(case.prompt, names_filter=lambda n: n.startswith("blocks.1.attn.hook_"))
    pattern, queries = seen["pattern", 1][0, :, -S // 4 :], seen["rot_q", 1][0, -S // 4 :].transpose(0, 1)
    lse = seen["lse", 1][0, :, -S // 4 :]
    heads = member.share.shape[0]
    event = case.full.events[1]
    summary, position = next(
        (s, int(own[0]))
        for s in range(member.count)
        if len(own := (member.summary[heads // 2] == s).nonzero()[:, 0]) > 1
    )
    keys, values = ({1: x[:, :, :S]} for x in (event.k, event.v))
    cache = with_tokens(case.policy.rest, keys, values, [[], [(1, heads // 2, position)]], memberships(case))
    before, after = held_by(cache, 1, heads // 2)
    assert int(before.of_summary.sum()) == member.count
    place = [i for i, own in enumerate(before.of_summary.tolist()) if own][summary]
    # a head of the second group, and the rows that its summary was fitted to
    rows = queries[4:] * event.scale
    given = [
        (rows @ before.keys[place] + side.log_count[place] - lse[4:]).exp().sum().item() for side in (before, after)
    ]
    if all(
        s.channels is None for s in case.policy.rest.stored[1].segments
    ):  # a pruned key no longer gives what it was fitted to
        assert given[0] - given[1] == pytest.approx(float(pattern[4:, :, position].sum()), rel=1e-3)
    share = float(member.share[heads // 2, position])
    kept = before.values[place] != 0
    joined = (1 - share) * after.values[place] + share * event.v[0, 1, position]
    torch.testing.assert_close(joined[kept], before.values[place][kept], atol=1e-5, rtol=1e-4)
    others = [i for i in range(len(before.keys)) if i != place]
    assert torch.equal(before.log_count[others], after.log_count[others])
    assert torch.equal(before.values[others], after.values[others])


@dataclasses.dataclass
class Held:
    """What one head of a layer holds, without tokens put back."""

    keys: torch.Tensor
    values: torch.Tensor
    log_count: torch.Tensor
    of_summary: torch.Tensor


def held_by(cache, layer: int, head: int) -> list[Held]:
    """Of every row of a cache, in the order in which the token policy left it."""
    back, *own = cache.stored[layer].segments
    if own[0].channels is not None or own[0].value_channels is not None:
        own = [*own[1:-1], own[0], own[-1]]

    def column(row: int, of) -> torch.Tensor:
        return torch.cat([of(s).expand(*s.keys.shape[:2], *of(s).shape[2:])[row, head] for s in own])

    zero = lambda s: torch.zeros(s.keys.shape[:3]) if s.log_count is None else s.log_count  # noqa: E731
    return [
        Held(
            column(row, lambda s: s.dense_keys(8)),
            column(row, lambda s: s.dense_values(8)),
            column(row, zero),
            column(row, lambda s: ~s.of_the_text()),
        )
        for row in range(back.keys.shape[0])
    ]


def test_channels_come_back_to_tokens_of_the_text_only(lens):
    case = case_of(lens, WITH_CHANNELS["packed"])
    places = list(channel_scores(case))
    keys = {i: event.k[:, :, :S] for i, event in case.full.events.items()}
    cache = with_channels(case.policy.rest, keys, [places])
    for layer, stored in cache.stored.items():
        packed, was = stored.segments[0], case.policy.rest.stored[layer].segments[0]
        true = keys[layer].gather(2, packed.at().long().clamp_min(0)[..., None].expand(-1, -1, -1, 8))
        text = packed.of_the_text()[..., None]
        assert int((~text).sum()) == 2 * RECALL.summary_tokens(20)
        assert torch.equal(packed.dense_keys(8), torch.where(text, true, was.dense_keys(8)))


@pytest.mark.filterwarnings("ignore:.*dropped nothing")
def test_a_prompt_that_fits_has_no_summaries(lens):
    case = case_of(lens, Recall(budget=S, sinks=2), prompt=tokens(1, S))
    assert not memberships(case)
    assert all(s.of_the_text().all() for stored in case.policy.rest.stored.values() for s in stored.segments)
