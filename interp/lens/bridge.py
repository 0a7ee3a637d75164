"""`BridgeLens`: a TransformerLens `TransformerBridge` behind the same names.

A bridge recomputes attention eagerly and fires its own hooks, so no attention call is routed through the seam here. Its
points are hooked where they are; observables and attention events are computed from the queries, keys, values and
scores that the bridge shows. What a bridge does not have on an architecture is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.base import CachePolicy
from interp.interventions.edits.base import AttentionEdit
from interp.lens.evaluating import check_mode, evaluating
from interp.lens.finite import refuse_lost
from interp.lens.generation import expect_counts
from interp.lens.head import FIT, Step, logit_map
from interp.lens.parts import Anatomy, BlockParts
from interp.lens.reading_input import unpacked, without_padding, without_types
from interp.lens.readout import FinalNorm
from interp.lens.scoring import as_asked, check_return_type
from interp.lens.spelling import Spelling
from interp.lens.strict_hooks import Hook, HookedLens, HookPoint, HookTree, drop_strays
from interp.lens.weights_by_name import WeightsMixin
from interp.lens.writers import Writer, Writers
from interp.seam import points as table
from interp.seam.attention import OBSERVABLES, show
from interp.seam.config import LensConfig, image_token_of
from interp.seam.event import AttentionEvent
from interp.seam.points import live
from interp.undoing import Undo, undoing

Tensor = torch.Tensor


class BridgeLens(WeightsMixin, HookedLens):
    """The Lens interface on a TransformerBridge, for probes and hooks. The bridge is used as it is."""

    cfg: LensConfig
    anatomy: Anatomy
    edits_in_force: tuple[AttentionEdit, ...] = ()
    policies_in_force: tuple[CachePolicy, ...] = ()

    def __init__(self, bridge: Any, tokenizer: Any = None) -> None:
        super().__init__()
        self.last_logits_only: dict[str, Any] = {}
        self.bridge, self.model = bridge, bridge.original_model
        self.tokenizer = tokenizer or bridge.tokenizer
        self.cfg = _config(bridge)
        self.blocks = nn.ModuleList()
        for layer in range(self.cfg.n_layers):
            self._furnish(layer)
        self.hook_dict |= self._borrow("hook_embed", table.EMBED, bridge, "hook_embed")
        self.hook_dict |= self._borrow("ln_final.hook_normalized", table.FINAL, bridge.ln_final, "hook_out")
        self.ln_final = FinalNorm(bridge.ln_final)
        with evaluating(self):
            self.anatomy = self._try_on_two_tokens()
        self.mod_dict = dict(self.hook_dict)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.bridge.parameters()).device
        return device

    def _furnish(self, layer: int) -> None:
        """Points of one block: the bridge's own where it has them, ours for observables."""
        block = self.bridge.blocks[layer]
        room = HookTree()
        room.attn = HookTree()
        self.blocks.append(room)
        delegates = type(block.attn).__name__ == "AttentionBridge"
        rotary = hasattr(block.attn, "hook_rot_q")
        for point in table.attention_points(rotary):
            name, short = f"blocks.{layer}.{point.name}", point.name.removeprefix("attn.")
            if delegates and short != "hook_z":
                self.absent[name] = (
                    "this bridge hands attention to transformers and sees neither rotated keys nor scores"
                )
            elif point is table.PRE_ROTARY:
                self.absent[name] = "a TransformerBridge does not show keys between QK-norm and rotation"
            elif point.mode == "observable":
                made = self._place(point, name)
                room.attn.add_module(short, made)
                self.hook_dict[name] = made
            else:
                self.hook_dict |= self._borrow(name, point, block.attn, short)
        for point in table.RESIDUAL:
            self.hook_dict |= self._borrow(f"blocks.{layer}.{point.name}", point, block, point.name)

    def _borrow(self, name: str, point: table.Point, owner: nn.Module, attribute: str) -> dict[str, HookPoint]:
        """The bridge's own hook point under our name, or a note that it has none."""
        found = getattr(owner, attribute, None)
        if not isinstance(found, HookPoint):
            self.absent[name] = "this TransformerBridge has no such hook point"
            return {}
        self.point_table[name] = point
        return {name: found}

    @property
    def hook_dict(self) -> dict[str, HookPoint]:
        """Hook points by our names; the bridge's own points carry the bridge's names themselves."""
        points: dict[str, HookPoint] = self.__dict__.setdefault("_points", {})
        return points

    @hook_dict.setter
    def hook_dict(self, points: dict[str, HookPoint]) -> None:
        self.__dict__["_points"] = points

    def forward(
        self, input: Any = None, return_type: str | None = "logits", attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        """Run the bridge on text, tokens `[batch, pos]` or what a tokenizer returned; as `Lens.forward`, without a
        cache."""
        check_return_type(return_type)
        input, attention_mask, kwargs = unpacked(input, attention_mask, kwargs)
        if "inputs_embeds" in kwargs:
            raise InterpError("a TransformerBridge reads tokens; load the transformers model itself for inputs_embeds.")
        without_types(kwargs, ())
        tokens, attention_mask = self.tokens_and_mask(input, attention_mask, spelled=Spelling.taken(kwargs))
        self.check_length(tokens.shape[1])
        self.check_mask(attention_mask, tokens, 0)
        if attention_mask is not None:
            kwargs["attention_mask"] = attention_mask
        with undoing() as undo, self._gate.held(), self._watching() as watched:
            check_mode(self.bridge.modules(), bool(watched), False)
            for layer in range(self.cfg.n_layers):
                points = {name: watched.get(f"blocks.{layer}.attn.hook_{name}") for name in OBSERVABLES}
                wanted = {name: point for name, point in points.items() if point is not None}
                if wanted:
                    self._collect(layer, undo, partial(self._show, layer, wanted, attention_mask))
            logits = self.bridge(tokens, **kwargs)
        return as_asked(
            self, return_type, logits, tokens, attention_mask, read=partial(without_padding, tokens, attention_mask)
        )

    def generate(self, input: Any = None, **kwargs: Any) -> Any:
        """The bridge's own `generate`, with its own arguments and hooks; observables are refused there.

        Texts go to it as they are, and anything else that a Lens reads as tokens, which must not be padded.
        """
        watched = [n for n, point in self.hook_dict.items() if live(point) and self.point_table[n].mode == "observable"]
        if watched:
            raise UnsupportedModelError(
                f"{watched[0]} is computed in single passes of a TransformerBridge, not in generate."
            )
        expect_counts(kwargs)
        input, attention_mask, kwargs = unpacked(input, kwargs.pop("attention_mask", None), kwargs)
        without_types(kwargs, ())
        if "inputs_embeds" in kwargs:
            raise InterpError("a TransformerBridge reads tokens; load the transformers model itself for inputs_embeds.")
        tokens, mask = self.tokens_and_mask(input, attention_mask)  # texts too, for what is wrong with one
        texts = isinstance(input, str) or (isinstance(input, list) and isinstance(input[0], str))
        if not texts and isinstance(mask, Tensor) and not bool(mask.all()):
            raise InterpError("a TransformerBridge generates without a mask; pass rows of one length, or texts.")
        with self._gate.held(), evaluating(self):
            return self.bridge.generate(input if texts else tokens, **kwargs)

    def apply(self, intervention: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # not torch's `apply(fn)`
        """Not on a bridge: raises UnsupportedModelError."""
        raise UnsupportedModelError(
            "a TransformerBridge computes attention itself, out of reach of cache policies and attention edits; "
            "load the transformers model itself and apply them there."
        )

    @torch.no_grad()
    def _show(self, layer: int, wanted: dict[str, HookPoint], mask: Tensor | None, seen: dict[str, Tensor]) -> None:
        event = self._event(layer, seen, mask)
        for name, point in wanted.items():
            show(point, OBSERVABLES[name](event))

    def _collect(self, layer: int, undo: Undo, use: Callable[[dict[str, Tensor]], None]) -> None:
        """Pass one layer's queries, keys, values, scores and pattern to `use` as soon as the pattern appears."""
        attention = self.bridge.blocks[layer].attn
        prefix = "hook_rot_" if self.rotary else "hook_"
        seen: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: HookPoint, name: str) -> None:
            seen[name] = value.detach()
            if name == "pattern":
                use(seen)

        names = {
            "q": f"{prefix}q",
            "k": f"{prefix}k",
            "v": "hook_v",
            "scores": "hook_attn_scores",
            "pattern": "hook_pattern",
        }
        for name, hook in names.items():
            _hooked(getattr(attention, hook), partial(keep, name=name), undo)

    def _event(self, layer: int, seen: dict[str, Tensor], attention_mask: Tensor | None) -> AttentionEvent:
        """The attention event of what a bridge showed; the mask is read off its scores."""
        scores, source = seen["scores"], self.bridge.blocks[layer].attn.original_component
        facts: dict[str, Any] = {"mask": scores[:, :1] > torch.finfo(scores.dtype).min / 2}
        if attention_mask is not None:
            facts |= {"key_mask": attention_mask.bool(), "query_mask": attention_mask.bool()}
        q, k, v = (seen[n].transpose(1, 2) for n in "qkv")
        return AttentionEvent(
            layer=layer,
            q=q,
            k=k,
            v=v,
            scale=float(getattr(source, "scaling", q.shape[-1] ** -0.5)),
            facts=facts,
            softcap=getattr(source, "attn_logit_softcapping", None),
        )

    @torch.no_grad()
    def _try_on_two_tokens(self) -> Anatomy:
        """Drop the points that exist but never fire, and observables where attention is more than we would compute."""
        fired: set[str] = set()
        raw: list[Tensor] = []
        shown: dict[int, dict[str, Tensor]] = {}
        with undoing() as undo:
            undo.hook(self.bridge.unembed, lambda m, a, out: raw.append(out))
            for name, point in self.hook_dict.items():
                _hooked(point, lambda value, hook, name=name: fired.add(name), undo)
            for layer in range(self.cfg.n_layers):
                if f"blocks.{layer}.attn.hook_pattern" in self.hook_dict:
                    self._collect(layer, undo, partial(shown.__setitem__, layer))
            tokens = torch.tensor([[self.cfg.d_vocab // 3, self.cfg.d_vocab // 2]], device=self.device)
            logits = self.bridge(tokens)
        refuse_lost(self, tokens, logits)  # then nothing is found by arithmetic
        for name in [n for n in self.hook_dict if n not in fired and self.point_table[n].mode != "observable"]:
            self._drop(name, "this TransformerBridge has the hook point but never fires it")
        for layer in range(self.cfg.n_layers):
            if (reason := self._opaque(layer, shown.get(layer, {}))) is not None:
                for name in OBSERVABLES:
                    self._drop(f"blocks.{layer}.attn.hook_{name}", reason)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        last = logit_map(raw[0], logits, cap) if raw else None
        return Anatomy(self._parts(), _wrapped(self.bridge.ln_final), None if last is None else self._unembedding(last))

    def _unembedding(self, last: Step) -> Step:
        head = self.model.get_output_embeddings()
        return lambda normalized: last(head(normalized))

    def _opaque(self, layer: int, seen: dict[str, Tensor]) -> str | None:
        """Why observables of a layer cannot be computed from what its bridge shows, or None when they can."""
        if missing := [name for name in ("q", "k", "v", "scores") if name not in seen]:
            return f"it is computed from {', '.join(missing)}, which this TransformerBridge never fires"
        pattern = seen["pattern"].float()
        if seen["q"].shape[-1] != self.cfg.d_head or not torch.allclose(
            self._event(layer, seen, None).pattern().to(pattern), pattern, rtol=FIT[seen["q"].dtype], atol=1e-5
        ):
            return "this attention is more than a softmax of scaled products (learned sinks, ALiBi, latent keys)"
        return None

    def _drop(self, name: str, reason: str) -> None:
        if self.hook_dict.pop(name, None) is not None:
            self.absent[name] = reason

    @property
    def rotary(self) -> bool:
        return self.cfg.positional_embedding_type == "rotary"

    def _parts(self) -> tuple[BlockParts, ...]:
        """The modules that reading out needs, by the names that a bridge gives them."""
        return tuple(
            BlockParts(
                block=block,
                attention=block.attn,
                attention_name=f"blocks.{i}.attn",
                out_projection=getattr(block.attn, "o", None),
                attn_out=_wrapped(block.ln1_post) if hasattr(block, "ln1_post") else block.attn,
                mlp_out=getattr(block, "ln2_post", block.mlp),
                residual_scale=self.cfg.residual_scale,
                rotation="a TransformerBridge rotates keys itself",
                writers=Writers(Writer("attn"), Writer("mlp"), self.cfg.parallel_attn_mlp),
            )
            for i, block in enumerate(self.bridge.blocks)
        )


def _hooked(point: HookPoint, hook: Hook, undo: Undo) -> None:
    """Put a hook on a point until the end of `undo`."""
    undo.later(_unhooked, point, hook)
    point.add_hook(hook)


def _unhooked(point: HookPoint, hook: Hook) -> None:
    for handle in [handle for handle in point.fwd_hooks if handle.user_hook is hook]:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)
    drop_strays(point)


def _wrapped(component: Any) -> nn.Module:
    """The model's own module inside a bridge's component."""
    module: nn.Module = component.original_component
    return module


def _config(bridge: Any) -> LensConfig:
    cfg, source = bridge.cfg, bridge.original_model.config
    windows = [getattr(block.attn.original_component, "sliding_window", None) for block in bridge.blocks]
    return LensConfig(
        model_name=getattr(cfg, "model_name", None) or type(bridge.original_model).__name__,
        architecture=type(bridge.original_model).__name__,
        n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_key_value_heads=cfg.n_key_value_heads or cfg.n_heads,
        d_head=cfg.d_head, d_model=cfg.d_model, d_vocab=cfg.d_vocab, n_ctx=cfg.n_ctx,
        positional_embedding_type="rotary" if hasattr(bridge.blocks[0].attn, "hook_rot_q") else "other",
        dtype=str(next(bridge.parameters()).dtype).removeprefix("torch."), device=str(next(bridge.parameters()).device),
        attention="TransformerBridge", window_size=next((w for w in windows if w), None),
        attn_types=tuple("local" if w else "global" for w in windows),
        attn_softcap=getattr(source, "attn_logit_softcapping", None),
        learned_sinks=hasattr(bridge.blocks[0].attn.original_component, "sinks"),
        parallel_attn_mlp=not hasattr(bridge.blocks[0], "hook_resid_mid"),
        residual_scale=float(getattr(source, "residual_multiplier", 1.0)), image_token_id=image_token_of(source),
    )  # fmt: skip
