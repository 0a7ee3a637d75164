"""Small classification tasks for in-context learning, built from what ships with Python and with this project.

`label_tasks()` lists them. Sentiment, language and kind come from `label_words.toml`, written for this project; help
topics are sentences of `pydoc_data.topics`, Python names are the interpreter's own keywords and built-in functions,
parity is arithmetic. A task asks for one label word after a text; `task.draw(tokenizer, ...)` turns it into the tokens
of demonstrations, queries and held-out examples. Nothing is downloaded.
"""

from __future__ import annotations

import builtins
import keyword
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.discovery import unknown
from interp.errors import InterpError
from interp.icl.language._prompts import start_tokens
from interp.lens.foreign import ids_of

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Example:
    """Tokens of one filled-in template, up to where its label begins, and the one token of that label."""

    prompt: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class LabelPrompts:
    """One draw from a task, in tokens. Demonstrations, queries and held-out examples share no text."""

    task: str
    start: tuple[int, ...]
    """Special tokens that the tokenizer puts before any text; often none."""
    separator: tuple[int, ...]
    demos: tuple[Example, ...]
    queries: tuple[Example, ...]
    held_out: tuple[Example, ...]
    label_tokens: tuple[int, ...]
    """What a query may be answered with; demonstrations of a wrong task have other labels."""

    def with_shuffled_labels(self, seed: int) -> LabelPrompts:
        """The same demonstrations with their labels exchanged at random; never all back in place if it can be helped.

        How often each label occurs stays as it was, so only the map from text to label is lost.
        """
        rng, labels = np.random.default_rng(seed), [demo.label for demo in self.demos]
        shuffled = labels
        while shuffled == labels and len(set(labels)) > 1:
            shuffled = [labels[i] for i in rng.permutation(len(labels))]
        demos = tuple(Example(demo.prompt, label) for demo, label in zip(self.demos, shuffled, strict=True))
        return replace(self, demos=demos)

    def with_demos_of(self, other: LabelPrompts) -> LabelPrompts:
        """These queries after the demonstrations of another task.

        Raises InterpError where the two have different numbers of demonstrations or share a label word.
        """
        if len(other.demos) != len(self.demos):
            raise InterpError(
                f"{other.task} comes with {len(other.demos)} demonstrations and {self.task} with {len(self.demos)}; "
                "draw as many of both."
            )
        if set(other.label_tokens) & set(self.label_tokens):
            raise InterpError(
                f"{other.task} and {self.task} share a label word, so neither is a wrong task for the other."
            )
        return replace(self, demos=other.demos)

    def in_order(self, order: Sequence[int]) -> LabelPrompts:
        """The demonstrations in another order, a permutation of `range(len(demos))`."""
        if sorted(order) != list(range(len(self.demos))):
            raise InterpError(f"an order of {len(self.demos)} demonstrations names each once; found {list(order)}.")
        return replace(self, demos=tuple(self.demos[i] for i in order))


@dataclass(frozen=True)
class LabelTask:
    """Texts with one of a few labels, and how they are asked for.

    `template` holds `{text}` once and ends where the label begins; the label follows after a space. `examples` are
    pairs of a text and the number of its label. Raises InterpError for a template or examples that are not like that,
    and for fewer than two labels: there would be nothing to tell apart, and nothing to shuffle.
    """

    name: str
    template: str
    labels: tuple[str, ...]
    examples: tuple[tuple[str, int], ...]
    source: str

    def __post_init__(self) -> None:
        if self.template.count("{text}") != 1:
            raise InterpError(
                f"{self.name}: the template {self.template!r} does not hold {{text}} once; put it where the text goes."
            )
        if len(self.labels) < 2:
            raise InterpError(f"{self.name} has {len(self.labels)} labels; a task takes two at least.")
        if stray := {label for _, label in self.examples} - set(range(len(self.labels))):
            raise InterpError(
                f"{self.name} has {len(self.labels)} labels and an example numbered {min(stray)}; count them from 0."
            )

    def draw(
        self, tokenizer: Any, demos: int = 16, queries: int = 24, held_out: int = 24, seed: int = 0
    ) -> LabelPrompts:
        """Different texts for demonstrations, queries and held-out examples, each set as balanced as its size allows.

        Raises InterpError without a tokenizer, for a label that is not one token of it (or not one of its own), and for
        more examples than the task has.
        """
        if tokenizer is None:
            raise InterpError(f"{self.name} is a task of texts and needs a tokenizer; load the model with its own.")
        if demos < 1 or queries < 1 or held_out < 0:
            raise InterpError(f"draw: ask for 1 demonstration and 1 query at least; found {demos} and {queries}.")
        label_tokens = self.label_tokens(tokenizer)
        rng = np.random.default_rng(seed)
        left = [[text for text, label in self.examples if label == i] for i in range(len(self.labels))]
        for texts in left:
            rng.shuffle(texts)

        def take(n: int) -> tuple[Example, ...]:
            first = int(rng.integers(len(self.labels)))  # which labels get one more where n does not divide evenly
            numbers = [(first + i) % len(self.labels) for i in range(n)]
            rng.shuffle(numbers)
            if short := [label for i, label in enumerate(self.labels) if numbers.count(i) > len(left[i])]:
                raise InterpError(
                    f"{self.name} has {len(self.examples)} texts, too few labelled {short[0]!r} for a balanced draw of "
                    f"{demos + queries + held_out}; ask for fewer demonstrations, queries or held-out examples."
                )
            return tuple(self._example(tokenizer, left[i].pop(), label_tokens[i]) for i in numbers)

        return LabelPrompts(
            task=self.name,
            start=start_tokens(tokenizer),
            separator=_ids(tokenizer, SEPARATOR),
            demos=take(demos),
            queries=take(queries),
            held_out=take(held_out),
            label_tokens=label_tokens,
        )

    def label_tokens(self, tokenizer: Any) -> tuple[int, ...]:
        """One token id for each label. Raises InterpError where a label is several tokens, unknown, or not unique."""
        found = {label: _ids(tokenizer, f" {label}") for label in self.labels}
        for label, ids in found.items():
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                raise InterpError(
                    f"the label {label!r} of {self.name} is {len(ids)} tokens of this tokenizer or unknown to it; "
                    "choose label words that are one token each."
                )
        tokens = tuple(ids[0] for ids in found.values())
        if len(set(tokens)) != len(self.labels):
            raise InterpError(f"labels of {self.name} are the same token to this tokenizer; choose other label words.")
        return tokens

    def _example(self, tokenizer: Any, text: str, label: int) -> Example:
        return Example(_ids(tokenizer, self.template.format(text=text)), label)


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(ids_of(tokenizer, text))


