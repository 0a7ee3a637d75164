"""`interp.sink_threshold`: from which φ on a token is a sink in this model, by what attention does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.errors import InterpError
from interp.lens.evaluating import in_evaluation_mode
from interp.results.described import Row, described
from interp.runs.sink_channels import listen_to, readings
from interp.settings.checking import checked
from interp.vision.sinks import sink_values

if TYPE_CHECKING:
    import xarray as xr

    from interp.lens.protocol import TextLens

Tensor = torch.Tensor
STEP = 0.0125
"""Between two thresholds that are tried, as shares of √d_model: 0.3125, the paper's, is one of them."""


@in_evaluation_mode
@torch.no_grad()
def sink_threshold(
    lens: TextLens,
    channels: int | Sequence[int],
    inputs: Any = None,
    images: Any = None,
    *,
    times_mean: float = 10.0,
) -> xr.Dataset:
    """How well φ tells the tokens that attention piles up on from others, at every threshold.

    Args:
        lens: from `interp.load`.
        channels: the model's sink channels, from `interp.sink_channels`.
        inputs, images: as for `interp.sink_channels`.
        times_mean: a token is piled upon in a layer where it receives more than so many times the attention of the mean
            token there: of each row that sees it its share, mean over rows and heads.

    Returns, by `tau_rel` (a share of √d_model, up to 1): `precision`, `recall` and `f1` of "φ reaches it" against "is
    piled upon", and `flagged`, the share of all tokens that reach it; over all layers, tokens and texts. In `attrs`,
    `tau_rel` is the threshold of the largest f1 (the middle one where several share it), for `VAR(tau_rel=...)` and the
    probe `visual_sinks`; not a number where no token is piled upon.

    Kang et al. 2025 (arXiv:2503.03321) use φ >= 20 in models of a width of 4,096, which is 0.3125 there. Elsewhere that
    share may tell nothing: in the demo model (576 wide) nearly every token exceeds it, and φ of its first token is
    twice as large. Raises InterpError for channels that the model does not have, or none.

    Examples:
        >>> interp.sink_threshold(lens, 3, [prompt]).sizes["tau_rel"]
        80
    """
    checked("sink_threshold", "times_mean", times_mean, float)
    chosen = [channels] if isinstance(channels, int) else [int(channel) for channel in channels]
    if not chosen or not all(0 <= channel < lens.cfg.d_model for channel in chosen):
        raise InterpError(
            f"sink_threshold: channels should be among 0 to {lens.cfg.d_model - 1} and at least one, found {channels}; "
            "interp.sink_channels(lens) finds them."
        )
    seen = [shares_and_received(lens, text, own, chosen) for text, own in readings(lens, inputs, images)]
    shares, times = (torch.cat(parts).numpy() for parts in zip(*seen, strict=True))
    return _table(shares, times > times_mean, {"channels": str(chosen), "times_mean": times_mean, "texts": len(seen)})


def shares_and_received(lens: TextLens, text: Any, seen: dict[str, Any], channels: list[int]) -> tuple[Tensor, Tensor]:
    """φ/√d_model of every token in every layer, and how many times the mean attention it receives."""
    shares: dict[int, Tensor] = {}
    received: dict[int, Tensor] = {}

    def enter(layer: int, stream: Tensor, hook: Any) -> None:
        shares[layer] = (sink_values(stream[0], channels) / stream.shape[-1] ** 0.5).cpu()

    def attended(layer: int, mass: Tensor, hook: Any) -> None:
        rows = torch.arange(mass.shape[-1], 0, -1, device=mass.device)
        share = mass[0].float().mean(0) / rows
        received[layer] = (share / share.mean()).cpu()

    listen_to(lens, text, seen, enter, attended)
    layers = sorted(shares.keys() & received.keys())
    return torch.cat([shares[layer] for layer in layers]), torch.cat([received[layer] for layer in layers])


def _table(shares: np.ndarray, piled: np.ndarray, attrs: dict[str, Any]) -> xr.Dataset:
    tau = np.arange(1, round(1 / STEP) + 1) * STEP
    flagged = np.array([(shares >= one).sum() for one in tau])
    right = np.array([(piled & (shares >= one)).sum() for one in tau])
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall, f1 = right / flagged, right / piled.sum(), 2 * right / (flagged + piled.sum())
    best = float(np.median(tau[f1 == f1.max()])) if piled.any() else float("nan")
    data = {
        "precision": (precision, "share of the tokens that reach tau_rel on which attention piles up"),
        "recall": (recall, "share of the tokens on which attention piles up that reach tau_rel"),
        "f1": (f1, "harmonic mean of precision and recall"),
        "flagged": (flagged / len(shares), "share of all tokens that reach tau_rel"),
    }
    return described(
        {name: Row(("tau_rel",), values.astype(np.float32), "1", said) for name, (values, said) in data.items()},
        {"tau_rel": tau},
        {
            "title": "Threshold of sinks",
            "description": "How well φ of a token says that attention piles up on it",
            "tau_rel": best,
            "piled_upon": int(piled.sum()),
            "tokens": len(shares),
            **attrs,
        },
    )
