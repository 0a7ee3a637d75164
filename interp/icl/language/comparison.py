"""All measures of how alike two runs are, each with its standard error over queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interp.icl.language.changes import Change
from interp.icl.language.label_tasks import LabelPrompts
from interp.icl.language.readings import Reading
from interp.icl.language.similarity import cosine, kendall, overlap_cosine, rec2ftp, simam, token_overlap, top_overlap
from interp.icl.measures._means import mean_of_defined

if TYPE_CHECKING:
    import xarray as xr

Tensor = torch.Tensor

TOP_TOKENS = 10  # of the next-token distribution
MEASURES = {
    "simaou": "cosine of the changes of attention outputs, ICL against FT, mean over layers",
    "simam_update": "cosine of the changes of scores over the query's own tokens, mean over heads and layers",
    "simam": "cosine of the scores over the query's own tokens, ICL against FT; inflated by what both share with ZSL",
    "kendall_tokens": "Kendall's tau over demonstration tokens: their scores in ICL, their query products in FT",
    "kendall_demos": "Kendall's tau over demonstrations, each with the softmax mass of its tokens",
    "top_tokens_shared": "share of the top quarter of demonstration tokens that ICL and FT share; about 1/4 by chance",
    "top_demos_shared": "share of the top quarter of demonstrations that ICL and FT share; about 1/4 by chance",
    "token_overlap": f"share of the {TOP_TOKENS} likeliest next tokens that ICL and FT have in common",
    "overlap_cosine": "cosine of next-token probabilities on those in common, with a penalty for those that are not",
    "label_agreement": "share of queries that ICL and FT give the same label",
    "rec2ftp": "of the queries that ZSL labels wrong and FT right, the share that ICL labels right too",
    "simam_zsl": "cosine of the scores over the query's own tokens, ICL against ZSL: what simam is held against",
    "accuracy_zsl": "share of queries that the bare model labels right",
    "accuracy_icl": "share of queries labelled right after the demonstrations",
    "accuracy_ft": "share of queries labelled right after fine-tuning",
    "update_ratio": "length of FT's change of attention outputs over that of ICL's, mean over layers",
}
SIMILARITIES = tuple(MEASURES)[:11]
"""Those that compare ICL with FT; the rest say what the runs themselves do."""
BY_LAYER = ("simaou", "simam_update", "kendall_tokens")


def compared(zsl: Reading, icl: Change, ft: Change, prompts: LabelPrompts) -> xr.Dataset:
    """How alike an in-context and a fine-tuned change of one bare run are.

    Every measure of `MEASURES` with its `<name>_se`, `<name>_by_layer` for those of `BY_LAYER`, and `rec2ftp_queries`.
    A layer in which a similarity is not defined is left out of its mean. The quarter of tokens or demonstrations that
    matter most is at least one; Dai et al. take 5 of 32 demonstrations and 100 tokens of longer prompts.

    Standard errors are NaN where fewer than two queries define the value. All queries share demonstrations and fine-
    tuned weights, so these errors do not say how other demonstrations would do.
    """
    from interp.results.described import Row, described, with_error

    icl_tokens, ft_tokens = _paired(icl.demo_scores, ft.demo_scores)
    icl_demos, ft_demos = (torch.stack([s.logsumexp(-1) for s in c.demo_scores], -1) for c in (icl, ft))
    icl_p, ft_p = icl.logits.double().softmax(-1), ft.logits.double().softmax(-1)
    labels = {"zsl": zsl.logits, "icl": icl.logits, "ft": ft.logits}
    chosen = {run: logits[:, prompts.label_tokens].argmax(-1) for run, logits in labels.items()}
    answers = torch.tensor([prompts.label_tokens.index(query.label) for query in prompts.queries])
    right = {run: choice == answers for run, choice in chosen.items()}
    recovered, learnt = rec2ftp(right["zsl"], right["icl"], right["ft"])
    of_layers = {
        "simaou": cosine(icl.attn_out, ft.attn_out),
        "simam_update": simam(icl.scores_update, ft.scores_update),
        "simam": simam(icl.scores, ft.scores),
        "simam_zsl": simam(icl.scores, zsl.scores),
        "kendall_tokens": kendall(icl_tokens, ft_tokens),
        "kendall_demos": kendall(icl_demos, ft_demos),
        "top_tokens_shared": top_overlap(icl_tokens, ft_tokens, max(1, icl_tokens.shape[-1] // 4)),
        "top_demos_shared": top_overlap(icl_demos, ft_demos, max(1, icl_demos.shape[-1] // 4)),
        "update_ratio": ft.attn_out.norm(dim=-1) / icl.attn_out.norm(dim=-1),
    }
    of_queries = {name: values.nanmean(-1) for name, values in of_layers.items()} | {
        "token_overlap": token_overlap(icl_p, ft_p, TOP_TOKENS),
        "overlap_cosine": overlap_cosine(icl_p, ft_p, TOP_TOKENS),
        "label_agreement": (chosen["icl"] == chosen["ft"]).float(),
        **{f"accuracy_{run}": hits.float() for run, hits in right.items()},
    }
    numbers = {name: mean_of_defined(values)[:2] for name, values in of_queries.items()}
    numbers["rec2ftp"] = recovered, (recovered * (1 - recovered) / (learnt - 1)) ** 0.5 if learnt > 1 else float("nan")
    data = {"rec2ftp_queries": Row((), learnt, "queries", "how many ZSL labels wrong and FT right")}
    for name, description in MEASURES.items():
        value, error = numbers[name]
        data |= with_error(name, Row((), value, "1", description), error, " over queries")
    for name in BY_LAYER:
        said = f"{name} of each layer, mean over queries"
        data[f"{name}_by_layer"] = Row("layer", of_layers[name].nanmean(0), "1", said)
    return described(data)


def _paired(icl: list[Tensor], ft: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens of the n-th demonstrations of both sides beside each other, counted from the label backwards.

    With the same texts these are the same tokens. A wrong task has others: what is left to agree is their place.
    """
    lengths = [min(a.shape[-1], b.shape[-1]) for a, b in zip(icl, ft, strict=True)]
    cut_icl, cut_ft = ([scores[..., -n:] for scores, n in zip(side, lengths, strict=True)] for side in (icl, ft))
    return torch.cat(cut_icl, -1), torch.cat(cut_ft, -1)
