"""The accuracy promised for the spectrum, on the demo model reading 1,024 tokens of English."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.probes import Context, Fold, Probe
from interp.probes.attention_rank import AttentionRank
from interp.seam.event import AttentionEvent
from interp.subjects.texts import demo_text


class FullFold(Fold):
    def __init__(self) -> None:
        self.sigma: dict[int, np.ndarray] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"attn.hook_event": self.attend}

    def attend(self, layer: int, event: AttentionEvent) -> None:
        if layer % 3 == 0:
            self.sigma[layer] = np.stack([torch.linalg.svdvals(head).numpy() for head in event.pattern()[0]])

    def result(self) -> xr.Dataset:
        values = np.stack(list(self.sigma.values()))
        return xr.Dataset({"sigma": (("layer", "head", "component"), values)}, {"layer": list(self.sigma)})


@dataclass(frozen=True)
class FullSpectrum(Probe):
    """Every third layer's singular values, from the written-out pattern."""

    name: ClassVar[str] = "full_spectrum"

    def begin(self, context: Context) -> Fold:
        return FullFold()


@pytest.mark.slow
def test_singular_values_of_the_demo_model_at_1024_tokens() -> None:
    lens = interp.load("demo")
    found = interp.probe(lens, demo_text(), [AttentionRank(), FullSpectrum()], tokens=1024)
    sigma = found["full_spectrum"]["sigma"].values.astype(float)
    ds = found["attention_rank"].sel(layer=found["full_spectrum"]["layer"])
    known = sigma[..., :32]
    error = np.abs(ds["singular_value"].values / known - 1) * (known >= 1e-3 * known[..., :1])
    assert (error.max(-1) < 0.01).mean() >= 0.9

    nuclear = sigma.sum(-1)
    share = sigma / nuclear[..., None]
    effective = np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum(-1))
    for name, truth, typical in (("nuclear_norm", nuclear, 0.02), ("effective_rank", effective, 0.06)):
        miss = np.abs(ds[name].values - truth)
        assert np.sqrt(np.mean((miss / truth) ** 2)) < typical
        assert (miss <= ds[f"{name}_error"].values).mean() > 0.9

    energy = (sigma**2).cumsum(-1) / (sigma**2).sum(-1, keepdims=True)
    rank = np.minimum((energy < 0.9).sum(-1) + 1, 33)
    assert (ds["rank90"].values == rank).mean() > 0.95
    assert np.abs(ds["rank90"].values - rank).max() <= 1
