"""Find the parts of a transformers model by watching it run on two tokens.

No table of architectures: the attention modules are those that call what the model looks up by the name in its config
(`interp/seam/routing.py` answers to it for that run), a block is their ancestor in a `ModuleList`, and what is added to
the residual stream is recognised by arithmetic. The child u of a block whose output, times a constant α, separates the
block's input from the input of a later child is what attention adds; the child m whose output closes the gap to the
block's output is what the MLP adds. That holds for pre-norm, post-norm (Gemma), reordered (OLMo-2) and scaled residuals
(Granite) alike. In parallel blocks (GPT-NeoX, Phi, Cohere) both are added to the same input and there is no residual
stream in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from interp.errors import UnsupportedModelError
from interp.seam.call import AttentionCall
from interp.seam.config import LensConfig
from interp.seam.rotation import Rotation
from interp.seam.routing import attention_through, refusal

Tensor = torch.Tensor
# How far logits may be from a map of the unembedding's output that is the right one, relative.
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
    """The child whose output, times `residual_scale`, attention adds to the residual stream."""
    mlp_out: nn.Module | None
    residual_scale: float
    parallel: bool
    rotation: Rotation | str
    """How to rotate keys back, or why that cannot be done."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Facts from the two-token run: n_heads, n_key_value_heads, d_head, keywords of the attention call."""


@dataclass(frozen=True)
class Anatomy:
    """Parts of a decoder, in order of depth."""

    blocks: tuple[BlockParts, ...]
    final_norm: nn.Module | None
    logit_map: Callable[[Tensor], Tensor] | None
    """From the unembedding's output to the model's logits (a constant factor or a softcap); None where neither fits."""


@dataclass(frozen=True)
class ModuleCall:
    """One module's call in the two-token run."""

    name: str
    given: Tensor | None
    out: Tensor | None
    kwargs: dict[str, Any]

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Writers:
    """The children of a block that write to the residual stream, by name, and the constant that scales them."""

    attn_out: str | None = None
    mlp_out: str | None = None
    scale: float = 1.0
    parallel: bool = False


def first(value: Any) -> Any:
    """The tensor of a module's output, which may be a tuple."""
    return value[0] if isinstance(value, tuple) else value


class _Watcher:
    """Stands in as the site of every attention module: notes the call and delegates it."""

    def __init__(self) -> None:
        self.calls: dict[nn.Module, dict[str, Any]] = {}

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        z, weights = call.answer()
        q, k, rest = call.q, call.k, call.rest
        self.calls[call.module] = {
            "n_heads": q.shape[1],
            "n_key_value_heads": k.shape[1],
            "d_head": q.shape[3],
            "softcap": rest.get("softcap"),
            "sinks": rest.get("s_aux") is not None,
            "window": rest.get("sliding_window"),
            "z": z.flatten(2),
            "k": k,
        }
        return z, weights


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """The calls of all modules in the order in which they finish."""
    seen: list[ModuleCall] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given, out = args[0] if args else kwargs.get("hidden_states"), first(output)
            seen.append(ModuleCall(name, _tensor(given), _tensor(out), kwargs))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        yield seen


