"""Between the prompt and the first token after it, for which D2O as released waits before it compresses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp import D2O, InterpError, ThinK
from tests.interventions.d2o_reference import deep
from tests.interventions.live_cache import close, prefill
from tests.models import tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*dropped nothing.*ended before it acts")
WAITING = D2O(budget=0.3, compress_at="first_decode")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("policy", [WAITING, WAITING | ThinK(0.5, 8, 4)], ids=["d2o", "d2o|think"])
def test_several_tokens_at_once_are_refused_and_the_cache_stays_whole(policy: Any) -> None:
    """All of them would attend in full. One by itself, and then several, go on as if nothing had been asked."""
    lens, ids = interp.load(deep("llama")), tokens(length=40)
    one, several = tokens(length=1, seed=3), tokens(length=4, seed=4)
    found, wanted = prefill(lens, policy, ids), prefill(lens, policy, ids)
    with pytest.raises(InterpError, match="at the first token after the prompt, and 4 came at once"):
        lens(several, past_key_values=found, use_cache=True)
    assert [layer.seen for layer in found.layers] == [40] * 5
    for part in (one, several):
        logits = [lens(part, past_key_values=cache, use_cache=True) for cache in (found, wanted)]
        assert torch.equal(*logits)
    assert found.stored[2].compressed


def test_another_turn_of_generation_before_any_token_was_read_back() -> None:
    lens, ids, more = interp.load(deep("llama")), tokens(length=40), tokens(length=5, seed=3)
    with lens.apply(WAITING):
        first = lens.generate(ids, min_new_tokens=1, max_new_tokens=1)
        cache = lens.last_cache
        with pytest.raises(InterpError, match="and 6 came at once"):
            lens.generate(torch.cat([first, more], 1), past_key_values=cache, max_new_tokens=2)
        first = lens.generate(ids, min_new_tokens=2, max_new_tokens=2)
        cache = lens.last_cache
        out = lens.generate(torch.cat([first, more], 1), past_key_values=cache, max_new_tokens=2, min_new_tokens=2)
    assert out.shape[1] == 40 + 2 + 5 + 2


THINKS = {
    "released": ThinK(0.5, window=8, recent=4),
    "recommended": ThinK.recommended(0.5, recent=4),
    "gram": ThinK(0.5, window=8, recent=4, selector="gram", compensate=True),
    "values": ThinK(0.5, window=8, recent=4, value_ratio=0.5),
}


@pytest.mark.parametrize("think", THINKS.values(), ids=THINKS.keys())
@pytest.mark.parametrize("change", ["reorder", "select", "repeat"])
def test_rows_take_what_was_observed_of_them_along(change: str, think: ThinK) -> None:
    """Rows that change before the first token go on as if the prompts had come in that order."""
    lens, ids = interp.load(deep("llama")), tokens(3, 40)
    # one budget for all layers, since others follow the mean over the batch
    policy = D2O(budget=0.4, metric="uniform", gate="per_head", skip=(), compress_at="first_decode") | think
    rows = {"reorder": [2, 0, 1], "select": [2, 0], "repeat": [0, 0, 1, 1, 2, 2]}[change]
    found, wanted = prefill(lens, policy, ids), prefill(lens, policy, ids[rows])
    if change == "reorder":
        found.reorder_cache(torch.tensor(rows))
    elif change == "select":
        found.batch_select_indices(torch.tensor(rows))
    else:
        found.batch_repeat_interleave(2)
    for new in tokens(len(rows), 3, seed=5).split(1, 1):
        logits = [lens(new, past_key_values=cache, use_cache=True) for cache in (found, wanted)]
        close(*logits)
    assert found.stored[2].segments[0].channels is not None
    for one, other in zip(found.stored[2].segments, wanted.stored[2].segments, strict=True):
        assert one.channels is None or torch.equal(one.channels, other.channels)
        close(one.values, other.values)
