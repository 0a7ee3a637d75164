"""`interp.sink_kind`: whether sinks stay at their place or follow their content when the input is rearranged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.lens.encoder_view import reading_text
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import reads_text
from interp.probes.text_sinks import TextSinks
from interp.probes.visual_sinks import VisualSinks
from interp.results.described import Row, described
from interp.results.many_texts import gather
from interp.runs.probing import probe
from interp.settings.checking import checked
from interp.vision.cells import Transform, destinations, follow, grid_of, rearranged
from interp.vision.pictures import opened

if TYPE_CHECKING:
    from interp.lens.protocol import TextLens

TRANSFORMS: tuple[Transform, ...] = get_args(Transform)


@in_evaluation_mode
@torch.no_grad()
def sink_kind(
    lens: TextLens,
    inputs: Any,
    images: Any = None,
    *,
    transforms: Sequence[Transform] = TRANSFORMS,
    sinks: VisualSinks | None = None,
    kept: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Positional against content sinks: which stay at their place, and which follow their content, by layer.

    With images the parts of each picture change places by whole tokens, and sinks are those image tokens that
    `visual_sinks` calls so. Of texts without images tokens change places, and the sink is the token that receives the
    most attention (`primary_sink` of `text_sinks`).

    Args:
        lens: from `interp.load`.
        inputs: a text or several; with images each has one `<image>`, and a single text is read with every image.
        images: a picture or several, one a reading; None for texts alone.
        transforms: `roll` (everything moves on by half of the rows and of the columns, or by half of the tokens),
            `flip` (columns, or tokens, in reverse order; nothing is mirrored inside of a token), `permute` (in a drawn
            order, another one for every input).
        sinks: the settings of `visual_sinks` by which image tokens are sinks; None: its defaults.
        kept: first tokens of a text without images that stay where they are, <bos> for one.
        seed: of the orders that `permute` draws.

    Of each sink that moves it is asked whether a sink is again at its place, `position`, and whether one is where its
    content went, `content`. `chance` is what as many random tokens as are sinks afterwards would give, for both alike.
    Sinks that a transform leaves where they are, or whose content does not arrive in one token (tiles that do not match
    the thumbnail's), say nothing and are not counted: the first token of a text, unless `kept` is 0.

    The result has a `text` dimension, one entry a picture or a text, means over them and, from two on, 95 % bootstrap
    limits (`position_mean`, `position_low`, `position_high`); `<name>_all` is over all layers and transforms.
    `attrs["summary"]` says it in words.

    Examples:
        >>> kind = interp.sink_kind(lens, [prompt, "w9 w8 w7 w6"], transforms=["roll"], kept=0)
        >>> kind.position.dims
        ('text', 'transform', 'layer')
    """
    transforms = _transforms(transforms)
    if checked("sink_kind", "kept", kept, int) < 0:
        raise InterpError(f"sink_kind: kept should be at least 0, found {kept}.")
    checked("sink_kind", "seed", seed, int)
    if not reads_text(lens):
        raise InterpError(f"sink_kind: pass a Lens from interp.load, not {type(lens).__name__}.")
    if images is None:
        readings = _of_texts(lens, inputs, transforms, kept, seed)
    else:
        readings = _of_pictures(lens, inputs, images, transforms, sinks or VisualSinks(), seed)
    result = gather([_compared(reading, transforms) for reading in readings])
    what = "text" if images is None else "image"
    return result.assign_attrs(
        title="Positional and content sinks",
        description="Whether sinks stay at their place or follow their content when the input is rearranged",
        of=what, seed=seed, model=lens.cfg.model_name, summary=_summary(result, what),
    )  # fmt: skip


class Seen(NamedTuple):
    """An input rearranged in one way."""

    sinks: np.ndarray
    """`[layer, token]`: sinks afterwards."""
    target: np.ndarray
    """`[token]`: where the content of each token is then; -1 where no token has it as a whole."""


class Reading(NamedTuple):
    """One input, as it is and rearranged."""

    layers: list[int]
    sinks: np.ndarray
    """`[layer, token]`: sinks of the input as it is."""
    group: np.ndarray
    """`[layer, token]`: tokens of the same number might be a sink in each other's stead; -1: none could be."""
    rearranged: list[Seen]


def _transforms(given: Any) -> list[Transform]:
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    unknown = [name for name in names if name not in TRANSFORMS]
    if unknown or not names or len(set(names)) < len(names):
        raise InterpError(f"sink_kind: transforms are some of {', '.join(TRANSFORMS)}, each once; found {given!r}.")
    return cast("list[Transform]", names)


