"""What a vision-language model makes of an image: figures of the probes that read images."""

import streamlit as st

from interp_explorer import subject, view

view.begin("Image")
st.title("Image")
lens = subject.lens(subject.reading())
st.info(
    f"{lens.cfg.architecture} reads text only. This page shows an image under the attention that falls on it, once a "
    "vision-language model is loaded and a probe reads images."
)
