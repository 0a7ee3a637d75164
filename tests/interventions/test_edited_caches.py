"""The cache of an edited text remembers what it read under which edits: reset, cropped, copied, read by others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import interp
from interp import H2O, InterpError, KnockOut
from tests.interventions.edited_by_hand import in_pieces, one_sentence
from tests.interventions.live_cache import close
from tests.models import shared, tokens

EDIT = KnockOut(keys=[1, 12], strength=0.8)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def read(lens: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    return lens(ids, past_key_values=cache, use_cache=True)


def begun(lens: Any, ids: torch.Tensor, intervention: Any = EDIT) -> Any:
    with lens.apply(intervention):
        lens(ids, use_cache=True)
    return lens.last_cache


def test_a_reset_cache_takes_a_batch_of_another_size() -> None:
    lens, ids = interp.load(shared("llama")), tokens(3, 16)
    cache = begun(lens, ids)
    cache.reset()
    with lens.apply(EDIT):
        found = torch.cat([read(lens, cache, part) for part in ids[:1].split(8, 1)], 1)
        close(found, lens(ids[:1]))


def test_what_was_read_again_after_a_crop_was_read_without_the_edit() -> None:
    """As many tokens as before, but some of them are others."""
    lens, ids = interp.load(shared("llama")), tokens(2, 16)
    cache = begun(lens, ids[:, :14])
    cache.crop(-4)
    read(lens, cache, ids[:, 10:14])
    with lens.apply(EDIT):
        lens(ids)
        with pytest.raises(InterpError, match="4 were read without the attention edits") as told:
            read(lens, cache, ids[:, 14:])
    one_sentence(told.value)


@pytest.mark.parametrize("back", [-4, 12])
def test_a_cropped_cache_goes_on_under_the_edit(back: int) -> None:
    """Also by the length that is to be left, which transformers' own layers do not know."""
    lens, ids = interp.load(shared("llama")), tokens(2, 16)
    cache = begun(lens, ids)
    cache.crop(back)
    assert cache.get_seq_length() == 12
    with lens.apply(EDIT):
        close(read(lens, cache, ids[:, 12:]), lens(ids)[:, 12:])


@pytest.mark.parametrize("intervention", [EDIT, EDIT | H2O(budget=8)], ids=["edit", "edit and policy"])
def test_copies_and_parts_of_a_batch_go_on_by_themselves(intervention: Any) -> None:
    lens, ids = interp.load(shared("llama")), tokens(3, 20)
    cache = begun(lens, ids[:, :16], intervention)
    with lens.apply(intervention):
        read(lens, cache, ids[:, 16:17])
        copies = [copy.deepcopy(cache) for _ in range(3)]
        copies[1].batch_select_indices(torch.tensor([2]))
        copies[2].batch_repeat_interleave(2)
        wanted = [read(lens, cache, part) for part in ids[:, 17:].split(1, 1)]
        for other, rows in zip(copies, ([0, 1, 2], [2], [0, 0, 1, 1, 2, 2]), strict=True):
            for part, logits in zip(ids[rows, 17:].split(1, 1), wanted, strict=True):
                close(read(lens, other, part), logits[rows])


def test_under_the_edit_pieces_are_the_whole_text() -> None:
    lens, ids = interp.load(shared("llama")), tokens(2, 16)
    with lens.apply(EDIT):
        close(in_pieces(lens, ids, (9, 1, 5, 1)), lens(ids))
