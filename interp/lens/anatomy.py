"""Find the parts of a transformers model by watching it run on two tokens.

No table of architectures: the attention modules are those that call what the model looks up by the name in its config
(`interp/seam/routing.py` answers to it for that run) or, where none does, those whose own code calls torch's softmax or
SDPA (`interp/seam/softmax_seam.py`). A block is their ancestor in a `ModuleList`, and what writes to the residual
stream is recognised by arithmetic (`interp.lens.writers`). Blocks without attention, of which hybrids
have many (linear attention, Mamba, convolutions), keep their place in the depth: they have a mixer in its stead. An
encoder is a stack of its own (`interp.lens.stacks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import nn

from interp.cache.kinds import kinds
from interp.lens.arguments import is_encoder_decoder
from interp.lens.first_look import TOKENS, Look, look
from interp.lens.head import final_norm, find_head
from interp.lens.parts import Anatomy, BlockParts, Stack
from interp.lens.projection import heads_written, out_projection
from interp.lens.stacks import Listed, lists_of, told_apart
from interp.lens.tower import ROTATED, see_picture
from interp.lens.trying import Tried, tried, vocabulary
from interp.lens.unrotated import rotation_of
from interp.lens.writers import ModuleCall, Writers, same_tensor, writers
from interp.seam.config import AttentionType, LensConfig, image_token_of
from interp.seam.rotation import Rotation
from interp.seam.softmax_seam import only_open


@torch.no_grad()
def dissect(model: Any, processor: Any = None) -> Anatomy:
    """Run `model` on a few tokens and find its parts; given its processor, on a small picture too.

    Raises UnsupportedModelError for models that text alone does not run, models without attention or with one that no
    seam reaches, and models with attention in several lists of layers that are no encoder and its decoder, or several
    attention calls in one layer that are not its own and one to the encoder.
    """
    seen = look(model)
    main, *further = lists_of(model, seen)
    blocks = _blocks(model, seen, main)
    _mark_shared(blocks, seen)
    others = tuple(_stack(model, seen, listed) for listed in further)
    kept = tried(model, _to_try(blocks, others), seen.in_code)
    for i, block in enumerate(blocks):
        block.seen["stored"] = kept.nothing or i in kept.layers
        block.seen["latent"] = kept.latent.get(i)
    resid_post, after = seen.leaving(main.name)
    norm, unembed = None, None
    if resid_post is not None and resid_post.shape[:2] == (1, TOKENS):
        norm, unembed = find_head(model, after, resid_post, seen.logits)
    decoder = model.get_submodule(main.name.rpartition(".")[0]) if is_encoder_decoder(model) else None
    embedding = model.get_input_embeddings() if decoder is None else _embedding(model, seen, main)
    put_out = next(
        (call.out for call in seen.seen if embedding is not None and seen.names[embedding] == call.name), None
    )
    by_token = put_out is None or put_out.shape[:2] == (1, TOKENS)
    tower = see_picture(model, processor, main.name) if decoder is None else "a Lens looks at images of decoders alone"
    unseen = tower if isinstance(tower, str) else None
    if not isinstance(tower, str):
        vision = Stack(
            tower.listed.prefix, tuple(_blocks(model, tower.look, tower.listed)), None, None, tower.projected
        )
        others = (*others, vision)
    return Anatomy(tuple(blocks), norm, unembed, kept.own, by_token, embedding, others, decoder, unseen)


def _to_try(blocks: Sequence[BlockParts], others: Sequence[Stack]) -> list[Tried]:
    """The attention modules of a model with what they attend to, for `tried`."""
    found: list[Tried] = []
    for stack in (Stack("", tuple(blocks)), *others):
        for i, block in stack.attending:
            where, layer = (f"layer {i}", i) if not stack.prefix else (f"layer {i} of the encoder", None)
            own: Literal["own", "all"] = "all" if block.whole else "own"
            found.append(Tried(block.attention, where, layer, "read" if stack.prefix else own))
            if block.cross is not None:
                found.append(Tried(block.cross.attention, where, None, "read"))
    return found


def _stack(model: Any, look: Look, listed: Listed) -> Stack:
    """A further stack: its blocks, the embedding that its tokens go through, and the norm that it ends in."""
    resid_post, after = look.leaving(listed.name)
    norm = None if resid_post is None else final_norm(model, after, resid_post)
    return Stack(listed.prefix, tuple(_blocks(model, look, listed)), _embedding(model, look, listed), norm)


def _embedding(model: Any, look: Look, listed: Listed) -> nn.Module | None:
    """The embedding of a stack's tokens: the one of the vocabulary's size that put out a vector for each of them."""
    rows = vocabulary(model)
    sizes = {name: module.num_embeddings for module, name in look.names.items() if isinstance(module, nn.Embedding)}
    for call in look.seen[: min(look.finished(listed.name))]:
        if sizes.get(call.name) == rows and call.out is not None and call.out.shape[:2] == (1, listed.tokens):
            found: nn.Module = model.get_submodule(call.name)
            return found
    return None


def _blocks(model: Any, look: Look, listed: Listed) -> list[BlockParts]:
    blocks: list[BlockParts] = []
    for i, block in enumerate(model.get_submodule(listed.name).children()):
        name = f"{listed.name}.{i}"
        own, cross = told_apart(model, look, name, listed.own(name))
        blocks.append(_block(model, block, name, own, cross, look, listed.tokens))
    return blocks


def _block(
    model: Any, block: nn.Module, name: str, own: nn.Module | None, cross: nn.Module | None, look: Look,
    tokens: int | None,
) -> BlockParts:  # fmt: skip
    """The parts of the block of that name, whose attention modules are `own` and `cross`, if it has any."""
    calls = [call for call in look.seen if call.name == name]
    inside = [call for call in look.seen if call.name.startswith(f"{name}.")]
    found = Writers(reason="its block does not run on text alone" if not calls else "its block runs several times")
    scale = float(getattr(model.config.get_text_config(decoder=True), "residual_multiplier", 1.0))
    attention_name = None if own is None else look.names[own]
    if name == attention_name:
        found = Writers(reason="its layers are attention alone, and no module holds a whole one", one_stream=False)
    elif len(calls) == 1 and calls[0].given is not None and calls[0].out is not None:
        crossing = None if cross is None else look.names[cross]
        found = writers(inside, calls[0].given, calls[0].out, attention_name, scale, tokens, crossing)

    def module(name: str | None) -> nn.Module | None:
        return None if name is None else model.get_submodule(name)

    attn_out = module(found.mixer.name if found.mixer else None)
    writing = {writer.name for writer in (found.mixer, found.cross, found.mlp) if writer is not None}
    parts: dict[str, Any] = {
        "block": block,
        "attention": None,
        "attention_name": attention_name or "",
        "out_projection": None,
        "attn_out": attn_out,
        "mlp_out": module(found.mlp.name if found.mlp else None),
        "residual_scale": found.mixer.scale if found.mixer else scale,
        "overwritten": tuple(model.get_submodule(c.name) for c in inside if c.overwritten and c.name in writing),
        "middle": module(found.middle),
        "writers": found,
        "ran": bool(calls),
    }
    if own is None:
        return BlockParts(**parts, rotation="it has no keys", mixer=type(attn_out or block).__name__)
    made = BlockParts(**parts | _attention(model, own, inside, look, found, attn_out, tokens))
    if cross is None:
        return made
    other = replace(made, **_attention(model, cross, inside, look, found, None, tokens))
    cross_out = module(found.cross.name if found.cross else None)
    return replace(made, cross=other, cross_out=cross_out, middle2=module(found.middle2))


def _attention(
    model: Any, attention: nn.Module, inside: list[ModuleCall], look: Look, found: Writers, attn_out: Any,
    tokens: int | None,
) -> dict[str, Any]:  # fmt: skip
    """What is known of one attention module of a block, as fields of its parts."""
    name, facts = look.names[attention], look.calls[attention][0]
    inner = [call for call in inside if call.name.startswith(f"{name}.")]
    projection, gated = out_projection(model, name, inner, facts["z"])
    seam = facts["seam"]
    tables = next((c.kwargs.get("position_embeddings") for c in inside if c.name == name), None)
    written = [call.out for call in inner if call.out is not None]
    seen = {k: v for k, v in facts.items() if k not in ("z", "k", "seam")} | {"rotary": tables is not None}
    seen["rotary"] &= seam != "softmax"  # keys stay inside
    if tokens is None:
        rotation: Rotation | str = ROTATED
    elif seam == "softmax":
        rotation = only_open(attention)
    else:
        rotation = rotation_of(attention, facts["k"], tables, written)
    itself = projection is not None and projection is attn_out  # Bloom's attention adds its input to what it projects
    return {
        "attention": attention,
        "attention_name": name,
        "out_projection": projection,
        "gated": gated,
        "heads_written": itself or (heads_written(inside, name, found) and projection is not None),
        "seam": seam,
        "rotation": rotation,
        "seen": seen,
        "whole": facts["n_keys"] != tokens and is_encoder_decoder(model),
    }


def _mark_shared(blocks: list[BlockParts], look: Look) -> None:
    """Note which layers attend to keys of an earlier layer, and whose: they have no cache of their own."""
    attending = [(i, block.attention) for i, block in enumerate(blocks) if block.attention and block.seam != "softmax"]
    keys = {i: look.calls[attention][0]["k"] for i, attention in attending}
    for i, k in keys.items():
        lender = next((j for j, earlier in keys.items() if j < i and same_tensor(earlier, k)), None)
        if lender is not None:
            blocks[i].seen["reads"] = lender


def config_of(model: Any, anatomy: Anatomy, name: str | None) -> LensConfig:
    """Read the shape of a model from its config and from what its two-token run showed."""
    config = model.config.get_text_config(decoder=True)
    seen = [block.seen for _, block in anatomy.attending]
    windows = [int(facts["window"]) for facts in seen if facts["window"]]
    caps = [facts["softcap"] for facts in seen if facts["softcap"] is not None]
    indexed = [layer for layer, kind in enumerate(kinds(model.config)) if kind == "indexed"]
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
        latent_layers=tuple(layer for layer, block in anatomy.attending if block.seen["latent"]),
        latent_widths=next((facts["latent"] for facts in seen if facts["latent"]), None),
        indexed_layers=tuple(indexed),
        image_token_id=image_token_of(model.config),
    )


def config_of_stack(cfg: LensConfig, stack: Stack) -> LensConfig:
    """The shape of another stack of a model whose main one has the shape `cfg`. An encoder keeps no cache."""
    seen = [block.seen for _, block in stack.attending]
    windows = [int(facts["window"]) for facts in seen if facts["window"]]
    kinds_seen = {i: "local" if block.seen["window"] else "global" for i, block in stack.attending}
    types = tuple(kinds_seen.get(i, "none") for i in range(len(stack.blocks)))
    return replace(
        cfg,
        n_layers=len(stack.blocks),
        n_heads=max(facts["n_heads"] for facts in seen),
        n_key_value_heads=max(facts["n_key_value_heads"] for facts in seen),
        d_head=max(facts.get("d_head", cfg.d_head) for facts in seen),
        d_model=getattr(stack.embedding, "embedding_dim", cfg.d_model),
        positional_embedding_type="rotary" if seen[0]["rotary"] else "other",
        window_size=windows[0] if windows else None,
        attn_types=cast("tuple[AttentionType, ...]", types),
        parallel_attn_mlp=any(block.writers.parallel for block in stack.blocks),
        residual_scale=stack.blocks[0].residual_scale,
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
        if block.seen["latent"] and kind in ("full", "indexed"):
            return "global"
        if kind in ("full", "beside") and not block.seen["stored"]:
            kind = "other"
        if block.seen["window"] or kind == "sliding":
            return "local"
        if "reads" in block.seen or kind == "none":
            return "shared"
        return "global" if kind in ("full", "beside") else "other"

    return tuple(of(layer, block) for layer, block in enumerate(anatomy.blocks))
