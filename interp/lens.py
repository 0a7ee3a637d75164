"""`Lens`: TransformerLens' hook points around an unmodified transformers model.

A Lens owns hook points with TransformerLens' names and the habits that go with them (`run_with_cache`,
`run_with_hooks`, `hooks`). It changes nothing in the model: for the time of one call it registers forward hooks on the
modules that the hooked points need and routes attention through `interp.attention`; with no hook it calls the model and
nothing else.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from interp import points as table
from interp.anatomy import BlockParts, dissect, first
from interp.attention import Rotation, Site, attention_through, live
from interp.cache import LensCache
from interp.config import LensConfig, config_of
from interp.errors import InterpError, UnsupportedModelError
from interp.hooked import HookedLens, HookPoint, Room
from interp.readout import FinalNorm, ReadoutMixin
from interp.text import TextMixin

Tensor = torch.Tensor
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class Lens(TextMixin, ReadoutMixin, HookedLens):
    """Hook points around `model`, any decoder-only transformers model whose attention goes through the registry.

    Args:
        model: a loaded transformers model; it is used as it is, never copied or changed.
        tokenizer: its tokenizer, or None to work with token tensors only.
        name: what results call the model.

    Raises:
        UnsupportedModelError: attention that a Lens could not see or would compute wrongly.
    """

    def __init__(self, model: Any, tokenizer: Any = None, name: str | None = None) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.anatomy = dissect(model)
        self.cfg: LensConfig = config_of(model, self.anatomy, name)
        self.last_cache: LensCache | None = None
        self._build_points()
        self.setup()
        _refuse_lossy_delegates(self.cfg)
        takes = inspect.signature(model.forward).parameters
        self.LAST_LOGITS_ONLY = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._lock = _locks.setdefault(model, threading.RLock())
        self._inside = False

    def _build_points(self) -> None:
        parts = self.anatomy
        self.hook_embed = self._place(table.EMBED, "hook_embed")
        self.blocks = nn.ModuleList()
        for layer, block in enumerate(parts.blocks):
            room = Room()
            room.attn = Room()
            self.blocks.append(room)
            for point in table.attention_points(block.seen["rotary"]):
                room.attn.add_module(
                    point.name.removeprefix("attn."), self._place(point, f"blocks.{layer}.{point.name}")
                )
            for point in table.RESIDUAL:
                name = f"blocks.{layer}.{point.name}"
                if (reason := _missing(point.name, block)) is None:
                    room.add_module(point.name, self._place(point, name))
                else:
                    self.absent[name] = reason
            rotation = Rotation.of(block.attention, block.seen["d_head"])
            if block.seen["rotary"] and isinstance(rotation, str):
                del room.attn.hook_pre_rot_k
                self.absent[f"blocks.{layer}.attn.hook_pre_rot_k"] = rotation
        if parts.final_norm is not None:
            self.ln_final = FinalNorm(parts.final_norm)
            self.ln_final.hook_normalized = self._place(table.FINAL, "ln_final.hook_normalized")

    @contextmanager
    def hooks(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in TransformerLens; while the block runs, other threads that call this Lens wait."""
        with self._lock, super().hooks(*args, **kwargs) as hooked:
            yield hooked

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model on text, a list of texts, or tokens `[batch, pos]`.

        Returns logits `[batch, pos, d_vocab]` (`"logits"`), the mean next-token loss in nats (`"loss"`), both as a pair
        (`"both"`), or None. Texts of different length are padded on the left and masked. Keywords go to the model;
        `use_cache=False` unless asked for, and then the cache used is `lens.last_cache`. Position ids follow the mask.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise InterpError(f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}.")
        tokens, attention_mask = self.tokens_and_mask(input, attention_mask)
        past = self._with_cache(kwargs, kwargs.setdefault("use_cache", False))
        seen = past.get_seq_length() if past is not None else 0
        self.check_length(seen + tokens.shape[1])
        if attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask.all()):
            kwargs.setdefault("position_ids", (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, seen:])
        with self._session(past):
            logits = self.model(input_ids=tokens, attention_mask=attention_mask, **kwargs).logits
        if return_type in ("loss", "both"):
            loss = next_token_loss(logits, tokens, attention_mask)
            return loss if return_type == "loss" else (logits, loss)
        return logits if return_type == "logits" else None

    def generate(self, input: Any, max_new_tokens: int = 64, chat: bool = False, **kwargs: Any) -> Any:
        """transformers' `generate` with hooks alive: text in, text out; tokens in, tokens out.

        A string returns the whole text (prompt and continuation, special tokens left out), a list of strings a list, a
        tensor `[batch, pos]` the tensor with the new tokens appended. `chat=True` puts a string through the tokenizer's
        chat template and returns only the reply. Greedy unless `do_sample=True`; keywords go to transformers.
        """
        tokens, attention_mask = self.tokens_and_mask(input, kwargs.pop("attention_mask", None), chat=chat)
        self.check_length(tokens.shape[1] + 1)
        kwargs.setdefault("do_sample", False)
        if "past_key_values" not in kwargs and kwargs.get("use_cache", True):
            kwargs["past_key_values"] = LensCache(self.model.config)
        past = self._with_cache(kwargs, kwargs.get("use_cache", True))
        if attention_mask is None:
            attention_mask = torch.ones_like(tokens)
        with self._session(past), torch.no_grad():
            out = self.model.generate(tokens, attention_mask=attention_mask, max_new_tokens=max_new_tokens, **kwargs)
        if isinstance(input, Tensor):
            return out
        sequences = out if isinstance(out, Tensor) else out.sequences
        texts = self.tokenizer.batch_decode(sequences[:, tokens.shape[1] if chat else 0 :], skip_special_tokens=True)
        return texts[0] if isinstance(input, str) else texts

    def _with_cache(self, kwargs: dict[str, Any], use_cache: bool) -> Any:
        """The cache of this call, a fresh `LensCache` where one is wanted and none was given."""
        past = kwargs.get("past_key_values")
        if past is None and use_cache:
            past = kwargs["past_key_values"] = LensCache(self.model.config)
        self.last_cache = past if use_cache else None
        return past

    @contextmanager
    def _session(self, cache: Any) -> Iterator[None]:
        """Everything that must be in place while the model runs, and is gone afterwards whatever happens."""
        with self._lock, ExitStack() as stack:
            if self._inside:
                raise InterpError(
                    "the Lens was called from inside one of its own hooks; call lens.model there instead."
                )
            self._inside = True
            stack.callback(setattr, self, "_inside", False)
            watched = {name: point for name, point in self.hook_dict.items() if live(point)}
            if watched:
                fired = self._note_firing(watched, stack)
                self._attach(watched, cache, stack)
            yield
            if watched and (silent := sorted(watched.keys() - fired)):
                warnings.warn(f"hooks on {', '.join(silent)} did not fire in this call.", stacklevel=4)

    def _note_firing(self, watched: dict[str, HookPoint], stack: ExitStack) -> set[str]:
        fired: set[str] = set()
        for name, point in watched.items():
            stack.callback(point.register_forward_pre_hook(lambda *_, name=name: fired.add(name)).remove)
        return fired

    def _attach(self, watched: dict[str, HookPoint], cache: Any, stack: ExitStack) -> None:
        """Hooks on the model's modules for the residual stream, the attention seam for everything in `attn`."""

        def on(module: nn.Module, hook: Callable) -> None:
            stack.callback(module.register_forward_hook(hook).remove)

        if "hook_embed" in watched:
            on(self.model.get_input_embeddings(), lambda m, a, out: self.hook_embed(out))
        if "ln_final.hook_normalized" in watched:
            on(self.anatomy.final_norm, lambda m, a, out: self.ln_final.hook_normalized(out))
        for layer, part in enumerate(self.anatomy.blocks):
            self._attach_residual(part, self.blocks[layer], stack, on)
        if any(".attn." in name for name in watched):
            sites = [self._site(layer, stack) for layer in range(self.cfg.n_layers)]
            by_module = {part.attention: site for part, site in zip(self.anatomy.blocks, sites, strict=True)}
            stack.enter_context(attention_through(self.model, by_module))
            if isinstance(cache, LensCache):
                cache.listener = lambda layer, k, v: sites[layer].store(k, v)
                stack.callback(setattr, cache, "listener", None)

    def _attach_residual(self, part: BlockParts, room: Any, stack: ExitStack, on: Callable) -> None:
        point = lambda name: getattr(room, name, None)  # noqa: E731
        if live(point("hook_resid_pre")) or live(point("hook_resid_mid")):
            resid: dict[str, Tensor] = {}

            def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
                given = args[0] if args else kwargs["hidden_states"]
                resid["pre"] = given = room.hook_resid_pre(given)
                return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

            stack.callback(part.block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        if live(point("hook_attn_out")):
            on(part.attn_out, written_through(room.hook_attn_out, part.residual_scale))
        if live(point("hook_resid_mid")):
            on(part.attn_out, written_through(room.hook_resid_mid, part.residual_scale, lambda: resid["pre"]))
        if live(point("hook_mlp_out")):
            on(part.mlp_out, written_through(room.hook_mlp_out, part.residual_scale))
        if live(point("hook_resid_post")):
            on(part.block, lambda m, a, out: replaced(out, room.hook_resid_post(first(out))))

    def _site(self, layer: int, stack: ExitStack) -> Site:
        part = self.anatomy.blocks[layer]
        names = {
            p.name: self.hook_dict.get(f"blocks.{layer}.{p.name}") for p in table.attention_points(part.seen["rotary"])
        }
        rotation = Rotation.of(part.attention, part.seen["d_head"])
        site = Site(layer, {n: p for n, p in names.items() if p is not None}, self.cfg.attention, rotation)

        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            site.position_embeddings = kwargs.get("position_embeddings")

        stack.callback(part.attention.register_forward_pre_hook(note, with_kwargs=True).remove)
        return site


def replaced(out: Any, value: Tensor) -> Any:
    """A module's output with its tensor replaced; the rest of a tuple stays."""
    return (value, *out[1:]) if isinstance(out, tuple) else value


def written_through(point: HookPoint, scale: float, start: Callable[[], Any] = lambda: 0.0) -> Callable[..., Any]:
    """A forward hook on a module whose output, times `scale`, is added to the residual stream.

    The point sees `start()` + what the module writes: the written part alone, or the residual stream after it. An edit
    is turned into a change of the module's output, so it moves the residual stream itself.
    """

    def hook(module: nn.Module, args: tuple, out: Any) -> Any:
        before = start() + scale * first(out)
        after = point(before)
        return out if after is before else replaced(out, first(out) + (after - before) / scale)

    return hook


def next_token_loss(logits: Tensor, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean cross entropy (nats) of each token given those before it, padding left out."""
    wide = logits[:, :-1].transpose(1, 2).to(torch.promote_types(logits.dtype, torch.float32))
    loss = nn.functional.cross_entropy(wide, tokens[:, 1:], reduction="none")
    if attention_mask is None:
        return loss.mean()
    real = (attention_mask[:, 1:] * attention_mask[:, :-1]).to(loss.dtype)
    return (loss * real).sum() / real.sum().clamp_min(1)


def _missing(point: str, block: BlockParts) -> str | None:
    """Why a residual-stream point does not exist in a block, or None when it does."""
    if point == "hook_resid_mid" and block.parallel:
        return "attention and MLP read the same input (parallel block), so nothing lies between them"
    if point in ("hook_attn_out", "hook_resid_mid") and block.attn_out is None:
        return "what attention adds to the residual stream could not be identified"
    if point == "hook_mlp_out" and block.mlp_out is None:
        return "what the MLP adds to the residual stream could not be identified"
    return None


def _refuse_lossy_delegates(cfg: LensConfig) -> None:
    """SDPA knows neither logit softcaps nor learned sinks; some transformers releases drop them without a word."""
    for feature, present in (
        ("an attention softcap", cfg.attn_softcap is not None),
        ("learned sinks", cfg.learned_sinks),
    ):
        if present and cfg.attention == "sdpa":
            raise UnsupportedModelError(
                f"{cfg.architecture} has {feature}, which sdpa ignores; load it with attn_implementation='eager'."
            )
