"""D2O on live caches against D2O by hand (d2o_reference.py), and its promises one by one."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

import interp
from interp import D2O, H2O
from interp.errors import InterpError
from tests.interventions.d2o_reference import VARIANTS, Reference, Rules, close, deep
from tests.interventions.test_think import multi_head_twin
from tests.models import shared, tokens

pytestmark = pytest.mark.filterwarnings("ignore:d2o dropped nothing.*ended before it acts")
LAYERS = 5
SKIPPED_AS_RELEASED = (0, 1, LAYERS - 1)
EXAMPLES = [
    D2O(budget=0.5, skip=()),  # as released it would skip all of three layers
    D2O(budget=0.4, variant="paper"),
    D2O(budget=0.4, skip=(0,), compress_at="prefill_end"),
]
SEES_THE_TEXT_ONLY = False  # layers have one share for all texts of a batch, which a warning says; "uniform" has not
model = cache(deep)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def prefill(lens: Any, policy: Any, ids: torch.Tensor, **kwargs: Any) -> Any:
    """The cache of a prompt under the policy, which keeps account."""
    with lens.apply(policy, ledger=True):
        lens(ids, use_cache=True, **kwargs)
    return lens.last_cache


def in_order(stored: Any) -> dict[str, torch.Tensor]:
    """What a layer stores, every head's tokens in the text's order."""
    shape = stored.keys.shape[:3]
    at = torch.cat([segment.at().expand(*shape[:2], -1) for segment in stored.segments], 2).long()
    order = at.argsort(-1)
    held = {"positions": at.gather(2, order)}
    for name in ("keys", "values"):
        x = getattr(stored, name)
        held[name] = x.gather(2, order[..., None].expand_as(x))
    if all(segment.mass is not None for segment in stored.segments):
        held["mass"] = torch.cat([segment.mass for segment in stored.segments], 2).gather(2, order)
    return held


def check_state(found: Any, wanted: Reference) -> None:
    """Positions exactly; keys, values, attention received and thresholds to fp32's tolerance."""
    plan = found.keeper.plans["tokens"]
    for layer, stored in found.stored.items():
        held = in_order(stored)
        for row, text in enumerate(wanted.texts):
            for h, head in enumerate(text.heads[layer]):
                assert held["positions"][row, h].tolist() == [token.position for token in head]
                close(held["keys"][row, h], torch.stack([token.key for token in head]))
                close(held["values"][row, h], torch.stack([token.value for token in head]))
                if "mass" in held:
                    close(held["mass"][row, h], torch.tensor([token.mass for token in head]))
            if layer in text.threshold:
                close(plan.threshold[layer][row], torch.tensor(text.threshold[layer]))
        assert ("mass" in held) == (wanted.texts[0].size.get(layer) is not None)


def compare(lens: Any, policy: Any, wanted: Reference, ids: torch.Tensor, later: torch.Tensor) -> None:
    """State after the prompt and after each of the later tokens."""
    found = prefill(lens, policy, ids)
    check_state(found, wanted)
    for new in later.split(1, 1):
        close(lens(new, past_key_values=found, use_cache=True), wanted.step(new), 1e-4)
        check_state(found, wanted)


def policy_of(rules: Rules) -> D2O:
    return D2O(**asdict(rules))


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_both_variants_by_hand(name: str, variant: Any) -> None:
    """Grouped-query and multi-head; tokens, merged keys and values after the prompt and at each of five steps, then the
    loss of a continuation. The library is told nothing but the variant."""
    ids, later = tokens(length=40), tokens(length=6, seed=2)
    rules = VARIANTS[variant](0.3, LAYERS)
    lens, policy = interp.load(model(name)), D2O(budget=0.3, variant=variant)
    wanted = Reference(deep(name), ids, rules)
    compare(lens, policy, wanted, ids, later[:, :5])
    gates = [x >= tau for text in wanted.texts for _, x, tau in text.gates]
    assert any(gates)
    assert not all(gates)
    own = lens.score(ids, later, chunk=1)
    with lens.apply(policy):
        found = lens.score(ids, later, chunk=1)
    close(found, Reference(deep(name), ids, rules).nll(later))
    assert (found - own).abs().max() > 0.01  # the cache was cut in earnest


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "paper_raw"}, {"metric": "log"}, {"metric": "uniform"}, {"gate": "per_head"}, {"weights": "paper"},
        {"weights": "paper", "centre": 0.1}, {"compress_at": "prefill_end"}, {"beta": 0.9, "gate": "per_head"},
        {"recent_share": 0.0}, {"recent_share": 0.9}, {"sinks": 0}, {"skip": (2,)}, {"merge": "value"},
        {"merge": "none"}, {"budget": 0.8},
    ],
    ids=str,
)  # fmt: skip
def test_settings_by_hand(changed: dict[str, Any]) -> None:
    """Each setting away from the released ones, four steps."""
    ids, later = tokens(length=32), tokens(length=4, seed=2)
    rules = replace(VARIANTS["code"](0.3, LAYERS), skip=(), **{k: v for k, v in changed.items() if k != "skip"})
    rules = replace(rules, skip=changed.get("skip", ()))
    compare(interp.load(model("llama")), policy_of(rules), Reference(deep("llama"), ids, rules), ids, later)


