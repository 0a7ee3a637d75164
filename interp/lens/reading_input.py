"""What a person passes to be read, told apart by its type: texts, conversations, or token ids in any of their forms.

Everything that reads goes through here, so that what one function takes all of them take. Nothing is recognised by
trying to iterate it: the words of a mapping's keys are texts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from interp.errors import InterpError

Tensor = torch.Tensor
REPORTS = ("special_tokens_mask", "offset_mapping", "length", "num_truncated_tokens", "overflow_to_sample_mapping")
"""What a tokenizer tells about its tokens beside those that a model reads."""


@dataclass(frozen=True)
class Given:
    """An input told apart. `single`: one text, one conversation or one flat row of ids, not a batch of one."""

    kind: Literal["texts", "conversations", "tokens"]
    single: bool
    texts: list[str] = field(default_factory=list)
    conversations: list[list[Any]] = field(default_factory=list)
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    """`[batch, pos]`; rows of different length are padded."""
    mask: Any = None
    """Of tokens: None, `[batch, tokens seen]`, or what the model itself makes of a mask."""


@dataclass(frozen=True)
class Read:
    """An input as tokens `[batch, pos]` on the model's device, with its padding mask or None."""

    tokens: Tensor
    mask: Tensor | None
    as_text: bool
    """Whether text was passed, so that text is what comes back."""
    single: bool
    """Whether one text, conversation or flat row of ids was passed, not a batch of one."""
    conversation: bool
    sizes: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Width and height of each text's images."""
    seen: Mapping[str, Any] = field(default_factory=dict)
    """What else the model is given of those images."""

    def rows(self) -> list[Tensor] | list[dict[str, Any]]:
        """What can be read again: texts without their padding; with images all together, as arguments of the model."""
        return rows_of(self.tokens, self.mask, self.seen)


