"""`Lens`: TransformerLens' hook points around an unmodified transformers model.

A Lens owns hook points with TransformerLens' names and the habits that go with them (`run_with_cache`,
`run_with_hooks`, `hooks`). It changes nothing in the model: for the time of one call it registers forward hooks on the
modules that the hooked points need and routes attention through `interp.seam.routing`; with no hook it calls the model
and nothing else.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import TransformersKwargs

from interp.cache.lens_cache import LensCache
from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.base import CachePolicy, Intervention, parts
from interp.interventions.edits.base import AttentionEdit
from interp.interventions.keeper import cache_policies
from interp.lens import scoring
from interp.lens.anatomy import BlockParts, config_of, dissect, first
from interp.lens.in_force import InForce
from interp.lens.readout import FinalNorm, ReadoutMixin
from interp.lens.strict_hooks import Hook, HookedLens, HookPoint, HookTree
from interp.lens.text import TextMixin
from interp.seam import points as table
from interp.seam.attention import Site
from interp.seam.config import LensConfig
from interp.seam.points import live
from interp.seam.routing import attention_through

Tensor = torch.Tensor
Args = tuple[Any, ...]
On = Callable[[nn.Module | None, Hook], None]
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class Lens(TextMixin, ReadoutMixin, HookedLens):
    """Hook points around `model`, any decoder-only transformers model whose attention goes through the registry.

    Args:
        model: a loaded transformers model; it is used as it is, never copied or changed.
        tokenizer: its tokenizer, or None to work with token tensors only.
        name: what results call the model.

    Raises:
        UnsupportedModelError: attention that a Lens could not see or would compute wrongly.

    Examples:
        >>> watched = interp.Lens(lens.model, lens.tokenizer)  # interp.load makes one of a name, too
        >>> logits, cache = watched.run_with_cache(prompt)
        >>> cache["rot_k", 0].shape[:2]  # [batch, pos, key/value head, d_head]
        torch.Size([1, 40])
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
        self._interventions = InForce(model, self.cfg, self.anatomy)
        takes = inspect.signature(model.forward).parameters
        self.last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        """Keywords with which `forward` returns the logits of the last position only, where the model can."""
        self._known = known_keywords(model)
        self._lock = _locks.setdefault(model, threading.RLock())
        self._inside = False

    def _build_points(self) -> None:
        parts = self.anatomy
        self.hook_embed = self._place(table.EMBED, "hook_embed")
        self.blocks = nn.ModuleList()
        for layer, block in enumerate(parts.blocks):
            room = HookTree()
            self.blocks.append(room)
            for point in table.residual_points(attends=block.attention is not None):
                name = f"blocks.{layer}.{point.name}"
                if (reason := _elsewhere(point.name, block)) is not None:
                    self.elsewhere[name] = reason
                elif (reason := _missing(point.name, block)) is not None:
                    self.absent[name] = reason
                else:
                    room.add_module(point.name, self._place(point, name))
            if block.attention is not None:
                room.attn = self._attention_room(layer, block)
        self._say_what_stands_in_attentions_place()
        if parts.final_norm is not None:
            self.ln_final = FinalNorm(parts.final_norm)
            self.ln_final.hook_normalized = self._place(table.FINAL, "ln_final.hook_normalized")

    def _say_what_stands_in_attentions_place(self) -> None:
        names = {name.split(".", 2)[2] for name in self.point_table if ".attn." in name} | {"hook_attn_out"}
        for layer, block in enumerate(self.anatomy.blocks):
            if block.attention is None and block.ran:
                reason = f"this block has {block.mixer} in attention's place, see hook_mixer_out"
                self.elsewhere |= {f"blocks.{layer}.{name}": reason for name in names}

    def _attention_room(self, layer: int, block: BlockParts) -> HookTree:
        room = HookTree()
        for point in table.attention_points(block.seen["rotary"], block.gated):
            name = f"blocks.{layer}.{point.name}"
            if point is table.PRE_ROTARY and isinstance(block.rotation, str):
                self.absent[name] = block.rotation
            else:
                room.add_module(point.name.removeprefix("attn."), self._place(point, name))
        return room

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

        Examples:
            >>> lens(prompt).shape[:2]
            torch.Size([1, 40])
            >>> logits, loss = lens(prompt, return_type="both")
        """
        scoring.check_return_type(return_type)
        if unknown := sorted(kwargs.keys() - self._known):
            raise InterpError(f"{self.cfg.architecture} knows no argument {', '.join(unknown)}; it would be ignored.")
        tokens, attention_mask = self.tokens_and_mask(input, attention_mask)
        past = self._with_cache(kwargs, kwargs.setdefault("use_cache", False), tokens)
        seen = past.get_seq_length() if past is not None else 0
        self.check_length(seen + tokens.shape[1])
        self.check_mask(attention_mask, tokens, seen)
        if attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask.all()):
            kwargs.setdefault("position_ids", (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, seen:])
        with self._session(past):
            logits = self.model(input_ids=tokens, attention_mask=attention_mask, **kwargs).logits
        return scoring.as_asked(return_type, logits, tokens, attention_mask)

    def generate(self, input: Any, max_new_tokens: int = 64, chat: bool = False, **kwargs: Any) -> Any:
        """transformers' `generate` with hooks alive: text in, text out; tokens in, tokens out.

        A string returns the whole text (prompt and continuation, special tokens left out), a list of strings a list, a
        tensor `[batch, pos]` the tensor with the new tokens appended. `chat=True` puts a string through the tokenizer's
        chat template and returns only the reply. Greedy unless `do_sample=True`; keywords go to transformers.

        Examples:
            >>> tokens = lens.to_tokens(prompt)
            >>> lens.generate(tokens, max_new_tokens=3, min_new_tokens=3).shape
            torch.Size([1, 43])
        """
        tokens, attention_mask = self.tokens_and_mask(input, kwargs.pop("attention_mask", None), chat=chat)
        if "cache_implementation" in kwargs:
            raise InterpError("pass no cache_implementation: the Lens makes the cache, so that hooks see new keys.")
        self.check_length(tokens.shape[1] + max_new_tokens)
        if not hasattr(self.model, "generate"):
            raise UnsupportedModelError(f"{self.cfg.architecture} does not generate text; call the Lens itself.")
        kwargs.setdefault("do_sample", False)
        self._interventions.refuse_guessing(kwargs)
        past = self._with_cache(kwargs, kwargs.get("use_cache", True), tokens)
        if attention_mask is None:
            attention_mask = torch.ones_like(tokens)
        with self._session(past), torch.no_grad():
            out = self.model.generate(tokens, attention_mask=attention_mask, max_new_tokens=max_new_tokens, **kwargs)
        if isinstance(input, Tensor):
            return out
        sequences = out if isinstance(out, Tensor) else out.sequences
        texts = self.tokenizer.batch_decode(sequences[:, tokens.shape[1] if chat else 0 :], skip_special_tokens=True)
        return texts[0] if isinstance(input, str) else texts

    def score(
        self, prompt: str | Tensor, continuation: str | Tensor, *, chunk: int = 256
    ) -> Float[Tensor, "batch token"]:
        """Negative log-likelihood (nats) of every token of `continuation` after `prompt`: `[batch, token]`, fp32.

        The prompt is read first, cache policies in force act, and then the true continuation is fed `chunk` tokens at a
        time: policies that act at every step want `chunk=1`, as in generation. The first token is predicted from the
        prompt alone, so no cache policy changes it (an attention edit does). A policy that waits for the first token
        after the prompt (D2O by default) gets that one by itself and then acts, so the second token's prediction is the
        full cache's too. Text is tokenised with special tokens in the prompt only.

        Examples:
            >>> nats = lens.score(prompt, "w9 w8 w7")
            >>> nats.shape
            torch.Size([1, 3])
            >>> bool((nats > 0).all())
            True
        """
        return scoring.score(self, prompt, continuation, chunk)

    # torch's own `apply(fn)` would run `fn` over hook points, which nobody needs
    def apply(  # type: ignore[override]  # for the same reason
        self, intervention: Intervention, *, ledger: bool = False
    ) -> AbstractContextManager[Self]:
        """Put an intervention in force for calls inside the block: `with lens.apply(KnockOut(keys=0) | ThinK()): ...`.

        A cache policy acts on the cache of each call that starts one (`generate`, `score`, or a call with
        `use_cache=True`); the cache carries its policy, so a later turn may continue with it inside the block or after.
        An attention edit acts in every call, with a cache or without, and ends with the block; a policy beside it sees
        the attention that the edited model pays. The model itself is never changed. With `ledger`,
        `lens.last_cache.keeper.ledger` lists every eviction.

        Raises InterpError where interventions do not go together or do not fit the model, before anything runs. Warns
        on leaving where nothing was ever dropped, or no attention changed: what did not act is no result.

        Examples:
            >>> with lens.apply(interp.KnockOut(keys=0) | interp.ThinK(ratio=0.5)):
            ...     nats = lens.score(prompt, "w9 w8 w7")
            >>> nats.shape
            torch.Size([1, 3])
        """
        return self._interventions.apply(self, intervention, ledger)

    @property
    def edits_in_force(self) -> tuple[AttentionEdit, ...]:
        """The attention edits of the `apply` block that is open, in order."""
        return self._interventions.edits

    @property
    def policies_in_force(self) -> tuple[CachePolicy, ...]:
        """The cache policies of the `apply` block that is open, in order."""
        return self._interventions.policies

    def policies_of(self, intervention: Intervention) -> tuple[CachePolicy, ...]:
        """The cache policies of an intervention of nothing else, checked against this model; raises what `apply` raises
        for them."""
        if edits := [part.name for part in parts(intervention) if isinstance(part, AttentionEdit)]:
            raise InterpError(
                f"{' and '.join(edits)} edits attention and drops nothing from a cache; leave it out here."
            )
        latent = any(hasattr(block.attention, "kv_lora_rank") for _, block in self.anatomy.attending)
        return cache_policies(intervention, self.cfg, latent)

    def _with_cache(self, kwargs: dict[str, Any], use_cache: bool, tokens: Tensor) -> Any:
        """The cache of this call, a fresh `LensCache` where one is wanted and none was given."""
        past = kwargs.get("past_key_values")
        if past is None:
            past = self._interventions.new_cache(use_cache)
            if past is not None:
                kwargs["past_key_values"] = past
        self._interventions.admit_cache(past)
        if isinstance(past, LensCache) and past.keeper is not None:
            past.keeper.expect(past.get_seq_length() + tokens.shape[1])
        self.last_cache = past if use_cache else None
        return past

    @contextmanager
    def _session(self, cache: Any) -> Iterator[None]:
        """Everything that must be in place while the model runs, and is gone afterwards whatever happens."""
        with self._lock, ExitStack() as stack:
            if self._inside:
                raise InterpError(
                    "the Lens was called from inside one of its own hooks; call it after the hook returns."
                )
            self._inside = True
            stack.callback(setattr, self, "_inside", False)
            watched = stack.enter_context(self._watching())
            keeper = getattr(cache, "keeper", None)
            if watched or keeper is not None or self.edits_in_force:
                self._attach(watched, cache, stack)
            yield

    def _attach(self, watched: dict[str, HookPoint], cache: Any, stack: ExitStack) -> None:
        """Hooks on the model's modules for the residual stream, the attention seam for everything in `attn`."""

        def on(module: nn.Module | None, hook: Hook) -> None:
            assert module is not None  # a point exists only where its module was found
            stack.callback(module.register_forward_hook(hook).remove)

        if "hook_embed" in watched:
            on(self.model.get_input_embeddings(), lambda m, a, out: self.hook_embed(out))
        if "ln_final.hook_normalized" in watched:
            on(self.anatomy.final_norm, lambda m, a, out: self.ln_final.hook_normalized(out))
        for layer, part in enumerate(self.anatomy.blocks):
            self._attach_residual(part, self.blocks[layer], stack, on)
        under_policy = isinstance(cache, LensCache) and cache.keeper is not None
        if under_policy or self.edits_in_force or any(".attn." in name for name in watched):
            sites = {layer: self._site(layer, part, stack) for layer, part in self.anatomy.attending}
            by_module = {part.attention: sites[layer] for layer, part in self.anatomy.attending if part.attention}
            stack.enter_context(attention_through(self.model, by_module))
            if isinstance(cache, LensCache):
                cache.listener = lambda layer, k, v: sites[layer].store(k, v) if layer in sites else (k, v)
                stack.callback(setattr, cache, "listener", None)
            if under_policy:
                for site in sites.values():
                    site.cache = cache
            if self.edits_in_force:
                self._interventions.attach_edits(sites, cache, stack)

    def _attach_residual(self, part: BlockParts, room: Any, stack: ExitStack, on: On) -> None:
        def point(name: str) -> HookPoint | None:
            return getattr(room, name, None)

        rest = point("hook_mlp_out") if part.writers.rest else None
        if live(point("hook_resid_pre")) or live(point("hook_resid_mid")) or live(rest):
            resid: dict[str, Tensor] = {}

            def enter(module: nn.Module, args: Args, kwargs: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
                given = args[0] if args else kwargs["hidden_states"]
                resid["pre"] = given = room.hook_resid_pre(given)
                return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

            stack.callback(part.block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name in ("hook_attn_out", "hook_mixer_out"):
            if live(point(name)):
                on(part.attn_out, written_through(getattr(room, name), part.residual_scale))
        if live(point("hook_resid_mid")):
            on(part.attn_out, written_through(room.hook_resid_mid, part.residual_scale, lambda: resid["pre"]))
        if live(rest):

            def leave(module: nn.Module, args: Args, out: Any) -> None:
                resid["mid"] = resid["pre"] + part.residual_scale * first(out).view_as(resid["pre"])

            on(part.attn_out, leave)  # after the hooks above, so that it sees what they left
            on(part.block, lambda m, a, out: replaced(out, moved(room.hook_mlp_out, resid["mid"], first(out))))
        elif live(point("hook_mlp_out")):
            on(part.mlp_out, written_through(room.hook_mlp_out, part.mlp_scale))
        if live(point("hook_resid_post")):
            on(part.block, lambda m, a, out: replaced(out, room.hook_resid_post(first(out))))

    def _site(self, layer: int, part: BlockParts, stack: ExitStack) -> Site:
        points = table.attention_points(part.seen["rotary"], part.gated)
        names = {p.name: self.hook_dict.get(f"blocks.{layer}.{p.name}") for p in points}
        site = Site(layer, {n: p for n, p in names.items() if p is not None}, part.rotation)

        def note(module: nn.Module, args: Args, kwargs: dict[str, Any]) -> None:
            site.position_embeddings = kwargs.get("position_embeddings")

        assert part.attention is not None
        stack.callback(part.attention.register_forward_pre_hook(note, with_kwargs=True).remove)
        if part.gated and live(gated := names.get("attn.hook_gated_z")):
            assert part.out_projection is not None
            heads = part.seen["n_heads"]

            def read(module: nn.Module, args: Args) -> Args:
                return (gated(args[0].unflatten(-1, (heads, -1))).flatten(-2), *args[1:])

            stack.callback(part.out_projection.register_forward_pre_hook(read).remove)
        return site


def replaced(out: Any, value: Tensor) -> Any:
    """A module's output with its tensor replaced; the rest of a tuple stays."""
    return (value, *out[1:]) if isinstance(out, tuple) else value


def written_through(point: HookPoint, scale: float, start: Callable[[], Any] | None = None) -> Callable[..., Any]:
    """A forward hook on a module whose output, times `scale`, is added to the residual stream.

    The point sees what the module writes or, given `start`, the residual stream `start()` + what it writes. An edit (a
    returned value or a change in place) becomes a change of the module's output, so it moves the residual stream.
    """

    def hook(module: nn.Module, args: Args, out: Any) -> Any:
        own = first(out)
        if start is None and scale == 1:
            return replaced(out, point(own))
        before = scale * own if start is None else start() + scale * own.view_as(start())
        version = before._version
        after = point(before)
        if after is before and before._version == version and not before.requires_grad:
            return out
        if start is None:
            return replaced(out, after / scale)
        return replaced(out, own + (after - (start() + scale * own)) / scale)

    return hook


def moved(point: HookPoint, mid: Tensor, post: Tensor) -> Tensor:
    """A block's output after a point has seen what leads from `mid` to it; an edit moves the output."""
    before = post - mid
    version = before._version
    after: Tensor = point(before)
    if after is before and before._version == version and not before.requires_grad:
        return post
    return post + (after - (post - mid))


def known_keywords(model: nn.Module) -> set[str]:
    """Arguments that a model's forward pass understands; anything else it would swallow without a word."""
    inside: Any = model.get_decoder() if isinstance(model, PreTrainedModel) else None
    parts = [part for part in (model, getattr(model, "base_model", model), inside) if part is not None]
    signatures = [inspect.signature(part.forward).parameters for part in parts]
    return set(TransformersKwargs.__annotations__).union({"use_cache", "past_key_values"}, *signatures) - {"kwargs"}


def _elsewhere(point: str, block: BlockParts) -> str | None:
    """Why a block is not built to have a residual-stream point, or None."""
    if not block.ran:
        return "its block does not run on text alone"
    if point in ("hook_resid_mid", "hook_mlp_out") and block.writers.alone:
        return f"this block has {block.mixer} and no MLP"
    return None


def _missing(point: str, block: BlockParts) -> str | None:
    """Why a residual-stream point could not be found in a block, or None where it was."""
    found = block.writers
    if not found.one_stream:
        return found.reason
    if point in ("hook_resid_pre", "hook_resid_post"):
        return None
    if point == "hook_resid_mid" and found.parallel:
        return "attention and MLP read the same input (parallel block), so nothing lies between them"
    if found.mixer is None:
        return f"what {block.mixer} adds to the residual stream is unknown: {found.reason}"
    if point == "hook_mlp_out" and found.mlp is None and not found.rest:
        return f"what the MLP adds to the residual stream is unknown: {found.reason}"
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
