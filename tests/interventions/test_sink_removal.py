"""SinkRemoval against the pattern edited by hand, on models in which massive activations are planted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch

import interp
from interp import H2OPrefill, InterpError, KnockOut, SinkRemoval, interventions
from tests.interventions.edited_by_hand import Edit, by_hand, in_pieces
from tests.interventions.live_cache import close, left_padded
from tests.models import NAMES, shared, tokens

PADDING = 5
LOUD = 77
"""The token whose residual stream explodes after the first block."""
PIECES = (9, 4, 1, 2)
LOOK = [(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]
EXAMPLES = [SinkRemoval(remove_fraction=0.8)]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@contextmanager
def planted(lens: Any) -> Iterator[None]:
    """Wherever token LOUD is read, 3,000 is added to channel 7 of what the first block puts out."""
    seen: dict[str, torch.Tensor] = {}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen["ids"] = kwargs["input_ids"]

    def plant(module: Any, args: Any, out: Any) -> Any:
        stream = out[0] if isinstance(out, tuple) else out
        stream = stream.clone()
        stream[..., 7] += 3000.0 * (seen["ids"] == LOUD)
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    hooks = [
        lens.model.register_forward_pre_hook(note, with_kwargs=True),
        lens.anatomy.blocks[0].block.register_forward_hook(plant),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """LOUD stands once in the first text, twice in the second, and once in the second's padding."""
    ids, mask = left_padded(16, PADDING)
    ids[0, 4] = ids[1, 2] = ids[1, 8] = ids[1, 14] = LOUD
    return ids, mask


