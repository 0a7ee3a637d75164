"""TOVA beside plain eager attention over a full cache, whose last row decides which token each layer hides next."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import interp
from interp import H2O, KnockOut, ThinK
from interp.errors import InterpError
from interp.interventions.base import Plan, Prompt
from interp.interventions.policies._steps import StepPlan
from interp.interventions.policies.tova import TOVA
from tests.interventions.evicting import PROMPT, generated, padded, positions, quietly
from tests.interventions.evicting_by_hand import FullCache
from tests.interventions.live_cache import close
from tests.models import shared, tokens

Tensor = torch.Tensor
pytestmark = pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
CHANGES_NOTHING: dict[
    str, Any
] = {}  # it holds a layer at its budget at every step, whatever share of the prompt that is


class LastRow(FullCache):
    """Remembers the newest query's attention, and hides what it attends to least."""

    def _run(self, ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, attentions = super()._run(ids)
        self.row = {i: attentions[i][:, :, -1].double() for i in self.layers}
        return logits, attentions

    def evict(self, capacity: int, policy: TOVA) -> list[tuple[int, int, int, int, float]]:
        """Back to `capacity` tokens a head; (layer, text, head, position, score) of what went, in order."""
        gone = []
        for layer in self.layers:
            for text, by_head in enumerate(self.kept(layer)):
                start = self.first[text]
                for head, held in enumerate(by_head):
                    row = self.row[layer][text]
                    rows = row if policy.per == "layer" else row.chunk(len(by_head))[head]
                    worth = rows.mean(0).tolist()
                    left = [p for p in held if not start <= p < start + policy.sinks]
                    worst_first = sorted(left, key=lambda p: (p >= start, worth[p] if p >= start else 0.0, -p))
                    for p in worst_first[: max(0, len(held) - capacity)]:
                        self.hidden[layer][text, head, p] = True
                        gone.append((layer, text, head, p, worth[p]))
        return gone


def check(lens: Any, kept: Any, full: LastRow) -> None:
    found = {i: positions(kept.stored[i]).tolist() for i in full.layers}
    assert found == {i: full.kept(i) for i in full.layers}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    ("policy", "pad"),
    [
        (TOVA(budget=0.3), 0),  # of a padded batch each text has a share of its own: see test_every_policy
        *itertools.product([TOVA(budget=12, per="kv_head"), TOVA(budget=9, sinks=2)], [0, 17]),
    ],
)
def test_the_newest_query_decides_at_every_step(kind: str, policy: TOVA, pad: int) -> None:
    lens, (ids, mask) = interp.load(shared(kind)), padded(PROMPT - pad)
    capacity, full = (12 if policy.budget == 0.3 else policy.budget), LastRow(kind, ids, mask)
    with torch.no_grad(), lens.apply(policy):
        lens(ids, use_cache=True, attention_mask=mask)
        kept = lens.last_cache
        full.evict(capacity, policy)
        check(lens, kept, full)
        for n, new in enumerate(tokens(2, 11, seed=5).split([1, 1, 1, 1, 4, 1, 1, 1], 1)):
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            logits = lens(new, use_cache=True, past_key_values=kept, attention_mask=mask)
            close(logits, full.feed(new), 1e-4)
            full.evict(capacity, policy)
            check(lens, kept, full)
            if n == 5:
                kept.reorder_cache(torch.tensor([1, 0]))  # and back
                kept.reorder_cache(torch.tensor([1, 0]))


def test_all_heads_of_a_layer_keep_the_same_tokens_or_each_its_own() -> None:
    lens, ids = interp.load(shared("llama")), tokens(2, PROMPT)
    alike = {}
    for per in ("layer", "kv_head"):
        _, kept = generated(lens, TOVA(budget=12, per=per), ids)
        held = [positions(stored) for stored in kept.stored.values()]
        alike[per] = all(torch.equal(at[:, 0], at[:, 1]) for at in held)
    assert alike == {"layer": True, "kv_head": False}


@pytest.mark.parametrize("per", ["layer", "kv_head"])
def test_with_room_to_spare_a_layer_grows_up_to_its_budget(per: str) -> None:
    """Tokens of the part that grows go too, and the cache is not cropped where one of those to forget is gone."""
    lens, ids = interp.load(shared("llama")), tokens(2, PROMPT)
    policy, full = TOVA(budget=PROMPT + 4, per=per), LastRow("llama", ids)
    with torch.no_grad(), lens.apply(policy):
        lens(ids, use_cache=True)
        kept = lens.last_cache
        for n, new in enumerate(tokens(2, 14, seed=5).split(1, 1), start=1):
            close(lens(new, use_cache=True, past_key_values=kept), full.feed(new), 1e-4)
            full.evict(PROMPT + 4, policy)
            check(lens, kept, full)
            assert [stored.kept for stored in kept.stored.values()] == [min(PROMPT + n, PROMPT + 4)] * 3
    with pytest.raises(InterpError, match="does not come back"):
        kept.crop(-3)


