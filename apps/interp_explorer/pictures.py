"""Which picture is looked at: one of a handful that are rendered here, or an upload.

Uploads are untrusted: bytes are kept by this process under a fingerprint, which the address names, and are decoded
through the library's one door for pictures.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import streamlit as st

from interp.subjects.emoji.examples import EXAMPLES, example_picture
from interp.vision.pictures import opened
from interp_explorer import waiting
from interp_explorer.text import plain

UPLOAD = "upload"
LARGEST = 10  # MB of an upload
SHELF = 8  # uploads kept for addresses that name them


@dataclass(frozen=True)
class Picture:
    """A picture, and how it is come by again."""

    key: str
    """What tells it from others: a name, or the fingerprint of a file's bytes."""
    image: Any
    """As PIL has it, upright and RGB."""
    python: tuple[str, ...]
    """Statements that make `picture`."""


@st.cache_resource(show_spinner=False)
def _shelf() -> OrderedDict[str, tuple[str, bytes]]:
    """Name and content of each upload, by fingerprint."""
    return OrderedDict()


def _keep(name: str, content: bytes) -> str:
    shelf, fingerprint = _shelf(), hashlib.sha256(content).hexdigest()[:16]
    shelf[fingerprint] = name, content
    shelf.move_to_end(fingerprint)
    while len(shelf) > SHELF:
        shelf.popitem(last=False)
    return fingerprint


def choose() -> Picture:
    """The picture that is chosen, with the widgets that choose it. Where there is none, a sentence ends the page."""
    name = str(
        st.selectbox("Picture", [*EXAMPLES, UPLOAD], key="picture", bind="query-params", on_change=waiting.clicked)
    )
    if name != UPLOAD:
        given = "from interp.subjects.emoji.examples import example_picture", f"picture = example_picture({name!r})"
        return Picture(name, _example(name), given)
    file = st.file_uploader(
        "PNG, JPEG, WebP, GIF, BMP, TIFF or PPM", key="picture upload", max_upload_size=LARGEST,
        on_change=waiting.clicked,
    )  # fmt: skip
    if file is not None:
        st.query_params["upload"] = _keep(file.name, file.getvalue())
    fingerprint = st.query_params.get("upload", "")
    if not fingerprint:
        st.info("Upload a picture, or choose another one.")
        st.stop()
    if fingerprint not in _shelf():
        st.error("This address names a picture that is no longer here: upload it again.")
        st.stop()
    return _uploaded(fingerprint, *_shelf()[fingerprint])


@st.cache_resource(show_spinner=False, max_entries=len(EXAMPLES))
def _example(name: str) -> Any:
    return example_picture(name)


def _uploaded(fingerprint: str, name: str, content: bytes) -> Picture:
    read = partial(_read, name, content)
    image = waiting.done(("picture", fingerprint), f"reading {name}", read)
    st.caption(plain(f"{name}, {image.width:,} x {image.height:,} pixels"))
    given = "from interp.vision.pictures import opened", 'picture = opened("picture.png")  # the one that was uploaded'
    return Picture(fingerprint, image, given)


def _read(name: str, content: bytes, _: Any) -> Any:
    return opened(content, name)