@torch.no_grad()
def dissect(model: Any) -> Anatomy:
    """Run `model` on two tokens and find its parts.

    Raises UnsupportedModelError for encoder-decoder models, models whose attention does not go through the registry,
    and models with more than one stack of attention layers.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model; a Lens reads decoder-only models."
        )
    text_config = model.config.get_text_config(decoder=True)
    ids = torch.tensor([[text_config.vocab_size // 3, text_config.vocab_size // 2]], device=model.device)
    watcher = _Watcher()
    names = {module: name for name, module in model.named_modules()}
    modes = {module: module.training for module in names}
    model.eval()
    try:
        with attention_through(model, dict.fromkeys(names, watcher)), _recorded(model) as seen:
            logits = model(ids, use_cache=False).logits
    finally:
        for module, training in modes.items():
            module.training = training
    if not watcher.calls:
        raise UnsupportedModelError(refusal(model))
    owners = {module: _block_of(names[module], model) for module in watcher.calls}
    stacks = {name.rpartition(".")[0] for name in owners.values()}
    if len(stacks) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has attention in {len(stacks)} stacks ({', '.join(sorted(stacks))}); "
            "models with a vision tower or an encoder are not supported yet."
        )
    depth = len(model.get_submodule(next(iter(stacks))))
    if depth != len(owners):
        raise UnsupportedModelError(
            f"{type(model).__name__} has {depth} layers of which {len(owners)} call the attention registry; models "
            "that mix attention with other layers are not supported yet."
        )
    blocks = tuple(_block(model, names[module], owners[module], call, seen) for module, call in watcher.calls.items())
    last_block = list(owners.values())[-1]
    return Anatomy(blocks, _final_norm(model, last_block, seen), _logit_map(model, seen, logits))


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
    model: Any, attention_name: str, block_name: str, call: dict[str, Any], seen: list[ModuleCall]
) -> BlockParts:
    whole = next(c for c in seen if c.name == block_name)
    inside = [c for c in seen if c.parent == block_name]
    names = [c.name for c in inside]
    children = [c for c in inside if names.count(c.name) == 1]  # Phi's one dropout serves attention and MLP
    attention_at = next(i for i, c in enumerate(children) if attention_name.startswith(c.name))
    assert whole.given is not None
    assert whole.out is not None
    scale = float(getattr(model.config.get_text_config(decoder=True), "residual_multiplier", 1.0))
    writers = _sequential(children, whole.given, whole.out, attention_at, scale) or _parallel(
        children, whole.given, whole.out, attention_at, scale
    )
    projections = (c.name for c in seen if c.parent == attention_name and _equal(c.given, call["z"]))
    tables = next(c.kwargs.get("position_embeddings") for c in seen if c.name == attention_name)
    attention = model.get_submodule(attention_name)
    written = [c.out for c in seen if c.name.startswith(f"{attention_name}.") and c.out is not None]

    def module(name: str | None) -> nn.Module | None:
        return None if name is None else model.get_submodule(name)

    return BlockParts(
        block=model.get_submodule(block_name),
        attention=attention,
        attention_name=attention_name,
        out_projection=module(next(projections, None)),
        attn_out=module(writers.attn_out),
        mlp_out=module(writers.mlp_out),
        residual_scale=writers.scale,
        parallel=writers.parallel,
        rotation="keys are not rotated" if tables is None else _rotation(attention, call["k"], tables, written),
        seen={k: v for k, v in call.items() if k not in ("z", "k")} | {"rotary": tables is not None},
    )


def _rotation(attention: nn.Module, k: Tensor, tables: tuple[Tensor, Tensor], written: list[Tensor]) -> Rotation | str:
    """How to rotate the keys of a layer back, or why that cannot be done.

    Keys rotated back must be something that the attention module made on the way: the output of its key projection or
    key norm, or a slice of a fused one. They are not in layers without rotation (NoPE: SmolLM3, Cohere 2) that get the
    rotary tables all the same, nor where a norm follows rotation (HunYuan).
    """
    rotation = Rotation.of(attention, k.shape[-1])
    if isinstance(rotation, str):
        return rotation
    if any(_made_of(out, k.float()) for out in written):
        return "this layer does not rotate its keys"
    if not any(_made_of(out, rotation.undo(k, *tables)) for out in written):
        return "keys rotated back are no output of the layer's key projection or norm, so something else changes them"
    return rotation


def _made_of(out: Tensor, keys: Tensor) -> bool:
    """Whether every head's key `keys [1, kv_head, token, d_head]` is a stretch of a module's output for that token.

    A module sees tokens before heads, or heads before tokens where they were moved already.
    """
    n, d_head = keys.shape[2:]
    layouts = [out, out.transpose(1, 2)] if out.ndim == 4 else [out]
    by_token = [x.float().reshape(n, -1) for x in layouts if x.numel() % n == 0]
    tolerance = 50 * torch.finfo(out.dtype).eps * float(keys.abs().max())

    def holds(row: Tensor) -> bool:
        stretches = row.unfold(1, d_head, 1)  # [token, start, d_head]
        nearest = [(stretches - keys[0, head, :, None]).abs().amax((0, 2)).min() for head in range(keys.shape[1])]
        return bool(torch.stack(nearest).max() <= tolerance)

    return any(holds(row) for row in by_token if row.shape[1] >= d_head)


def _sequential(
    children: list[ModuleCall], resid_pre: Tensor, resid_post: Tensor, attention_at: int, scale: float
) -> Writers | None:
    """Attention leads from resid_pre to the input of a later child (resid_mid), the MLP from there to resid_post."""
    for at, child in enumerate(children[attention_at + 1 :], attention_at + 1):
        middle = child.given
        if middle is None or not _same_shape(middle, resid_pre) or torch.equal(middle, resid_pre):
            continue
        attention = _adds(resid_pre, middle, children[:at], scale)
        mlp = _adds(middle, resid_post, children[at:], scale)
        if attention and mlp:
            return Writers(attention[0], mlp[0], attention[1])
    return None


def _parallel(
    children: list[ModuleCall], resid_pre: Tensor, resid_post: Tensor, attention_at: int, scale: float
) -> Writers:
    """resid_post = resid_pre + u + m, with u the attention's output; no writers where nothing fits."""
    attention = children[attention_at].out
    for child in reversed(children):
        if child.out is not None and _same_shape(child.out, resid_pre) and _equal(child.out, attention):
            mlp = _adds(resid_pre + child.out, resid_post, children, scale)
            if mlp:
                return Writers(child.name, mlp[0], parallel=True)
    return Writers()


