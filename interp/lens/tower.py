"""The part of a model that sees, found by watching it read a small picture.

Which modules those are shows in what attends before the language model begins. The run ends there: nothing of the
language model is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.lens.first_look import Look, look_before
from interp.lens.stacks import VISION, Listed, attending_lists
from interp.lens.writers import ModuleCall
from interp.seam.config import image_token_of
from interp.vision.prompts import PLACE, encoded, marked

Tensor = torch.Tensor
SMALL = (64, 48)
"""Width and height of the picture."""
ROTATED = "a tower's keys are shown as it rotates them"


@dataclass(frozen=True)
class Tower:
    """What was seen of the part that sees."""

    look: Look
    listed: Listed
    projected: nn.Module | None
    """The module whose output the language model reads as image tokens; None where it could not be found."""


def see_picture(model: Any, processor: Any, main: str) -> Tower | str:
    """The part that sees of a model whose layers are `main`, or why it has none that a Lens could look at."""
    if processor is None:
        return "it was loaded without the processor of its images: interp.load(model, processor)"
    try:
        given = small_picture(model, processor)
        look, stream = look_before(model, given, model.get_submodule(f"{main}.0"))
    except Exception as error:  # whatever a model or its processor raises
        return f"it does not read a small picture ({' '.join(str(error).split())[:160] or type(error).__name__})"
    try:
        held = attending_lists(model, look)
    except UnsupportedModelError as error:
        return str(error)
    if not held:
        return "nothing in it that sees attends by transformers' registry"
    first = min(held, key=lambda name: min(look.finished(name)))
    calls = {module: [_whole(facts)] for module, facts in look.calls.items()}
    ids = given["input_ids"]
    image = ids == image_token(model, processor)
    projected = _projecting(model, look.seen, stream[image], max(look.finished(first)))
    return Tower(replace(look, calls=calls), Listed(first, VISION, None, tuple(held[first])), projected)


def small_picture(model: Any, processor: Any) -> dict[str, Any]:
    """What the model is given of a small picture, in one tile where the processor can be asked for that."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*SMALL[::-1], 3), dtype=np.uint8))
    text = marked(processor, model.config, PLACE)
    pictures = processor.image_processor
    untiled = {name: False for name in ("do_image_splitting", "crop_to_patches") if hasattr(pictures, name)}
    made = encoded(processor, [text], [[picture]], special=True, **untiled)
    return {name: on(model, value) for name, value in made.items()}


def on(model: Any, value: Any) -> Any:
    """A value where the model is; pixels in its dtype."""
    if not isinstance(value, Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)


def image_token(model: Any, processor: Any) -> int:
    """The id of an image's tokens, in the config or else in the processor."""
    for token in (image_token_of(model.config), getattr(processor, "image_token_id", None)):
        if isinstance(token, int):
            return token
    raise InterpError(f"{type(model).__name__} does not say which token stands for an image.")


def _whole(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is known of an attention module that attended once for each window or image, as of one call."""
    if len(facts) == 1:
        return facts[0]
    z, k = torch.cat([call["z"] for call in facts], 1), torch.cat([call["k"] for call in facts], 2)
    return dict(facts[0]) | {"z": z, "k": k, "n_keys": k.shape[2]}


def _projecting(model: Any, seen: Sequence[ModuleCall], rows: Tensor, after: int) -> nn.Module | None:
    """The last module whose output holds the image tokens `rows [token, d_model]` that the language model reads, times
    one number; newline tokens may stand among them."""
    for call in reversed(seen[after:]):
        out = call.out
        if out is None or out.shape[-1] != rows.shape[-1] or out[..., 0].numel() > 4 * len(rows):
            continue
        known = out.reshape(-1, out.shape[-1]).float()
        for factor in (1.0, rows.shape[-1] ** 0.5):  # PaliGemma's are scaled down
            gaps = torch.cdist(known, rows.float() * factor).amin(-1)
            if bool((gaps <= 1e-3 * known.norm(dim=-1).clamp_min(1e-6)).float().mean() > 0.5):
                found: nn.Module = model.get_submodule(call.name)
                return found
    return None
