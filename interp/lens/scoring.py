"""How well a model predicts: `lens.score`, and the loss that `return_type="loss"` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.cache.paired import of_own_tokens
from interp.errors import InterpError
from interp.interventions.edits._edit_memory import EditedCache
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.finite import Measured, finite
from interp.lens.protocol import InterventionLens, TextLens
from interp.lens.reading_input import left_padded, rows_of
from interp.lens.spelling import AS_THE_TOKENIZER_DOES
from interp.settings.checking import checked

Tensor = torch.Tensor
IGNORED = -100
"""The label of a position that counts in no loss, as in transformers."""


@in_evaluation_mode
@torch.no_grad()
def score(
    lens: InterventionLens, prompt: Any, continuation: Any, chunk: int, images: Any = None
) -> Float[Tensor, "batch token"]:
    """What `Lens.score` does, in terms of what any lens with a cache can do."""
    if checked("score", "chunk", chunk, int) < 1:
        raise InterpError(f"score: chunk should be at least 1, found {chunk}.")
    seen: dict[str, Any] = {}
    if images is None:
        tokens, attention_mask = left_padded(*lens.tokens_and_mask(prompt))
    else:
        read = lens.read_arguments(prompt, None, seen := {"images": images}, AS_THE_TOKENIZER_DOES, goes_on=True)
        tokens, attention_mask = read.tokens, read.mask
    if isinstance(attention_mask, Tensor) and attention_mask.ndim != 2:
        raise InterpError("score reads the prompt and then its continuation: pass a padding mask [batch, tokens].")
    rest, there = ends_in_nan(lens.continuation_rows(prompt, continuation), tokens)
    lens.check_length(tokens.shape[1] + rest.shape[1])
    rows = rows_of(tokens, attention_mask, seen) if seen else _rows(tokens, attention_mask, rest, there)
    return looked_at(lens, rows, there, lambda: _nats(lens, tokens, attention_mask, rest, chunk, seen))


def looked_at(
    lens: TextLens, rows: Iterable[Any], there: Bool[Tensor, "batch token"] | None, nats: Callable[[], Tensor]
) -> Float[Tensor, "batch token"]:
    """What `nats()` says that tokens cost, NaN where none are `there`. Raises NonFiniteError where one that is costs no
    number; rows: the texts, to see why."""
    with finite(lens, rows) as numbers:
        found = nats()
        real = found if there is None else found[there]
        numbers.take(real.clamp_max(0))  # inf is what a token costs that cannot be
    return found if there is None else found.masked_fill(~there, torch.nan)


def _rows(tokens: Tensor, mask: Tensor | None, rest: Tensor, there: Tensor | None) -> Iterator[Int[Tensor, "1 pos"]]:
    """The texts without their padding: prompts `tokens` padded on the left, continuations `rest` on the right."""
    for i in range(len(tokens)):
        prompt = tokens[i] if mask is None else tokens[i, mask[i].bool()]
        yield torch.cat([prompt, rest[i] if there is None else rest[i, there[i]]])[None]


def _nats(
    lens: InterventionLens, tokens: Tensor, attention_mask: Tensor | None, rest: Tensor, chunk: int,
    seen: Mapping[str, Any],
) -> Float[Tensor, "batch token"]:  # fmt: skip
    """What the tokens of `rest` cost after `tokens`, and images that the model was given as `seen`."""
    call: dict[str, Any] = {"use_cache": True, "attention_mask": attention_mask}
    logits = lens(tokens, **call, **seen, **lens.last_logits_only)[:, -1:]
    cache = lens.last_cache
    assert cache is not None  # made by the call before
    call["past_key_values"] = cache
    if cache.keeper is not None:
        cache.keeper.reads_back = True
    if isinstance(own := of_own_tokens(cache), EditedCache):
        own.memory.prompt = tokens.shape[1]  # the rest is read as if it had been generated
    losses = [nll_of(logits, rest[:, :1])]
    fed = rest[:, :-1]
    chunk = min(chunk, rest.shape[1])
    first = 1 if cache.waits else chunk
    for part in (fed[:, :first], *fed[:, first:].split(chunk, 1)):
        if part.numel() == 0:
            continue
        start = sum(loss.shape[1] for loss in losses)
        if call["attention_mask"] is not None:
            ones = torch.ones_like(part, dtype=call["attention_mask"].dtype)
            call["attention_mask"] = torch.cat([call["attention_mask"], ones], 1)
        logits = lens(part, **call)
        losses.append(nll_of(logits, rest[:, start : start + part.shape[1]]))
    return torch.cat(losses, 1)


def ends_in_nan(
    rows: Sequence[Tensor], tokens: Tensor
) -> tuple[Int[Tensor, "batch token"], Bool[Tensor, "batch token"] | None]:
    """Ids of the continuations of prompts, from their rows, and where they are: None where all have one length. Shorter
    ones are filled up on the right, which nothing before it sees, and their scores end in NaN."""
    if not rows or any(row.numel() == 0 for row in rows):
        raise InterpError("score: the continuation is empty; there is nothing to score.")
    if len(rows) != tokens.shape[0]:
        raise InterpError(f"score: {tokens.shape[0]} prompts and {len(rows)} continuations do not pair up.")
    rest = torch.nn.utils.rnn.pad_sequence([row.to(tokens) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=rest.device)
    there = torch.arange(rest.shape[1], device=rest.device) < lengths[:, None]
    return rest, None if bool(there.all()) else there


def nll_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of `targets [batch, token]` under `logits [batch, token, d_vocab]`."""
    return cross_entropy(logits.float(), targets)


