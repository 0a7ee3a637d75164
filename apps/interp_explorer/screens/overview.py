"""The first screen: what was read, what every probe found, and the figures of probes that have no page of their own."""

from pathlib import Path

import streamlit as st

from interp import figures
from interp_explorer import charts, measured, subject, view
from interp_explorer.text import plain

OWN_PAGE = {"channels": "channel_imbalance", "rank": "attention_rank", "sinks": "text_sinks"}

view.begin("Overview")
read = subject.reading()
lens = subject.lens(read)
tokens = subject.row(read)
wanted = measured.probes()
st.title(plain(lens.cfg.model_name))
st.caption(
    plain(
        f"{lens.cfg.architecture}: {lens.cfg.n_layers} layers, {lens.cfg.n_heads} query heads, "
        f"{lens.cfg.n_key_value_heads or lens.cfg.n_heads} key/value heads, head dim {lens.cfg.d_head}. "
        f"It read the first {tokens.shape[1]:,} tokens of {read.about}."
    )
)
results = measured.measure(read, wanted)

pages = {probe: page for page, probe in OWN_PAGE.items() if (Path(__file__).parent / f"{page}.py").is_file()}
for probe in wanted:
    result = results[probe.name]
    with st.container(border=True):
        st.subheader(plain(str(result.attrs.get("title", probe.name.replace("_", " ").capitalize()))))
        for sentence in probe.findings(result):
            st.markdown(f"- {plain(sentence)}")
        if probe.name in pages:
            st.page_link(f"screens/{pages[probe.name]}.py", label="See it", icon=":material/arrow_forward:")
        else:
            for name, figure in figures.figures_of(probe.name).items():
                with st.expander(plain(name.replace("_", " ")), expanded=False):
                    charts.show(figure, result, result=probe.name, key=f"chart {name}")
with st.expander("The text as it was read"):
    st.code("".join(lens.to_str_tokens(tokens)), language=None, wrap_lines=True)
