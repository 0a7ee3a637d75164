"""Writes the pictures of docs/images.md: `python -m docs.write_image_pictures`.

Reads a scene with emoji-vlm, photographs what the figures of images draw of it, and prints what is said of it in words.
Needs Chromium, and some minutes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from PIL import Image

import interp
from docs.write_pictures import photograph
from interp import figures
from interp.subjects.emoji.scenes import make_scene

FOLDER = Path(__file__).parent / "images" / "seeing"
WIDTH = 1000  # pixels
QUESTION, SCENE, OTHERS = "What is in the middle?", 3, range(100, 124)
CHANNEL, SOME, HIGH = 507, 0.6, 0.8
"""The demo model's sink channel, and shares of √d that some and few tokens reach; 0.3125 is reached by all."""


def drawn() -> Iterator[tuple[str, go.Figure, str]]:
    """Name, figure and words of each."""
    lens, picture = interp.load("emoji-vlm"), make_scene(seed=SCENE).picture()
    given: dict[str, Any] = {"images": picture, "chat": True}
    found = {"image_attention": interp.ImageAttention(), "image_logit_lens": interp.ImageLogitLens()}
    found["visual_sinks"] = interp.VisualSinks(channels=CHANNEL)
    seen = interp.probe(lens, QUESTION, list(found.values()), **given)
    some = interp.probe(lens, QUESTION, interp.VisualSinks(channels=CHANNEL, tau_rel=SOME), **given)["visual_sinks"]
    said = {name: " ".join(probe.findings(seen[name])) for name, probe in found.items()}
    attention = figures.image_attention(seen["image_attention"], picture=picture, sinks=some)
    yield "image_attention", attention, said["image_attention"]
    with lens.apply(interp.AttentionBias(keys="images", bias=1.5)):
        after = interp.probe(lens, QUESTION, "image_attention", **given)["image_attention"]
    both = interp.before_after(seen["image_attention"], after)
    yield "image_attention_change", figures.image_attention_change(both, picture=picture), ""
    words = figures.image_logit_lens(seen["image_logit_lens"], picture=picture)
    yield "image_logit_lens", words, said["image_logit_lens"]
    yield "image_heads", figures.image_heads(seen["visual_sinks"]), ""
    yield "phi_by_layer", figures.phi_by_layer(seen["visual_sinks"]), said["visual_sinks"]
    others = [make_scene(seed=seed).picture() for seed in OTHERS]
    sinks = interp.VisualSinks(channels=CHANNEL, tau_rel=HIGH)
    kind = interp.sink_kind(lens, f"<image>\n{QUESTION}", others, sinks=sinks)
    yield "sink_kind", figures.sink_kind(kind), kind.attrs["summary"]


def main() -> None:
    warnings.simplefilter("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, figure, words in drawn():
        path = FOLDER / f"{name}.png"
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "figure.html"
            figure.write_html(page, config={"displayModeBar": False})
            photograph(page, path, WIDTH, int(figure.layout.height) + 20)
        with Image.open(path) as image:
            image.convert("RGB").save(path, optimize=True)
        print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB", words, sep="\n")


if __name__ == "__main__":
    main()
