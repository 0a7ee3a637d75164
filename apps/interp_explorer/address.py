"""What an address says that no widget can hold."""

from __future__ import annotations

import math

import streamlit as st

from interp_explorer.text import plain

_SAID, _AGAIN = "taken out of the address", "run again for it"
LARGEST = 2**53  # what a browser's numbers hold exactly


def number(name: str) -> str:
    """`name`, the key of a widget for a number, once the address gives it no number that would be too much for it.

    Such a number is taken out of the address, and the page runs again, with a sentence and the widget as by default.
    """
    refused = [value for value in st.query_params.get_all(name) if not _holdable(value)]
    if refused:
        said = f"The address says {name}={refused[0][:40]}, which is no number that can be used here."
        st.session_state.setdefault(_SAID, []).append(said)
        st.session_state[_AGAIN] = True
        del st.query_params[name]
        st.rerun()  # widgets read the address as it was when the run began
    return name


def tell() -> None:
    """Say what was taken out of the address just before, by all runs of the page that were broken off for it."""
    if not st.session_state.pop(_AGAIN, False):
        st.session_state.pop(_SAID, None)
    for said in st.session_state.get(_SAID, []):
        st.warning(plain(said))


def _holdable(value: str) -> bool:
    try:
        said = float(value)
    except ValueError:  # no number at all: Streamlit leaves it out by itself
        return True
    return math.isfinite(said) and abs(said) <= LARGEST
