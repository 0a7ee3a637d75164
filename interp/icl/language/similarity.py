"""How alike two changes of a model are: what demonstrations in the prompt do, and what training on them does.

All functions are plain arithmetic on tensors, NaN where a similarity is not defined (nothing changed, or a denominator
is 0). Definitions are those of Dai et al. 2023 (sections 4.2 and 4.3; SimAOU, SimAM, Rec2FTP, Kendall), the comparison
of updates is that of Deutch et al. 2024, token overlap and its cosine that of Shen, Mishra and Khashabi 2023, whose
formulas were taken second-hand. `interp.icl.language.three_runs` returns them beside their controls; by themselves
these numbers say little, since untrained weights score well above 0 too.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from scipy.stats import kendalltau

from interp.errors import InterpError

Tensor = torch.Tensor


def rec2ftp(
    zsl_right: Bool[Tensor, " query"], icl_right: Bool[Tensor, " query"], ft_right: Bool[Tensor, " query"]
) -> tuple[float, int]:
    """Of the queries that fine-tuning gets right and the bare model wrong, the share that demonstrations get right too.

    Returns the share and the number of such queries; the share is NaN where there is none.
    """
    learnt = ~zsl_right & ft_right
    n = int(learnt.sum())
    return (float((learnt & icl_right).sum()) / n if n else float("nan")), n


def output_update(
    zsl: Float[Tensor, "*batch d_model"], run: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """Change of the attention block's output from the bare model to a run, each normalised to length 1 before."""
    return torch.nn.functional.normalize(run, dim=-1) - torch.nn.functional.normalize(zsl, dim=-1)


def simaou(
    zsl: Float[Tensor, "query layer d_model"],
    icl: Float[Tensor, "query layer d_model"],
    ft: Float[Tensor, "query layer d_model"],
) -> Float[Tensor, "query layer"]:
    """Similarity of attention-output updates: the cosine of what both runs change."""
    return cosine(output_update(zsl, icl), output_update(zsl, ft))


def simam(
    icl: Float[Tensor, "query layer head token"], other: Float[Tensor, "query layer head token"]
) -> Float[Tensor, "query layer"]:
    """Similarity of attention maps: cosine of scores over the query's own tokens, mean over heads.

    Give it the scores themselves for the raw version, or their changes from the bare model for the one on updates: the
    raw one is inflated by the map that both share.
    """
    return cosine(icl, other).nanmean(-1)


def cosine(x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Cosine along the last axis, NaN where either is 0."""
    cosines: Tensor = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return cosines


def kendall(x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Kendall's tau-b along the last axis; NaN where one side is constant."""
    rows = zip(*(side.reshape(-1, side.shape[-1]).numpy(force=True) for side in (x, y)), strict=True)
    how = "asymptotic" if x.shape[-1] > 2 else "auto"  # of the p-value, which nobody asks for: the cheap one
    taus = [kendalltau(a, b, method=how).statistic for a, b in rows]
    return torch.tensor(taus, dtype=torch.float64).reshape(x.shape[:-1])


def top_overlap(x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch"]:
    """Share of the k largest of `x` that are among the k largest of `y`; k / n by chance.

    Raises InterpError where k is not between 1 and n.
    """
    return _both_top(x, y, k).float().sum(-1) / k


def token_overlap(
    p: Float[Tensor, "*batch d_vocab"], q: Float[Tensor, "*batch d_vocab"], k: int = 10
) -> Float[Tensor, "*batch"]:
    """Share of the k likeliest next tokens that two distributions (or their logits) have in common."""
    return top_overlap(p, q, k)


def overlap_cosine(
    p: Float[Tensor, "*batch d_vocab"], q: Float[Tensor, "*batch d_vocab"], k: int = 10, penalty: bool = True
) -> Float[Tensor, "*batch"]:
    """Cosine of two next-token distributions on the tokens that both rank among their k likeliest.

    With the penalty each token that they do not share adds 1 to the sum under the root, so few shared tokens cannot
    look alike. NaN without a shared token and without penalty, 0 with it.
    """
    shared = _both_top(p, q, k)
    dot, pp, qq = ((a * b * shared).sum(-1) for a, b in ((p, q), (p, p), (q, q)))
    missing = k - shared.sum(-1) if penalty else 0
    return dot / (pp * qq + missing).sqrt()


def _both_top(x: Tensor, y: Tensor, k: int) -> Bool[Tensor, "*batch n"]:
    if not 1 <= k <= x.shape[-1]:
        raise InterpError(
            f"the overlap of the {k} largest of {x.shape[-1]} numbers is not defined; choose k in between."
        )

    def top(values: Tensor) -> Tensor:
        return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, values.topk(k, -1).indices, True)

    return top(x) & top(y)
