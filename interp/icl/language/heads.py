"""Which heads could carry in-context learning: induction, prefix matching, duplicate and previous token, copying.

All but copying are sums over chosen cells of the attention pattern (`TARGETS`), so one pass over a sequence scores
every head. They see the pattern at `hook_pattern`, with any edit made there before; the pattern of one layer and one
sequence exists at a time.

Source: Olsson et al. 2022 ("In-context learning and induction heads", arXiv:2209.11895), appendix on head scores, with
the erratum that the target of prefix matching is the token that FOLLOWS the earlier occurrence. Different here: tokens
of a sequence are distinct, so that one earlier repeat holds one occurrence; standard errors over sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int

from interp.errors import InterpError
from interp.icl.language._layers import attention_everywhere
from interp.icl.language._prompts import after_bos, random_tokens, rows_of_text
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import TextLens
from interp.results.described import Row, described, with_error
from interp.subjects.texts import demo_text

Tensor = torch.Tensor
Cells = Float[Tensor, "query key"]


def head_scores(lens: TextLens, text: str | Tensor | None = None, *, samples: int = 10, seed: int = 0) -> xr.Dataset:
    """All scores of this file, with their default settings, in one dataset (layer, head).

    `text` is what `previous_token` reads, the demo text by default. Reads 4 x `samples` sequences, none longer than 256
    tokens.
    """
    parts = [
        _on_repeats(lens, ("induction", "duplicate_token"), 50, 2, samples, seed),
        prefix_matching(lens, samples=samples, seed=seed),
        previous_token(lens, demo_text() if text is None else text, samples=samples),
        copying(lens, samples=samples, seed=seed),
    ]
    return xr.merge(parts).assign_attrs(parts[0].attrs)


def induction_scores(lens: TextLens, *, length: int = 50, samples: int = 10, seed: int = 0) -> xr.Dataset:
    """`induction`: attention from each token of a second copy to the token after its first occurrence, mean over the
    copy.

    `length` random tokens come twice, after BOS where the tokenizer has one. The variant with a single repeat that
    toolkits use (attention at offset -(length - 1)); they also count one or two queries before the second copy.
    """
    return _on_repeats(lens, ("induction",), length, 2, samples, seed)


def duplicate_token(lens: TextLens, *, length: int = 50, samples: int = 10, seed: int = 0) -> xr.Dataset:
    """`duplicate_token`: attention from each token of a second copy to its first occurrence itself."""
    return _on_repeats(lens, ("duplicate_token",), length, 2, samples, seed)


def prefix_matching(
    lens: TextLens, *, length: int = 25, repeats: int = 4, samples: int = 10, seed: int = 0
) -> xr.Dataset:
    """Attention from repeated tokens to the followers of their earlier occurrences: `length` random tokens, `repeats`
    times, after BOS where the tokenizer has one.

    `prefix_matching_entries` averages over pairs of query and follower, as the paper does: a head that spreads over
    several earlier occurrences cannot reach 1 (at most 0.5 for four repeats). `prefix_matching` sums over the followers
    of a query and averages over queries (at most 1).
    """
    return _on_repeats(lens, ("prefix_matching", "prefix_matching_entries"), length, repeats, samples, seed)


def previous_token(lens: TextLens, text: str | Tensor, *, length: int = 256, samples: int = 10) -> xr.Dataset:
    """`previous_token`: attention from each token of a real text to the one before, mean over tokens.

    `text` is cut into at most `samples` stretches of `length` tokens; of tokens `[sample, pos]` so many are read. The
    first position is no target: heads that look for nothing rest there.
    """
    if length < 3:
        raise InterpError(f"previous_token reads at least 3 tokens, the first being no target; found length={length}.")
    rows = rows_of_text(lens, text, length, samples, "previous_token")
    _check_samples("previous_token", len(rows))
    return _attended(lens, rows, ("previous_token",), {"length": length})


def copying(lens: TextLens, *, length: int = 25, samples: int = 10, seed: int = 0) -> xr.Dataset:
    """`copying`: how much a head raises the logit of a token that it attends to, from -1 to 1.

    `length` random tokens are read (after BOS where there is one). For each of them what the head writes when it
    attends to that token alone, its value times W_O, goes straight to the unembedding. Of the logits minus their mean
    over the vocabulary the positive part counts: r is that of the attended token over itself plus the sum over all
    tokens of the sequence, between 0 and 1/2, and the score is 4 r - 1, mean over tokens. A token that raises nothing
    has r = 0.

    The final norm is applied as a linear map, its statistics frozen: its weights by channel matter, the common scale
    cancels in r. So does a factor on the logits; biases and a softcap belong to no head and are left out.
    """
    _check_samples("copying", samples)
    scores = np.stack([_copying(lens, row) for row in random_tokens(lens, samples, length, seed)])
    return _summary(lens, {"copying": scores}, {"length": length, "seed": seed})


def head_findings(ds: xr.Dataset, above: float = 0.4) -> list[str]:
    """Sentences on the scores in a dataset: which heads attend with a score above `above`, and which copy most."""
    found = [_who_attends(ds[name], kind, above) for name, kind in KINDS.items() if name in ds]
    if "copying" in ds:
        alike = 4 / (1 + ds["copying"].attrs["length"]) - 1
        found.append(
            f"Copying is strongest in {', '.join(_ranked(ds['copying'])[:LISTED])}; 1 raises only the attended token, "
            f"{alike:.2f} all tokens of the sequence alike, -1 only others."
        )
    return found


def _who_attends(score: xr.DataArray, kind: str, above: float) -> str:
    ranked, found = _ranked(score), int((score > above).sum())
    article = "an" if kind[0] in "aeiou" else "a"
    if not found:
        return f"No head is {article} {kind} (score above {above:g}); the nearest is {ranked[0]}."
    who = (
        f"{found} of {score.size} heads are {kind}s" if found > 1 else f"One of {score.size} heads is {article} {kind}"
    )
    more = f" and {found - LISTED} more" if found > LISTED else ""
    return f"{who} (layer.head, score above {above:g}): {', '.join(ranked[: min(found, LISTED)])}{more}."


def _ranked(score: xr.DataArray) -> list[str]:
    """Heads by falling score: '5.1 (0.93)' for head 1 of layer 5."""
    values = score.transpose("layer", "head").values
    order = [np.unravel_index(i, values.shape) for i in np.argsort(-values, axis=None)]
    return [f"{score['layer'].values[i]}.{score['head'].values[j]} ({values[i, j]:.2f})" for i, j in order]


def earlier_occurrences(tokens: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """Where the key is the same token as the query, and before it."""
    return (tokens[:, None] == tokens).tril(-1)


def followers(tokens: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    """Where the key comes right after an earlier occurrence of the query's token, and before the query."""
    after = torch.zeros_like(same := earlier_occurrences(tokens))
    after[:, 1:] = same[:, :-1]
    return after.tril(-1)


