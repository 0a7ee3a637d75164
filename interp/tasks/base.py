"""What a task is: settings, the items that it asks, and how an answer becomes numbers.

A new task is one new file in this folder: a frozen dataclass that derives from `Task` (or from `Asked`, where a model
writes an answer) with a class attribute `name`. `interp.evaluate` runs it item by item, with an intervention in force
or none, and keeps the numbers of every item: what is said of all of them is computed from those, in
`interp.tasks.summarising`, by the task's `metrics`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InterpError
from interp.settings.checking import Checked
from interp.tasks.looking import Picture
from interp.tasks.metrics import Metric

if TYPE_CHECKING:
    from interp.tasks.asking import Asking


@dataclass(frozen=True)
class Item:
    """One question, and what it takes to judge the answer. All texts may come from files and are untrusted."""

    id: str
    """The same in every run of the task with the same settings and seed: results are compared item by item."""
    cluster: str
    """What it shares with other items, which are then no independent evidence: a document, an image, a template."""
    prompt: str
    expected: tuple[str, ...]
    """What is right: one text, or several where a task takes several, as ten people's answers."""
    images: tuple[Picture, ...] = ()
    choices: tuple[str, ...] = ()
    """The answers to choose from, in the order of their letters; empty where nothing is to be chosen."""
    facets: Mapping[str, str] = field(default_factory=dict)
    """What a table may sort it by."""


@dataclass(frozen=True)
class Measured:
    """What came of one item."""

    scores: Mapping[str, float]
    """Every one of the task's `scores`."""
    answer: str = ""
    """What the model wrote, untrusted; empty where it wrote nothing."""


@dataclass(frozen=True, kw_only=True)
class Task(Checked, ABC):
    """A way to measure the quality of what a model puts out. Subclasses are frozen dataclasses with a `name`."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The heading of a table: what is asked, in a few words."""
    scores: ClassVar[Mapping[str, tuple[str, str]]]
    """Units and description of each number that an item gets."""
    metrics: ClassVar[Mapping[str, Metric]]
    """What is said of many items, each made of their scores; the first is the task's main one."""
    by: ClassVar[tuple[str, ...]] = ()
    """The facets by which a table sorts the items."""
    clusters: ClassVar[str] = "images"
    """What a cluster is, in the plural."""
    whole_clusters: ClassVar[bool] = False
    """Whether a part of a cluster says nothing, so that clusters are drawn whole."""

    @abstractmethod
    def items(self, seed: int) -> Sequence[Item]:
        """All items in a fixed order, the same for the same settings and seed.

        Raises InterpError where they are read from a folder that lacks something.
        """

    @abstractmethod
    def measure(self, asking: Asking, item: Item) -> Measured:
        """Ask a model, and judge what it says."""

    def settings(self) -> dict[str, Any]:
        """The fields, as plain values."""
        return dataclasses.asdict(self)

    def expect_positive(self, *names: str) -> None:
        """Raises InterpError where one of these settings is below 1."""
        for name in names:
            if (value := getattr(self, name)) < 1:
                raise InterpError(f"{self.name}: {name} should be at least 1, found {value}.")


@dataclass(frozen=True, kw_only=True)
class Asked(Task):
    """A task whose items a model answers in words, by greedy decoding.

    Args:
        ask: how a question is put; `{question}` stands for it.
        max_new_tokens: an answer ends after so many tokens.
        blind: every picture is replaced by a grey one of its size: what is right then was not seen.
    """

    ask: str = "{question}"
    max_new_tokens: int = 16
    blind: bool = False

    def __post_init__(self) -> None:
        self.expect_positive("max_new_tokens")
        if "{question}" not in self.ask:
            raise InterpError(f"{self.name}: ask should hold {{question}}, in whose place the question is put.")

    @abstractmethod
    def judge(self, item: Item, answer: str) -> dict[str, float]:
        """Every one of the task's `scores`."""

    def measure(self, asking: Asking, item: Item) -> Measured:
        prompt = self.ask.replace("{question}", item.prompt)
        answer = asking.continued(prompt, item.images, self.max_new_tokens, blind=self.blind)
        return Measured(self.judge(item, answer), answer)
