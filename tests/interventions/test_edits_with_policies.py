"""Attention edits and cache policies at once: keys are named by their place in the text, and policies see the edit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import D2O, H2O, H2OPrefill, KnockOut, RandomTokens, SnapKV, StreamingLLM, ThinK
from tests.interventions.edited_by_hand import in_pieces
from tests.interventions.live_cache import close, left_padded, name_of
from tests.models import shared, tokens

PADDING = 5
KEYS = [0, 2, 31]  # of a text of 40 tokens; the last one is generated in the padded text
PIECES = (30, 1, 4, 1, 1, 3)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def by_place(lens: Any, policy: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits under the policy with patterns edited by hand: a slot is edited where its token's place says so."""

    def hook(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        stored = lens.last_cache.stored.get(int(hook.name.split(".")[1]))
        batch, heads, _, count = pattern.shape
        if stored is None:  # a layer with a sliding window holds the newest tokens
            seen = lens.last_cache.get_seq_length()
            places = torch.arange(seen - count, seen).expand(batch, heads, -1)
        else:
            places = torch.cat([s.at().expand(s.keys.shape[:3]) for s in stored.segments], 2)
        new = pattern.clone()
        for b in range(batch):
            for h in range(0, heads, 3):
                for slot in range(count):
                    if int(places[b, h // (heads // places.shape[1]), slot]) - (PADDING if b else 0) in KEYS:
                        new[b, h, :, slot] *= 0.25
                left, before = new[b, h].sum(-1, keepdim=True), pattern[b, h].sum(-1, keepdim=True)
                new[b, h] *= torch.where(left > 0, before / left, 0.0)
        return new

    with lens.apply(policy), lens.hooks(fwd_hooks=[(lambda name: name.endswith("hook_pattern"), hook)]):
        return in_pieces(lens, ids, PIECES, mask)


@pytest.mark.filterwarnings("ignore:.*sliding window")
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(
    "policy",
    [
        StreamingLLM(budget=12, sinks=3),
        RandomTokens(budget=14, recent_share=0.25),
        ThinK(0.5, window=8, recent=4),
        ThinK(0.5, window=8, recent=4, granularity="query_head"),
        RandomTokens(budget=14) | ThinK(0.5, window=8, recent=4),
    ],
    ids=name_of,
)
def test_stored_tokens_are_edited_wherever_they_lie(name: str, policy: Any) -> None:
    """In every segment, packed or dense, with sets of tokens that differ by head."""
    lens, (ids, mask) = interp.load(shared(name)), left_padded(40, PADDING)
    wanted = by_place(lens, policy, ids, mask)
    edit = KnockOut(keys=KEYS, heads=[0, 3, 6], strength=0.75)
    real = mask.bool()
    with lens.apply(edit | policy):
        found = in_pieces(lens, ids, PIECES, mask)
    with lens.apply(policy | edit):
        assert torch.equal(in_pieces(lens, ids, PIECES, mask)[real], found[real])
    close(found[real], wanted[real], 1e-4)
    with lens.apply(policy):
        assert (in_pieces(lens, ids, PIECES, mask) - found)[real].abs().max() > 0.01


@pytest.mark.parametrize("chunk", [None, 7])
def test_heavy_hitters_are_those_of_the_edited_attention(chunk: int | None) -> None:
    """Also where the prompt came in pieces, so that the policy looks back at rows of earlier ones."""
    lens, (ids, mask) = interp.load(shared("llama")), left_padded(30, PADDING)
    edit = KnockOut(keys=[0, 4], layers=[0, 1], heads=[0, 1, 2, 3], queries=range(9, 21), strength=0.9)
    with lens.apply(edit):
        _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: n.endswith("pattern"))
    with lens.apply(edit | H2OPrefill(budget=9, recent_share=0.0, sinks=0)):
        lens.generate(ids, attention_mask=mask, max_new_tokens=1, prefill_chunk_size=chunk)
    kept = lens.last_cache.stored
    with lens.apply(edit | SnapKV(budget=16, window=6, kernel=1)):
        lens.generate(ids, attention_mask=mask, max_new_tokens=1, prefill_chunk_size=chunk)
    for layer in range(3):
        pattern = (cache["pattern", layer] * mask[:, None, :, None]).unflatten(1, (2, 4)).sum(2)
        best = pattern.sum(2).masked_fill(mask[:, None] == 0, -1).topk(9).indices.sort(-1).values
        assert torch.equal(kept[layer].segments[0].at().long(), best)
        window = pattern[:, :, -6:, :-6].sum(2).masked_fill(mask[:, None, :-6] == 0, -1)
        best = window.topk(10).indices.sort(-1).values
        assert torch.equal(lens.last_cache.stored[layer].segments[0].at().long(), best)


@pytest.mark.parametrize(
    "policy", [H2O(budget=12, sinks=1), D2O(budget=0.4, sinks=1, skip=(), merge="none")], ids=name_of
)
def test_nobody_pays_attention_to_what_is_knocked_out(policy: Any) -> None:
    """A policy that keeps account through decoding: the first token stays, as a sink, and receives nothing."""
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    for edits, paid in (((), True), ((KnockOut(keys=0),), False)):
        together = policy
        for edit in edits:
            together = together | edit
        with lens.apply(together):
            lens.generate(ids, max_new_tokens=6, min_new_tokens=6)
        for layer in lens.last_cache.stored.values():
            mass = torch.cat([s.mass for s in layer.segments], 2)
            first = torch.cat([s.at().expand((*mass.shape[:2], len(s))) for s in layer.segments], 2) == 0
            assert bool(first.any(-1).all())
            assert bool((mass[first] > 0).all()) is paid
            assert bool((mass[first] == 0).all()) is not paid


@pytest.mark.filterwarnings("ignore:.*sliding window")
@pytest.mark.parametrize("policy", [H2O(budget=12, sinks=1), D2O(budget=0.4, sinks=1, skip=())], ids=name_of)
def test_the_account_is_the_same_whether_somebody_looks_or_not(policy: Any) -> None:
    """Steps of one and of several tokens: by a kernel, and from the pattern in the open."""
    lens, (ids, mask) = interp.load(shared("gpt_oss" if policy.name == "h2o" else "llama")), left_padded(34, PADDING)
    look = [(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]
    edit, real, runs = KnockOut(keys=[0, 3, 30], heads=[1, 2], strength=0.6), mask.bool(), []
    for hooks in ([], look):
        with lens.apply(policy | edit), lens.hooks(fwd_hooks=hooks):
            logits = in_pieces(lens, ids, (28, 1, 1, 3, 1), mask)
        runs.append(
            (logits[real], [torch.cat([s.mass for s in l.segments], 2) for l in lens.last_cache.stored.values()])
        )
    close(runs[0][0], runs[1][0], 1e-4)
    for one, other in zip(runs[0][1], runs[1][1], strict=True):
        close(one.sort(-1).values, other.sort(-1).values, 1e-4)
