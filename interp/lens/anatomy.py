"""Find the parts of a transformers model by watching it run on two tokens.

No table of architectures: the attention modules are those that call what the model looks up by the name in its config
(`interp/seam/routing.py` answers to it for that run), a block is their ancestor in a `ModuleList`, and what writes to
the residual stream is recognised by arithmetic (`interp.lens.writers`). Blocks without attention, of which hybrids
have many (linear attention, Mamba, convolutions), keep their place in the depth: they have a mixer in its stead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from interp.cache.kinds import kinds
from interp.errors import InterpError, UnsupportedModelError
from interp.lens.head import Step, find_head
from interp.lens.trying import some_tokens, tried
from interp.lens.unrotated import rotation_of
from interp.lens.writers import ModuleCall, Writers, writers
from interp.seam.call import AttentionCall
from interp.seam.config import AttentionType, LensConfig
from interp.seam.rotation import Rotation
from interp.seam.routing import attention_through, refusal

Tensor = torch.Tensor


@dataclass(frozen=True)
class BlockParts:
    """One decoder layer: where its attention is and what writes to the residual stream."""

    block: nn.Module
    attention: nn.Module | None
    """None in a block that has another mixer."""
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
    writers: Writers = field(default_factory=Writers)
    mixer: str = "attention"
    """What mixes tokens here, for people: attention, or the class of what stands in its place."""
    ran: bool = True
    """False for a block that text alone does not pass (cross-attention to an image)."""
    gated: bool = False
    """Whether what the output projection reads is z times a gate."""
    mlp_scale: float = 1.0
    heads_written: bool = True
    """Whether what the output projection puts out reaches the residual stream through `attn_out` alone, so that it can
    be told what each head adds."""


@dataclass(frozen=True)
class Anatomy:
    """Parts of a decoder, in order of depth."""

    blocks: tuple[BlockParts, ...]
    final_norm: nn.Module | None
    unembed: Step | None
    """From the normalised residual stream to the model's logits; None where the way there could not be found."""
    own_cache: str = ""
    """The class of the model's own cache, where it takes no other."""

    @property
    def attending(self) -> Iterator[tuple[int, BlockParts]]:
        """The blocks that have attention, with their numbers."""
        return ((i, block) for i, block in enumerate(self.blocks) if block.attention is not None)

    @property
    def additive(self) -> bool:
        """Whether the last residual stream is the sum of what goes into the first block and what blocks write."""
        return all(block.writers.complete or not block.ran for block in self.blocks)


def first(value: Any) -> Any:
    """The tensor of a module's output, which may be a tuple."""
    return value[0] if isinstance(value, tuple) else value


class _Watcher:
    """Stands in as the site of every attention module: notes the calls and delegates them."""

    def __init__(self) -> None:
        self.calls: dict[nn.Module, list[dict[str, Any]]] = {}

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        z, weights = call.answer()
        q, k, rest = call.q, call.k, call.rest
        facts = {
            "n_heads": q.shape[1],
            "n_key_value_heads": k.shape[1],
            "d_head": q.shape[3],
            "d_value": z.shape[3],
            "softcap": rest.get("softcap"),
            "sinks": rest.get("s_aux") is not None,
            "window": rest.get("sliding_window"),
            "z": z.flatten(2),
            "k": k,
        }
        self.calls.setdefault(call.module, []).append(facts)
        return z, weights


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """The calls of all modules in the order in which they finish."""
    seen: list[ModuleCall] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given, out = args[0] if args else kwargs.get("hidden_states"), first(output)
            seen.append(ModuleCall(name, _activation(given), _activation(out), kwargs))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(note(name), with_kwargs=True).remove)
        yield seen


