"""Text and tokens of a Lens, with TransformerLens' method names."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InterpError
from interp.lens import reading_input, seeing, token_text
from interp.lens.first_tokens import LONG, first_tokens
from interp.lens.foreign import asking, ids_of
from interp.lens.reading_input import Given, Read
from interp.lens.spelling import AS_THE_TOKENIZER_DOES, Spelling
from interp.lens.templates import prompt_of
from interp.seam.config import LensConfig
from interp.settings.checking import checked

Tensor = torch.Tensor


class TextMixin:
    """Turns text into tokens and back with the tokenizer's own defaults (special tokens included)."""

    tokenizer: Any
    model: Any
    processor: Any = None
    """What makes of images what the model reads, where it sees and one came with it."""
    if TYPE_CHECKING:

        @property
        def cfg(self) -> LensConfig: ...

    @property
    def pads_right(self) -> bool:
        """Whether texts are padded on the right: where nothing is appended to them, as in an encoder."""
        return False

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def to_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None,
        move_to_device: bool = True, truncate: int | bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Tokens `[batch, pos]` int64 of anything that a Lens reads.

        Texts, and rows of ids of different length, are padded on the left; tensors stay as they are.

        Args:
            input: text, tokens, chat messages, ...
            prepend_bos: whether the tokenizer's bos token comes first; None: as the tokenizer does.
            padding_side: `left` (None) or `right`, for texts.
            move_to_device: put the tokens where the model is, else on the CPU.
            truncate: keep the first so many tokens of each; True: as many as the model's context holds.
        """
        input, mask = reading_input.tokens_alone(input, None)
        if isinstance(truncate, bool):
            truncate = (self.cfg.n_ctx or None) if truncate else None
        tokens = self.read(input, mask, truncate=truncate, spelled=Spelling(prepend_bos, padding_side)).tokens
        return tokens if move_to_device else tokens.cpu()

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of token ids: a string of one id or of `[pos]`, a list of strings of `[batch, pos]`."""
        tokenizer = self._need_tokenizer()
        if isinstance(tokens, int) or getattr(tokens, "ndim", None) == 0:
            tokens = [tokens]
        given = self._told_apart(*reading_input.tokens_alone(tokens, None))
        if given.kind != "tokens":
            raise InterpError("to_string takes token ids, and this is text already.")
        self._check_ids(given.tokens)
        with asking(tokenizer):
            texts: list[str] = tokenizer.batch_decode(given.tokens)
        return texts[0] if given.single else texts

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text alone, without the special tokens that the tokenizer puts around one."""
        if not isinstance(text, str):
            raise InterpError(f"token_ids takes one text, not {type(text).__name__}; to_tokens takes the rest.")
        return ids_of(self._need_tokenizer(), reading_input.encodable(text))

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token. Raises InterpError for any other."""
        ids = self.token_ids(text)
        if len(ids) != 1:
            raise InterpError(f"{text!r} is {len(ids)} tokens, {ids}; pass a text that is one, often with its space.")
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        """The text of one token."""
        (text,) = self.to_str_tokens(torch.tensor([token]))
        return str(text)

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None) -> list[Any]:
        """The text of every token of one text or one row of ids, in order; of several, a list for each.

        Joined, and without special tokens, they are the text: each token holds the space before it, and a character
        spread over several tokens is with the last of them. Tokens that begin inside a text keep their first space.
        Where words are all that a tokenizer knows, each is printed as it stands. Without a tokenizer `<7>` is token 7.
        `prepend_bos` as in `to_tokens`; nothing is padded here.
        """
        spelled = Spelling(prepend_bos, padding_side)
        given = self._told_apart(*reading_input.tokens_alone(input, None))
        found: list[list[str]] = []
        if given.kind == "texts":
            for text in given.texts:
                tokens = self._encode([text], None, spelled=spelled)[0][0].tolist()
                with asking(self.tokenizer):
                    pieces = token_text.of_text(self.tokenizer, text)
                    if pieces is not None and (more := len(tokens) - len(pieces)):  # a bos token put there, or left out
                        pieces = [self.tokenizer.bos_token, *pieces] if more > 0 else pieces[1:]
                    found.append(token_text.of_ids(self.tokenizer, tokens) if pieces is None else pieces)
        else:
            read = self._tokens_of(given, False, None, spelled=spelled)
            rows = [read.tokens] if read.tokens.shape[0] == 1 else read.tokens.split(1)
            for ids in (row[0].tolist() for row in rows):
                if self.tokenizer is None:
                    found.append([f"<{token}>" for token in ids])
                    continue
                with asking(self._need_tokenizer()):
                    found.append(token_text.of_ids(self.tokenizer, ids))
        return found[0] if given.single or (given.kind == "tokens" and len(found) == 1) else found

    def tokens_and_mask(
        self, input: Any, attention_mask: Any = None, chat: bool = False, *,
        spelled: Spelling = AS_THE_TOKENIZER_DOES,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Tokens `[batch, pos]` on the model's device, and their padding mask or None where nothing is padded.

        Takes anything that a Lens reads: a text or several; token ids as a tensor, an array or lists, where lists of
        different length are padded on the left; what a tokenizer returned; chat messages, or several conversations of
        them, through the chat template. With `chat` each text is a conversation of one message.
        """
        input, attention_mask = reading_input.tokens_alone(input, attention_mask)
        read = self.read(input, attention_mask, chat, spelled=spelled, to_run=True)
        return read.tokens, read.mask

    def read(
        self, input: Any, attention_mask: Any = None, chat: bool = False, *, truncate: int | None = None,
        goes_on: bool = False, spelled: Spelling = AS_THE_TOKENIZER_DOES, to_run: bool = False,
    ) -> Read:  # fmt: skip
        """An input with what it was; `goes_on`: the last words of a conversation are the assistant's, unfinished;
        `to_run`: the model reads all of it at once, so what is far beyond its context is refused without being read."""
        checked("to_tokens", "truncate", truncate, int | None)
        if truncate is not None and truncate < 1:
            raise InterpError(f"truncate should be at least 1, found {truncate}.")
        return self._tokens_of(self._told_apart(input, attention_mask), chat, truncate, goes_on, spelled, to_run)

    def rows(self, input: Any, attention_mask: Any = None, truncate: int | None = None) -> tuple[list[Tensor], bool]:
        """Each text or row of ids by itself as tokens `[1, pos]`, without padding, and whether only one was passed."""
        given = self._told_apart(*reading_input.tokens_alone(input, attention_mask))
        if given.kind != "tokens":
            texts = given.texts or [self._templated(one, False) for one in given.conversations]
            special = given.kind == "texts"
            return [self._encode([text], truncate, special, to_run=True)[0] for text in texts], given.single
        read = self._tokens_of(given, False, None)
        rows = reading_input.without_padding(read.tokens, read.mask)
        return [row[:, :truncate] for row in rows], given.single

    def continuation_rows(self, prompt: Any, continuation: Any) -> list[Tensor]:
        """Ids `[pos]` of each continuation of a prompt; see `interp.lens.token_text.continuing` for texts."""
        after = self._told_apart(*reading_input.tokens_alone(continuation, None))
        if after.kind == "conversations":
            raise InterpError("a continuation is a text or tokens, not chat messages; pass what the reply says.")
        if after.kind == "tokens":
            if after.tokens.numel() == 0:
                return [after.tokens.reshape(-1)]
            read = self._tokens_of(after, False, None)
            return [row[0] for row in reading_input.without_padding(read.tokens, read.mask)]
        known = self._told_apart(*reading_input.tokens_alone(prompt, None))
        before: list[Any] = list(known.texts) if len(known.texts) == len(after.texts) else [None] * len(after.texts)
        rows = []
        for first, text in zip(before, after.texts, strict=True):
            tokenizer, text = self._need_tokenizer(), reading_input.encodable(text)
            if len(text) >= LONG:  # or else it is tokenised twice for nothing
                self._ids(text, None, False, to_run=True)
            with asking(tokenizer):
                ids = token_text.continuing(tokenizer, first, text) if text else []
            rows.append(self._check_ids(torch.tensor(ids, dtype=torch.long, device=self.device)))
        return rows

    def plain_rows(self, input: Any) -> tuple[list[Tensor], bool]:
        """Ids `[pos]` of each text by itself, without special tokens, or of each row of ids; and whether it was
        text."""
        given = self._told_apart(*reading_input.tokens_alone(input, None))
        if given.kind == "conversations":
            raise InterpError("a decoder writes a text or tokens, not chat messages; pass what the reply says.")
        if given.kind == "texts":
            ids = [self._ids(reading_input.encodable(text), None, False, to_run=True) for text in given.texts]
            return [self._check_ids(torch.tensor(row, dtype=torch.long, device=self.device)) for row in ids], True
        read = self._tokens_of(given, False, None)
        return [row[0] for row in reading_input.without_padding(read.tokens, read.mask)], False

    def embeddings(self, arguments: dict[str, Any], attention_mask: Any) -> Read:
        """Embeddings `[batch, pos, d_model]` among the arguments of a call, checked, in the place of tokens."""
        given, width = arguments["inputs_embeds"], self.cfg.d_model
        with suppress(AttributeError, NotImplementedError):
            width = self.model.get_input_embeddings().weight.shape[-1]
        if not isinstance(given, Tensor) or given.ndim != 3 or given.shape[-1] != width or not given.numel():
            found = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InterpError(f"inputs_embeds should be a tensor [batch, pos, {width}], found {found}.")
        arguments["inputs_embeds"] = given = given.to(self.device)
        return Read(given, reading_input.as_mask(attention_mask, self.device), False, False, False)

    def read_arguments(
        self, input: Any, attention_mask: Any, arguments: dict[str, Any], spelled: Spelling, chat: bool = False, *,
        goes_on: bool = False,
    ) -> Read:  # fmt: skip
        """What a call reads: embeddings among its arguments, its input with images, or its input alone."""
        given_images = arguments.pop(seeing.IMAGES, None)
        if given_images is not None or (self.processor is not None and seeing.holds_images(input)):
            spelled.refuse_for("images")
            if attention_mask is not None or "inputs_embeds" in arguments:
                raise InterpError("images go with texts or chat messages; leave masks and embeddings out.")
            given = self._told_apart(input, None)
            return seeing.read_images(self, given, given_images, arguments, chat, goes_on)
        if "inputs_embeds" not in arguments:
            return self.read(input, attention_mask, chat, goes_on=goes_on, spelled=spelled, to_run=True)
        spelled.refuse_for("embeddings")
        return self.embeddings(arguments, attention_mask)

    def check_length(self, n_tokens: int) -> None:
        """Raise InterpError when a sequence is longer than the model's context."""
        if self.cfg.n_ctx and n_tokens > self.cfg.n_ctx:
            raise InterpError(
                f"{n_tokens} tokens exceed the context of {self.cfg.n_ctx} of {self.cfg.model_name}; shorten the text."
            )

    def check_mask(self, mask: Any, tokens: Tensor, seen: int) -> None:
        """Raise InterpError when a padding mask does not cover the tokens (those seen before included)."""
        if not isinstance(mask, Tensor):
            return
        batch, new = tokens.shape[:2]
        fits = mask.shape == (batch, seen + new)
        if mask.ndim == 4:
            fits = mask.shape[0] in (1, batch) and mask.shape[2] == new
        if not fits:
            raise InterpError(
                f"the attention mask is {list(mask.shape)}, but there are {tokens.shape[0]} sequences of "
                f"{seen + tokens.shape[1]} tokens; pass one entry for each token, cached ones included."
            )

    @property
    def readable_ids(self) -> int:
        """How many token ids the embedding has rows for, which need not be what the config says."""
        try:
            embedding = self.model.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            return self.cfg.d_vocab
        count = getattr(embedding, "num_embeddings", None)
        return count if isinstance(count, int) else self.cfg.d_vocab

    def _told_apart(self, input: Any, attention_mask: Any) -> Given:
        tokenizer = self.tokenizer
        named = [getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id")]
        pad = next((token for token in named if isinstance(token, int) and token < self.readable_ids), 0)
        return reading_input.told_apart(input, attention_mask, pad, self.pads_right)

    def _tokens_of(
        self, given: Given, chat: bool, truncate: int | None, goes_on: bool = False,
        spelled: Spelling = AS_THE_TOKENIZER_DOES, to_run: bool = False,
    ) -> Read:  # fmt: skip
        if given.kind == "tokens":
            spelled.refuse_for("tokens")
            if given.tokens.numel() == 0:
                raise InterpError("there are no tokens to read; pass at least one.")
            if chat:
                raise InterpError("chat=True puts a text through the chat template; pass a text instead of tokens.")
            tokens = self._check_ids(given.tokens[:, :truncate]).to(self.device)
            mask = given.mask.to(self.device) if isinstance(given.mask, Tensor) else given.mask
            if truncate is not None and isinstance(mask, Tensor):
                mask = mask[..., :truncate]
            return Read(tokens, mask, False, given.single, False)
        talks = given.conversations
        if chat and given.kind == "texts":
            talks = [[{"role": "user", "content": text}] for text in given.texts]
        if talks:
            spelled.refuse_for("chat messages")
            spelled = AS_THE_TOKENIZER_DOES
        texts = [self._templated(talk, goes_on) for talk in talks] if talks else given.texts
        tokens, mask = self._encode(texts, truncate, not talks, spelled, to_run)
        return Read(tokens, mask, True, given.single, bool(talks))

    def _check_ids(self, tokens: Tensor) -> Tensor:
        """The ids themselves. Raises InterpError for one that the embedding has no row for."""
        if tokens.numel() and (int(tokens.max()) >= self.readable_ids or int(tokens.min()) < 0):
            wrong = int(tokens.max()) if int(tokens.max()) >= self.readable_ids else int(tokens.min())
            named = "" if self.tokenizer is None or wrong < 0 else self._name_of(wrong)
            raise InterpError(f"token id {wrong}{named} is outside the vocabulary of {self.readable_ids}.")
        return tokens

    def _name_of(self, token: int) -> str:
        with suppress(InterpError), asking(self.tokenizer):
            name = self.tokenizer.convert_ids_to_tokens(token)
            return f", {name!r} of this tokenizer," if name else ""
        return ""

    def _encode(
        self, texts: list[str], truncate: int | None, special: bool = True, spelled: Spelling = AS_THE_TOKENIZER_DOES,
        to_run: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        tokenizer = self._need_tokenizer()
        texts = [reading_input.encodable(text) for text in texts]
        rows = [spelled.row(self._ids(text, truncate, special, to_run), tokenizer)[:truncate] for text in texts]
        if not rows or any(not row for row in rows):
            raise InterpError("the text has no tokens; pass some text.")
        for row in rows:
            self._check_ids(torch.tensor(row))
        if to_run and self.processor is not None:
            seeing.refuse_empty_places(self, rows)
        pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
        side = "right" if self.pads_right else "left"
        right = (spelled.padding_side or side) == "right"
        tokens, mask = reading_input.padded(rows, pad if pad < self.readable_ids else 0, right=right)
        return tokens.to(self.device), None if bool(mask.all()) else mask.to(self.device)

    def _ids(self, text: str, most: int | None, special: bool, to_run: bool) -> list[int]:
        """Ids of a text, or of its beginning where only the first `most` are kept; if the model is `to_run` on all of
        them, raises InterpError for a text that is longer than its context before the rest is read."""
        tokenizer = self._need_tokenizer()
        context = self.cfg.n_ctx if to_run and most is None else 0
        if not most and not context:
            return ids_of(tokenizer, text, special)
        ids = first_tokens(tokenizer, text, most or context + 1, special)
        if context and len(ids) > context + 1:
            raise InterpError(
                f"the text has more tokens than the context of {context} of {self.cfg.model_name}; shorten it."
            )
        return ids

    def _templated(self, talk: list[Any], goes_on: bool) -> str:
        return prompt_of(self._need_tokenizer(), talk, self.cfg.model_name, goes_on)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InterpError(
                "this Lens has no tokenizer; pass tokens instead of text, or give interp.load a tokenizer."
            )
        if not callable(self.tokenizer):
            raise InterpError(
                f"the tokenizer of this Lens is {type(self.tokenizer).__name__}, which reads no text; give interp.load "
                "one of transformers, as AutoTokenizer.from_pretrained makes it."
            )
        return self.tokenizer
