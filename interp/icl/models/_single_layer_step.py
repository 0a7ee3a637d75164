"""Loss and gradients of one linear attention layer without autograd.

The prediction of one layer is bilinear in the context's second moments. With e_i = (x_i, y_i), a = W_V W_O[:, y] and
t = W_K W_Qᵀ (x_q, 0), head by head, it is ± Σ_i (a · e_i)(t · e_i): two numbers for each context token. The
query's other projections, all but one coordinate of the output, and the context tokens' own updates never matter, so
neither they nor their gradients are computed. Each tensor here is read or written once for all tasks and heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.tasks.regression import Tasks


def is_one_linear_layer(model: AttentionRegressor) -> bool:
    """Whether `single_layer_gradients` is this model's gradient."""
    cfg = model.cfg
    attention_alone = not (cfg.d_mlp or cfg.layer_norm or cfg.n_pos_enc) and cfg.clamp is None
    one = cfg.n_layers == 1 and cfg.kinds == ("linear",) and cfg.d_out == 1 and cfg.layout == "concat"
    return type(model) is AttentionRegressor and one and attention_alone and not bool(model.W0.any())


@torch.no_grad()
def single_layer_gradients(model: AttentionRegressor, tasks: Tasks) -> Tensor:
    """Half the mean squared error of the query; its gradients go to `.grad` of the weights, replacing what was there.

    Raises nothing: ask `is_one_linear_layer` first.
    """
    layer, sign, d = model.block(0), model.cfg.readout_sign, model.cfg.d_in
    W_Q, W_K, W_V, W_O = layer.W_Q, layer.W_K, layer.W_V, layer.W_O
    to_target = W_O[:, :, d]  # [head, d_head]: the one column of the output that is read
    a = torch.einsum("hde,he->dh", W_V, to_target)
    score_map = W_K @ W_Q[:, :d].mT  # [head, d_model, d_in]

    tokens = torch.cat([tasks.X, tasks.y.unsqueeze(-1)], -1)  # [batch, context, d_model]
    t = torch.einsum("bi,hji->bjh", tasks.xq, score_map)
    values = tokens @ a  # [batch, context, head]
    scores = tokens @ t
    error = sign * torch.linalg.vecdot(values.flatten(1), scores.flatten(1)) - tasks.yq
    slope = (sign / len(error)) * error  # of the loss in the raw output

    grad_a = tokens.flatten(0, 1).mT @ (scores * slope[:, None, None]).flatten(0, 1)  # [d_model, head]
    grad_t = values.mT @ tokens  # [batch, head, d_model], before its factor `slope`
    grad_map = (grad_t.flatten(1).mT @ (tasks.xq * slope[:, None])).unflatten(0, (-1, d + 1))

    W_K.grad = grad_map @ W_Q[:, :d]
    W_Q.grad = torch.nn.functional.pad(grad_map.mT @ W_K, (0, 0, 0, 1))  # the query's y slot is zero
    W_V.grad = torch.einsum("dh,he->hde", grad_a, to_target)
    W_O.grad = torch.zeros_like(W_O)
    W_O.grad[:, :, d] = torch.einsum("dh,hde->he", grad_a, W_V)
    loss: Tensor = 0.5 * error.square().mean()
    return loss
