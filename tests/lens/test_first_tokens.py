"""The first tokens, read from a beginning of a text, are those of the whole text, whatever text and tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import interp
from interp.errors import InterpError
from interp.icl.language import icl_score
from interp.lens import first_tokens as reading
from interp.lens.first_tokens import first_tokens
from interp.subjects import demo_text
from tests.lens.tokenizers_of_each_kind import KINDS, READ, SPECIAL, _finished
from tests.models import shared, tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def llama_3(bos: bool = True) -> Any:
    """Rules of their own before the bytes, as in Llama 3, Qwen and GPT-4."""
    made = Tokenizer(models.BPE())
    rules = [pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(rules)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )  # fmt: skip
    made.train_from_iterator([*READ, *["a)\n\n b.\r\n\n", "naïve)\n  x"] * 3], trainer)
    return _finished(made, bos)


MADE = {kind: make() for kind, make in (KINDS | {"llama_3": llama_3}).items()}
PIECES = st.one_of(
    st.sampled_from(["The capital of France", "is free", "w4 w5", "hello", "naïve", "😀", "、", "首都はパリです。"]),
    st.sampled_from([" ", "  ", " " * 40, "\t", "\n", "\n\n", "\r\n", "\N{NO-BREAK SPACE}"]),
    st.sampled_from(["\N{COMBINING ACUTE ACCENT}", "<bos>", "<eos>"]),
    st.sampled_from([" and", " a", "'s", "123", "1", ",", ")\n", "x" * 30, "\N{IDEOGRAPHIC SPACE}", "\u202e"]),
    st.text(max_size=6),
)  # fmt: skip
TEXTS = st.builds(lambda parts, times: "".join(parts) * times, st.lists(PIECES, min_size=1, max_size=12), st.just(6))


@pytest.fixture(autouse=True)
def short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of a few characters, so that short texts have several."""
    for name, value in {"LONG": 0, "SHORTEST": 8, "A_TOKEN": 2, "GROWTH": 2}.items():
        monkeypatch.setattr(reading, name, value)


class Counting:
    """A tokenizer that notes how much of a text it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.read = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, **how: Any) -> Any:
        self.read += len(text)
        return self.tokenizer(text, **how)


def agree(tokenizer: Any, text: str, n: int, special: bool = True) -> None:
    whole = list(tokenizer(text.encode("utf-8", "replace").decode(), add_special_tokens=special).input_ids)
    assert first_tokens(tokenizer, text.encode("utf-8", "replace").decode(), n, special)[:n] == whole[:n]


@pytest.mark.parametrize("kind", MADE)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, n=st.integers(1, 20), special=st.booleans())
def test_they_are_those_of_the_whole_text(kind: str, text: str, n: int, special: bool) -> None:
    agree(MADE[kind], text, n, special)


@pytest.mark.parametrize("kind", MADE)
def test_of_prose_little_is_read(kind: str) -> None:
    counting, text = Counting(MADE[kind]), "Rome is free, and the capital.\nUnaffable people " * 400
    assert first_tokens(counting, text, 16)[:16] == list(MADE[kind](text).input_ids)[:16]
    assert counting.read < len(text) / 10


def test_of_the_demo_text_with_the_real_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    text = demo_text()
    for made in MADE.values():
        counting = Counting(made)
        assert first_tokens(counting, text, 300)[:300] == list(made(text[:20_000]).input_ids)[:300]
        assert counting.read < len(text) / 4


def across_words() -> Any:
    """Tokens that span words, as in SuperBPE."""
    letters = {letter: i for i, letter in enumerate(["<unk>", "a", "b", "Ġ", "Ċ", "aĠ", "aĠb", "aĊ", "Ċb"])}
    made = Tokenizer(models.BPE(letters, [("a", "Ġ"), ("aĠ", "b"), ("a", "Ċ"), ("Ċ", "b")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _finished(made, bos=False)


def ahead(pattern: str) -> Any:
    """A rule that looks at what follows; numbers are split from the right, as some newer models do."""
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<unk>", *"ab12", " "])}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return _finished(made, bos=False)


def whole_words() -> Any:
    """What lies between two commas is one word."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "a b": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(",")
    return _finished(made, bos=False)


def added(word: str) -> Any:
    """A token of several words that somebody added."""
    made = KINDS["byte_level"](bos=False)
    made.add_tokens([word])
    return made


ODD = {
    "words are spanned": across_words(),
    "numbers from the right": ahead(r"\d(?=(\d\d)*\b)"),
    "far ahead": ahead(r"a(?=.*2)"),
    "whole words": whole_words(),
    "an added token": added("b a"),
    "an added line": added("b\na"),
}


@pytest.mark.parametrize("kind", ODD)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(["a", "b", " ", "\n", ",", "12", "a b ", "b a", "b\na"]), max_size=80),
       n=st.integers(1, 9))  # fmt: skip
def test_tokens_that_span_words_and_rules_that_look_ahead(kind: str, parts: list[str], n: int) -> None:
    agree(ODD[kind], "".join(parts), n)


@pytest.mark.parametrize(
    "text", ["a" * 3000, "首都はパリです" * 400, " " * 3000, "\n" * 3000, "a\u0301" * 1500, "e\u200d" * 999]
)
def test_texts_without_any_place_to_cut(text: str) -> None:
    for made in MADE.values():
        agree(made, text, 7)


def test_every_way_in_reads_a_beginning() -> None:
    lens = interp.load(shared("llama"), Counting(tokenizer()))
    text = " ".join(f"w{4 + i % 30}" for i in range(40_000))
    whole = list(tokenizer()(text).input_ids)
    reads = {
        "to_tokens": lambda: lens.to_tokens(text, truncate=6)[0].tolist(),
        "rows": lambda: lens.rows([text, text], truncate=6)[0][1][0].tolist(),
        "no bos": lambda: lens.to_tokens(text, prepend_bos=False, truncate=5)[0].tolist(),
        "probe": lambda: [6] * (interp.probe(lens, text, ["text_sinks"], tokens=6)["text_sinks"].sizes["token"]),
        "icl_score": lambda: icl_score(lens, text, early=2, late=4, most=2),
    }
    for name, read in reads.items():
        lens.tokenizer.read = 0
        found = read()
        assert 0 < lens.tokenizer.read < len(text) / 10, name
        assert name not in ("to_tokens", "rows") or found == whole[:6]
        assert name != "no bos" or found == whole[1:6]


def test_a_text_far_beyond_the_context_is_refused_before_it_is_read() -> None:
    lens = interp.load(shared("llama"), Counting(tokenizer()))
    text = " ".join(f"w{4 + i % 30}" for i in range(40_000))
    from interp.runs.generating import generate

    for run in (
        lambda: lens(text),
        lambda: lens.generate(text),
        lambda: lens.score(text, " w5"),
        lambda: generate(lens, text),
        lambda: interp.probe(lens, text),
        lambda: interp.side_by_side(lens, text, interp.SnapKV(budget=0.5)),
        lambda: interp.explain(lens, interp.SnapKV(budget=0.5), text, " w5"),
        lambda: interp.patch(lens, text, text, "blocks.0.hook_resid_post", lambda logits: logits.sum()),
        lambda: lens.score("w5", text),
    ):
        lens.tokenizer.read = 0
        with pytest.raises(InterpError, match="the text has more tokens than the context of 512"):
            run()
        assert lens.tokenizer.read < len(text) / 10
    lens.tokenizer.read = 0
    assert lens.to_tokens(text).shape[1] == len(tokenizer()(text).input_ids)  # nothing is run on these
