"""Steps of generation under pattern edits, with scores in the open, against the kernels that keep none."""

from __future__ import annotations

import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import interp
from interp import VAR, AttentionBias, GroupKnockOut, KnockOut, SinkRemoval, Temperature
from interp.interventions.edits import _few_rows
from tests.interventions.live_cache import close, left_padded
from tests.interventions.planted_sinks import FIRM, Batch, planted
from tests.models import shared, tokens

MODELS = ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"]
"""Grouped heads, a window of five tokens, a softcap, learned sinks, and none of them."""
POLICIES: dict[str, Any] = {
    "none": None,
    "evicting": interp.StreamingLLM(budget=10, sinks=2),
    "at every step": interp.H2O(budget=0.6),
    "channels": interp.ThinK(0.5, window=4, recent=4),
}
KNOCK_OUTS = st.builds(
    KnockOut,
    keys=st.lists(st.integers(0, 14), min_size=1, max_size=4, unique=True),
    heads=st.none() | st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True),
    layers=st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
    queries=st.none() | st.lists(st.integers(6, 18), min_size=1, max_size=5, unique=True),
    strength=st.sampled_from([0.25, 0.9, 1.0]),
    renormalise=st.booleans(),
)
EDITS = KNOCK_OUTS | st.sampled_from(
    [SinkRemoval(), SinkRemoval(sinks="massive"), Temperature(0.7), AttentionBias(keys=2, bias=-1.5)]
)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def by_kernels() -> Any:
    """No rows are few."""
    return patch.object(_few_rows, "FEW_ROWS", 0)


def written(lens: Any, ids: torch.Tensor, mask: torch.Tensor, intervention: Any, **how: Any) -> Any:
    with warnings.catch_warnings(), lens.apply(intervention):
        warnings.simplefilter("ignore")  # edits of keys or rows that a short text does not have
        return lens.generate(
            ids, 6, attention_mask=mask, eos_token_id=None, return_dict_in_generate=True, output_logits=True, **how
        )


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(MODELS),
    edits=st.lists(EDITS, min_size=1, max_size=2),
    policy=st.sampled_from(list(POLICIES)),
    padding=st.sampled_from([0, 3]),
)
def test_generation_is_that_of_the_kernels(name: str, edits: list[Any], policy: str, padding: int) -> None:
    if POLICIES[policy] is not None and name == "mistral":
        policy = "none"  # all of its layers slide, and policies act on none of them
    lens, (ids, mask) = interp.load(shared(name)), left_padded(12, padding) if padding else plain()
    intervention = edits[0] if len(edits) == 1 else edits[0] | edits[1]
    intervention = intervention if POLICIES[policy] is None else intervention | POLICIES[policy]
    found = written(lens, ids, mask, intervention)
    with by_kernels():
        wanted = written(lens, ids, mask, intervention)
    close(torch.stack(found.logits), torch.stack(wanted.logits), 2e-4)


def plain() -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokens(2, 12)
    return ids, torch.ones_like(ids)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(MODELS), edit=KNOCK_OUTS, sizes=st.lists(st.integers(1, 4), min_size=3, max_size=6))
def test_pieces_of_any_size_are_those_of_the_kernels(name: str, edit: KnockOut, sizes: list[int]) -> None:
    """Calls one after the other with one cache, of one token and of several; what came after a place forgotten again."""
    lens, ids = interp.load(shared(name)), tokens(2, sum(sizes) + 1)

    def read() -> torch.Tensor:
        logits, past, seen = [], None, 0
        with warnings.catch_warnings(), lens.apply(edit):
            warnings.simplefilter("ignore")
            for size in sizes:
                logits.append(lens(ids[:, seen : seen + size], past_key_values=past, use_cache=True))
                past, seen = lens.last_cache, seen + size
            if name in ("llama", "gpt2"):  # a window that moved on cannot go back
                past.crop(seen - 1)
                logits.append(lens(ids[:, seen - 1 : seen], past_key_values=past, use_cache=True))
        return torch.cat(logits, 1)

    found = read()
    with by_kernels():
        close(found, read(), 2e-4)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@pytest.mark.parametrize(
    "edit",
    [
        VAR(**FIRM, min_visual_mass=0.1, min_nonsink_ratio=0.3),
        VAR(**FIRM, min_visual_mass=0.55, min_nonsink_ratio=0.87, give_to="both", heads=(0, 2)),
        GroupKnockOut(**FIRM),
        VAR(**FIRM, min_visual_mass=0.1, min_nonsink_ratio=0.3) | KnockOut(keys=3) | Temperature(0.8),
    ],
    ids=["VAR", "VAR of some heads", "GroupKnockOut", "three at once"],
)
def test_what_follows_an_image_is_that_of_the_kernels(edit: Any, how: dict[str, Any]) -> None:
    batch = Batch("llava", ["w1 w2 <image> w3 w4 w5", "<image> w6 w7"])

    def run() -> Any:
        torch.manual_seed(0)
        return written(batch.lens, batch.ids, batch.mask, edit, **batch.rest, **how)

    with planted(batch.lens, batch.planted):
        found = run()
        with by_kernels():
            wanted = run()
        bare = batch.lens.generate(batch.ids, 6, attention_mask=batch.mask, eos_token_id=None, **batch.rest)
    assert torch.equal(found.sequences, wanted.sequences)
    close(torch.stack(found.logits), torch.stack(wanted.logits), 2e-4)
    assert found.sequences.shape[1] == bare.shape[1]


def test_rows_of_earlier_chunks_are_not_taken_for_the_newest() -> None:
    """A policy looks at the whole prompt with the last chunk's event, of one token that is edited; the others are not."""
    lens, ids = interp.load(shared("llama")), tokens(1, 13)
    edit = KnockOut(keys=(1, 2, 3), queries=12) | interp.SnapKV(budget=6, window=4)
    with lens.apply(edit):
        one = lens.generate(ids, 4, eos_token_id=None, return_dict_in_generate=True, output_logits=True)
        cut = lens.generate(
            ids, 4, eos_token_id=None, prefill_chunk_size=6, return_dict_in_generate=True, output_logits=True
        )
    close(torch.stack(cut.logits), torch.stack(one.logits), 2e-4)


class Calls(TorchDispatchMode):
    """How often torch is called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("edit", [VAR(channels=7, layers=(0, 1, 2)), KnockOut(keys=2)], ids=lambda edit: edit.name)
def test_a_step_costs_few_calls_of_torch(edit: Any) -> None:
    """What an edit adds to a step of generation, by layer: 150 before steps had a way of their own."""
    batch = Batch("llava", ["w1 w2 <image> w3 w4 w5"])

    def calls_of_a_step(intervention: Any) -> int:
        counted: list[int] = []

        def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            counted.append(calls.count)
            return scores

        def generate() -> None:
            batch.lens.generate(batch.ids, 5, eos_token_id=None, logits_processor=[note], **batch.rest)

        with warnings.catch_warnings(), Calls() as calls:
            warnings.simplefilter("ignore")
            if intervention is None:
                generate()
            else:
                with batch.lens.apply(intervention):
                    generate()
        return counted[-1] - counted[-2]

    added = calls_of_a_step(edit) - calls_of_a_step(None)
    assert 0 < added / 3 < 75
