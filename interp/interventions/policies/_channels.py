"""Which channels to prune: scores and selections over `[batch, head, channel]`, for keys and for values.

With Q the queries that judge and K the keys to be pruned, the loss of pruning a set of channels is exact in a d x d
matrix: ‖Q diag(z) Kᵀ‖² = zᵀ M z with M = (QᵀQ) ∘ (KᵀK), for the indicator z of the pruned set. ThinK's score squared is
M's diagonal; what it leaves out is the rest of M.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from interp_kernels import cut, unpacked
from jaxtyping import Float, Int

from interp.cache.segments import others

Tensor = torch.Tensor


def pruned_count(width: int, ratio: float, rounding: str = "code") -> int:
    """Channels pruned of `width`: ⌊ratio * width⌋, or with `rounding="paper"` width - ⌊(1 - ratio) * width⌋."""
    tiny = 1e-9  # (1 - 0.4) * 64 must not lose a channel to binary fractions
    return int(width * ratio + tiny) if rounding == "code" else width - int((1 - ratio) * width + tiny)


class Chosen(NamedTuple):
    """Channels that stay, and what they were chosen by."""

    kept: Int[Tensor, "batch head kept"]
    """Rising."""
    score: Float[Tensor, "batch head channel"]
    """Of all channels, those that went too."""


def without_smallest(scores: Float[Tensor, "batch head channel"], k: int) -> Chosen:
    """The k channels of lowest score go; of equal scores the lowest index goes first."""
    order = scores.sort(dim=-1, stable=True).indices
    return Chosen(order[..., k:].sort(-1).values, scores)


def loss_matrix(q_gram: Float[Tensor, "*b d d"], k_gram: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
    """M = (QᵀQ) ∘ (KᵀK); see the module."""
    return q_gram * k_gram


def loss_of(m: Float[Tensor, "batch head d d"], kept: Int[Tensor, "batch head kept"]) -> Float[Tensor, "batch head"]:
    """zᵀMz: the squared error of Q Kᵀ when only the channels `kept` stay."""
    z = torch.ones(m.shape[:-1], dtype=m.dtype, device=m.device).scatter(-1, kept.long(), 0.0)
    return torch.einsum("bhi,bhij,bhj->bh", z, m, z)


def by_elimination(m: Float[Tensor, "batch head d d"], k: int) -> Chosen:
    """k channels are dropped one by one, each the one that adds least to the exact loss.

    The score of a dropped channel is what it added to the loss of those dropped before it; of one that stays, what it
    would add as the next.
    """
    cost = m.diagonal(dim1=-2, dim2=-1).clone()  # what dropping a channel adds, given those dropped before
    dropped = torch.zeros_like(cost, dtype=torch.bool)
    for _ in range(k):
        worst = cost.masked_fill(dropped, torch.inf).argmin(-1, keepdim=True)
        dropped.scatter_(-1, worst, True)
        row = m.gather(-2, worst[..., None].expand(*worst.shape, m.shape[-1]))[..., 0, :]
        cost = torch.where(dropped, cost, cost + 2 * row)
    return Chosen((~dropped).nonzero()[:, -1].view(*cost.shape[:-1], -1), cost)


def by_surgery(
    q_gram: Float[Tensor, "batch head d d"], k_gram: Float[Tensor, "batch head d d"], k: int, ridge: float
) -> Chosen:
    """k channels are dropped one by one, and what each one did is handed to the others at once.

    Optimal brain surgeon (Hassibi and Stork 1993) for key channels. Dropping j while the others take over costs what
    they cannot know of it: the energy of k_j, as it is after earlier hand-overs, times the variance of q_j given the
    queries' other channels, which is 1 / (G⁻¹)_jj for G the ridged `q_gram`. That cost is the score: of a dropped
    channel when it went, of one that stays as it is at the end.
    """
    strength = ridge * q_gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    inverse = torch.linalg.inv(
        q_gram + strength * torch.eye(q_gram.shape[-1], dtype=q_gram.dtype, device=q_gram.device)
    )
    gram = k_gram.clone()
    dropped = torch.zeros(q_gram.shape[:-1], dtype=torch.bool, device=q_gram.device)
    cost = gram.diagonal(dim1=-2, dim2=-1) / inverse.diagonal(dim1=-2, dim2=-1)
    for _ in range(k):
        worst = cost.masked_fill(dropped, torch.inf).argmin(-1, keepdim=True)
        dropped.scatter_(-1, worst, True)
        at = worst[..., None].expand(*worst.shape, gram.shape[-1])
        row = inverse.gather(-2, at)[..., 0, :]
        own = row.gather(-1, worst)
        share = (-row / own).masked_fill(dropped, 0.0)  # q_j is about the sum of share_i q_i over the channels left
        inverse = (inverse - row[..., :, None] * row[..., None, :] / own[..., None]).masked_fill(
            dropped[..., None] | dropped[..., None, :], 0.0
        ) + torch.diag_embed(dropped.to(inverse.dtype))
        other = gram.gather(-2, at)[..., 0, :]
        energy = other.gather(-1, worst)
        gram = gram + share[..., :, None] * other[..., None, :] + other[..., :, None] * share[..., None, :]
        gram = gram + energy[..., None] * share[..., :, None] * share[..., None, :]
        left = gram.diagonal(dim1=-2, dim2=-1) / inverse.diagonal(dim1=-2, dim2=-1)
        cost = torch.where(dropped, cost, left)
    return Chosen((~dropped).nonzero()[:, -1].view(*dropped.shape[:-1], -1), cost)


def compensated(
    keys: Float[Tensor, "batch head token d"],
    kept: Int[Tensor, "batch head kept"],
    q_gram: Float[Tensor, "batch head d d"],
    ridge: float,
) -> Float[Tensor, "batch head token d"]:
    """Keys whose kept channels have taken over what queries usually read in the pruned ones; no byte is added.

    The pruned channels of a query are predicted from its kept ones by ridge regression over the prompt's queries,
    q_P ≈ q_S C with C = (G_SS + λI)⁻¹ G_SP, so q_P·k_P ≈ q_S·(C k_P): K'_S = K_S + K_P Cᵀ. `q_gram` is G = QᵀQ, λ is
    `ridge` times the mean of its diagonal. Pruned channels come back as they were.
    """
    d = keys.shape[-1]
    pruned = others(kept, d)
    rows = q_gram.gather(-2, kept.long()[..., None].expand(-1, -1, -1, d))
    g_ss = rows.gather(-1, kept.long()[:, :, None].expand(-1, -1, kept.shape[-1], -1))
    g_sp = rows.gather(-1, pruned[:, :, None].expand(-1, -1, kept.shape[-1], -1))
    strength = ridge * q_gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(kept.shape[-1], dtype=q_gram.dtype, device=q_gram.device)
    c = torch.linalg.solve(g_ss + strength[..., None, None] * eye, g_sp)  # [batch, head, kept, pruned]
    added = (cut(keys, pruned).to(c.dtype) @ c.mT).to(keys.dtype)
    return keys + unpacked(added, kept, d)
