"""Which key and value channels carry the magnitude, before and after rotary embedding."""

import streamlit as st

from interp import figures
from interp.probes.channel_imbalance import ChannelImbalance
from interp_explorer import charts, measured, subject, view
from interp_explorer.text import plain

view.begin("Channels")
st.title("Channels")
read = subject.reading()
lens = subject.lens(read)
probe = ChannelImbalance()
result = measured.result(read, probe)
for sentence in probe.findings(result):
    st.markdown(f"- {plain(sentence)}")
st.caption("Click a row to choose its head.")
charts.show(figures.channel_imbalance, result, result=probe.name, key="imbalance", take=charts.take_head)

st.subheader("One head")
left, right = st.columns(2)
with left:
    layer = subject.choose_layer(lens.cfg, mean=False)
with right:
    kv_head = subject.choose_head(result.sizes["kv_head"], key="kv_head", label="Key/value head", mean=False)
charts.show(figures.channel_surface, result, result=probe.name, key="surface", layer=layer, kv_head=kv_head)
charts.show_others(result, probe.name, "channel_imbalance", "channel_surface")