def cross_entropy(logits: Float[Tensor, "batch token d_vocab"], targets: Int[Tensor, "batch token"]) -> Tensor:
    """Of each token `[batch, token]`, summed along rows as they lie: along the columns of a view, torch's softmax adds
    a vocabulary up one by one, and a mean of losses is low by 1e-4."""
    rows = logits.reshape(-1, logits.shape[-1])
    ids = targets.reshape(-1).long()  # whatever whole numbers a text came in
    return torch.nn.functional.cross_entropy(rows, ids, reduction="none").view(targets.shape)


def check_return_type(return_type: str | None) -> None:
    if not isinstance(return_type, str | None) or return_type not in ("logits", "loss", "both", None):
        raise InterpError(f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}.")


def as_asked(
    lens: Measured, return_type: str | None, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None,
    labels: Tensor | None = None, *, per_token: bool = False, read: Callable[[], Iterable[Any]] | None = None,
) -> Any:  # fmt: skip
    """What `return_type` names: logits, the loss (of labels, where there are any), both, or None; with `per_token` the
    loss of each token.

    read: makes what can be read again, to see why a loss is none; None where it cannot be read again. Raises
    NonFiniteError instead of a loss of logits that are not finite.
    """
    if return_type in ("loss", "both"):
        if labels is None:
            loss = next_token_loss(logits, tokens, attention_mask, per_token=per_token)
        else:
            loss = loss_of_labels(logits, labels, per_token=per_token)
        if bool(loss.detach().isnan().any()):  # as it is where nothing counts, too
            with finite(lens, None if read is None else read()) as numbers:
                numbers.take_logits(logits if attention_mask is None else logits[_last(attention_mask, tokens)])
        return loss if return_type == "loss" else (logits, loss)
    return logits if return_type == "logits" else None


def _last(mask: Tensor, tokens: Tensor) -> Bool[Tensor, "batch pos"]:
    """Which of the tokens a mask lets through that covers those before them, too."""
    return mask[:, -tokens.shape[1] :].bool()


def loss_of_labels(
    logits: Float[Tensor, "batch pos d_vocab"], labels: Int[Tensor, "batch pos"], *, per_token: bool = False
) -> Tensor:
    """Mean cross entropy (nats) of labels, those of -100 left out; of each with `per_token`, NaN for those."""
    there = labels != IGNORED
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = cross_entropy(exact, labels.masked_fill(~there, 0))
    return loss.masked_fill(~there, torch.nan) if per_token else loss[there].mean()


def next_token_loss(
    logits: Tensor, tokens: Tensor, attention_mask: Tensor | None, *, per_token: bool = False
) -> Tensor:
    """Mean cross entropy (nats) of each token `[batch, pos]` given those before it, padding left out.

    With `per_token` that of each, `[batch, pos - 1]`, NaN where there is padding.

    Raises InterpError where logits of some positions are missing or the mask is not `[batch, tokens seen]`.
    """
    if tokens.shape[1] < 2:
        raise InterpError("a loss is of tokens that follow others, and there is one token alone; pass more of them.")
    if logits.shape[1] != tokens.shape[1]:
        raise InterpError(f"a loss needs the logits of all {tokens.shape[1]} positions, not of {logits.shape[1]}.")
    loss = cross_entropy(logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)), tokens[:, 1:])
    if attention_mask is None:
        return loss if per_token else loss.mean()
    if attention_mask.ndim != 2:
        raise InterpError(
            "a loss under a 4-D mask is not defined; pass a padding mask [batch, tokens], or ask for logits."
        )
    mask = attention_mask[:, -tokens.shape[1] :]
    real = (mask[:, 1:] * mask[:, :-1]).to(loss.dtype)
    if per_token:
        return loss.masked_fill(real == 0, torch.nan)
    return (loss * real).sum() / real.sum().clamp_min(1)
