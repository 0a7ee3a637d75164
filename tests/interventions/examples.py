"""Every intervention that there is, with settings for a prompt of 40 tokens.

A module `test_NAME.py` in this folder may say of the intervention called NAME
- `EXAMPLES`: it with the settings to test, plainest first, in place of its defaults with sizes that fit;
- `REFUSES`: {architecture of tests.models: what the refusal says};
- `CHANGES_NOTHING`: {setting: value} at which it changes no bit, in place of `NOTHING`; empty where there is none;
- `SEES_THE_TEXT_ONLY = False`: what becomes of a text depends on the batch that it stands in, and why.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from interp.errors import InterpError
from interp.interventions import CachePolicy, Intervention, available
from tests.authors import said

PROMPT = 40
SIZES = {"budget": 0.3, "window": 8, "recent": 4}
"""Settings for such a prompt, for all methods that have them."""
NOTHING = {"budget": 1.0, "ratio": 0.0, "strength": 0.0}
"""What a setting of this name should be for a method to change nothing."""


def _found() -> dict[str, Intervention]:
    found: dict[str, Intervention] = {}
    for name, cls in available().items():
        has = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        given = said("interventions", name, "EXAMPLES", [cls(**{n: v for n, v in SIZES.items() if n in has})])
        found |= {name if len(given) == 1 else f"{name}-{i}": example for i, example in enumerate(given)}
    return found


EXAMPLES = _found()
POLICIES: dict[str, CachePolicy] = {name: one for name, one in EXAMPLES.items() if isinstance(one, CachePolicy)}


def refusal(intervention: Intervention, kind: str) -> str | None:
    """What the intervention says to a model that it refuses; None where it acts."""
    return said("interventions", intervention.name, "REFUSES", {}).get(kind)


def sees_the_text_only(policy: Intervention) -> bool:
    return said("interventions", policy.name, "SEES_THE_TEXT_ONLY", True)


def changing_nothing(intervention: Any) -> Any:
    """The intervention with the first setting that it has of those that change nothing; None where it has none."""
    for setting, value in said("interventions", intervention.name, "CHANGES_NOTHING", NOTHING).items():
        if hasattr(intervention, setting):
            return _with(intervention, **{setting: value})
    return None


def counted(policy: Any, tokens: int) -> Any:
    """The policy with its budget as a number of tokens, of a prompt of so many; None where it takes shares alone."""
    budget = getattr(policy, "budget", None)
    return policy if not isinstance(budget, float) else _with(policy, budget=int(budget * tokens))


def _with(intervention: Any, **settings: Any) -> Any:
    try:
        return dataclasses.replace(intervention, **settings)
    except InterpError:
        return None
