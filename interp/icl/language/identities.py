"""What demonstrations do to a real language model, exactly: the head split and the implicit MLP update.

Both hold for softmax attention with rotary positions and for any MLP that begins with linear maps, so they need none of
the approximations by which in-context learning is called gradient descent, and each result says how exact it is
(`identity_error`). They are read at the last position of the prompt.

Sources: the head split is arithmetic on a softmax. The relaxed-linear update beside it is Dai et al. 2023 ("Why can GPT
learn in-context?", arXiv:2212.10559). The implicit update follows the idea of Dherin et al. 2025 ("Learning without
training: the implicit dynamics of in-context learning", arXiv:2507.16003), here with the residual stream's shift as a
bias of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from interp_kernels import attention_apply
from interp_kernels.facts import resolve
from jaxtyping import Bool, Float
from torch import nn
from torch.nn.functional import cosine_similarity

from interp.errors import InterpError
from interp.icl.language._layers import attention_everywhere
from interp.icl.language._mlp import LastToken, input_projections, rank_one_update, weight_gradients
from interp.icl.language._prompts import Prompt
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import TextLens
from interp.results.described import Row, described
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
Text = str | Tensor


@in_evaluation_mode
@torch.no_grad()
def head_split(lens: TextLens, demos: Text | Sequence[Text], query: Text) -> xr.Dataset:
    """Each head's output at the last token as a mixture of what it reads in the demonstrations and elsewhere.

    With a the attention to demonstration tokens, out_ICL = (1 - a) out_query + a out_demo, where out_query and out_demo
    are the same head's output when the same query vector attends only to the rest of the prompt or only to the
    demonstrations. From the second layer on the rest of the prompt has read the demonstrations itself, so out_query is
    not what the head puts out for the query alone. Beside it the update of relaxed linear attention, sum over
    demonstration tokens of v (k . q), with the model's own q, k, v after rotary embedding.

    Args:
        lens: from `interp.load`.
        demos, query: texts, or tokens `[pos]` without special ones. Those that the tokenizer puts first belong to
            neither, and are counted with the query, since the query alone has them too.

    A sliding window, a softcap and learned sinks are those of the model; a learned sink counts as a key of the query
    with value 0. Demonstrations beyond a window have a = 0, and the cosine is NaN there. Heads with nothing to look for
    rest on the first token: where the tokenizer puts none first (SmolLM2) that is one of the demonstrations', and
    `first_token_mass` says how much of a it is.

    Returns a dataset (layer, head); norms are in the units of the head's output z.
    """
    prompt = Prompt.of(lens, demos, query)
    lens.check_length(prompt.in_context.shape[1])
    splits: dict[int, dict[str, Tensor]] = {}

    def attend(event: AttentionEvent, hook: Any, *, layer: int) -> None:
        splits[layer] = split(event, prompt.is_demo)

    def leave(z: Tensor, hook: Any, *, layer: int) -> None:
        out = z[0, -1].to(splits[layer]["out_icl"].dtype)
        splits[layer]["identity_error"] = (splits[layer]["out_icl"] - out).norm(dim=-1) / out.norm(dim=-1)

    attention_everywhere(lens, "the head split")
    layers = range(lens.cfg.n_layers)
    hooks = [(f"blocks.{layer}.attn.hook_event", partial(attend, layer=layer)) for layer in layers]
    hooks += [(f"blocks.{layer}.attn.hook_z", partial(leave, layer=layer)) for layer in layers]
    lens.run_with_hooks(prompt.in_context, return_type=None, fwd_hooks=hooks, **lens.last_logits_only)
    numbers = [_split_numbers(splits[layer]) for layer in layers]
    data = {
        name: Row(("layer", "head"), np.stack([row[name] for row in numbers]), units, said)
        for name, (units, said) in SPLIT.items()
    }
    return described(
        data,
        {"layer": list(layers), "head": np.arange(lens.cfg.n_heads)},
        {
            "title": "Head split",
            "description": "Attention outputs at the last token, split exactly into demonstrations and the rest",
            **_about(lens, prompt),
        },
    )


def split(event: AttentionEvent, is_demo: Bool[Tensor, " key"]) -> dict[str, Tensor]:
    """The split of every head's output for the last query of an event of one sequence.

    Returns `mass [head]` (a), `first_mass [head]`, and `out_query`, `out_demo`, `out_icl` and `linear`, each `[head,
    d_value]`. `out_icl` is the mixture of the two parts, not what the model computed. In fp32, fp64 for fp64 events.
    """
    q, k, v = event.q[:, :, -1:], event.k, event.v
    visible = _seen_by_last(event)
    attend = partial(attention_apply, q, k, v, scale=event.scale, softcap=event.softcap)
    rest, demo = attend(mask=visible & ~is_demo, sinks=event.sinks), attend(mask=visible & is_demo)
    assert rest.z is not None
    assert demo.z is not None
    others = rest.lse if event.sinks is None else torch.logaddexp(rest.lse, event.sinks.to(rest.lse)[:, None])
    mass = torch.sigmoid(demo.lse - others)[0, :, 0]
    first = attend(mask=visible & (torch.arange(len(is_demo), device=q.device) == 0)).lse
    out_query, out_demo = rest.z[0, :, 0], demo.z[0, :, 0]
    q, k, v = (x[0].to(out_demo.dtype) for x in (q, k, v))
    return {
        "mass": mass,
        "first_mass": (first - torch.logaddexp(demo.lse, others)).exp()[0, :, 0],
        "out_query": out_query,
        "out_demo": out_demo,
        "out_icl": out_query + mass[:, None] * (out_demo - out_query),
        "linear": _relaxed_linear(q, k, v, visible[0] & is_demo, event.scale),
    }


def _seen_by_last(event: AttentionEvent) -> Bool[Tensor, "1 head 1 key"]:
    """Which keys the last query sees: its row of the mask, without the others."""
    facts = {**event.maths, "offset": None, "query_mask": None}  # by default the last query sees the last key
    if facts.get("mask") is not None:
        facts["mask"] = facts["mask"][:, :, -1:]
    return resolve("head_split", event.q[:, :, -1:], event.k, **facts).visible()


def _relaxed_linear(
    q: Float[Tensor, "head 1 d_head"],
    k: Float[Tensor, "kv_head key d_head"],
    v: Float[Tensor, "kv_head key d_value"],
    wanted: Bool[Tensor, "head 1 key"],
    scale: float,
) -> Float[Tensor, "head d_value"]:
    """Attention without softmax over the wanted keys: sum of v (k . q) times the scale of the scores."""
    group = q.shape[0] // k.shape[0]
    scores = scale * (q @ k.repeat_interleave(group, 0).mT) * wanted
    return (scores @ v.repeat_interleave(group, 0))[:, 0]


def _split_numbers(parts: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    difference = parts["out_demo"] - parts["out_query"]
    moved = parts["mass"] > 0
    cosine = cosine_similarity(parts["linear"], difference, dim=-1)
    numbers = {
        "demo_mass": parts["mass"],
        "first_token_mass": parts["first_mass"],
        "out_query_norm": parts["out_query"].norm(dim=-1),
        "out_demo_norm": parts["out_demo"].norm(dim=-1),
        "difference_norm": difference.norm(dim=-1),
        "shift_norm": parts["mass"] * difference.norm(dim=-1),
        "linear_norm": parts["linear"].norm(dim=-1),
        "linear_cosine": torch.where(moved, cosine, torch.nan),
        "identity_error": parts["identity_error"],
    }
    return {name: value.double().cpu().numpy() for name, value in numbers.items()}


@in_evaluation_mode
@torch.no_grad()
def implicit_mlp_update(
    lens: TextLens,
    demos: Text | Sequence[Text],
    query: Text,
    *,
    loss: Callable[[Any], Tensor] | None = None,
) -> xr.Dataset:
    """The change of the MLP's input weights that does to the query alone what demonstrations before it do.

    With a0 the MLP's input at the last token of the query alone and a1 that after the demonstrations, the rank-one
    ΔW = W (a1 - a0) a0ᵀ / |a0|² makes (W + ΔW) a0 = W a1, for W_in and for the gate of a gated MLP alike. So the block
    puts out with demonstrations what it would without them under the new weights, plus the shift of the residual stream
    beside the MLP, which is a bias. ΔW depends on the query: it is no weight that the model could keep.

    Its direction is compared with one step of gradient descent on a fine-tuning loss, -∂loss/∂W. Read the cosine beside
    what a random u in ΔW = u a0ᵀ would have (`gradient_cosine_chance`) and the best could (`gradient_cosine_bound`). It
    is NaN where demonstrations do not reach the MLP (layer 0 of a parallel block).

    Args:
        lens: from `interp.load`.
        demos, query: texts, or tokens `[pos]` without special ones; several demonstrations as a list.
        loss: the fine-tuning loss in nats as a function of the lens; by default the mean next-token loss of the
            demonstrations, each read alone.

    Returns a dataset (layer, projection) with projections by the model's own names (`gate_proj`, `up_proj`, `c_fc`).

    Raises:
        UnsupportedModelError: MLPs that do not begin with linear maps (mixtures of experts).
        InterpError: a loss without gradients, or a demonstration of one token where the loss is the default.
    """
    prompt = Prompt.of(lens, demos, query)
    lens.check_length(prompt.in_context.shape[1])
    by_layer = input_projections(lens, prompt.zero_shot)
    modules = [module for named in by_layer for module in named.values()]
    alone, after = (LastToken.of(lens, tokens, modules) for tokens in (prompt.zero_shot, prompt.in_context))
    gradients = weight_gradients(lens, modules, loss or partial(_loss_alone, prompt=prompt))
    updates = [_update_numbers(m, alone, after, grad) for m, grad in zip(modules, gradients, strict=True)]
    shape = (len(by_layer), len(by_layer[0]))
    data = {
        name: Row(("layer", "projection"), np.array([float(row[name]) for row in updates]).reshape(shape), units, said)
        for name, (units, said) in UPDATE.items()
    }
    first = [next(iter(named.values())) for named in by_layer]
    shifts = {
        "input_cosine": [cosine_similarity(alone.read[m], after.read[m], dim=0) for m in first],
        "residual_shift_norm": [(b - a).norm() for a, b in zip(alone.beside, after.beside, strict=True)],
        "mlp_shift_norm": [(b - a).norm() for a, b in zip(alone.written, after.written, strict=True)],
    }
    for name, (units, said) in SHIFT.items():
        data[name] = Row("layer", np.array([float(x) for x in shifts[name]]), units, said)
    return described(
        data,
        {"layer": np.arange(shape[0]), "projection": list(by_layer[0])},
        {
            "title": "Implicit MLP update",
            "description": "The change of MLP input weights that stands for the demonstrations at the last token",
            "loss": "mean next-token loss of the demonstrations, each alone" if loss is None else "the caller's own",
            **_about(lens, prompt),
        },
    )


def _loss_alone(lens: TextLens, prompt: Prompt) -> Tensor:
    """Mean over demonstrations of the mean next-token loss of each read alone."""
    if min(tokens.shape[1] for tokens in prompt.alone) < 2:
        raise InterpError(
            "a demonstration of one token has no next-token loss; pass longer ones, or a loss of your own."
        )
    return torch.stack([lens(tokens, return_type="loss") for tokens in prompt.alone]).mean()


def _update_numbers(
    module: nn.Module, alone: LastToken, after: LastToken, gradient: Float[Tensor, "d_mlp d_model"]
) -> dict[str, Tensor]:
    """Numbers on ΔW = u rᵀ, and on its angle with -gradient, from u and r: ΔW itself is never made."""
    a0 = alone.read[module]
    u, r = rank_one_update(module, a0, after.read[module])
    projected = alone.projected[module] + u * (r @ a0)
    size = u.norm() * r.norm()
    along = gradient @ (r / r.norm())
    return {
        "update_norm": size,
        "relative_update": size / module.get_parameter("weight").norm(),
        "gradient_norm": gradient.norm(),
        "gradient_cosine": -(u @ along) / (u.norm() * gradient.norm()),
        "gradient_cosine_bound": along.norm() / gradient.norm(),
        "gradient_cosine_chance": along.norm() / gradient.norm() / len(u) ** 0.5,
        "identity_error": (projected - after.projected[module]).norm() / after.projected[module].norm(),
    }


def _about(lens: TextLens, prompt: Prompt) -> dict[str, Any]:
    return {
        "model": lens.cfg.model_name,
        "dtype": lens.cfg.dtype,
        "demonstrations": len(prompt.demos),
        "demo_tokens": int(prompt.is_demo.sum()),
        "query_tokens": len(prompt.query),
        "special_tokens": len(prompt.first),
    }


Z = "units of z"
SPLIT = {
    "demo_mass": ("1", "a: attention of the last token to the demonstrations"),
    "first_token_mass": ("1", "attention of the last token to the first one of the prompt"),
    "out_query_norm": (Z, "norm of the head's output when it attends to all but the demonstrations"),
    "out_demo_norm": (Z, "norm of the head's output when it attends to the demonstrations only"),
    "difference_norm": (Z, "norm of out_demo - out_query"),
    "shift_norm": (Z, "norm of a (out_demo - out_query), by which demonstrations move the head's output"),
    "linear_norm": (Z, "norm of the relaxed-linear update, sum over demonstration tokens of v (k . q) times the scale"),
    "linear_cosine": ("1", "cosine of the relaxed-linear update with a (out_demo - out_query); NaN where a is 0"),
    "identity_error": ("1", "distance of the mixture from what the model computed, over the norm of the latter"),
}
UPDATE = {
    "update_norm": ("weight", "Frobenius norm of the rank-one update"),
    "relative_update": ("1", "the same over the norm of the weight"),
    "gradient_norm": ("nats / weight", "Frobenius norm of the gradient of the fine-tuning loss"),
    "gradient_cosine": ("1", "cosine of the update with minus the gradient"),
    "gradient_cosine_bound": ("1", "the largest cosine that any update of the form u a0ᵀ could have"),
    "gradient_cosine_chance": ("1", "root mean square of the cosine for a random u"),
    "identity_error": ("1", "distance of (W + ΔW) a0 from what the model computed, W a1, over the norm of the latter"),
}
SHIFT = {
    "input_cosine": ("1", "cosine of the MLP's inputs a0 and a1"),
    "residual_shift_norm": ("residual stream", "norm of the bias: how far the stream beside the MLP moves"),
    "mlp_shift_norm": ("residual stream", "norm of the change of what the MLP writes, which the update stands for"),
}
