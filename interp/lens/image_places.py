"""Where in a picture each image token lies, by measurement, so that no model needs code of its own.

With the blocks of the tower left out, no patch sees another. Then the gradient of one image token reaches just those
numbers of the processed picture that it is made of; tokens are told apart by the bits of their numbers, so that some
twelve gradients say it of thousands of tokens. What those numbers stand for `interp.vision.coordinates` knows.

Tokens that no number reaches are separators (the newline tokens of LLaVA-NeXT). A tower whose tokens are all made of
the whole picture (a Q-Former, a resampler) is refused: its tokens have no place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import nn

from interp.errors import UnsupportedModelError
from interp.lens.evaluating import evaluation_mode
from interp.lens.first_look import entering, first
from interp.lens.parts import Stack
from interp.lens.protocol import TextLens
from interp.lens.seeing import need_processor
from interp.lens.stacks import VISION
from interp.lens.tower import image_token, on
from interp.lens.watching import replaced
from interp.undoing import Undo, undoing
from interp.vision.coordinates import box_of, coordinates
from interp.vision.prompts import PLACE, encoded, marked

Tensor = torch.Tensor


@dataclass(frozen=True)
class Places:
    """Where the tokens of one image lie, in their order."""

    boxes: Float[Tensor, "token 4"]
    """Left, top, right and bottom in pixels of the (upright) picture; NaN for separators."""
    tiles: Int[Tensor, " token"]
    """The number of the tile that a token is of, as the processor counts them; -1 for separators."""
    whole: Int[Tensor, " tile"]
    """Which tiles show the whole picture where others show parts: thumbnails."""


_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Places]] = WeakKeyDictionary()


def places(lens: TextLens, size: tuple[int, int]) -> Places:
    """Where the tokens of an image of `size` (width, height) lie, as this model reads it.

    Raises UnsupportedModelError where its tokens have no place, or no tower could be found.
    """
    processor = need_processor(lens)
    settings = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    known, key = _known.setdefault(lens.model, {}), (size, settings)
    if key not in known:
        known[key] = _measured(lens, processor, size)
    return known[key]


def _measured(lens: TextLens, processor: Any, size: tuple[int, int]) -> Places:
    tower = next((stack for stack in lens.anatomy.further if stack.prefix == VISION), None)
    if tower is None:
        raise UnsupportedModelError(
            f"where image tokens of {lens.cfg.architecture} lie cannot be measured: {lens.anatomy.unseen}."
        )
    text = marked(processor, lens.model.config, PLACE)

    def read(picture: Image.Image) -> dict[str, Any]:
        return encoded(processor, [text], [[picture]], special=True)

    given = read(Image.new("RGB", size, (120, 130, 110)))
    n_tokens = int((given["input_ids"] == image_token(lens.model, processor)).sum())
    with lens.hooks(), evaluation_mode(lens.model), torch.enable_grad():  # other threads wait
        owner = _owners(lens, tower, given, n_tokens).flatten()
    found = coordinates(read, size)
    x, y, tile = found.x.flatten(), found.y.flatten(), found.tile.flatten()
    boxes, tiles = torch.full((n_tokens, 4), torch.nan, dtype=torch.double), torch.full((n_tokens,), -1)
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner + 1, minlength=n_tokens + 1)
    for token, numbers in enumerate(order.split(counts.tolist())[1:]):
        if len(numbers):
            boxes[token] = box_of(x[numbers], y[numbers], size)
            tiles[token] = int(tile[numbers].mode().values)
    return Places(boxes, tiles, _whole(boxes, tiles, size))


def _owners(lens: TextLens, tower: Stack, given: dict[str, Any], n_tokens: int) -> Tensor:
    """For each number of the processed picture the image token that it is part of, -1 where it is of none."""
    model = lens.model
    arguments = {name: on(model, value) for name, value in given.items()}
    pixels = arguments["pixel_values"] = arguments["pixel_values"].detach().clone().requires_grad_()
    with undoing() as undo:
        for block in tower.blocks:
            _leave_out(block.block, undo)
        stream = entering(model, arguments, lens.anatomy.blocks[0].block)
    rows = stream[arguments["input_ids"] == image_token(model, lens.processor)]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows.shape[-1], generator=generator).to(rows)
    numbers = torch.arange(n_tokens, device=rows.device)
    bits = max(1, (n_tokens - 1).bit_length())

    def gradient(share: Tensor) -> Tensor:
        found: Tensor = torch.autograd.grad(rows, pixels, share.to(rows)[:, None] * direction, retain_graph=True)[0]
        return found.detach().double().cpu()

    whole = gradient(torch.ones_like(numbers))
    reached = whole.abs() > 1e-6 * whole.abs().max()
    owner = torch.zeros(whole.shape, dtype=torch.long)
    unclear = torch.zeros_like(reached)
    for bit in range(bits):
        share = gradient(numbers >> bit & 1) / torch.where(reached, whole, 1.0)
        owner |= (share > 0.5).long() << bit
        unclear |= (share - share.round()).abs() > 0.2
    if float(unclear[reached].double().mean()) > 0.5:
        raise UnsupportedModelError(
            f"image tokens of {type(model).__name__} have no place: each is made of the whole picture."
        )
    owner[~reached | (owner >= n_tokens)] = -1
    return owner


def _leave_out(block: nn.Module, undo: Undo) -> None:
    """Let a block put out what it was given, until the end of `undo`."""
    entered: list[Tensor] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        entered[:] = [args[0] if args else kwargs["hidden_states"]]

    undo.hook(block, enter, pre=True, with_kwargs=True)
    undo.hook(block, lambda module, args, out: replaced(out, entered[0].view_as(first(out))))


def _whole(boxes: Tensor, tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """The tiles whose tokens cover the picture, where there are several tiles."""
    present: Tensor = tiles[tiles >= 0].unique()
    if len(present) < 2:
        return present[:0]
    area = size[0] * size[1]
    covered = []
    for tile in present.tolist():
        of_tile = boxes[tiles == tile]
        left, top = of_tile[:, :2].nan_to_num(torch.inf).amin(0)
        right, bottom = of_tile[:, 2:].nan_to_num(-torch.inf).amax(0)
        covered.append(float((right - left) * (bottom - top)) > 0.9 * area)
    return present[torch.tensor(covered)]
