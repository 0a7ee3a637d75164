"""Attention matching: some keys stay, with biases and values fitted to what the rest gave (Zweiger et al. 2026).

"Fast KV Compaction via Attention Matching", arXiv:2602.16284: a few tokens shall give any query the mass and the output
that all of them gave. With the keys chosen among those that there are, both are least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int

from interp.errors import InterpError
from interp.interventions.base import Plan, Prompt
from interp.interventions.policies._choosing import by_text, choose
from interp.interventions.policies._readers import ReadingPlan, readers_of
from interp.interventions.policies._recent import RecentShare
from interp.interventions.policies._summaries import Readers
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.segments import Segment
    from interp.cache.stored_layer import StoredLayer
    from interp.seam.config import LensConfig

Tensor = torch.Tensor
ROUNDS = 100  # of projected gradients, accelerated; more change no digit that matters


@dataclass(frozen=True)
class AttentionMatching(RecentShare):
    """Keep the keys that queries attend to most, and fit their biases and values to what all tokens gave; acts once.

    A key's score is the root mean square of the attention that it receives from the prompt's last queries. Of the
    tokens before the recent ones, let C be those that stay and w = exp(bias). For each query, the masses of C times w
    should add up to the mass of all (least squares, w within exp(±`bias_bound`)); then values are chosen so that C,
    read with these biases, puts out what all put out (least squares, pulled towards C's own values by `ridge`).
    Recent tokens stay as they are. The bias is one fp32 number a token.

    Cost, once: for each stored head with S tokens, C kept, d channels and R rows (256 for every query head that reads
    it), 2 R S d + 2 R C² operations, and R S numbers of memory for one head at a time.

    Args:
        recent_share: the part of the budget that goes to the newest tokens, which are kept exactly.
        queries: share of the text, at its end, whose queries are fitted; 256 evenly spaced ones if it has more.
        bias_bound: how far biases may be from 0; 0 fits values alone.
        ridge: strength of the pull towards a token's own value, as a share of the mean squared attention to a token.

    Source: paper, section 3, its method with keys of the highest attention, root mean square, whose released code
    bounds biases by 3. Different here: the queries are the prompt's own, which the paper calls context prefill; it
    gains by queries of the model talking about the text ("self-study"), and a benchmark hands those in. Queries count
    by the mass that they pay to what is compacted, since recent tokens are left out; least squares have a ridge.

    Examples:
        >>> with lens.apply(interp.AttentionMatching(budget=0.5)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> sorted(set(lens.last_cache.report().kept.tolist()))
        [23]
    """

    name: ClassVar[str] = "attention_matching"
    sinks: int = 4
    recent_share: float = 0.25
    queries: float = 0.25
    bias_bound: float = 3.0
    ridge: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.queries <= 1:
            raise InterpError(f"attention_matching: queries should be a share above 0, found {self.queries}.")
        if not (self.bias_bound >= 0 and self.ridge > 0):
            raise InterpError("attention_matching: bias_bound should be at least 0, and ridge above 0.")

    def unfit_for_latents(self, cfg: LensConfig) -> str | None:
        return "it fits a value apart from its key, and a latent is both"

    def check(self, prompt: Prompt) -> None:
        super().check(prompt)
        if prompt.cfg.attn_softcap is not None:
            raise InterpError(
                f"attention_matching: {prompt.cfg.architecture} caps its attention logits, so masses are no sums of "
                "exponentials of products."
            )

    def begin(self, prompt: Prompt) -> Plan:
        return AttentionMatchingPlan(self, prompt)

    def scores(self, layer: int, event: AttentionEvent) -> Float[Tensor, "batch kv_head token"]:
        readers, k = readers_of(event, self.queries), event.k.float()
        at = torch.arange(k.shape[2], device=k.device)
        if (mask := event.facts.get("key_mask")) is not None:
            at = at.where(mask, UNSEEN)
        biases = event.facts.get("bias", k.new_zeros(k.shape[0], event.q.shape[1], 1, k.shape[2]))
        biases = biases[:, :: event.q.shape[1] // k.shape[1], 0]  # of a cache that was cut before, in another turn
        made = []
        for b, h in product(*map(range, k.shape[:2])):
            paid = attention(readers.head(b, h), k[b, h], at if at.ndim == 1 else at[b], biases[b, h])
            made.append(paid.square().mean(0).sqrt())
        scores: Tensor = torch.stack(made).unflatten(0, k.shape[:2])
        return scores


UNSEEN = torch.iinfo(torch.int64).max
"""Position of what no query sees."""


class AttentionMatchingPlan(ReadingPlan):
    policy: AttentionMatching

    def evict(
        self, layer: int, stored: StoredLayer, scores: Tensor, sizes: Sequence[int], recent: Sequence[int]
    ) -> None:
        choice = choose(scores, stored.places(), stored.padding, sizes, recent, self.policy.sinks)
        whole = stored.whole()
        lost = self._lost(stored, scores, choice)
        stored.keep(choice.kept, choice.recent, unused=choice.unused)
        newest = stored.seen - by_text(recent, scores)
        stored.lay_before_recent(self._fitted(self.readers[layer], whole, stored.segments[0], stored.padding, newest))
        self.remember(layer, stored, sizes, recent)
        self.note(layer, stored, lost)

    def _fitted(
        self, readers: Readers, whole: Segment, kept: Segment, padding: Tensor | None, newest: Int[Tensor, "batch 1 1"]
    ) -> Segment:
        """The kept tokens with biases and values that make up for all others of `whole`, those at `newest` and later
        aside: these are left as they are, also where a text keeps more of them than another, among `kept`."""
        first = 0 if padding is None else padding[:, None, None]
        at, mine = (
            places.masked_fill((places < first) | (places >= newest), UNSEEN)
            for places in (segment.at().long().expand(*segment.keys.shape[:2], -1) for segment in (whole, kept))
        )
        biases, values = [], []
        for b, h in product(*map(range, whole.keys.shape[:2])):  # one after the other, for the memory
            rows = readers.head(b, h)
            of_all = attention(rows, whole.keys[b, h].float(), at[b, h])
            of_kept = attention(rows, kept.keys[b, h].float(), mine[b, h])
            weight = bounded(of_kept, of_all.sum(-1), self.policy.bias_bound)
            out = of_all @ whole.values[b, h].float()
            biases.append(weight.log())
            values.append(refitted(of_kept * weight, out, kept.values[b, h].float(), self.policy.ridge))
        shape = whole.keys.shape[:2]
        return replace(
            kept,
            values=torch.stack(values).unflatten(0, shape).to(kept.values.dtype),
            log_count=torch.stack(biases).unflatten(0, shape),
        )


def attention(
    readers: Readers, keys: Float[Tensor, "token d"], at: Int[Tensor, " token"], bias: Tensor | float = 0.0
) -> Float[Tensor, "row token"]:
    """What each row pays to some of the tokens that it reads, to all of which it pays 1."""
    scores = readers.rows @ keys.T + bias - readers.lse[:, None]
    return scores.masked_fill(at > readers.at[:, None], -torch.inf).exp()


def bounded(paid: Float[Tensor, "row kept"], mass: Float[Tensor, " row"], bound: float) -> Float[Tensor, " kept"]:
    """Weights within exp(±bound) that bring paid · weight as near to the mass as they can."""
    low, high = torch.tensor([-bound, bound], device=paid.device).exp()
    gram, right = paid.T @ paid, paid.T @ mass
    step = 1 / torch.linalg.matrix_norm(gram, 2).clamp_min(torch.finfo(gram.dtype).tiny)
    weight = ahead = torch.ones_like(right)
    pace = 1.0
    for _ in range(ROUNDS):
        new = (ahead - step * (gram @ ahead - right)).clamp(low, high)
        faster = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
        ahead, weight, pace = new + (pace - 1) / faster * (new - weight), new, faster
    return weight


def refitted(
    paid: Float[Tensor, "row kept"], out: Float[Tensor, "row d"], values: Float[Tensor, "kept d"], ridge: float
) -> Float[Tensor, "kept d"]:
    """Values with which paid · values is nearest to `out`, pulled towards those that are there."""
    gram = paid.T @ paid
    read = gram.diagonal()[gram.diagonal() > 0]  # without places that a padded text does not use
    strength = ridge * (read.mean() if len(read) else gram.new_ones(()))
    eye = strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    change: Tensor = torch.linalg.solve(gram + eye, paid.T @ (out - paid @ values))
    return values + change
