"""Words at the image's tokens: the model's own read-out, and what they say of the place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from interp.probes.image_logit_lens import AT_ONCE
from tests.lens.test_images import seeing
from tests.probes.schema import check_result
from tests.vision_models import NAMES, picture

TEXT, NAME = "w1 <image> w2 w3", "image_logit_lens"


@pytest.mark.parametrize("kind", NAMES)
def test_words_are_the_lens_own_read_out(kind: str, tmp_path: Path) -> None:
    lens = seeing(kind)
    result = interp.probe(lens, TEXT, interp.ImageLogitLens(words=2), images=picture())[NAME]
    check_result(result, tmp_path)
    image = result.modality.values == "image"
    with torch.no_grad():
        logits, cached = lens.run_with_cache(TEXT, images=picture(), names_filter=lambda n: n.endswith("resid_post"))
        for layer in result.layer.values.tolist():
            read = lens.unembed(lens.normalized(cached["resid_post", layer][0])).float().softmax(-1)[image]
            probability, ids = read.topk(2)
            np.testing.assert_allclose(result.probability.sel(layer=layer).values[image], probability, atol=1e-5)
            assert (result.word_id.sel(layer=layer).values[image] == ids.numpy()).mean() > 0.99, "but for ties"
            np.testing.assert_allclose(
                result.lift.sel(layer=layer).values[image][:, 0], probability[:, 0] / read.mean(0)[ids[:, 0]], rtol=1e-3
            )
            mean = torch.special.entr(read.mean(0)).sum() - torch.special.entr(read).sum(-1).mean()
            assert float(result.place_information.sel(layer=layer)) == pytest.approx(float(mean), abs=1e-4)
    np.testing.assert_allclose(
        result.probability.values[-1][image][:, 0], logits[0].float().softmax(-1)[image].amax(-1), rtol=1e-4
    )
    assert (result.word_id.values[:, ~image] == -1).all()
    assert set(result.word.values[:, ~image].ravel()) == {""}
    assert not np.isfinite(result.probability.values[:, ~image]).any()
    (said,) = interp.ImageLogitLens().findings(result)
    assert "nats" in said


def test_parts_of_the_tokens_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = seeing("llava")
    whole = interp.probe(lens, TEXT, NAME, images=picture())[NAME]
    assert AT_ONCE > 16
    monkeypatch.setattr("interp.probes.image_logit_lens.AT_ONCE", 5)
    parts = interp.probe(lens, TEXT, NAME, images=picture())[NAME]
    np.testing.assert_allclose(parts.lift.values, whole.lift.values, rtol=1e-4)
    np.testing.assert_allclose(parts.place_information.values, whole.place_information.values, atol=1e-5)


def test_tokens_that_are_read_alike_say_nothing_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = seeing("llava")
    monkeypatch.setattr(type(lens), "normalized", lambda self, resid: torch.ones_like(resid))
    result = interp.probe(lens, TEXT, NAME, images=picture())[NAME]
    assert result.place_information.values == pytest.approx(0.0, abs=1e-5)
    image = result.modality.values == "image"
    np.testing.assert_allclose(result.lift.values[:, image], 1.0, rtol=1e-4)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(InterpError, match="reads texts with images"):
        interp.probe(seeing("llava"), "w1 w2", NAME)
    with pytest.raises(InterpError, match="words should be at least 1, found 0"):
        interp.ImageLogitLens(words=0)