@torch.no_grad()
def dissect(model: Any) -> Anatomy:
    """Run `model` on two tokens and find its parts.

    Raises UnsupportedModelError for encoder-decoder models, models that text alone does not run, models whose attention
    does not go through the registry, and models with more than one stack of attention layers, or several attention
    calls in one of them.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model; a Lens reads decoder-only models."
        )
    watcher, seen, logits = _watched(model)
    if logits is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head; load the ...ForCausalLM class of this architecture."
        )
    if not watcher.calls:
        raise UnsupportedModelError(refusal(model))
    names = {module: name for name, module in model.named_modules()}
    owners = {_block_of(names[module], model): module for module in watcher.calls}
    stack = _stack(model, [_block_of(names[module], model) for module in watcher.calls])
    for module, calls in watcher.calls.items():
        if len(calls) > 1:
            raise UnsupportedModelError(
                f"{names[module]} of {type(model).__name__} attends {len(calls)} times in one pass (it is shared by "
                "layers, or attends several times in one), and a Lens has one set of points for a layer's attention."
            )
    blocks: list[BlockParts] = []
    for i, block in enumerate(model.get_submodule(stack).children()):
        name = f"{stack}.{i}"
        own = owners.get(name)
        facts = {} if own is None else watcher.calls[own][0]
        blocks.append(_block(model, block, name, "" if own is None else names[own], facts, seen))
    _mark_shared(blocks, watcher)
    kept = tried(model, {i: block.attention for i, block in enumerate(blocks) if block.attention is not None})
    for i, block in enumerate(blocks):
        block.seen["stored"] = kept.layers is None or i in kept.layers
    last = max(at for at, call in enumerate(seen) if call.parent == stack)
    resid_post = seen[last].out
    if resid_post is None:
        return Anatomy(tuple(blocks), None, None, kept.own_cache)
    return Anatomy(tuple(blocks), *find_head(model, seen[last + 1 :], resid_post, logits), kept.own_cache)


def _watched(model: Any) -> tuple[_Watcher, list[ModuleCall], Tensor | None]:
    """What the model's attention and its modules do on two tokens, and its logits."""
    ids = some_tokens(model, 2)[None]
    watcher = _Watcher()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with attention_through(model, dict.fromkeys(modes, watcher)), _recorded(model) as seen:
            out = model(input_ids=ids, use_cache=False)
    except InterpError:
        raise
    except Exception as error:  # whatever a model raises that needs more than text
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on text tokens alone ({type(error).__name__}: {reason}); if it "
            "contains a language model that does, load that one."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return watcher, seen, _activation(getattr(out, "logits", None))


def _stack(model: Any, blocks: list[str]) -> str:
    """The one list of layers that holds all blocks with attention."""
    stacks = sorted({name.rpartition(".")[0] for name in blocks})
    if len(stacks) > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has attention in {len(stacks)} lists of layers ({', '.join(stacks[:4])}"
            f"{', ...' if len(stacks) > 4 else ''}); a Lens numbers the layers of one."
        )
    if several := next((name for name in blocks if blocks.count(name) > 1), None):
        raise UnsupportedModelError(
            f"{several} of {type(model).__name__} has {blocks.count(several)} attention modules, and a Lens has one "
            "set of points for a layer's attention."
        )
    return stacks[0]


def _block_of(attention_name: str, model: nn.Module) -> str:
    """Name of the ancestor that sits in a ModuleList; an attention module that does itself is one of several."""
    name, found = attention_name, ""
    while name and (not found or found == attention_name):
        parent, _, _ = name.rpartition(".")
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            found = name
        name = parent
    if not found:
        raise UnsupportedModelError(
            f"attention module {attention_name} is in no list of layers, so its depth is unknown."
        )
    return found


def _block(
    model: Any, block: nn.Module, name: str, attention_name: str, facts: dict[str, Any], seen: list[ModuleCall]
) -> BlockParts:
    """The parts of the block of that name; `facts` of its attention call, if it has any."""
    calls = [call for call in seen if call.name == name]
    inside = [call for call in seen if call.name.startswith(f"{name}.")]
    found = Writers(reason="its block does not run on text alone" if not calls else "its block runs several times")
    scale = float(getattr(model.config.get_text_config(decoder=True), "residual_multiplier", 1.0))
    if len(calls) == 1 and calls[0].given is not None and calls[0].out is not None:
        found = writers(inside, calls[0].given, calls[0].out, attention_name or None, scale)

    def module(name: str | None) -> nn.Module | None:
        return None if name is None else model.get_submodule(name)

    attn_out = module(found.mixer.name if found.mixer else None)
    parts: dict[str, Any] = {
        "block": block,
        "attention": None,
        "attention_name": attention_name,
        "out_projection": None,
        "attn_out": attn_out,
        "mlp_out": module(found.mlp.name if found.mlp else None),
        "residual_scale": found.mixer.scale if found.mixer else scale,
        "mlp_scale": found.mlp.scale if found.mlp else scale,
        "parallel": found.parallel,
        "writers": found,
        "ran": bool(calls),
    }
    if not attention_name:
        return BlockParts(**parts, rotation="it has no keys", mixer=type(attn_out or block).__name__)
    attention = model.get_submodule(attention_name)
    inner = [call for call in inside if call.name.startswith(f"{attention_name}.")]
    projection, gated = _out_projection(model, attention_name, inner, facts["z"])
    tables = next((c.kwargs.get("position_embeddings") for c in inside if c.name == attention_name), None)
    written = [call.out for call in inner if call.out is not None]
    seen_facts = {k: v for k, v in facts.items() if k not in ("z", "k")} | {"rotary": tables is not None}
    rotation = rotation_of(attention, facts["k"], tables, written)
    written_by = _heads_written(inside, attention_name, found) and projection is not None
    parts |= {"attention": attention, "out_projection": projection, "gated": gated, "heads_written": written_by}
    return BlockParts(**parts, rotation=rotation, seen=seen_facts)


