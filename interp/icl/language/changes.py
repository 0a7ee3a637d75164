"""What a run changes in the bare model, in the form in which runs are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from interp.icl.language.fine_tuning import Training
from interp.icl.language.label_tasks import LabelPrompts
from interp.icl.language.readings import Reading, demo_tokens
from interp.icl.language.similarity import output_update

Tensor = torch.Tensor
ROUNDING = 1e-5
"""A change of scores that is smaller than this part of them is rounding: the first layer of a rotary model computes a
query's own scores from the same numbers with and without demonstrations, and they differ by some 1e-7."""


@dataclass(frozen=True)
class Change:
    """One run beside the bare model, for every query."""

    attn_out: Float[Tensor, "query layer d_model"]
    """Change of the attention block's output, each output normalised to length 1 before."""
    scores: Float[Tensor, "query layer head token"]
    """Scores over the query's own tokens, not a change."""
    scores_update: Float[Tensor, "query layer head token"]
    """Their change, 0 where it is no more than rounding."""
    demo_scores: list[Float[Tensor, "query layer token"]]
    """How much each demonstration's tokens matter to the query: for a prompt the scores that its last token gives them,
    for fine-tuning the products of its last query with the queries that were trained on."""
    logits: Float[Tensor, "query d_vocab"]


def in_context_change(zsl: Reading, icl: Reading, prompts: LabelPrompts) -> Change:
    """The change that the demonstrations of `prompts` make when they are read before the query."""
    by_demo = [icl.demo_scores[:, :, positions] for positions in demo_tokens(prompts).positions]
    return _change(zsl, icl, by_demo)


def fine_tuned_change(zsl: Reading, ft: Reading, training: Training) -> Change:
    """The change that training on demonstrations makes."""
    by_demo = [torch.einsum("qlc,ltc->qlt", ft.last_query, trained) for trained in training.queries]
    return _change(zsl, ft, by_demo)


def _change(zsl: Reading, run: Reading, demo_scores: list[Tensor]) -> Change:
    update = run.scores - zsl.scores
    rounding = update.norm(dim=-1) <= ROUNDING * zsl.scores.norm(dim=-1)
    return Change(
        attn_out=output_update(zsl.attn_out, run.attn_out),
        scores=run.scores,
        scores_update=update.masked_fill(rounding[..., None], 0.0),
        demo_scores=demo_scores,
        logits=run.logits,
    )
