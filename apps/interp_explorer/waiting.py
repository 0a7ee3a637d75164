"""Getting long work done from a page: a progress bar, a button to cancel, and errors as sentences.

An address only chooses. Whoever made it may be a stranger, so work that it asks for starts with a click on the page.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import NoReturn, TypeVar

import streamlit as st

from interp.errors import InterpError
from interp.lens.protocol import TextLens
from interp_explorer.desk import Cancelled, Desk, Job, Progress
from interp_explorer.text import plain

T = TypeVar("T")
TICK = 0.1  # seconds between two looks at a job
CLICKED = "clicked"  # where a browser tab's state says that its user, not an address, asks for work


@st.cache_resource(show_spinner=False)
def desk() -> Desk:
    """The process' one desk, for all tabs."""
    return Desk()


def session() -> str:
    """What tells this browser tab from others."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    return "alone" if context is None else context.session_id


def clicked() -> None:
    """The user of this browser tab chose something: from now on what is chosen in it is done at once.

    For `on_change` and `on_click` of everything that chooses work. An address can not call it.
    """
    st.session_state[CLICKED] = True


@st.cache_resource(show_spinner=False)
def _allowed() -> set[tuple[Hashable, ...]]:
    """What users of this process clicked for that is no job at the desk."""
    return set()


def allowed(key: tuple[Hashable, ...], what: str) -> None:
    """Go on where a user asks for `what`, now or before in this process; else offer it, and end the page there."""
    if st.session_state.get(CLICKED):
        _allowed().add(key)
    elif key not in _allowed():
        _offer(what)


def _offer(what: str) -> NoReturn:
    st.info(plain(f"This address asks for {what}. An address starts nothing by itself."), icon=":material/link:")
    st.button("Start", key="start", on_click=clicked, type="primary")
    st.stop()


def done(key: tuple[Hashable, ...], what: str, work: Callable[[Progress], T], *, own: bool = False) -> T:
    """The result of `work`, from whoever had it done first.

    Work that nobody has started is offered with a button, until the user of this tab has chosen something in it.
    own: this is what the explorer shows at first, whoever comes, and needs no click.

    While it is under way the page shows how far it is and what it waits for, with a button that cancels. Whatever goes
    wrong becomes a sentence on the page, and the page ends there.
    """
    if st.session_state.get("cancelled") == repr(key):
        _offer_again(what)
    if not (own or st.session_state.get(CLICKED) or desk().knows(key)):
        _offer(what)
    job = desk().ask(key, what, work, session())
    if not job.finished:
        _watch(job)
    if job.error is not None:
        _explain(job)
    value: T = job.value
    return value


@contextmanager
def told_of_passes(lens: TextLens, progress: Progress, of: int) -> Iterator[None]:
    """Report each forward pass of the model, of about `of`, for work of the library that reports nothing itself.

    So it shows how far it is, and can be cancelled before the next pass.
    """
    done = count()
    hook = lens.model.register_forward_pre_hook(lambda *_: progress(min(next(done), of), of))
    try:
        yield
    finally:
        hook.remove()


def _watch(job: Job) -> None:
    place = st.empty()
    with place.container():
        bar = st.progress(0.0)
        st.button("Cancel", key=f"cancel {job.key!r}", on_click=_cancel, args=(job,))
    while not job.wait(session(), TICK):
        bar.progress(min(job.share, 1.0), text=_status(job))
    place.empty()


def _status(job: Job) -> str:
    """Where the job stands, as Markdown: a model's name in it is whatever somebody typed, maybe in another tab."""
    if job.running:
        return plain(f"{job.what} ...")
    holder = desk().holder()
    busy = f" for the model, which is busy with another tab's work: {holder.what}" if holder else ""
    return plain(f"waiting{busy} ...")


def _cancel(job: Job) -> None:
    job.leave(session())
    st.session_state["cancelled"] = repr(job.key)


def _offer_again(what: str) -> NoReturn:
    st.info(plain(f"Cancelled: {what}."), icon=":material/cancel:")
    st.button("Do it after all", key="again", on_click=_again)
    st.stop()


def _again() -> None:
    st.session_state.pop("cancelled", None)
    clicked()


def _explain(job: Job) -> NoReturn:
    error = job.error
    if isinstance(error, InterpError):
        st.error(plain(str(error)))
    elif isinstance(error, Cancelled):
        st.info(plain(f"Given up: {job.what}. Reload the page to do it again."))
    elif isinstance(error, MemoryError) or "not enough memory" in str(error):
        said = f"This machine's memory does not suffice for {job.what}; choose fewer tokens or a smaller model."
        st.error(plain(said))
    else:
        st.error(plain(f"{job.what} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    st.stop()
