"""How texts become tokens where a caller says so: TransformerLens' `prepend_bos` and `padding_side`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interp.errors import InterpError


@dataclass(frozen=True)
class Spelling:
    """What a caller says of the tokens of texts, beside what the tokenizer does by itself."""

    prepend_bos: bool | None = None
    """Whether the tokenizer's bos token is the first one; None: as the tokenizer does."""
    padding_side: str | None = None
    """Where shorter texts of a batch are padded, `left` or `right`; None: on the left."""

    def __post_init__(self) -> None:
        if not isinstance(self.prepend_bos, bool | None):
            raise InterpError(f"prepend_bos is True, False or None (as the tokenizer does), not {self.prepend_bos!r}.")
        if not isinstance(self.padding_side, str | None) or self.padding_side not in (None, "left", "right"):
            raise InterpError(f"padding_side is 'left' or 'right', not {self.padding_side!r}.")

    @classmethod
    def taken(cls, keywords: dict[str, Any]) -> Spelling:
        """What is said among the keywords of a call, which are taken out of them."""
        return cls(keywords.pop("prepend_bos", None), keywords.pop("padding_side", None))

    def row(self, ids: list[int], tokenizer: Any) -> list[int]:
        """The ids of a text, with or without the bos token before them."""
        bos: int | None = getattr(tokenizer, "bos_token_id", None)
        begun = bos is not None and ids[:1] == [bos]
        if self.prepend_bos is None or begun == self.prepend_bos:
            return ids
        if bos is None:
            raise InterpError("prepend_bos: this tokenizer has no bos token; leave prepend_bos out.")
        return ids[1:] if begun else [bos, *ids]

    def refuse_for(self, kind: str) -> None:
        """Refuse what would be ignored where no text is spelled, as of tokens; to prepend nothing is what happens."""
        if self.prepend_bos:
            raise InterpError(
                f"prepend_bos goes with plain texts: of {kind} the special tokens are kept as they are, none is put "
                "before them."
            )
        if self.padding_side == "right":
            raise InterpError(f"padding_side='right' goes with plain texts: {kind} are padded on the left.")


AS_THE_TOKENIZER_DOES = Spelling()
