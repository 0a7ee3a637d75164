"""Every token policy against a slow re-computation from the materialised pattern, and against masking on full keys."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import InterpError, interventions
from interp.interventions import AttentionEdit, CachePolicy
from tests.interventions.edits_found import lens_for, text_for
from tests.interventions.evicting_by_hand import FullCache, Positions, best, received, smoothed
from tests.interventions.examples import EXAMPLES, refusal
from tests.models import NAMES, shared

Tensor = torch.Tensor
H2O, H2OPrefill, H2OWindow = interventions.H2O, interventions.H2OPrefill, interventions.H2OWindow
SnapKV, PyramidKV, StreamingLLM = interventions.SnapKV, interventions.PyramidKV, interventions.StreamingLLM
Knorm, RandomTokens, ThinK = interventions.Knorm, interventions.RandomTokens, interventions.ThinK

KINDS = ("llama", "qwen3", "gpt2", "gpt_neox", "gpt_oss", "gemma2")  # grouped, multi-head, learned sinks, softcap
PROMPT = 40


def tokens(batch: int = 2, length: int = PROMPT, seed: int = 1) -> Tensor:
    """Texts in which no token comes twice: rotation would give its keys the same norm, and rounding would rank them."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(124, generator=draw)[:length] + 4 for _ in range(batch)])


POLICIES = [
    SnapKV(budget=14, window=6, kernel=3),
    SnapKV(budget=0.4, window=5, kernel=5, pool="avg", sinks=2),
    PyramidKV(budget=16, window=4, kernel=3, beta=4, sinks=1),
    H2OPrefill(budget=0.4),
    H2OWindow(budget=13, window=6, recent_share=0.3, sinks=1),
    StreamingLLM(budget=12),
    StreamingLLM(budget=0.3, sinks=0),
    Knorm(budget=10),
    Knorm(budget=12, recent=3, sinks=2),
    RandomTokens(budget=12, seed=3, sinks=2),
    H2O(budget=12),
    H2O(budget=0.35, recent_share=0.25, sinks=3),
]


def label(policy: Any) -> str:
    changed = {
        f.name: getattr(policy, f.name) for f in dataclasses.fields(policy) if getattr(policy, f.name) != f.default
    }
    return "-".join([policy.name, *(f"{name}{value}" for name, value in changed.items())])


ONE_SHOT = [p for p in POLICIES if not isinstance(p, H2O)]
SEES_THE_TEXT_ONLY = POLICIES
CASES = [
    pytest.param(policy, kind, id=f"{label(policy)}-{kind}")
    for policy in POLICIES
    for kind in KINDS
    if not (isinstance(policy, Knorm) and kind == "qwen3")  # its keys are normalised, so that all norms are equal
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=label)


def capacity_and_recent(policy: Any, place: int, layers: int) -> tuple[int, int]:
    """Tokens kept in the `place`-th of so many full-attention layers, and how many are the newest ones."""
    total = int(policy.budget * PROMPT) if policy.budget < 1 else int(policy.budget)
    if isinstance(policy, PyramidKV):
        free = total - policy.window
        least = free / policy.beta
        ramp = np.linspace(2 * free - least, least, layers) if layers > 1 else [free]
        return policy.window + round(float(ramp[place])), policy.window
    if isinstance(policy, SnapKV):
        return total, policy.window
    if isinstance(policy, StreamingLLM):
        return total, total - policy.sinks
    if isinstance(policy, Knorm):
        return total, policy.recent
    return total, int(total * policy.recent_share)


def scores_by_hand(policy: Any, full: FullCache, layer: int) -> list[list[list[float]]]:
    if isinstance(policy, SnapKV):
        mass = received(full, layer, policy.window)
        before = mass.shape[-1] - policy.window
        pooled = [[smoothed(h[:before].tolist(), policy.kernel, policy.pool) for h in text] for text in mass]
        return [[[*h, *[0.0] * policy.window] for h in text] for text in pooled]
    if isinstance(policy, H2OWindow):
        return received(full, layer, policy.window).tolist()
    if isinstance(policy, RandomTokens):
        draw = np.random.default_rng((policy.seed, layer)).random(full.keys[layer].shape[1:3], np.float32).tolist()
        return [draw] * len(full.keys[layer])
    if isinstance(policy, Knorm):
        return (-full.keys[layer].double().square().sum(-1).sqrt()).tolist()
    if isinstance(policy, StreamingLLM):
        return torch.zeros(full.keys[layer].shape[:3]).tolist()
    return received(full, layer).tolist()


