"""One file a method: every `Intervention` in a module of `policies` or `edits` is found by its `name`, and exported by
`interp`.

`save` and `load` keep one with all its settings as TOML; `parse` reads `think:ratio=0.5`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.interventions._specs import load, parse, parse_all, save
from interp.interventions.base import CachePolicy, Composition, Intervention, Plan, Prompt, parts
from interp.interventions.catalogue import available, named
from interp.interventions.edits.base import AttentionEdit, LogitChange, LogitEdit, NewTokens, PatternEdit

__all__ = [
    "AttentionEdit",
    "CachePolicy",
    "Composition",
    "Intervention",
    "LogitChange",
    "LogitEdit",
    "NewTokens",
    "PatternEdit",
    "Plan",
    "Prompt",
    "available",
    "load",
    "named",
    "parse",
    "parse_all",
    "parts",
    "save",
]


def __getattr__(name: str) -> Any:
    # `from interp.interventions import _channels` asks here too, in the middle of an import: look at class names only
    for cls in available().values() if name[:1].isupper() else ():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'interp.interventions' has no attribute {name!r}")


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
