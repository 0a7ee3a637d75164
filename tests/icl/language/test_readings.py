"""Cached, batched and padded reading against one plain pass over each whole prompt."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from interp import Lens
from interp.errors import InterpError
from interp.icl.language.label_tasks import LabelTask
from interp.icl.language.readings import demo_tokens, next_token_logits, read
from tests.models import shared, tokenizer

UNEVEN = LabelTask(
    "uneven",
    "w4 {text} w5",
    ("w100", "w101"),
    tuple((" ".join(f"w{i + j}" for j in range(1 + i % 4)), i % 2) for i in range(10, 80)),
    "words of the tests, one to four in a text",
)


@cache
def lens(name: str) -> Lens:
    return Lens(shared(name), tokenizer(), name)


@cache
def prompts():
    return UNEVEN.draw(tokenizer(), demos=4, queries=11, held_out=3, seed=1)


def plainly(name: str, before: list[int], query) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Every layer's attention output, scores and queries of one whole prompt, and its last logits."""
    tokens = torch.tensor([[*before, *query.prompt]])
    wanted = ("hook_attn_out", "attn.hook_attn_scores", "attn.hook_rot_q", "attn.hook_q")
    with torch.no_grad():
        logits, seen = lens(name).run_with_cache(tokens, names_filter=lambda n: n.endswith(wanted))
    layers = range(3)
    q = "hook_q" if "blocks.0.attn.hook_q" in seen.cache_dict else "hook_rot_q"
    out = torch.stack([seen[f"blocks.{i}.hook_attn_out"][0, -1] for i in layers])
    scores = torch.stack([seen[f"blocks.{i}.attn.hook_attn_scores"][0, :, -1] for i in layers])
    queries = torch.stack([seen[f"blocks.{i}.attn.{q}"][0, -1].flatten() for i in layers])
    return [out, scores, queries], logits[0, -1]


@pytest.mark.parametrize("demos", [False, True], ids=["bare", "in context"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "cohere", "granite"])
def test_a_reading_is_that_of_one_pass_over_each_prompt(name, demos):
    before = demo_tokens(prompts()).tokens if demos else list(prompts().start)
    found = read(lens(name), prompts(), demos=demos)
    scale = getattr(shared(name).config, "attention_multiplier", 8**-0.5)
    width = max(len(query.prompt) for query in prompts().queries)
    for i, query in enumerate(prompts().queries):
        (out, scores, queries), logits = plainly(name, before, query)
        n = len(query.prompt)
        torch.testing.assert_close(found.attn_out[i], out, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.scores[i, :, :, width - n :], scores[:, :, -n:], rtol=1e-4, atol=1e-4)
        assert not found.scores[i, :, :, : width - n].any()
        torch.testing.assert_close(found.last_query[i], queries * scale, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.logits[i], logits, rtol=1e-4, atol=1e-3)
        if demos:
            torch.testing.assert_close(found.demo_scores[i], scores[:, :, :-n].sum(1), rtol=1e-4, atol=1e-3)
    assert found.demo_scores.shape == (11, 3, len(before) if demos else 0)


def test_softcapped_scores_are_those_that_the_softmax_sees():
    few = UNEVEN.draw(tokenizer(), demos=4, queries=3, seed=1)
    found = read(lens("gemma2"), few, demos=False)
    assert float(found.scores.abs().max()) <= 2.0
    (_, scores, _), _ = plainly("gemma2", list(few.start), few.queries[0])
    n = len(few.queries[0].prompt)
    full = scores[1, :, -n:]  # the layer without a window
    torch.testing.assert_close(found.scores[0, 1, :, -n:], full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("demos", [False, True])
def test_logits_without_hooks_are_the_same(demos):
    torch.testing.assert_close(
        next_token_logits(lens("llama"), prompts(), prompts().queries, demos=demos),
        read(lens("llama"), prompts(), demos=demos).logits,
        rtol=1e-5,
        atol=1e-5,
    )


def test_positions_of_demonstrations_leave_out_first_tokens_and_separators():
    separated = replace(prompts(), start=(7,), separator=(8, 9))
    context = demo_tokens(separated)
    written = [token for demo in separated.demos for token in (*demo.prompt, demo.label, 8, 9)]
    assert context.tokens == [7, *written]
    for demo, positions in zip(separated.demos, context.positions, strict=True):
        assert [context.tokens[i] for i in positions] == [*demo.prompt[1:], demo.label]


def test_a_window_that_drops_demonstrations_is_refused():
    with pytest.raises(InterpError, match=r"holds \d+ of the \d+ tokens before the query, since its window is shorter"):
        read(lens("mistral"), prompts(), demos=True)
