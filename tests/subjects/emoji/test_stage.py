"""Training that was interrupted goes on as if it had not been, and refuses what is of another training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.subjects.emoji import stage as stages
from interp.subjects.emoji.stage import Pace, Stage, run, weights_of
from interp.subjects.emoji.tower import TowerStage

PACE = Pace(steps=12, rate=1e-2, batch=4, warm_up=3)


class Line(Stage):
    """A line through noise: a stage of milliseconds."""

    name: ClassVar[str] = "line"

    def __init__(self, pace: Pace = PACE, stop: int | None = None) -> None:
        torch.manual_seed(0)
        self.pace, self.stop, self.line = pace, stop, nn.Linear(3, 1)

    def trained(self) -> nn.Module:
        return self.line

    def losses(self, step: int) -> dict[str, Tensor]:
        if step == self.stop:
            raise KeyboardInterrupt
        x = torch.randn(self.pace.batch, 3, generator=torch.Generator().manual_seed(step))
        return {"error": (self.line(x) - x.sum(-1, keepdim=True)).square().mean()}


@pytest.mark.parametrize("stop", [1, 7, 11])
def test_an_interrupted_training_goes_on(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, again = Line(), Line()
    curve = run(whole, tmp_path / "whole")
    monkeypatch.setattr(stages, "KEPT_EVERY", 0)
    with pytest.raises(KeyboardInterrupt):
        run(Line(stop=stop), tmp_path / "again")
    assert run(again, tmp_path / "again") == curve
    assert all(
        torch.equal(one, other) for one, other in zip(whole.line.parameters(), again.line.parameters(), strict=True)
    )


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    curve = run(Line(), tmp_path)
    assert len(curve) == PACE.steps
    assert run(Line(stop=0), tmp_path) == curve
    assert torch.equal(
        weights_of(tmp_path / "line.safetensors")["bias"], weights_of(tmp_path / "line.safetensors")["bias"]
    )


def test_it_learns_and_stops_at_nothing() -> None:
    pace = Pace(steps=200, rate=5e-2, batch=8)
    assert pace.rate_at(0) < pace.rate_at(99) > pace.rate_at(199) < 1e-4


@pytest.mark.parametrize("change", [{"rate": 2e-2}, {"steps": 13}, {"batch": 5}])
def test_another_training_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    run(Line(), tmp_path)
    with pytest.raises(InterpError, match="other settings"):
        run(Line(replace(PACE, **change)), tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "line.safetensors").write_bytes(b"something else")
    with pytest.raises(InterpError, match="no checkpoint of emoji-vlm"):
        run(Line(), tmp_path)


def test_the_tower_learns(tmp_path: Path) -> None:
    curve = run(TowerStage(Pace(steps=6, rate=1e-3, batch=4, warm_up=1), bfloat16=False), tmp_path)
    assert curve[-1]["kind"] < curve[0]["kind"]
    assert set(curve[0]) == {"kind", "middle"}