def label_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with the project."""
    return tuple(_MAKERS)


def label_task(name: str) -> LabelTask:
    """A task by name. Raises UnknownNameError for a name that is none."""
    if name not in _MAKERS:
        raise unknown("label task", name, _MAKERS)
    return _MAKERS[name]()


def wrong_task_for(task: LabelTask) -> LabelTask:
    """The next task in the list with other label words: what `task` is taught wrongly with."""
    names = list(_MAKERS)
    start = names.index(task.name) + 1 if task.name in names else 0
    others = (label_task(name) for name in [*names[start:], *names[:start]] if name != task.name)
    return next(other for other in others if not set(other.labels) & set(task.labels))


def _own_words(table: str) -> dict[str, list[str]]:
    data = tomllib.loads((Path(__file__).with_name("label_words.toml")).read_text(encoding="utf-8"))
    return {label: text.strip().splitlines() for label, text in data[table].items()}


def _numbered(texts: dict[str, list[str]]) -> tuple[tuple[str, int], ...]:
    return tuple((text, i) for i, listed in enumerate(texts.values()) for text in listed)


def _sentiment() -> LabelTask:
    texts = _own_words("sentiment")
    return LabelTask(
        "sentiment", "Review: {text}\nSentiment:", tuple(texts), _numbered(texts), "sentences written for this project"
    )


def _language() -> LabelTask:
    words = {label: " ".join(lines).split() for label, lines in _own_words("language").items()}
    return LabelTask(
        "language", "Word: {text}\nLanguage:", tuple(words), _numbered(words), "words listed for this project"
    )


def _kind() -> LabelTask:
    words = {label: " ".join(lines).split() for label, lines in _own_words("kind").items()}
    return LabelTask("kind", "Thing: {text}\nKind:", tuple(words), _numbered(words), "words listed for this project")


TOPICS = {"debug": "debugger", "string": "string-methods", "class": "specialnames"}


def _help_topics() -> LabelTask:
    from pydoc_data.topics import topics

    sentences = {label: _sentences(topics[topic]) for label, topic in TOPICS.items()}
    source = f"sentences of pydoc_data.topics: {', '.join(TOPICS.values())}"
    return LabelTask("help_topics", "Sentence: {text}\nTopic:", tuple(sentences), _numbered(sentences), source)


def _sentences(topic: str) -> list[str]:
    """Plain sentences of 6 to 16 words, each once: no code, no tables."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in topic.split("\n\n"))
    sentences = (s for paragraph in paragraphs for s in re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph))
    prose = re.compile(r"[A-Z][A-Za-z ,;'*()_\"-]+\.")
    return list(dict.fromkeys(s for s in sentences if prose.fullmatch(s) and 6 <= len(s.split()) <= 16))


def _python_names() -> LabelTask:
    own = {name for name, value in vars(builtins).items() if getattr(value, "__module__", "") == "builtins"}
    functions = sorted(name for name in own if name.islower() and not name.startswith("_"))  # no site's, no IPython's
    names = {"keyword": list(keyword.kwlist), "function": functions}
    source = "keyword.kwlist and the lower-case names of builtins"
    return LabelTask("python_names", "Name: {text}\nRole:", tuple(names), _numbered(names), source)


def _parity() -> LabelTask:
    numbers = {"even": [str(n) for n in range(10, 100, 2)], "odd": [str(n) for n in range(11, 100, 2)]}
    return LabelTask("parity", "Number: {text}\nParity:", tuple(numbers), _numbered(numbers), "numbers from 10 to 99")


_MAKERS: dict[str, Callable[[], LabelTask]] = {
    "sentiment": _sentiment,
    "language": _language,
    "kind": _kind,
    "help_topics": _help_topics,
    "python_names": _python_names,
    "parity": _parity,
}
