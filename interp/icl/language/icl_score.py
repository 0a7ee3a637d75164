"""The in-context learning score: how much better a model predicts late in its context than early.

Olsson et al. 2022 ("In-context learning and induction heads", arXiv:2209.11895): loss of the 500th token minus loss of
the 50th, averaged over texts, in nats. More negative is more in-context learning. One token of one text is mostly
noise (on the demo model the difference has a standard deviation of 4 nats), so the standard error stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

from interp.errors import InterpError
from interp.icl.language._prompts import rows_of_text
from interp.icl.measures._means import mean
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import TextLens
from interp.results.described import Row, described, with_error


@in_evaluation_mode
@torch.no_grad()
def icl_score(
    lens: TextLens, texts: str | Sequence[str] | torch.Tensor, *, late: int = 500, early: int = 50, width: int = 1,
    most: int = 32,
) -> xr.Dataset:  # fmt: skip
    """Loss of token `late` minus loss of token `early`, mean over texts.

    Args:
        lens: from `interp.load`.
        texts: a long text, of which up to `most` consecutive stretches of `late` tokens are read as if each were a
            text; or several texts, or rows of tokens `[text, pos]`, of which the first `late` tokens are read.
        late, early: counted from 1, special tokens that the tokenizer puts first included.
        width: average each loss over the `width` tokens that end there; 1 is the published score, more tokens bring
            the standard error down where texts are few.
        most: read at most so many stretches or texts.

    Returns a dataset with `icl_score`, `late_loss`, `early_loss`, each with `<name>_se` over texts, and the `loss` of
    every token (text, token) in nats.

    Raises:
        InterpError: a text with fewer than `late` tokens, fewer than two texts, positions out of order or overlapping.
    """
    if not 1 <= width < early or not early <= late - width:
        raise InterpError(
            f"icl_score compares {width} tokens up to token {late} with as many up to token {early}; the first token "
            "has no loss and they must not overlap: choose other positions."
        )
    rows = rows_of_text(lens, texts, late, most, "icl_score")
    if len(rows) < 2:
        raise InterpError(
            f"icl_score needs at least two texts of {late} tokens for a standard error, found {len(rows)}."
        )
    losses = [cross_entropy(lens(row[None])[0, :-1].float(), row[1:], reduction="none") for row in rows]
    said = "loss of each token given those before it; tokens count from 1"
    found = {"loss": Row(("text", "token"), torch.stack(losses), "nats", said)}
    places = {"text": np.arange(len(rows)), "token": np.arange(2, late + 1)}
    loss = described(found, places)["loss"]
    at_late, at_early = (loss.sel(token=slice(end - width + 1, end)).mean("token") for end in (late, early))
    parts = {
        "icl_score": (at_late - at_early, f"loss of token {late} minus loss of token {early}"),
        "late_loss": (at_late, f"loss of token {late}"),
        "early_loss": (at_early, f"loss of token {early}"),
    }
    for name, (by_text, said) in parts.items():
        value = mean(torch.from_numpy(by_text.values))
        found |= with_error(name, Row((), value.value, "nats", f"{said}, mean over texts"), value.se, " over texts")
    attrs = {
        "title": "In-context learning score",
        "description": "How much better the model predicts late in its context than early",
        "model": lens.cfg.model_name,
        "texts": len(rows),
        "late": late,
        "early": early,
        "width": width,
    }
    return described(found, places, attrs)
