"""Texts with images, as a Lens reads them: tokens and what else the model is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from interp.errors import InterpError
from interp.lens import reading_input
from interp.lens.foreign import said_in
from interp.lens.reading_input import Given, Read
from interp.lens.templates import prompt_of
from interp.lens.tower import on
from interp.seam.config import LensConfig
from interp.vision.pictures import nested, opened
from interp.vision.prompts import check_places, encoded, images_in, marked, own_place, with_parts

IMAGES = "images"
"""The keyword of calls that images come by."""


def holds_images(input: Any) -> bool:
    """Whether an input is chat messages with images in them."""
    messages = input if isinstance(input, (list, tuple)) else []
    messages = [one for talk in messages for one in (talk if isinstance(talk, (list, tuple)) else [talk])]
    parts = [one.get("content") for one in messages if isinstance(one, Mapping)]
    return any(
        isinstance(part, Mapping) and part.get("type") == "image"
        for content in parts if isinstance(content, (list, tuple)) for part in content
    )  # fmt: skip


class Seeing(Protocol):
    """What is needed of a lens here."""

    model: Any
    processor: Any

    @property
    def cfg(self) -> LensConfig: ...


def need_processor(lens: Seeing) -> Any:
    """The processor of a lens. Raises InterpError where it has none."""
    if (processor := getattr(lens, "processor", None)) is not None:
        return processor
    config = lens.model.config
    if all(getattr(config, name, None) is None for name in ("vision_config", "image_token_id", "image_token_index")):
        raise InterpError(f"{lens.cfg.architecture} reads text and no images; leave images out.")
    raise InterpError(
        f"{lens.cfg.model_name} has no processor here, which makes of images what the model reads; give the one that "
        "came with the weights: interp.load(model, processor)."
    )


def read_images(lens: Seeing, given: Given, images: Any, arguments: dict[str, Any], chat: bool, goes_on: bool) -> Read:
    """Tokens of texts with their images; what else the model is given of them goes into the arguments of the call.

    Raises InterpError where images and places do not pair up, or an image cannot be read.
    """
    processor = need_processor(lens)
    if given.kind == "tokens":
        raise InterpError("images go with texts or chat messages, in which they have a place; tokens have none.")
    talks = given.conversations
    n = len(talks or given.texts)
    if images is None:
        held = [[opened(one, f"image {i}") for i, one in enumerate(images_in(talk))] for talk in talks]
    else:
        held = nested(images, n, given.single)
    if chat and not talks:
        talks = [
            [{"role": "user", "content": with_parts(text, len(own))}]
            for text, own in zip(given.texts, held, strict=True)
        ]
    if talks:
        own = getattr(processor, "chat_template", None)  # else its tokenizer's
        name = lens.cfg.model_name
        texts = [prompt_of(processor.tokenizer, talk, name, goes_on, own) for talk in talks]
    else:
        texts = [reading_input.encodable(text) for text in given.texts]
    texts = [marked(processor, lens.model.config, text) for text in texts]
    check_places(processor, texts, held)
    made = encoded(processor, texts, held, special=not talks)
    if twice := sorted(name for name in made if arguments.get(name) is not None):
        raise InterpError(f"{twice[0]} comes beside images, of which it is made; pass one of the two.")
    made = {name: on(lens.model, value) for name, value in made.items()}
    tokens, mask = made.pop("input_ids"), made.pop("attention_mask", None)
    arguments |= made
    whole = mask is None or bool(mask.all())
    sizes = tuple(tuple(one.size for one in row) for row in held)
    return Read(tokens, None if whole else mask, True, given.single, bool(talks), sizes, made)


@contextmanager
def fitting(lens: Seeing, given: Mapping[str, Any]) -> Iterator[None]:
    """For a block in which a model reads what it is given: what was made of images and does not fit the model is an
    InterpError."""
    try:
        yield
    except (ValueError, LookupError, ArithmeticError) as error:  # of transformers' modelling files
        pictures = getattr(getattr(lens, "processor", None), "image_processor", None)
        of_images = bool(given.keys() & set(getattr(pictures, "model_input_names", ())))
        if not of_images or not said_in(error, "transformers.models.", "transformers.vision_utils", "torch"):
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise InterpError(
            f"{lens.cfg.architecture} does not take what {type(lens.processor).__name__} makes of images: {reason}; "
            "mend its config.json, or give the processor that came with its weights."
        ) from error


def refuse_empty_places(lens: Seeing, rows: Sequence[Sequence[int]]) -> None:
    """Raise InterpError where a text that is read without images has places for some: the model would read the
    embedding of its image token, which means nothing."""
    token = lens.processor.tokenizer.convert_tokens_to_ids(own_place(lens.processor))
    if any(token in row for row in rows):
        raise InterpError(
            "the text has a place for an image, and none came with it; pass images=..., where that is taken: a call of "
            "the Lens, run_with_cache, generate, score, interp.probe."
        )
