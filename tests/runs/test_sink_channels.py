"""Sink channels are found where they were planted, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import interp
from interp import InterpError
from interp.runs.sink_channels import held_up
from tests.interventions.edited_by_hand import one_sentence
from tests.models import shared as text_model
from tests.models import tokenizer, tokens
from tests.vision_models import picture, shared


@contextmanager
def massive(lens: Any, block: int, column: int, channels: tuple[int, ...]) -> Iterator[None]:
    """Massive activations at a token, on channels of what a block puts out."""

    def plant(module: Any, args: Any, out: Any) -> Any:
        stream = (out[0] if isinstance(out, tuple) else out).clone()
        stream[:, column, list(channels)] += 1e5
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    hook = lens.anatomy.blocks[block].block.register_forward_hook(plant)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_they_are_found_at_the_first_token(name: str) -> None:
    lens = interp.load(text_model(name))
    assert interp.sink_channels(lens, tokens(3, 20)) == ()
    with massive(lens, 0, 0, (11, 40)):
        assert set(interp.sink_channels(lens, tokens(3, 20))) == {11, 40}
        assert interp.sink_channels(lens, tokens(3, 20), over_median=1e9) == ()


def test_and_at_the_keys_that_are_attended_most() -> None:
    """A massive activation at any other token is none that attention goes to, and attention alone makes no channel."""
    lens, ids = interp.load(text_model("llama")), tokens(2, 20)

    attended = interp.AttentionBias(keys=7, bias=20.0)
    with massive(lens, 0, 7, (11,)):
        with lens.apply(attended):
            assert interp.sink_channels(lens, ids) == (11,)
        with lens.apply(interp.KnockOut(keys=7)):
            assert interp.sink_channels(lens, ids) == ()
    with lens.apply(attended):
        assert interp.sink_channels(lens, ids) == ()


def test_they_hold_for_half_of_the_plateau_and_of_the_texts() -> None:
    passes = torch.zeros(6, 8, dtype=torch.bool)
    assert held_up(passes) == ()
    passes[1:5, 3] = passes[1:3, 6] = passes[4, 2] = passes[1:4, 0] = True
    assert held_up(passes) == (3, 0, 6)
    lens, ids = interp.load(text_model("llama")), tokens(3, 20)
    for texts, found in (([0], ()), ([0, 2], (5,))):
        left = iter([float(i in texts) for i in range(3)])

        def plant(stream: torch.Tensor, hook: Any, left: Iterator[float] = left) -> torch.Tensor:
            stream = stream.clone()
            stream[:, 0, 5] += 1e5 * next(left)
            return stream

        with lens.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", plant)]):
            assert interp.sink_channels(lens, ids) == found


def test_of_a_model_that_sees() -> None:
    lens = interp.Lens(*shared("llava"))
    with massive(lens, 0, 0, (11, 40)):
        assert set(interp.sink_channels(lens, images=[picture(0), picture(1)])) == {11, 40}
        assert set(interp.sink_channels(lens, "w1 <image> w2", picture(0))) == {11, 40}
        assert set(interp.sink_channels(lens, ["w1 w2", "w3 w4 w5"])) == {11, 40}
    with pytest.raises(InterpError, match="2 texts and images for 1 do not pair up") as told:
        interp.sink_channels(lens, ["<image>", "<image>"], [picture(0)])
    one_sentence(told.value)


def test_without_texts_it_reads_what_python_brings_along() -> None:
    assert interp.sink_channels(interp.load(text_model("llama"), tokenizer())) == ()


@pytest.mark.parametrize("over", [0.5, float("nan"), "a"])
def test_a_bad_ratio_is_refused(over: Any) -> None:
    with pytest.raises(InterpError, match="over_median should be") as told:
        interp.sink_channels(interp.load(text_model("llama")), tokens(), over_median=over)
    one_sentence(told.value)
