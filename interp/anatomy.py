"""Find the parts of a transformers model by watching it run on two tokens.

No table of architectures: the attention modules are those that call the registered attention function, a block is their
ancestor in a `ModuleList`, and what is added to the residual stream is recognised by arithmetic. The child u of a block
whose output, times a constant α, separates the block's input from the input of a later child is what attention adds;
the child m whose output closes the gap to the block's output is what the MLP adds. That holds for pre-norm, post-norm
(Gemma), reordered (OLMo-2) and scaled residuals (Granite) alike. In parallel blocks (GPT-NeoX, Phi, Cohere) both are added
to the same input and there is no residual stream in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from interp.attention import attention_through, delegate, refusal
from interp.errors import UnsupportedModelError

Tensor = torch.Tensor
# Rounding of a sum of a few terms in the model's dtype; anything that does not fit differs by far more.
FIT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class BlockParts:
    """One decoder layer: where its attention is and what writes to the residual stream."""

    block: nn.Module
    attention: nn.Module
    attention_name: str
    out_projection: nn.Module | None
    """Maps the flattened head outputs z to what attention returns; None where it is not a direct child."""
    attn_out: nn.Module | None
    """The child whose output (times `residual_scale`) attention adds to the residual stream."""
    mlp_out: nn.Module | None
    residual_scale: float
    parallel: bool
    seen: dict[str, Any] = field(default_factory=dict)
    """Facts from the two-token run: n_heads, n_key_value_heads, d_head, keywords of the attention call."""


@dataclass(frozen=True)
class Anatomy:
    """Parts of a decoder, in order of depth."""

    blocks: tuple[BlockParts, ...]
    final_norm: nn.Module | None
    logit_map: Callable[[Tensor], Tensor] | None
    """From the unembedding's output to the model's logits (a constant factor or a softcap); None where neither fits."""


def first(value: Any) -> Any:
    """The tensor of a module's output, which may be a tuple."""
    return value[0] if isinstance(value, tuple) else value


class _Watcher:
    """Stands in as the site of every attention module: notes the call and delegates it."""

    def __init__(self, delegate_name: str) -> None:
        self.delegate_name, self.calls = delegate_name, {}

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: Any, **rest: Any) -> Any:
        z, weights = delegate(self.delegate_name, module, q, k, v, mask, scaling=scaling, **rest)
        self.calls[module] = {
            "n_heads": q.shape[1], "n_key_value_heads": k.shape[1], "d_head": q.shape[3], "d_value": v.shape[3],
            "softcap": rest.get("softcap"), "sinks": rest.get("s_aux") is not None, "window": rest.get("sliding_window"),
            "z": z.flatten(2),
        }  # fmt: skip
        return z, weights


