"""What a study is: settings, the parts it trains or measures, and what its numbers say about a paper's.

A new study is one new file in this folder: a frozen dataclass that derives from `Study`, with a class attribute `name`.
`interp icl NAME` finds it by that name. Subclasses write

- `measure(parts, progress) -> Dataset`: everything slow goes through `parts`, which keeps each finished part in the
  folder, so that a killed study continues where it was;
- `verdicts(ds)`: rows made by `near` and `between` of `interp.icl.studies.verdicts`, from the numbers in `ds` alone;
- `figures(ds)`: the paper's figure drawn from `ds`, with the paper's readings as marks;
- `choices()`: the settings on which a paper and its released code differ, and which one was used.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from interp.errors import InterpError
from interp.icl.studies._code import code_of
from interp.icl.studies.parts import StudyParts
from interp.icl.studies.verdicts import Verdict
from interp.settings.checking import Checked

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from interp.files.writing import Outputs

Progress = Callable[[float, str], None]
"""Told the fraction of the study that is done, 0 to 1, and what is being done now."""
Variant = Literal["paper", "released code", "both", "ours"]


def no_progress(fraction: float, what: str) -> None:
    """A `Progress` that nobody watches."""


def share(progress: Progress, place: int, of: int, what: str) -> Callable[[float], None]:
    """What to tell the fraction of one job, so that `progress` hears that of all: the job `place` of `of` alike."""
    return lambda done: progress((place + done) / of, what)


def _interrupted(parts: StudyParts) -> dict[str, str]:
    if not parts.continued:
        return {}
    return {"interrupted": f"{', '.join(sorted(parts.continued))}: timed only since their training last went on"}


@dataclass(frozen=True)
class Choice:
    """A setting that another reader of the paper might have chosen differently."""

    setting: str
    used: str
    variant: Variant
    """Whose setting `used` is; `ours` where neither paper nor code gives one."""
    instead: str = ""
    """What the other source says; empty where there is no other."""


@dataclass(frozen=True)
class Picture:
    """A figure of a report with its caption (one paragraph of plain text) and a name that is unique in the study."""

    name: str
    caption: str
    figure: go.Figure


@dataclass(frozen=True)
class Study(Checked, ABC):
    """A named, resumable experiment. Subclasses are frozen dataclasses; their fields are the settings of a run."""

    quick: bool = False
    """Shrinks the study to under a minute on two cores; claims that then cannot be judged are not judged."""

    name: ClassVar[str]
    title: ClassVar[str]
    """The heading of the report: what is claimed, in a few words."""
    paper: ClassVar[str]
    """The source: authors, title, venue and year."""
    description: ClassVar[str]
    """One paragraph: what is trained or loaded, and what is measured."""
    summary: ClassVar[str]
    """One line for `interp icl --list`."""
    quick_seeds: ClassVar[int | None] = None
    """The seeds of a quick run where `make` is given none; None: as many as otherwise."""

    def __post_init__(self) -> None:
        if (seeds := getattr(self, "seeds", 1)) < 1:
            raise InterpError(f"{self.name} is run from 1 seed or more, not {seeds}.")

    def run(self, folder: str | Path, progress: Progress = no_progress, outputs: Outputs | None = None) -> xr.Dataset:
        """Train or load, and measure; the result is also written to `folder/result.nc`.

        Finished parts are read from `folder/parts`. With `outputs` the result appears together with what else is in
        them. Raises InterpError where the folder holds a study with other settings or of other code, or a part that
        was changed.
        """
        from interp.results.provenance import provenance
        from interp.results.storage import save

        began = time.perf_counter()
        parts = StudyParts.claim(Path(folder), {"study": self.name, **self.settings()}, code_of(type(self)))
        ds = self.measure(parts, progress)
        progress(1.0, "done")
        ds.attrs = {
            "study": self.name,
            "title": self.title,
            "paper": self.paper,
            "settings": self.settings(),
            **ds.attrs,
            "seconds": {**parts.seconds, "this call": time.perf_counter() - began},
            **_interrupted(parts),
            "code": parts.code,
            **provenance(),
        }
        save(ds, Path(folder) / "result.nc", outputs)
        return ds

    def settings(self) -> dict[str, Any]:
        """The fields, as plain values; what decides whether a folder may be continued."""
        return dataclasses.asdict(self)

    @abstractmethod
    def measure(self, parts: StudyParts, progress: Progress) -> xr.Dataset:
        """All numbers of the study, with named dimensions and units. Standard errors are named `<variable>_se`."""

    @abstractmethod
    def verdicts(self, ds: xr.Dataset) -> list[Verdict]:
        """One row a claim, computed from the result."""

    @abstractmethod
    def figures(self, ds: xr.Dataset) -> list[Picture]:
        """The paper's figures, drawn from the result."""

    def choices(self) -> list[Choice]:
        """Settings on which paper and released code differ, or that are ours."""
        return []

    def notes(self, ds: xr.Dataset) -> list[str]:
        """Plain sentences that the tables do not say, computed from the result where they hold numbers."""
        return []
