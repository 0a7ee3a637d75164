"""What each part of an image is read as: the logit lens at the image's tokens, layer by layer.

Logit lens (nostalgebraist 2020) on tokens of images, as in Neo et al. 2024 (arXiv:2410.07149): the residual stream of
an image token after each layer, read out with the model's own final norm and unembedding. Nothing was ever predicted at
these tokens in training, so that the words there are answers to no question, and after the last layer they are what
would follow the token.

A word that is read everywhere says nothing of a place. So each word has a `lift` beside its probability: that over its
mean over the image's tokens of the layer, 1 for a word that is as probable at every place. All words of a layer
together have their mutual information with the place: the entropy of the mean distribution less the mean of the
entropies, 0 nats where every token is read alike, log(number of tokens) where no two share a word.
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

Tensor = torch.Tensor
AT_ONCE = 128
"""Tokens that are read out together, each of which is as many numbers as there are words."""


@dataclass(frozen=True)
class ImageLogitLens(Probe):
    """The most probable words at every token of an image, after each layer.

    Args:
        words: how many words of each token.

    Examples:
        >>> interp.ImageLogitLens(words=5).name
        'image_logit_lens'
    """

    name: ClassVar[str] = "image_logit_lens"
    reads: ClassVar[Literal["text", "tasks", "images"]] = "images"
    reads_logits: ClassVar[bool] = True
    words: int = 3

    def __post_init__(self) -> None:
        if self.words < 1:
            raise InterpError(f"{self.name}: words should be at least 1, found {self.words}.")

    def begin(self, context: Context) -> Fold:
        layout = context.with_images(self.name)
        return WordsFold(self, context, np.flatnonzero(layout.modality == "image"))

    def findings(self, result: xr.Dataset) -> list[str]:
        told = result["place_information"].values
        if not np.isfinite(told).any():
            return ["The logits at the image's tokens are no numbers, so nothing is read there."]
        layer = int(np.nanargmax(told))
        first = result["word"].isel(layer=layer, rank=0).values[result["word_id"].isel(layer=layer, rank=0).values >= 0]
        words, counts = np.unique(first.astype(str), return_counts=True)
        most = int(counts.argmax())
        after, at_most = int(result["layer"].values[layer]), np.log(len(first))
        return [
            f"The words read at the image's tokens say most of the place after layer {after}, {told[layer]:.2f} nats "
            f"(0 if every token were read alike, {at_most:.2f} if no two shared a word): {len(words):,} different "
            f"first words at {len(first):,} tokens, most often {quoted(str(words[most]))}, at {counts[most]:,}."
        ]


class WordsFold(Fold):
    def __init__(self, probe: ImageLogitLens, context: Context, image: np.ndarray) -> None:
        self.probe, self.context, self.image = probe, context, image
        self.resid: dict[int, Tensor] = {}

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        at = torch.from_numpy(self.image)
        return {"hook_resid_post": lambda layer, resid: self.resid.update({layer: resid[0, at.to(resid.device)]})}

    @torch.no_grad()
    def result(self) -> xr.Dataset:
        layers = sorted(self.resid)
        vocabulary = self.context.cfg.d_vocab
        shape = len(layers), self.context.n_tokens, min(self.probe.words, vocabulary or self.probe.words)
        ids, probability, lift = (np.full(shape, fill, kind) for fill, kind in EMPTY)
        told = np.empty(len(layers), "float32")
        for row, layer in enumerate(layers):
            seen = self._words(layer, shape[2])
            ids[row, self.image], probability[row, self.image], lift[row, self.image], told[row] = seen
        known = np.unique(ids[ids >= 0])
        texts = dict(zip(known.tolist(), self.context.lens.to_str_tokens(torch.from_numpy(known)), strict=True))
        word = np.array([texts.get(i, "") for i in ids.ravel().tolist()], dtype=object).reshape(shape)
        dims = ("layer", "token", "rank")
        data = {
            "word": Row(dims, word, "text", "the most probable words after this layer; empty for tokens of text"),
            "word_id": Row(dims, ids, "token", "their ids; -1 for tokens of text"),
            "probability": Row(dims, probability, "1", "their probabilities"),
            "lift": Row(dims, lift, "1", "probability over its mean over the image's tokens of the layer"),
            "place_information": Row(("layer",), told, "nats", "mutual information of words and places in the image"),
        }
        coordinates = {
            "layer": layers,
            "token": np.arange(self.context.n_tokens),
            "token_text": ("token", np.array(self.context.str_tokens, dtype=object)),
            "rank": np.arange(1, shape[2] + 1),
        }
        attrs = {
            "title": "Logit lens at the image",
            "description": "Which words each part of the image is read as after each layer",
            "n_tokens": self.context.n_tokens,
        }
        return described(data, coordinates, attrs)

    def _words(self, layer: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Ids, probabilities and lift of the first words of each image token `[token, rank]`, and what all words say of
        the place. A part of the tokens at a time, since all their logits together need not fit."""
        lens, best = self.context.lens, []
        total, entropies = torch.zeros(()), 0.0
        for part in self.resid.pop(layer).split(AT_ONCE):
            distribution = lens.unembed(lens.normalized(part)).float().softmax(-1)
            best.append(distribution.topk(most))
            total = total.to(part.device) + distribution.sum(0)
            entropies += float(torch.special.entr(distribution).sum())
        probability, ids = (torch.cat(each) for each in zip(*best, strict=True))
        mean = total / len(self.image)
        told = float(torch.special.entr(mean).sum()) - entropies / len(self.image)
        return ids.cpu().numpy(), probability.cpu().numpy(), (probability / mean[ids]).cpu().numpy(), max(told, 0.0)


EMPTY = ((-1, "int64"), (np.nan, "float32"), (np.nan, "float32"))
"""What tokens of text have in place of ids, probabilities and lift, and of which kind it is."""