def test_a_layer_may_have_room_for_the_whole_prompt() -> None:
    """Raw variance far apart between layers: some keep the least there is, one is left to grow."""
    ids, later = tokens(length=32), tokens(length=3, seed=2)
    rules = VARIANTS["paper"](0.7, LAYERS)
    unequal = deep("llama")
    for layer, scale in enumerate((0.0, 4.0, 4.0, 4.0, 4.0)):
        unequal.model.layers[layer].self_attn.q_proj.weight.mul_(scale)
    wanted = Reference(copy.deepcopy(unequal), ids, rules)
    assert wanted.sizes_by_budget[0] is None
    assert wanted.sizes_by_budget[4] is not None
    compare(interp.load(unequal), policy_of(rules), wanted, ids, later)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_query_head_granularity_is_d2o_on_the_multi_head_twin(variant: Any) -> None:
    """As released, keys are repeated first: each query head evicts and merges its own copy."""
    ids, later = tokens(length=32), tokens(length=4, seed=2)
    rules = replace(VARIANTS[variant](0.3, 3), skip=(0,))
    wanted = Reference(multi_head_twin(shared("llama")), ids, rules)
    policy = replace(policy_of(rules), granularity="query_head")
    lens = interp.load(shared("llama"))
    found = prefill(lens, policy, ids)
    for new in later.split(1, 1):
        close(lens(new, past_key_values=found, use_cache=True), wanted.step(new), 1e-4)
    for layer in (1, 2):
        held = in_order(found.stored[layer])
        for row, text in enumerate(wanted.texts):
            for h, head in enumerate(text.heads[layer]):
                assert held["positions"][row, h].tolist() == [token.position for token in head]
                close(held["keys"][row, h], torch.stack([token.key for token in head]))
    assert found.stored[0].keys.shape[1] == 2  # a layer that is left alone is not repeated


@pytest.mark.parametrize("length", [32, 37, 41])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_oss"])
@pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
def test_without_merging_and_with_equal_budgets_it_is_h2o(name: str, length: int) -> None:
    ids, later, lens = tokens(length=length), tokens(length=8, seed=2), interp.load(shared(name))
    settings = {"budget": 0.3, "sinks": 2, "recent_share": 0.4}
    held, losses = [], []
    alone = {"metric": "uniform", "skip": (), "merge": "none", "compress_at": "prefill_end"}
    for policy in (H2O(**settings), D2O(**settings, **alone)):
        with lens.apply(policy):
            losses.append(lens.score(ids, later, chunk=1))
        held.append([in_order(stored)["positions"] for stored in lens.last_cache.stored.values()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*held, strict=True))


