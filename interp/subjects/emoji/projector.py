"""Stage 2: the projector learns to say at every patch what the language model would read for the name of what is there.

Its aim at a patch is the embedding of the kind's name (of "nothing" at the background), and a little of the words for
where the patch is; at the middle of a thing also a little of "one", without which nothing could be counted. Of the
words that are added only the difference from the mean embedding is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.language import word_embeddings
from interp.subjects.emoji.scenes import ACROSS, make_scene
from interp.subjects.emoji.stage import Pace, Stage
from interp.subjects.emoji.tower import PatchClassifier, patch_labels, pixels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMPTY = "nothing"
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
PLACE_SHARE, MIDDLE_SHARE = 0.5, 0.6
SHARPNESS = 10.0
"""By what cosines are multiplied where a patch has to be told from all other kinds."""


class Projector(nn.Module):
    """What LLaVA's projector computes, under the names of its weights."""

    def __init__(self, tower_width: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(tower_width, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return out


class Aims:
    """What the projector should put out for patches with known content."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        mean = model.get_input_embeddings().weight.detach().mean(0)
        self.names = word_embeddings(model, tokenizer, [*(kind.name for kind in KINDS), EMPTY]).float()
        """Of every class [class, width], the background last."""
        self.one = word_embeddings(model, tokenizer, ["one"])[0] - mean
        rows, columns = (word_embeddings(model, tokenizer, list(words)) - mean for words in (ROWS, COLUMNS))
        self.places = (_between(rows)[:, None] + _between(columns)[None]).flatten(0, 1)
        """Of every patch [patch, width]."""

    def of(self, kinds: Tensor, middles: Tensor) -> Tensor:
        """[scene, patch, width] for classes and middles [scene, patch]."""
        aim: Tensor = self.names[kinds] + PLACE_SHARE * self.places + MIDDLE_SHARE * middles[..., None] * self.one
        return aim


def _between(words: Tensor) -> Tensor:
    """For each of a row's patches one of three words, or between two of them [patch, width]."""
    first, middle, last = words
    share = torch.linspace(-1.25, 1.25, ACROSS).clamp(-1, 1)[:, None]
    between: Tensor = middle * (1 - share.abs()) + first * (-share).clamp_min(0) + last * share.clamp_min(0)
    return between


class ProjectorStage(Stage):
    name: ClassVar[str] = "projector"

    def __init__(self, pace: Pace, classifier: PatchClassifier, aims: Aims, seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.pace, self.seed, self.aims = pace, seed, aims
        self.classifier = classifier.eval()
        self.projector = Projector(classifier.tower.config.hidden_size, aims.names.shape[1])

    def trained(self) -> nn.Module:
        return self.projector

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "seed": self.seed}

    def losses(self, step: int) -> dict[str, Tensor]:
        first = (self.seed * 100_000 + step) * 1_000
        scenes = [make_scene(first + number) for number in range(self.pace.batch)]
        kinds, middles = patch_labels(scenes)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = self.classifier.features(pixels(scenes))
        put_out = self.projector(features.float())
        aim = self.aims.of(kinds, middles)
        plain = put_out - PLACE_SHARE * self.aims.places
        cosines = F.normalize(plain, dim=-1) @ F.normalize(self.aims.names, dim=-1).T
        return {
            "distance": F.mse_loss(put_out, aim) / aim.var(),
            "name": 0.2 * F.cross_entropy(SHARPNESS * cosines.flatten(0, 1), kinds.flatten()),
        }
