"""How low-rank attention is: the spectrum of each head's pattern and of its scores before softmax.

ThinK (Xu et al. 2025, arXiv:2407.21018, figure 5) motivates channel pruning with the observation that few singular
values hold most of the attention's energy. Here the pattern A is never stored: its leading singular values come from
products with A and Aᵀ, and the total Σσ² is exactly the sum of its squared probabilities.

The scores S = scale * Q Kᵀ have rank <= d_head by construction, so only ranks below that tell something.
They are taken without mask and softcap, which makes them exactly computable from two d_head x d_head matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.probes._by_head import by_head
from interp.probes._spectrum import Spectrum, exact_spectrum, lanczos_spectrum
from interp.probes.base import Context, Fold, Probe
from interp.results.columns import Column
from interp.results.described import Row, described
from interp.results.naming import heads_named
from interp.results.ragged import stacked
from interp.results.wording import among, extremes
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor

SHARE = 0.9  # of the energy Σσ² that "rank at 90 %" asks for


@dataclass(frozen=True)
class AttentionRank(Probe):
    """Leading singular values, energy curve, rank at 90 % of the energy, nuclear norm and effective rank of every head.

    Up to `exact_below` tokens (or `width`) all singular values are computed. Beyond, `passes` sweeps of block Lanczos
    with blocks of `width` columns, started from random numbers drawn with `seed`. On 1,024 tokens with the demo model,
    4 sweeps give the leading 32 singular values within 1 % in 92 % of the heads, 5 sweeps in 97 % (where they are at
    least a thousandth of the largest); nuclear norm and effective rank, estimated from the same sweeps, are off by 1
    and 4 % (root mean square) after 4 sweeps, and have their error beside them. Longer texts want more sweeps.

    Args:
        k: leading singular values that the result holds.
        exact_below: up to so many tokens all singular values are computed.
        width: columns of a block beyond that.
        passes: sweeps of block Lanczos.
        seed: of the random start.

    Memory: about 4 * (passes + 5) * width bytes a token and head, for one layer at a time.

    Examples:
        >>> rank = interp.probe(lens, prompt, ["attention_rank"])["attention_rank"]
        >>> dict(rank.rank90.sizes)
        {'layer': 3, 'head': 8}
    """

    name: ClassVar[str] = "attention_rank"
    k: int = 32
    exact_below: int = 512
    width: int = 48
    passes: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.width:
            raise InterpError(f"attention_rank: k should lie between 1 and width={self.width}, found {self.k}.")
        if self.passes < 1:
            raise InterpError(f"attention_rank: passes should be at least 1, found {self.passes}.")

    def begin(self, context: Context) -> Fold:
        return RankFold(self, context.n_tokens)

    def findings(self, result: xr.Dataset) -> list[str]:
        tokens, k, layers = result.attrs["n_tokens"], result.attrs["k"], result["layer"].values
        rank, effective, censored = (
            result[name].transpose("layer", "head").values for name in ("rank90", "effective_rank", "rank90_censored")
        )
        typical = f"more than {k}" if np.nanmedian(rank) > k else f"{np.nanmedian(rank):g}"
        if tokens == 1:
            return ["A pattern of one token is one number, 1, so its rank is 1 in every head."]
        wide = (rank > max(1, tokens / 4)) | (censored > 0)
        exceptions = f"in every head that rank is at most {np.nanmax(rank):g}"
        if wide.any():
            bound = min(k, max(1, tokens // 4))
            exceptions = (
                f"{wide.sum()} of {np.isfinite(rank).sum()} heads need more than {bound}: {heads_named(wide, layers)}"
            )
        if not np.isfinite(effective).any():
            return ["No head of this text has an effective rank: its attention could not be computed."]
        return [
            f"The median head holds 90 % of its pattern's energy (Σσ²) in {typical} of {tokens:,} singular values; "
            f"{exceptions}.",
            f"Effective rank (exponential of the singular values' entropy) has the median {np.nanmedian(effective):.3g}"
            f"{among(effective, 'heads')}, {extremes(effective, layers)}.",
            f"Before softmax, scores have rank at most {result.attrs['d_head']} (the head dimension); the median head "
            f"holds 90 % of their energy in {np.nanmedian(result['score_rank90']):g} singular values, with an "
            f"effective rank of {np.nanmedian(result['score_effective_rank']):.3g}.",
        ]

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        k = result.sizes["component"]
        median = np.nanmedian(result["rank90"].transpose("layer", "head").values, axis=1)
        about = "components that hold 90 % of a pattern's energy, median over heads"
        return [Column("rank 90 %", about, [f">{k}" if rank > k else f"{rank:g}" for rank in median])]


class RankFold(Fold):
    def __init__(self, probe: AttentionRank, n_tokens: int) -> None:
        self.probe, self.n_tokens = probe, n_tokens
        self.exact = n_tokens <= max(probe.exact_below, probe.width)
        self.passes = min(probe.passes, n_tokens // probe.width)
        self.layers: dict[int, dict[str, np.ndarray]] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"attn.hook_event": self.attend}

    def attend(self, layer: int, event: AttentionEvent) -> None:
        total = event.square[0].double().sum(-1)
        spectrum = self._spectrum(layer, event)
        sigma = spectrum.leading
        energy = (sigma.square().cumsum(-1) / total[:, None]).clamp_max(1)
        rank = 1 + (energy < SHARE).sum(-1)
        score = score_singular_values(event.q[0], event.k[0], event.scale)
        score_energy = score.square().cumsum(-1) / score.square().sum(-1, keepdim=True)
        share = score / score.sum(-1, keepdim=True)
        numbers = {
            "singular_value": sigma,
            "energy": energy,
            "frobenius_squared": total,
            "rank90": rank,
            "rank90_censored": rank > sigma.shape[-1],
            "nuclear_norm": spectrum.nuclear_norm,
            "nuclear_norm_error": spectrum.nuclear_norm_error,
            "effective_rank": spectrum.effective_rank,
            "effective_rank_error": spectrum.effective_rank_error,
            "sigma_share": (sigma.cumsum(-1) / spectrum.nuclear_norm[:, None]).clamp_max(1),
            "score_singular_value": score,
            "score_energy": score_energy,
            "score_rank90": 1 + (score_energy < SHARE).sum(-1),
            "score_effective_rank": torch.exp(-torch.special.xlogy(share, share).sum(-1)),
        }
        self.layers[layer] = {name: value.cpu().numpy().astype(VARIABLES[name][1]) for name, value in numbers.items()}

    def _spectrum(self, layer: int, event: AttentionEvent) -> Spectrum:
        """Singular values of the layer's patterns, on the CPU."""
        if self.exact:
            return exact_spectrum(event.pattern()[0].cpu(), self.probe.k)
        device = event.q.device

        def sweep(x: Tensor) -> tuple[Tensor, Tensor]:
            applied, gram = event.gram_apply(x[None].to(device))
            return applied[0].float().cpu(), gram[0].float().cpu()

        heads, size, probe = event.q.shape[1], event.k.shape[2], self.probe
        seed = (probe.seed, layer)
        return lanczos_spectrum(sweep, heads, size, k=probe.k, width=probe.width, passes=self.passes, seed=seed)

    def result(self) -> xr.Dataset:
        layers = sorted(self.layers)
        data = {}
        for name, (dims, _, description) in VARIABLES.items():
            values = stacked([self.layers[layer][name] for layer in layers])
            data[name] = Row(("layer", "head", *dims), values, "1", description)
        _, heads, components = data["singular_value"].values.shape
        channels = data["score_energy"].values.shape[-1]
        coordinates = {
            "layer": layers,
            "head": np.arange(heads),
            "component": np.arange(1, components + 1),
            "channel": np.arange(1, channels + 1),
        }
        attrs = {
            "title": "Rank of attention",
            "description": "Singular values of each head's attention pattern, and of its scores before softmax",
            "n_tokens": self.n_tokens,
            "k": components,
            "d_head": channels,
            "method": "exact" if self.exact else "block Lanczos",
            "passes": 0 if self.exact else self.passes,
            "width": 0 if self.exact else self.probe.width,
            "exact_below": self.probe.exact_below,
            "seed": self.probe.seed,
        }
        return described(data, coordinates, attrs)


