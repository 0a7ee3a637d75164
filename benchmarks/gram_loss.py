"""How much of ThinK's own loss its greedy choice leaves on the table, at every ratio.

The loss of a set of pruned channels, ‖Q diag(z) Kᵀ‖² over the window's queries, is exact in a d x d matrix; backward
elimination on it (`selector="gram"`) is compared with ThinK's ranking, which sees only the diagonal. Demo model, every
layer and key/value head, the excerpts of `cache_quality`: median over heads of gram's loss over ThinK's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import interp
from benchmarks.shared_prefill import readings
from benchmarks.table import publish
from interp.interventions.policies import _channels as channels

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WINDOW = 32


def losses(q: torch.Tensor, k: torch.Tensor, ratio: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared error `[batch, kv_head]` of ThinK's set and of gram's, and of pruning everything."""
    last = q[:, :, -WINDOW:].unflatten(1, (k.shape[1], -1)).flatten(2, 3).double()
    m = channels.loss_matrix(last.mT @ last, k.double().mT @ k.double())
    count = channels.pruned_count(k.shape[-1], ratio)
    think = channels.without_smallest(m.diagonal(dim1=-2, dim2=-1), count).kept
    return channels.loss_of(m, think), channels.loss_of(m, channels.by_elimination(m, count).kept), m.sum((-1, -2))


def main() -> None:
    lens = interp.load("demo")
    found: dict[float, list[tuple[torch.Tensor, ...]]] = {ratio: [] for ratio in RATIOS}
    for read in readings(lens, 8):
        for event in read.events.values():
            for ratio in RATIOS:
                found[ratio].append(losses(event.q, event.k, ratio))
    rows: list[dict[str, Any]] = []
    for ratio, heads in found.items():
        think, gram, whole = (np.concatenate([t.flatten().numpy() for t in part]) for part in zip(*heads, strict=True))
        rows.append({
            "ratio": ratio, "heads": len(think), "gram over ThinK (median)": round(float(np.median(gram / think)), 3),
            "quartiles": " ".join(f"{x:.3f}" for x in np.quantile(gram / think, (0.25, 0.75))),
            "summed over heads": round(float(gram.sum() / think.sum()), 3),
            "ThinK's error of the logits' energy (median)": round(float(np.median(think / whole)), 4),
        })  # fmt: skip
    publish("gram_loss", rows)


if __name__ == "__main__":
    main()
