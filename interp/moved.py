"""Import paths of before modules had rooms: `import interp.storage` gives `interp.results.storage`, the same module."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "interp.segments": "interp.cache.segments",
    "interp.stepping": "interp.cache.slots",
    "interp.attention": "interp.seam.attention",
    "interp.masks": "interp.seam.masks",
    "interp.rotation": "interp.seam.rotation",
    "interp.event": "interp.seam.event",
    "interp.points": "interp.seam.points",
    "interp.config": "interp.seam.config",
    "interp.bridge": "interp.lens.bridge",
    "interp.loading": "interp.lens.loading",
    "interp.anatomy": "interp.lens.anatomy",
    "interp.hooked": "interp.lens.strict_hooks",
    "interp.readout": "interp.lens.readout",
    "interp.text": "interp.lens.text",
    "interp.applying": "interp.lens.in_force",
    "interp.scoring": "interp.lens.scoring",
    "interp.running": "interp.runs.probing",
    "interp.generating": "interp.runs.generating",
    "interp.continuing": "interp.runs.side_by_side",
    "interp.patching": "interp.runs.patching",
    "interp.storage": "interp.results.storage",
    "interp.several": "interp.results.many_texts",
    "interp.comparing": "interp.results.comparing",
    "interp.naming": "interp.results.naming",
    "interp.explorer": "interp.cli.explorer",
    "interp.icl.studies.command": "interp.cli.icl",
    "interp.icl.algorithms": "interp.icl.learners.algorithms",
    "interp.icl.optimal": "interp.icl.learners.optimal",
    "interp.icl.gd_losses": "interp.icl.learners.gd_losses",
    "interp.icl.alignment": "interp.icl.measures.alignment",
    "interp.icl.similarity": "interp.icl.measures.similarity",
    "interp.icl.copying": "interp.icl.measures.copying",
    "interp.icl.rollout": "interp.icl.measures.rollout",
    "interp.icl.trajectory": "interp.icl.measures.trajectory",
    "interp.icl.sine_model": "interp.icl.models.sine_model",
    "interp.icl.copying_model": "interp.icl.models.copying_model",
    "interp.icl.construction": "interp.icl.models.construction",
    "interp.icl.extraction": "interp.icl.models.extraction",
    "interp.icl.training": "interp.icl.models.training",
    "interp.subjects.attention_regressor": "interp.icl.models.attention_regressor",
    "interp.icl.regression": "interp.icl.tasks.regression",
    "interp.icl.function_classes": "interp.icl.tasks.function_classes",
    "interp.icl.shifts": "interp.icl.tasks.shifts",
    "interp.icl.covariance": "interp.icl.tasks.covariance",
    "interp.icl.softmax_regression": "interp.icl.tasks.softmax_regression",
    "interp.interventions.knock_out": "interp.interventions.edits.knock_out",
    "interp.interventions.sink_removal": "interp.interventions.edits.sink_removal",
    "interp.interventions.think": "interp.interventions.policies.think",
    "interp.interventions.snapkv": "interp.interventions.policies.snapkv",
    "interp.interventions.h2o": "interp.interventions.policies.h2o",
    "interp.interventions.d2o": "interp.interventions.policies.d2o",
    "interp.interventions.recall": "interp.interventions.policies.recall",
    "interp.interventions.streaming_llm": "interp.interventions.policies.streaming_llm",
    "interp.interventions.knorm": "interp.interventions.policies.knorm",
    "interp.interventions.random_tokens": "interp.interventions.policies.random_tokens",
    "interp.interventions.pyramidkv": "interp.interventions.policies.pyramidkv",
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, when no file has the name; so it costs nothing and hides nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module was executed under its own name; it gets back the spec of that, which the import replaced."""
        name = module.__name__
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
        assert sys.modules[name] is module


def know_moved_modules() -> None:
    """Let Python find modules by where they were."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
