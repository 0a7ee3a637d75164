"""What the decoder of an encoder-decoder reads beside the text that its encoder reads."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch.nn.utils.rnn import pad_sequence

from interp.errors import InterpError
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.protocol import TextLens
from interp.lens.reading_input import Read, as_mask, without_padding
from interp.lens.scoring import ends_in_nan, looked_at, nll_of
from interp.lens.text import TextMixin
from interp.settings.checking import checked

Tensor = torch.Tensor
GIVEN = ("decoder_input", "decoder_input_ids", "decoder_inputs_embeds", "labels")


def start_token(model: Any) -> int:
    """The token that a decoder starts from, as in transformers' generation."""
    generation = getattr(model, "generation_config", None)
    for config in (generation, model.config, model.config.get_text_config(decoder=True)):
        if (token := getattr(config, "decoder_start_token_id", None)) is not None:
            return int(token[0] if isinstance(token, list) else token)
    for config in (generation, model.config.get_text_config(decoder=True)):
        if (token := getattr(config, "bos_token_id", None)) is not None:
            return int(token)
    raise InterpError(
        f"{type(model).__name__} does not say which token its decoder starts from; pass decoder_input=... as tokens, "
        "or set lens.model.generation_config.decoder_start_token_id."
    )


def written(lens: TextMixin, arguments: dict[str, Any], batch: int) -> Read:
    """What the decoder is to read, from the arguments of a call for so many texts; what the model needs of it stays
    there. Without any it is the start token alone; of labels the model makes its own tokens."""
    given = [name for name in GIVEN if arguments.get(name) is not None]
    if len(given) > 1 and given != ["decoder_input_ids", "labels"]:
        raise InterpError(f"{given[0]} comes beside {given[1]}; pass one of the two.")
    mask = arguments.pop("decoder_attention_mask", None)
    if "decoder_inputs_embeds" in given:
        tokens: Tensor = arguments["decoder_inputs_embeds"]
    elif given == ["labels"]:
        tokens = arguments["labels"] = torch.as_tensor(arguments["labels"], device=lens.device)
    else:
        tokens, padding = _tokens(lens, arguments.pop("decoder_input", None), arguments.get("decoder_input_ids"), batch)
        arguments["decoder_input_ids"] = tokens
        mask = padding if mask is None else mask
    if tokens.ndim not in (2, 3) or tokens.shape[0] != batch:
        raise InterpError(
            f"the decoder is given {list(tokens.shape)}, and the encoder {batch} texts; pass one for each."
        )
    mask = as_mask(mask, lens.device)
    if mask is not None:
        arguments["decoder_attention_mask"] = mask
    return Read(tokens, mask, False, False, False)


def _tokens(lens: TextMixin, input: Any, ids: Any, batch: int) -> tuple[Int[Tensor, "batch pos"], Tensor | None]:
    """The decoder's tokens, and their mask where they are of different length: filled up on the right, which nothing
    before sees."""
    if input is None and ids is None:
        return torch.full((batch, 1), start_token(lens.model), device=lens.device), None
    if input is None:
        tokens = lens.read(ids).tokens
        return tokens, None
    rows, are_text = lens.plain_rows(input)
    if are_text:
        start = torch.tensor([start_token(lens.model)], device=lens.device)
        rows = [torch.cat([start, row]) for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=lens.device)
    real = torch.arange(int(lengths.max()), device=lens.device) < lengths[:, None]
    return pad_sequence(rows, batch_first=True), None if bool(real.all()) else real.long()


def begun(lens: TextMixin, arguments: dict[str, Any], batch: int) -> int:
    """How many tokens the decoder has before it generates, which are put among the arguments where some were given."""
    if not any(arguments.get(name) is not None for name in GIVEN):
        return 1
    read = written(lens, arguments, batch)
    if read.mask is not None:
        raise InterpError(
            "decoder_input of different lengths cannot be gone on from at once; generate them one by one."
        )
    return read.tokens.shape[1]


@in_evaluation_mode
@torch.no_grad()
def score(
    lens: TextLens, prompt: Any, continuation: Any, chunk: int, images: Any = None
) -> Float[Tensor, "batch token"]:
    """What `Lens.score` does: the encoder reads the prompt, the decoder the continuation after its start token."""
    if images is not None:
        raise InterpError(
            f"{lens.cfg.architecture} is an encoder-decoder, of which a Lens reads texts; leave images out."
        )
    if checked("score", "chunk", chunk, int) < 1:
        raise InterpError(f"score: chunk should be at least 1, found {chunk}.")
    tokens, attention_mask = lens.tokens_and_mask(prompt)
    rest, there = ends_in_nan(lens.plain_rows(continuation)[0], tokens)
    start = torch.full_like(rest[:, :1], start_token(lens.model))
    given: dict[str, Any] = {"attention_mask": attention_mask, "decoder_input_ids": torch.cat([start, rest[:, :-1]], 1)}
    rows = iter(without_padding(tokens, attention_mask))
    return looked_at(lens, rows, there, lambda: nll_of(lens(tokens, **given), rest))
