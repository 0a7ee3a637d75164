"""Stage 2: the projector learns to say at every patch what the language model would read for the name of what is there.

Its aim at a patch is the embedding of the kind's name (of "nothing" at the background), and a little of the words for
where the patch is; at the middle of a thing also a little of "one", without which nothing could be counted. Of the
words that are added only the difference from the mean embedding is taken.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.language import word_embeddings
from interp.subjects.emoji.scenes import ACROSS, make_scene
from interp.subjects.emoji.stage import Pace, Stage
from interp.subjects.emoji.tower import BACKGROUND, PatchClassifier, patch_labels, pixels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMPTY = "nothing"
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
PLACE_SHARE, MIDDLE_SHARE = 0.4, 0.3
SHARPNESS = 15.0
"""By what cosines, from the mean of all names, are multiplied where a name has to be told from all others."""


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

    def of(self, kinds: Tensor, middles: Tensor, places: Tensor) -> Tensor:
        """[patch, width] for shares of classes [patch, class], of middles [patch], and numbers of patches [patch]."""
        place, middle = PLACE_SHARE * self.places[places], MIDDLE_SHARE * middles[..., None] * self.one
        aim: Tensor = kinds @ self.names + place + middle
        return aim


def _between(words: Tensor) -> Tensor:
    """For each of a row's patches one of three words, or between two of them [patch, width]."""
    first, middle, last = words
    share = torch.linspace(-1.25, 1.25, ACROSS).clamp(-1, 1)[:, None]
    between: Tensor = middle * (1 - share.abs()) + first * (-share).clamp_min(0) + last * share.clamp_min(0)
    return between


class ProjectorStage(Stage):
    name: ClassVar[str] = "projector"

    def __init__(self, pace: Pace, classifier: PatchClassifier, aims: Aims, seed: int = 1, scenes: int = 4000) -> None:
        torch.manual_seed(seed)
        self.pace, self.seed, self.aims, self.scenes = pace, seed, aims, scenes
        self.classifier = classifier.eval()
        self.projector = Projector(classifier.tower.config.hidden_size, aims.names.shape[1])

    def trained(self) -> nn.Module:
        return self.projector

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "seed": self.seed, "scenes": self.scenes}

    @cached_property
    def patches(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of patches: features, what the tower believes of their class and of a middle, and their place.

        All that show a thing, and as many others. Aims follow the tower's belief and not the truth: where the two
        differ there is nothing in the features to learn from, and a projector that is told the truth learns the
        scenes by heart.
        """
        found = [self._patches(range(first, first + 50)) for first in range(0, self.scenes, 50)]
        features, kinds, middles, places = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, kinds, middles, places

    @torch.no_grad()
    def _patches(self, numbers: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scenes = [make_scene(self.seed * 100_000_000 + number) for number in numbers]
        things = patch_labels(scenes)[0] != BACKGROUND
        with torch.autocast("cpu", torch.bfloat16):
            features = self.classifier.features(pixels(scenes))
        draw = torch.Generator().manual_seed(numbers.start)
        taken = things | (torch.rand(things.shape, generator=draw) < things.float().mean())
        chosen = features[taken].float()
        belief = self.classifier.kind(chosen).softmax(-1)
        return chosen, belief, self.classifier.middle(chosen).squeeze(-1).sigmoid(), torch.where(taken)[1]

    def losses(self, step: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.patches[0]), (self.pace.batch,), generator=draw)
        features, kinds, middles, places = (values[chosen] for values in self.patches)
        put_out = self.projector(features)
        aim = self.aims.of(kinds, middles, places)
        name = put_out - (aim - kinds @ self.aims.names)
        centre = self.aims.names.mean(0)
        cosines = F.normalize(name - centre, dim=-1) @ F.normalize(self.aims.names - centre, dim=-1).T
        return {
            "distance": F.mse_loss(put_out, aim) / aim.var(),
            "name": F.cross_entropy(SHARPNESS * cosines, kinds),
        }