def _over_queries(cells: Bool[Tensor, "query key"]) -> Cells:
    """Weights that sum over the cells of a row and average over the rows that have any."""
    return cells / cells.any(-1).sum()


def _before(tokens: Int[Tensor, " pos"]) -> Bool[Tensor, "query key"]:
    before = torch.ones(len(tokens) - 1, device=tokens.device).diag(-1).bool()
    before[:, 0] = False
    return before


TARGETS: dict[str, Callable[[Int[Tensor, " pos"]], Cells]] = {
    "induction": lambda tokens: _over_queries(followers(tokens)),
    "duplicate_token": lambda tokens: _over_queries(earlier_occurrences(tokens)),
    "prefix_matching": lambda tokens: _over_queries(followers(tokens)),
    "prefix_matching_entries": lambda tokens: followers(tokens) / followers(tokens).sum(),
    "previous_token": lambda tokens: _over_queries(_before(tokens)),
}
"""The weight of each cell of the pattern in a score, from the tokens of the sequence."""

DESCRIPTIONS = {
    "induction": "attention from a repeated token to the follower of its first occurrence, mean over the second copy",
    "duplicate_token": "attention from a repeated token to its first occurrence, mean over the second copy",
    "prefix_matching": "attention to all followers of earlier occurrences, summed, mean over repeated tokens",
    "prefix_matching_entries": "the same, mean over pairs of repeated token and follower (the paper's average)",
    "previous_token": "attention to the token before, mean over a text",
    "copying": "4 r - 1, r the share of the attended token in the logits that the head raises",
}
KINDS = {
    "induction": "induction head",
    "prefix_matching": "prefix-matching head",
    "previous_token": "previous-token head",
    "duplicate_token": "duplicate-token head",
}
LISTED = 8
"""Heads that a sentence names."""


