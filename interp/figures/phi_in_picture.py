"""φ of the image's tokens in one layer, over the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import choose, need
from interp.figures._picture import Ground, ground
from interp.figures._theme import finish
from interp.figures.phi_by_layer import scale

RESULT = "visual_sinks"


def phi_in_picture(ds: xr.Dataset, layer: int | None = None, image: int = 0, picture: Any = None) -> go.Figure:
    """φ of each token of the image where it enters one layer, over the picture: blue below the threshold, orange to red
    for sinks. Unless a layer is chosen, the one in which φ differs most from token to token.

    Args:
        ds: a result of the probe `visual_sinks`.
        layer: a layer; None: that of the largest standard deviation over the image's tokens.
        image: the number of the image.
        picture: the picture itself (a PIL image); None: the small one that the result carries.

    Raises:
        FigureError: for another dataset, or a layer or image that it does not hold.

    Examples:
        >>> figure = interp.figures.phi_in_picture(results["visual_sinks"], layer=1)
        >>> figure.layout.title.text
        'Sink value φ in layer 1; 0 of 16 tokens are sinks'
    """
    ds = need(ds, "phi_in_picture", RESULT, "phi", "box")
    on = ground(ds, image, picture)
    layer = _uneven(ds, on) if layer is None else choose(ds, "layer", layer)
    phi = ds["phi"].sel(layer=layer).values
    tau = float(ds.attrs["tau"])
    bare = ["the picture"] if on.source is not None else []
    fig = on.start(*bare, *(panel.title or "φ" for panel in on.panels))
    for column, panel in enumerate(on.panels, start=1 + len(bare)):
        on.colour(fig, panel, phi[panel.token], "φ = %{z:.3~g}", column)
    fig.update_layout(coloraxis=scale(float(np.nanmax(phi[on.tokens], initial=0.0)), tau))
    count, number = int((phi[on.tokens] >= tau).sum()), len(on.tokens)
    return finish(fig, f"Sink value φ in layer {layer}; {count:,} of {number:,} tokens are sinks", fig.layout.height)


def _uneven(ds: xr.Dataset, on: Ground) -> int:
    phi = ds["phi"].transpose("layer", "token").values[:, on.tokens]
    spread = phi.std(1) if phi.shape[1] else np.zeros(len(phi))
    return int(ds["layer"].values[int(np.nan_to_num(spread).argmax())])
