"""What single dropped channels or tokens do to the prediction, against the method's own score."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.figures._need import need
from interp.figures._text import quoted
from interp.figures._theme import BLUE, GREY, INK, ORANGE, finish, top_down

RESULT = "attribution"
STRONGEST = 15


def cache_attribution(ds: xr.Dataset) -> go.Figure:
    """Left, every channel (or token) that was put back into the cache: across, the score by which the method dropped
    it; up, how much it moves the logit of the true next token against its rival. A method that knows what matters puts
    its dots on a rising line. Right, the strongest ones by name, at every step.

    Args:
        ds: an answer to the question `attribution` of `interp.explain`.

    Raises:
        FigureError: for any other dataset.

    Examples:
        >>> figure = interp.figures.cache_attribution(results["attribution"])
        >>> figure.layout.title.text
        '64 tokens put back, one at a time (the policy moves the logit difference by 0.356)'
    """
    ds = need(ds, "cache_attribution", RESULT, "effect", "mean_effect", "score", "spearman", kind="question")
    of = str(ds.attrs.get("of", "channels")).replace("_", " ")
    names = _names(ds)
    score, size = (ds[name].values.astype("float32") for name in ("score", "mean_effect"))
    random = ds["random"].values == 1
    rho = float(ds["spearman"].sel(sampled="random half", against="score"))
    heading = f"rank correlation {rho:+.2f} (random half)" if np.isfinite(rho) else "no score to compare with"
    fig = make_subplots(
        1, 2, column_widths=[0.6, 0.4], horizontal_spacing=0.22, subplot_titles=[heading, "strongest effects"]
    )
    for label, chosen, colour in (("random", random, GREY), ("highest scores", ~random, ORANGE)):
        if chosen.any():
            fig.add_scatter(
                x=score[chosen], y=size[chosen], mode="markers", name=label, text=names[chosen],
                marker={"color": colour, "size": 7, "opacity": 0.8},
                hovertemplate="%{text}<br>score %{x:.3~g}<br>moves the logit difference by %{y:.3~g}<extra></extra>",
                row=1, col=1,
            )  # fmt: skip
    order = np.argsort(-size)[:STRONGEST]
    effect = ds["effect"].transpose("sample", "step").values.astype("float32")[order]
    rows, steps = np.arange(len(order)), ds["step_text"].values if "step_text" in ds else None
    fed = [""] * effect.shape[1] if steps is None else [quoted(str(text)) for text in steps]
    fig.add_scatter(
        x=effect.ravel(), y=np.repeat(rows, effect.shape[1]), mode="markers", name="at one step", text=fed * len(rows),
        marker={"color": BLUE, "size": 5, "opacity": 0.5},
        hovertemplate="reading %{text}<br>%{x:+.3~g} logits<extra></extra>", row=1, col=2,
    )  # fmt: skip
    fig.add_scatter(
        x=effect.mean(1), y=rows, mode="markers", name="mean over steps", text=names[order],
        marker={"color": INK, "size": 9, "symbol": "line-ns-open", "line": {"width": 3}},
        hovertemplate="%{text}<br>%{x:+.3~g} logits on average<extra></extra>", row=1, col=2,
    )  # fmt: skip
    for axis, values in (("xaxis", score[np.isfinite(score)]), ("yaxis", size)):
        if values.size and values.min() > 0:
            decades = np.log10(values.max() / values.min())
            fig.update_layout({axis: {"type": "log", "dtick": 1 if decades > 1.5 else "D2"}})
    fig.update_xaxes(title_text="the method's own score", exponentformat="power", row=1, col=1)
    fig.update_yaxes(title_text="|change of the logit difference|", exponentformat="power", row=1, col=1)
    fig.update_xaxes(title_text="change of the logit difference (logits)", nticks=5, row=1, col=2)
    fig.add_vline(0, row=1, col=2, line={"color": GREY, "width": 1})
    labels = {"tickmode": "array", "tickvals": rows.tolist(), "ticktext": names[order].tolist()}
    title_of = "token" if of == "tokens" else "channel"
    fig.update_yaxes(title_text=f"layer, head, {title_of}", **top_down(len(order)), **labels, row=1, col=2)
    lost = float(np.abs(ds["pruned"] - ds["full"]).mean())
    title = f"{ds.sizes['sample']} {of} put back, one at a time (the policy moves the logit difference by {lost:.3f})"
    return finish(fig, title, 520).update_layout(margin_b=100, legend={"y": -0.2})


def _names(ds: xr.Dataset) -> np.ndarray:
    """How labels name each sample: `L3 H1 ch 5`, or the token's position and text."""
    if "token_text" in ds:
        last = [
            f"{at} {quoted(str(text), 14)}"
            for at, text in zip(ds["position"].values, ds["token_text"].values, strict=True)
        ]
    else:
        last = [f"ch {channel}" for channel in ds["channel"].values]
    place = zip(ds["layer"].values, ds["kv_head"].values, last, strict=True)
    return np.array([f"L{layer} H{head} {rest}" for layer, head, rest in place], dtype=object)