def test_the_cache_is_cropped_only_where_all_that_it_forgets_is_held() -> None:
    lens, ids = interp.load(shared("llama")), tokens(1, PROMPT)
    with torch.no_grad(), lens.apply(TOVA(budget=PROMPT + 2)):
        lens(ids, use_cache=True)
        kept = lens.last_cache
        for new in tokens(1, 5, seed=5).split(1, 1):
            lens(new, use_cache=True, past_key_values=kept)
    stored = kept.stored[1]
    tail = stored.segments[-1]
    place = stored.kept - len(tail) + (tail.at().expand(1, 2, -1) == stored.seen - 1).float().argmax(-1)
    stored.evict_one(place.expand(1, 2))
    with pytest.raises(InterpError, match="does not come back"):
        stored.crop(-1)


def test_the_ledger_says_what_the_choice_was_made_by() -> None:
    lens, ids = interp.load(shared("llama")), tokens(2, PROMPT)
    for policy in (TOVA(budget=12), TOVA(budget=12, per="kv_head")):
        full = LastRow("llama", ids)
        with torch.no_grad(), lens.apply(policy, ledger=True):
            lens(ids, use_cache=True)
            gone = [full.evict(12, policy)]
            for new in tokens(2, 5, seed=5).split(1, 1):
                lens(new, use_cache=True, past_key_values=lens.last_cache)
                full.feed(new)
                gone.append(full.evict(12, policy))
        wanted = {place: score for step in gone for *place, score in [(tuple(g[:4]), g[4]) for g in step]
                  for place in place}  # fmt: skip
        written = {}
        for entry in lens.last_cache.keeper.ledger:
            for text, by_head in enumerate(entry.evicted.tolist()):
                for head, at in enumerate(by_head):
                    for n, p in enumerate(at):
                        written[entry.layer, text, head, p] = float(entry.score[text, head, n])
        assert written.keys() == wanted.keys()
        for place, score in wanted.items():
            assert written[place] == pytest.approx(score, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("edits", [None, KnockOut(keys=3)])
@pytest.mark.parametrize("sizes", [[1] * 6, [1, 4, 1]])
def test_in_the_open_and_under_edits_the_same_tokens_go(edits: Any, sizes: list[int]) -> None:
    lens, ids = interp.load(shared("llama")), tokens(2, PROMPT)
    policy = TOVA(budget=12) if edits is None else edits | TOVA(budget=12)
    held = []
    for watched in (False, True):
        hooks = [("blocks.1.attn.hook_pattern", lambda value, hook: None)] if watched else []
        with torch.no_grad(), lens.apply(policy), lens.hooks(fwd_hooks=hooks):
            lens(ids, use_cache=True)
            for new in tokens(2, 6, seed=5).split(sizes, 1):
                lens(new, use_cache=True, past_key_values=lens.last_cache)
        held.append(lens.last_cache)
    for one, other in zip(*(cache.stored.values() for cache in held), strict=True):
        assert torch.equal(positions(one), positions(other))
        close(one.mass(), other.mass())


@dataclass(frozen=True)
class OneKernel(TOVA):
    """TOVA of key/value heads by the steps that H2O takes, one kernel each."""

    name: ClassVar[str] = "one_kernel"

    def begin(self, prompt: Prompt) -> Plan:
        plan = StepPlan(self, prompt)
        plan.newest_query_only = True
        return plan


def test_in_slots_one_kernel_does_the_same() -> None:
    lens, ids = interp.load(shared("llama")), tokens(2, PROMPT)
    held = []
    for method in (TOVA, OneKernel):
        with quietly(), torch.no_grad(), lens.apply(method(budget=12, per="kv_head")):
            lens(ids, use_cache=True)
            for new in tokens(2, 9, seed=5).split([1, 1, 1, 3, 1, 1, 1], 1):
                lens(new, use_cache=True, past_key_values=lens.last_cache)
        held.append(lens.last_cache)
    plain, fused = held
    assert all(stored.in_slots for stored in fused.stored.values())
    assert not any(stored.in_slots for stored in plain.stored.values())
    for layer in plain.stored:
        assert torch.equal(positions(plain.stored[layer]), positions(fused.stored[layer]))


@pytest.mark.parametrize("granularity", ["kv_head", "query_head"])
def test_beside_pruned_channels_the_cache_keeps_its_size(granularity: str) -> None:
    lens = interp.load(shared("llama"))
    policy = TOVA(budget=14) | ThinK(ratio=0.5, window=6, recent=5, granularity=granularity)
    sizes = set()
    for n in (1, 2, 5, 9):
        _, kept = generated(lens, policy, tokens(2, PROMPT), max_new_tokens=n)
        sizes |= {stored.kept for stored in kept.stored.values()}
        for stored in kept.stored.values():
            at = positions(stored)
            assert (at == at[:, :1]).all(), "one set of tokens for a layer"
            assert len(set(at[0, 0].tolist())) == 14
    assert sizes == {14}


def test_an_account_of_all_queries_is_none_of_the_newest() -> None:
    """So a method that asks for the last row is not handed H2O's sums."""
    lens, ids = interp.load(shared("llama")), tokens(2, PROMPT)
    sums = []
    for policy in (TOVA(budget=20, per="kv_head"), H2O(budget=20)):
        with torch.no_grad(), lens.apply(policy):
            lens(ids, use_cache=True)
            lens(tokens(2, 1, seed=5), use_cache=True, past_key_values=lens.last_cache)
        sums.append(torch.stack([stored.mass().sum((1, 2)) for stored in lens.last_cache.stored.values()]))
    assert (sums[0] <= 8 + 1e-4).all(), "eight query heads pay 1 each"
    assert (sums[1] > 8).all()
