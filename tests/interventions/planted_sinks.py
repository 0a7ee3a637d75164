"""Texts with images in which sinks are planted, and VAR written out row by row, as the paper and the code have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import interp
from interp.vision.prompts import marked
from tests.vision_models import picture, shared

CHANNELS = (11, 40)
FIRM: dict[str, Any] = {"channels": CHANNELS, "tau_rel": 0.5}
"""Where sinks are planted, and a threshold that only those pass."""


class Batch:
    """Texts with images of a kind of model, the shorter one padded on the left, with sinks to be planted in them."""

    def __init__(self, kind: str, texts: Sequence[str]) -> None:
        model, processor = shared(kind)
        self.lens = interp.Lens(model, processor)
        images = [[picture(i)] for i in range(len(texts))]
        made = processor(
            text=[marked(processor, model.config, text) for text in texts], images=images, return_tensors="pt",
            padding=True, padding_side="left",
        )  # fmt: skip
        self.ids, self.mask = made.pop("input_ids"), made.pop("attention_mask")
        self.rest = {name: value for name, value in made.items() if name != "labels"}
        self.images = self.ids == self.lens.cfg.image_token_id
        self.real = self.mask.bool()
        places = [row.nonzero().ravel().tolist() for row in self.images]
        first = self.real.int().argmax(1).tolist()
        self.planted = [[first[b], image[1], image[-2]] for b, image in enumerate(places)]
        """The first token, a sink of the text, and two of the image."""

    def __call__(self, ids: torch.Tensor | None = None, mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        ids, mask = self.ids if ids is None else ids, self.mask if mask is None else mask
        logits: torch.Tensor = self.lens(ids, attention_mask=mask, **self.rest, **more)
        return logits


@contextmanager
def planted(lens: Any, columns: Sequence[Sequence[int]]) -> Iterator[None]:
    """+200 and -120 on two channels of what the first block puts out, at columns of each text."""
    seen = {"before": 0}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        seen["before"] = 0 if past is None else past.get_seq_length()

    def plant(module: Any, args: Any, out: Any) -> Any:
        stream = (out[0] if isinstance(out, tuple) else out).clone()
        for b, own in enumerate(columns):
            for column in own:
                if 0 <= column - seen["before"] < stream.shape[1]:
                    stream[b, column - seen["before"], list(CHANNELS)] += torch.tensor([200.0, -120.0])
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    hooks = [
        lens.model.register_forward_pre_hook(note, with_kwargs=True),
        lens.anatomy.blocks[0].block.register_forward_hook(plant),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def paper(row: torch.Tensor, visual: list[int], sinks: list[int], rho: float, p: float, floor: float) -> torch.Tensor:
    """One row of the pattern under the paper's definitions."""
    non_sinks = [j for j in visual if j not in sinks]
    s_vis = row[visual].sum()
    if not set(visual) & set(sinks) or s_vis < floor or row[non_sinks].sum() / s_vis < rho:
        return row
    new = row.clone()
    new[sinks] = (1 - p) * row[sinks]
    new[non_sinks] = row[non_sinks] + p * row[sinks].sum() * row[non_sinks] / row[non_sinks].sum()
    return new


def code(row: torch.Tensor, visual: list[int], sinks: list[int], rho: float, p: float, floor: float) -> torch.Tensor:
    """The same as the released code has it: rho bounds the sinks' share, p is what they keep."""
    of_image = [j for j in sinks if j in visual]
    if not of_image or row[of_image].sum() / (row[visual] + 1e-6).sum() > rho or row[visual].sum() < floor:
        return row
    new, left = row.clone(), row.clone()
    new[sinks] *= p
    left[of_image] = 0.0
    new[visual] += row[sinks].sum() * (1 - p) * left[visual] / left[visual].sum()
    return new


def by_reference(
    batch: Batch, ids: torch.Tensor, mask: torch.Tensor, rule: Callable[..., torch.Tensor], layers: Sequence[int],
    exceeds: Callable[[torch.Tensor], torch.Tensor] = lambda phi: phi >= 4.0, bridge: Any = None, **numbers: float,
) -> tuple[torch.Tensor, int, int]:  # fmt: skip
    """Logits of a whole text with every pattern edited row by row, how many rows were, and how many were not; of a
    TransformerLens bridge through its own hooks."""
    streams: dict[int, torch.Tensor] = {}
    count = {True: 0, False: 0}
    prompt = batch.ids.shape[1]

    def edit(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        new, x = pattern.clone(), streams[layer]
        phi = (x[..., list(CHANNELS)].abs() / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()).amax(-1)
        for b in range(len(ids)):
            real = mask[b].nonzero().ravel().tolist()
            visual = [j for j in real if j < prompt and batch.images[b, j]]
            sinks = [j for j in real if j < prompt and exceeds(phi[b, j])]
            for h in range(pattern.shape[1]):
                for i in (i for i in real if i > visual[0] and i not in visual):
                    new[b, h, i] = rule(pattern[b, h, i], visual, sinks, **numbers)
                    count[not torch.equal(new[b, h, i], pattern[b, h, i])] += 1
        return new

    hooks: list[tuple[str, Any]] = []
    enters = "hook_resid_pre" if bridge is None else "hook_in"
    for layer in layers:
        hooks.append((f"blocks.{layer}.{enters}", lambda x, hook, layer=layer: streams.update({layer: x})))
        hooks.append((f"blocks.{layer}.attn.hook_pattern", lambda x, hook, layer=layer: edit(layer, x)))
    with (bridge or batch.lens).hooks(fwd_hooks=hooks):
        logits = (bridge or batch.lens)(ids, attention_mask=mask, **batch.rest)
    return logits, count[True], count[False]


def continued(batch: Batch, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts with some words after them, and their mask."""
    more = torch.randint(80, 120, (len(batch.ids), n), generator=torch.Generator().manual_seed(3))
    return torch.cat([batch.ids, more], 1), torch.cat([batch.mask, torch.ones_like(more)], 1)


def one_by_one(batch: Batch, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of the prompt and of what follows, a token a step."""
    prompt = batch.ids.shape[1]
    logits = [batch(mask=batch.mask, use_cache=True)]
    for end in range(prompt + 1, ids.shape[1] + 1):
        past = {"past_key_values": batch.lens.last_cache, "use_cache": True}
        logits.append(batch.lens(ids[:, end - 1 : end], attention_mask=mask[:, :end], **past))
    return torch.cat(logits, 1)
