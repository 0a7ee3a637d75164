"""Where attention goes to rest: sinks by layer, the text by attention received, Sink_k, massive activations."""

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from interp import figures
from interp.figures._theme import BLUE, finish
from interp.probes.text_sinks import TextSinks
from interp_explorer import charts, measured, subject, view
from interp_explorer.text import plain

view.begin("Sinks")
st.title("Sinks")
read = subject.reading()
lens = subject.lens(read)
probe = TextSinks()
result = measured.result(read, probe)
for sentence in probe.findings(result):
    st.markdown(f"- {plain(sentence)}")
charts.show(figures.sink_map, result, result=probe.name, key="sinks")

st.subheader("The text, coloured by the attention it receives")
left, right = st.columns(2)
with left:
    layer = subject.choose_layer(lens.cfg)
with right:
    head = subject.choose_head(lens.cfg.n_heads)
charts.show(
    figures.token_mass,
    result,
    result=probe.name,
    key="text chart",
    layer=layer,
    head=head,
    characters=charts.CHARACTERS,
)

k = int(result.attrs["k"])
st.subheader(f"Sink rate: heads that attend to token {k}")
epsilon = st.slider("ε, the share of a head's attention that makes a sink", 0.05, 0.95, 0.3, 0.05, key="epsilon",
                    bind="query-params")  # fmt: skip
above = result["alpha_first"] > epsilon
st.metric(
    f"Sink_{k + 1} at ε = {epsilon:g}", f"{100 * float(above.mean()):.1f} % of heads", border=True, width="content"
)
rates = 100 * above.mean("head")
bars = go.Figure(go.Bar(x=rates["layer"].values, y=np.asarray(rates.values, "float32"), marker_color=BLUE))
bars.update_xaxes(title_text="layer").update_yaxes(title_text="heads above ε (%)", range=[0, 100])
charts.keep(
    finish(bars, f"Heads that give token {k} more than {epsilon:.0%} of their attention", 320),
    name="sink_rate", key="rate",
)  # fmt: skip
view.code(
    "import plotly.graph_objects as go",
    f"rates = 100 * (results[{probe.name!r}]['alpha_first'] > {epsilon:g}).mean('head')",
    "go.Figure(go.Bar(x=rates['layer'].values, y=rates.values)).show()",
)
