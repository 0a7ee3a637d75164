"""See what attention does, change it while the model runs, show why.

    import interp

    lens = interp.load("demo")
    results = interp.probe(lens, "Some text ...", ["channel_imbalance", "text_sinks"])
    interp.figures.channel_imbalance(results["channel_imbalance"])

Importing this package imports neither torch nor transformers: each name below is fetched on first use. Every class that
`interp.interventions.available()` or `interp.probes.available()` lists is a name of this package too: `interp.ThinK`,
`interp.SnapKV`, `interp.TextSinks`, ...
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from interp.discovery import fetching, homes
from interp.moved import know_moved_modules

if TYPE_CHECKING:
    from interp import explaining as explaining
    from interp import figures, icl, interventions, report
    from interp import probes as probes
    from interp import subjects as subjects
    from interp import tasks as tasks
    from interp.errors import InterpError, UnknownNameError, UnsupportedModelError
    from interp.explaining import explain
    from interp.lens.lens import Lens
    from interp.lens.loading import load
    from interp.results import storage as storage
    from interp.results.before_after import before_after
    from interp.results.comparing import compare
    from interp.results.image_tokens import image_tokens
    from interp.runs import patching as patching
    from interp.runs.patching import patch
    from interp.runs.probing import probe
    from interp.runs.side_by_side import side_by_side
    from interp.runs.sink_channels import sink_channels
    from interp.runs.sink_kind import sink_kind
    from interp.runs.sink_threshold import sink_threshold
    from interp.tasks.evaluating import evaluate

__version__ = "0.1.0"

know_moved_modules()

_MODULES = {
    "patching": "interp.runs.patching",
    "storage": "interp.results.storage",
    **{
        name: f"interp.{name}"
        for name in ("explaining", "figures", "icl", "interventions", "lens", "probes", "report", "subjects", "tasks")
    },
}
_WHERE = {
    "load": "interp.lens.loading",
    "probe": "interp.runs.probing",
    "patch": "interp.runs.patching",
    "before_after": "interp.results.before_after",
    "image_tokens": "interp.results.image_tokens",
    "compare": "interp.results.comparing",
    "explain": "interp.explaining",
    "side_by_side": "interp.runs.side_by_side",
    "sink_channels": "interp.runs.sink_channels",
    "sink_kind": "interp.runs.sink_kind",
    "sink_threshold": "interp.runs.sink_threshold",
    "evaluate": "interp.tasks.evaluating",
    "load_cache": "interp.lens.cache_files",
    "save_cache": "interp.lens.cache_files",
    "Lens": "interp.lens.lens",
    "InterpError": "interp.errors",
    "UnknownNameError": "interp.errors",
    "UnsupportedModelError": "interp.errors",
}

__all__ = [
    "InterpError",
    "Lens",
    "UnknownNameError",
    "UnsupportedModelError",
    "before_after",
    "compare",
    "evaluate",
    "explain",
    "figures",
    "icl",
    "image_tokens",
    "interventions",
    "load",
    "load_cache",
    "patch",
    "probe",
    "report",
    "save_cache",
    "side_by_side",
    "sink_channels",
    "sink_kind",
    "sink_threshold",
    "tasks",
]


_fetch = fetching(__name__, _WHERE, _MODULES)


def __getattr__(name: str) -> Any:
    return fetching(__name__, _classes() | _WHERE, _MODULES)(name) if name[:1].isupper() else _fetch(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_MODULES, *_classes()])


@functools.cache
def _classes() -> dict[str, str]:
    """Interventions and probes by the names of their classes, each with its module."""
    packages = ("interp.interventions.policies", "interp.interventions.edits", "interp.probes")
    return {cls: home for package in packages for cls, home in homes(package).items()}


if TYPE_CHECKING:  # for editors; written by python -m docs.write_names
    from interp.interventions.edits.attention_bias import AttentionBias as AttentionBias
    from interp.interventions.edits.group_knock_out import GroupKnockOut as GroupKnockOut
    from interp.interventions.edits.knock_out import KnockOut as KnockOut
    from interp.interventions.edits.sink_removal import SinkRemoval as SinkRemoval
    from interp.interventions.edits.temperature import Temperature as Temperature
    from interp.interventions.edits.var import VAR as VAR
    from interp.interventions.policies.attention_matching import AttentionMatching as AttentionMatching
    from interp.interventions.policies.d2o import D2O as D2O
    from interp.interventions.policies.expected_attention import ExpectedAttention as ExpectedAttention
    from interp.interventions.policies.h2o import H2O as H2O
    from interp.interventions.policies.h2o import H2OPrefill as H2OPrefill
    from interp.interventions.policies.h2o import H2OWindow as H2OWindow
    from interp.interventions.policies.knorm import Knorm as Knorm
    from interp.interventions.policies.pyramidkv import PyramidKV as PyramidKV
    from interp.interventions.policies.random_tokens import RandomTokens as RandomTokens
    from interp.interventions.policies.recall import Recall as Recall
    from interp.interventions.policies.snapkv import SnapKV as SnapKV
    from interp.interventions.policies.streaming_llm import StreamingLLM as StreamingLLM
    from interp.interventions.policies.think import ThinK as ThinK
    from interp.interventions.policies.tova import TOVA as TOVA
    from interp.probes.attention_rank import AttentionRank as AttentionRank
    from interp.probes.channel_imbalance import ChannelImbalance as ChannelImbalance
    from interp.probes.icl_gd import IclGd as IclGd
    from interp.probes.image_attention import ImageAttention as ImageAttention
    from interp.probes.image_logit_lens import ImageLogitLens as ImageLogitLens
    from interp.probes.logit_lens import LogitLens as LogitLens
    from interp.probes.text_sinks import TextSinks as TextSinks
    from interp.probes.vision_registers import VisionRegisters as VisionRegisters
    from interp.probes.visual_sinks import VisualSinks as VisualSinks
