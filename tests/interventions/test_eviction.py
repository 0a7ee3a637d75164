"""Taking tokens out of a live cache: what is freed, what stays and where it stands, and the account of what went."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import H2O, H2OPrefill, H2OWindow, Knorm, PyramidKV, RandomTokens, SnapKV, StreamingLLM
from interp.interventions.base import Prompt
from tests.interventions.evicting import GENERATED, PROMPT, generated, padded, positions
from tests.interventions.evicting_by_hand import FullCache
from tests.models import shared, tokens

Tensor = torch.Tensor

EXAMPLES = [
    SnapKV(budget=14, window=6, kernel=3, sinks=2),
    PyramidKV(budget=16, window=4, kernel=3, beta=4),
    H2OPrefill(budget=12, sinks=3),
    H2OWindow(budget=13, window=6),
    StreamingLLM(budget=12),
    StreamingLLM(budget=9, sinks=0),
    Knorm(budget=10),
    Knorm(budget=10, recent=3, sinks=2),
    RandomTokens(budget=12, sinks=2),
    H2O(budget=12),
    H2O(budget=12, sinks=3),
]
every_example = pytest.mark.parametrize("policy", EXAMPLES, ids=lambda p: f"{p.name}-{p.sinks}")


@pytest.fixture
def lens() -> Any:
    return interp.load(shared("llama"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@every_example
def test_bytes_are_those_of_what_is_kept(policy: Any, kind: str) -> None:
    """Keys and values in fp32 for every kept and every new token; an int32 position for each kept old one, whose order
    is no plain run; where account is kept, fp32 mass and a position for all, and one slot to spare."""
    lens = interp.load(shared(kind))
    _, cache = generated(lens, policy, tokens(2, PROMPT))
    prompt, new = Prompt(lens.cfg, (0, 1, 2), PROMPT, lens.output_norms), GENERATED["max_new_tokens"] - 1
    heads, total = {"llama": 2, "gpt2": 8}[kind], 0
    for layer in range(3):
        capacity = policy.capacity(prompt, layer)
        recent = policy.recent_tokens(capacity)
        steps = isinstance(policy, H2O)
        tokens_held = capacity + (0 if steps else new)
        assert cache.stored[layer].kept == tokens_held
        slots, placed = (capacity + 1, capacity + 1) if steps else (tokens_held, capacity - recent)
        total += 2 * heads * (slots * (8 + 8 + steps) * 4 + placed * 4)
    assert cache.nbytes() == total
    report = cache.report()
    assert report["bytes"].sum() == total
    assert report["tokens"].tolist() == [PROMPT + new] * 3


@every_example
def test_positions_are_true_and_no_token_is_held_twice(lens: Any, policy: Any) -> None:
    """Held keys and values are, bit for bit, those that the model wrote at these positions."""
    ids = tokens(2, PROMPT)
    written: dict[str, list[Tensor]] = {}
    keep = lambda value, hook: written.setdefault(hook.name, []).append(value.transpose(1, 2).clone())  # noqa: E731
    with lens.hooks(fwd_hooks=[(lambda name: name.endswith(("hook_rot_k", "hook_v")), keep)]):
        _, cache = generated(lens, policy, ids)
    for layer, stored in cache.stored.items():
        at = positions(stored)
        assert bool((at[..., 1:] > at[..., :-1]).all())
        assert int(at.max()) == stored.seen - 1 == PROMPT + GENERATED["max_new_tokens"] - 2
        for name, held in (("hook_rot_k", "keys"), ("hook_v", "values")):
            everything = torch.cat(written[f"blocks.{layer}.attn.{name}"], 2)
            for segment in stored.segments:
                index = segment.at().expand(segment.keys.shape[:3]).long()[..., None].expand(segment.keys.shape)
                assert torch.equal(getattr(segment, held), everything.gather(2, index))


@pytest.mark.parametrize("short", [30, 20, 6])
@every_example
def test_padding_goes_first_and_sinks_never(lens: Any, policy: Any, short: int) -> None:
    ids, mask = padded(short)
    _, cache = generated(lens, policy, ids, attention_mask=mask)
    for stored in cache.stored.values():
        for text, first in enumerate((0, PROMPT - short)):
            for held in positions(stored)[text].tolist():
                real = set(range(first, stored.seen))
                if (
                    any(p < first for p in held) and policy.name != "pyramidkv"
                ):  # whose layers differ by the text's length
                    assert real <= set(held)
                assert set(range(first, first + policy.sinks)) <= set(held)


@every_example
def test_two_runs_are_identical(lens: Any, policy: Any) -> None:
    runs = [generated(lens, policy, tokens(2, PROMPT), output_logits=True, return_dict_in_generate=True) for _ in "ab"]
    (a, cache), (b, other) = runs
    assert torch.equal(a.sequences, b.sequences)
    assert all(torch.equal(x, y) for x, y in zip(a.logits, b.logits, strict=True))
    assert all(torch.equal(positions(cache.stored[i]), positions(other.stored[i])) for i in cache.stored)


@pytest.mark.parametrize("short", [PROMPT, 25])
@every_example
def test_the_ledger_lists_exactly_what_is_gone(lens: Any, policy: Any, short: int) -> None:
    ids, mask = padded(short)
    _, cache = generated(lens, policy, ids, attention_mask=mask, ledger=True)
    entries = cache.keeper.ledger
    for layer, stored in cache.stored.items():
        own = [entry for entry in entries if entry.layer == layer]
        assert [entry.step for entry in own] == [
            PROMPT,
            *(range(PROMPT + 1, stored.seen + 1) if isinstance(policy, H2O) else ()),
        ]
        held = positions(stored)
        for text, first in enumerate((0, PROMPT - short)):
            for head, kept in enumerate(held[text].tolist()):
                gone = [p for entry in own for p in entry.evicted[text, head].tolist() if p >= 0]
                assert sorted(gone + [p for p in kept if p >= first]) == list(range(first, stored.seen))


def test_the_ledger_says_what_tokens_were_ranked_by(lens: Any) -> None:
    ids = tokens(2, PROMPT)
    full = FullCache("llama", ids)
    for policy, score in (
        (Knorm(budget=10), {i: -full.keys[i].norm(dim=-1) for i in full.layers}),
        (H2OPrefill(budget=10), full.mass),
        (H2O(budget=10), full.mass),
    ):
        _, cache = generated(lens, policy, ids, ledger=True, max_new_tokens=1)
        assert [entry.layer for entry in cache.keeper.ledger] == full.layers
        for entry in cache.keeper.ledger:
            expected = score[entry.layer].gather(2, entry.evicted)
            torch.testing.assert_close(entry.score, expected, rtol=1e-4, atol=1e-4)


def test_no_ledger_is_kept_unless_asked_for(lens: Any) -> None:
    assert generated(lens, H2O(budget=10), tokens(2, PROMPT))[1].keeper.ledger is None
