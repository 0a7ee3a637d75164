"""Rows of attention to an image, against the pattern, and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
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


def test_each_head_is_kept_by_itself(tmp_path: Path) -> None:
    lens = seeing("llava")
    every = interp.probe(lens, TEXT, interp.ImageAttention(head="each"), images=picture())[NAME]
    check_result(every, tmp_path)
    for head in every["head"].values.tolist():
        one = interp.probe(lens, TEXT, interp.ImageAttention(head=head), images=picture())[NAME]
        np.testing.assert_array_equal(every.attention.sel(head=head).values, one.attention.values)
    mean = interp.probe(lens, TEXT, NAME, images=picture())[NAME]
    np.testing.assert_allclose(every.attention.mean("head").values, mean.attention.values, atol=1e-6)
    assert interp.ImageAttention(head="each").findings(every) == interp.ImageAttention().findings(mean)


def test_what_cannot_be_asked() -> None:
    lens = seeing("llava")
    with pytest.raises(InterpError, match="no text follows"):
        interp.probe(lens, "w1 <image>", NAME, images=picture())
    with pytest.raises(InterpError, match="has heads 0 to 3"):
        interp.probe(lens, TEXT, interp.ImageAttention(head=4), images=picture())
    for setting in ({"rows": 0}, {"head": -1}, {"head": "every"}):
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