def removed(fraction: float, ids: torch.Tensor, sinks: str, heads: Any = range(8)) -> Edit:
    def edit(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        new = pattern.clone()
        for b in range(2):
            first = PADDING * b
            loud = [j for j in range(first, 16) if ids[b, j] == LOUD and layer > 0] if sinks != "first" else []
            found = sorted({*loud, *([first] if sinks != "massive" else [])})
            others = [j for j in range(16) if j not in found]
            for h in heads:
                for i in range(first, 16):
                    sink, rest = pattern[b, h, i, found].sum(), pattern[b, h, i, others].sum()
                    if rest > 0:
                        new[b, h, i, found] *= 1 - fraction
                        new[b, h, i, others] *= (rest + fraction * sink) / rest
        return new

    return edit


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sinks", ["first", "massive", "both"])
def test_mass_goes_from_sinks_to_the_others(name: str, sinks: Literal["first", "massive", "both"]) -> None:
    """In one call, in pieces, and with the pattern in the open; texts of a batch have their own sinks."""
    lens, (ids, mask) = interp.load(shared(name)), text()
    real = mask.bool()
    with planted(lens):
        wanted = by_hand(lens, ids, removed(0.7, ids, sinks), attention_mask=mask)
        with lens.apply(SinkRemoval(remove_fraction=0.7, sinks=sinks)):
            whole = lens(ids, attention_mask=mask)
            pieces = in_pieces(lens, ids, PIECES, mask)
            watched = lens.run_with_hooks(ids, attention_mask=mask, fwd_hooks=LOOK)
        plain = lens(ids, attention_mask=mask)
    for found in (whole, pieces, watched):
        close(found[real], wanted[real], 1e-4)
    assert (plain - wanted)[real].abs().max() > 0.001


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_rows_keep_their_sums_and_others_their_proportions(fraction: float) -> None:
    lens, (ids, mask) = interp.load(shared("gpt_oss")), text()
    names = ["blocks.1.attn.hook_pattern"]
    with planted(lens):
        _, before = lens.run_with_cache(ids, attention_mask=mask, names_filter=names)
        with lens.apply(SinkRemoval(remove_fraction=fraction, layers=1, heads=[0, 5])):
            _, after = lens.run_with_cache(ids, attention_mask=mask, names_filter=names)
    plain, found = before["pattern", 1][0], after["pattern", 1][0]
    close(found.sum(-1), plain.sum(-1))
    assert torch.equal(found[[1, 2, 3, 4, 6, 7]], plain[[1, 2, 3, 4, 6, 7]])
    close(found[[0, 5], 1:][..., [0, 4]], (1 - fraction) * plain[[0, 5], 1:][..., [0, 4]])
    ratio = (found / plain)[5, 15, [2, 3, 5, 9, 14]]
    close(ratio, ratio[:1].expand(5))
    assert float(ratio[0]) > 1
    assert torch.equal(found[:, 0], plain[:, 0])  # it sees nothing but itself


def test_nothing_to_remove_is_exactly_nothing() -> None:
    lens, ids = interp.load(shared("llama")), tokens()
    plain = lens(ids)
    with lens.apply(SinkRemoval(remove_fraction=0.0)):
        assert torch.equal(lens(ids), plain)
    with pytest.warns(UserWarning, match="sink_removal changed nothing"), lens.apply(SinkRemoval(sinks="massive")):
        assert torch.equal(lens(ids), plain)


def test_with_a_knock_out_and_a_cache_policy() -> None:
    """The knock-out acts on what sink removal left; the policy then drops what nobody looks at."""
    lens, (ids, mask) = interp.load(shared("llama")), text()
    gone = [j for j in range(16) if j != 9]
    take = removed(0.5, ids, "first")

    def both(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        pattern = take(layer, pattern)
        left = pattern * torch.tensor([float(j in gone) for j in range(16)])[None, None, None]
        left[1] = pattern[1] * torch.tensor([float(j != 9 + PADDING) for j in range(16)])
        return left * (pattern.sum(-1, keepdim=True) / left.sum(-1, keepdim=True)).nan_to_num()

    wanted, real = by_hand(lens, ids, both, attention_mask=mask), mask.bool()
    edits = SinkRemoval(remove_fraction=0.5, sinks="first") | KnockOut(keys=9)
    with lens.apply(edits):
        close(in_pieces(lens, ids, PIECES, mask)[real], wanted[real], 1e-4)
    with lens.apply(edits | H2OPrefill(budget=10, sinks=0, recent_share=0.0)):
        close(lens(ids, attention_mask=mask, use_cache=True)[real], wanted[real], 1e-4)
    for layer in lens.last_cache.stored.values():
        places = layer.segments[0].at()
        assert not bool((places[0] == 9).any())
        assert not bool((places[1] == 9 + PADDING).any())


@pytest.mark.parametrize("way", ["reorder", "repeat", "select", "crop"])
def test_what_happens_to_a_cache_happens_to_what_edits_remember(way: str) -> None:
    """Texts have different sinks, so each has to take its own along; a piece that was cropped is forgotten."""
    lens, ids = interp.load(shared("llama")), tokens(length=16)
    ids[0, 4] = ids[1, 2] = ids[1, 11] = LOUD
    rows = torch.tensor({"reorder": [1, 0], "repeat": [0, 0, 1, 1], "select": [1], "crop": [0, 1]}[way])
    with planted(lens), lens.apply(SinkRemoval(remove_fraction=0.9)):
        wanted = lens(ids)[rows]
        lens(ids[:, :10], use_cache=True)
        cache = lens.last_cache
        if way == "reorder":
            cache.reorder_cache(rows)
        elif way == "repeat":
            cache.batch_repeat_interleave(2)
        elif way == "select":
            cache.batch_select_indices(rows)
        else:
            lens(torch.full((2, 3), LOUD), use_cache=True, past_key_values=cache)
            cache.crop(-3)
        found = lens(ids[rows, 10:], use_cache=True, past_key_values=cache)
    close(found, wanted[:, 10:], 1e-4)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"remove_fraction": 1.2}, "remove_fraction should be 0 to 1, found 1.2"),
        ({"sinks": "last"}, "sinks should be one of first, massive, both"),
        ({"over_median": 0.5}, "over_median should be at least 1, found 0.5"),
        ({"heads": []}, "heads should be distinct numbers"),
    ],
)
def test_a_bad_setting_is_told_when_it_is_made(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError) as told:
        SinkRemoval(**asked)
    assert says in str(told.value)


def test_it_is_read_from_text() -> None:
    edit = interventions.parse("sink_removal:remove_fraction=0.5,sinks=massive,layers=[0,2]")
    assert edit == SinkRemoval(remove_fraction=0.5, sinks="massive", layers=(0, 2))
