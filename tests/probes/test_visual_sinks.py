"""Visual sinks on tiny models that see, with sinks planted in the residual stream, and separately in scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.errors import InterpError
from interp.results.many_texts import one
from tests.lens.test_images import seeing
from tests.probes.schema import check_result
from tests.vision_models import picture

TEXT = "w1 w2 <image> w3 w4 w5"
CHANNELS, PROBE = (5, 40), interp.VisualSinks(tau_rel=0.6)
KINDS = ("llava", "idefics3")
NAME = "visual_sinks"


def planted(places: list[int], size: float = 400.0) -> Any:
    """A hook that lets two channels of some tokens grow."""

    def plant(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, places, CHANNELS[0]] += size
        value[:, places, CHANNELS[1]] -= 0.6 * size
        return value

    return ("blocks.0.hook_resid_post", plant)


def measured(kind: str, places: list[int], probe: interp.VisualSinks = PROBE, size: float = 400.0) -> xr.Dataset:
    lens = seeing(kind)
    with lens.hooks(fwd_hooks=[planted(places, size)] if places else []):
        return interp.probe(lens, TEXT, probe, images=picture())[NAME]


def images_of(result: xr.Dataset) -> list[int]:
    return np.flatnonzero(result.modality.values == "image").tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_planted_sinks_are_found_and_no_others(kind: str, tmp_path: Path) -> None:
    at = images_of(measured(kind, []))[2:5:2]
    result = measured(kind, [0, *at])
    check_result(result, tmp_path)
    assert result.is_sink.values[0].sum() == 0, "they are planted behind the first block"
    for layer in (1, 2):
        assert np.flatnonzero(result.is_sink.values[layer]).tolist() == [0, *at]
        assert result.visual_sinks.values[layer] == 2
        assert set(CHANNELS) >= set(result.sink_channel.values[layer][result.sink_channel.values[layer] >= 0])
    assert any("Image tokens are sinks" in said for said in PROBE.findings(result))


@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_those_of_the_pattern(kind: str) -> None:
    lens = seeing(kind)
    at = images_of(measured(kind, []))[1]
    result = measured(kind, [0, at])
    with torch.no_grad(), lens.hooks(fwd_hooks=[planted([0, at])]):
        _, cached = lens.run_with_cache(TEXT, images=picture(), names_filter=lambda name: name.endswith("hook_pattern"))
    image = torch.from_numpy(result.modality.values == "image")
    rows = [i for i in range(len(image)) if i > images_of(result)[-1] and result.modality.values[i] == "text"]
    for layer in range(3):
        pattern = cached["pattern", layer][0][:, rows]
        sink = torch.from_numpy(result.is_sink.values[layer] > 0)
        expected = {
            "visual_share": pattern[..., image].sum(-1).mean(-1),
            "visual_sink_share": pattern[..., image & sink].sum(-1).mean(-1),
            "text_sink_share": pattern[..., ~image & sink].sum(-1).mean(-1),
            "received": pattern.mean((0, 1)),
        }
        visual, nonsink = pattern[..., image].sum(-1), pattern[..., image & ~sink].sum(-1)
        expected["image_centric"] = ((visual >= 0.2) & (nonsink / visual >= 0.8)).float().mean(-1)
        for name, value in expected.items():
            np.testing.assert_allclose(result[name].values[layer], value, atol=1e-5, err_msg=name)


def test_phi_knows_no_scale_and_has_a_bound() -> None:
    x = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    x[0, 2, 5] = 300.0
    made = []
    for scale in (1.0, 7.5):
        fold = interp.VisualSinks(channels=CHANNELS).begin(context())
        fold.enter(0, x * scale)
        made.append(fold.seen[0]["phi"])
    np.testing.assert_allclose(made[0], made[1], rtol=1e-5)
    assert made[0].max() <= 8.0
    assert made[0].argmax() == 2


def context() -> Any:
    from interp.lens.image_layout import TokenLayout
    from interp.probes import Context

    modality = np.array(["text", "image", "image", "image", "text", "text"], dtype=object)
    nothing = np.full(6, -1)
    laid = TokenLayout(modality, nothing, nothing, np.full(6, "", dtype=object), np.full((6, 4), np.nan))
    return Context(seeing("llava"), torch.zeros(1, 6, dtype=torch.long), ["x"] * 6, laid)


def test_where_nothing_stands_out_there_is_no_sink() -> None:
    """An empty answer is an answer; no channel is taken for want of a better one."""
    result = measured("llava", [])
    assert (result.sink_channel.values == -1).all()
    assert result.is_sink.values.sum() == 0
    assert PROBE.findings(result) == [
        "No channel of the residual stream stands out (above 250 times a layer's median |x|), so no token is a sink."
    ]


def test_a_sink_of_attention_alone_is_none_of_the_stream() -> None:
    """Attention planted in scores, without a massive activation, is seen as attention and not as φ."""
    lens, at = seeing("llava"), images_of(measured("llava", []))[3]

    def pull(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores = scores.clone()
        scores[:, :, at + 1 :, at] += 30.0
        return scores

    hooks = [(f"blocks.{i}.attn.hook_attn_scores", pull) for i in range(3)]
    with torch.no_grad(), lens.hooks(fwd_hooks=hooks):
        _, cached = lens.run_with_cache(TEXT, images=picture(), names_filter=lambda name: name.endswith("hook_pattern"))
        assert float(cached["pattern", 1][0, :, -1, at].min()) > 0.99
        result = interp.probe(lens, TEXT, PROBE, images=picture())[NAME]
    assert result.is_sink.values.sum() == 0


def test_given_channels_are_looked_at() -> None:
    result = measured("llava", [0], interp.VisualSinks(channels=CHANNELS[1], tau_rel=0.4))
    assert (result.sink_channel.values[:, 0] == CHANNELS[1]).all()
    assert result.is_sink.values[1, 0] == 1
    with pytest.raises(InterpError, match="has no channel 64"):
        measured("llava", [], interp.VisualSinks(channels=64))


def test_texts_with_images_alone_are_read() -> None:
    lens = seeing("llava")
    with pytest.raises(InterpError, match="reads texts with images"):
        interp.probe(lens, "w1 w2", NAME)
    assert NAME not in interp.probe(lens, "w1 w2 w3")
    assert {NAME, "text_sinks"} <= interp.probe(lens, TEXT, images=picture()).keys()
    for setting in ({"tau_rel": 0}, {"over_median": 0.5}, {"min_visual_mass": 1.5}):
        with pytest.raises(InterpError, match="should be"):
            interp.VisualSinks(**setting)


def test_an_image_at_the_end_has_no_text_that_looks_at_it() -> None:
    lens = seeing("llava")
    with lens.hooks(fwd_hooks=[planted([0, 4])]):
        result = interp.probe(lens, "w1 <image>", PROBE, images=picture())[NAME]
    assert np.isnan(result.visual_share.values).all()
    assert any("No text follows" in said for said in PROBE.findings(result))


def test_several_texts_are_their_own() -> None:
    lens = seeing("idefics3")
    both = interp.probe(lens, [TEXT, "<image> w9 w8"], PROBE, images=[picture(), picture(1)])[NAME]
    alone = interp.probe(lens, "<image> w9 w8", PROBE, images=picture(1))[NAME]
    np.testing.assert_allclose(one(both, 1).visual_share.values, alone.visual_share.values, atol=1e-6)
