"""Registers of the vision tower: patches whose residual stream outgrows the others', and whether the language model's
sinks stand on the same tokens.

Darcet et al. 2024 (arXiv:2309.16588): large towers use a few patches of little content as scratch paper; their norms
are several times those of others, from the middle of the tower on. Thresholds that were used later differ by model (150
for DINOv2-L, 75 for OpenCLIP-B/16, 100 for the CLIP-L of LLaVA), so that the default is the generic rule, mean + 3
standard deviations of the layer's patches. A class token and padding are no patches and are left out.

LSG (arXiv:2604.03316) tells sinks of the tower (V-sinks) from those of the language model (L-sinks). Here V-sinks are
the image tokens that are made of a high-norm patch, in the tower layer that image tokens are read from; L-sinks are
those of `visual_sinks`. Two random sets share tokens too: each number stands beside what the hypergeometric law
expects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.probes.base import Context, Fold, Probe
from interp.probes.visual_sinks import VisualSinks
from interp.results.described import Row, described
from interp.results.naming import layers_named

if TYPE_CHECKING:
    from interp.lens.image_layout import TokenLayout

Tensor = torch.Tensor
POINT = re.compile(r"vision\.blocks\.(\d+)\.hook_resid_post")
SURE = 0.05
"""What is said to differ from chance happens by chance in so few of many results, all layers of one together."""


@dataclass(frozen=True)
class VisionRegisters(Probe):
    """High-norm patches of every layer of the tower, where they emerge, and how well they agree with visual sinks.

    Args:
        sigmas: a patch is high-norm from so many standard deviations above the mean norm of the layer's patches on.
        threshold: the norm above which a patch is high-norm, instead.
        channels: as in `visual_sinks`, whose sinks of the language model are compared.
        tau_rel: as in `visual_sinks`.
        over_median: as in `visual_sinks`.

    Examples:
        >>> interp.VisionRegisters(threshold=100.0).sigmas
        3.0
    """

    name: ClassVar[str] = "vision_registers"
    reads: ClassVar[Literal["text", "tasks", "images"]] = "images"
    sigmas: float = 3.0
    threshold: float | None = None
    channels: int | tuple[int, ...] | None = None
    tau_rel: float = 0.3125
    over_median: float = 250.0

    def __post_init__(self) -> None:
        if self.sigmas <= 0:
            raise InterpError(f"{self.name}: sigmas should be above 0, found {self.sigmas}.")
        if self.threshold is not None and self.threshold <= 0:
            raise InterpError(f"{self.name}: threshold is a norm above 0, found {self.threshold}.")
        _ = self.sinks  # which checks the settings that are its own

    @property
    def sinks(self) -> VisualSinks:
        """The probe of the language model's sinks."""
        return VisualSinks(channels=self.channels, tau_rel=self.tau_rel, over_median=self.over_median)

    def begin(self, context: Context) -> Fold:
        layout = context.with_images(self.name)
        points = {name: int(found[1]) for name in context.lens.hook_dict if (found := POINT.fullmatch(name))}
        if not points:
            raise InterpError(f"{self.name}: no blocks of a tower were found in {context.cfg.architecture}.")
        return RegisterFold(self, context, layout, points)

    def findings(self, result: xr.Dataset) -> list[str]:
        layers, found = result["tower_layer"].values, result["registers"].values
        patches, read = result.sizes["patch"], result.attrs["read_layer"]
        rule = f"norm above {self.threshold:g}" if self.threshold else f"norm above mean + {self.sigmas:g}σ"
        if self.threshold is None and (patches - 1) / patches**0.5 <= self.sigmas:
            return [
                f"Of {patches} patches none can lie {self.sigmas:g} standard deviations above their mean; give a norm "
                "to exceed (threshold) or a larger picture."
            ]
        if not found.any():
            return [f"No layer of the tower has high-norm patches ({rule})."]
        most = int(found.argmax())
        sentences = [
            f"The tower has high-norm patches ({rule}) in {layers_named(layers[found > 0].tolist())}; most in layer "
            f"{layers[most]}, {found[most]:,} of {patches:,} ({found[most] / patches:.1%})."
        ]
        emerged = result["emerged"].values
        if len(known := emerged[emerged >= 0]):
            sentences.append(
                f"Image tokens are read from layer {read}, where {len(known):,} patches are high-norm; they have been "
                f"since layer {int(np.median(known))} (median; the first since layer {known.min()})."
            )
        return [*sentences, *self._agreement(result)]

    def _agreement(self, result: xr.Dataset) -> list[str]:
        if result.attrs["agreement"] != "measured":
            return [f"Nothing is said of the language model's sinks: {result.attrs['agreement']}."]
        p = result["overlap_p"].values
        differs = np.isfinite(p) & (p * np.isfinite(p).sum() < SURE)
        more = result["precision"].values > result["chance_precision"].values
        sentences = []
        for which, word in ((differs & more, "more"), (differs & ~more, "less")):
            if which.any():
                at = int(np.where(which, p, np.inf).argmin())
                one = result.isel(layer=at)
                sentences.append(
                    f"Tokens of high-norm patches are sinks of the language model {word} often than chance in "
                    f"{layers_named(result['layer'].values[which].tolist())}; in layer {int(one['layer'])} "
                    f"{float(one['precision']):.0%} of them are (chance: {float(one['chance_precision']):.0%}), and "
                    f"{float(one['recall']):.0%} of the sinks are such tokens (chance: "
                    f"{float(one['chance_recall']):.0%})."
                )
        return sentences


