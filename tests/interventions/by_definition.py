"""What an attention edit of either stage says of itself, written out row by row in the open.

Hooks on scores and pattern change them as the edit's groups, rows, factors and change define it, each text of a batch
by itself and without its padding. A text may come in pieces, with a cache, under a cache policy: keys are found by the
places that the cache says they have. No kernel, no memory and no masks of the library take part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from interp.interventions.base import Intervention, parts
from interp.interventions.edits.base import AttentionEdit, LogitEdit, NewTokens, PatternEdit
from tests.interventions.edited_by_hand import in_pieces

Tensor = torch.Tensor


class ByDefinition:
    """The hooks that change scores and patterns as edits define it.

    padding: columns on the left of each text.
    """

    def __init__(self, lens: Any, edits: Intervention, ids: Tensor, padding: Sequence[int]) -> None:
        self.lens, self.ids, self.padding = lens, ids, padding
        self.edits: list[AttentionEdit] = [edit for edit in parts(edits) if isinstance(edit, AttentionEdit)]
        self.groups: dict[Any, Tensor] = {}
        """By layer, edit and text: the group of each token so far."""
        self.rows: dict[Any, Tensor] = {}
        self.scores: Tensor = torch.zeros(0)
        self.sink_scale: Tensor = torch.zeros(0)

    @property
    def hooks(self) -> list[tuple[Callable[[str], bool], Callable]]:
        def at(name: str, function: Callable) -> tuple[Callable[[str], bool], Callable]:
            return (
                lambda point: point.endswith(name),
                lambda value, hook: function(int(hook.name.split(".")[1]), value),
            )

        return [
            at("hook_resid_pre", self.arrive),
            at("attn.hook_attn_scores", self.logits),
            at("attn.hook_pattern", self.pattern),
        ]

    def arrive(self, layer: int, residual: Tensor) -> None:
        image = -1 if self.lens.cfg.image_token_id is None else self.lens.cfg.image_token_id
        for b, pad in enumerate(self.padding):
            for n, edit in enumerate(self.edits):
                known = self.groups.get((layer, n, b), torch.zeros(0, dtype=torch.long))
                seen = pad + len(known) if len(known) else 0
                column = max(seen, pad)  # of the first token that is new and real
                end = seen + residual.shape[1]
                assert end > column, "a text should begin in the first piece"
                new = end - column
                text = NewTokens(
                    layer,
                    new,
                    torch.arange(end - pad)[None],
                    self.ids[b : b + 1, pad:end],
                    self.ids[b : b + 1, pad:end] == image,
                    int(residual.shape[1] == 1 and seen > 0),
                    residual[b : b + 1, residual.shape[1] - new :] if edit.reads_residual else None,
                )
                self.groups[layer, n, b] = torch.cat([known, edit.groups(text)[0]])
                rows = self.rows.get((layer, n, b), torch.zeros(0, dtype=torch.bool))
                self.rows[layer, n, b] = torch.cat([rows, edit.rows(text)[0]])

    def places(self, layer: int, like: Tensor) -> Tensor:
        """The column in the input of every key `[batch, head, key]`."""
        batch, heads, _, count = like.shape
        cache = self.lens.last_cache
        stored = None if cache is None or cache.keeper is None else cache.stored.get(layer)
        if stored is None:  # without a cache all tokens, in a layer with a sliding window the newest ones
            seen = self.padding[0] + len(self.groups[layer, 0, 0])
            return torch.arange(seen - count, seen).expand(batch, heads, -1)
        places = torch.cat([s.at().expand(s.keys.shape[:3]) for s in stored.segments], 2)
        return places.repeat_interleave(heads // places.shape[1], 1)

    def counts(self, layer: int, like: Tensor) -> Tensor:
        """Log of how many tokens each stored one stands for, which is part of the scores and no logit."""
        cache = self.lens.last_cache
        stored = None if cache is None or cache.keeper is None else cache.stored.get(layer)
        if stored is None or not stored.compressed:
            return torch.zeros(())
        bias = stored.additive_mask(like.shape[2])
        return bias.repeat_interleave(like.shape[1] // bias.shape[1], 1).clamp_min(0.0)

    def each_row(self, layer: int, like: Tensor, stage: type[AttentionEdit]) -> Any:
        """(edit, text, head, row, place of the row in its text, group of each key) where an edit may change a row."""
        batch, heads, queries, _ = like.shape
        places = self.places(layer, like)
        for n, edit in enumerate(self.edits):
            if not isinstance(edit, stage) or not edit.acts_in(layer, self.lens.cfg.n_layers):
                continue
            for b in range(batch):
                known = self.groups[layer, n, b]
                for i in range(queries):
                    position = len(known) - queries + i
                    if position < 0 or not self.rows[layer, n, b][position]:
                        continue
                    for h in range(heads) if edit.heads is None else edit.heads:
                        yield edit, b, h, i, position, known[(places[b, h] - self.padding[b]).clamp_min(0)]

    def logits(self, layer: int, scores: Tensor) -> Tensor:
        new, visible, counts = scores.clone(), scores > -1e30, self.counts(layer, scores).expand_as(scores)
        self.sink_scale = torch.ones(scores.shape[:3], dtype=scores.dtype)
        for edit, b, h, i, position, group in self.each_row(layer, scores, LogitEdit):
            change = edit.change(torch.tensor([[position]]))
            count = edit.group_count
            scale, bias = (
                torch.as_tensor(x).to(scores).expand(1, 1, 1, count)[0, 0, 0] for x in (change.scale, change.bias)
            )
            logit = new[b, h, i] - counts[b, h, i]
            edited = scale[group] * logit + bias[group] + counts[b, h, i]
            new[b, h, i] = torch.where(visible[b, h, i], edited, scores[b, h, i])
            self.sink_scale[b, h, i] *= float(change.sink_scale)
        self.scores = new
        return new

    def pattern(self, layer: int, pattern: Tensor) -> Tensor:
        sinks = getattr(self.lens.anatomy.blocks[layer].attention, "sinks", None)
        logits = self.scores
        if sinks is not None:
            logits = torch.cat([logits, (sinks[None, :, None] * self.sink_scale)[..., None]], -1)
        new = logits.softmax(-1)[..., : pattern.shape[-1]].clone()
        for edit, b, h, i, _, group in self.each_row(layer, pattern, PatternEdit):
            row = new[b, h, i].clone()
            masses = torch.stack([row[group == g].sum() for g in range(edit.group_count)])
            factors = edit.factors(masses[None, None, None])[0, 0, 0]
            edited = row * torch.where(masses > 0, factors, 1.0)[group]
            if edit.keeps_sums:
                edited = edited * (row.sum() / edited.sum() if edited.sum() > 0 else 0.0)
            new[b, h, i] = edited
        return new.to(pattern.dtype)


def by_definition(
    lens: Any,
    edits: Intervention,
    ids: Tensor,
    mask: Tensor | None = None,
    sizes: Sequence[int] = (),
    policy: Any = None,
) -> Tensor:
    """Logits under edits, written out; with `sizes` in pieces with a cache, and with a policy under that."""
    padding = [0] * len(ids) if mask is None else [int((row == 0).sum()) for row in mask]
    hooks = ByDefinition(lens, edits, ids, padding).hooks
    with lens.hooks(fwd_hooks=hooks):
        if policy is not None:
            with lens.apply(policy):
                return in_pieces(lens, ids, sizes, mask)
        if sizes:
            return in_pieces(lens, ids, sizes, mask)
        return lens(ids, **({} if mask is None else {"attention_mask": mask}))