def _of_pictures(
    lens: TextLens, inputs: Any, images: Any, transforms: Sequence[Transform], sinks: VisualSinks, seed: int
) -> Iterator[Reading]:
    held = list(images) if isinstance(images, (list, tuple)) else [images]
    texts = (
        [inputs] * len(held) if isinstance(inputs, str) else list(inputs) if isinstance(inputs, (list, tuple)) else []
    )
    if not held or len(texts) != len(held):
        raise InterpError(
            f"sink_kind: {len(texts)} texts and {len(held)} images do not pair up; pass one text, or one a picture."
        )
    for number, (text, given) in enumerate(zip(texts, held, strict=True)):
        picture = opened(given)
        result = _seen(lens, text, sinks, picture)
        box, view = result["box"].values, result["view"].values
        group = np.where(view == "whole", 0, np.where(view == "part", 1, -1))
        grid = grid_of(box[group == (0 if (group == 0).any() else 1)])
        rng, changed = np.random.default_rng([seed, number]), []
        for transform in transforms:
            to = destinations(transform, grid.shape, rng)
            after = _seen(lens, text, sinks, rearranged(picture, grid, to))
            changed.append(Seen(_are_sinks(after), follow(box, grid, to, group)))
        layers = result["layer"].values.tolist()
        yield Reading(layers, _are_sinks(result), np.broadcast_to(group, (len(layers), len(group))), changed)


def _seen(lens: TextLens, text: str, sinks: VisualSinks, picture: Any) -> xr.Dataset:
    return probe(lens, text, sinks, images=[picture])[sinks.name]


def _are_sinks(result: xr.Dataset) -> np.ndarray:
    found: np.ndarray = (result["is_sink"].values > 0) & (result["modality"].values == "image")
    return found


def _of_texts(lens: TextLens, inputs: Any, transforms: Sequence[Transform], kept: int, seed: int) -> Iterator[Reading]:
    rows, _ = reading_text(lens).rows(inputs)
    for number, row in enumerate(rows):
        before, could = _primary(lens, row)
        rng, changed = np.random.default_rng([seed, number]), []
        n = row.shape[1]
        for transform in transforms:
            target = np.arange(n)
            target[kept:] = kept + destinations(transform, (max(0, n - kept),), rng)
            moved = torch.empty_like(row)
            moved[:, torch.from_numpy(target).to(row.device)] = row
            changed.append(Seen(_primary(lens, moved)[0], target))
        yield Reading(list(range(len(before))), before, np.where(could, 0, -1), changed)


def _primary(lens: TextLens, row: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The primary sink of each layer, and which tokens enough queries see to be one: `[layer, token]` each."""
    result = probe(lens, row[0], TextSinks())["text_sinks"]
    could = np.isfinite(result["mean_received"].values).any(1)
    place = result["primary_sink"].values.astype(int)
    return (np.arange(could.shape[1]) == place[:, None]) & could, could


def _compared(reading: Reading, transforms: Sequence[Transform]) -> xr.Dataset:
    """What becomes of the sinks of one input."""
    shape = (len(transforms), len(reading.layers))
    counted, position, content, chance = (np.zeros(shape) for _ in range(4))
    for i, (after, target) in enumerate(reading.rearranged):
        for layer, (before, now, group) in enumerate(zip(reading.sinks, after, reading.group, strict=True)):
            for token in np.flatnonzero(before & (target >= 0) & (target != np.arange(len(target)))):
                alike = group == group[token]
                if alike[target[token]]:
                    counted[i, layer] += 1
                    position[i, layer] += now[token]
                    content[i, layer] += now[target[token]]
                    chance[i, layer] += now[alike].mean()
    data = {
        "sinks": Row(("layer",), reading.sinks.sum(1), "1", "sinks of the input as it is"),
        "counted": Row(("transform", "layer"), counted, "1", "how many of them moved as a whole"),
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, found in (("position", position), ("content", content), ("chance", chance)):
            data[name] = Row(("transform", "layer"), found / counted, "1", f"{SAID[name]}; NaN where none moved")
            whole = found.sum() / counted.sum()
            data[f"{name}_all"] = Row((), whole, "1", f"{SAID[name]}, of all layers and transforms")
    return described(data, {"layer": reading.layers, "transform": list(transforms)}, {})


def _summary(result: xr.Dataset, what: str) -> str:
    number = result.sizes["text"]
    of = f"{number} {what}{'s' * (number > 1)}"
    if not (result["sinks"].values > 0).any():
        return f"No {'image token' if what == 'image' else 'token'} is a sink in any layer ({of})."
    if not np.isfinite(result["position_all_mean"]):
        return f"No sink moved as a whole, so nothing is said of their kind ({of})."

    def share(name: str) -> str:
        said = f"{float(result[f'{name}_all_mean']):.0%}"
        low, high = (float(result.get(f"{name}_all_{side}", np.nan)) for side in ("low", "high"))
        return said if np.isnan(low + high) else f"{said} ({low:.0%} to {high:.0%})"

    return (
        f"When the input is rearranged, a sink is again at the place of {share('position')} of the sinks that moved, "
        f"and where their content went for {share('content')}; random tokens would give {share('chance')} ({of})."
    )


SAID = {
    "position": "share of counted sinks at whose place a sink is again",
    "content": "share of counted sinks where a sink is where their content went",
    "chance": "either share, expected of as many random tokens of the same view as are sinks afterwards",
}
