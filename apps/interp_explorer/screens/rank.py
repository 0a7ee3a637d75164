"""How many components hold the energy of each head, and the spectrum of the one that was clicked."""

from typing import Any

import streamlit as st

from interp import figures
from interp.probes.attention_rank import AttentionRank
from interp_explorer import charts, measured, subject, view
from interp_explorer.text import plain

view.begin("Rank")
st.title("Rank")
read = subject.reading()
lens = subject.lens(read)
probe = AttentionRank()
result = measured.result(read, probe)
for sentence in probe.findings(result):
    st.markdown(f"- {plain(sentence)}")
st.caption("Click a cell to choose its head.")
charts.show(figures.rank_map, result, result=probe.name, key="map", take=charts.take_head)
left, right = st.columns(2)
with left:
    layer = subject.choose_layer(lens.cfg)
with right:
    head = subject.choose_head(lens.cfg.n_heads)
one: dict[str, Any] = {} if layer is None or head is None else {"layer": layer, "head": head}
charts.show(figures.spectrum, result, result=probe.name, key="spectrum", **one)
charts.show_others(result, probe.name, "rank_map", "spectrum")
