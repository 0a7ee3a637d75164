"""What is looked at: the model, the text, how much of it, and the layer and head that pages share.

All of it is in widgets bound to the address, so that a link or a reload brings the same view back. A text that is too
long for an address is kept by this process under a fingerprint, for as long as it runs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from interp.errors import InterpError
from interp.files.private import expanded
from interp_explorer import address, memory, waiting
from interp_explorer.text import plain

TOKENS = 256  # read at first: enough to see sinks, quick on a laptop
LONGEST = 2_000_000  # characters of a text
IN_ADDRESS = 1_000  # characters of a typed text that go into the address
SHELF = 20  # texts kept for addresses that name them
MEAN = "mean"

CHOICES = ("layer", "head", "kv_head")  # widgets that several pages have
SHARED = (*CHOICES, "typed", "shelf")  # parts of the address that pages have in common
TOPICS, TYPED, FILE = "Python help", "typed", "file"
TOPICS_IN_WORDS = "the help topics of Python (pydoc_data.topics)"


@dataclass(frozen=True)
class Reading:
    """A text as the model reads it."""

    model: str
    dtype: str
    text: str
    about: str
    """What the text is, in words."""
    python: str
    """An expression that gives the text."""
    tokens: int

    @property
    def first(self) -> bool:
        """Whether this is what the explorer reads by itself when it is opened."""
        return (self.model, self.dtype, self.tokens, self.about) == ("demo", "float32", TOKENS, TOPICS_IN_WORDS)

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.model, self.dtype, fingerprint(self.text), self.tokens


def fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@st.cache_resource(show_spinner=False)
def _shelf() -> OrderedDict[str, str]:
    return OrderedDict()


def keep(text: str) -> str:
    """Put a text on the shelf; returns its fingerprint."""
    shelf, name = _shelf(), fingerprint(text)
    shelf[name] = text
    shelf.move_to_end(name)
    while len(shelf) > SHELF:
        shelf.popitem(last=False)
    return name


def bring_along(page: str) -> None:
    """Keep what pages share: a change of page empties the address of it, and forgets widgets that the page lacks."""
    state = st.session_state
    changed = state.get("page", page) != page
    if state.setdefault("opened bare", not st.query_params) and changed:
        waiting.clicked()  # a link of the sidebar was, and no address chose anything
    state["page"] = page
    for name in SHARED:
        value = state.get(name) or st.query_params.get(name) or state.get(f"kept {name}")
        state[f"kept {name}"] = value
        if changed and value and value != MEAN and name not in st.query_params:
            with suppress(StreamlitAPIException):  # where the page before still holds it: then only the choice comes
                st.query_params[name] = value
            if name in CHOICES:
                state[name] = value


def sidebar() -> None:
    """The widgets that choose model and text; drawn on every page, before it."""
    from interp.lens.loading import DTYPES
    from interp.subjects.local import local_models

    with st.sidebar:
        st.text_input(
            "Model", "demo", key="model", bind="query-params", on_change=waiting.clicked,
            help="A hub id, a folder or a .gguf file; code that comes with a model is not run. "
            f"Here without a network: {', '.join(row['name'] for row in local_models())}.",
        )  # fmt: skip
        st.segmented_control(
            "Text", [TOPICS, TYPED, FILE], key="text", default=TOPICS, required=True, bind="query-params",
            on_change=waiting.clicked,
        )  # fmt: skip
        if st.session_state["text"] == TYPED:
            _typed()
        elif st.session_state["text"] == FILE:
            _uploaded()
        st.number_input(
            "Tokens to read", 2, None, TOKENS, 64, key=address.number("tokens"), bind="query-params",
            on_change=waiting.clicked,
            help="The first so many tokens of the text.",
        )  # fmt: skip
        with st.expander("More"):
            st.selectbox(
                "Precision of the weights", list(DTYPES), key="dtype", bind="query-params", on_change=waiting.clicked
            )


def _typed() -> None:
    given = st.query_params.get("typed", "") or _shelf().get(st.query_params.get("shelf", ""), "")
    st.text_area("Your text", given, height=160, max_chars=LONGEST, key="typing", on_change=_put_in_address)


def _put_in_address() -> None:
    waiting.clicked()
    text = st.session_state["typing"] or ""
    short = len(text) <= IN_ADDRESS
    _name_text("typed" if short else "shelf", text if short else keep(text))


def _name_text(name: str, value: str) -> None:
    """Put into the address which text is read: one that is `typed`, or one on the `shelf`."""
    for one in ("typed", "shelf"):
        st.query_params.pop(one, None)
        st.session_state.pop(f"kept {one}", None)
    st.query_params[name] = value


def _uploaded() -> None:
    file = st.file_uploader(
        "A UTF-8 text file", key="upload", max_upload_size=LONGEST // 1_000_000, on_change=waiting.clicked
    )
    if file is None:
        return
    try:
        text = file.getvalue().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        st.session_state["bad upload"] = (
            f"{file.name} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {error.start}."
        )
        return
    st.session_state.pop("bad upload", None)
    _name_text("shelf", keep(text))


def reading() -> Reading:
    """What the sidebar chose. Where it is nothing that can be read, a sentence says so and the page ends."""
    state = st.session_state
    source = state.get("text", TOPICS)
    try:
        text, about, python = _text(source)
    except InterpError as error:
        st.error(plain(str(error)))
        st.stop()
    return Reading(*chosen_model(), text, about, python, int(state.get("tokens") or TOKENS))


def chosen_model() -> tuple[str, str]:
    """The model that the sidebar chose, and the precision of its weights."""
    state = st.session_state
    return state.get("model", "demo") or "demo", state.get("dtype", "float32")


def _text(source: str) -> tuple[str, str, str]:
    if source == TOPICS:
        from interp.subjects import demo_text

        return demo_text(), TOPICS_IN_WORDS, "interp.subjects.demo_text()"
    if source == FILE and (wrong := st.session_state.get("bad upload")):
        raise InterpError(wrong)
    name = st.query_params.get("shelf", "")
    if source == TYPED and not name:
        text, about = st.query_params.get("typed", ""), "a typed text"
        python = repr(text)
    elif name in _shelf():
        text = _shelf()[name]
        about = "an uploaded file" if source == FILE else "a typed text"
        python = 'Path("text.txt").read_text(encoding="utf-8")'
    elif name:
        raise InterpError("this address names a text that is no longer here: paste it, or upload its file, again.")
    else:
        raise InterpError("upload a file, or choose another text.")
    if not text.strip():
        raise InterpError("the text is empty: write or upload some.")
    if len(text) > LONGEST:
        raise InterpError(f"the text has {len(text):,} characters; at most {LONGEST:,} are taken.")
    return text, about, python


def lens(read: Reading) -> Any:
    """The Lens on the model of a text, shared by all tabs."""
    return lens_on(read.model, read.dtype, own=read.first)


def lens_on(model: str, dtype: str, *, own: bool = False) -> Any:
    """The Lens on a model, shared by all tabs; `own` as in `waiting.done`."""

    def load(_: Any) -> Any:
        import interp
        from interp.subjects.quiet import quiet_transformers

        memory.check_weights(expanded(model, "the model"), dtype)
        with quiet_transformers():
            return interp.load(model, dtype=dtype)

    return waiting.done(("lens", model, dtype), f"loading {model}", load, own=own)


def row(read: Reading) -> Any:
    """The text's first tokens as the model reads them, `[1, pos]`."""
    at = lens(read)

    def split(_: Any) -> Any:
        at.check_length(read.tokens)
        return at.to_tokens(read.text, truncate=read.tokens)

    tokens = waiting.done(("tokens", *read.key), "splitting the text into tokens", split, own=read.first)
    try:
        memory.check_reading(at.cfg, int(tokens.shape[1]))
    except InterpError as error:
        st.error(plain(str(error)))
        st.stop()
    return tokens


def choose_layer(cfg: Any, *, mean: bool = True) -> int | None:
    """A layer, shared by all pages; None for the mean over layers."""
    return _choose("Layer", "layer", cfg.n_layers, mean)


def choose_head(count: int, *, key: str = "head", label: str = "Head", mean: bool = True) -> int | None:
    """A head, shared by all pages; None for the mean over heads."""
    return _choose(label, key, count, mean)


def choose_token(count: int) -> int:
    """A token of the text, by its position."""
    if not 0 <= int(st.session_state.get("token") or 0) < count:  # of a longer text
        st.session_state["token"] = 0
    return int(
        st.number_input("Token, by its position", 0, count - 1, "min", key=address.number("token"), bind="query-params")
    )


def _choose(label: str, key: str, count: int, mean: bool) -> int | None:
    options = ([MEAN] if mean else []) + [str(number) for number in range(count)]
    if st.session_state.get(key) not in (None, *options):  # of another model, or a page that has no mean
        st.session_state[key] = options[0]
    chosen = st.selectbox(label, options, key=key, bind="query-params", on_change=waiting.clicked)
    return None if chosen == MEAN else int(chosen)