def kept_by_hand(policy: Any, full: FullCache) -> dict[int, Positions]:
    kept = {}
    for place, layer in enumerate(full.layers):
        capacity, recent = capacity_and_recent(policy, place, len(full.layers))
        by_text = zip(scores_by_hand(policy, full, layer), full.first, strict=True)
        kept[layer] = [[best(head, capacity, recent, policy.sinks, first) for head in text] for text, first in by_text]
    return kept


def retained(cache: Any, layer: int) -> Positions:
    """Positions that a layer of a Lens' cache holds, in rising order."""
    stored = cache.stored[layer]
    shape = stored.segments[0].keys.shape[:2]
    at = torch.cat([segment.at().expand(*shape, -1) for segment in stored.segments], 2)
    return at.sort(-1).values.tolist()


def read(lens: Any, policy: Any, ids: Tensor, new: Tensor, mask: Tensor | None = None, look: Any = None) -> Any:
    """Logits of `new [batch, token]`, fed one by one after the prompt; the cache; positions held after every step."""
    logits, held = [torch.empty(len(ids), 0, lens.cfg.d_vocab)], []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with lens.apply(policy):
            lens(ids, attention_mask=mask, use_cache=True)
            cache = lens.last_cache
            held.append({i: retained(cache, i) for i in cache.stored})
            for step in range(new.shape[1]):
                part = new[:, step : step + 1]
                mask = None if mask is None else torch.cat([mask, torch.ones_like(part)], 1)
                with lens.hooks(fwd_hooks=look or []):
                    logits.append(lens(part, attention_mask=mask, use_cache=True, past_key_values=cache))
                held.append({i: retained(cache, i) for i in cache.stored})
    return torch.cat(logits, 1), cache, held


def left_padded(short: int) -> tuple[Tensor, Tensor]:
    """Two texts, the second of `short` tokens."""
    ids = tokens(2, PROMPT)
    mask = torch.ones_like(ids)
    mask[1, : PROMPT - short] = 0
    return ids.masked_fill(mask == 0, 2), mask


@pytest.mark.parametrize(("policy", "kind"), CASES)
def test_retained_tokens_are_those_of_the_pattern_written_out(policy: Any, kind: str) -> None:
    ids = tokens(2, PROMPT)
    full = FullCache(kind, ids)
    expected = kept_by_hand(policy, full)
    _, _, held = read(interp.load(shared(kind)), policy, ids, ids[:, :0])
    assert held[0] == expected


@pytest.mark.parametrize(("policy", "kind"), CASES)
def test_decoding_is_that_of_full_keys_with_evicted_tokens_masked_in_each_head(policy: Any, kind: str) -> None:
    ids, new = tokens(2, PROMPT), tokens(2, 10, seed=5)
    full = FullCache(kind, ids)
    full.hide_all_but(kept_by_hand(policy, full))
    logits, _, held = read(interp.load(shared(kind)), policy, ids, new)
    for step, part in enumerate(new.split(1, 1)):
        expected = full.feed(part)
        torch.testing.assert_close(logits[:, step : step + 1], expected, rtol=1e-4, atol=1e-4)
        if isinstance(policy, H2O):
            capacity, recent = capacity_and_recent(policy, 0, 1)
            full.evict_least_attended(capacity, recent, policy.sinks)
        assert held[step + 1] == {layer: full.kept(layer) for layer in full.layers}


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("policy", SEES_THE_TEXT_ONLY, ids=label)
def test_a_batch_with_left_padding_is_each_text_alone(policy: Any, kind: str) -> None:
    if policy.budget < 1:
        policy = dataclasses.replace(policy, budget=int(policy.budget * PROMPT))  # the same tokens for both lengths
    (ids, mask), new = left_padded(29), tokens(2, 6, seed=5)
    lens = interp.load(shared(kind))
    logits, _, held = read(lens, policy, ids, new, mask)
    for row, start in enumerate((0, PROMPT - 29)):
        alone, _, held_alone = read(lens, policy, ids[row : row + 1, start:], new[row : row + 1])
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        for together, single in zip(held, held_alone, strict=True):
            for layer, by_text in together.items():
                assert [[p - start for p in head] for head in by_text[row]] == single[layer][0]


