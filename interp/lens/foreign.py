"""What is asked of a tokenizer goes through here: it came with a model, and may break in any way.

A tokenizer is a small program of somebody else's: its file says how text is split, and some files crash the library
that reads them, at some texts only. That is one sentence about the tokenizer, not a traceback of the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interp.errors import InterpError
from interp.subjects.panics import panics_caught


class TokenizerError(InterpError):
    """A tokenizer that breaks on what it is asked, as one whose files are damaged.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> broken = Tokenizer(models.WordLevel({"a": 0}, unk_token="<unk>"))
        >>> interp.Lens(lens.model, PreTrainedTokenizerFast(tokenizer_object=broken)).to_tokens("b")
        Traceback (most recent call last):
        ...
        interp.lens.foreign.TokenizerError: ...Missing [UNK] token...
    """


@contextmanager
def asking(tokenizer: Any) -> Iterator[None]:
    """For a block that asks a tokenizer: whatever it raises is a TokenizerError, a panic of its library too."""
    try:
        with panics_caught():
            yield
    except InterpError:
        raise
    except Exception as error:  # Python's, Rust's, or those of a tokenizer that is its own program
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TokenizerError(
            f"the tokenizer {_named(tokenizer)} breaks on this: {reason[:200].rstrip('.')}; mend its files, or give "
            "interp.load another tokenizer."
        ) from error


def said_in(error: BaseException, *modules: str) -> bool:
    """Whether an exception was raised in one of these modules, by the beginnings of their names."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith(modules)


def ids_of(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """Ids of a text; `special`: with the special tokens that the tokenizer puts around one."""
    with asking(tokenizer):
        return list(tokenizer(text, add_special_tokens=special).input_ids)


def text_of(tokenizer: Any, ids: Any) -> str:
    """The text of a row of ids, without special tokens."""
    with asking(tokenizer):
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _named(tokenizer: Any) -> str:
    name = getattr(tokenizer, "name_or_path", None)
    kind = type(tokenizer).__name__
    return f"of {name} ({kind})" if isinstance(name, str) and name else kind
