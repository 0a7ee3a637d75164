"""Chat templates: programs that come with a tokenizer, run in a process of their own.

A template is Jinja, and Jinja loops and multiplies: a few characters of it run for years or fill the memory. Jinja's
sandbox keeps it from everything else. So a conversation is put through its template where time and memory are bounded
and no file can be opened, and text comes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from interp.errors import InterpError
from interp.files.apart import NoAnswerError, answered, refused

SECONDS = 2
"""Of computing; real templates take some milliseconds."""
CHARACTERS, TIMES = 1_000_000, 4
"""Of the text that comes back, so many and so many times those of template and conversation."""


class TemplateError(InterpError):
    """A conversation that a chat template does not take, or a template that does not end.

    Examples:
        >>> lens.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        >>> lens.to_tokens([{"role": "user", "content": "w4"}])
        Traceback (most recent call last):
        ...
        interp.lens.templates.TemplateError: ...roles must alternate...
        >>> lens.tokenizer.chat_template = None
    """


def prompt_of(tokenizer: Any, talk: Sequence[Any], name: str, goes_on: bool, template: str | None = None) -> str:
    """A conversation as one text, up to where the assistant is to speak; or to go on, if `goes_on` and it has begun to.

    Raises InterpError where there is no template, and what `templated` raises.
    """
    if not (template or getattr(tokenizer, "chat_template", None)):
        raise InterpError(f"{name} has no chat template; pass plain text, without chat=True.")
    begun = talk[-1]["role"] == "assistant"
    how: dict[str, Any] = {"add_generation_prompt": not begun}
    if begun and goes_on:
        how = {"continue_final_message": True}
    return templated(tokenizer, talk, name, template, **how)


def templated(tokenizer: Any, talk: Sequence[Any], name: str, template: str | None = None, **how: Any) -> str:
    """A conversation as one text, by a chat template, or by the tokenizer's own.

    name: what errors call the model.
    how: of transformers' `apply_chat_template`. Raises TemplateError.
    """
    try:
        if not _is_plain(tokenizer):
            text: str = tokenizer.apply_chat_template(list(talk), chat_template=template, tokenize=False, **how)
            return text
        named = {"template": tokenizer.get_chat_template(template), "special": tokenizer.special_tokens_map}
        asked = json.dumps({**named, "talk": list(talk), "how": how}, default=_placeholder).encode()
        answer = answered(__name__, asked, SECONDS)
    except NoAnswerError as error:
        much = "takes longer than any does" if error.late else "needs more memory than any does"
        raise TemplateError(
            f"the chat template of {name} {much}, so it was stopped; pass plain text, or set "
            "lens.tokenizer.chat_template to one that ends."
        ) from None
    except Exception as error:  # the tokenizer's own program raises what it likes
        raise _not_taken(name, " ".join(str(error).split()) or type(error).__name__) from error
    if (why := refused(answer)) is not None:
        raise _not_taken(name, why)
    text = str(answer.about["text"])
    if len(text) > CHARACTERS + TIMES * len(asked):
        raise TemplateError(
            f"the chat template of {name} makes {len(text):,} characters of this conversation, more than any does; "
            "pass plain text, or set lens.tokenizer.chat_template to another."
        )
    return text


def _not_taken(name: str, why: str) -> TemplateError:
    return TemplateError(f"the chat template of {name} does not take this conversation: {why[:200]}")


def _is_plain(tokenizer: Any) -> bool:
    """Whether a template is all that a tokenizer's conversations go through; some have programs in its place."""
    from transformers import PreTrainedTokenizerBase

    own = getattr(type(tokenizer), "apply_chat_template", None)
    return own is PreTrainedTokenizerBase.apply_chat_template and "apply_chat_template" not in vars(tokenizer)


def _placeholder(value: Any) -> Any:
    """What a template sees of things that are no plain data, as transformers has it: their kind."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else f"<{type(value).__name__}>"


def example() -> bytes:
    """Practice, which reads what a template needs from disk."""
    import jinja2.debug  # noqa: F401  # which jinja imports when the first error is raised

    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    talk = [{"role": "user", "content": "text"}]
    return json.dumps({"template": template, "special": {}, "talk": talk, "how": {}}).encode()


def decode(content: bytearray) -> tuple[dict[str, str], Iterable[bytes]]:
    """Called in the other process: transformers' own way to a text, for a tokenizer that is a template alone."""
    from transformers import PreTrainedTokenizerBase

    asked = json.loads(content)
    template = asked["template"]
    tokenizer: Any = SimpleNamespace(
        chat_template=template, special_tokens_map=asked["special"], get_chat_template=lambda *_, **__: template
    )
    text = PreTrainedTokenizerBase.apply_chat_template(tokenizer, asked["talk"], tokenize=False, **asked["how"])
    return {"text": str(text)}, ()
