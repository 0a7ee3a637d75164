"""What each token is of its text, and which tokens go on after a prompt, with tokenizers of every kind."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.lens import token_text
from tests.lens.tokenizers_of_each_kind import KINDS, SPACE, llama, metaspace
from tests.models import GROUPED

TEXTS = [
    "The capital of France is free",
    "unaffable people, don't like  café 😀",
    " is free",
    "is free  ",
    "w4",
    "line\n\nnext\tline",
]


def lens_of(tokenizer: hf.PreTrainedTokenizerFast) -> interp.Lens:
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED | {"vocab_size": len(tokenizer)}))
    return interp.load(model.eval(), tokenizer)


@pytest.fixture(scope="module", params=[(kind, bos) for kind in KINDS for bos in (True, False)], ids=str)
def lens(request: pytest.FixtureRequest) -> interp.Lens:
    kind, bos = request.param
    return lens_of(KINDS[kind](bos))


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_joined_are_the_text(lens: interp.Lens, text: str) -> None:
    pieces = lens.to_str_tokens(text)
    begin = lens.tokenizer.bos_token if lens.to_tokens(text)[0, 0] == lens.tokenizer.bos_token_id else ""
    assert "".join(pieces) == begin + text
    assert len(pieces) == lens.to_tokens(text).shape[1]


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_any_text_of_bytes_joins_again(text: str) -> None:
    tokenizer = KINDS["byte_level"](False) if not hasattr(test_any_text_of_bytes_joins_again, "made") else None
    tokenizer = tokenizer or test_any_text_of_bytes_joins_again.made
    test_any_text_of_bytes_joins_again.made = tokenizer
    ids = tokenizer(text).input_ids
    assert "".join(token_text.of_text(tokenizer, text) or []) == text
    assert "".join(token_text.of_ids(tokenizer, ids)) == text


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "llama", "unigram"])
def test_tokens_alone_tell_the_same(kind: str) -> None:
    lens = lens_of(KINDS[kind]())
    for text in ("The capital of France is free", "unaffable people", "w4"):
        assert lens.to_str_tokens(lens.to_tokens(text)) == lens.to_str_tokens(text)


@pytest.mark.parametrize("make", [metaspace, llama])
def test_a_token_by_itself_keeps_its_space(make: type) -> None:
    lens = lens_of(make())
    (free,) = lens.tokenizer.convert_tokens_to_ids([f"{SPACE}free"])
    assert lens.to_str_tokens([free]) == [" free"]
    assert lens.to_str_tokens(torch.tensor([free, free])) == [" free", " free"]


def test_a_character_of_several_tokens_is_with_the_last() -> None:
    lens = lens_of(KINDS["byte_level"](False))
    pieces = lens.to_str_tokens("ö€")
    assert "".join(pieces) == "ö€"
    assert pieces[0] == ""
    assert lens.to_str_tokens(lens.to_tokens("ö€")) == pieces


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_continuation_is_scored_as_the_whole_text_would_be(kind: str, bos: bool) -> None:
    """Also under Llama 2's tokenizer, which takes " is free" alone for a text with two spaces before it."""
    lens = lens_of(KINDS[kind](bos))
    prompt, rest = "The capital of France", " is free"
    whole, read = lens.to_tokens(prompt + rest), lens.to_tokens(prompt).shape[1]
    (found,) = lens.continuation_rows(prompt, rest)
    assert found.tolist() == whole[0, read:].tolist()
    nats = -lens(whole).log_softmax(-1)[0, read - 1 : -1].gather(-1, whole[0, read:, None])[:, 0]
    torch.testing.assert_close(lens.score(prompt, rest)[0], nats, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lens.score(lens.to_tokens(prompt), rest)[0], nats, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lens.score([prompt], [rest]), nats[None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["metaspace", "llama", "unigram"])
def test_no_space_is_put_before_what_goes_on(kind: str) -> None:
    """After half a word, and after a prompt that ends in a space, there is none."""
    lens = lens_of(KINDS[kind]())
    for prompt, rest in (("The capital of Fra", "nce"), ("The capital of France is ", "free")):
        (found,) = lens.continuation_rows(prompt, rest)
        tokens = lens.tokenizer.convert_ids_to_tokens(found.tolist())
        assert not tokens[0].startswith(SPACE)
        assert "".join(tokens) == rest


def test_an_unknown_word_that_grows_is_no_boundary() -> None:
    """ "zz" and "zzw5" are the same token to a tokenizer that knows neither."""
    from tests.models import shared, tokenizer

    lens = interp.load(shared("llama"), tokenizer())
    assert [row.tolist() for row in lens.continuation_rows("w4 zz", "w5")] == [[5]]
    assert [row.tolist() for row in lens.continuation_rows("w4 w6", "w5 w7")] == [[5, 7]]
