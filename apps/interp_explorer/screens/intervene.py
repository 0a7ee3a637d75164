"""Change the model while it writes: one prompt continued without and with interventions, and why they differ."""

import json
from functools import reduce
from operator import or_

import pandas as pd
import streamlit as st
import xarray as xr

from interp import figures
from interp.errors import InterpError
from interp.interventions import available
from interp.lens.foreign import text_of
from interp.results import repeating
from interp.runs.side_by_side import findings
from interp_explorer import address, charts, forms, memory, subject, view, waiting, why
from interp_explorer.desk import Progress
from interp_explorer.text import plain

LONGEST_PROMPT = 8_000  # characters of what is typed as a prompt
AT_FIRST = ["think", "d2o"]

shown = view.begin("Intervene")
st.title("Intervene")
read = subject.reading()
lens = subject.lens(read)
chosen = st.multiselect(
    "Interventions, in order", list(available()), AT_FIRST, key="with", bind="query-params", on_change=waiting.clicked,
    help="Everything that the library offers. Their settings appear below.",
)  # fmt: skip
made = []
for name in chosen:
    with st.container(border=True):
        st.subheader(plain(name))
        made.append(forms.intervention(name, name))
from_text = st.toggle(
    "Continue the text of the sidebar", True, key="from_text", bind="query-params", on_change=waiting.clicked
)
if from_text:
    prompt = text_of(lens.tokenizer, subject.row(read)[0])
    st.caption(f"The prompt is the text's first {subject.row(read).shape[1]:,} tokens.")
else:
    prompt = (
        st.text_area(
            "Prompt", "", key="prompt", max_chars=LONGEST_PROMPT, bind="query-params", on_change=waiting.clicked
        )
        or ""
    )
left, right = st.columns(2)
steps = int(
    left.number_input(
        "New tokens", 2, 512, 32, key=address.number("steps"), bind="query-params", on_change=waiting.clicked
    )
)
chat = right.toggle("Through the chat template", False, key="chat", bind="query-params", on_change=waiting.clicked)
if not made:
    st.info("Choose at least one intervention above.")
    st.stop()
if not prompt.strip():
    st.error("The prompt is empty: write some text to continue.")
    st.stop()
try:
    intervention = reduce(or_, [one for one, _ in made])
except InterpError as error:  # two that decide about the same thing
    st.error(plain(str(error)))
    st.stop()
specs = tuple(spec for _, spec in made)
key = (read.model, read.dtype, subject.fingerprint(prompt), specs, steps, chat)


def generate(progress: Progress) -> xr.Dataset:
    import interp

    memory.check_reading(lens.cfg, lens.tokens_and_mask(prompt, chat=chat)[0].shape[1] + steps)
    return interp.side_by_side(lens, prompt, intervention, steps, chat=chat, progress=progress)


ds = waiting.done(("side_by_side", *key), f"writing {steps} tokens twice", generate)
view.loaded(read)
view.code(*repeating.continued(prompt, specs, steps, chat=chat))
shown.data["side_by_side"] = ds

for sentence in findings(ds):
    st.markdown(f"- {plain(sentence)}")
charts.keep(figures.side_by_side(ds, charts.CHARACTERS), name="side_by_side", key="sides")
view.code(*repeating.drawn("side_by_side", "sides"))
for side, column in zip(ds["side"].values, st.columns(2), strict=True):
    with column:
        st.caption({"unchanged": "As the model is", "intervened": "With the intervention"}[side])
        st.code("".join(ds["token_text"].sel(side=side).values), language=None, wrap_lines=True)
accounts = json.loads(ds.attrs["accounts"])
table = pd.DataFrame(
    {
        title: {
            "cache (MiB)": told["cache"]["bytes"] / 2**20,
            "the same cache, dense (MiB)": told["cache"]["dense_bytes"] / 2**20,
            "tokens kept in a head, mean": sum(told["cache"]["kept_tokens"]) / len(told["cache"]["kept_tokens"]),
            "prefill (s)": told["prefill_seconds"],
            "decoding (tokens/s)": told["decode_tokens_per_second"],
        }
        for title, told in zip(("as the model is", "with the intervention"), accounts, strict=True)
    }
)
st.dataframe(table.style.format("{:,.2f}"))
for note in accounts[1]["notes"]:
    st.warning(plain(note))

st.subheader("Why")
why.section(read, lens, prompt, intervention, ds, key, chat)
