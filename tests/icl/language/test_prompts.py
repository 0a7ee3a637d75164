"""Special tokens of a prompt: those before a text, once, and none of those after it."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from interp.icl.language._prompts import Prompt, special_tokens, start_tokens
from interp.lens.lens import Lens
from tests.models import shared, tokenizer


def closing():
    """A tokenizer that puts <eos> behind every text as well as <bos> before it."""
    both = tokenizer()
    both.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    assert both("w5").input_ids == [0, 5, 1]
    return both


def test_a_token_that_ends_a_text_does_not_come_before_one():
    lens = Lens(shared("llama"), closing())
    assert start_tokens(closing()) == (0,)
    prompt = Prompt.of(lens, ["w5 w6", "w7"], "w8")
    assert prompt.zero_shot.tolist() == [[0, 8]]
    assert prompt.in_context.tolist() == [[0, 5, 6, 7, 8]]
    assert [demo.tolist() for demo in prompt.alone] == [[[0, 5, 6]], [[0, 7]]]


@pytest.mark.parametrize("own", [None, tokenizer()], ids=["none", "bos"])
def test_special_tokens_are_those_of_the_tokenizer(own):
    lens = Lens(shared("llama"), own)
    assert special_tokens(lens).tolist() == ([] if own is None else list(start_tokens(own)))
