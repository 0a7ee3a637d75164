"""Small methods that a TransformerLens user types, and a sentence for those that a Lens does not have."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from interp.errors import InterpError, UnknownAttributeError
from interp.lens.habits import MEMBERS
from interp.lens.scoring import next_token_loss
from interp.lens.text import TextMixin

with warnings.catch_warnings():  # the import adds filters that would hide other libraries' warnings from the user
    from transformer_lens.FactoredMatrix import FactoredMatrix

Tensor = torch.Tensor


class FamiliarMixin(TextMixin):
    """What is computed in a few lines of what a Lens has."""

    if TYPE_CHECKING:

        @property
        def W_Q(self) -> Tensor: ...
        @property
        def W_K(self) -> Tensor: ...
        @property
        def W_V(self) -> Tensor: ...
        @property
        def W_O(self) -> Tensor: ...

    else:  # for a type checker no name is there that is not written down

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name in MEMBERS:
                    raise UnknownAttributeError(f"a Lens has no {name}: {MEMBERS[name]}.") from None
                raise

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q @ W_K.T` of every head, `[layer, head, d_model, d_model]`, with the keys that its queries meet."""
        return FactoredMatrix(self.W_Q, self._for_each_head(self.W_K).mT)

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V @ W_O` of every head, `[layer, head, d_model, d_model]`, with the values that it reads."""
        return FactoredMatrix(self._for_each_head(self.W_V), self.W_O)

    def _for_each_head(self, weight: Tensor) -> Tensor:
        return weight.repeat_interleave(self.cfg.n_heads // weight.shape[1], 1)

    @property
    def all_head_labels(self) -> list[str]:
        """`L0H0`, `L0H1`, ...: names of all heads, in the order of `cache.stack_head_results()`."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    @property
    def attn_head_labels(self) -> list[str]:
        """The same of the layers that have attention."""
        return [f"L{layer}H{head}" for layer in self.cfg.attention_layers for head in range(self.cfg.n_heads)]

    def loss_fn(
        self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Tensor:
        """Mean next-token loss (nats) of logits `[batch, pos, d_vocab]`; with `per_token` `[batch, pos - 1]`, NaN at
        padding."""
        return next_token_loss(logits, tokens, attention_mask, per_token=per_token)

    def get_token_position(
        self, single_token: str | int, input: Any, mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None, padding_side: str | None = None,
    ) -> int:  # fmt: skip
        """Where a token stands in one text, or in one row of ids: the first place, or the last.

        Raises InterpError where it does not occur, or where a text is passed that is not one token.
        """
        if mode not in ("first", "last"):
            raise InterpError(f"mode is 'first' or 'last', not {mode!r}.")
        row = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
        if row.shape[0] > 1:
            raise InterpError(f"get_token_position looks into one text, and these are {row.shape[0]}; pass one.")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        places = (row[0] == token).nonzero().flatten().tolist()
        if not places:
            raise InterpError(f"token {single_token!r} does not occur in this text; print to_str_tokens of it.")
        return int(places[0 if mode == "first" else -1])
