"""`Lens`: TransformerLens' hook points around an unmodified transformers model.

A Lens owns hook points with TransformerLens' names and the habits that go with them (`run_with_cache`,
`run_with_hooks`, `hooks`). It changes nothing in the model: for the time of one call it registers forward hooks on the
modules that the hooked points need and routes attention through `interp.seam.routing`; with no hook it calls the model
and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from transformers.utils import TransformersKwargs

from interp.cache.lens_cache import LensCache
from interp.cache.paired import of_own_tokens
from interp.errors import InterpError, UnsupportedModelError
from interp.interventions.base import CachePolicy, Intervention, parts
from interp.interventions.edits.base import AttentionEdit
from interp.interventions.keeper import cache_policies
from interp.lens import generation, positions, scoring, two_texts
from interp.lens.arguments import parameters_of, refuse_misfits
from interp.lens.evaluating import check_mode, evaluating
from interp.lens.finite import finite
from interp.lens.first_look import first
from interp.lens.freshness import refuse_lossy_delegates
from interp.lens.generating_words import in_their_words
from interp.lens.habits import keywords_instead
from interp.lens.in_force import InForce
from interp.lens.parts import Anatomy
from interp.lens.point_building import PointsMixin
from interp.lens.reading_input import left_padded, unpacked, without_types
from interp.lens.seeing import IMAGES, fitting
from interp.lens.spelling import Spelling
from interp.lens.staying_current import CurrentMixin
from interp.lens.stopping import Stopped, layer_asked, stopping
from interp.lens.strict_hooks import HookPoint
from interp.lens.turns import refuse_nesting, turn_of, whole
from interp.lens.watching import attach_residual, attend_through, forward_hook, replaced
from interp.lens.weights_by_name import WeightsMixin
from interp.seam.config import LensConfig
from interp.undoing import Undo, undoing, without_gradients
from interp.vision.processors import refuse_enormous, sees

Tensor = torch.Tensor


class Lens(CurrentMixin, WeightsMixin, PointsMixin):
    """Hook points around `model`, any transformers model that reads and writes text.

    Of an encoder-decoder `blocks.{i}` is the decoder, with `cross_attn` beside `attn`, and `encoder.blocks.{i}` the
    encoder. Attention is reached through transformers' registry or, in models that compute it in their own code, where
    that calls torch's SDPA or softmax; of the latter only scores, pattern and z have points.

    Args:
        model: a loaded transformers model; it is used as it is, never copied or changed.
        tokenizer: its tokenizer, or the processor of a model that sees, or None to work with token tensors only.
        name: what results call the model.

    Raises:
        UnsupportedModelError: attention that a Lens could not see or would compute wrongly.

    Examples:
        >>> watched = interp.Lens(lens.model, lens.tokenizer)  # interp.load makes one of a name, too
        >>> logits, cache = watched.run_with_cache(prompt)
        >>> cache["rot_k", 0].shape[:2]  # [batch, pos, key/value head, d_head]
        torch.Size([1, 40])
    """

    hooks_need_lens = True

    def __init__(self, model: Any, tokenizer: Any = None, name: str | None = None) -> None:
        super().__init__()
        self.model, self._name = model, name
        if sees(tokenizer):
            refuse_enormous(tokenizer)
        self.processor = tokenizer if sees(tokenizer) else None
        self.tokenizer = tokenizer if self.processor is None else self.processor.tokenizer
        self._last_cache: LensCache | None = None
        self.last_logits_only: dict[str, Any] = {}
        """Keywords with which `forward` returns the logits of the last position only, where the model can."""
        self._interventions = InForce(model)
        self._turn = turn_of(model)
        self._gate = self._turn.gate
        self._learn()

    @property
    def pads_right(self) -> bool:
        return self._known.anatomy.decoder is not None

    def _check_config(self, cfg: LensConfig) -> None:
        refuse_lossy_delegates(cfg)

    def _build(self, anatomy: Anatomy, cfg: LensConfig) -> None:
        """Hook points and the rest that depends on the model's parts; points that were there keep their hooks."""
        self.absent.clear()
        self.elsewhere.clear()
        self.point_table.clear()
        self._build_points(anatomy)
        self.setup()
        self.take_mode_of(self.model)
        takes = inspect.signature(self.model.forward).parameters
        self.last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        named = parameters_of(self.model)
        self._keywords = (named | {"use_cache", "past_key_values", *TransformersKwargs.__annotations__}) - {"kwargs"}
        acting = self._interventions
        acting.model, acting.cfg, acting.anatomy = self.model, cfg, anatomy
        acting.caches = "past_key_values" in named
        self._counts = positions.counting(self.model)

    @whole
    def forward(
        self,
        input: Any = None,
        return_type: str | None = "logits",
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model on text, a list of texts, tokens `[batch, pos]`, or anything else that `tokens_and_mask` takes.

        Returns logits `[batch, pos, d_vocab]` (`"logits"`), the mean next-token loss in nats (`"loss"`), both as a pair
        (`"both"`), or None. Texts of different length are padded on the left and masked. `prepend_bos`, `padding_side`,
        `loss_per_token` and `stop_at_layer` are TransformerLens'; other keywords go to the model; `use_cache=False`
        unless asked for, and then the cache used is `lens.last_cache`. Position ids follow the mask.
        What a tokenizer returned may come as it is or as keywords (`lens(**encoded)`), and `inputs_embeds=...` in the
        place of an input; those have no tokens, and so no loss.
        With `images=` a model that sees reads them where `<image>` stands in a text: paths, PIL images or arrays, one
        or several for a text, of several texts one or a list for each.
        Of an encoder-decoder the encoder reads the input, padded on the right, and the decoder its start token, or what
        `decoder_input=` says: a text, which gets the start token before it, or tokens as they are; logits and loss are
        of these. `decoder_input_ids` and `labels` are transformers' own.
        A model in train mode runs in train mode, unlike in what measures (`generate`, `score`).

        Examples:
            >>> lens(prompt).shape[:2]
            torch.Size([1, 40])
            >>> logits, loss = lens(prompt, return_type="both")
            >>> lens(**lens.tokenizer(prompt, return_tensors="pt")).shape[:2]
            torch.Size([1, 40])
        """
        scoring.check_return_type(return_type)
        input, attention_mask, kwargs = unpacked(input, attention_mask, kwargs)
        without_types(kwargs, self._keywords)
        spelled, per_token = Spelling.taken(kwargs), kwargs.pop("loss_per_token", False)
        stop = layer_asked(kwargs.pop("stop_at_layer", None), self.cfg.n_layers, return_type, kwargs)
        paired = self.anatomy.decoder is not None
        if unknown := sorted(kwargs.keys() - self._keywords - {IMAGES} - ({"decoder_input"} if paired else set())):
            named = ", ".join(unknown) + keywords_instead(unknown)
            raise InterpError(f"{self.cfg.architecture} knows no argument {named}; it would be ignored.")
        read = self.read_arguments(input, attention_mask, kwargs, spelled)
        attention_mask = read.mask
        main = read if not paired else two_texts.written(self, kwargs, read.tokens.shape[0])
        if main.tokens.ndim == 3 and return_type in ("loss", "both"):
            raise InterpError("embeddings have no tokens, and so no loss; pass tokens, or ask for logits.")
        refuse_misfits(kwargs, main.tokens.shape[1])
        past = self._with_cache(kwargs, kwargs.setdefault("use_cache", False), main.tokens)
        seen = past.get_seq_length() if past is not None else 0
        for one, before in ((main, seen), (read, 0)) if paired else ((read, seen),):
            self.check_length(before + one.tokens.shape[1])
            self.check_mask(one.mask, one.tokens, before)
        if "inputs_embeds" not in kwargs:
            kwargs["input_ids"] = read.tokens
        if not paired:
            positions.put(self._counts, kwargs, attention_mask, seen, read.tokens, past)
        try:
            with self._session(past), stopping(stop, self.anatomy, self._calls_of.now), fitting(self, kwargs):
                logits = self.model(attention_mask=attention_mask, **kwargs).logits
        except Stopped as stopped:
            return stopped.resid
        positions.remember(self._counts, kwargs, past)
        labels = kwargs.get("labels") if paired else None
        again = None if seen else read.rows
        return scoring.as_asked(
            self, return_type, logits, main.tokens, main.mask, labels, per_token=per_token, read=again
        )

    @whole
    def generate(
        self,
        input: Any = None,
        max_new_tokens: int | None = None,
        chat: bool = False,
        *,
        names_filter: Any = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` with hooks alive: text in, text out; tokens in, tokens out.

        A string returns the whole text (prompt and continuation, special tokens left out), a list of strings a list,
        tokens in any form the tensor `[batch, pos]` of prompt and new tokens, all padding on the left. Chat messages
        return the reply only, and so does a string with `chat=True`, which is a conversation of one message. With
        `num_return_sequences` the sequences of each prompt follow each other in one list, as in transformers, and with
        `return_dict_in_generate` what transformers returns is returned. Embeddings return the new tokens alone, and an
        encoder-decoder what its decoder has: its start token, or the `decoder_input=` that it goes on from, and what
        follows.

        `images=` as in a call of the Lens; with `chat=True` they come before the text unless `<image>` stands in it.

        64 new tokens and greedy, unless a keyword or a `generation_config` says otherwise (`max_length` counts the
        prompt too). Keywords go to transformers; every other default is that of `lens.model.generation_config`, its
        `use_cache` too, except that a cache policy in force asks for a cache.

        With `names_filter`, as in `run_with_cache`, returns `(output, ActivationCache)` with the activations of all
        steps one after the other: those of the prompt, then one position for each new token but the last, which is
        never read. Scores, patterns and what else has an axis of keys, which grow, are lists with one item a step.

        Examples:
            >>> tokens = lens.to_tokens(prompt)
            >>> lens.generate(tokens, max_new_tokens=3, min_new_tokens=3).shape
            torch.Size([1, 43])
            >>> out, cache = lens.generate(tokens, 3, min_new_tokens=3, names_filter="blocks.0.hook_resid_post")
            >>> cache["resid_post", 0].shape[:2]
            torch.Size([1, 42])
        """
        generation.expect_counts(kwargs, max_new_tokens)
        input, attention_mask, kwargs = unpacked(input, kwargs.pop("attention_mask", None), kwargs)
        without_types(kwargs, self._keywords)
        spelled, embedded = Spelling.taken(kwargs), "inputs_embeds" in kwargs
        read = self.read_arguments(input, attention_mask, kwargs, spelled, chat, goes_on=True)
        paired = self.anatomy.decoder is not None
        tokens, attention_mask = (read.tokens, read.mask) if paired else left_padded(read.tokens, read.mask)
        before = two_texts.begun(self, kwargs, tokens.shape[0]) if paired else tokens.shape[1]
        if embedded:
            kwargs["inputs_embeds"] = tokens
        if not hasattr(self.model, "generate"):
            raise UnsupportedModelError(f"{self.cfg.architecture} does not generate text; call the Lens itself.")
        asked = generation.Settings(self.model, in_their_words(kwargs, self._keywords), max_new_tokens)
        guessing = [name for name in generation.GUESSING if asked.held(name) is not None]
        self._interventions.refuse_guessing(guessing, kwargs.get("past_key_values"))
        use_cache = asked.use_cache(acting=bool(self.policies_in_force)) and self._interventions.caches
        kwargs = asked.keywords(before, use_cache, self.tokenizer)
        self.check_length(max(tokens.shape[1], before + asked.new_tokens(before)))
        past = self._with_cache(kwargs, use_cache, tokens)
        if attention_mask is None:
            attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        self.check_mask(attention_mask, tokens, 0)
        if names_filter is not None and guessing:
            raise InterpError("assisted generation reads tokens that it gives up again; leave names_filter out.")
        recorder = None if names_filter is None else generation.Recorder(self, names_filter)
        hooks = [] if recorder is None else recorder.hooks
        ids = () if embedded else (tokens,)
        positions.go_on(self._counts, past)
        looking = generation.Looking(tokens, attention_mask, paired, read.seen)
        kwargs["logits_processor"] = looking.beside(kwargs.get("logits_processor"))
        with (
            finite(self, None if embedded else looking.rows(), looking.numbers),
            self.hooks(fwd_hooks=hooks), evaluating(self), self._session(past, before), without_gradients(),
            generation.in_one_sentence(), fitting(self, kwargs),
        ):  # fmt: skip
            out = self.model.generate(*ids, attention_mask=attention_mask, **kwargs)
        positions.remember(self._counts, kwargs, past)
        if read.as_text and isinstance(out, Tensor):
            out = generation.as_text(self.tokenizer, out, read, paired)
        return out if recorder is None else (out, recorder.activations(cached=use_cache))

    def score(
        self, prompt: Any, continuation: Any, *, chunk: int = 256, images: Any = None
    ) -> Float[Tensor, "batch token"]:
        """Negative log-likelihood (nats) of every token of `continuation` after `prompt`: `[batch, token]`, fp32.

        The prompt is read first, cache policies in force act, and then the true continuation is fed `chunk` tokens at a
        time: policies that act at every step want `chunk=1`, as in generation. The first token is predicted from the
        prompt alone, so no cache policy changes it (an attention edit does). A policy that waits for the first token
        after the prompt (D2O by default) gets that one by itself and then acts, so the second token's prediction is the
        full cache's too.

        Both are anything that a Lens reads, of several prompts each with a continuation of its own; where those have
        different lengths, the shorter rows end in NaN. Text is tokenised with special tokens in the prompt only. The
        continuation's tokens are those that it has in prompt + continuation, where the prompt's tokens are not changed
        by what follows; else those of the continuation alone, without the space that some tokenizers put before a text.
        Of an encoder-decoder the encoder reads the prompt and the decoder the continuation after its start token, in
        one pass; its tokens are those of a text of its own, without special tokens. `images=` are the prompt's.

        Examples:
            >>> nats = lens.score(prompt, "w9 w8 w7")
            >>> nats.shape
            torch.Size([1, 3])
            >>> bool((nats > 0).all())
            True
        """
        how = scoring.score if self.anatomy.decoder is None else two_texts.score
        return how(self, prompt, continuation, chunk, images)

    # torch's own `apply(fn)` would run `fn` over hook points, which nobody needs
    def apply(  # type: ignore[override]  # for the same reason
        self, intervention: Intervention, *, ledger: bool = False
    ) -> AbstractContextManager[Self]:
        """Put an intervention in force for calls inside the block: `with lens.apply(KnockOut(keys=0) | ThinK()): ...`.

        A cache policy acts on the cache of each call that starts one (`generate`, `score`, or a call with
        `use_cache=True`); the cache carries its policy, so a later turn may continue with it inside the block or after.
        An attention edit acts in every call, with a cache or without, and ends with the block; a policy beside it sees
        the attention that the edited model pays. The model itself is never changed, and no other thread is in the
        block, not even one that is started inside. With `ledger`, `lens.last_cache.keeper.ledger` lists evictions.

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
    def last_cache(self) -> LensCache | None:
        """The cache of this thread's last call, None where it kept none; of the last call of all before its first."""
        return cast(LensCache | None, getattr(self._calls_of, "cache", self._last_cache))

    @last_cache.setter
    def last_cache(self, cache: LensCache | None) -> None:
        self._last_cache = self._calls_of.cache = cache

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
        self._interventions.refuse_inside(intervention)
        if self.anatomy.decoder is not None:
            raise UnsupportedModelError(
                f"{self.cfg.architecture} is an encoder-decoder model, which caches the encoder's keys beside the "
                "decoder's; cache policies do not act on it."
            )
        return cache_policies(intervention, self.cfg)

    def _with_cache(self, kwargs: dict[str, Any], use_cache: bool, tokens: Tensor) -> Any:
        """The cache of this call, a fresh `LensCache` where one is wanted and none was given."""
        past = kwargs.get("past_key_values")
        if past is None:
            past = self._interventions.new_cache(use_cache)
            if past is not None:
                kwargs["past_key_values"] = past
        self._interventions.admit_cache(past)
        if isinstance(past, LensCache) and past.keeper is not None:
            past.keeper.expect((seen := past.get_seq_length()) + tokens.shape[1], seen)
        self.last_cache = past if use_cache else None
        return past

    @contextmanager
    def _session(self, cache: Any, prompt: int | None = None) -> Iterator[None]:
        """All that must be in place while the model runs, and is gone afterwards; what is generated has a `prompt`."""
        with undoing(call := self._calls_of.now) as undo:
            self._turn.take(undo, call)
            with self._watching() as watched:
                keeper = getattr(cache, "keeper", None)
                check_mode(self._known.seen.modules, bool(watched or self.edits_in_force), cache is not None)
                if watched or keeper is not None or self.edits_in_force:
                    refuse_nesting(self.model, undo, call)
                    self._attach(watched, cache, prompt, undo)
                yield

    def _attach(self, watched: dict[str, HookPoint], cache: Any, prompt: int | None, undo: Undo) -> None:
        """Hooks on the model's modules for the residual stream, the attention seam for everything in `attn`."""
        on = partial(forward_hook, undo)
        for part in self.anatomy.stacks:
            if (embed := f"{part.prefix}hook_embed") in watched:
                on(part.embedding, lambda m, a, out, point=watched[embed]: point(out))
            if (final := f"{part.prefix}ln_final.hook_normalized") in watched:
                on(part.final_norm, lambda m, a, out, point=watched[final]: point(out))
            if (tokens := f"{part.prefix}hook_projected") in watched:
                on(part.projected, lambda m, a, out, point=watched[tokens]: replaced(out, point(first(out))))
            rooms = getattr(self, part.prefix.removesuffix("."), self).blocks
            for room, block in zip(rooms, part.blocks, strict=True):
                attach_residual(block, room, undo)
        under_policy = isinstance(cache, LensCache) and cache.keeper is not None
        if under_policy or self.edits_in_force or any("attn." in name for name in watched):
            sites = attend_through(self.model, self.anatomy, self.hook_dict, undo)
            stored = {layer: site for layer, site in sites.items() if not site.whole}
            own = of_own_tokens(cache)
            if isinstance(own, LensCache):
                undo.later(setattr, own, "listener", None)
                own.listener = lambda layer, k, v: stored[layer].store(k, v) if layer in stored else (k, v)
            if under_policy:
                for site in sites.values():
                    site.cache = cache
            if self.edits_in_force:
                self._interventions.attach_edits(sites, cache, prompt, undo)
