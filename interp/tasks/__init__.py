"""How the quality of what a model puts out is measured. One file a task: every `Task` in a module of this folder is
found by its `name`.

    result = interp.evaluate(lens, "pope:strategy=adversarial", interp.VAR(channels=507))
    interp.tasks.summary(result)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.discovery import fetching, homes
from interp.tasks.base import Asked, Item, Measured, Task
from interp.tasks.catalogue import available, made

if TYPE_CHECKING:
    from interp.tasks.summarising import findings, summary

__all__ = ["Asked", "Item", "Measured", "Task", "available", "findings", "made", "summary"]

_WHERE = {"summary": "interp.tasks.summarising", "findings": "interp.tasks.summarising"}


def __getattr__(name: str) -> Any:
    return fetching(__name__, _WHERE | (homes(__name__) if name[:1].isupper() else {}))(name)


if TYPE_CHECKING:  # for editors; written by python -m docs.write_names
    from interp.tasks.chair import Chair as Chair
    from interp.tasks.counting import Counting as Counting
    from interp.tasks.cv_bench import CvBench as CvBench
    from interp.tasks.gqa import Gqa as Gqa
    from interp.tasks.greedy_agreement import GreedyAgreement as GreedyAgreement
    from interp.tasks.mmvp import Mmvp as Mmvp
    from interp.tasks.multiple_choice import MultipleChoice as MultipleChoice
    from interp.tasks.pope import Pope as Pope
    from interp.tasks.spatial import Spatial as Spatial
    from interp.tasks.vqav2 import Vqav2 as Vqav2
    from interp.tasks.what_is_at import WhatIsAt as WhatIsAt
    from interp.tasks.windowed_perplexity import WindowedPerplexity as WindowedPerplexity
