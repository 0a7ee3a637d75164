"""The answer to a question about a picture, without and with attention changed, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st
import xarray as xr

from interp import figures
from interp.errors import InterpError
from interp.interventions import parse
from interp.results import repeating
from interp.runs.side_by_side import findings
from interp_explorer import address, charts, view, waiting
from interp_explorer.desk import Progress
from interp_explorer.looking import Asked
from interp_explorer.text import plain

if TYPE_CHECKING:
    from interp.lens.lens import Lens

KINDS = {
    "VAR": "Attention that sinks absorb goes to the image's other tokens, in heads that look at it.",
    "chosen patches": "Nobody looks at the patches that are chosen above.",
    "all of the image": "Nobody looks at any of the image.",
    "sinks": "Nobody looks at the image's sinks.",
    "non-sinks": "Nobody looks at the image's other tokens.",
}


def side_by_side(
    lens: Lens, asked: Asked, channels: Sequence[int], tau_rel: float, chosen: Sequence[int]
) -> str | None:
    """Choose what is changed, and see both answers; returns what that is, as `--with` has it, or None where nothing
    was generated. A choice that cannot be made is a sentence."""
    st.subheader("Side by side")
    kind = str(
        st.segmented_control(
            "What is changed", list(KINDS), key="change", default="VAR", required=True, bind="query-params",
            on_change=waiting.clicked,
        )
    )  # fmt: skip
    st.caption(KINDS[kind])
    if kind in ("VAR", "sinks", "non-sinks") and not channels:
        st.info(
            "No channel of this model's residual stream stands out, so it has no sinks to take from; type channels."
        )
        return None
    if kind == "chosen patches" and not chosen:
        st.info("Choose patches first: click one in the picture above, or pull a box around several.")
        return None
    spec = _spec(kind, channels, tau_rel, chosen)
    if not st.toggle("Generate", False, key="generate", bind="query-params", on_change=waiting.clicked):
        st.caption("Writes the answer twice, and scores each by both.")
        return None
    try:
        intervention = parse(spec)
    except InterpError as error:
        st.error(plain(str(error)))
        return None

    def generate(progress: Progress) -> xr.Dataset:
        import interp

        seen = {"images": asked.picture.image, "chat": asked.chat}
        return interp.side_by_side(lens, asked.prompt, intervention, asked.steps, **seen, progress=progress)

    ds = waiting.done(("side_by_side", *asked.key, spec), "writing the answer twice", generate)
    view.code(*repeating.continued(asked.prompt, [spec], asked.steps, chat=asked.chat, pictured=True))
    shown = view.current()
    if shown is not None:
        shown.data["side_by_side"] = ds
    for sentence in findings(ds)[:2]:  # the third is about a cache, which is not changed here
        st.markdown(f"- {plain(sentence)}")
    for side, column in zip(ds["side"].values, st.columns(2), strict=True):
        column.caption({"unchanged": "As the model is", "intervened": "With attention changed"}[side])
        column.code("".join(ds["token_text"].sel(side=side).values), language=None, wrap_lines=True)
    charts.keep(figures.side_by_side(ds, charts.CHARACTERS), name="side_by_side", key="sides")
    view.code(*repeating.drawn("side_by_side", "sides"))
    for note in json.loads(ds.attrs["accounts"])[1]["notes"]:
        st.warning(plain(note))
    return spec


def _spec(kind: str, channels: Sequence[int], tau_rel: float, chosen: Sequence[int]) -> str:
    """What is changed, as `--with` has it, with sliders for its strength."""
    of_sinks = f"channels={_listed(channels)},tau_rel={tau_rel:g}"
    if kind != "VAR":
        strength = _share("Strength", "strength", 1.0, "What part of the attention goes.")
        if kind in ("sinks", "non-sinks"):
            group = {"sinks": "visual_sinks", "non-sinks": "visual_non_sinks"}[kind]
            return f"group_knock_out:{of_sinks},group={group},strength={strength:g}"
        keys = "images" if kind == "all of the image" else _listed(chosen)
        return f"knock_out:keys={keys},strength={strength:g}"
    one, two, three = st.columns(3)
    with one:
        removed = _share("Part that sinks lose", "remove_fraction", 0.6, "remove_fraction; 0 changes nothing.")
    with two:
        mass = _share("Least attention to the image", "min_visual_mass", 0.2, "min_visual_mass: of a row of a head.")
    with three:
        ratio = _share(
            "Least part beside sinks", "min_nonsink_ratio", 0.8, "min_nonsink_ratio: of that attention.", 0.05
        )
    return f"var:{of_sinks},remove_fraction={removed:g},min_visual_mass={mass:g},min_nonsink_ratio={ratio:g}"


def _share(label: str, key: str, at_first: float, meaning: str, least: float = 0.0) -> float:
    return st.slider(
        label, least, 1.0, at_first, 0.05, key=address.number(key), help=meaning, bind="query-params",
        on_change=waiting.clicked,
    )  # fmt: skip


def _listed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"
