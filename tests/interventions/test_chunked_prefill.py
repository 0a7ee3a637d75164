"""What is kept of a prompt that is read in pieces until the policies have seen it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import H2OPrefill, H2OWindow, Knorm, PyramidKV, RandomTokens, SnapKV, StreamingLLM, ThinK
from interp.interventions.base import Intervention
from interp.interventions.keeper import Keeper, _rows_of
from tests.interventions.live_cache import close, name_of
from tests.models import shared, tokens

NUMBERS = 8 * 8  # of a query in all heads


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def queries_held(lens: Any, policy: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most queries of one layer that were kept between chunks, by the memory that they take."""
    most, attended = 0, Keeper.attended

    def watched(self: Keeper, layer: int, *args: Any) -> None:
        nonlocal most
        attended(self, layer, *args)
        held = self._earlier_queries.get(layer, [])
        most = max(most, sum(q.untyped_storage().nbytes() for q in held))

    with monkeypatch.context() as patch, lens.apply(policy):
        patch.setattr(Keeper, "attended", watched)
        lens.generate(tokens(1, 60), max_new_tokens=1, prefill_chunk_size=chunk)
    return most // (4 * NUMBERS)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RandomTokens(budget=0.5), 0),
        (StreamingLLM(budget=0.5), 0),
        (Knorm(budget=0.5), 0),
        (SnapKV(budget=0.5, window=12), 12),
        (PyramidKV(budget=0.5, window=12), 12),
        (H2OWindow(budget=0.5, window=12), 12),
        (ThinK(0.5, window=12, recent=4), 12),
        (RandomTokens(budget=0.5) | ThinK(0.5, window=12, recent=4), 12),
        (ThinK(0.5, window=None, recent=4), None),
        (ThinK(0.5, window=12, recent=4, compensate=True), None),
        (ThinK(0.5, window=12, recent=4, weigh="attention"), None),
        (RandomTokens(budget=0.5) | ThinK.recommended(0.5, window=12, recent=4), None),
        (H2OPrefill(budget=0.5) | ThinK(0.5, window=12, recent=4), None),
    ],
    ids=lambda x: name_of(x) if isinstance(x, Intervention) else str(x),
)
@pytest.mark.parametrize("chunk", [5, 10])
def test_only_queries_that_a_policy_looks_at_are_kept(
    policy: Any, expected: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: all of them, that is of every piece of the 60 tokens but the last, after which nothing is kept."""
    wanted = 60 - chunk if expected is None else expected
    assert queries_held(interp.load(shared("llama")), policy, chunk, monkeypatch) == wanted


@pytest.mark.parametrize("padding", [0, 25, 52])
@pytest.mark.parametrize("value_ratio", [0.0, 0.5])
def test_a_window_over_several_chunks_judges_as_over_the_whole_prompt(padding: int, value_ratio: float) -> None:
    """Also where the window of the shorter text reaches into its padding."""
    lens, ids = interp.load(shared("llama")), tokens(length=60)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    policy = RandomTokens(budget=0.5) | ThinK(0.5, window=12, recent=4, value_ratio=value_ratio)
    asked = {"attention_mask": mask, "max_new_tokens": 4, "min_new_tokens": 4}
    found = []
    with lens.apply(policy):
        for chunk in (None, 25, 7, 1):
            out = lens.generate(
                ids, prefill_chunk_size=chunk, output_logits=True, return_dict_in_generate=True, **asked
            )
            found.append((torch.stack(out.logits), lens.last_cache.stored[1].segments[0]))
    for logits, packed in found[1:]:
        close(logits, found[0][0])
        assert torch.equal(packed.channels, found[0][1].channels)
        if value_ratio:
            assert torch.equal(packed.value_channels, found[0][1].value_channels)


def test_masks_of_chunks_are_put_together() -> None:
    """Rows see no token of later chunks; masks that are plain at times have no form in common."""
    first, second = torch.ones(1, 1, 2, 3, dtype=torch.bool), torch.ones(1, 1, 1, 5, dtype=torch.bool)
    whole = _rows_of([first, second])
    assert whole[0, 0].tolist() == [[True] * 3 + [False] * 2] * 2 + [[True] * 5]
    assert _rows_of([None, None]) is None
    with pytest.raises(interp.InterpError, match="whose mask is not always plain"):
        _rows_of([None, second])


def test_rows_that_change_between_chunks_take_their_queries_along() -> None:
    """The prompt in two calls of a Lens would be two turns, so its length is told to the keeper by hand."""
    lens, ids, rows = interp.load(shared("llama")), tokens(length=40), torch.tensor([1, 0])
    caches = []
    for first, second in ((ids, ids[rows]), (ids[rows], ids[rows])):
        with lens.apply(ThinK(0.5, window=12, recent=4, compensate=True)):
            cache = lens._interventions.new_cache(use_cache=True)
            cache.keeper.expect(40)
            lens(first[:, :35], past_key_values=cache, use_cache=True)
            if first is ids:
                cache.reorder_cache(rows)
            lens(second[:, 35:], past_key_values=cache, use_cache=True)
        caches.append(cache)
    for one, other in zip(*(cache.stored[1].segments for cache in caches), strict=True):
        assert one.channels is None or torch.equal(one.channels, other.channels)
        close(one.keys, other.keys)
