"""Where attention goes to rest: sinks by layer, the text by attention received, Sink_k, massive activations."""

import streamlit as st

from interp import figures
from interp.probes.text_sinks import TextSinks
from interp_explorer import address, charts, measured, subject, view
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
st.caption("Click a token to see which heads look at it.")
charts.show(
    figures.token_mass,
    result,
    result=probe.name,
    key="text chart",
    take=charts.take_token,
    layer=layer,
    head=head,
    characters=charts.CHARACTERS,
)

st.subheader("One token")
token = subject.choose_token(result.sizes["token"])
if result["mean_received"].isel(token=token).isnull().all():
    st.info(f"Token {token} is seen by too few queries to say which heads look at it.")
else:
    st.caption("Click a cell to choose its head.")
    charts.show(figures.token_heads, result, result=probe.name, key="token chart", take=charts.take_head, token=token)

k = int(result.attrs["k"])
st.subheader(f"Sink rate: heads that attend to token {k}")
epsilon = st.slider("ε, the share of a head's attention that makes a sink", 0.05, 0.95, 0.3, 0.05,
                    key=address.number("epsilon"), bind="query-params")  # fmt: skip
rate = 100 * float((result["alpha_first"] > epsilon).mean())
st.metric(f"Sink_{k + 1} at ε = {epsilon:g}", f"{rate:.1f} % of heads", border=True, width="content")
charts.show(figures.sink_rate, result, result=probe.name, key="rate", epsilon=epsilon)

st.subheader("Massive activations")
charts.show(figures.massive_activations, result, result=probe.name, key="massive")
charts.show_others(result, probe.name, "sink_map", "token_mass", "token_heads", "sink_rate", "massive_activations")