def _on_repeats(
    lens: TextLens, names: tuple[str, ...], length: int, repeats: int, samples: int, seed: int
) -> xr.Dataset:
    _check_samples(" and ".join(names), samples)
    if repeats < 2 or length < 2:
        raise InterpError(
            f"a follower of an earlier occurrence takes 2 repeats of 2 tokens, found {repeats} of {length}."
        )
    rows = after_bos(lens, random_tokens(lens, samples, length, seed).repeat(1, repeats))
    return _attended(lens, rows, names, {"length": length, "repeats": repeats, "seed": seed})


@in_evaluation_mode
@torch.no_grad()
def _attended(
    lens: TextLens, rows: Int[Tensor, "sample pos"], names: tuple[str, ...], about: Mapping[str, int]
) -> xr.Dataset:
    """The scores `names` of every head on every row, averaged."""
    lens.check_length(rows.shape[1])
    attention_everywhere(lens, "scores of attention heads")
    points = [f"blocks.{layer}.attn.hook_pattern" for layer in range(lens.cfg.n_layers)]
    scores = np.zeros((len(names), len(rows), lens.cfg.n_layers, lens.cfg.n_heads))
    for sample, row in enumerate(rows):
        cells = torch.stack([TARGETS[name](row) for name in names])

        def look(pattern: Tensor, hook: Any, *, layer: int, sample: int = sample, cells: Tensor = cells) -> None:
            scores[:, sample, layer] = torch.einsum("hqk,nqk->nh", pattern[0].float(), cells.float()).cpu().numpy()

        hooks = [(point, partial(look, layer=layer)) for layer, point in enumerate(points)]
        lens.run_with_hooks(row[None], return_type=None, fwd_hooks=hooks, **lens.last_logits_only)
    return _summary(lens, dict(zip(names, scores, strict=True)), about)


@in_evaluation_mode
@torch.no_grad()
def _copying(lens: TextLens, row: Int[Tensor, " source"]) -> Float[np.ndarray, "layer head"]:
    """The copying score of every head on one sequence."""
    attention_everywhere(lens, "the copying score")
    layers = range(lens.cfg.n_layers)
    last = f"blocks.{layers[-1]}.hook_resid_post"
    names = [*(f"blocks.{layer}.attn.hook_v" for layer in layers), last]
    _, cache = lens.run_with_cache(
        after_bos(lens, row[None]), names_filter=names, return_type=None, **lens.last_logits_only
    )
    normalise = lens.final_norm_frozen(cache[last][0, -1])
    unembedding = lens.model.get_output_embeddings().weight
    centred = (unembedding[row] - unembedding.mean(0)).float()  # logits of the sequence's tokens minus the mean logit
    scores = []
    for layer in layers:
        values = cache[names[layer]]
        z = values.repeat_interleave(lens.cfg.n_heads // values.shape[2], 2)
        sources = range(z.shape[1] - len(row), z.shape[1])
        written = torch.stack([lens.head_contributions(layer, z, source) for source in sources])
        raised = (normalise(written).float() @ centred.T).relu()  # [source, head, token of the sequence]
        own = raised.diagonal(dim1=0, dim2=2).T  # [source, head]
        share = (own / (own + raised.sum(-1))).nan_to_num(0.0)
        scores.append((4 * share - 1).mean(0).cpu().numpy())
    return np.stack(scores)


def _check_samples(what: str, samples: int) -> None:
    if samples < 2:
        raise InterpError(f"{what} needs at least 2 sequences for a standard error, found {samples}.")


def _summary(lens: TextLens, scores: Mapping[str, np.ndarray], about: Mapping[str, int]) -> xr.Dataset:
    """Mean and standard error over samples of scores `[sample, layer, head]`."""
    data: dict[str, Row] = {}
    for name, by_sample in scores.items():
        settings = {"samples": len(by_sample), **about}
        error = by_sample.std(0, ddof=1) / math.sqrt(len(by_sample))
        row = Row(("layer", "head"), by_sample.mean(0), "1", DESCRIPTIONS[name], settings)
        data |= with_error(name, row, error, " over sequences")
    attrs = {
        "title": "Scores of attention heads",
        "description": "What each head attends to in repeated sequences and text, and whether it copies",
        "model": lens.cfg.model_name,
    }
    return described(data, {"layer": np.arange(lens.cfg.n_layers), "head": np.arange(lens.cfg.n_heads)}, attrs)