@pytest.mark.parametrize(
    "policy", [p for p in ONE_SHOT if p in SEES_THE_TEXT_ONLY and not isinstance(p, PyramidKV)], ids=label
)
def test_padding_goes_first_so_a_text_shorter_than_the_budget_loses_nothing(policy: Any) -> None:
    (ids, mask), new = left_padded(8), tokens(2, 4, seed=5)
    lens = interp.load(shared("llama"))
    if policy.budget < 1:
        policy = dataclasses.replace(policy, budget=int(policy.budget * PROMPT))  # a share would be one of 8 tokens
    logits, _, held = read(lens, policy, ids, new, mask)
    assert all(set(range(PROMPT - 8, PROMPT)) < set(head) for by_text in held[0].values() for head in by_text[1])
    with torch.no_grad():
        plain = lens(torch.cat([ids[1:, -8:], new[1:]], 1))[:, -4:]
    torch.testing.assert_close(logits[1:], plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@every_policy
def test_chunked_prefill_is_whole_prefill(policy: Any, padded: bool) -> None:
    ids, mask = left_padded(31) if padded else (tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.long))
    found: list[Any] = []
    lens: Any = interp.load(shared("llama"))
    for chunk in (None, 16, 7):
        with lens.apply(policy):
            out = lens.generate(
                ids, attention_mask=mask, max_new_tokens=8, prefill_chunk_size=chunk, eos_token_id=None,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        held = {i: retained(lens.last_cache, i) for i in lens.last_cache.stored}
        found.append((out.sequences.tolist(), held, torch.stack(out.logits)))
    for sequences, held, logits in found[1:]:
        assert (sequences, held) == found[0][:2]
        torch.testing.assert_close(logits, found[0][2], rtol=1e-4, atol=1e-4)


def pruned_by_hand(full: FullCache, queries: dict[int, Tensor], layer: int, think: Any) -> Tensor:
    """Channels that ThinK prunes after eviction: the prompt's last queries against the keys that were kept."""
    keys = full.keys[layer].double()
    heads, width = keys.shape[1], keys.shape[-1]
    last = queries[layer][:, -think.window :].double().transpose(1, 2)  # [batch, head, query, d]
    out = []
    for text, by_head in enumerate(full.kept(layer)):
        rows = []
        for head, stored in enumerate(by_head):
            group = last[text].chunk(heads, 0)[head]
            score = group.square().mean((0, 1)) * keys[text, head, stored].square().mean(0)
            rows.append(sorted(range(width), key=lambda c: (score[c].item(), c))[: int(think.ratio * width)])
        out.append(rows)
    return torch.tensor(out)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("dense", [2, 5, 9])
@every_policy
def test_with_think_decoding_is_that_of_full_keys_with_zeros_in_pruned_channels(
    policy: Any, dense: int, kind: str
) -> None:
    """A token that leaves the dense tail while H2O generates loses the channels that were frozen after the prompt."""
    think = ThinK(ratio=0.5, window=6, recent=dense)
    ids, new = tokens(2, PROMPT), tokens(2, 10, seed=5)
    lens, full = interp.load(shared(kind)), FullCache(kind, ids)
    _, seen = lens.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_rot_q"))
    queries = {layer: seen[f"blocks.{layer}.attn.hook_rot_q"] for layer in full.layers}
    full.hide_all_but(kept_by_hand(policy, full))
    pruned = {layer: pruned_by_hand(full, queries, layer, think) for layer in full.layers}
    tails = {layer: min(dense, len(full.kept(layer)[0][0])) for layer in full.layers}
    for layer in full.layers:
        full.zero_channels(layer, pruned[layer], tails[layer])
    logits, cache, held = read(lens, policy | think, ids, new)
    for step, part in enumerate(new.split(1, 1)):
        expected = full.feed(part)
        torch.testing.assert_close(logits[:, step : step + 1], expected, rtol=1e-4, atol=1e-4)
        if isinstance(policy, H2O):
            capacity, recent = capacity_and_recent(policy, 0, 1)
            full.evict_least_attended(capacity, recent, policy.sinks, dense)
            for layer in full.layers:
                full.zero_channels(layer, pruned[layer], dense)
        assert held[step + 1] == {layer: full.kept(layer) for layer in full.layers}
    for layer, stored in cache.stored.items():
        packed = len(full.kept(layer)[0][0]) > dense + (0 if isinstance(policy, H2O) else len(new[0]))
        assert stored.segments[0].keys.shape[-1] == (
            stored.d_head // 2 if packed else stored.d_head
        )  # and really stored so


@pytest.mark.parametrize("policy", ONE_SHOT, ids=label)
def test_think_keeps_the_first_kept_tokens_dense_beside_an_eviction(policy: Any) -> None:
    think = ThinK(ratio=0.5, window=6, recent=3, sinks=2)
    ids, new = tokens(2, PROMPT), tokens(2, 4, seed=5)
    lens, full = interp.load(shared("llama")), FullCache("llama", ids)
    _, seen = lens.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_rot_q"))
    full.hide_all_but(kept_by_hand(policy, full))
    for layer in full.layers:
        pruned = pruned_by_hand(full, {layer: seen[f"blocks.{layer}.attn.hook_rot_q"]}, layer, think)
        front = [[head[:2] for head in text] for text in full.kept(layer)]
        full.zero_channels(layer, pruned, 3, front)
    logits, _, _ = read(lens, policy | think, ids, new)
    expected = torch.cat([full.feed(part) for part in new.split(1, 1)], 1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", [p for p in POLICIES if isinstance(p, H2O)], ids=label)
def test_think_that_prunes_nothing_leaves_h2o_as_it_is(policy: Any) -> None:
    ids, new = tokens(2, PROMPT), tokens(2, 8, seed=5)
    lens = interp.load(shared("llama"))
    logits, cache, held = read(lens, policy, ids, new)
    both, cache_of_both, held_by_both = read(lens, policy | ThinK(ratio=0.1, window=6, recent=4), ids, new)  # 0 of 8
    assert torch.equal(both, logits)
    assert held_by_both == held
    assert cache_of_both.nbytes() == cache.nbytes()


@pytest.mark.parametrize("policy", [p for p in POLICIES if isinstance(p, H2O)], ids=label)
def test_watching_the_pattern_does_not_change_what_h2o_evicts(policy: Any) -> None:
    ids, new = tokens(2, PROMPT), tokens(2, 8, seed=5)
    lens = interp.load(shared("llama"))
    logits, _, held = read(lens, policy, ids, new)
    look = [(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]
    watched, _, held_while_watched = read(lens, policy, ids, new, look=look)
    assert held_while_watched == held
    torch.testing.assert_close(watched, logits, rtol=1e-4, atol=1e-4)


def test_random_keeps_every_token_equally_often_and_differs_between_heads_layers_and_seeds() -> None:
    ids = tokens(1, PROMPT)
    lens, counts, sets = interp.load(shared("llama")), torch.zeros(PROMPT), []
    for seed in range(60):
        _, _, held = read(lens, RandomTokens(budget=12, recent_share=0.25, sinks=1, seed=seed), ids, ids[:, :0])
        heads = [head for by_text in held[0].values() for head in by_text[0]]
        sets += [tuple(head) for head in heads]
        for head in heads:
            counts[head] += 1
    assert len(set(sets)) == len(sets)
    draws, chance = len(sets), 8 / (PROMPT - 3 - 1)  # 12 kept: 1 sink and 3 newest always, 8 of the other 36 by lot
    assert bool((counts[[0, *range(PROMPT - 3, PROMPT)]] == draws).all())
    spread = (draws * chance * (1 - chance)) ** 0.5
    assert bool(((counts[1 : PROMPT - 3] - draws * chance).abs() < 5 * spread).all())


@pytest.mark.filterwarnings("ignore:.*sliding window")
@pytest.mark.parametrize("kind", [name for name in NAMES if name != "mistral"])  # every layer of it has a window
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_intervention_on_every_kind_of_model(name: str, kind: str) -> None:
    policy, ids = EXAMPLES[name], tokens(2, PROMPT)
    lens: Any = interp.load(shared(kind))
    if isinstance(policy, AttentionEdit):
        lens, ids = lens_for(policy, kind), text_for(policy, ids)
    drops = isinstance(policy, CachePolicy)
    how: dict[str, Any] = {
        "max_new_tokens": 6,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with torch.no_grad():
        before = lens(ids)
    if says := refusal(policy, kind):
        with lens.apply(policy), pytest.raises(InterpError, match=says):
            lens.generate(ids, **how)
        return
    plain = lens.generate(ids, **how)
    dense = lens.last_cache.nbytes()
    runs = []
    for _ in range(2):
        with lens.apply(policy):
            runs.append(lens.generate(ids, **how))
            assert (lens.last_cache.nbytes() < dense) is drops
    assert torch.equal(runs[0].logits[0], plain.logits[0]) is drops  # policies leave the first token to the model
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].logits, runs[1].logits, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0].logits, plain.logits, strict=True))
    with torch.no_grad():
        assert torch.equal(lens(ids), before)
    again = lens.generate(ids, **how)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))
