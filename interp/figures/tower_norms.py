"""Norms of the tower's patches over the picture: its registers."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.figures._need import choose, need
from interp.figures._picture import ground
from interp.figures._theme import AMOUNT, finish

RESULT = "vision_registers"


def tower_norms(ds: xr.Dataset, layer: int | None = None, image: int = 0, picture: Any = None) -> go.Figure:
    """The norm of the vision tower's residual stream at each place after one of its layers, that which the language
    model reads unless another is chosen. A token that is made of several patches has the largest. Frames mark high-norm
    patches, the tower's registers. Nothing is shown of patches that no token is known to be made of.

    Args:
        ds: a result of the probe `vision_registers`.
        layer: a layer of the tower; None: that which image tokens are read from.
        image: the number of the image.
        picture: the picture itself (a PIL image); None: the small one that the result carries.

    Raises:
        FigureError: for another dataset, or a layer or image that it does not hold.

    Examples:
        >>> figure = interp.figures.tower_norms(results["vision_registers"], layer=0)
        >>> figure.layout.title.text
        'Norms of patches after layer 0 of the tower; 0 of 16 are high'
    """
    ds = need(ds, "tower_norms", RESULT, "patch_norm", "is_register", "patch_token", "box")
    layer = int(ds.attrs["read_layer"]) if layer is None else choose(ds, "tower_layer", layer)
    one = ds[["patch_norm", "is_register"]].sel(tower_layer=layer)
    norm = np.full(ds.sizes["token"], -np.inf)
    token, size = ds["patch_token"].values.astype(int), one["patch_norm"].values
    known = (token >= 0) & (token < len(norm))
    np.maximum.at(norm, token[known], size[known])
    high = np.zeros(len(norm), bool)
    high[token[known & (one["is_register"].values > 0)]] = True
    norm[~np.isfinite(norm)] = np.nan
    on = ground(ds, image, picture)
    bare = ["the picture"] if on.source is not None else []
    fig = on.start(*bare, *(panel.title or "norm" for panel in on.panels))
    for column, panel in enumerate(on.panels, start=1 + len(bare)):
        on.colour(fig, panel, norm[panel.token], "norm %{z:.3~g}", column)
        on.frame(fig, panel, high[panel.token], "high-norm patches", column, colour="#ff2fd0")
    shown = norm[on.tokens][np.isfinite(norm[on.tokens])]
    low, top = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)
    fig.update_layout(
        coloraxis={
            "colorscale": AMOUNT,
            "cmin": low,
            "cmax": max(top, low + 1e-6),
            "colorbar": {"title": {"text": "norm"}},
        }
    )
    count = int((one["is_register"].values > 0).sum())
    said = f"{count:,} of {len(size):,} are high"
    return finish(fig, f"Norms of patches after layer {layer} of the tower; {said}", fig.layout.height)
