"""A study's result on a page: its verdicts, the figures it draws, and its notes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
import xarray as xr

from interp.errors import InterpError
from interp.files.private import private_folder
from interp.icl.studies import Study
from interp.icl.studies._code import code_of
from interp.results import repeating
from interp_explorer import charts, view
from interp_explorer.text import plain

ICONS = {"reproduced": "✓", "not reproduced": "✗"}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def folder_of(study: Study) -> Path:
    """Where the parts of a study's quick form are kept: a folder that only this user writes to, for each version of
    the code."""
    code = re.sub(r"[^\w.]+", "-", code_of(type(study)))
    return private_folder("studies", study.name, code)


def show(study: Any, ds: xr.Dataset, source: str) -> None:
    """Verdicts, figures and notes of a result that Python calls `source`.

    Raises InterpError for a result that this version of the study can not read.
    """
    st.caption(plain(study.paper))
    try:
        rows, pictures, notes = study.verdicts(ds), study.figures(ds), study.notes(ds)
    except (LookupError, ValueError, TypeError) as error:  # what is missing in it, or has another shape
        raise InterpError(
            f"this result of {study.name} is of another version, and cannot be read ({_short(error)}): run the study "
            "again."
        ) from error
    table = pd.DataFrame(
        {
            "": [ICONS.get(row.verdict, "–") for row in rows],
            "claim": [row.claim for row in rows],
            "expected": [row.expected for row in rows],
            "found": [row.found for row in rows],
            "verdict": [row.verdict for row in rows],
            "source": [row.source for row in rows],
        }
    )
    st.dataframe(table, hide_index=True)
    for picture in pictures:
        charts.keep(picture.figure, name=picture.name, key=f"study {picture.name}")
        st.caption(plain(picture.caption))
    view.code(*repeating.study_drawn(source))
    for note in notes:
        st.markdown(f"- {plain(note)}")
