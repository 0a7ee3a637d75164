"""The threshold of sinks is the one at which φ and attention agree, where sinks of both kinds are planted."""

from __future__ import annotations

import math

import numpy as np
import pytest

import interp
from interp import InterpError
from interp.runs.sink_threshold import _table
from tests.interventions.edited_by_hand import one_sentence
from tests.models import shared as text_model
from tests.models import tokens
from tests.runs.test_sink_channels import massive
from tests.vision_models import picture, shared


def test_planted_sinks_are_told_apart_from_all_others() -> None:
    lens, ids = interp.load(text_model("llama")), tokens(2, 40)
    with massive(lens, 0, 7, (11,)), lens.apply(interp.AttentionBias(keys=7, bias=20.0, layers=(1, 2))):
        found = interp.sink_threshold(lens, 11, ids, times_mean=5.0)
    layers = lens.cfg.n_layers
    assert found.attrs["tokens"] == 2 * 40 * layers
    best = found.sel(tau_rel=found.attrs["tau_rel"], method="nearest")
    assert float(best.precision) == float(best.recall) == float(best.f1) == 1.0
    assert float(best.flagged) == pytest.approx(1 / 40 * (layers - 1) / layers)
    assert float(found.flagged[0]) > float(best.flagged)  # the lowest threshold flags others too


def test_attention_without_a_large_channel_is_not_recalled() -> None:
    lens, ids = interp.load(text_model("llama")), tokens(2, 40)
    with lens.apply(interp.AttentionBias(keys=7, bias=20.0)):
        found = interp.sink_threshold(lens, 11, ids, times_mean=5.0)
    assert found.attrs["piled_upon"] >= 2 * lens.cfg.n_layers
    assert float(found.f1.max()) < 0.5


def test_without_any_pile_there_is_no_threshold() -> None:
    found = interp.sink_threshold(interp.load(text_model("llama")), (3,), tokens(1, 20), times_mean=1e6)
    assert found.attrs["piled_upon"] == 0
    assert math.isnan(found.attrs["tau_rel"])
    assert bool(np.isnan(found.recall).all())


def test_images_are_read_too() -> None:
    lens = interp.load(*shared("llava"))
    found = interp.sink_threshold(lens, 3, images=[picture(1), picture(2)])
    assert found.attrs["texts"] == 2


def test_the_middle_of_the_best_thresholds_is_taken() -> None:
    shares, piled = np.array([0.1, 0.2, 0.9]), np.array([False, False, True])
    assert _table(shares, piled, {}).attrs["tau_rel"] == pytest.approx(0.55, abs=0.0126)


@pytest.mark.parametrize("channels", [(), (64_000,), -1])
def test_channels_that_are_not_there_are_refused(channels: int | tuple[int, ...]) -> None:
    with pytest.raises(InterpError) as error:
        interp.sink_threshold(interp.load(text_model("llama")), channels, tokens(1, 9))
    assert one_sentence(error.value).startswith("sink_threshold: channels should be")
