"""D2O and ThinK together: tokens are merged in a cache whose old keys have only some of their channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import D2O, ThinK
from tests.interventions.d2o_reference import deep
from tests.interventions.live_cache import close
from tests.models import tokens

LAYERS = 5


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def segments_by_position(segments: list[Any], d_head: int, row: int, h: int) -> dict[int, tuple[Any, Any, Any]]:
    """Position -> (dense key, value, stored channels or None) of a head."""
    held = {}
    for segment in segments:
        keys, at = segment.dense_keys(d_head), segment.at().expand(segment.keys.shape[:3])
        channels = None if segment.channels is None else segment.channels[row, h].long()
        for n, position in enumerate(at[row, h].tolist()):
            held[position] = (keys[row, h, n].clone(), segment.values[row, h, n].clone(), channels)
    return held


@pytest.mark.parametrize(("recent", "sinks"), [(4, 0), (9, 0), (3, 2)])
def test_with_think_merges_go_into_stored_channels_only(recent: int, sinks: int) -> None:
    """Four steps, each by hand from the tokens as they were just before: pruned channels count as zero in similarities
    and stay zero; sizes, channel sets and bytes stay as they are."""
    lens, ids, layers = interp.load(deep("llama", LAYERS)), tokens(length=40), range(LAYERS)
    think = ThinK(0.5, window=8, recent=recent, sinks=sinks)
    d2o = D2O(budget=0.35, metric="uniform", skip=(), gate="per_head", compress_at="prefill_end", weights="code")
    with lens.apply(d2o | think, ledger=True):
        lens(ids, use_cache=True)
    found = lens.last_cache
    plan, before = found.keeper.plans["tokens"], {}
    step = plan.step

    def watched(layer: int, stored: Any) -> None:
        before[layer] = [segments_by_position(stored.segments, 8, row, h) for row in range(2) for h in range(2)]
        step(layer, stored)

    plan.step = watched
    shapes = [[s.keys.shape for s in found.stored[layer].segments] for layer in layers]
    channels, held = [found.stored[i].segments[0].channels.clone() for i in layers], found.nbytes()
    moved = merges = 0
    for new in tokens(length=5, seed=2).split(1, 1):
        del found.keeper.ledger[:]
        assert lens(new, past_key_values=found, use_cache=True).isfinite().all()
        assert found.nbytes() == held
        assert [entry.layer for entry in found.keeper.ledger] == list(layers)
        for layer, entry in enumerate(found.keeper.ledger):
            stored = found.stored[layer]
            assert [s.keys.shape for s in stored.segments] == shapes[layer]
            assert torch.equal(stored.segments[0].channels, channels[layer])
            for i in range(4):
                row, h = divmod(i, 2)
                old, now = before[layer][i], segments_by_position(stored.segments, 8, row, h)
                gone = entry.evicted[row, h].item()
                assert set(old) - set(now) == {gone}
                for position, (key, value, kept) in now.items():
                    own_key, own_value, own_kept = old[position]
                    moved += kept is not None and own_kept is None
                    if position == entry.target[row, h].item() and entry.merged[row, h]:
                        u, merges = entry.similarity[row, h], merges + 1
                        as_stored = only(own_key, kept), *old[gone][:2]
                        close(u[0], torch.cosine_similarity(as_stored[0], as_stored[1], dim=0))
                        own_key, own_value = (as_stored[0] + u * as_stored[1]) / 2, (own_value + u * as_stored[2]) / 2
                    close(key, only(own_key, kept))
                    close(value, own_value)
    assert moved  # tokens that entered the packed segment
    assert merges > 10


def only(key: torch.Tensor, channels: torch.Tensor | None) -> torch.Tensor:
    """A key with zeros in all channels but those."""
    if channels is None:
        return key
    return torch.zeros_like(key).index_copy(0, channels, key[channels])