def score_singular_values(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Singular values of scale * Q Kᵀ, unmasked, largest first: `[head, d_head]` fp64, on the CPU.

    `q [head, query, d_head]`, `k [kv_head, key, d_head]`. With C Cᵀ = QᵀQ, they are the roots of the eigenvalues of
    Cᵀ KᵀK C; any root C will do, so C comes from the eigenpairs of QᵀQ, which may be singular.
    """
    group = q.shape[0] // k.shape[0]
    keys = by_head(_square, list(k))

    def one(head: int) -> Tensor:
        values, vectors = torch.linalg.eigh(_square(q[head]))
        root = vectors * values.clamp_min(0).sqrt()
        singular: Tensor = torch.linalg.eigvalsh(root.mT @ keys[head // group] @ root).flip(-1).clamp_min(0).sqrt()
        return singular

    return abs(scale) * torch.stack(by_head(one, range(q.shape[0])))


def _square(x: Tensor) -> Tensor:
    """xᵀx in fp64."""
    x = x.double().cpu()
    return x.mT @ x


# name: (dimensions after layer and head, dtype, description); all are pure numbers
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "singular_value": (("component",), "float32", "singular value of the attention pattern"),
    "energy": (("component",), "float32", "share of Σσ² held by the components up to this one"),
    "frobenius_squared": ((), "float32", "Σσ², the sum of the pattern's squared probabilities, exact"),
    "rank90": ((), "int32", "number of components that hold 90 % of Σσ²; k + 1 stands for more than k"),
    "rank90_censored": ((), "int8", "1 where more than the k computed components are needed"),
    "nuclear_norm": ((), "float32", "sum of all singular values of the pattern"),
    "nuclear_norm_error": ((), "float32", "half the quadrature bracket plus one standard error; 0 where exact"),
    "effective_rank": ((), "float32", "exp of the entropy (nats) of all singular values divided by their sum"),
    "effective_rank_error": ((), "float32", "half the quadrature bracket plus one standard error; 0 where exact"),
    "sigma_share": (("component",), "float32", "share of the nuclear norm held by the components up to this one"),
    "score_singular_value": (("channel",), "float32", "singular value of scale * Q Kᵀ, unmasked, before softcap"),
    "score_energy": (("channel",), "float32", "share of the scores' Σσ² held by the singular values up to this one"),
    "score_rank90": ((), "int32", "number of singular values that hold 90 % of the scores' Σσ²"),
    "score_effective_rank": ((), "float32", "exp of the entropy (nats) of the scores' singular values over their sum"),
}
