"""In-context learning of real language models: how much of it there is, which heads could carry it, what demonstrations
do exactly, and whether training on them does the same.

    import interp

    lens = interp.load("demo")
    scores = interp.icl.language.head_scores(lens)
    interp.icl.language.head_findings(scores)

Functions take a Lens from `interp.load` and return datasets. Names are fetched on first use.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.icl.language.fine_tuning import choose_learning_rate, fine_tuned
    from interp.icl.language.heads import (
        copying,
        duplicate_token,
        head_findings,
        head_scores,
        induction_scores,
        prefix_matching,
        previous_token,
    )
    from interp.icl.language.icl_score import icl_score
    from interp.icl.language.identities import head_split, implicit_mlp_update
    from interp.icl.language.label_tasks import LabelTask, label_task, label_tasks
    from interp.icl.language.order import order_sensitivity
    from interp.icl.language.order_of_runs import order_sensitivity_of_runs
    from interp.icl.language.similarity import (
        kendall,
        overlap_cosine,
        rec2ftp,
        simam,
        simaou,
        token_overlap,
        top_overlap,
    )
    from interp.icl.language.three_runs import three_runs

_WHERE = {
    name: f"interp.icl.language.{module}"
    for module, names in {
        "fine_tuning": "choose_learning_rate fine_tuned",
        "heads": "copying duplicate_token head_findings head_scores induction_scores prefix_matching previous_token",
        "icl_score": "icl_score",
        "identities": "head_split implicit_mlp_update",
        "label_tasks": "LabelTask label_task label_tasks",
        "order": "order_sensitivity",
        "order_of_runs": "order_sensitivity_of_runs",
        "similarity": "kendall overlap_cosine rec2ftp simam simaou token_overlap top_overlap",
        "three_runs": "three_runs",
    }.items()
    for name in names.split()
}

__all__ = [
    "LabelTask",
    "choose_learning_rate",
    "copying",
    "duplicate_token",
    "fine_tuned",
    "head_findings",
    "head_scores",
    "head_split",
    "icl_score",
    "implicit_mlp_update",
    "induction_scores",
    "kendall",
    "label_task",
    "label_tasks",
    "order_sensitivity",
    "order_sensitivity_of_runs",
    "overlap_cosine",
    "prefix_matching",
    "previous_token",
    "rec2ftp",
    "simam",
    "simaou",
    "three_runs",
    "token_overlap",
    "top_overlap",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'interp.icl.language' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


class _LanguageModule(ModuleType):
    """Keeps names functions that are also the names of their modules, to which importing would rebind them."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in _WHERE:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _LanguageModule
