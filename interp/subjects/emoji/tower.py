"""Stage 1: the vision tower learns to say of every patch which kind of thing it shows, and where things have their
middle.

It is transformers' CLIP vision model with a class token, six layers and 49 patches. As a classifier of patches it
gets 49 answers a scene instead of one, which is what lets it be trained from nothing on a processor.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.subjects.emoji.kinds import KINDS
from interp.subjects.emoji.scenes import PATCH, SIDE, Scene, make_scene
from interp.subjects.emoji.stage import Pace, Stage

BACKGROUND = len(KINDS)
"""The class of patches that show no thing."""
BACKGROUND_WEIGHT = 0.3  # of its loss: two patches of three show nothing
MEAN, DEVIATION = 0.5, 0.25
"""Of pixels between 0 and 1, in all three channels."""


def tower_config() -> Any:
    """The tower's shape: 4.9 million weights."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, hidden_act="gelu",
    )  # fmt: skip


def pixels(scenes: list[Scene]) -> Tensor:
    """Pictures as a tower reads them [scene, channel, y, x]."""
    stacked = np.stack([np.asarray(scene.picture()) for scene in scenes])
    return (torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255 - MEAN) / DEVIATION


def patch_labels(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """The class of every patch and whether it is a middle, both [scene, patch]."""
    shown, middle = zip(*(scene.patches() for scene in scenes), strict=True)
    kinds = torch.from_numpy(np.stack(shown)).flatten(1)
    return kinds.where(kinds >= 0, BACKGROUND), torch.from_numpy(np.stack(middle)).flatten(1)


class PatchClassifier(nn.Module):
    """The tower and two linear heads, which are left behind after the training."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPVisionModel

        self.tower = CLIPVisionModel(tower_config())
        self.tower.set_attn_implementation("eager")  # of 50 tokens it is the quickest on a processor, backwards too
        self.tower.post_layernorm.requires_grad_(False)  # of the class token's summary, which LLaVA never reads
        width = self.tower.config.hidden_size
        self.kind = nn.Linear(width, BACKGROUND + 1)
        self.middle = nn.Linear(width, 1)

    def features(self, images: Tensor) -> Tensor:
        """The tower's last residual stream at the patches [scene, patch, width]; the class token is left out."""
        found: Tensor = self.tower(pixel_values=images).last_hidden_state[:, 1:]
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.kind(features), self.middle(features).squeeze(-1)


class TowerStage(Stage):
    name: ClassVar[str] = "tower"

    def __init__(self, pace: Pace, seed: int = 0, *, bfloat16: bool = True) -> None:
        torch.manual_seed(seed)
        self.pace, self.seed, self.bfloat16 = pace, seed, bfloat16
        self.classifier = PatchClassifier().train()

    def trained(self) -> nn.Module:
        return self.classifier

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "seed": self.seed, "bfloat16": self.bfloat16}

    def losses(self, step: int) -> dict[str, Tensor]:
        scenes = [make_scene(_scene_seed(self.seed, step, number)) for number in range(self.pace.batch)]
        kinds, middles = patch_labels(scenes)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            kind_logits, middle_logits = self.classifier(pixels(scenes))
        weight = torch.ones(BACKGROUND + 1)
        weight[BACKGROUND] = BACKGROUND_WEIGHT
        return {
            "kind": F.cross_entropy(kind_logits.float().flatten(0, 1), kinds.flatten(), weight, label_smoothing=0.02),
            "middle": F.binary_cross_entropy_with_logits(middle_logits.float(), middles.float()),
        }


def _scene_seed(seed: int, step: int, number: int) -> int:
    return (seed * 100_000 + step) * 1_000 + number


@torch.no_grad()
def accuracy(classifier: PatchClassifier, scenes: list[Scene]) -> dict[str, float]:
    """Share of patches with the right class: of those that show a thing, of middles, and of the background."""
    kinds, middles = patch_labels(scenes)
    logits, middle_logits = classifier(pixels(scenes))
    right = logits.argmax(-1) == kinds
    found = middle_logits > 0
    return {
        "patches with a thing": float(right[kinds != BACKGROUND].float().mean()),
        "middles": float(right[middles].float().mean()),
        "background": float(right[kinds == BACKGROUND].float().mean()),
        "middles found": float(found[middles].float().mean()),
        "false middles, of all found": float((found & ~middles).float().sum() / found.float().sum().clamp_min(1)),
    }


def held_out_scenes(count: int) -> list[Scene]:
    """Scenes with pairs of kinds that training does not have together."""
    return [make_scene(10**12 + number, held_out=True) for number in range(count)]
