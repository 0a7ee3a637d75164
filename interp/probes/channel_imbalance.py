"""Which channels of keys and values carry the magnitude, and for how many tokens they are the same.

Keys of real models have a few channels that are large for nearly every token; values do not (ThinK, Xu et al. 2025,
arXiv:2407.21018, figure 4; KIVI, Liu et al. 2024, arXiv:2402.02750). That is why keys can be pruned by channel. A
rotary embedding mixes each channel with its partner, so keys are measured before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from interp_kernels import channel_energy

from interp.probes.base import Context, Fold, Probe
from interp.results.columns import Column, number
from interp.results.described import Row, described
from interp.results.naming import layers_named
from interp.results.ragged import stacked
from interp.results.wording import among
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor

TENSORS = ("key_pre_rotary", "key", "value")
BINS = 64  # most token bins of `magnitude`: enough for a surface plot


@dataclass(frozen=True)
class ChannelImbalance(Probe):
    """Energy of every key and value channel, and how unevenly it is spread, for each layer and key/value head.

    Examples:
        >>> energy = interp.probe(lens, prompt, ["channel_imbalance"])["channel_imbalance"].energy
        >>> energy.dims
        ('tensor', 'layer', 'kv_head', 'channel')
    """

    name: ClassVar[str] = "channel_imbalance"

    def begin(self, context: Context) -> Fold:
        return ImbalanceFold(context)

    def findings(self, result: xr.Dataset) -> list[str]:
        ratio = result["max_over_median"].transpose("tensor", "layer", "kv_head")
        keys, values = (ratio.sel(tensor=t).values for t in ("key", "value"))
        if not np.isfinite(keys).any() or not np.isfinite(values).any():
            return ["No head has an imbalance of channels here: the median channel's energy is 0, or not a number."]
        key, value = (float(np.nanmedian(x)) for x in (keys, values))
        sentences = [
            f"In the median head the strongest key channel has {key:.3g} times the energy of the median channel, the "
            f"strongest value channel {value:.3g} times{among(keys, 'heads')}: keys are {_beside(key, value)} values."
        ]
        if f"{np.nanmin(keys):.3g}" != f"{np.nanmax(keys):.3g}":
            layer, head = np.unravel_index(np.nanargmax(keys), keys.shape)
            energy = result["energy"].sel(tensor="key").isel(layer=layer, kv_head=head)
            sentences.append(
                f"The most unbalanced keys are those of layer {int(result['layer'][layer])}, key/value head "
                f"{int(result['kv_head'][head])}: channel {int(np.nanargmax(energy))} has {keys[layer, head]:.3g} "
                "times the median energy."
            )
        if "key_pre_rotary" in ratio["tensor"].values:
            sentences += self._rotation(ratio.sel(tensor="key_pre_rotary").values, keys)
        if result.attrs["n_tokens"] > 1:
            consistency = result["token_consistency"].median(["layer", "kv_head"])
            of_keys, of_values = (float(consistency.sel(tensor=t)) for t in ("key", "value"))
            sentences.append(
                "How far tokens share one ranking of channels: Spearman's correlation of a token's magnitudes with its "
                f"head's energies is {of_keys:.2f} for keys and {of_values:.2f} for values (mean over tokens, median "
                "head)."
            )
        return sentences

    @staticmethod
    def _rotation(before: np.ndarray, keys: np.ndarray) -> list[str]:
        """What rotation does to the imbalance `[layer, kv_head]`, in the layers whose keys are known before it."""
        known = np.isfinite(before).any(1)
        if not known.any():
            return []
        was, now = (float(np.nanmedian(x[known])) for x in (before, keys))
        where = "" if known.all() else f" in the {known.sum()} of {len(known)} layers whose keys are known before it"
        change = f"leaves keys {'less' if now < was else 'more'} unbalanced ({now:.3g})"
        if f"{was:.3g}" == f"{now:.3g}":
            change = "leaves that ratio as it is"
        return [
            f"Before the rotary embedding the median head's ratio is {was:.3g}{where}: rotation, which mixes each "
            f"channel with its partner, {change}."
        ]

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        found = []
        for tensor in ("key", "value"):
            ratio = result["max_over_median"].sel(tensor=tensor).median("kv_head").values
            about = f"strongest over median channel energy of {tensor}s, median over key/value heads"
            found.append(Column(f"{tensor} imbalance", about, [f"{number(x)}×" for x in ratio]))
        return found


class ImbalanceFold(Fold):
    def __init__(self, context: Context) -> None:
        self.n_tokens = context.n_tokens
        self.bin = -(-self.n_tokens // BINS)  # tokens a bin, rounded up
        self.absent: Mapping[str, str] = context.lens.absent
        self.layers: dict[int, dict[str, dict[str, np.ndarray]]] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"attn.hook_event": self.attend}

    def attend(self, layer: int, event: AttentionEvent) -> None:
        seen = {"key": self._measure(event.k, event.key_energy), "value": self._measure(event.v)}
        if event.pre_rotary_k is not None:
            seen["key_pre_rotary"] = self._measure(event.pre_rotary_k)
        self.layers[layer] = seen

    def _measure(self, x: Tensor, energy: Tensor | None = None) -> dict[str, np.ndarray]:
        """Everything about one tensor `x [1, kv_head, token, channel]`, whose `energy` may be known already."""
        size = np.abs(x[0].float().cpu().numpy())
        energies = (channel_energy(x) if energy is None else energy)[0].double().cpu().numpy()
        starts = np.arange(0, size.shape[1], self.bin)
        lengths = np.diff(np.append(starts, size.shape[1]))
        magnitude = np.add.reduceat(size, starts, axis=1) / lengths[:, None]
        metrics = imbalance(energies) | {"token_consistency": token_consistency(size, energies)}
        numbers = {"energy": energies, "magnitude": magnitude, **metrics}
        return {name: value.astype(np.float32) for name, value in numbers.items()}

    def result(self) -> xr.Dataset:
        layers = sorted(self.layers)
        tensors = [t for t in TENSORS if any(t in self.layers[layer] for layer in layers)]
        data = {}
        for name, (dims, units, description) in VARIABLES.items():
            values = _grid([[self.layers[layer].get(t, {}).get(name) for layer in layers] for t in tensors])
            data[name] = Row(("tensor", "layer", "kv_head", *dims), values, units, description)
        _, _, kv_heads, bins, channels = data["magnitude"].values.shape
        coordinates = {
            "tensor": tensors,
            "layer": layers,
            "kv_head": np.arange(kv_heads),
            "channel": np.arange(channels),
            "token_bin": np.arange(bins) * self.bin,
        }
        attrs = {
            "title": "Channel imbalance of keys and values",
            "description": "Energy of each key and value channel, and how unevenly channels share it",
            "n_tokens": self.n_tokens,
            "tokens_per_bin": self.bin,
            "pre_rotary": self._pre_rotary(layers),
        }
        return described(data, coordinates, attrs)

    def _pre_rotary(self, layers: list[int]) -> str:
        """What `key_pre_rotary` holds, or in which layers it is missing and why."""
        without = [layer for layer in layers if "key_pre_rotary" not in self.layers[layer]]
        if not without:
            return "keys after QK-norm (where there is one), before rotation"
        where = "any layer" if len(without) == len(layers) else layers_named(without)
        unknown = "keys are not rotated, or cannot be rotated back"
        return f"not available in {where}: {self.absent.get(f'blocks.{without[0]}.attn.hook_pre_rot_k', unknown)}"


def _beside(key: float, value: float) -> str:
    return "as unbalanced as" if f"{key:.3g}" == f"{value:.3g}" else f"{key / value:.3g} times as unbalanced as"


def imbalance(energy: np.ndarray) -> dict[str, np.ndarray]:
    """How unevenly `energy [..., channel]` is spread: the metrics of `VARIABLES` that need nothing else."""
    channels = energy.shape[-1]
    rising = np.sort(energy, axis=-1)
    total = rising.sum(-1)
    top = -(-channels // 10)
    with np.errstate(divide="ignore", invalid="ignore"):  # a head that is zero everywhere has no imbalance: NaN
        return {
            "max_over_median": rising[..., -1] / np.median(energy, axis=-1),
            "top10_share": rising[..., -top:].sum(-1) / total,
            "gini": (rising * (2 * np.arange(1, channels + 1) - channels - 1)).sum(-1) / (channels * total),
            "participation_ratio": total**2 / (channels * np.square(energy).sum(-1)),
        }


def token_consistency(size: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Mean over tokens of Spearman's correlation over channels: `[kv_head]`, between -1 and 1.

    `size [kv_head, token, channel]` is |x|, `energy [kv_head, channel]`. Ties get successive ranks instead of their
    average: among measured activations they are improbable. NaN for a single channel.
    """
    channels = size.shape[-1]
    middle = (channels - 1) / 2
    rank = np.argsort(np.argsort(energy, axis=-1), axis=-1) - middle
    order = np.argsort(size, axis=-1)  # each token's channels from smallest to largest: one sort is enough
    placed = np.stack([ranks[channel] for ranks, channel in zip(rank, order, strict=True)])
    own = np.arange(channels) - middle
    with np.errstate(invalid="ignore"):
        slope: np.ndarray = placed.mean(1) @ own / np.square(own).sum()
        return slope