def _adds(start: Tensor, target: Tensor, among: list[ModuleCall], scale: float) -> tuple[str, float] | None:
    """Name and α of the child with target = start + α·output, where α is 1 or the config's residual scale.

    The sum is done in the model's own dtype, so the right child fits to a few roundings and leaves far less than it
    adds. Of several that fit the last is taken, since a dropout repeats its input.
    """
    rounding = 4 * torch.finfo(start.dtype).eps * float(target.float().norm())
    for call in reversed(among):
        if call.out is None or not _same_shape(call.out, start):
            continue
        for alpha in dict.fromkeys((1.0, scale)):
            left = float((target - (start + alpha * call.out)).float().norm())
            if left <= rounding and left <= 0.1 * abs(alpha) * float(call.out.float().norm()):
                return call.name, alpha
    return None


def _tensor(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) else None


def _equal(x: Tensor | None, y: Tensor | None) -> bool:
    return x is not None and y is not None and x.shape == y.shape and torch.equal(x, y)


def _same_shape(x: Tensor | None, like: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape == like.shape


def _final_norm(model: Any, last_block: str, seen: list[ModuleCall]) -> nn.Module | None:
    """The module beside the list of blocks that reads the last block's output."""
    resid_post = next(c.out for c in seen if c.name == last_block)
    beside = last_block.rpartition(".")[0].rpartition(".")[0]
    readers = (model.get_submodule(c.name) for c in seen if c.parent == beside and _equal(c.given, resid_post))
    return next((m for m in readers if m is not model.get_output_embeddings()), None)


def _logit_map(model: Any, seen: list[ModuleCall], logits: Tensor) -> Callable[[Tensor], Tensor] | None:
    head = model.get_output_embeddings()
    raw = next((c.out for c in seen if model.get_submodule(c.name) is head), None)
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    return None if raw is None or raw.shape != logits.shape else logit_map(raw, logits, cap)


def logit_map(raw: Tensor, logits: Tensor, softcap: float | None) -> Callable[[Tensor], Tensor] | None:
    """How the unembedding's output becomes logits: unchanged, times a constant (Cohere, Granite), or softcapped (Gemma
    2)."""
    fit, raw = max(FIT[raw.dtype], FIT[logits.dtype]), raw.to(logits.dtype)  # autocast in the model's own forward pass
    factor = float((raw * logits).sum() / raw.square().sum())
    candidates: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: x * factor]
    if softcap is not None:
        candidates.append(lambda x: torch.tanh(x / softcap) * softcap)
    for candidate in candidates:
        if torch.allclose(candidate(raw), logits, rtol=fit, atol=1e-6):
            return candidate
    return None


def config_of(model: Any, anatomy: Anatomy, name: str | None) -> LensConfig:
    """Read the shape of a model from its config and from what its two-token run showed."""
    config = model.config.get_text_config(decoder=True)
    blocks = anatomy.blocks
    seen = blocks[0].seen
    windows = [block.seen["window"] for block in blocks]
    caps = [block.seen["softcap"] for block in blocks if block.seen["softcap"] is not None]
    return LensConfig(
        model_name=name or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        architecture=type(model).__name__,
        n_layers=len(blocks),
        n_heads=seen["n_heads"],
        n_key_value_heads=seen["n_key_value_heads"],
        d_head=seen["d_head"],
        d_model=config.hidden_size,
        d_vocab=config.vocab_size,
        n_ctx=int(getattr(config, "max_position_embeddings", 0) or 0),  # also the name of GPT-2's n_positions
        positional_embedding_type="rotary" if seen["rotary"] else "other",
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=config._attn_implementation,
        window_size=next((int(w) for w in windows if w), None),
        attn_types=tuple("local" if w else "global" for w in windows),
        attn_softcap=caps[0] if caps else None,
        learned_sinks=any(block.seen["sinks"] for block in blocks),
        parallel_attn_mlp=any(block.parallel for block in blocks),
        residual_scale=blocks[0].residual_scale,
    )
