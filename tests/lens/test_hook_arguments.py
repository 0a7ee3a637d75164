"""What hook methods and calls are passed by mistake ends in one sentence that names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from tests.lens.interrupts import hooked
from tests.models import shared, tokenizer

TEXT = torch.tensor([[4, 5, 6, 7]])


def lens_of() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


def same(value: Any, hook: Any) -> None:
    return None


@pytest.mark.parametrize(
    "hooks", ["hook_embed", ["hook_embed"], [("hook_embed",)], [("hook_embed", 3)], same, 3, [3], {"hook_embed": same}]
)
@pytest.mark.parametrize("argument", ["fwd_hooks", "bwd_hooks"])
def test_hooks_that_are_no_pairs(argument: str, hooks: Any) -> None:
    lens = lens_of()
    said = rf"{argument} is a list of pairs \(name of a hook point, function\), not"
    with pytest.raises(InterpError, match=said), lens.hooks(**{argument: hooks}):
        lens(TEXT)
    assert not hooked(lens.hook_dict.items())


@pytest.mark.parametrize(
    "names", [3, 2.5, torch.tensor(1), np.array("a"), np.array([1, 2]), [[3]], b"hook_embed", [None, 3], object()]
)
def test_what_selects_no_points(names: Any) -> None:
    lens = lens_of()
    for call in (lens.point_names, lambda names: lens.run_with_cache(TEXT, names_filter=names)):
        with pytest.raises(InterpError, match="are selected by a name, a list of names or a function of names, not by"):
            call(names)


@pytest.mark.parametrize("cut", [1.5, "a", [99], 99, (0, 3, -1), (0, 3, 0), ("a",), object(), [0.5], (1, 2, 3, 4)])
def test_slices_that_are_none(cut: Any) -> None:
    with pytest.raises(InterpError, match="pos_slice"):
        lens_of().run_with_cache(TEXT, names_filter="hook_embed", pos_slice=cut)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"past_key_values": "a"}, "past_key_values is a cache"),
        ({"past_key_values": ()}, "past_key_values is a cache"),
        ({"position_ids": [[0, 1]]}, "position_ids is a tensor"),
        ({"position_ids": torch.tensor([[0, 1, 2, -1]])}, "position_ids is a tensor"),
        ({"position_ids": torch.tensor([[0, 1]])}, "position_ids is a tensor"),
        ({"position_ids": torch.ones(1, 4)}, "position_ids is a tensor"),
        ({"return_type": np.array([1, 2])}, "return_type is 'logits'"),
        ({"prepend_bos": np.array([1, 2])}, "prepend_bos is True"),
        ({"padding_side": np.array([1, 2])}, "padding_side is 'left'"),
    ],
)
def test_arguments_of_a_call(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(InterpError, match=said):
        lens_of()(TEXT, **keywords)


def test_names_of_probes_and_questions_that_are_no_collection() -> None:
    lens = lens_of()
    for wanted in (3, torch.tensor(1.0), object()):
        with pytest.raises(InterpError, match="there is no probe"):
            interp.probe(lens, "w4 w5", wanted)
        with pytest.raises(InterpError, match="there is no question"):
            interp.explain(lens, interp.ThinK(), "w4 w5 w6", "w4 w5", wanted)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_a_loss_of_tokens_in_any_whole_numbers(dtype: torch.dtype) -> None:
    lens, few = lens_of(), TEXT.to(dtype)
    assert torch.equal(lens(few, return_type="loss"), lens(TEXT, return_type="loss"))
    assert torch.equal(lens.score(few, few[:, :2]), lens.score(TEXT, TEXT[:, :2]))


def test_a_score_reads_a_padding_mask() -> None:
    with pytest.raises(InterpError, match="pass a padding mask"):
        lens_of().score({"input_ids": TEXT, "attention_mask": torch.ones(1, 1, 4, 4)}, "w4")


def test_a_batch_has_no_batch_dimension_to_remove() -> None:
    with pytest.raises(InterpError, match="remove_batch_dim goes with one text, and these are 2"):
        lens_of().run_with_cache(TEXT.repeat(2, 1), remove_batch_dim=True)


def test_a_score_in_parts_larger_than_any_text() -> None:
    lens = lens_of()
    assert torch.equal(lens.score("w4 w5", "w6 w7", chunk=2**62), lens.score("w4 w5", "w6 w7"))


def test_patch_says_what_it_was_given() -> None:
    metric = interp.patching.logit_difference(7, 8)
    for wrong, said in (
        ({"where": 3}, "where is a name"),
        ({"where": "hook_embed", "together": "a"}, "together should"),
    ):
        with pytest.raises(InterpError, match=said):
            interp.patch(lens_of(), "w4 w5", "w4 w6", metric=metric, **wrong)