def _grid(rows: Sequence[Sequence[np.ndarray | None]]) -> np.ndarray:
    """Arrays as one array with two more axes in front; NaN where one is missing, or narrower than the widest."""
    axes = next(x.ndim for row in rows for x in row if x is not None)
    nothing = np.empty((0,) * axes, np.float32)
    flat = stacked([nothing if x is None else x for row in rows for x in row], np.float32)
    return flat.reshape(len(rows), len(rows[0]), *flat.shape[1:])


# name: (dimensions after tensor, layer and kv_head, units, description)
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "energy": (("channel",), "activation squared", "mean square over tokens, e"),
    "magnitude": (("token_bin", "channel"), "activation", "mean |x| over the tokens of the bin that begins here"),
    "max_over_median": ((), "1", "largest channel energy over the median channel's"),
    "top10_share": ((), "1", "share of the energy in the tenth of the channels (rounded up) that has most"),
    "gini": ((), "1", "Gini coefficient of the channel energies: 0 is balanced, near 1 is all in one channel"),
    "participation_ratio": ((), "1", "(Σe)² / (D Σe²) over D channels: 1 is balanced, 1/D is all in one channel"),
    "token_consistency": ((), "1", "mean over tokens of Spearman's correlation of a token's |x| with e, over channels"),
}
