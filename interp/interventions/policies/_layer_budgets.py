"""D2O's layer budgets: layers whose attention is spread out keep more tokens.

The density of a layer is the variance of its columns' sums, how unevenly its tokens are attended to. Dense layers have
a low one and get a larger share: a softmax over minus the density of all layers, times the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int

Tensor = torch.Tensor
Metric = Literal["code_minmax", "paper_raw", "log", "uniform"]
LEAST = 0.01  # of the prompt, that any layer keeps


def head_variance(
    column_mass: Float[Tensor, "batch head token"], padding: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, " head"]:
    """Variance over the real tokens of the attention received, mean over the batch, summed in fp32."""
    mass = column_mass.float()
    if padding is None:
        return _variance(mass).mean(0)
    rows = [_variance(row[:, int(start) :]) for row, start in zip(mass, padding, strict=True)]
    return torch.stack(rows).mean(0)


def _variance(mass: Float[Tensor, "*rest token"]) -> Float[Tensor, "*rest"]:
    """Unbiased; 0 for a text of one token."""
    return mass.var(-1) if mass.shape[-1] > 1 else mass.new_zeros(mass.shape[:-1])


def density(variance: Float[Tensor, " head"], tokens: int, metric: Metric) -> float:
    """One number for a layer, larger where attention is sparser.

    "code_minmax" (release): mean over heads of the variance rescaled to [0, 1] between the layer's own heads, which
    erases the layer's scale. "paper_raw": mean variance; near one-hot budgets on long prompts. "log" (ours): mean of
    log(1 + v) / log(1 + tokens), in [0, 1] with the scale kept. "uniform": 0 for every layer.
    """
    if metric == "uniform":
        return 0.0
    if metric == "paper_raw":
        return float(variance.mean())
    if metric == "log":
        return float((variance.log1p() / torch.tensor(1.0 + tokens).log()).mean())
    least, most = variance.min(), variance.max()
    return float(((variance - least) / (most - least + 1e-6)).mean())


def layer_shares(densities: Sequence[float], budget: float) -> list[float]:
    """Share of the prompt that each layer keeps: budget * L * softmax(-density), between `LEAST` and 1.

    As released, shares that hit a bound are not made up for elsewhere.
    """
    weights = torch.softmax(-torch.tensor(densities, dtype=torch.float64), 0)
    return (weights * len(densities) * budget).clamp(LEAST, 1.0).tolist()
