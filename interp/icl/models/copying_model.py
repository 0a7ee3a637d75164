"""The model that has to pair inputs with targets itself: one token for each x, one for each y.

Source: von Oswald et al. 2023, section 5 and its released notebook. Layer 1 is softmax attention, layer 2 linear;
tokens x_1, (0..0, y_1), x_2, ..., x_q carry sinusoidal position features. Once trained, layer 1 copies each y into the
token of its x and the prediction is that of ONE step of gradient descent. Linear attention in both did not train.
"""

from __future__ import annotations

import math
from typing import Literal

from interp.errors import InterpError
from interp.icl.models.attention_regressor import RegressorConfig
from interp.icl.models.training import Recipe

LAYERS = 2
INIT_VARIANCE = 0.02  # ten times that of the other models


def copying_recipe(d_in: int = 10, n_ctx: int = 10, variant: Literal["code", "paper"] = "code") -> Recipe:
    """The model's shape and how it is trained; `AttentionRegressor(copying_recipe().cfg, seed)` is the model.

    Paper and released code disagree on the number of position features (20 and 10; the default is the code's, whose
    figures they are) and on the law of inputs, U(-1, 1) and U(-0.5, 0.5). All else is the code's in both. There the
    prediction is minus the query token's LAST coordinate, which is a position feature and not where y tokens hold y.

    Examples:
        >>> interp.icl.copying_recipe().cfg.layout
        'interleaved'
    """
    if variant not in ("code", "paper"):
        raise InterpError(f"variant is 'code' or 'paper', not {variant!r}.")
    n_pos_enc = 10 if variant == "code" else 20
    cfg = RegressorConfig(
        d_in=d_in,
        n_ctx=n_ctx,
        n_layers=LAYERS,
        attention=("softmax", "linear"),
        layout="interleaved",
        n_pos_enc=n_pos_enc,
        readout="last",
        init_std=math.sqrt(INIT_VARIANCE / (LAYERS * (d_in + n_pos_enc))),
    )
    return Recipe(variant, cfg, 0.5 if variant == "code" else 1.0, lr=1e-3, betas=(0.9, 0.98), clip=10.0)