class RegisterFold(Fold):
    def __init__(
        self, probe: VisionRegisters, context: Context, layout: TokenLayout, points: Mapping[str, int]
    ) -> None:
        self.probe, self.context, self.points = probe, context, points
        self.image = layout.modality == "image"
        self.patches = layout.patches
        self.sinks = probe.sinks.begin(context)
        self.norms: dict[int, list[Tensor]] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        tower = {name: partial(self.leave, layer) for name, layer in self.points.items()}
        return {**tower, "hook_resid_pre": self.sinks.enter}

    def leave(self, tower_layer: int, _: int, residual: Tensor) -> None:
        """Keep the norms of one call of a block: towers pack images in a row, or call for each by itself."""
        self.norms.setdefault(tower_layer, []).append(residual.float().norm(dim=-1).flatten().cpu())

    def result(self) -> xr.Dataset:
        layers = sorted(self.norms)
        each = [torch.cat(self.norms[layer]).numpy() for layer in layers]
        if len(counts := sorted({len(one) for one in each})) > 1:
            raise InterpError(
                f"{self.probe.name}: the tower of {self.context.cfg.architecture} merges patches on its way "
                f"({counts[0]:,} to {counts[-1]:,} in a layer), so that none can be followed; leave this probe out."
            )
        norms = np.stack(each)
        rows, laid, why_not = norms.shape[1], self.patches, ""
        if laid is None or len(laid.token) != rows:
            laid, why_not = None, "which tokens the tower's rows go into could not be measured for this text"
        elif not laid.apart:
            why_not = "each row of the tower goes into several tokens"
        is_patch = np.ones(rows, bool) if laid is None else laid.is_patch
        norms = norms[:, is_patch]
        read = layers[-1] if laid is None else laid.block
        limit = norms.mean(1) + self.probe.sigmas * norms.std(1)
        if self.probe.threshold is not None:
            limit = np.full(len(layers), self.probe.threshold, norms.dtype)
        high = norms > limit[:, None]
        token = np.full(is_patch.sum(), -1) if laid is None or why_not else laid.token[is_patch]
        data: dict[str, Row] = {
            "patch_norm": Row(("tower_layer", "patch"), norms, "1", "L2 norm of a patch in the block's output"),
            "is_register": Row(("tower_layer", "patch"), high.astype(np.int8), "1", "1 where the norm is high"),
            "registers": Row(("tower_layer",), high.sum(1).astype(np.int32), "patch", "how many patches are high-norm"),
            "register_share": Row(("tower_layer",), high.mean(1), "1", "share of the patches that are high-norm"),
            "norm_limit": Row(("tower_layer",), limit, "1", "norm above which a patch is high-norm"),
            "norm_median": Row(("tower_layer",), np.median(norms, 1), "1", "median norm of the patches"),
            "norm_largest": Row(("tower_layer",), norms.max(1), "1", "largest norm of a patch"),
            "emerged": Row(("patch",), since(high, layers, read), "layer", SINCE),
        }
        data |= self.agreement(high[layers.index(read)], token, not why_not)
        coordinates = {
            "tower_layer": layers,
            "patch": np.arange(norms.shape[1]),
            "patch_row": ("patch", np.flatnonzero(is_patch), {"description": "row of the tower's stream"}),
            "patch_token": ("patch", token, {"description": "token that is made of the patch; -1: none, or unknown"}),
            "layer": sorted(self.sinks.sinks),
            "token": np.arange(self.context.n_tokens),
            "token_text": ("token", np.array(self.context.str_tokens, dtype=object)),
        }
        attrs = {
            "title": "Registers of the vision tower",
            "description": "High-norm patches by tower layer, and their agreement with the language model's sinks",
            "n_tokens": self.context.n_tokens,
            "read_layer": read,
            "rows_left_out": int((~is_patch).sum()),
            "left_out": LEFT_OUT if (~is_patch).any() else "nothing",
            "agreement": why_not or "measured",
        }
        return described(data, coordinates, attrs)

    def agreement(self, high: np.ndarray, token: np.ndarray, known: bool) -> dict[str, Row]:
        """V-sinks and L-sinks, and how many tokens they share in each layer of the language model."""
        made = np.zeros(self.context.n_tokens, bool)
        made[token[high & (token >= 0)]] = True
        made &= self.image
        layers = sorted(self.sinks.sinks)
        sinks = np.stack([self.sinks.sinks[layer].numpy() for layer in layers]) & self.image
        nothing = dict.fromkeys(SHARED, np.nan)
        each = [shared(made[self.image], found[self.image]) if known else nothing for found in sinks]
        v_sink = made.astype("float32") if known else np.full(len(made), np.nan, "float32")
        data = {
            "is_v_sink": Row(("token",), v_sink, "1", "1 for image tokens of a high-norm patch; NaN where unknown"),
            "is_l_sink": Row(("layer", "token"), sinks.astype(np.int8), "1", "1 for image tokens with φ at least tau"),
        }
        for name, (units, said) in SHARED.items():
            data[name] = Row(("layer",), np.array([one[name] for one in each], "float32"), units, said)
        return data


