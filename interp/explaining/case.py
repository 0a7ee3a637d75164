"""One prompt, its true continuation and one intervention: the runs that all questions share.

Fed tokens are "steps": step t feeds token t of the continuation at position S + t, for a prompt of S tokens, and
predicts token t + 1. The continuation's first token is predicted by the prompt alone, which no cache policy changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.cache.lens_cache import LensCache
from interp.cache.segments import Segment
from interp.errors import InterpError
from interp.explaining.restoring import at_rest
from interp.interventions.base import CachePolicy, ChannelEntry, Entry, Intervention, Prompt, parts
from interp.interventions.keeper import Keeper, said_already
from interp.lens.protocol import InterventionLens, TextLens, takes_interventions
from interp.lens.scoring import nll_of
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
NEVER = torch.iinfo(torch.int32).max
"""In `PolicyRun.evicted_at`: the token is still held after the last step."""


@dataclass
class CacheRun:
    """What the fed tokens did with one cache; fp32, without a batch axis."""

    logits: Float[Tensor, "step d_vocab"]
    z: dict[int, Float[Tensor, "step head d_value"]]
    attn_out: dict[int, Float[Tensor, "step d_model"]]
    """Empty where the architecture has no such point."""
    events: dict[int, AttentionEvent] = field(default_factory=dict)
    """Each layer's attention of all steps to all tokens; of the full cache only."""


@dataclass
class PolicyRun(CacheRun):
    """A run under the policy, with what it dropped."""

    rest: LensCache = field(kw_only=True)
    """The cache right after the policy acted on the prompt, its policies at rest: see `restoring`."""
    fed: int = field(kw_only=True)
    """Steps before that: 0, or 1 for a policy that waits for the first decoded token."""
    evicted_at: dict[int, Int[Tensor, "head token"]] = field(kw_only=True)
    """First step at which a token is no longer attended to, `NEVER` where it is to the end; by stored head."""
    ledger: list[Entry] = field(kw_only=True)
    channel_ledger: list[ChannelEntry] = field(kw_only=True)
    stepping: bool = field(kw_only=True)
    """Whether the policy acts at steps, so that tokens were fed one by one."""


class _Watching(Keeper):
    """Drops nothing, and shows each layer's attention as policies see it: where latents are stored, to latents."""

    def __init__(self, prompt: Prompt, look: Callable[[int, AttentionEvent], None]) -> None:
        super().__init__((), prompt.cfg, prompt.layers, prompt.output_norms)
        self.look = look

    def attended(self, layer: int, stored: Any, q: Tensor, event: Callable[[], AttentionEvent]) -> None:
        self.look(layer, event())