def unpacked(input: Any, attention_mask: Any, keywords: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The input, its mask, and the other arguments for the model, whether they came as keywords, in a mapping such as a
    tokenizer returns, or both. An input of embeddings is None, and `inputs_embeds` among the arguments."""
    rest = {name: value for name, value in keywords.items() if name not in REPORTS}
    if attention_mask is not None:
        rest["attention_mask"] = attention_mask
    if isinstance(input, Mapping) and ("input_ids" in input or "inputs_embeds" in input):
        held = {name: input[name] for name in input if input[name] is not None and name not in REPORTS}
        if twice := sorted(name for name in held if rest.get(name) is not None):
            raise InterpError(f"{twice[0]} is in the mapping and beside it too; pass it once.")
        input, rest = None, rest | held
    for name in ("input_ids", "inputs"):
        if rest.get(name) is not None:
            if input is not None:
                raise InterpError(f"{name} comes beside another input; pass one of the two.")
            input = rest[name]
        rest.pop(name, None)
    if rest.get("inputs_embeds") is None:
        rest.pop("inputs_embeds", None)
    elif input is not None:
        raise InterpError("inputs_embeds comes beside another input; pass one of the two.")
    return input, rest.pop("attention_mask", None), rest


def tokens_alone(input: Any, attention_mask: Any) -> tuple[Any, Any]:
    """The input and its mask, for those who read tokens and nothing else. Raises InterpError for anything else."""
    input, attention_mask, rest = unpacked(input, attention_mask, {})
    if "inputs_embeds" in rest:
        raise InterpError("embeddings have no tokens; only a call of the Lens itself and generate take inputs_embeds.")
    without_types(rest, known=())
    if rest:
        raise InterpError(f"tokens are read here, and nothing else: leave {', '.join(sorted(rest))} out.")
    return input, attention_mask


def without_types(rest: dict[str, Any], known: Iterable[str]) -> None:
    """Drop token types of which there is one: most tokenizers return them, and few models know such an argument."""
    if "token_type_ids" in rest and "token_type_ids" not in known:
        types = rest["token_type_ids"]
        rows = types if isinstance(types, Sequence) else np.asarray(types).tolist()
        if not any(any(row) if isinstance(row, Sequence) else row for row in rows):
            del rest["token_type_ids"]


def told_apart(input: Any, attention_mask: Any = None, pad: int = 0, right: bool = False) -> Given:
    """What an input is; rows of ids of different length are padded, on the left or on the `right`.

    Raises InterpError for anything that is no text, no conversation and no tokens.
    """
    if isinstance(input, str):
        return _texts([input], attention_mask, single=True)
    if isinstance(input, Tensor):
        return _array(input, attention_mask)
    if hasattr(input, "__array__"):
        array = np.asarray(input)
        if array.dtype.kind in "OUT":
            return told_apart(array.tolist(), attention_mask, pad, right)
        return _array(_from_numpy(array), attention_mask)
    if not isinstance(input, Sequence) or isinstance(input, (bytes, bytearray, memoryview)):
        raise _refused(type(input).__name__, input)
    items = list(input)
    if not items:
        return Given("tokens", single=False, mask=None)
    if all(isinstance(one, str) for one in items):
        return _texts(items, attention_mask, single=False)
    if all(isinstance(one, Mapping) for one in items):
        return _of_mappings(items, attention_mask, pad, right)
    if all(isinstance(one, (list, tuple)) and one and isinstance(one[0], Mapping) for one in items):
        return Given("conversations", single=False, conversations=[_conversation(one) for one in items])
    if all(_is_number(one) for one in items):
        return _array(torch.tensor([_id(one) for one in items]), attention_mask)
    return _rows(items, attention_mask, pad, right)


def _refused(found: str, input: Any) -> InterpError:
    hint = ""
    if isinstance(input, Iterable) and not isinstance(input, (str, bytes, bytearray, memoryview, Mapping, Sequence)):
        hint = ", which has no order or is used up by reading it: make a list of it"
    return InterpError(
        "a Lens reads a text, a list of texts, or an integer tensor of tokens [pos] or [batch, pos], which may come as "
        f"lists, as an array or as a tokenizer returns them, or chat messages, not {found}{hint}."
    )


def _texts(texts: list[str], attention_mask: Any, single: bool) -> Given:
    if attention_mask is not None:
        raise InterpError("an attention mask goes with tokens; texts get their own when they are padded.")
    return Given("texts", single, texts=[str(text) for text in texts])


def _of_mappings(items: list[Any], attention_mask: Any, pad: int, right: bool) -> Given:
    """One conversation, or what a tokenizer returned for several texts, one after the other."""
    if all("input_ids" in one for one in items):
        parts = [tokens_alone(one, None) for one in items]
        masks = [mask for _, mask in parts]
        whole = None if any(mask is None for mask in masks) else masks
        return _rows([ids for ids, _ in parts], whole if attention_mask is None else attention_mask, pad, right)
    if attention_mask is not None:
        raise InterpError("an attention mask goes with tokens; chat messages need none.")
    return Given("conversations", single=True, conversations=[_conversation(items)])


def _conversation(messages: Sequence[Any]) -> list[Any]:
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise InterpError(
                f"a chat message should be like {{'role': 'user', 'content': 'Hello'}}, found {str(message)[:60]!r}."
            )
    return list(messages)


def _is_number(value: Any) -> bool:
    """One number, whoever made it; an array of none or several is none."""
    return isinstance(value, (bool, int, float, np.number, np.bool_)) or (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0
    )


def _id(value: Any) -> int:
    plain = value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise InterpError(f"token ids are integers, not {type(plain).__name__} such as {plain!r}; pass their numbers.")
    if not -(2**63) <= plain < 2**63:
        raise InterpError(f"token id {plain} is outside the vocabulary: no token has such a number.")
    return plain


def _row(row: Any) -> list[int]:
    """The ids of one sequence; a batch of one counts as its only row, since tokenizers return that for one text."""
    if isinstance(row, (Tensor, np.ndarray)):
        if row.ndim == 2 and row.shape[0] == 1:
            row = row[0]
        row = row.tolist() if row.ndim == 1 else [row]
    if isinstance(row, (str, bytes)) or not isinstance(row, Sequence):
        raise _refused(f"a list that holds {type(row).__name__}", None)
    for value in row:
        if isinstance(value, str):
            raise InterpError("a text is a string, not a list of its words; join the words, or pass their token ids.")
        if not _is_number(value):
            raise InterpError("tokens are at most [batch, pos], and these are nested deeper; pass one list a sequence.")
    return [_id(value) for value in row]


def _rows(items: list[Any], attention_mask: Any, pad: int, right: bool) -> Given:
    others = [one for one in items if _is_number(one) or not isinstance(one, (list, tuple, Tensor, np.ndarray))]
    if others and len(others) < len(items) and _is_number(others[0]):
        raise InterpError(f"this list mixes rows of ids and ids such as {others[0]}; pass one list a sequence.")
    if others:
        odd = next((one for one in others if not isinstance(one, str)), others[0])
        raise _refused(f"a list that holds {type(odd).__name__}", None)
    rows = [_row(one) for one in items]
    if not all(rows):
        raise InterpError(f"row {[len(row) for row in rows].index(0)} holds no tokens; leave it out.")
    if isinstance(attention_mask, (Tensor, np.ndarray)) and len(set(map(len, rows))) == 1:
        return replace(_array(torch.tensor(rows), attention_mask), single=False)
    masks = [[1] * len(row) for row in rows] if attention_mask is None else _mask_rows(attention_mask)
    if [len(mask) for mask in masks] != [len(row) for row in rows]:
        raise InterpError(
            f"the attention mask is of {[len(mask) for mask in masks]} entries, but there are {len(rows)} sequences of "
            f"{[len(row) for row in rows]} tokens; pass one entry for each token."
        )
    tokens, mask = padded(rows, pad, masks, right)
    return Given("tokens", single=False, tokens=tokens, mask=None if attention_mask is None and mask.all() else mask)


def _mask_rows(mask: Any) -> list[list[int]]:
    """The mask of each row; what is said of several rows of different length can only be lists."""
    whole = isinstance(mask, (Tensor, np.ndarray)) and mask.ndim == 2
    if not whole and (not isinstance(mask, Sequence) or isinstance(mask, (str, bytes))):
        raise InterpError("the attention mask is not [batch, tokens]; pass one entry for each token.")
    rows = [as_mask(row) for row in ([mask] if all(_is_number(one) for one in mask) else mask)]
    if not all(isinstance(row, Tensor) and row.ndim == 2 and row.shape[0] == 1 for row in rows):
        raise InterpError("the attention mask is not [batch, tokens]; pass one entry for each token.")
    return [row[0].long().tolist() for row in rows]


def padded(
    rows: list[list[int]], pad: int, masks: list[list[int]] | None = None, right: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows and their masks, padded on the left, or on the `right`: `[batch, pos]` both."""
    width = max(map(len, rows), default=0)
    masks = [[1] * len(row) for row in rows] if masks is None else masks

    def filled(row: list[int], what: int) -> list[int]:
        padding = [what] * (width - len(row))
        return row + padding if right else padding + row

    tokens = torch.tensor([filled(row, pad) for row in rows], dtype=torch.long)
    mask = torch.tensor([filled(list(map(int, row)), 0) for row in masks], dtype=torch.long)
    return tokens.reshape(len(rows), width), mask.reshape(len(rows), width)


def _from_numpy(array: np.ndarray) -> Tensor:
    if array.dtype.kind in "iu" and array.dtype != np.int64:
        array = array.astype(np.int64)
    try:
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except TypeError:
        raise _refused(f"an array of {array.dtype}", None) from None


def _array(ids: Tensor, attention_mask: Any) -> Given:
    if ids.is_floating_point() and ids.ndim == 3:
        raise InterpError("these numbers look like embeddings, not tokens; pass them as inputs_embeds=...")
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex() or ids.ndim not in (1, 2):
        raise InterpError(f"tokens are integers of shape [batch, pos], not {ids.dtype} of shape {tuple(ids.shape)}.")
    wide = ids if ids.dtype in (torch.int64, torch.int32) else ids.long()
    return Given("tokens", ids.ndim == 1, tokens=torch.atleast_2d(wide), mask=as_mask(attention_mask))


UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def as_mask(mask: Any, device: torch.device | None = None) -> Any:
    """A mask for tokens: a padding mask as zeros and ones `[batch, tokens]`; one of four axes is the model's."""
    if mask is None:
        return mask
    if isinstance(mask, Mapping) and mask and all(one is None or isinstance(one, Tensor) for one in mask.values()):
        return mask  # a prepared mask for each kind of layer
    try:
        made = torch.as_tensor(np.asarray(mask) if isinstance(mask, (list, tuple)) else mask)
        made = made.to(device, torch.int64) if made.dtype in UNSIGNED else made.to(device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InterpError("the attention mask is not [batch, tokens]; pass one entry for each token.") from None
    if made.ndim == 4:
        return made
    if made.ndim not in (1, 2):
        raise InterpError(f"the attention mask has {made.ndim} axes; pass one entry for each token, [batch, tokens].")
    made = torch.atleast_2d(made)
    if made.dtype != torch.bool and not bool(((made == 0) | (made == 1)).all()):
        raise InterpError("a padding mask is 1 at tokens and 0 at padding, and this one holds other numbers.")
    return made


def left_padded(tokens: Tensor, mask: Any) -> tuple[Tensor, Any]:
    """The same sequences with all padding on the left, where what comes next can be appended to every one of them."""
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape != tokens.shape[:2] or bool(mask[:, -1].all()):
        return tokens, mask
    ids, masks = [], []
    for i, (row, real) in enumerate(zip(tokens, mask, strict=True)):
        if not bool(real.any()):
            raise InterpError(f"the attention mask leaves nothing of row {i}; leave that row out.")
        behind = len(real) - 1 - int(real.nonzero().max())
        ids.append(row.roll(behind, 0))
        masks.append(real.roll(behind, 0))
    return torch.stack(ids), torch.stack(masks)


def rows_of(tokens: Tensor, mask: Any, seen: Mapping[str, Any]) -> list[Tensor] | list[dict[str, Any]]:
    """Texts without their padding; where the model is given more than tokens, of images, all of it in one."""
    return [{"input_ids": tokens, "attention_mask": mask, **seen}] if seen else without_padding(tokens, mask)


def without_padding(tokens: Tensor, mask: Any) -> list[Tensor]:
    """Rows `[1, pos]` of tokens `[batch, pos]`, padding on the left and on the right cut away."""
    if mask is None:
        return list(tokens.split(1))
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InterpError(f"attention_mask has shape {found} and the tokens have {tuple(tokens.shape)}.")
    rows = []
    for i, (row, real) in enumerate(zip(tokens.split(1), mask, strict=True)):
        kept = real.nonzero().flatten().tolist()
        if not kept:
            raise InterpError(f"attention_mask leaves nothing of row {i}; leave that row out.")
        if kept[-1] - kept[0] + 1 != len(kept):
            raise InterpError(f"attention_mask has a hole in row {i}; padding can only be left or right of a text.")
        rows.append(row[:, kept[0] : kept[-1] + 1])
    return rows


def encodable(text: str) -> str:
    """The text itself. Raises InterpError where it holds half a character, which no tokenizer reads."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InterpError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}), half of a "
            "character; read the file as UTF-8 with errors='replace', or take that character out."
        ) from None
    return text
