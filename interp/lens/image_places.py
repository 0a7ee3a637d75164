"""Where in a picture each image token lies, by measurement, so that no model needs code of its own.

With the blocks of the tower left out, no patch sees another. Then the gradient of one image token reaches just those
numbers of the processed picture that it is made of; tokens are told apart by the bits of their numbers, so that some
twelve gradients say it of thousands of tokens. What those numbers stand for `interp.vision.coordinates` knows.

Tokens that no number reaches are separators (the newline tokens of LLaVA-NeXT). A tower whose tokens are all made of
the whole picture (a Q-Former, a resampler) is refused: its tokens have no place. The same gradients, taken where the
stream of the tower begins, say which of its rows a token is made of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import nn

from interp.errors import UnsupportedModelError
from interp.lens.evaluating import evaluation_mode
from interp.lens.finite import NonFiniteError, refuse_weights
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
class TowerRows:
    """The rows of the residual stream of the tower that belong to one image, tile after tile."""

    token: Int[Tensor, " row"]
    """The image token that is made of a row; -1 where none is: of a class token, padding, what is cut away."""
    is_patch: Bool[Tensor, " row"]
    """Which rows show a part of the picture. A class token and padding do not."""
    block: int
    """The tower's block whose output is the last that image tokens are made of."""
    apart: bool
    """Whether hardly a row goes into several tokens."""


@dataclass(frozen=True)
class Places:
    """Where the tokens of one image lie, in their order."""

    boxes: Float[Tensor, "token 4"]
    """Left, top, right and bottom in pixels of the (upright) picture; NaN for separators."""
    tiles: Int[Tensor, " token"]
    """The number of the tile that a token is of, as the processor counts them; -1 for separators."""
    whole: Int[Tensor, " tile"]
    """Which tiles show the whole picture where others show parts: thumbnails."""
    rows: TowerRows


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
        owner, rows = _owners(lens, tower, given, n_tokens)
    owner = owner.flatten()
    found = coordinates(read, size)
    x, y, tile = found.x.flatten(), found.y.flatten(), found.tile.flatten()
    boxes, tiles = torch.full((n_tokens, 4), torch.nan, dtype=torch.double), torch.full((n_tokens,), -1)
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner + 1, minlength=n_tokens + 1)
    for token, numbers in enumerate(order.split(counts.tolist())[1:]):
        if len(numbers):
            boxes[token] = box_of(x[numbers], y[numbers], size)
            tiles[token] = int(tile[numbers].mode().values)
    return Places(boxes, tiles, _whole(boxes, tiles, size), rows)


def _owners(lens: TextLens, tower: Stack, given: dict[str, Any], n_tokens: int) -> tuple[Tensor, TowerRows]:
    """For each number of the processed picture the image token that it is part of, -1 where it is of none; and the same
    of the tower's rows."""
    model, start = lens.model, tower.blocks[0].block
    arguments = {name: on(model, value) for name, value in given.items()}
    pixels = arguments["pixel_values"] = arguments["pixel_values"].detach().clone().requires_grad_()
    with undoing() as undo:
        passed = [_leave_out(block.block, undo) for block in tower.blocks]
        stream = entering(model, arguments, lens.anatomy.blocks[0].block)
    ends = [out for _, out in passed]
    begin = passed[0][0]
    tokens = stream[arguments["input_ids"] == image_token(model, lens.processor)]
    if not bool(tokens.isfinite().all()):  # of which no gradient says anything
        refuse_weights(model)
        raise NonFiniteError(f"{type(model).__name__} makes image tokens that are not finite; load it in float32.")
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(tokens.shape[-1], generator=generator).to(tokens)
    across = torch.randn(begin.shape[-1], generator=generator).double()
    numbers = torch.arange(n_tokens, device=tokens.device)

    def gradients(share: Tensor) -> tuple[Tensor, Tensor]:
        wanted = share.to(tokens)[:, None] * direction
        of_pixels, of_rows = torch.autograd.grad(tokens, (pixels, begin), wanted, retain_graph=True)
        return of_pixels.detach().double().cpu(), of_rows.detach().double().cpu() @ across

    told = [_Told(whole, n_tokens) for whole in gradients(torch.ones_like(numbers))]
    for bit in range(max(1, (n_tokens - 1).bit_length())):
        for one, gradient in zip(told, gradients(numbers >> bit & 1), strict=True):
            one.take(bit, gradient)
    of_pixels, of_rows = told
    if not of_pixels.apart:
        raise UnsupportedModelError(
            f"image tokens of {type(model).__name__} have no place: each is made of the whole picture."
        )
    used = torch.autograd.grad(tokens, ends, direction.expand_as(tokens), allow_unused=True)
    last = max(block for block, gradient in enumerate(used) if gradient is not None)
    other = entering(model, arguments | {"pixel_values": -pixels.detach()}, start)  # padding is 0 and stays so
    is_patch = (begin.detach() != other.detach()).any(-1).flatten().cpu()
    return of_pixels.owners, TowerRows(of_rows.owners.flatten(), is_patch, last, of_rows.apart)


class _Told:
    """Which token each number goes into, told from gradients of all tokens and of those whose number has a bit set."""

    def __init__(self, whole: Tensor, n_tokens: int) -> None:
        self.whole, self.n_tokens = whole, n_tokens
        self.reached = whole.abs() > 1e-6 * whole.abs().max()
        self.owner = torch.zeros(whole.shape, dtype=torch.long)
        self.unclear = torch.zeros_like(self.reached)

    def take(self, bit: int, gradient: Tensor) -> None:
        share = gradient / torch.where(self.reached, self.whole, 1.0)
        self.owner |= (share > 0.5).long() << bit
        self.unclear |= (share - share.round()).abs() > 0.2

    @property
    def apart(self) -> bool:
        """Whether most numbers that go into tokens go into one each."""
        return float(self.unclear[self.reached].double().mean()) <= 0.5

    @property
    def owners(self) -> Tensor:
        return torch.where(self.reached & (self.owner < self.n_tokens), self.owner, -1)


def _leave_out(block: nn.Module, undo: Undo) -> list[Tensor]:
    """Let a block put out what it was given, until the end of `undo`. What it was given and what it put out is what the
    list holds once it has run."""
    passed: list[Tensor] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        passed[:] = [args[0] if args else kwargs["hidden_states"]]

    def leave(module: nn.Module, args: Any, out: Any) -> Any:
        passed[1:] = [passed[0].view_as(first(out))]
        return replaced(out, passed[1])

    undo.hook(block, enter, pre=True, with_kwargs=True)
    undo.hook(block, leave)
    return passed


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