@dataclass
class Case:
    """The case that questions are asked about; runs happen when they are first needed."""

    lens: InterventionLens
    intervention: Intervention
    policies: tuple[CachePolicy, ...]
    prompt: Int[Tensor, "1 pos"]
    continuation: Int[Tensor, "1 pos"]
    layers: tuple[int, ...]
    """Layers that policies act on: those with full attention."""

    @classmethod
    def of(cls, lens: TextLens, intervention: Intervention, prompt: Any, continuation: Any) -> Case:
        """Raises InterpError where prompt and continuation are no pair of single texts that fit model and policies."""
        if not takes_interventions(lens):
            raise InterpError("explain needs a Lens of a transformers model; a TransformerBridge has no such cache.")
        policies = lens.policies_of(intervention)
        tokens, rest = one_text(lens, prompt), _continuation(lens, prompt, continuation)
        if rest.shape[1] < 2:
            raise InterpError("explain: the continuation needs at least 2 tokens; the first one sees no policy.")
        lens.check_length(tokens.shape[1] + rest.shape[1])
        case = cls(lens, intervention, policies, tokens, rest, lens.cfg.full_attention_layers)
        for policy in policies:
            policy.check(case.prompt_facts)
        return case

    @property
    def fed(self) -> Int[Tensor, "1 step"]:
        return self.continuation[:, :-1]

    @property
    def prompt_facts(self) -> Prompt:
        """What a plan knows when it begins."""
        return Prompt(self.lens.cfg, self.layers, int(self.prompt.shape[1]), self.lens.output_norms)

    @property
    def steps(self) -> int:
        return int(self.fed.shape[1])

    @property
    def seen(self) -> Int[Tensor, "1 token"]:
        """All tokens that the model reads: the prompt and the fed ones."""
        return torch.cat([self.prompt, self.fed], 1)

    @cached_property
    def token_text(self) -> list[str]:
        """Text of all tokens read and, at the end, of the continuation's last token, which is only predicted."""
        text: list[str] = self.lens.to_str_tokens(torch.cat([self.prompt, self.continuation], 1))
        return text

    def step_coords(self) -> dict[str, Any]:
        """Coordinates along `step`: its number, the fed token's text and that of the token it has to predict."""
        text = np.array(self.token_text[self.prompt.shape[1] :], dtype=object)
        return {"step": np.arange(self.steps), "step_text": ("step", text[:-1]), "next_text": ("step", text[1:])}

    def facts(self) -> dict[str, str | int | float]:
        """What the answers depend on, for attributes."""
        ids = torch.cat([self.prompt, self.continuation], 1)[0].cpu().numpy().astype("<i8")
        return {
            "model": self.lens.cfg.model_name,
            "architecture": self.lens.cfg.architecture,
            "dtype": self.lens.cfg.dtype,
            "intervention": " | ".join(repr(member) for member in parts(self.intervention)),
            "prompt_tokens": int(self.prompt.shape[1]),
            "steps": self.steps,
            "tokens_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        }

    @cached_property
    def full_prompt(self) -> LensCache:
        """The full cache of the prompt; runs go on with a fork of it."""
        return self.watched(self.prompt, lambda layer, event: None)

    def watched(self, tokens: Int[Tensor, "1 pos"], look: Callable[[int, AttentionEvent], None]) -> LensCache:
        """The full cache of tokens, while `look` is shown the attention of each layer that policies act on."""
        cache = LensCache(self.lens.model.config, _Watching(self.prompt_facts, look))
        return self.read(tokens, past_key_values=cache)

    @cached_property
    def full(self) -> CacheRun:
        """All steps at once with the full cache, with every layer's attention."""
        events: dict[int, AttentionEvent] = {}
        cache = self.full_prompt.fork()
        cache.keeper = _Watching(self.prompt_facts, events.__setitem__)
        run = self._feed(cache, self.fed)
        return dataclasses.replace(run, events=events)

    @cached_property
    def full_alike(self) -> CacheRun:
        """The full cache fed just as the policy was, so that rounding is the same too."""
        if not self.policy.stepping:
            return self.full
        cache = self.full_prompt.fork()
        return _joined([self._feed(cache, token) for token in torch.split(self.fed, 1, 1)])

    @cached_property
    def policy(self) -> PolicyRun:
        """The steps under the policy."""
        with self.applied(ledger=True):
            cache = self.read(self.prompt)
            cache.keeper.reads_back = True
            stepping = any(p.each_step or p.moment == "first_decode" for p in cache.keeper.plans.values())
            total = int(self.seen.shape[1])
            evicted_at = {i: torch.full((1, total), NEVER, dtype=torch.int32) for i in self.layers}
            rest, fed, runs = at_rest(cache), 0, []
            for step, tokens in enumerate(torch.split(self.fed, 1 if stepping else self.steps, 1)):
                for i, layer in cache.stored.items():
                    evicted_at[i] = _missing(evicted_at[i], layer.segments, layer.seen, step)
                runs.append(self._feed(cache, tokens))
                if step == 0 and stepping and not any(layer.compressed for layer in rest.stored.values()):
                    rest, fed = at_rest(cache), 1
            ledger, channel_ledger = list(cache.keeper.ledger), list(cache.keeper.channel_ledger)
        run = _joined(runs)
        return PolicyRun(
            run.logits, run.z, run.attn_out, rest=rest, fed=fed, evicted_at=evicted_at, ledger=ledger,
            channel_ledger=channel_ledger, stepping=stepping,
        )  # fmt: skip

    @property
    def runs(self) -> list[CacheRun]:
        """Those that were needed so far."""
        return [run for run in vars(self).values() if isinstance(run, CacheRun)]

    @contextmanager
    def applied(self, ledger: bool = False) -> Iterator[None]:
        """The intervention in force; which layers stay as they are was said when the case was made."""
        with said_already(), self.lens.apply(self.intervention, ledger=ledger):
            yield

    @torch.no_grad()
    def read(self, tokens: Tensor, **given: Any) -> LensCache:
        """The cache after reading tokens, under the policies in force."""
        self.lens(tokens, return_type=None, use_cache=True, **self.lens.last_logits_only, **given)
        cache = self.lens.last_cache
        assert cache is not None  # made by the call
        return cache

    @torch.no_grad()
    def _feed(self, cache: LensCache, tokens: Tensor) -> CacheRun:
        z: dict[int, Tensor] = {}
        attn_out: dict[int, Tensor] = {}
        hooks: list[tuple[str, Any]] = []
        for i in self.lens.cfg.attention_layers:
            hooks.append((f"blocks.{i}.attn.hook_z", _keep(z, i)))
            if f"blocks.{i}.hook_attn_out" in self.lens.hook_dict:
                hooks.append((f"blocks.{i}.hook_attn_out", _keep(attn_out, i)))
        with self.lens.hooks(fwd_hooks=hooks):
            logits = self.lens(tokens, past_key_values=cache, use_cache=True)
        return CacheRun(
            logits[0].float(), {i: x[0].float() for i, x in z.items()}, {i: x[0].float() for i, x in attn_out.items()}
        )

    def nll(self, run: CacheRun) -> Float[Tensor, " step"]:
        """Negative log-likelihood (nats) of the token after each step."""
        losses: Tensor = nll_of(run.logits[None], self.continuation[:, 1:])
        return losses[0]


def one_text(lens: TextLens, text: Any) -> Int[Tensor, "1 pos"]:
    """Tokens of one text, or of one of anything else that a Lens reads. Raises InterpError for several."""
    return _only_one(lens.rows(text)[0])


def _continuation(lens: TextLens, prompt: Any, continuation: Any) -> Int[Tensor, "1 pos"]:
    return _only_one([row[None] for row in lens.continuation_rows(prompt, continuation)])


def _only_one(rows: Sequence[Tensor]) -> Int[Tensor, "1 pos"]:
    if len(rows) != 1:
        raise InterpError(f"explain reads one text at a time; these are tokens of {len(rows)}.")
    return rows[0]


def _keep(held: dict[int, Any], layer: int) -> Any:
    def hook(value: Any, hook: Any) -> None:
        held[layer] = value

    return hook


def _joined(runs: list[CacheRun]) -> CacheRun:
    def cat(name: str) -> dict[int, Tensor]:
        return {i: torch.cat([getattr(run, name)[i] for run in runs]) for i in getattr(runs[0], name)}

    return CacheRun(torch.cat([run.logits for run in runs]), cat("z"), cat("attn_out"))


def _missing(evicted_at: Tensor, segments: Sequence[Segment], seen: int, step: int) -> Int[Tensor, "head token"]:
    """`evicted_at [head, token]` with tokens that a layer has seen and holds no more marked as gone from `step` on.

    Stored heads may have multiplied: a policy of query heads begins with the model's key/value heads.
    """
    heads = segments[0].keys.shape[1]
    evicted_at = evicted_at.repeat_interleave(heads // evicted_at.shape[0], 0)
    held = torch.zeros(heads, evicted_at.shape[1] + 1, dtype=torch.bool)
    for segment in segments:
        at = segment.at().masked_fill(~segment.of_the_text(), -1)
        held.scatter_(1, at[0].long().cpu().expand(heads, -1) + 1, True)
    held = held[:, 1:]  # without the column of summaries, which hold no token of the text
    held[:, seen:] = True  # not read yet
    return torch.where(held | (evicted_at != NEVER), evicted_at, step)
