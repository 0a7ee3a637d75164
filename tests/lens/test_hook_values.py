"""What hooks return: the point's shape, one that can only mean it, or one clear sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.lens.hook_values import Held, fitting
from tests.models import shared, tokens
from tests.seam.test_bridge import bridged

EDITABLE = (
    "hook_embed", "blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid",
    "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "ln_final.hook_normalized", "blocks.1.attn.hook_rot_q",
    "blocks.1.attn.hook_rot_k", "blocks.1.attn.hook_v", "blocks.1.attn.hook_z", "blocks.1.attn.hook_attn_scores",
    "blocks.1.attn.hook_pattern",
)  # fmt: skip


def hooked(lens: Any, point: str, change: Any) -> torch.Tensor:
    def hook(value: torch.Tensor, hook: Any) -> Any:
        return change(value)

    with torch.no_grad():
        out: torch.Tensor = lens.run_with_hooks(tokens(), fwd_hooks=[(point, hook)])
    return out


def assert_same(out: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bit for bit; a mean over masked scores is -inf, and no number comes of it."""
    torch.testing.assert_close(out, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("point", EDITABLE)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_a_mean_that_keeps_its_axis_stands_for_all(point: str, axis: int) -> None:
    lens = interp.load(shared("llama"))
    short = hooked(lens, point, lambda v: v.mean(axis, keepdim=True))
    assert_same(short, hooked(lens, point, lambda v: v.mean(axis, keepdim=True).expand_as(v)))


@pytest.mark.parametrize("point", EDITABLE)
def test_one_vector_and_one_number_stand_for_all(point: str) -> None:
    lens = interp.load(shared("llama"))
    for change in (lambda v: v[0, 0].flatten()[: v.shape[-1]], lambda v: v.mean()):
        assert_same(hooked(lens, point, change), hooked(lens, point, lambda v, c=change: c(v).expand_as(v)))


WRONG = {
    "fewer positions": (lambda v: v[:, :-1], "shape"),
    "more positions": (lambda v: torch.cat([v, v], 1), "shape"),
    "another width": (lambda v: v[..., :-1], "shape"),
    "an axis more": (lambda v: v[None], "shape"),
    "no positions": (lambda v: v[:, :0], "shape"),
    "a text more": (lambda v: torch.cat([v, v]), "shape"),
    "a number of Python": (lambda v: 0.0, "returned float"),
    "a tuple": (lambda v: (v,), "returned tuple"),
    "an array": (lambda v: v.numpy(), "returned ndarray"),
    "whole numbers": (lambda v: v.long(), "int64"),
    "truth values": (lambda v: v > 0, "bool"),
    "complex numbers": (lambda v: v + 0j, "complex64"),
    "no place": (lambda v: v.to("meta"), "on meta"),
    "sparse": (lambda v: v.to_sparse(), "sparse"),
}


@pytest.mark.parametrize("point", EDITABLE)
@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_meant_is_one_sentence(point: str, what: str) -> None:
    change, says = WRONG[what]
    with pytest.raises(interp.InterpError, match=says) as caught:
        hooked(interp.load(shared("llama")), point, change)
    assert point in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("point", EDITABLE)
def test_a_shape_changed_in_place_is_seen(point: str) -> None:
    def grow(value: torch.Tensor) -> None:
        value.unsqueeze_(0)

    with pytest.raises(interp.InterpError, match="shape"):
        hooked(interp.load(shared("llama")), point, grow)


@pytest.mark.parametrize("point", EDITABLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_floating_dtype_is_converted(point: str, dtype: torch.dtype) -> None:
    lens = interp.load(shared("llama"))
    assert torch.equal(hooked(lens, point, lambda v: v.to(dtype)), hooked(lens, point, lambda v: v.to(dtype).float()))


@pytest.mark.parametrize("point", EDITABLE)
def test_edits_in_place_and_looking_go_on_as_before(point: str) -> None:
    def halve(value: torch.Tensor) -> None:
        value.mul_(0.5)

    lens = interp.load(shared("llama"))
    assert torch.equal(hooked(lens, point, halve), hooked(lens, point, lambda v: v * 0.5))
    plain = hooked(lens, point, lambda v: None)
    assert torch.equal(plain, hooked(lens, point, lambda v: v))


def test_several_hooks_on_a_point_and_in_generation() -> None:
    lens, seen = interp.load(shared("llama")), []
    point = "blocks.1.attn.hook_v"
    hooks = [(point, lambda v, hook: v.mean(1, keepdim=True)), (point, lambda v, hook: v * 2)]
    kept = [("blocks.1.attn.hook_cached_v", lambda v, hook: seen.append(v.shape[1]))]
    with lens.hooks(fwd_hooks=hooks + kept):
        lens.generate(tokens(), max_new_tokens=3, min_new_tokens=3)
    assert seen == [12, 13, 14]


def test_a_bridge_checks_too() -> None:
    lens = interp.load(bridged("llama"))
    for point in ("blocks.1.attn.hook_v", "blocks.1.hook_resid_post"):
        with pytest.raises(interp.InterpError, match="shape"):
            hooked(lens, point, lambda v: v[:, :-1])
        short = hooked(lens, point, lambda v: v.mean(1, keepdim=True))
        assert torch.equal(short, hooked(lens, point, lambda v: v.mean(1, keepdim=True).expand_as(v)))


def test_texts_are_not_taken_for_positions() -> None:
    """[batch, head, d_head] lines its batch up with positions where there are as many: then it is not guessed."""
    held = Held(torch.Size([5, 5, 2, 3]), torch.float32, torch.device("cpu"))
    with pytest.raises(interp.InterpError, match="stretches"):
        fitting("here", "batch pos head d_head", held, torch.zeros(5, 2, 3))
    assert fitting("here", "batch pos head d_head", held, torch.zeros(1, 2, 3)).shape == held.shape


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=4), st.lists(st.integers(0, 4), max_size=5))
def test_what_comes_through_has_the_shape_and_torchs_numbers(shape: list[int], given: list[int]) -> None:
    value = torch.rand(given)
    held = Held(torch.Size(shape), torch.float32, torch.device("cpu"))
    try:
        out = fitting("here", "", held, value)
    except interp.InterpError:
        try:
            fits = torch.broadcast_shapes(value.shape, held.shape) == held.shape
        except RuntimeError:
            fits = False
        assert not fits or 1 < len(given) < len(shape)
    else:
        assert out.shape == held.shape
        assert torch.equal(out, value.broadcast_to(held.shape))
