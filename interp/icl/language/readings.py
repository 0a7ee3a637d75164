"""What one run of a language model shows at the last token of each query.

A run reads queries either alone or after demonstrations. Demonstrations are read once and their keys and values kept;
each query then attends to them. Queries of one batch are padded on the right: a causal model cannot look there, so no
mask is needed. No pattern of queries x keys is ever built: the scores wanted are those of one query position.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int

from interp.errors import InterpError
from interp.icl.language._layers import one_text
from interp.icl.language.label_tasks import Example, LabelPrompts
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import InterventionLens

Tensor = torch.Tensor
BATCH = 8  # queries read together: each gets a copy of the demonstrations' keys and values


@dataclass(frozen=True)
class Reading:
    """One run at the last prompt token of every query, on the CPU in float32."""

    attn_out: Float[Tensor, "query layer d_model"]
    """What attention adds to the residual stream, after the output projection."""
    scores: Float[Tensor, "query layer head token"]
    """Scores before the softmax over the query's own tokens; shorter queries are filled with 0 on the left."""
    last_query: Float[Tensor, "query layer head_channel"]
    """Queries of all heads beside each other, times the scale of the scores, after rotary embedding."""
    demo_scores: Float[Tensor, "query layer demo_token"]
    """Scores before the softmax over the tokens before the query, summed over heads; no columns without any."""
    logits: Float[Tensor, "query d_vocab"]
    """Next-token logits."""


@in_evaluation_mode
@torch.no_grad()
def read(lens: InterventionLens, prompts: LabelPrompts, *, demos: bool) -> Reading:
    """Read all queries of `prompts`, after its demonstrations or alone, and keep what `Reading` lists.

    Raises InterpError where a layer no longer holds all of the demonstrations (a sliding window shorter than they are),
    UnknownNameError where the model has no `hook_attn_out`.
    """
    prefix = demo_tokens(prompts).tokens if demos else []
    before = len(prefix) if demos else len(prompts.start)  # tokens before the query's own
    width = max(len(query.prompt) for query in prompts.queries)
    parts = []
    for batch in _batches(lens, prompts.start, prefix, prompts.queries):
        watch = _Watch(batch.last, before, len(prefix), width)
        hooks = [
            hook
            for layer in range(lens.cfg.n_layers)
            for hook in (
                (f"blocks.{layer}.hook_attn_out", watch.attn_out),
                (f"blocks.{layer}.attn.hook_event", watch.event),
            )
        ]
        with lens.hooks(fwd_hooks=hooks):
            logits = batch.logits(lens)
        parts.append((*watch.stacked(), logits))
    return Reading(*(torch.cat(part) for part in zip(*parts, strict=True)))


@in_evaluation_mode
@torch.no_grad()
def next_token_logits(
    lens: InterventionLens, prompts: LabelPrompts, examples: Sequence[Example], *, demos: bool
) -> Float[Tensor, "example d_vocab"]:
    """Next-token logits after each example's prompt, in float32 on the CPU; nothing is hooked."""
    prefix = demo_tokens(prompts).tokens if demos else []
    return torch.cat([batch.logits(lens) for batch in _batches(lens, prompts.start, prefix, examples)])


@dataclass(frozen=True)
class DemoTokens:
    """All demonstrations as the context of a query, and where in it each one's own tokens are."""

    tokens: list[int]
    positions: list[Int[Tensor, " token"]]
    """Of each demonstration, without its first token and without separators."""


def demo_tokens(prompts: LabelPrompts) -> DemoTokens:
    """The demonstrations in order, each with its label, with a separator after each."""
    tokens, positions = list(prompts.start), []
    for demo in prompts.demos:
        own = [*demo.prompt, demo.label]
        positions.append(torch.arange(len(tokens) + 1, len(tokens) + len(own)))
        tokens += [*own, *prompts.separator]
    return DemoTokens(tokens, positions)


@dataclass(frozen=True)
class _Batch:
    tokens: Int[Tensor, "query token"]
    last: Int[Tensor, " query"]
    """Where each query's last token is in its row."""
    past: dict[str, Any]

    def logits(self, lens: InterventionLens) -> Float[Tensor, "query d_vocab"]:
        """Logits at each row's last token; where the model can, only the columns that some row needs are computed."""
        columns, which = self.last.unique(return_inverse=True)
        if lens.last_logits_only:
            out = lens(self.tokens, logits_to_keep=columns, **self.past)
        else:
            out = lens(self.tokens, **self.past)[:, columns]
        logits: Tensor = out[torch.arange(len(which), device=which.device), which].float().cpu()
        return logits


def _batches(
    lens: InterventionLens, start: tuple[int, ...], prefix: list[int], examples: Sequence[Example]
) -> Iterator[_Batch]:
    """Right-padded batches; `prefix` is read once and its keys and values are copied for every batch."""
    one_text(lens, "in-context learning")
    read_before = None
    if prefix:
        lens(torch.tensor([prefix]), return_type=None, use_cache=True, **lens.last_logits_only)
        read_before = lens.last_cache
    for group in (examples[i : i + BATCH] for i in range(0, len(examples), BATCH)):
        rows = [list(e.prompt) if prefix else [*start, *e.prompt] for e in group]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows], device=lens.device)
        past: dict[str, Any] = {}
        if read_before is not None:
            cache = copy.deepcopy(read_before)
            cache.batch_repeat_interleave(len(rows))
            past = {"past_key_values": cache, "use_cache": True}
        yield _Batch(tokens, torch.tensor([len(row) - 1 for row in rows], device=lens.device), past)


@dataclass
class _Watch:
    """Collects one batch, layer by layer."""

    last: Int[Tensor, " query"]
    before: int
    cached: int
    """How many of the tokens before the queries are in the cache."""
    width: int
    kept: dict[str, list[Tensor]] = field(
        default_factory=lambda: {"attn_out": [], "scores": [], "last_query": [], "demo_scores": []}
    )

    def attn_out(self, out: Tensor, hook: Any) -> None:
        self._keep("attn_out", out[self._rows, self.last])

    def event(self, event: Any, hook: Any) -> None:
        cached = event.k.shape[2] - event.q.shape[2]
        if cached != self.cached:
            raise InterpError(
                f"{hook.name}: this layer holds {cached} of the {self.cached} tokens before the query, since its "
                "window is shorter; use fewer or shorter demonstrations."
            )
        q = event.q[self._rows, :, self.last].float()  # [query, head, d_head]
        k = event.k.float().repeat_interleave(q.shape[1] // event.k.shape[1], 1)
        scores = torch.einsum("bhd,bhkd->bhk", q, k) * event.scale
        if event.softcap is not None:
            scores = torch.tanh(scores / event.softcap) * event.softcap
        own_ends = cached + self.last + 1
        own = torch.zeros(len(q), q.shape[1], self.width)
        for row, end in enumerate(own_ends.tolist()):
            own[row, :, self.width - (end - self.before) :] = scores[row, :, self.before : end].cpu()
        self._keep("scores", own)
        self._keep("last_query", (q * event.scale).flatten(1))
        self._keep("demo_scores", scores[:, :, :cached].sum(1))

    @property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.last), device=self.last.device)

    def _keep(self, name: str, value: Tensor) -> None:
        self.kept[name].append(value.float().cpu())

    def stacked(self) -> tuple[Tensor, ...]:
        """`[query, layer, ...]` of everything kept, in `Reading`'s order."""
        return tuple(torch.stack(values, 1) for values in self.kept.values())
