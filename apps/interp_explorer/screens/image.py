"""What a vision-language model makes of an image: the figures of every probe of the library that reads images.

A probe belongs here when its class says `reads = "image"`. It is run as `interp.probe(lens, text, probes, tokens=n,
image=picture)` with a PIL image, and drawn by the figures whose `RESULT` is its name.
"""

import hashlib
import io
from typing import Any

import streamlit as st
import xarray as xr
from PIL import Image, UnidentifiedImageError

from interp import figures
from interp.errors import InterpError
from interp.probes import available
from interp_explorer import charts, subject, view, waiting
from interp_explorer.desk import Progress
from interp_explorer.text import plain

LARGEST = 5  # MB of a file
MOST_PIXELS = 20_000_000  # once unpacked: a small file can hold a huge picture


def opened(file: Any) -> Image.Image:
    """The uploaded picture, in memory only. Raises InterpError for what is none, or is too large."""
    try:
        picture = Image.open(io.BytesIO(file.getvalue()), formats=("PNG", "JPEG"))
        if picture.width * picture.height > MOST_PIXELS:
            raise InterpError(
                f"{file.name} has {picture.width:,} × {picture.height:,} pixels; at most {MOST_PIXELS:,} are taken."
            )
        return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InterpError(f"{file.name} is not a PNG or JPEG picture that can be read.") from error


shown = view.begin("Image")
st.title("Image")
read = subject.reading()
lens = subject.lens(read)
probes = [probe() for probe in available("image").values()]
if not probes:
    st.info(
        plain(
            f"{lens.cfg.architecture} reads text only: this page waits for a vision-language model and a probe that "
            "reads images, and then draws attention over an image of yours."
        )
    )
    st.stop()
file = st.file_uploader("An image", ["png", "jpg", "jpeg"], key="image", max_upload_size=LARGEST)
if file is None:
    st.info("Upload an image: a PNG or JPEG file.")
    st.stop()
try:
    image = opened(file)
except InterpError as error:
    st.error(plain(str(error)))
    st.stop()
st.image(image, width="content")


def measure(progress: Progress) -> dict[str, xr.Dataset]:
    import interp

    run: Any = interp.probe  # which takes `image` once the library has a probe that reads one
    results: dict[str, xr.Dataset] = run(lens, read.text, probes, tokens=read.tokens, image=image, progress=progress)
    return results


key = ("image", *read.key, hashlib.sha256(file.getvalue()).hexdigest(), *map(repr, probes))
results = waiting.done(key, "looking at the image", measure)
for probe in probes:
    st.subheader(plain(probe.name.replace("_", " ").capitalize()))
    for sentence in probe.findings(results[probe.name]):
        st.markdown(f"- {plain(sentence)}")
    for name, figure in figures.figures_of(probe.name).items():
        charts.show(figure, results[probe.name], result=probe.name, key=f"image {name}")
shown.data |= results
