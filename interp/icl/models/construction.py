"""Attention weights that are gradient descent: the construction of a linear layer, and of GD++.

Source: von Oswald et al. 2023 ("Transformers learn in-context by gradient descent"), Proposition 1 and appendix A.10.
A layer whose scores are x_i · x_j and whose values are the residuals W0 x_i - y_i moves every y slot by one step of
gradient descent on (1/2N) Σ ‖W x_i - y_i‖². Context slots then hold residuals, so K layers are K steps. Weights are
stored for row vectors (`token @ W`), transposed against the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.models.attention_regressor import AttentionLayer, AttentionRegressor, RegressorConfig
from interp.icl.tasks.regression import start_weights

Target = TypeVar("Target", AttentionRegressor, AttentionLayer)
Sizes = float | Sequence[float] | Tensor


@torch.no_grad()
def construct_gd(
    target: Target,
    eta: Sizes,
    W0: Float[Tensor, "d_out d_in"] | None = None,
    *,
    step: Literal["mean", "sum"] = "mean",
    precond: Float[Tensor, "d_in d_in"] | None = None,
) -> Target:
    """Write gradient descent on least squares into a model (one step a layer) or one of its layers, and return it.

    Args:
        target: a model of linear layers on `concat` tokens, or `model.block(l)`. Heads after the first become zero.
        eta: step size, one number or one for each layer of an untied model.
        W0: where descent starts, zero by default. A model keeps it in `model.W0`, from which its query token takes the
            y slot -W0 x_q; whoever constructs a bare layer has to set `model.W0` too.
        step: what eta multiplies: the "mean" gradient over `cfg.n_ctx` pairs (eta / n_ctx goes into the weights, and
            prompts of N pairs get a mean step of eta · N / n_ctx) or the "sum".
        precond: a matrix that multiplies every gradient, Δw = -precond · gradient.

    Raises:
        InterpError: the model has parts that gradient descent has no use for (softmax, MLP, norms, another layout), or
            sizes, `W0`, `step` or `precond` are none for it. A clamp is left in place: the model is descent while no
            token reaches it.

    Examples:
        >>> tasks = interp.icl.make_regression(500, N=10, d=3, seed=1)
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> written = interp.icl.construct_gd(model, eta=5.0)
        >>> one_step = interp.icl.gd(1, eta=5.0)(tasks.X, tasks.y, tasks.xq)
        >>> torch.allclose(written(tasks.X, tasks.y, tasks.xq), one_step, atol=1e-5)
        True
    """
    if step not in ("mean", "sum"):
        raise InterpError(f"step={step!r}: choose 'mean' (eta / n_ctx) or 'sum' (eta).")
    layers, sizes = _layers(target), _per_layer(target, eta, "eta")
    cfg = target.cfg
    start = torch.zeros(cfg.d_out, cfg.d_in) if W0 is None else start_weights(W0, cfg.d_out, cfg.d_in)
    precond = None if precond is None else torch.as_tensor(precond)
    if precond is not None and precond.shape != (cfg.d_in, cfg.d_in):
        raise InterpError(f"precond is [{cfg.d_in}, {cfg.d_in}] for this model, not {list(precond.shape)}.")
    for layer, size in zip(layers, sizes, strict=True):
        _clear(layer)
        x, y = slice(0, cfg.d_in), cfg.y_slot
        identity = torch.eye(cfg.d_in)
        layer.W_K[0, x, x] = identity.to(layer.W_K)
        layer.W_Q[0, x, x] = (identity if precond is None else precond).to(layer.W_Q)
        layer.W_V[0, x, y] = start.mT.to(layer.W_V)
        layer.W_V[0, y, y] = -torch.eye(cfg.d_out).to(layer.W_V)
        layer.W_O[0] = torch.eye(cfg.d_model).to(layer.W_O) * (size / cfg.n_ctx if step == "mean" else size)
    if isinstance(target, AttentionRegressor):
        target.W0.copy_(start)
    return target


@torch.no_grad()
def construct_gdpp(model: AttentionRegressor, eta: Sizes, gamma: Sizes) -> AttentionRegressor:
    """Write GD++ into a model, one step a layer, and return it: residuals take a mean step of size eta, and inputs
    become x_j - gamma Σ_i x_i (x_i · x_j), all from the values before the layer.

    `eta` (divided by `cfg.n_ctx` in the weights) and `gamma` (on the unnormalised sum) are one number, or one for each
    layer of an untied model. The last layer's gamma has no effect on the prediction. Raises InterpError as
    `construct_gd`.

    Examples:
        >>> cfg = interp.icl.RegressorConfig(d_in=3, n_ctx=10, n_layers=2)
        >>> written = interp.icl.construct_gdpp(interp.icl.AttentionRegressor(cfg), eta=5.0, gamma=0.1)
        >>> interp.icl.lsa_products(written, layer=1).KQ.shape
        torch.Size([1, 4, 4])
    """
    construct_gd(model, eta)
    cfg = model.cfg
    for layer, size in zip(_layers(model), _per_layer(model, gamma, "gamma"), strict=True):
        x = slice(0, cfg.d_in)
        layer.W_V[0, x, x] = torch.eye(cfg.d_in).to(layer.W_V)
        layer.W_O[0, x, x] = -size * torch.eye(cfg.d_in).to(layer.W_O)
    return model


def _layers(target: AttentionRegressor | AttentionLayer) -> list[AttentionLayer]:
    """The distinct layers to write to, once it is certain that they can be gradient descent."""
    if not isinstance(target, (AttentionRegressor, AttentionLayer)):
        raise InterpError(
            f"weights are written into an AttentionRegressor or one of its layers, not {type(target).__name__}."
        )
    if isinstance(target, AttentionLayer):
        layers = [target]
    else:
        layers = [target.block(l) for l in range(_n_distinct(target.cfg))]
    cfg = target.cfg
    obstacles = {
        "softmax attention": any(layer.softmax for layer in layers),
        "an MLP": cfg.d_mlp > 0,
        "LayerNorm": cfg.layer_norm,
        "interleaved tokens": cfg.layout != "concat",
        "no residual stream": not cfg.residual,
        "a read-out other than minus the y slot": cfg.readout_sign != -1 or cfg.readout_slot != cfg.y_slot,
        f"heads of size {cfg.head_size} in place of d_model = {cfg.d_model}": cfg.head_size != cfg.d_model,
    }
    if found := [what for what, present in obstacles.items() if present]:
        raise InterpError(f"gradient descent cannot be written into a model with {found[0]}; make one without.")
    return layers


def _n_distinct(cfg: RegressorConfig) -> int:
    return 1 if cfg.recurrent else cfg.n_layers


def _per_layer(target: AttentionRegressor | AttentionLayer, size: Sizes, name: str) -> list[float]:
    count = 1 if isinstance(target, AttentionLayer) else _n_distinct(target.cfg)
    if isinstance(size, Tensor):
        size = size.tolist()
    if not isinstance(size, Sequence):
        return [float(size)] * count
    if len(size) != count:
        raise InterpError(f"{name} has {len(size)} values for {count} layers with weights of their own.")
    return [float(one) for one in size]


def _clear(layer: AttentionLayer) -> None:
    for weight in layer.parameters():
        weight.zero_()