def since(high: np.ndarray, layers: list[int], read: int) -> np.ndarray:
    """Of each patch that is high-norm in the layer `read` the first layer since when it has been; -1 of the others."""
    upto = high[: layers.index(read) + 1][::-1]
    unbroken = np.logical_and.accumulate(upto, 0).sum(0)
    first = np.asarray(layers)[layers.index(read) + 1 - np.maximum(unbroken, 1)]
    return np.where(unbroken > 0, first, -1).astype(np.int32)


def shared(v: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """What two sets of image tokens share, beside what random sets of these sizes would; p is two-sided."""
    from scipy.stats import hypergeom  # slow to import

    n, n_v, n_l = len(v), int(v.sum()), int(found.sum())
    both = int((v & found).sum())
    numbers = dict.fromkeys(SHARED, np.nan) | {"overlap": float(both)}
    if not n_v or not n_l:
        return numbers
    drawn = hypergeom(n, n_v, n_l)
    k = np.arange(max(0, n_v + n_l - n), min(n_v, n_l) + 1)
    return {
        "overlap": float(both),
        "precision": both / n_v,
        "recall": both / n_l,
        "jaccard": both / (n_v + n_l - both),
        "chance_precision": n_l / n,
        "chance_recall": n_v / n,
        "chance_jaccard": float((drawn.pmf(k) * k / (n_v + n_l - k)).sum()),
        "overlap_p": float(min(1.0, 2 * min(drawn.cdf(both), drawn.sf(both - 1)))),
    }


SINCE = "of patches that are high-norm where image tokens are read (read_layer): since which layer; -1: not high-norm"
LEFT_OUT = "rows that show no part of a picture: a class token, padding"
# name: (units, description)
SHARED = {
    "overlap": ("token", "image tokens that are both V-sinks and L-sinks"),
    "precision": ("1", "share of the V-sinks that are L-sinks; NaN where either has none"),
    "recall": ("1", "share of the L-sinks that are V-sinks; NaN where either has none"),
    "jaccard": ("1", "tokens that are both over tokens that are either; NaN where either has none"),
    "chance_precision": ("1", "precision expected of as many random image tokens"),
    "chance_recall": ("1", "recall expected of as many random image tokens"),
    "chance_jaccard": ("1", "Jaccard index expected of as many random image tokens"),
    "overlap_p": ("1", "probability of an overlap as far from chance, two-sided, by the hypergeometric law"),
}
