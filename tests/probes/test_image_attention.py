"""Rows of attention to an image, against the pattern, and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from interp.figures._need import FigureError
from tests.lens.test_images import seeing
from tests.probes.schema import check_result
from tests.vision_models import picture

TEXT, NAME = "w1 <image> w2 w3 w4", "image_attention"


@pytest.mark.parametrize("kind", ["llava", "idefics3", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("head", [None, 1])
def test_rows_are_those_of_the_pattern(kind: str, head: int | None, tmp_path: Path) -> None:
    lens = seeing(kind)
    result = interp.probe(lens, TEXT, interp.ImageAttention(rows=2, head=head), images=picture())[NAME]
    check_result(result, tmp_path)
    assert [str(text).strip() for text in result.query_text.values] == ["w3", "w4"]
    with torch.no_grad():
        _, cached = lens.run_with_cache(TEXT, images=picture(), names_filter=lambda name: name.endswith("hook_pattern"))
    for layer in result.layer.values.tolist():
        rows = cached["pattern", layer][0][:, result["query"].values]
        expected = rows.mean(0) if head is None else rows[head]
        np.testing.assert_allclose(result.attention.sel(layer=layer).values, expected, atol=1e-5)
    (said,) = interp.ImageAttention().findings(result)
    assert "of its attention" in said


def test_no_layer_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a thousand image tokens needs no pattern."""

    def refuse(*_: object) -> None:
        raise AssertionError("a layer ran eagerly")

    monkeypatch.setattr("interp.seam.attention.Site._eager", refuse)
    monkeypatch.setattr("interp.seam.event.attention_pattern", refuse)
    interp.probe(seeing("llava"), TEXT, [NAME, "visual_sinks"], images=picture())
    with pytest.raises(AssertionError, match="ran eagerly"):
        seeing("llava").run_with_cache("w1", names_filter="blocks.0.attn.hook_pattern")


def test_brightness_is_attention_for_its_share_of_the_picture() -> None:
    result = interp.probe(seeing("llava"), TEXT, NAME, images=picture(0, 96, 64))[NAME].copy(deep=True)
    at = np.flatnonzero(result.modality.values == "image")[5]  # second row, second column: 32 to 48, 16 to 32
    result.attention.values[:] = 0.001
    result.attention.values[..., at] = 0.5
    figure = interp.figures.image_attention(result, layer=0)
    plane, x, y = figure.data[0].z, figure.data[0].x, figure.data[0].y
    row, column = np.unravel_index(plane.argmax(), plane.shape)
    assert 32 < x[column] < 48
    assert 16 < y[row] < 32
    assert plane.mean() == pytest.approx(1.0, rel=1e-4)


def test_tiles_and_the_whole_have_a_panel_each() -> None:
    result = interp.probe(seeing("idefics3"), TEXT, NAME, images=picture(0, 96, 64))[NAME]
    figure = interp.figures.image_attention(result, picture=picture(0, 96, 64))
    assert len(figure.data) == 2
    assert len(figure.layout.images) == 2
    with pytest.raises(FigureError, match="no image 3"):
        interp.figures.image_attention(result, image=3)


def test_what_cannot_be_asked() -> None:
    lens = seeing("llava")
    with pytest.raises(InterpError, match="no text follows"):
        interp.probe(lens, "w1 <image>", NAME, images=picture())
    with pytest.raises(InterpError, match="has heads 0 to 3"):
        interp.probe(lens, TEXT, interp.ImageAttention(head=4), images=picture())
    for setting in ({"rows": 0}, {"head": -1}):
        with pytest.raises(InterpError, match="image_attention"):
            interp.ImageAttention(**setting)


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_what_a_head_gives_to_a_token_is_the_mean_of_the_rows(kind: str) -> None:
    lens = seeing(kind)
    result = interp.probe(lens, TEXT, interp.ImageAttention(rows=2), images=picture())[NAME]
    with torch.no_grad():
        _, cached = lens.run_with_cache(TEXT, images=picture(), names_filter=lambda name: name.endswith("hook_pattern"))
    for layer in result.layer.values.tolist():
        rows = cached["pattern", layer][0][:, result["query"].values].mean(1)
        np.testing.assert_allclose(result.received.sel(layer=layer).values, rows, atol=1e-5)


def test_a_question_and_its_answer_are_read_as_messages() -> None:
    lens = seeing("llava")
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w2 w3"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "w4 w5"}]},
    ]
    result = interp.probe(lens, talk, interp.ImageAttention(rows=64), images=picture())[NAME]
    said = [str(text).strip() for text in result.query_text.values]
    assert [word for word in said if word.startswith("w")] == ["w2", "w3", "w4", "w5"]
    several = interp.probe(lens, [talk, "<image> w2 w3"], interp.ImageAttention(rows=2), images=[picture(), picture(1)])
    assert several[NAME].sizes["text"] == 2
    with pytest.raises(InterpError, match="or with chat messages"):
        interp.probe(lens, [[1, 2]], NAME, images=picture())
