"""Does this model learn in context, and the way gradient descent would? Its heads, and the studies of small models."""

import streamlit as st
import xarray as xr

from interp import figures
from interp.icl import studies
from interp.icl.language import head_findings, head_scores
from interp.results import repeating
from interp_explorer import charts, study_view, subject, view, waiting
from interp_explorer.desk import Progress
from interp_explorer.text import plain

SAMPLES = 4  # sequences of each kind that heads are measured on: less than half of the library's, for who waits

shown = view.begin("In-context learning")
st.title("In-context learning")
read = subject.reading()
lens = subject.lens(read)

st.subheader("Heads that learn in context")
st.caption(
    "Repeated random tokens tell which heads attend to what followed the last time (induction, prefix matching), to "
    "the same token (duplicate), or to the token before; copying heads raise what they attend to."
)
if st.toggle("Measure this model's heads", False, key="heads", bind="query-params", on_change=waiting.clicked):

    def measure(progress: Progress) -> xr.Dataset:
        with waiting.told_of_passes(lens, progress, 4 * SAMPLES):
            return head_scores(lens, read.text, samples=SAMPLES)

    scores = waiting.done(("heads", *read.key), "scoring the heads on repeated tokens", measure)
    view.loaded(read)
    view.code(*repeating.heads_scored(SAMPLES))
    for sentence in head_findings(scores):
        st.markdown(f"- {plain(sentence)}")
    for name, figure in figures.figures_of("head_scores").items():
        charts.show(figure, scores, result="head_scores", key=f"heads {name}")
    shown.data["head_scores"] = scores

st.subheader("Studies")
st.caption("Experiments of papers, run again: the quick form takes about a minute here, the whole one a command line.")
known = studies.available()
name = st.selectbox("Study", list(known), key="study", bind="query-params")
study = studies.make(name, quick=True)
st.markdown(f"**{plain(study.title)}** {plain(study.description)}")
st.code(f"interp icl {name} --out runs/{name}", language="bash")
if st.toggle("Run the quick form here", False, key="run_study", bind="query-params", on_change=waiting.clicked):
    folder = study_view.folder_of(study)

    def run(progress: Progress) -> xr.Dataset:
        return study.run(folder, lambda fraction, _: progress(int(1000 * fraction), 1000))

    ds = waiting.done(("study", name), f"running {name}", run)
    view.code(*repeating.study_made(study), *repeating.study_run(f"runs/{name}"))
    study_view.show(study, ds, "ds")
    shown.data[name] = ds
