"""The browser explorer of `interp` (optional extra `app`): `interp app`.

`app.py` is the frame that Streamlit runs; each file in `screens/` is a page. What the pages offer (probes, figures,
interventions, questions, studies) is found in the library, so that a new one appears without a change here.
"""
