"""Texts with places for images, and how the processor that came with a model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from interp.errors import InterpError

PLACE = "<image>"
"""What stands for an image in a text, whatever the model's own token for it is."""
AROUND = (("vision_start_token_id", "vision_end_token_id"), ("image_start_token_id", "image_end_token_id"))
"""Fields of configs that name the tokens which a model was trained to see around an image, and which its processor
leaves to the prompt (Qwen-VL, GLM-V)."""


def own_place(processor: Any) -> str:
    """The text that a processor replaces by an image's tokens. Raises InterpError where it does not say."""
    # Gemma 3's older processors put whole images, with their tokens, where the token stands that begins one
    token = getattr(processor, "boi_token" if hasattr(processor, "full_image_sequence") else "image_token", None)
    token = getattr(token, "content", token)
    if not isinstance(token, str) or not token:
        raise InterpError(f"{type(processor).__name__} does not say which token stands for an image.")
    return token


def marked(processor: Any, config: Any, text: str) -> str:
    """The text with the model's own tokens where `<image>` stands; the model's own place is left as it is."""
    own = own_place(processor)
    if PLACE not in text:
        return text
    ids = next(
        ((first, last) for a, b in AROUND if isinstance(first := getattr(config, a, None), int)
         and isinstance(last := getattr(config, b, None), int)),
        None,
    )  # fmt: skip
    before, after = ("", "") if ids is None else processor.tokenizer.convert_ids_to_tokens(list(ids))
    if own == PLACE and f"{before}{PLACE}" in text:
        return text  # written in the model's own words
    return text.replace(PLACE, f"{before}{own}{after}")


def check_places(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> None:
    """Raise InterpError where a text has not as many places as images."""
    own = own_place(processor)
    for i, (text, held) in enumerate(zip(texts, images, strict=True)):
        if (places := text.count(own)) != len(held):
            which = "the text" if len(texts) == 1 else f"text {i}"
            raise InterpError(
                f"{which} has {places} place{'s' * (places != 1)} for {len(held)} image{'s' * (len(held) != 1)}; write "
                f"{PLACE} where each image belongs."
            )


def with_parts(text: str, n_images: int) -> list[dict[str, str]]:
    """A user's words as parts of a chat message: `<image>` is a part of its own; without any, images come first."""
    if PLACE not in text:
        return [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
    found: list[dict[str, str]] = []
    for i, piece in enumerate(text.split(PLACE)):
        found += [{"type": "image"}] if i else []
        found += [{"type": "text", "text": piece}] if piece.strip() else []
    return found


def images_in(talk: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The images that the messages of a conversation hold themselves, in order."""
    found: list[Any] = []
    for message in talk:
        parts = message.get("content")
        for part in parts if isinstance(parts, (list, tuple)) else ():
            if not isinstance(part, Mapping) or part.get("type") != "image":
                continue
            if part.get("url") is not None:
                raise InterpError("images are read from files and memory, not from addresses; download it first.")
            given = next((part[name] for name in ("image", "path") if part.get(name) is not None), None)
            found += [] if given is None else [given]
    return found


def encoded(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], special: bool, **settings: Any
) -> dict[str, Any]:
    """What a model is given of texts and their images, by its processor; texts of different length are padded.

    special: whether the tokenizer adds its special tokens. settings: of the processor, in the place of its own.
    Raises InterpError for what the processor does not take.
    """
    held = [list(row) for row in images]
    how: dict[str, Any] = {"add_special_tokens": special, "padding_side": "left", **settings}
    if len(texts) > 1:
        how["padding"] = True
    try:
        made = processor(text=list(texts), images=held if any(held) else None, return_tensors="pt", **how)
    except Exception as error:  # processors raise what they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InterpError(f"{type(processor).__name__} does not take these texts and images: {reason[:200]}") from error
    made = {name: value for name, value in dict(made).items() if name != "labels"}
    for name, value in made.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            raise InterpError(
                f"{type(processor).__name__} makes numbers of these images that are not finite ({name}); mend "
                "image_mean, image_std and rescale_factor in the configuration that came with the weights."
            )
    return made
