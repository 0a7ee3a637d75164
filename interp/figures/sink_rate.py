"""Sink_k by layer: how many heads give one token more than a share of their attention."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import need
from interp.figures._theme import BLUE, finish

RESULT = "text_sinks"


def sink_rate(ds: xr.Dataset, epsilon: float = 0.3) -> go.Figure:
    """The share of each layer's heads that give one token, the first unless the probe was told otherwise, more than ε
    of their attention. Its mean over layers is Sink_k of Gu et al. 2025.

    Args:
        ds: a result of the probe `text_sinks`.
        epsilon: a share of attention, 0 to 1.

    Raises:
        FigureError: for another dataset.

    Examples:
        >>> figure = interp.figures.sink_rate(results["text_sinks"], epsilon=0.5)
        >>> figure.layout.title.text
        'Heads that give token 0 more than 50% of their attention'
    """
    ds = need(ds, "sink_rate", RESULT, "alpha_first")
    rates = 100 * (ds["alpha_first"] > epsilon).mean("head")
    fig = go.Figure(go.Bar(x=rates["layer"].values, y=rates.values.astype("float32"), marker_color=BLUE))
    fig.update_xaxes(title_text="layer").update_yaxes(title_text="heads above ε (%)", range=[0, 100])
    return finish(fig, f"Heads that give token {int(ds.attrs['k'])} more than {epsilon:.0%} of their attention", 320)
