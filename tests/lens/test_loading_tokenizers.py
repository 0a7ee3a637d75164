"""Folders with and without a tokenizer, and tokenizers by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interp
from tests.models import tiny, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    tiny("llama").save_pretrained(path)
    return path


def test_a_folder_without_a_tokenizer_is_for_tokens(folder: Path) -> None:
    lens = interp.load(folder)
    assert lens.tokenizer is None
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(lens(ids), tiny("llama")(ids).logits)
    assert lens.generate(ids, max_new_tokens=2, eos_token_id=None).shape == (1, 5)
    assert interp.probe(lens, ids, "text_sinks")
    for call in (lambda: lens("w4"), lambda: lens.generate("w4"), lambda: lens.score("w4", "w5")):
        with pytest.raises(interp.InterpError, match="no tokenizer"):
            call()


def test_a_tokenizer_by_its_folder(folder: Path, tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    for given in (tmp_path, str(tmp_path)):
        assert interp.load(folder, given)("w4 w5").shape == (1, 3, 128)
        assert interp.load(tiny("llama"), given)("w4 w5").shape == (1, 3, 128)
    with pytest.raises(interp.InterpError, match="cannot load a tokenizer from"):
        interp.load(tiny("llama"), folder)


def test_a_tokenizer_that_is_damaged_is_not_passed_over(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(interp.InterpError, match="cannot load the folder"):
        interp.load(tmp_path)