def test_the_gate_is_the_threshold_before_the_step() -> None:
    """With shares that sum to 1 and one token a step, mean u >= (1-β) τ + β mean u is mean u >= τ. From the ledger."""
    lens, ids = interp.load(model("llama")), tokens(length=40)
    found = prefill(lens, D2O(budget=0.3, variant="code"), ids)
    for new in tokens(length=12, seed=2).split(1, 1):
        lens(new, past_key_values=found, use_cache=True)
    outcomes = []
    for layer in (2, 3):
        entries = [entry for entry in found.keeper.ledger if entry.layer == layer]
        assert entries[0].evicted.shape[-1] > 1
        first = entries[0].similarity.mean((1, 2))
        close(entries[0].threshold, first[:, None].expand(2, 2))
        for before, entry in pairwise(entries):
            assert entry.evicted.shape[-1] == 1
            outcome = entry.similarity.mean(1) >= before.threshold[:, :1]
            assert torch.equal(entry.merged, outcome[:, None].expand_as(entry.merged))
            outcomes.append(outcome)
    assert torch.cat(outcomes).any()
    assert not torch.cat(outcomes).all()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_layers_keep_their_size_and_the_cache_says_so(variant: Any) -> None:
    """At every step `report()` shows what each layer keeps: its size, or all where it is left alone."""
    lens, ids = interp.load(model("llama")), tokens(length=40)
    sizes = Reference(deep("llama"), ids, VARIANTS[variant](0.3, LAYERS)).sizes_by_budget
    found = prefill(lens, D2O(budget=0.3, variant=variant), ids)
    for i, new in enumerate(tokens(length=6, seed=2).split(1, 1)):
        if variant == "paper" or i > 0:
            assert found.report().kept.tolist() == [40 + i if size is None else size for size in sizes]
        lens(new, past_key_values=found, use_cache=True)
        assert found.report().tokens.tolist() == [41 + i] * LAYERS
    kept = found.report().kept / 40
    if variant == "code":
        assert [i for i, size in enumerate(sizes) if size is None] == list(SKIPPED_AS_RELEASED)
        assert kept.mean() > 0.6  # three of five layers are whole: twice the budget
    else:
        assert kept.mean() <= 0.3


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("compress_at", ["prefill_end", "first_decode"])
def test_sizes_do_not_depend_on_how_many_tokens_are_fed_at_a_time(compress_at: Any, chunk: int) -> None:
    lens, ids = interp.load(model("llama")), tokens(length=40)
    with lens.apply(D2O(budget=0.3, skip=(), metric="uniform", compress_at=compress_at)):
        lens.score(ids, tokens(length=11, seed=2), chunk=chunk)
    assert set(lens.last_cache.report().kept) == {12}


@pytest.mark.parametrize("weights", ["paper", "code"])
def test_merging_values_leaves_keys_bit_identical(weights: Any) -> None:
    """The prompt's keys that are still there are the plain cache's, bit for bit; some values are not."""
    lens, ids = interp.load(model("llama")), tokens(length=40)
    lens(ids, use_cache=True)
    own = lens.last_cache
    policy = D2O(budget=0.3, variant="paper", metric="uniform", weights=weights, merge="value")
    found = prefill(lens, policy, ids)
    for new in tokens(length=4, seed=2).split(1, 1):
        lens(new, past_key_values=found, use_cache=True)
    for layer in range(LAYERS):
        held = in_order(found.stored[layer])
        at = held["positions"]
        index = at.clamp_max(39)[..., None].expand_as(held["keys"])
        of_prompt = at < 40
        assert torch.equal(held["keys"][of_prompt], own.layers[layer].keys.gather(2, index)[of_prompt])
        assert not torch.equal(held["values"][of_prompt], own.layers[layer].values.gather(2, index)[of_prompt])


