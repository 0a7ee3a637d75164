"""Why an intervention changes what the model says: every question of the library that applies, asked on demand."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import streamlit as st
import xarray as xr

from interp import explaining, figures
from interp.interventions import parts
from interp.interventions.base import CachePolicy
from interp.lens.protocol import TextLens
from interp.results import repeating
from interp_explorer import charts, view, waiting
from interp_explorer.desk import Progress
from interp_explorer.subject import Reading
from interp_explorer.text import plain


def section(
    read: Reading, lens: TextLens, prompt: str, intervention: Any, ds: xr.Dataset, key: tuple[Hashable, ...], chat: bool
) -> None:
    """Questions about the model's own continuation in `ds`, read under the intervention."""
    import torch

    if not all(isinstance(part, CachePolicy) for part in parts(intervention)):
        st.info("Questions are about cache policies; take the attention edits out to ask them.")
        return
    possible = [question.name for question in explaining.resolve(None, intervention)]
    asked = st.multiselect(
        "Questions", possible, [name for name in ("ledger", "perturbation") if name in possible], key="questions",
        bind="query-params", on_change=waiting.clicked,
    )  # fmt: skip
    if not (st.toggle("Ask", False, key="ask", bind="query-params", on_change=waiting.clicked) and asked):
        st.caption("Asking runs the full and the compressed model over the model's own continuation.")
        return
    tokens, _ = lens.tokens_and_mask(prompt, chat=chat)
    ids = ds["token_id"].sel(side="unchanged").values
    continuation = torch.tensor(ids[ids >= 0], device=tokens.device)[None]

    def explain(progress: Progress) -> dict[str, xr.Dataset]:
        import interp

        with waiting.told_of_passes(lens, progress, 2 * continuation.shape[1]):
            return interp.explain(lens, intervention, tokens, continuation, asked)

    answers = waiting.done(("explain", *key, *asked), f"asking about {', '.join(asked)}", explain)
    view.code(*repeating.explained(asked, chat=chat))
    for name, answer in answers.items():
        with st.container(border=True):
            st.subheader(plain(name.replace("_", " ")))
            for sentence in explaining.findings({name: answer}):
                st.markdown(f"- {plain(sentence)}")
            for figure in figures.figures_of(name).values():
                charts.show(figure, answer, result=name, key=f"why {figure.__name__}", source="answers")
            _table(answer)
            shown = view.current()
            if shown is not None:
                shown.data[name] = answer


def _table(answer: xr.Dataset) -> None:
    """The numbers of an answer that stand in one row for each thing: evictions, samples put back, steps."""
    columns: dict[Hashable, list[Hashable]] = {}
    for name, variable in answer.data_vars.items():
        if variable.ndim == 1:
            columns.setdefault(variable.dims[0], []).append(name)
    if columns:
        longest = max(columns.values(), key=len)
        st.dataframe(answer[longest].to_dataframe(), height=260)
