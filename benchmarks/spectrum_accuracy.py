"""How good the spectrum without a pattern is: `attention_rank` against exact singular values, head by head.

On the demo model at 1,024 tokens every head's pattern is materialised, one layer at a time, and decomposed in fp64. A
head counts as right when all of its leading 32 singular values that are at least a thousandth of the largest are within
1 %. For the sums (nuclear norm, effective rank) the relative error and the share of heads inside the stated error are
reported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.table import publish

TOKENS = 1024
LEADING = 32
SWEEPS = (4, 5, 6)


def exact_singular_values(lens: Any, tokens: torch.Tensor, layers: list[int]) -> np.ndarray:
    """All singular values of each head's pattern `[layer, head, key]`, fp64, largest first."""
    found: dict[int, np.ndarray] = {}

    def see(event: Any, hook: Any) -> None:
        found[event.layer] = torch.stack([torch.linalg.svdvals(head.double()) for head in event.pattern()[0]]).numpy()

    hooks = [(f"blocks.{layer}.attn.hook_event", see) for layer in layers]
    lens.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks, **lens.last_logits_only)
    return np.stack([found[layer] for layer in layers])


def accuracy(lens: Any, tokens: torch.Tensor, exact: np.ndarray, layers: list[int], passes: int) -> dict[str, Any]:
    """One row: what `passes` sweeps get right."""
    import interp
    from interp.probes.attention_rank import AttentionRank

    result = interp.probe(lens, tokens[0], AttentionRank(passes=passes, exact_below=1))["attention_rank"].sel(
        layer=layers
    )
    leading = exact[..., :LEADING]
    counted = leading >= 1e-3 * leading[..., :1]
    close = np.abs(result.singular_value.values - leading) <= 0.01 * leading
    nuclear = exact.sum(-1)
    share = exact / nuclear[..., None]
    effective = np.exp(-np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0).sum(-1))
    row = {"tokens": tokens.shape[1], "sweeps": passes, "heads": exact[..., 0].size}
    row["% of heads with leading 32 within 1 %"] = round(100 * float((close | ~counted).all(-1).mean()), 1)
    row["frobenius: worst error %"] = round(_worst(result.frobenius_squared, (exact**2).sum(-1))[1], 4)
    for name, truth in (("nuclear_norm", nuclear), ("effective_rank", effective)):
        median, worst = _worst(result[name], truth)
        inside = np.abs(result[name].values - truth) <= result[f"{name}_error"].values
        row |= {f"{name}: median error %": round(median, 2), f"{name}: worst error %": round(worst, 2)}
        row[f"{name}: % of heads inside its error"] = round(100 * float(inside.mean()), 1)
    return row


def _worst(found: Any, truth: np.ndarray) -> tuple[float, float]:
    """Median and largest relative error in percent."""
    error = 100 * np.abs(found.values - truth) / truth
    return float(np.median(error)), float(error.max())


@torch.no_grad()
def main() -> None:
    import interp
    from benchmarks.probe_cost import text

    content, called = text()
    lens = interp.load("demo")
    tokens, layers = lens.to_tokens(content, truncate=TOKENS), list(range(lens.cfg.n_layers))
    exact = exact_singular_values(lens, tokens, layers)
    publish("spectrum_accuracy", [accuracy(lens, tokens, exact, layers, n) | {"text": called} for n in SWEEPS])


if __name__ == "__main__":
    main()
