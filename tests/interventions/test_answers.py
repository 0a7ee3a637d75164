"""What users' own edits and policies answer: another shape or a number too many is one sentence, not other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import interp
from interp.interventions.edits.base import LogitChange, LogitEdit, PatternEdit
from interp.interventions.policies.streaming_llm import StreamingLLM
from tests.models import shared, tokens

TEXT = tokens(2, 12)
GOOD: dict[str, Any] = {
    "groups": lambda text: (text.positions[:, -text.new :] == 0).long(),
    "rows": lambda text: torch.ones_like(text.ids[:, -text.new :], dtype=torch.bool),
    "factors": lambda masses: masses.new_tensor([1.0, 0.5]),
}
answers: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Mine(PatternEdit):
    name: ClassVar[str] = "mine"
    group_count: ClassVar[int] = 2

    def groups(self, text: Any) -> Any:
        return answers["groups"](text)

    def rows(self, text: Any) -> Any:
        return answers["rows"](text)

    def factors(self, masses: Any) -> Any:
        return answers["factors"](masses)


@dataclass(frozen=True, kw_only=True)
class MyLogits(LogitEdit):
    name: ClassVar[str] = "my_logits"
    group_count: ClassVar[int] = 2

    def groups(self, text: Any) -> Any:
        return GOOD["groups"](text)

    def change(self, positions: Any) -> LogitChange:
        return LogitChange(**answers["change"])


@pytest.mark.parametrize(
    ("what", "answer", "says"),
    [
        ("groups", lambda text: GOOD["groups"](text) * 2, "from 0 to 1, found"),
        ("groups", lambda text: GOOD["groups"](text) - 1, "from 0 to 1, found"),
        ("groups", lambda text: GOOD["groups"](text).float(), "whole numbers"),
        ("groups", lambda text: GOOD["groups"](text)[:, :-1], r"\[2, 12\]"),
        ("groups", lambda text: GOOD["groups"](text)[:1], r"\[2, 12\]"),
        ("groups", lambda text: None, "NoneType"),
        ("rows", lambda text: GOOD["rows"](text)[:, None], r"\[2, 12\]"),
        ("rows", lambda text: GOOD["rows"](text).long(), "torch.bool"),
        ("factors", lambda masses: masses[:, :3], "stretch"),
        ("factors", lambda masses: masses.new_ones(3), "stretch"),
        ("factors", lambda masses: 0.5, "stretch"),
    ],
)
def test_answers_of_a_pattern_edit(what: str, answer: Any, says: str) -> None:
    answers.update(GOOD | {what: answer})
    lens = interp.load(shared("llama"))
    with pytest.raises(interp.InterpError, match=says) as caught, lens.apply(Mine()):
        lens(TEXT)
    assert "mine" in str(caught.value)


@pytest.mark.parametrize("change", [{"scale": torch.ones(3)}, {"bias": torch.ones(3, 1, 1, 2)}, {"bias": [1.0] * 5}])
def test_answers_of_a_logit_edit(change: dict[str, Any]) -> None:
    answers["change"] = change
    lens = interp.load(shared("llama"))
    with pytest.raises(interp.InterpError, match="stretch"), lens.apply(MyLogits()):
        lens(TEXT)


def test_right_answers_go_through() -> None:
    answers.update(GOOD | {"change": {"scale": torch.tensor([1.0, 0.5]), "bias": 1.0}})
    lens = interp.load(shared("llama"))
    plain = lens(TEXT)
    for edit in (Mine(), MyLogits()):
        with lens.apply(edit):
            assert not torch.equal(lens(TEXT), plain)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (torch.tensor([12]), "0 to 7"),
        (torch.tensor([-1]), "0 to 7"),
        (torch.tensor([8]), "before the newest 4"),
        (torch.tensor([1.0]), "whole numbers"),
    ],
)
def test_places_that_a_policy_keeps(index: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lens, policy = interp.load(shared("llama")), StreamingLLM(budget=8)
    plan = type(policy.begin.__self__).begin
    made = lambda self, prompt: keeping(plan(self, prompt))  # noqa: E731

    def keeping(plan: Any) -> Any:
        plan.compress = lambda layer, stored: stored.keep(index.expand(2, 2, 1), 4)
        return plan

    monkeypatch.setattr(StreamingLLM, "begin", made)
    with pytest.raises(interp.InterpError, match=says), lens.apply(policy):
        lens(TEXT, use_cache=True)
