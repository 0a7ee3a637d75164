"""Find the parts of a transformers model by watching it run on two tokens.

No table of architectures: the attention modules are those that call what the model looks up by the name in its config
(`interp/seam/routing.py` answers to it for that run) or, where none does, those whose own code calls torch's softmax or
SDPA (`interp/seam/softmax_seam.py`). A block is their ancestor in a `ModuleList`, and what writes to the residual
stream is recognised by arithmetic (`interp.lens.writers`). Blocks without attention, of which hybrids
have many (linear attention, Mamba, convolutions), keep their place in the depth: they have a mixer in its stead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from interp.cache.kinds import kinds
from interp.errors import InterpError, UnsupportedModelError
from interp.lens.evaluating import evaluation_mode
from interp.lens.finite import NonFiniteError, said_of
from interp.lens.head import Step, find_head
from interp.lens.projection import heads_written, out_projection
from interp.lens.trying import some_tokens, tried
from interp.lens.unrotated import rotation_of
from interp.lens.writers import ModuleCall, Writers, same_tensor, writers
from interp.seam.call import AttentionCall
from interp.seam.config import AttentionType, LensConfig
from interp.seam.rotation import Rotation
from interp.seam.routing import attention_through, refusal
from interp.seam.softmax_seam import SoftmaxNotes, only_open, own_attention_through
from interp.undoing import undoing

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
    rotation: Rotation | str
    """How to rotate keys back, or why that cannot be done."""
    seen: dict[str, Any] = field(default_factory=dict)
    """Facts from the two-token run: n_heads, n_key_value_heads, d_head, keywords of the attention call."""
    writers: Writers = field(default_factory=Writers)
    middle: nn.Module | None = None
    """The norm whose output is resid_mid, where norms follow sums."""
    mixer: str = "attention"
    """What mixes tokens here, for people: attention, or the class of what stands in its place."""
    ran: bool = True
    """False for a block that text alone does not pass (cross-attention to an image)."""
    gated: bool = False
    """Whether what the output projection reads is z times a gate."""
    overwritten: tuple[nn.Module, ...] = ()
    """Those that write to the residual stream whose output the model changes in place (Falcon adds attention's to the
    MLP's), so that what hooks see must be a copy."""
    heads_written: bool = True
    """Whether what the output projection puts out reaches the residual stream through `attn_out` alone, so that it can
    be told what each head adds."""
    seam: Literal["registry", "sdpa", "softmax"] = "registry"
    """How its attention is reached: through transformers' registry, or where its own code calls SDPA or softmax."""


@dataclass(frozen=True)
class Anatomy:
    """Parts of a decoder, in order of depth."""

    blocks: tuple[BlockParts, ...]
    final_norm: nn.Module | None
    unembed: Step | None
    """From the normalised residual stream to the model's logits; None where the way there could not be found."""
    own_cache: bool = False
    """Whether the model keeps a cache of a class of its own."""
    embeds_by_token: bool = True
    """Whether the token embedding puts out a vector a token, `[batch, pos, d_model]`."""

    @property
    def attending(self) -> Iterator[tuple[int, BlockParts]]:
        """The blocks that have attention, with their numbers."""
        return ((i, block) for i, block in enumerate(self.blocks) if block.attention is not None)

    @property
    def additive(self) -> bool:
        """Whether the last residual stream is the sum of what goes into the first block and what blocks write."""
        return all(block.writers.complete or not block.ran for block in self.blocks)


def first(value: Any) -> Any:
    """The tensor of a module's output, which may be a tuple or a list."""
    return value[0] if isinstance(value, (tuple, list)) else value


class _Watcher(SoftmaxNotes):
    """Stands in as the site of every attention module: notes the calls and delegates them."""

    def __init__(self, in_code: bool) -> None:
        super().__init__()
        self.in_code = in_code
        """Whether the calls that it gets come from modelling files' own code."""

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        z, weights = call.answer()
        q, k, rest = call.q, call.k, call.rest
        facts = {
            "n_heads": q.shape[1],
            "n_key_value_heads": k.shape[1],
            "d_head": q.shape[3],
            "seam": "sdpa" if self.in_code else "registry",
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
            out = _activation(out)
            seen.append(ModuleCall(name, _activation(given), None if out is None else out.clone(), kwargs, out))

        return hook

    with undoing() as undo:
        for name, module in model.named_modules():
            undo.hook(module, note(name), with_kwargs=True)
        yield seen


@torch.no_grad()
def dissect(model: Any) -> Anatomy:
    """Run `model` on two tokens and find its parts.

    Raises UnsupportedModelError for encoder-decoder models, models that text alone does not run, models without
    attention or with one that no seam reaches, and models with more than one stack of attention layers, or several
    attention calls in one of them.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model; a Lens reads decoder-only models."
        )
    watcher, seen, logits = _watched(model, in_code=False)
    if logits is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head; load the ...ForCausalLM class of this architecture."
        )
    if (said := said_of(model, seen, logits)) is not None:  # then nothing is found by arithmetic
        raise NonFiniteError(said)
    if in_code := not watcher.calls:
        watcher, seen, _ = _watched(model, in_code)
    if not watcher.calls or watcher.unread.intersection(watcher.calls):
        raise UnsupportedModelError(refusal(model, attends=bool(watcher.unread)))
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
    attention = {i: block.attention for i, block in enumerate(blocks) if block.attention is not None}
    kept = tried(model, attention, in_code)
    for i, block in enumerate(blocks):
        block.seen["stored"] = kept.nothing or i in kept.layers
    embedding = next((call.out for call in seen if names[model.get_input_embeddings()] == call.name), None)
    by_token = embedding is None or embedding.shape[:2] == (1, 2)
    last = max(at for at, call in enumerate(seen) if call.parent == stack)
    resid_post = seen[last].out
    if resid_post is None or resid_post.shape[:2] != (1, 2):
        return Anatomy(tuple(blocks), None, None, kept.own, by_token)
    return Anatomy(tuple(blocks), *find_head(model, seen[last + 1 :], resid_post, logits), kept.own, by_token)


def _watched(model: Any, in_code: bool) -> tuple[_Watcher, list[ModuleCall], Tensor | None]:
    """What the model's attention and its modules do on two tokens, and its logits.

    in_code: look at what modelling files compute themselves, rather than at the attention registry.
    """
    ids = some_tokens(model, 2)[None]
    watcher = _Watcher(in_code)
    modules = list(model.modules())
    inside = [module for module in modules if in_code and any(module.children())]  # an nn.Softmax is not what attends
    try:
        with (
            evaluation_mode(model),
            attention_through(model, dict.fromkeys(modules, watcher)),
            own_attention_through(model, dict.fromkeys(inside, watcher)),
            _recorded(model) as seen,
        ):
            out = model(input_ids=ids, use_cache=False)
    except InterpError:
        raise
    except Exception as error:  # whatever a model raises that needs more than text
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on text tokens alone ({type(error).__name__}: {reason}); if it "
            "contains a language model that does, load that one."
        ) from error
    if set(modules) != set(model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} replaced modules of its own when it read two tokens: its attention depends on how "
            "long a text is. Load it in a mode that does not (BigBird: attention_type='original_full')."
        )
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
    if name == attention_name:
        found = Writers(reason="its layers are attention alone, and no module holds a whole one", one_stream=False)
    elif len(calls) == 1 and calls[0].given is not None and calls[0].out is not None:
        found = writers(inside, calls[0].given, calls[0].out, attention_name or None, scale)

    def module(name: str | None) -> nn.Module | None:
        return None if name is None else model.get_submodule(name)

    attn_out = module(found.mixer.name if found.mixer else None)
    writing = {writer.name for writer in (found.mixer, found.mlp) if writer is not None}
    parts: dict[str, Any] = {
        "block": block,
        "attention": None,
        "attention_name": attention_name,
        "out_projection": None,
        "attn_out": attn_out,
        "mlp_out": module(found.mlp.name if found.mlp else None),
        "residual_scale": found.mixer.scale if found.mixer else scale,
        "overwritten": tuple(model.get_submodule(c.name) for c in inside if c.overwritten and c.name in writing),
        "middle": module(found.middle),
        "writers": found,
        "ran": bool(calls),
    }
    if not attention_name:
        return BlockParts(**parts, rotation="it has no keys", mixer=type(attn_out or block).__name__)
    attention = model.get_submodule(attention_name)
    inner = [call for call in inside if call.name.startswith(f"{attention_name}.")]
    projection, gated = out_projection(model, attention_name, inner, facts["z"])
    seam = facts["seam"]
    tables = next((c.kwargs.get("position_embeddings") for c in inside if c.name == attention_name), None)
    written = [call.out for call in inner if call.out is not None]
    seen_facts = {k: v for k, v in facts.items() if k not in ("z", "k", "seam")} | {"rotary": tables is not None}
    seen_facts["rotary"] &= seam != "softmax"  # keys stay inside
    rotation = only_open(attention) if seam == "softmax" else rotation_of(attention, facts["k"], tables, written)
    itself = projection is not None and projection is attn_out  # Bloom's attention adds its input to what it projects
    written_by = itself or (heads_written(inside, attention_name, found) and projection is not None)
    parts |= {"attention": attention, "out_projection": projection, "gated": gated, "heads_written": written_by}
    parts["seam"] = seam
    return BlockParts(**parts, rotation=rotation, seen=seen_facts)


def _mark_shared(blocks: list[BlockParts], watcher: _Watcher) -> None:
    """Note which layers attend to keys of an earlier layer, and whose: they have no cache of their own."""
    attending = [(i, block.attention) for i, block in enumerate(blocks) if block.attention and block.seam != "softmax"]
    keys = {i: watcher.calls[attention][0]["k"] for i, attention in attending}
    for i, k in keys.items():
        lender = next((j for j, earlier in keys.items() if j < i and same_tensor(earlier, k)), None)
        if lender is not None:
            blocks[i].seen["reads"] = lender


def _activation(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.is_floating_point() else None


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
        d_head=max(facts.get("d_head", config.hidden_size // facts["n_heads"]) for facts in seen),
        d_model=config.hidden_size,
        d_vocab=int(getattr(config, "vocab_size", None) or model.get_input_embeddings().weight.shape[0]),
        n_ctx=max(0, int(getattr(config, "max_position_embeddings", 0) or 0)),  # GPT-2's n_positions; -1 in XLNet
        positional_embedding_type="rotary" if seen[0]["rotary"] else "other",
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attention=config._attn_implementation,
        window_size=windows[0] if windows else None,
        attn_types=attention_types(model, anatomy),
        attn_softcap=caps[0] if caps else None,
        learned_sinks=any(facts["sinks"] for facts in seen),
        parallel_attn_mlp=any(block.writers.parallel for block in anatomy.blocks),
        residual_scale=anatomy.blocks[0].residual_scale,
    )


def attention_types(model: Any, anatomy: Anatomy) -> tuple[AttentionType, ...]:
    """What each layer attends to and keeps: from the window it was seen to pass, and from the class of its cache."""
    kept = kinds(model.config)

    def of(layer: int, block: BlockParts) -> AttentionType:
        if block.attention is None:
            return "none"
        if block.seam == "softmax":
            return "other"
        kind = kept[layer] if layer < len(kept) else "other"
        if kind in ("full", "beside") and not block.seen["stored"]:
            kind = "other"
        if block.seen["window"] or kind == "sliding":
            return "local"
        if "reads" in block.seen or kind == "none":
            return "shared"
        return "global" if kind in ("full", "beside") else "other"

    return tuple(of(layer, block) for layer, block in enumerate(anatomy.blocks))
