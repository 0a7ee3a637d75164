"""A report of a picture: what one result says of another is drawn with it, if both are of the same text."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import xarray as xr

import interp
from interp import figures
from interp.report import write_report
from tests.lens.test_images import seeing
from tests.vision_models import picture


@cache
def probed(text: str = "w1 <image> w2 w3") -> dict[str, xr.Dataset]:
    wanted = ["image_attention", "visual_sinks", "image_logit_lens"]
    return interp.probe(seeing("idefics3"), text, wanted, images=picture(0, 96, 64))


def drawn(path: Path) -> dict[str, dict]:
    page = path.read_text(encoding="utf-8")
    found = re.findall(r'data-figure="(\w+)">.*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(spec) for name, spec in found}


def titles(spec: dict) -> str:
    return " ".join(note["text"] for note in spec["layout"]["annotations"])


@pytest.fixture
def results() -> dict[str, xr.Dataset]:
    made = {name: one.copy(deep=True) for name, one in probed().items()}
    made["visual_sinks"].is_sink.values[:] = 0
    made["visual_sinks"].is_sink.values[:, int(made["visual_sinks"].modality.values.tolist().index("image"))] = 1
    return made


def names(spec: dict) -> list[str]:
    return [trace["name"] for trace in spec["data"] if trace.get("name")]


def test_sinks_are_marked_where_they_were_probed_too(results, tmp_path):
    specs = drawn(write_report(results, {}, tmp_path / "report.html"))
    assert names(specs["image_attention"]) == ["sinks, 1 of 20"]
    alone = {name: one for name, one in results.items() if name != "visual_sinks"}
    assert names(drawn(write_report(alone, {}, tmp_path / "alone.html"))["image_attention"]) == []


def test_sinks_of_another_text_are_not(results, tmp_path):
    results["visual_sinks"] = probed("w1 <image> w2 w4")["visual_sinks"]
    assert names(drawn(write_report(results, {}, tmp_path / "report.html"))["image_attention"]) == []


def test_parts_and_whole_are_in_the_report(results, tmp_path):
    specs = drawn(write_report(results, {}, tmp_path / "report.html"))
    for name in ("image_attention", "image_logit_lens", "phi_in_picture"):
        assert "parts, put together" in titles(specs[name]), name
        assert specs[name]["layout"]["images"][0]["source"].startswith("data:image/jpeg;base64,")


def test_a_summary_that_is_no_probes_is_told_and_escaped(results, tmp_path):
    both = interp.before_after(results["image_attention"], results["image_attention"])
    told = {"before_after": both.assign_attrs(summary="<b>more</b> on the picture")}
    page = write_report(results | told, {}, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;more&lt;/b&gt; on the picture" in page
    assert "<b>more</b>" not in page


def test_what_stands_beside_is_a_probe_that_is_there():
    for name in figures.names():
        for argument, probe in figures.beside(name).items():
            assert probe in interp.probes.every()
            assert argument in getattr(figures, name).__wrapped__.__annotations__