def _heads_written(inside: list[ModuleCall], attention_name: str, found: Writers) -> bool:
    """Whether attention's own output is what its writer adds, or what a norm reads that does."""
    if found.mixer is None:
        return False
    own = next((call for call in inside if call.name == attention_name), None)
    writer = next(call for call in inside if call.name == found.mixer.name)
    if own is None or own.out is None or writer.out is None:
        return False
    same = own.out.numel() == writer.out.numel() and torch.equal(own.out.flatten(), writer.out.flatten())
    return same or (writer.given is not None and _equal(writer.given, own.out))


def _out_projection(
    model: Any, attention_name: str, inner: list[ModuleCall], z: Tensor
) -> tuple[nn.Module | None, bool]:
    """The child of attention that reads z, and whether it reads z times a gate.

    Of a gated one no value equals z: it is the last child that is linear and reads something of z's size, each entry
    of z's sign and none where z has none (gates are positive).
    """
    children = [call for call in inner if call.parent == attention_name and call.given is not None]
    for call in children:
        if call.given is not None and call.given.numel() == z.numel() and torch.equal(call.given.reshape(z.shape), z):
            return model.get_submodule(call.name), False
    for call in reversed(children):
        if call.given is not None and call.given.shape == z.shape and _scaled_down(call.given, z):
            return model.get_submodule(call.name), True
    return None, False


def _scaled_down(x: Tensor, z: Tensor) -> bool:
    """Whether x is z times positive numbers."""
    return bool(((x * z > 0) | (x == 0) | (z == 0)).all())


def _mark_shared(blocks: list[BlockParts], watcher: _Watcher) -> None:
    """Note which layers attend to keys of an earlier layer, and whose: they share one cache."""
    keys = {i: watcher.calls[block.attention][0]["k"] for i, block in enumerate(blocks) if block.attention is not None}
    for i, k in keys.items():
        lender = next((j for j, earlier in keys.items() if j < i and _equal(earlier, k)), None)
        if lender is not None:
            blocks[i].seen["shares"] = blocks[lender].seen["shares"] = True


def _activation(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.is_floating_point() else None


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


def config_of(model: Any, anatomy: Anatomy, name: str | None) -> LensConfig:
    """Read the shape of a model from its config and from what its two-token run showed."""
    config = model.config.get_text_config(decoder=True)
    seen = [block.seen for _, block in anatomy.attending]
    windows = [int(facts["window"]) for facts in seen if facts["window"]]
    caps = [facts["softcap"] for facts in seen if facts["softcap"] is not None]
    return LensConfig(
        model_name=name or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        architecture=type(model).__name__,
        n_layers=len(anatomy.blocks),
        n_heads=max(facts["n_heads"] for facts in seen),
        n_key_value_heads=max(facts["n_key_value_heads"] for facts in seen),
        d_head=max(facts["d_head"] for facts in seen),
        d_model=config.hidden_size,
        d_vocab=int(getattr(config, "vocab_size", None) or model.get_input_embeddings().weight.shape[0]),
        n_ctx=int(getattr(config, "max_position_embeddings", 0) or 0),  # also the name of GPT-2's n_positions
        positional_embedding_type="rotary" if seen[0]["rotary"] else "other",
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=config._attn_implementation,
        window_size=windows[0] if windows else None,
        attn_types=attention_types(model, anatomy),
        attn_softcap=caps[0] if caps else None,
        learned_sinks=any(facts["sinks"] for facts in seen),
        parallel_attn_mlp=any(block.parallel for block in anatomy.blocks),
        residual_scale=anatomy.blocks[0].residual_scale,
    )


def attention_types(model: Any, anatomy: Anatomy) -> tuple[AttentionType, ...]:
    """What each layer attends to and keeps: from the window it was seen to pass, and from the class of its cache."""
    kept = kinds(model.config)

    def of(layer: int, block: BlockParts) -> AttentionType:
        if block.attention is None:
            return "none"
        at = getattr(block.attention, "layer_idx", layer)
        told = at in (layer, None, -1)  # Zamba's attention is told its number in each call
        kind = kept[layer] if told and layer < len(kept) else "other"
        if kind in ("full", "beside") and not block.seen["stored"]:
            kind = "other"
        if block.seen["window"] or kind == "sliding":
            return "local"
        if block.seen.get("shares") or kind == "none":
            return "shared"
        return "global" if kind in ("full", "beside") else "other"

    return tuple(of(layer, block) for layer, block in enumerate(anatomy.blocks))
