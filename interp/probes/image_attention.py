"""Where each word looks: attention of single tokens of text to the parts of an image.

Rows of the pattern are read with one transposed product, Aᵀ @ e for the unit vectors e of the rows that are asked for,
so that no layer runs eagerly and nothing of the size queries x keys is stored. A mean over heads hides that heads
differ; `head` picks one, or keeps each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.probes.base import Context, Fold, Probe
from interp.results.described import Row, described
from interp.results.naming import quoted
from interp.results.ragged import stacked
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class ImageAttention(Probe):
    """What tokens of text attend to, token by token, in texts with images.

    Args:
        rows: how many tokens of text are asked, the last ones that stand behind an image.
        head: a query head; None: the mean over all; "each": every head by itself, along a dimension of its own, which
            is as many numbers for each token that is asked.

    Examples:
        >>> interp.ImageAttention(rows=4).head is None
        True
    """

    name: ClassVar[str] = "image_attention"
    reads: ClassVar[Literal["text", "tasks", "images"]] = "images"
    rows: int = 32
    head: int | Literal["each"] | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InterpError(f"{self.name}: rows should be at least 1, found {self.rows}.")
        if isinstance(self.head, int) and self.head < 0:
            raise InterpError(f"{self.name}: head is counted from 0, found {self.head}.")

    def begin(self, context: Context) -> Fold:
        layout = context.with_images(self.name)
        image = layout.modality == "image"
        if isinstance(self.head, int) and self.head >= context.cfg.n_heads:
            raise InterpError(f"{self.name}: {context.cfg.architecture} has heads 0 to {context.cfg.n_heads - 1}.")
        behind = (layout.modality == "text") & (np.arange(len(image)) > np.flatnonzero(image)[0])
        if not behind.any():
            raise InterpError(f"{self.name}: no text follows the image; write a question behind it.")
        return RowsFold(self, context, np.flatnonzero(behind)[-self.rows :])

    def findings(self, result: xr.Dataset) -> list[str]:
        seen = np.isfinite(result["box"].values[:, 0])
        attention = result["attention"]
        mean = attention.mean("head") if "head" in attention.dims else attention
        to_image = mean.transpose("layer", "query", "token").values[..., seen].sum(-1)
        if not seen.any() or not np.isfinite(to_image).any():
            return ["No token of the image has a place in it."]
        layer, row = np.unravel_index(int(np.nanargmax(to_image)), to_image.shape)
        token = f"token {int(result['query'].values[row])} {quoted(str(result['query_text'].values[row]))}"
        return [
            f"The text behind the image gives it {np.nanmean(to_image):.0%} of its attention in the mean over layers "
            f"and tokens, where it is {seen.mean():.0%} of the tokens; most in layer "
            f"{int(result['layer'].values[layer])}, by {token}, {to_image[layer, row]:.0%}."
        ]


class RowsFold(Fold):
    def __init__(self, probe: ImageAttention, context: Context, rows: np.ndarray) -> None:
        self.probe, self.context, self.rows = probe, context, rows
        self.seen: dict[int, np.ndarray] = {}
        self.by_head: dict[int, np.ndarray] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {"attn.hook_event": self.attend}

    def attend(self, layer: int, event: AttentionEvent) -> None:
        heads, n = event.q.shape[1], event.q.shape[2]
        asked = torch.zeros(n, len(self.rows), device=event.q.device)
        asked[torch.from_numpy(self.rows), torch.arange(len(self.rows))] = 1.0
        received = event.transpose_apply(asked.expand(1, heads, *asked.shape))[0].float()  # head, key, row
        head = self.probe.head
        chosen = received.mean(0) if head is None else received if head == "each" else received[head]
        self.seen[layer] = chosen.mT.cpu().numpy()
        self.by_head[layer] = received.mean(-1).cpu().numpy()

    def result(self) -> xr.Dataset:
        layers, text = sorted(self.seen), np.array(self.context.str_tokens, dtype=object)
        head = self.probe.head
        of = "the mean over heads" if head is None else "one head at a time" if head == "each" else f"head {head}"
        said = f"attention that a token of text (query) gives to each token, {of}"
        values = stacked([self.seen[layer] for layer in layers], "float32")
        by_head = stacked([self.by_head[layer] for layer in layers], "float32")
        dims = ("layer", *(("head",) if head == "each" else ()), "query", "token")
        coordinates = {
            "layer": layers,
            "head": np.arange(by_head.shape[1]),
            "query": self.rows,
            "query_text": ("query", text[self.rows]),
            "token": np.arange(self.context.n_tokens),
            "token_text": ("token", text),
        }
        attrs = {
            "title": "Attention to the image",
            "description": "What single tokens of text behind an image attend to",
            "n_tokens": self.context.n_tokens,
            "heads": "all" if head is None else str(head),
        }
        received = "attention that each token receives from those queries, their mean, by head"
        variables = {
            "attention": Row(dims, values, "1", said),
            "received": Row(("layer", "head", "token"), by_head, "1", received),
        }
        return described(variables, coordinates, attrs)
