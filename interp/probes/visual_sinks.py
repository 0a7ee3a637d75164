"""Visual sinks: tokens of an image that attention goes to whatever is asked, and which heads look at the image besides.

Kang et al. 2025 (arXiv:2503.03321): a token is a sink where a few channels of its residual stream outgrow the rest, the
same channels in which a language model's text sinks are massive. φ is the largest |x| of those channels over the root
mean square of the token, read where the stream enters a layer; it is at most √d, so that a threshold of 20, which the
paper uses at a width of 4,096, cannot be reached at 400. Here it is a share of √d (0.3125 is 20 at 4,096).

Which channels those are is no table: of each layer they are those in which some token exceeds so many times the median
|x| of the layer, or the ones that are given. Where none does, no token is a sink, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.probes.base import Context, Fold, Probe
from interp.results.described import Row, described
from interp.results.naming import layers_named
from interp.results.ragged import stacked
from interp.seam.event import AttentionEvent
from interp.vision.sinks import sink_values

if TYPE_CHECKING:
    from interp.lens.image_layout import TokenLayout

Tensor = torch.Tensor
MOST = 8
"""Channels of a layer that are taken for sink channels at most, the largest first."""
COMMON = 0.5
"""Share of all tokens beyond which to be a sink says nothing."""


@dataclass(frozen=True)
class VisualSinks(Probe):
    """φ of every token, which tokens are sinks, what the text after the image attends to, and image-centric heads.

    Attention is that of the tokens of text behind the last image, since they alone see all of it.

    Args:
        channels: the model's sink channels, as `interp.sink_channels(lens)` finds them on many texts; None: those that
            stand out in this text, layer by layer, among which may be some that all tokens of an image share.
        tau_rel: a token is a sink from this share of √d on.
        over_median: how many times the layer's median |x| a channel has to reach in some token to be a sink channel.
        min_visual_mass: share of its attention that an image-centric row gives to the image at least.
        min_nonsink_ratio: share of that which goes to tokens that are no sinks, at least.

    Sun et al. 2024 (arXiv:2402.17762) ask for 1,000 medians and for |x| > 100; small models reach neither.

    Examples:
        >>> interp.VisualSinks(channels=(3, 7)).tau_rel
        0.3125
    """

    name: ClassVar[str] = "visual_sinks"
    reads: ClassVar[Literal["text", "tasks", "images"]] = "images"
    channels: int | tuple[int, ...] | None = None
    tau_rel: float = 0.3125
    over_median: float = 250.0
    min_visual_mass: float = 0.2
    min_nonsink_ratio: float = 0.8

    def __post_init__(self) -> None:
        for name in ("tau_rel", "min_visual_mass", "min_nonsink_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise InterpError(f"{self.name}: {name} should be above 0 and up to 1, found {getattr(self, name)}.")
        if self.over_median < 1:
            raise InterpError(f"{self.name}: over_median should be at least 1, found {self.over_median}.")

    def begin(self, context: Context) -> VisualFold:
        layout = context.with_images(self.name)
        given: list[int] = [] if self.channels is None else np.atleast_1d(self.channels).tolist()
        if missing := [channel for channel in given if not 0 <= channel < context.cfg.d_model]:
            raise InterpError(f"{self.name}: {context.cfg.architecture} has no channel {missing[0]}.")
        return VisualFold(self, context, layout, given)

    def findings(self, result: xr.Dataset) -> list[str]:
        layers, found = result["layer"].values, result["visual_sinks"].values
        tokens = int((result["modality"] == "image").sum())
        said = f"φ at least {result.attrs['tau']:.1f}"
        if not (result["sink_channel"].values >= 0).any():
            return [f"No channel of the residual stream stands out ({self._over}), so no token is a sink."]
        if not found.any():
            return [f"None of the {tokens:,} image tokens is a sink in any layer ({said})."]
        where = layers_named(layers[found > 0].tolist())
        most = int(found.argmax())
        sentences = [
            f"Image tokens are sinks ({said}) in {where}; most in layer {layers[most]}, {found[most]:,} of {tokens:,}."
        ]
        flagged = np.median(result["is_sink"].values.mean(1)[found > 0])
        if flagged > COMMON:
            return [
                f"Of all tokens, text and image, {flagged:.0%} reach φ of {result.attrs['tau']:.1f} in the median "
                "layer: here that tells no token apart; interp.sink_threshold finds one that attention agrees with."
            ]
        share, mass = result["visual_sink_share"].values, result["visual_share"].values
        if not np.isfinite(share).any():
            return [*sentences, "No text follows the image, so nothing is said of what attends to it."]
        mean_share, mean_mass = np.nanmean(share, 1), np.nanmean(mass, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            times = (mean_share / mean_mass) / (found / tokens)
        if np.isfinite(times[found > 0]).any():
            known = np.where((found > 0) & np.isfinite(times), times, -np.inf)
            at = int(known.argmax())
            sentences.append(
                f"Of what the text attends to in the image, sinks get {mean_share[at] / mean_mass[at]:.0%} in layer "
                f"{layers[at]}, {times[at]:.1f} times what they would get if it were spread evenly over the image; "
                f"the median of layers with sinks is {np.median(times[np.isfinite(times) & (found > 0)]):.1f} times."
            )
        return sentences

    @property
    def _over(self) -> str:
        return f"above {self.over_median:g} times a layer's median |x|"


class VisualFold(Fold):
    def __init__(self, probe: VisualSinks, context: Context, layout: TokenLayout, channels: list[int]) -> None:
        self.probe, self.context, self.channels = probe, context, channels
        self.image = torch.from_numpy(layout.modality == "image")
        last = int(np.flatnonzero(self.image)[-1])
        after = torch.arange(context.n_tokens) > last
        self.rows = after & torch.from_numpy(layout.modality == "text")
        self.tau = probe.tau_rel * context.cfg.d_model**0.5
        self.sinks: dict[int, Tensor] = {}
        self.seen: dict[int, dict[str, np.ndarray]] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"hook_resid_pre": self.enter, "attn.hook_event": self.attend}

    def enter(self, layer: int, residual: Tensor) -> None:
        x = residual[0].float().cpu()
        size = x.abs()
        channels = torch.tensor(self.channels, dtype=torch.long)
        if not self.channels:
            largest, order = size.amax(0).sort(descending=True)
            channels = order[:MOST][largest[:MOST] > self.probe.over_median * size.median()]
        phi = sink_values(x, channels.tolist()) if len(channels) else torch.zeros(len(x))
        self.sinks[layer] = phi >= self.tau
        shown = torch.nn.functional.pad(channels[:MOST], (0, MOST - len(channels[:MOST])), value=-1)
        self.seen[layer] = {
            "phi": phi.numpy(),
            "is_sink": self.sinks[layer].numpy(),
            "visual_sinks": (self.sinks[layer] & self.image).sum().numpy(),
            "sink_channel": shown.numpy(),
        }

    def attend(self, layer: int, event: AttentionEvent) -> None:
        sinks, image, rows = self.sinks[layer], self.image, self.rows
        groups = torch.stack([image & sinks, image & ~sinks, ~image & sinks], -1).to(event.q.device, torch.float32)
        masses = event.apply(groups.expand(1, event.q.shape[1], *groups.shape))[0][:, rows].float().cpu()
        visual_sink, nonsink, text_sink = masses.unbind(-1)
        visual = visual_sink + nonsink
        centric = (visual >= self.probe.min_visual_mass) & (nonsink >= self.probe.min_nonsink_ratio * visual)
        asked = rows.to(event.q.device, torch.float32)[None, None, :, None].expand(1, event.q.shape[1], -1, 1)
        received = event.transpose_apply(asked)[0, ..., 0].float().cpu() / rows.sum()
        self.seen[layer] |= {
            "received": received.mean(0).numpy(),
            "visual_share": visual.mean(-1).numpy(),
            "visual_sink_share": visual_sink.mean(-1).numpy(),
            "text_sink_share": text_sink.mean(-1).numpy(),
            "image_centric": centric.float().mean(-1).numpy(),
        }

    def result(self) -> xr.Dataset:
        layers = sorted(layer for layer, seen in self.seen.items() if "received" in seen)
        data = {
            name: Row(("layer", *dims), stacked([self.seen[layer][name] for layer in layers], dtype), units, said)
            for name, (dims, dtype, units, said) in VARIABLES.items()
        }
        coordinates = {
            "layer": layers,
            "head": np.arange(data["visual_share"].values.shape[1]),
            "token": np.arange(self.context.n_tokens),
            "token_text": ("token", np.array(self.context.str_tokens, dtype=object)),
            "rank": np.arange(MOST),
        }
        attrs = {
            "title": "Visual sinks",
            "description": "Sinks among image and text tokens, and what the text behind the image attends to",
            "n_tokens": self.context.n_tokens,
            "tau": self.tau,
            "text_rows": int(self.rows.sum()),
        }
        return described(data, coordinates, attrs)


# name: (dimensions after layer, dtype, units, description)
VARIABLES: dict[str, tuple[tuple[str, ...], str, str, str]] = {
    "phi": (("token",), "float32", "1", "φ: largest |x| of a sink channel over the token's root mean square"),
    "is_sink": (("token",), "int8", "1", "1 where φ reaches tau, for tokens of text and image alike"),
    "visual_sinks": ((), "int32", "token", "how many image tokens are sinks"),
    "sink_channel": (("rank",), "int32", "channel", "channels that φ looks at, the largest first; -1: no more"),
    "received": (
        ("token",),
        "float32",
        "1",
        "attention from the text behind the image, mean over rows and heads",
    ),
    "visual_share": (("head",), "float32", "1", "share of its attention that this text gives to the image"),
    "visual_sink_share": (("head",), "float32", "1", "share that it gives to image tokens that are sinks"),
    "text_sink_share": (("head",), "float32", "1", "share that it gives to other tokens that are sinks"),
    "image_centric": (("head",), "float32", "1", "share of its rows that look at the image and not just at its sinks"),
}
