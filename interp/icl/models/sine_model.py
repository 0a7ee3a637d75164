"""Sine regression: an MLP makes features, one linear attention layer (or one fixed step of descent) fits them.

Source: von Oswald et al. 2023, section 4 and its released notebook. A token (x, y) is embedded linearly into 40
coordinates and changed by an MLP with a residual connection; the last coordinate is the y slot. Then comes one linear
attention layer: trained, or the constructed gradient step on the first 39 coordinates with only embedding and MLP
trained. Both start from the same features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.icl.models.attention_regressor import AttentionRegressor, Mlp, RegressorConfig
from interp.icl.models.construction import construct_gd
from interp.icl.models.training import Sample
from interp.icl.tasks.function_classes import Sines as Sines
from interp.icl.tasks.regression import make_regression

WIDTH, HIDDEN = 40, 160
ETA = 0.1


class SineRegressor(AttentionRegressor):
    """`model(X, y, xq)` with X [batch, context, 1], y [batch, context] and xq [batch, 1]; hook points as the base's.

    `hook_embed` is what embedding and MLP make of the prompt. Initial weights of the embedding and of the MLP have
    variance 1 / fan-in (the released code's library default), those of attention `cfg.init_std`.

    Examples:
        >>> tasks = interp.icl.sine_tasks()(20, seed=torch.Generator().manual_seed(0))
        >>> interp.icl.SineRegressor()(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([20])
    """

    def __init__(self, cfg: RegressorConfig | None = None, seed: int = 0) -> None:
        super().__init__(cfg or RegressorConfig(d_in=WIDTH - 1), seed)

    @classmethod
    def with_gd_layer(cls, eta: float = ETA, seed: int = 0) -> Self:
        """The control: attention is one fixed mean step of size `eta`; only embedding and MLP are trained."""
        model = cls(seed=seed)
        for weight in construct_gd(model, eta).block(0).parameters():
            weight.requires_grad_(False)
        return model

    def tokens(self, X: Tensor, y: Tensor, xq: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """Features of each (x_i, y_i), then of (x_q, 0)."""
        y = y.unsqueeze(-1)
        self._check(X, y, xq, d_in=1)
        pairs = torch.cat([torch.cat([X, y], -1), nn.functional.pad(xq, (0, 1))[:, None]], 1)
        embedded = pairs @ self.W_E
        tokens: Tensor = embedded + self.features(embedded)
        return tokens

    def before_attention(self, X: Tensor, y: Tensor, xq: Tensor) -> Float[Tensor, " batch"]:
        """The prediction that the query's features hold before attention has seen the context."""
        return self.read_out(self.tokens(X, y, xq)[:, -1])

    def _build(self) -> None:
        self.W_E = nn.Parameter(torch.empty(2, self.cfg.d_model))
        self.features = Mlp(self.cfg.d_model, HIDDEN)
        super()._build()

    def _initial_std(self, name: str, weight: Tensor) -> float:
        if name == "W_E" or name.startswith("features."):
            return 1 / math.sqrt(weight.shape[0])
        return super()._initial_std(name, weight)


def sine_tasks(teacher: Sines | None = None) -> Sample:
    """A sampler of prompts with 10 pairs, x uniform on ±5; `Sines()` if no other teacher is given.

    Examples:
        >>> interp.icl.sine_tasks()(20, seed=torch.Generator().manual_seed(0)).X.shape
        torch.Size([20, 10, 1])
    """
    return partial(make_regression, N=10, d=1, half_width=5.0, teacher=teacher or Sines())
