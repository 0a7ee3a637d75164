"""Tokenizers that break: one sentence about the tokenizer, and nothing that Rust says on standard error."""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.icl.language import label_task
from interp.lens import trying_tokenizers
from interp.lens.foreign import TokenizerError
from interp.runs.generating import generate
from interp.subjects.panics import PanicError, panics_caught, without_panics
from tests.lens.foreign_folders import said, whole
from tests.models import shared, tokenizer

ANY = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx w4"
PANICKING_SPLIT = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
WITHOUT_UNKNOWN = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none such"}
UNSOUND = {
    "type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("foreign") / "whole")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.mark.parametrize(
    "fields", [{"pre_tokenizer": PANICKING_SPLIT}, {"model": WITHOUT_UNKNOWN}, {"post_processor": UNSOUND}]
)
def test_one_that_breaks_on_a_text(folder: Path, fields: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    said(folder, "tokenizer.json", **fields)
    lens = interp.load(folder)
    for call in (
        lambda: lens(ANY),
        lambda: lens.to_str_tokens(ANY),
        lambda: lens.token_ids(ANY),
        lambda: lens.score(torch.tensor([[4]]), ANY),
        lambda: lens.generate(ANY, 2),
        lambda: interp.probe(lens, ANY, "text_sinks"),
    ):
        with pytest.raises(TokenizerError, match=r"the tokenizer of .*model") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not re.search("panicked|backtrace", capfd.readouterr().err)


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
        {"model": {"type": "Unigram", "unk_id": 500, "vocab": [["a", 0.0]], "byte_fallback": False}},
        {"model": {"type": "none such"}},
        {"added_tokens": 3},
    ],
)
def test_one_that_cannot_be_loaded(folder: Path, fields: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    said(folder, "tokenizer.json", **fields)
    for call in (lambda: interp.load(folder), lambda: interp.load(shared("llama"), folder)):
        with pytest.raises(interp.InterpError, match=r"cannot load .*tokenizer") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not re.search("panicked|backtrace", capfd.readouterr().err)


DOUBLINGS = [{"type": "Replace", "pattern": {"String": "w"}, "content": "ww"}] * 40


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": {"type": "Sequence", "normalizers": DOUBLINGS}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
        {"decoder": {"type": "Sequence", "decoders": DOUBLINGS}},
    ],
)
def test_one_that_would_end_the_process(folder: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying_tokenizers, "SECONDS", 1)  # less patience than users have
    said(folder, "tokenizer.json", **fields)
    for call in (lambda: interp.load(folder), lambda: interp.load(shared("llama"), folder)):
        with pytest.raises(interp.InterpError, match="so it is not loaded") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_a_tokenizer_does_not_use_is_not_held_against_it(folder: Path) -> None:
    padding = {
        "strategy": {"Fixed": 10**12}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    said(folder, "tokenizer.json", padding=padding)
    assert interp.load(folder)("w4").shape == (1, 2, 128)


def test_a_file_larger_than_any(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying_tokenizers, "MOST_BYTES", 1_000)
    with pytest.raises(interp.InterpError, match="more than any tokenizer"):
        interp.load(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "[]"), ("tokenizer.json", '{"version": "1.0", "mod'), ("tokenizer.json", "\0"),
        ("tokenizer_config.json", "[]"), ("tokenizer_config.json", "{"), ("tokenizer_config.json", '{"eos_token": 5}'),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
    ],
)  # fmt: skip
def test_files_of_one_that_are_damaged(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(interp.InterpError, match=r"cannot load .*tokenizer") as caught:
        interp.load(folder)
    assert "\n" not in str(caught.value)


def test_one_of_another_model(folder: Path) -> None:
    tokenizer(1_000).save_pretrained(folder)
    lens = interp.load(folder)
    assert lens("w4").shape == (1, 2, 128)
    with pytest.raises(interp.InterpError, match="token id 999, 'w999' of this tokenizer, is outside the vocabulary"):
        lens("w999")


class Breaks:
    """A tokenizer that is a program of its own."""

    name_or_path, pad_token_id, eos_token_id, bos_token_id, chat_template = "own", None, None, None, None
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, **how: Any) -> Any:
        raise KeyError("a\nb")

    def decode(self, ids: Any, **how: Any) -> str:
        raise RecursionError

    batch_decode = decode


def test_one_that_is_a_program() -> None:
    lens = interp.load(shared("llama"), Breaks())
    ids = torch.tensor([[4, 5]])
    for call in (
        lambda: lens("w4"),
        lambda: lens.to_string(ids),
        lambda: lens.to_str_tokens(ids),
        lambda: generate(lens, ids, None, 2),
        lambda: label_task("sentiment").draw(lens.tokenizer),
        lambda: interp.probe(lens, ids, "text_sinks"),
    ):
        with pytest.raises(TokenizerError, match=r"tokenizer of own \(Breaks\)") as caught:
            call()
        assert "\n" not in str(caught.value)


class PanicException(BaseException):
    """As Rust's look in Python: of each library's own class, which is no Exception."""


@panics_caught()
def panic() -> None:
    os.write(2, b"before\n\nthread 'main' (7) panicked at src/x.rs:1:2:\nit is\nover\n")
    os.write(2, b"stack backtrace:\n   0: a::b\n             at ./x.rs:1:2\n  10: _start\n")
    os.write(2, b"note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.\n")
    raise PanicException("it is\nover")


def test_what_else_is_written_meanwhile_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    """By Python, by others on the descriptor, and by other threads, whichever ends first."""
    inside, out = threading.Event(), threading.Event()

    def other() -> None:
        with panics_caught():
            os.write(2, b"of another thread\n")
            inside.set()
            out.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with pytest.raises(PanicError, match="it is over"):
        panic()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == ""
    out.set()
    thread.join()
    assert capfd.readouterr().err == "of another thread\nbefore\nafter\n"
    os.write(2, b"as ever\n")
    assert capfd.readouterr().err == "as ever\n"


def test_nothing_is_taken_for_a_panic_that_is_none() -> None:
    text = b"thread 'main' panicked at src/x.rs:1:2:\nof somebody else\n"
    assert without_panics(text, []) == without_panics(text, ["mine"]) == text
    with pytest.raises(KeyboardInterrupt), panics_caught():
        raise KeyboardInterrupt
