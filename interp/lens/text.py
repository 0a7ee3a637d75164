"""Text and tokens of a Lens, with TransformerLens' method names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InterpError
from interp.seam.config import LensConfig

Tensor = torch.Tensor


class TextMixin:
    """Turns text into tokens and back with the tokenizer's own defaults (special tokens included)."""

    tokenizer: Any
    model: Any
    if TYPE_CHECKING:

        @property
        def cfg(self) -> LensConfig: ...

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def to_tokens(self, input: str | list[str], truncate: int | None = None) -> Tensor:
        """Tokens `[batch, pos]` int64 of texts, padded on the left; `truncate` keeps the first so many of each."""
        return self._encode(input, truncate)[0]

    def to_string(self, tokens: Tensor) -> str | list[str]:
        """The text of tokens `[pos]` or `[batch, pos]`."""
        tokenizer = self._need_tokenizer()
        text: str | list[str] = tokenizer.decode(tokens) if tokens.ndim == 1 else tokenizer.batch_decode(tokens)
        return text

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text alone, without the special tokens that the tokenizer puts around one."""
        return list(self._need_tokenizer()(text, add_special_tokens=False).input_ids)

    def to_str_tokens(self, input: str | Tensor) -> list[str]:
        """The text of every token of one text, in order."""
        tokens = self.to_tokens(input)[0] if isinstance(input, str) else input.reshape(-1)
        if self.tokenizer is None:
            return [f"<{int(t)}>" for t in tokens]
        return [self.tokenizer.decode([t], clean_up_tokenization_spaces=False) for t in tokens.tolist()]

    def tokens_and_mask(
        self, input: Any, attention_mask: Any = None, chat: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens `[batch, pos]` on the model's device, and their padding mask or None where nothing is padded."""
        if isinstance(input, torch.Tensor):
            if input.is_floating_point() or input.ndim not in (1, 2):
                raise InterpError(
                    f"tokens are integers of shape [batch, pos], not {input.dtype} of shape {tuple(input.shape)}."
                )
            if input.numel() == 0:
                raise InterpError("there are no tokens to read; pass at least one.")
            if int(input.max()) >= self.cfg.d_vocab or int(input.min()) < 0:
                raise InterpError(
                    f"token id {int(input.max() if input.max() >= self.cfg.d_vocab else input.min())} is outside the "
                    f"vocabulary of {self.cfg.d_vocab}."
                )
            if chat:
                raise InterpError("chat=True puts a text through the chat template; pass a text instead of tokens.")
            mask = None if attention_mask is None else torch.as_tensor(attention_mask, device=self.device)
            return torch.atleast_2d(input).to(self.device), mask
        if attention_mask is not None:
            raise InterpError("an attention mask goes with tokens; texts get their own when they are padded.")
        if chat:
            input = self._chat(input)
        return self._encode(input, None, special=not chat)

    def check_length(self, n_tokens: int) -> None:
        """Raise InterpError when a sequence is longer than the model's context."""
        if self.cfg.n_ctx and n_tokens > self.cfg.n_ctx:
            raise InterpError(
                f"{n_tokens} tokens exceed the context of {self.cfg.n_ctx} of {self.cfg.model_name}; shorten the text."
            )

    def check_mask(self, mask: Tensor | None, tokens: Tensor, seen: int) -> None:
        """Raise InterpError when a padding mask does not cover the tokens (those seen before included)."""
        if mask is not None and mask.ndim == 2 and mask.shape != (tokens.shape[0], seen + tokens.shape[1]):
            raise InterpError(
                f"the attention mask is {list(mask.shape)}, but there are {tokens.shape[0]} sequences of "
                f"{seen + tokens.shape[1]} tokens; pass one entry for each token, cached ones included."
            )

    def _encode(
        self, input: str | list[str], truncate: int | None, special: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        tokenizer = self._need_tokenizer()
        texts = [input] if isinstance(input, str) else list(input)
        rows = [tokenizer(text, add_special_tokens=special).input_ids[:truncate] for text in texts]
        if not rows or any(not row for row in rows):
            raise InterpError("the text has no tokens; pass some text.")
        width = max(map(len, rows))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
        tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        return tokens.to(self.device), None if bool(mask.all()) else mask.to(self.device)

    def _chat(self, input: str | list[str]) -> list[str]:
        tokenizer = self._need_tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise InterpError(f"{self.cfg.model_name} has no chat template; call generate without chat=True.")
        texts = [input] if isinstance(input, str) else input
        turns = ([{"role": "user", "content": text}] for text in texts)
        return [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InterpError(
                "this Lens has no tokenizer; pass tokens instead of text, or give interp.load a tokenizer."
            )
        return self.tokenizer
