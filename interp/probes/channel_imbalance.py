"""Which channels of keys and values carry the magnitude, and for how many tokens they are the same.

Keys of real models have a few channels that are large for nearly every token; values do not (ThinK, Xu et al. 2025,
arXiv:2407.21018, figure 4; KIVI, Liu et al. 2024, arXiv:2402.02750). That is why keys can be pruned by channel. A rotary
embedding mixes each channel with its partner, so keys are measured before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from interp_kernels import channel_energy

from interp.event import AttentionEvent
from interp.probes.base import Context, Fold, Probe

Tensor = torch.Tensor

TENSORS = ("key_pre_rotary", "key", "value")
BINS = 64  # most token bins of `magnitude`: enough for a surface plot


@dataclass(frozen=True)
class ChannelImbalance(Probe):
    """Energy of every key and value channel, and how unevenly it is spread, for each layer and key/value head."""

    name: ClassVar[str] = "channel_imbalance"

    def begin(self, context: Context) -> Fold:
        return ImbalanceFold(context)

    def findings(self, result: xr.Dataset) -> list[str]:
        ratio = result["max_over_median"]
        typical = {str(t): float(ratio.sel(tensor=t).median()) for t in result["tensor"].values}
        key, value = typical["key"], typical["value"]
        sentences = [
            f"In the median head the strongest key channel has {key:.3g} times the energy of the median channel, the strongest "
            f"value channel {value:.3g} times: keys are {key / value:.3g} times as unbalanced as values."
        ]
        worst = ratio.sel(tensor="key").transpose("layer", "kv_head")
        layer, head = np.unravel_index(np.nanargmax(worst.values), worst.shape)
        channel = int(np.nanargmax(result["energy"].sel(tensor="key").isel(layer=layer, kv_head=head)))
        sentences.append(
            f"The most unbalanced key channel is channel {channel} of key/value head {int(result['kv_head'][head])} in layer "
            f"{int(result['layer'][layer])}, with {float(worst[layer, head]):.3g} times its head's median energy."
        )
        if "key_pre_rotary" in typical:
            before = typical["key_pre_rotary"]
            change = "less" if key < before else "more"
            sentences.append(
                f"Before the rotary embedding the median head's ratio is {before:.3g}: rotation, which mixes each channel with its "
                f"partner, leaves keys {change} unbalanced ({key:.3g})."
            )
        consistency = result["token_consistency"].median(["layer", "kv_head"])
        keys, values = float(consistency.sel(tensor="key")), float(consistency.sel(tensor="value"))
        sentences.append(
            f"The ranking of channels is shared by tokens: Spearman's correlation of a token with its head's energies is {keys:.2f} "
            f"for keys and {values:.2f} for values (median head)."
        )
        return sentences


class ImbalanceFold(Fold):
    def __init__(self, context: Context) -> None:
        self.n_tokens = context.n_tokens
        self.bin = -(-self.n_tokens // BINS)  # tokens a bin, rounded up
        self.absent: Mapping[str, str] = context.lens.absent
        self.layers: dict[int, dict[str, dict[str, np.ndarray]]] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"attn.hook_event": self.attend}

    def attend(self, layer: int, event: AttentionEvent) -> None:
        seen = {"key": self._measure(event.k[0], event.key_energy[0])}
        seen["value"] = self._measure(event.v[0], channel_energy(event.v, event.facts.get("key_mask"))[0])
        before = event.pre_rotary_k
        if before is not None:
            seen["key_pre_rotary"] = self._measure(before[0], channel_energy(before, event.facts.get("key_mask"))[0])
        self.layers[layer] = seen

    def _measure(self, x: Tensor, energy: Tensor) -> dict[str, np.ndarray]:
        """Everything about one tensor `x [kv_head, token, channel]` with `energy [kv_head, channel]`."""
        size = np.abs(x.float().cpu().numpy())
        energies = energy.double().cpu().numpy()
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
            data[name] = (("tensor", "layer", "kv_head", *dims), values, {"units": units, "description": description})
        _, _, kv_heads, bins, channels = data["magnitude"][1].shape
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
        return xr.Dataset(data, coordinates, attrs)

    def _pre_rotary(self, layers: list[int]) -> str:
        """Where keys before the rotary embedding are to be found, and why not elsewhere."""
        without = [layer for layer in layers if "key_pre_rotary" not in self.layers[layer]]
        if not without:
            return "keys after QK-norm (where there is one), before rotation"
        where = "any layer" if len(without) == len(layers) else f"layers {', '.join(map(str, without))}"
        why = self.absent.get(
            f"blocks.{without[0]}.attn.hook_pre_rot_k", "keys are not rotated, or cannot be rotated back"
        )
        return f"not available in {where}: {why}"


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
    average: among measured activations they are improbable. One sort a token, whatever the number of channels.
    """
    channels = size.shape[-1]
    rank = np.argsort(np.argsort(energy, axis=-1), axis=-1) - (channels - 1) / 2
    order = np.argsort(size, axis=-1)  # the token's r-th smallest channel
    placed = np.stack([head_rank[head_order] for head_rank, head_order in zip(rank, order, strict=True)])
    own = np.arange(channels) - (channels - 1) / 2
    return placed.mean(1) @ own / np.square(own).sum()


def _grid(rows: list[list[np.ndarray | None]]) -> np.ndarray:
    """Arrays as one array with two more axes in front; NaN where one is missing, or narrower than the widest."""
    known = [x for row in rows for x in row if x is not None]
    shape = np.max([x.shape for x in known], axis=0)
    grid = np.full((len(rows), len(rows[0]), *shape), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, x in enumerate(row):
            if x is not None:
                grid[(i, j, *map(slice, x.shape))] = x
    return grid


VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {  # dimensions after tensor, layer and kv_head; units; description
    "energy": (("channel",), "activation squared", "mean square over tokens, e"),
    "magnitude": (("token_bin", "channel"), "activation", "mean |x| over the tokens of a bin, which the coordinate's token begins"),
    "max_over_median": ((), "1", "largest channel energy over the median channel's"),
    "top10_share": ((), "1", "share of the energy in the tenth of the channels (rounded up) that has most"),
    "gini": ((), "1", "Gini coefficient of the channel energies: 0 is balanced, near 1 is all in one channel"),
    "participation_ratio": ((), "1", "(Σe)² / (D Σe²) over D channels: 1 is balanced, 1/D is all in one channel"),
    "token_consistency": ((), "1", "mean over tokens of Spearman's correlation between a token's |x| and e over channels"),
}  # fmt: skip
