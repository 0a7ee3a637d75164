"""What the weights of a linear attention layer compute, free of the choice of factors.

Only W_Kᵀ W_Q and P W_V act on tokens, and those only up to a factor that moves from one to the other. So weights are
compared as products, and one layer's whole map has an exact closed form. Sources: von Oswald et al. 2023, section 3 and
its released notebook (products, interpolation); the closed form is derived from the layer and checked against it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.models.attention_regressor import AttentionLayer, AttentionRegressor
from interp.results.described import Row, described

if TYPE_CHECKING:
    from interp.icl.tasks.regression import Tasks

SMALLEST_BETA = 1e-6


class LsaProducts(NamedTuple):
    """The products of one layer for column vectors: head h adds PV[h] Σ_i e_i (e_iᵀ KQ[h] e_q) to token e_q."""

    KQ: Float[Tensor, "head d_model d_model"]
    """W_Kᵀ W_Q, times the layer's scale of scores (1 in linear attention)."""
    PV: Float[Tensor, "head d_model d_model"]
    """P W_V."""


@torch.no_grad()
def lsa_products(model: AttentionRegressor | AttentionLayer, layer: int = 0) -> LsaProducts:
    """KQ and PV of each head of a layer (of `model.block(layer)`), in the weights' dtype.

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> interp.icl.lsa_products(interp.icl.construct_gd(model, eta=5.0)).KQ.shape
        torch.Size([1, 4, 4])
    """
    weights = model if isinstance(model, AttentionLayer) else model.block(layer)
    return LsaProducts((weights.W_K @ weights.W_Q.mT) * weights.scale, (weights.W_V @ weights.W_O).mT)


@torch.no_grad()
def effective_predictor(model: AttentionRegressor, layer: int = 0, tasks: Tasks | None = None) -> xr.Dataset:
    """The layer's exact predictor, as if it were the only one: Σ_i y_i x_iᵀ A_eff x_q and two leak terms.

    With the y row of PV split into (w_x, w_y) and the first columns of KQ into M_xx and M_yx, the prediction is, summed
    over heads and times the read-out's sign,

        (Σ y_i x_i)ᵀ (w_y M_xx + w_x M_yx) x_q  +  w_xᵀ (Σ x_i x_iᵀ) M_xx x_q  +  w_y (Σ y_i²) M_yx x_q.

    The last two terms are even in y, so no linear learner has them. A step of gradient descent is A_eff = η/N · I.

    Returns:
        `A_eff` [input, query_input]; `scale`, the c of the nearest c · I; `distance_to_identity`, ‖A - c I‖_F / ‖A‖_F;
        and given `tasks` (layer 0 only) root mean squares over them of `main`, `x_leak` and `y_leak`, the three terms.

    Raises:
        InterpError: softmax, MLP, LayerNorm, positions, another layout, several targets, a start W0 other than zero, or
            tasks for a later layer or of another shape. A clamp is not looked at: the terms are those without it.

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> found = interp.icl.effective_predictor(interp.icl.construct_gd(model, eta=5.0))
        >>> round(float(found.distance_to_identity), 6)
        0.0
    """
    cfg = model.cfg
    weights = model.block(layer)
    attention_alone = not (weights.softmax or cfg.layer_norm or cfg.d_mlp or cfg.n_pos_enc)
    if not attention_alone or cfg.layout != "concat" or cfg.d_out != 1 or bool(model.W0.any()):
        raise InterpError(
            "an exact predictor needs linear attention alone on concat tokens, one target (d_out=1) and W0 = 0."
        )
    KQ, PV = lsa_products(weights)
    d = cfg.d_in
    w_x, w_y = PV[:, d, :d], PV[:, d, d]
    M_xx, M_yx = KQ[:, :d, :d], KQ[:, d, :d]
    A = cfg.readout_sign * (w_y[:, None, None] * M_xx + w_x[:, :, None] * M_yx[:, None, :]).sum(0)
    scale = A.diagonal().mean()
    away = torch.linalg.matrix_norm(A - scale * torch.eye(d).to(A)) / torch.linalg.matrix_norm(A)
    rows = {
        "A_eff": Row(("input", "query_input"), A, "1/x²", "prediction is (Σ y x)ᵀ A_eff x_q"),
        "scale": Row((), float(scale), "1/x²", "c of the nearest c · I; a step of descent has c = η/N"),
        "distance_to_identity": Row((), float(away), "1", "min over c of ‖A_eff - c I‖_F / ‖A_eff‖_F"),
    }
    about = {"layer": layer, "n_heads": cfg.n_heads}
    if tasks is None:
        return described(rows, attrs=about)
    if layer % cfg.n_layers:
        raise InterpError(f"tasks are what layer 0 reads, not layer {layer}; leave them out.")
    X, y, xq = (tensor.to(A) for tensor in (tasks.X, tasks.y, tasks.xq))
    model.tokens(X, y, xq)  # refuses what the model could not read
    asked = torch.einsum("hij,bj->bhi", M_xx, xq)
    terms = {
        "main": ((X.mT @ y[..., None])[..., 0] * (xq @ A.mT)).sum(-1),
        "x_leak": torch.einsum("hi,bni,bnj,bhj->b", w_x, X, X, asked),
        "y_leak": y.square().sum(1) * (w_y[:, None] * torch.einsum("hj,bj->hb", M_yx, xq)).sum(0),
    }
    for name, values in terms.items():
        said = f"root mean square of the {name} term over {len(tasks)} tasks"
        rows[name] = Row((), float(values.square().mean().sqrt()), "units of y", said)
    return described(rows, attrs=about)


