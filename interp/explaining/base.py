"""What a question is: parameters, and how its answer is computed from the runs of one case.

A new question is one new file in this folder: a frozen dataclass that derives from `Question`. `interp.explain` finds
it by its `name` and hands it a `Case`, which runs the model with the full cache and under the policy when first asked
to, and only once for all questions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

from interp.errors import InterpError
from interp.interventions.base import CachePolicy, Intervention, parts
from interp.settings.checking import Checked

if TYPE_CHECKING:
    import xarray as xr

    from interp.explaining.case import Case


class NothingToSay(InterpError):
    """A question that may be asked about such a policy, but has no answer for what it did in this run."""


class Question(Checked, ABC):
    """A named question about an intervention. Subclasses are frozen dataclasses with a class attribute `name`."""

    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ("tokens", "channels")
    """The stages of cache policies that it can be asked about."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Findings of something else than an answer end in a sentence, for every question."""
        super().__init_subclass__(**kwargs)
        if "findings" in vars(cls):
            cls.findings = _of_an_answer(cls.findings)  # type: ignore[assignment, method-assign]  # no method may vary

    def applies(self, intervention: Intervention) -> bool:
        """Whether there is anything to ask about this intervention."""
        return any(isinstance(m, CachePolicy) and m.stage in self.stages for m in parts(intervention))

    @abstractmethod
    def ask(self, case: Case) -> xr.Dataset:
        """The answer, with named dimensions and units. Raises NothingToSay where this run has none."""

    def findings(self, result: xr.Dataset) -> list[str]:
        """Plain-text sentences computed from the answer."""
        return []


def _of_an_answer(findings: Callable[[Any, xr.Dataset], list[str]]) -> Callable[[Any, xr.Dataset], list[str]]:
    @wraps(findings)
    def of_an_answer(question: Any, result: xr.Dataset) -> list[str]:
        from interp.results.reading import read_off

        with read_off(f"the findings of {question.name}"):
            return findings(question, result)

    return of_an_answer
