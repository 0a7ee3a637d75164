"""One layer applied again and again to the y slots only: does a layer trained for one step iterate like descent?

Source: von Oswald et al. 2023, section 4 and the released notebook. x slots stay as they were, and what the layer adds
to the y slots of context and query is multiplied by a damping factor. A constructed layer rolled out the same way is
damped gradient descent, so the control is the same function on another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.tasks.regression import Tasks
from interp.results.described import Row, described, with_error


@torch.no_grad()
def rollout(
    model: AttentionRegressor, tasks: Tasks, steps: int, damping: float = 1.0
) -> Float[Tensor, "steps_and_start batch"]:
    """Predictions after 0, 1, ..., `steps` applications of the model's first layer, [steps + 1, batch].

    Predictions may overflow to infinity where the iteration diverges. Raises InterpError for a model whose tokens have
    y slot of their own, or whose blocks do more than attend, and for fewer than 0 steps.
    """
    if steps < 0:
        raise InterpError(f"a layer is applied 0 times or more, not {steps}.")
    cfg = model.cfg
    if cfg.layout != "concat" or cfg.d_mlp or cfg.layer_norm or cfg.clamp is not None:
        raise InterpError(
            "a layer is rolled out on concat tokens, which have a y slot, without MLP, LayerNorm and clamp."
        )
    layer, slot = model.block(0), model.cfg.y_slot
    tokens = model.tokens(tasks.X, tasks.y, tasks.xq)
    predictions = [model.read_out(tokens[:, -1])]
    for _ in range(steps):
        added = layer.fast(tokens, tokens[:, :-1])
        tokens[..., slot] += damping * added[..., slot]
        predictions.append(model.read_out(tokens[:, -1]))
    return torch.stack(predictions)


def rollout_losses(
    models: Mapping[str, AttentionRegressor], tasks: Tasks, steps: int, dampings: Sequence[float] = (1.0, 0.875, 0.75)
) -> xr.Dataset:
    """Half the mean squared error after each application, `loss` [model, damping, step] with its standard error.

    A diverged iteration has an infinite loss or none (NaN); nothing is left out.

    Examples:
        >>> tasks = interp.icl.make_regression(200, N=10, d=3, seed=1)
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> found = interp.icl.rollout_losses({"written": interp.icl.construct_gd(model, eta=1.0)}, tasks, steps=2)
        >>> found.loss.dims
        ('model', 'damping', 'step')
    """
    halves = np.stack([
        np.stack([_half_squares(rollout(model, tasks, steps, damping), tasks.yq) for damping in dampings])
        for model in models.values()
    ])  # fmt: skip
    dims = ("model", "damping", "step")
    with np.errstate(invalid="ignore", over="ignore"):
        mean, spread = halves.mean(-1), halves.std(-1, ddof=1) / np.sqrt(halves.shape[-1])
    loss = Row(dims, mean, "units of y²", "half the mean squared error of the query")
    return described(
        with_error("loss", loss, spread, " over tasks"),
        coords={"model": list(models), "damping": list(dampings), "step": np.arange(steps + 1)},
        attrs={"tasks": len(tasks), **tasks.about},
    )


def _half_squares(predictions: Float[Tensor, "step batch"], targets: Tensor) -> np.ndarray:
    halves = 0.5 * (predictions - targets).double().square()
    return halves.reshape(*halves.shape[:2], -1).sum(-1).cpu().numpy()