@torch.no_grad()
def interpolate(model: AttentionRegressor, construct: AttentionRegressor, weight: float = 0.5) -> AttentionRegressor:
    """A new model with `weight` of the constructed products and 1 - `weight` of the trained ones.

    The trained pair is first brought to the construction's gauge: KQ / β and β · PV, with β the mean of KQ's first
    d_in diagonal entries (it may be negative). Both models have one linear head and one set of weights; an untied model
    is refused because each of its layers may rescale what the next one reads.

    Raises:
        InterpError: such a model, models of different shape, or |β| < 1e-6 (an untrained layer).

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> written = interp.icl.construct_gd(model, eta=5.0)
        >>> half = interp.icl.interpolate(written, written)
        >>> torch.allclose(interp.icl.lsa_products(half).PV, interp.icl.lsa_products(written).PV)
        True
    """
    cfg = model.cfg
    if cfg.n_heads != 1 or "softmax" in cfg.kinds or (cfg.n_layers > 1 and not cfg.recurrent):
        raise InterpError("interpolation needs one linear head and one set of weights (one layer, or recurrent).")
    for field in ("d_in", "d_out", "n_layers", "n_pos_enc", "readout_sign"):
        mine, other = getattr(cfg, field), getattr(construct.cfg, field)
        if mine != other:
            raise InterpError(f"the construction has {field}={other} and the model {field}={mine}; make them alike.")
    trained, target = in_gauge(lsa_products(model), cfg.d_in), lsa_products(construct)
    mixed = LsaProducts(
        *(torch.lerp(mine, other.to(mine), weight) for mine, other in zip(trained, target, strict=True))
    )
    return with_products(model, mixed)


def in_gauge(products: LsaProducts, d_in: int) -> LsaProducts:
    """The same layer with the mean of KQ's first `d_in` diagonal entries equal to 1, head by head.

    Raises InterpError where that mean is nearly zero.

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> products = interp.icl.lsa_products(interp.icl.construct_gd(model, eta=5.0))
        >>> interp.icl.in_gauge(products, d_in=3).KQ[0, :3, :3].diagonal().mean().round(decimals=4)
        tensor(1.)
    """
    beta = products.KQ[:, :d_in, :d_in].diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    if bool((beta.abs() < SMALLEST_BETA).any()):
        raise InterpError(
            f"KQ's diagonal is {float(beta.abs().min()):.1e} on average, too small to divide by; train first."
        )
    return LsaProducts(products.KQ / beta, products.PV * beta)


@torch.no_grad()
def with_products(model: AttentionRegressor, products: LsaProducts) -> AttentionRegressor:
    """A model like `model` whose first set of attention weights has these products (keys and projection: identity).

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> products = interp.icl.lsa_products(interp.icl.construct_gd(model, eta=5.0))
        >>> again = interp.icl.with_products(model, products)
        >>> torch.allclose(interp.icl.lsa_products(again).PV, products.PV)
        True
    """
    cfg = replace(model.cfg, d_head=model.cfg.d_model)
    made: AttentionRegressor = AttentionRegressor(cfg).to(model.W0)
    made.load_weights({**made.weights(), **{n: w for n, w in model.weights().items() if ".attn." not in n}})
    layer, identity = made.block(0), torch.eye(cfg.d_model).to(model.W0)
    for stored, value in (
        (layer.W_K, identity), (layer.W_Q, products.KQ.mT), (layer.W_V, products.PV.mT), (layer.W_O, identity),
    ):  # fmt: skip
        stored.copy_(value)
    return made
