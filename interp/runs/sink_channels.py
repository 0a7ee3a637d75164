"""`interp.sink_channels`: the channels of the residual stream on which sinks are huge, which differ by model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from interp.errors import InterpError
from interp.lens.evaluating import in_evaluation_mode
from interp.settings.checking import checked
from interp.subjects.texts import demo_text

if TYPE_CHECKING:
    from interp.lens.protocol import TextLens

Tensor = torch.Tensor
TEXTS, CHARACTERS = 32, 400
MOST_ATTENDED = 0.01
"""The share of a text's tokens that are looked at beside its first one, rounded up."""
QUESTION = "<image> What is in this picture?"


@in_evaluation_mode
@torch.no_grad()
def sink_channels(
    lens: TextLens, inputs: Any = None, images: Any = None, *, over_median: float = 1000.0
) -> tuple[int, ...]:
    """The sink channels of a language model, for `VAR(channels=...)`; none where it has none.

    Args:
        lens: from `interp.load`.
        inputs: texts, or tokens `[batch, pos]`, as for `interp.probe`; None: 32 stretches of the text that every Python
            brings along, or with images a question about each. Multimodal training leaves the channels of a language
            model where they are, so that texts without images will do.
        images: of several texts one or a list for each.
        over_median: how many times the median |x| of all tokens and channels of its layer a channel has to exceed.

    In the residual stream that enters a layer a channel passes where, in half of the texts at least, |x| exceeds so
    many medians at the text's first token or at one of those that receive the most attention in the layer (1 % of all).
    The plateau reaches from the first layer in which a channel passes to the last; those that pass in half of it at
    least are the answer, those in more layers first. The criterion is that of massive activations (Sun et al. 2024,
    arXiv:2402.17762) without its floor of 100, which small models do not reach. An empty answer is one: the two largest
    channels of a model without sinks would make sinks of any tokens.

    Known are (1415, 2533) in Llama-2-7B and LLaVA-1.5-7B, (2100, 4743) in the 13B.

    Examples:
        >>> interp.sink_channels(lens, [prompt, "w9 w8 w7"])
        ()
    """
    if checked("sink_channels", "over_median", over_median, float) <= 1:
        raise InterpError(f"sink_channels: over_median should be above 1, found {over_median}.")
    passed = torch.zeros(lens.cfg.n_layers, lens.cfg.d_model)
    count = 0
    for text, seen in readings(lens, inputs, images):
        passed += _passing(lens, text, seen, over_median)
        count += 1
    return held_up(passed >= count / 2)


def held_up(passes: Bool[Tensor, "layer d_model"]) -> tuple[int, ...]:
    """Channels that pass in half of the plateau at least, those that pass in more of its layers first."""
    layers = passes.any(1).nonzero().ravel()
    if not len(layers):
        return ()
    share = passes[int(layers[0]) : int(layers[-1]) + 1].float().mean(0)
    ranked = share.sort(descending=True, stable=True).indices
    return tuple(int(channel) for channel in ranked if share[channel] >= 0.5)


def readings(lens: TextLens, inputs: Any, images: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What to read one after the other, and the images that go with it."""
    if images is None:
        if inputs is None:
            whole = demo_text()
            inputs = [whole[i * CHARACTERS : (i + 1) * CHARACTERS] for i in range(TEXTS)]
        rows, _ = lens.rows(inputs)
        yield from ((row, {}) for row in rows)
        return
    single = isinstance(inputs, str) or not isinstance(images, (list, tuple))
    held: Sequence[Any] = [images] if single else images
    texts = [QUESTION] * len(held) if inputs is None else [inputs] if isinstance(inputs, str) else list(inputs)
    if len(texts) != len(held):
        raise InterpError(f"{len(texts)} texts and images for {len(held)} do not pair up; give each text its image.")
    yield from ((text, {"images": own}) for text, own in zip(texts, held, strict=True))


def _passing(lens: TextLens, text: Any, seen: dict[str, Any], over_median: float) -> Bool[Tensor, "layer d_model"]:
    """Which channels pass in which layer, in one text."""
    passes = torch.zeros(lens.cfg.n_layers, lens.cfg.d_model, dtype=torch.bool)
    entering: dict[int, Float[Tensor, "token d_model"]] = {}

    def enter(layer: int, stream: Tensor, hook: Any) -> None:
        entering[layer] = stream[0].float().abs()
        look(layer, [0])

    def attended(layer: int, mass: Tensor, hook: Any) -> None:
        received = mass[0].sum(0)
        look(layer, received.topk(math.ceil(MOST_ATTENDED * len(received))).indices.tolist())

    def look(layer: int, tokens: Sequence[int]) -> None:
        size = entering[layer]
        passes[layer] |= (size[list(tokens)].amax(0) > over_median * size.median()).cpu()

    listen_to(lens, text, seen, enter, attended)
    return passes


def listen_to(
    lens: TextLens, text: Any, seen: dict[str, Any], enter: Callable[..., None], attended: Callable[..., None]
) -> None:
    """Read a text; each layer's number is told with its stream as it enters, and with the attention that its keys
    receive, where it has them."""
    points = {"hook_resid_pre": enter, "attn.hook_column_mass": attended}
    hooks = [
        (name, partial(listen, layer))
        for layer in range(lens.cfg.n_layers)
        for point, listen in points.items()
        if (name := f"blocks.{layer}.{point}") in lens.hook_dict
    ]
    lens.run_with_hooks(text, fwd_hooks=hooks, **seen)