@contextmanager
def _recorded(modules: dict[str, nn.Module]) -> Iterator[list[tuple[str, Tensor | None, Tensor | None, dict[str, Any]]]]:
    """Inputs and outputs of modules in the order in which they finish."""
    seen: list[tuple[str, Tensor | None, Tensor | None, dict[str, Any]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            tensors = (x if isinstance(x, Tensor) else None for x in (given, first(output)))
            seen.append((name, *tensors, kwargs))

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        yield seen


@torch.no_grad()
def dissect(model: Any) -> Anatomy:
    """Run `model` on two tokens and find its parts.

    Raises UnsupportedModelError for encoder-decoder models, models whose attention does not go through the registry, and
    models with more than one stack of attention layers.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder model; a Lens reads decoder-only models.")
    text_config = model.config.get_text_config(decoder=True)
    ids = torch.tensor([[text_config.vocab_size // 3, text_config.vocab_size // 2]], device=model.device)
    watcher = _Watcher(text_config._attn_implementation)
    names = {module: name for name, module in model.named_modules()}
    was_training = model.training
    model.eval()
    try:
        with attention_through(model, dict.fromkeys(names, watcher)), _recorded(dict(model.named_modules())) as seen:
            logits = model(ids, use_cache=False).logits
    finally:
        model.train(was_training)
    if not watcher.calls:
        raise UnsupportedModelError(refusal(model))
    owners = {module: _block_of(names[module], model) for module in watcher.calls}
    stacks = {name.rpartition(".")[0] for name in owners.values()}
    if len(stacks) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has attention in {len(stacks)} stacks ({', '.join(sorted(stacks))}); "
            "models with a vision tower or an encoder are not supported yet."
        )
    blocks = tuple(
        _block(model, names[module], owners[module], call, seen, FIT[logits.dtype]) for module, call in watcher.calls.items()
    )
    return Anatomy(blocks, _final_norm(model, blocks[-1].block, names, seen), _logit_map(model, names, seen, logits))


def _block_of(attention_name: str, model: nn.Module) -> str:
    """Name of the ancestor that sits in a ModuleList."""
    name = attention_name
    while name:
        parent, _, _ = name.rpartition(".")
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            return name
        name = parent
    raise UnsupportedModelError(f"attention module {attention_name} is in no list of layers, so its depth is unknown.")


def _block(
    model: nn.Module, attention_name: str, block_name: str, call: dict[str, Any], seen: list, tolerance: float
) -> BlockParts:
    calls = [(name, *rest) for name, *rest in seen if name.rpartition(".")[0] == block_name]
    names = [name for name, *_ in calls]
    children = [call for call in calls if names.count(call[0]) == 1]  # Phi's one dropout serves attention and MLP
    (_, resid_pre, resid_post, _), *_ = (entry for entry in seen if entry[0] == block_name)

    def gap(target: Tensor, start: Tensor, out: Tensor) -> tuple[float, float]:
        """α and relative error of target = start + α·out."""
        step = (target - start).float()
        alpha = float((step * out.float()).sum() / out.float().square().sum().clamp_min(1e-30))
        return alpha, float((step - alpha * out.float()).norm() / target.float().norm().clamp_min(1e-30))

    def adds(start: Tensor, target: Tensor, among: list) -> tuple[int, float] | None:
        """Index and α of the child whose output leads from start to target; the last one that fits (a dropout repeats its input)."""
        fits = [(i, *gap(target, start, out)) for i, (_, _, out, _) in enumerate(among) if _same_shape(out, start)]
        good = [(i, alpha) for i, alpha, error in fits if error < tolerance and abs(alpha) > 1e-6]
        return good[-1] if good else None

    found = {"attn_out": None, "mlp_out": None, "scale": 1.0, "parallel": False}
    attention_at = next(i for i, entry in enumerate(children) if attention_name.startswith(entry[0]))
    for w in range(attention_at + 1, len(children)):
        given = children[w][1]
        if not _same_shape(given, resid_pre) or torch.equal(given, resid_pre):
            continue
        if (u := adds(resid_pre, given, children[:w])) and (m := adds(given, resid_post, children[w:])):
            found |= {"attn_out": children[u[0]][0], "mlp_out": children[w + m[0]][0], "scale": u[1]}
            break
    else:
        found |= _parallel(children, resid_pre, resid_post, attention_at, adds)

    inside = {n: i for n, i, _, _ in seen if n.rpartition(".")[0] == attention_name and _same_shape(i, call["z"])}
    projection = next((n for n, given in inside.items() if torch.equal(given, call["z"])), None)
    pick = lambda name: model.get_submodule(name) if name else None  # noqa: E731
    rotary = next(kwargs.get("position_embeddings") for n, _, _, kwargs in seen if n == attention_name)
    return BlockParts(
        block=model.get_submodule(block_name),
        attention=model.get_submodule(attention_name),
        attention_name=attention_name,
        out_projection=pick(projection),
        attn_out=pick(found["attn_out"]),
        mlp_out=pick(found["mlp_out"]),
        residual_scale=_tidy(found["scale"]),
        parallel=found["parallel"],
        seen={k: v for k, v in call.items() if k != "z"} | {"rotary": rotary is not None},
    )


def _parallel(children: list, resid_pre: Tensor, resid_post: Tensor, attention_at: int, adds: Callable) -> dict[str, Any]:
    """The children u and m with resid_post = resid_pre + u + m, u from the attention side."""
    for u in range(len(children) - 1, -1, -1):
        out = children[u][2]
        on_attention_side = u == attention_at or torch.equal(first(out), first(children[attention_at][2]))
        if _same_shape(out, resid_pre) and on_attention_side and (m := adds(resid_pre + out, resid_post, children)):
            return {"attn_out": children[u][0], "mlp_out": children[m[0]][0], "parallel": True}
    return {}


def _same_shape(x: Tensor | None, like: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape == like.shape


def _tidy(alpha: float) -> float:
    """A residual scale measured in floating point, as the round number that a config holds."""
    return round(alpha, 4) if abs(alpha - round(alpha, 4)) < 1e-5 * max(1.0, abs(alpha)) else alpha


def _final_norm(model: nn.Module, last_block: nn.Module, names: dict[nn.Module, str], seen: list) -> nn.Module | None:
    """The module outside the blocks that reads the last block's output."""
    resid_post = next(out for name, _, out, _ in seen if name == names[last_block])
    outside = names[last_block].rpartition(".")[0].rpartition(".")[0]
    for name, given, _, _ in seen:
        if name.rpartition(".")[0] == outside and _same_shape(given, resid_post) and torch.equal(given, resid_post):
            module = model.get_submodule(name)
            if module is not model.get_output_embeddings():
                return module
    return None


def _logit_map(model: Any, names: dict[nn.Module, str], seen: list, logits: Tensor) -> Callable[[Tensor], Tensor] | None:
    head = model.get_output_embeddings()
    raw = next((out for name, _, out, _ in seen if head is not None and name == names[head]), None)
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    return None if raw is None or raw.shape != logits.shape else logit_map(raw, logits, cap)


def logit_map(raw: Tensor, logits: Tensor, softcap: float | None) -> Callable[[Tensor], Tensor] | None:
    """How the unembedding's output becomes logits: unchanged, times a constant (Cohere, Granite), or softcapped (Gemma 2)."""
    factor = float((raw * logits).sum() / raw.square().sum())
    candidates = [lambda x: x, lambda x: x * factor]
    if softcap is not None:
        candidates.append(lambda x: torch.tanh(x / softcap) * softcap)
    for candidate in candidates:
        if torch.allclose(candidate(raw), logits, rtol=FIT[logits.dtype], atol=1e-6):
            return candidate
    return None
