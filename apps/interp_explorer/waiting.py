"""Getting long work done from a page: a progress bar, a button to cancel, and errors as sentences."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NoReturn

import streamlit as st

from interp.errors import InterpError
from interp_explorer.desk import Cancelled, Desk, Job, Work
from interp_explorer.text import plain

TICK = 0.1  # seconds between two looks at a job


@st.cache_resource(show_spinner=False)
def desk() -> Desk:
    """The process' one desk, for all tabs."""
    return Desk()


def session() -> str:
    """What tells this browser tab from others."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    return "alone" if context is None else context.session_id


def done(key: tuple[Hashable, ...], what: str, work: Work) -> Any:
    """The result of `work`, from whoever had it done first.

    While it is under way the page shows how far it is and what it waits for, with a button that cancels. Whatever goes
    wrong becomes a sentence on the page, and the page ends there.
    """
    if st.session_state.get("cancelled") == repr(key):
        _offer_again(what)
    job = desk().ask(key, what, work, session())
    if not job.finished:
        _watch(job)
    if job.error is not None:
        _explain(job)
    return job.value


def _watch(job: Job) -> None:
    place = st.empty()
    with place.container():
        bar = st.progress(0.0)
        st.button("Cancel", key=f"cancel {job.key!r}", on_click=_cancel, args=(job,))
    while not job.wait(session(), TICK):
        bar.progress(min(job.share, 1.0), text=_status(job))
    place.empty()


def _status(job: Job) -> str:
    if job.running:
        return f"{job.what} ..."
    holder = desk().holder()
    return (
        f"waiting for the model, which is busy with another tab's work: {holder.what} ..." if holder else "waiting ..."
    )


def _cancel(job: Job) -> None:
    job.leave(session())
    st.session_state["cancelled"] = repr(job.key)


def _offer_again(what: str) -> NoReturn:
    st.info(f"Cancelled: {what}.", icon=":material/cancel:")
    st.button("Do it after all", key="again", on_click=lambda: st.session_state.pop("cancelled", None))
    st.stop()


def _explain(job: Job) -> NoReturn:
    error = job.error
    if isinstance(error, InterpError):
        st.error(plain(str(error)))
    elif isinstance(error, Cancelled):
        st.info(f"Given up: {job.what}. Reload the page to do it again.")
    elif isinstance(error, MemoryError) or "not enough memory" in str(error):
        st.error(f"This machine's memory does not suffice for {job.what}; choose fewer tokens or a smaller model.")
    else:
        st.error(plain(f"{job.what} failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    st.stop()