def padded(ids: torch.Tensor, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) with padding on the left of the second text."""
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return ids.masked_fill(mask == 0, 2), mask


@pytest.mark.parametrize("compress_at", ["prefill_end", "first_decode"])
@pytest.mark.parametrize(("weights", "gate"), [("paper", "per_head"), ("code", "slot_mean")])
@pytest.mark.parametrize("padding", [12, 20])
def test_left_padding_is_each_text_alone(padding: int, weights: Any, gate: Any, compress_at: Any) -> None:
    """A padded text keeps a share of its own tokens; where it is short, the sinks and one more."""
    later = tokens(length=9, seed=2)
    ids, mask = padded(tokens(length=40), padding)
    lens = interp.load(model("llama"))
    rules = Rules("uniform", 0.25, 0.5, (), weights, gate, 0.5, compress_at)
    found = prefill(lens, policy_of(rules), ids, attention_mask=mask)
    alone = [Reference(deep("llama"), text, rules) for text in (ids[:1], ids[1:, padding:])]
    for new in later.split(1, 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        logits = lens(new, attention_mask=mask, past_key_values=found, use_cache=True)
        close(logits, torch.cat([text.step(row[None]) for text, row in zip(alone, new, strict=True)]), 1e-4)
    for layer in range(LAYERS):
        held = in_order(found.stored[layer])
        for row, (wanted, start) in enumerate(zip(alone, (0, padding), strict=True)):
            for h, head in enumerate(wanted.texts[0].heads[layer]):
                real = held["positions"][row, h] >= start
                assert held["positions"][row, h, real].tolist() == [start + token.position for token in head]
                close(held["keys"][row, h, real], torch.stack([token.key for token in head]))
                close(held["values"][row, h, real], torch.stack([token.value for token in head]))
            close(
                found.keeper.plans["tokens"].threshold[layer][row],
                torch.tensor(wanted.texts[0].threshold[layer]),
            )


@pytest.mark.parametrize("metric", ["code_minmax", "paper_raw", "log"])
def test_padding_does_not_count_in_layer_budgets(metric: Any) -> None:
    """A text alone and with padding on its left: variances are of the real tokens, not of zeros before them."""
    lens, text = interp.load(model("llama")), tokens(1, 30)
    ids = torch.cat([torch.full((1, 10), 2), text], 1)
    policy = D2O(budget=0.4, metric=metric, skip=(), compress_at="prefill_end")
    plans = [
        prefill(lens, policy, text).keeper.plans["tokens"],
        prefill(lens, policy, ids, attention_mask=(ids != 2).long()).keeper.plans["tokens"],
    ]
    for layer in range(LAYERS):
        close(plans[1].variance[layer], plans[0].variance[layer], 1e-4)
    assert list(plans[1].shares.values()) == pytest.approx(list(plans[0].shares.values()), rel=1e-4)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_reordered_beams_take_their_scores_and_thresholds_along(after: int, variant: Any) -> None:
    """Two texts that change places in mid-generation go on as if they had been the other way round all along."""
    ids, later = tokens(length=40), tokens(length=8, seed=2)
    lens, swap = interp.load(model("llama")), torch.tensor([1, 0])
    policy = D2O(budget=0.3, variant=variant, metric="uniform", gate="per_head", skip=())
    found, wanted = prefill(lens, policy, ids), prefill(lens, policy, ids[swap])
    for i, new in enumerate(later.split(1, 1)):
        if i == after:
            found.reorder_cache(swap)
        lens(new if i < after else new[swap], past_key_values=found, use_cache=True)
        lens(new[swap], past_key_values=wanted, use_cache=True)
    for layer in range(LAYERS):
        one, other = in_order(found.stored[layer]), in_order(wanted.stored[layer])
        assert torch.equal(one["positions"], other["positions"])
        close(one["keys"], other["keys"])
        close(one["values"], other["values"])
        one, other = (c.keeper.plans["tokens"].threshold[layer] for c in (found, wanted))
        close(one, other)
        assert (one[0] - one[1]).abs().max() > 1e-3  # so that rows in the wrong place would be seen


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_beam_search_loses_what_its_best_beam_alone_would(variant: Any) -> None:
    """The winning beam's text, scored by itself under the same policy, has the score that the search gave it."""
    ids, lens, new = tokens(1, 40), interp.load(model("llama")), 8
    policy = D2O(budget=0.3, variant=variant, metric="uniform", skip=(), gate="per_head")
    asked = {"max_new_tokens": new, "min_new_tokens": new, "num_beams": 4, "length_penalty": 0.0, "do_sample": False}
    with lens.apply(policy):
        out = lens.generate(ids, **asked, return_dict_in_generate=True, output_scores=True)
        best = out.sequences[:, 40:]
        alone = lens.score(ids, best, chunk=1)
    close(out.sequences_scores, -alone.sum(-1), 1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budget": 1}, "budget"), ({"budget": 20}, "share of the prompt"), ({"budget": 0.0}, "above 0"),
        ({"budget": float("nan")}, "budget"), ({"sinks": -1}, "sinks"), ({"variant": "released"}, "variant"),
        ({"metric": "raw"}, "metric"), ({"weights": "euler"}, "weights"), ({"gate": "head"}, "gate"),
        ({"merge": "keys"}, "merge"), ({"compress_at": "layer"}, "compress_at"),
        ({"granularity": "head"}, "granularity"),
        ({"recent_share": 1.0}, "recent_share"), ({"recent_share": -0.1}, "recent_share"), ({"beta": 1.5}, "beta"),
        ({"beta": float("nan")}, "beta"), ({"centre": 0.0}, "centre"), ({"centre": float("nan")}, "centre"),
        ({"skip": (-1,)}, "skip"), ({"skip": 0}, "skip"), ({"skip": ("0",)}, "skip"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError, match=f"d2o: .*{says}"):
        D2O(**settings)


@pytest.mark.parametrize(
    ("settings", "length", "says"),
    [
        ({"skip": (5,)}, 40, "layers are 0 to 4"),
        ({"skip": (0, 1, 2, 3, 4)}, 40, "every layer is skipped"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_prompt_are_named(settings: dict[str, Any], length: int, says: str) -> None:
    lens = interp.load(model("llama"))
    with pytest.raises(InterpError, match=says), lens.apply(D2O(**settings)):
        lens(tokens(length=length), use_cache=True)


def test_the_released_skipping_leaves_nothing_of_three_layers() -> None:
    lens = interp.load(shared("llama"))
    with pytest.raises(InterpError, match=r"skip=\(\)"), lens.apply(D2O(budget=0.3)):
        lens.generate(tokens(length=30), max_new_tokens=2)
