"""Ctrl-C at any line leaves no trace: nothing on the model, nothing in force, and the next call is bit-identical."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp import undoing
from tests.lens.interrupt_scenarios import FIRST, FURTHER, HOOKS, SCENARIOS, TEXT, lens_of
from tests.lens.interrupts import HOME, Interrupt, Thrower, hooked, left, registered

SOME = 10
"""So many lines of each of the first scenarios are tried in the fast tests, and FEW of each of the others."""
FEW = 2
WORDS = torch.arange(80, 94)[None]
"""None of them stands for an image."""
Line = tuple[str, int]


@torch.no_grad()
def answers(lens: Any) -> list[torch.Tensor]:
    """What the next calls say: of the bare model, of the Lens, and of the Lens with an eye on something."""
    model = getattr(lens, "bridge", lens.model)
    text = WORDS if getattr(lens.cfg, "image_token_id", None) is not None else TEXT
    bare = model(text, **({"decoder_input_ids": TEXT[:, :2]} if model.config.is_encoder_decoder else {}))
    made = [] if model is not lens.model else [lens.generate(text, max_new_tokens=1)]
    hooks = HOOKS[:1] if HOOKS[0][0] in lens.hook_dict else []
    return [getattr(bare, "logits", bare), lens(text), lens.run_with_hooks(text, fwd_hooks=hooks), *made]


def passed_by(name: str) -> Thrower:
    """One undisturbed run of a scenario, and the lines that it passed."""
    kind, run = SCENARIOS[name]
    lens = lens_of(kind)
    run(lens)  # what is remembered from then on
    counting = Thrower()
    assert (error := counting(lambda: run(lens))) is None, error
    return counting


def traces(name: str, some: int | None = None, beside: Iterable[Line] = ()) -> list[str]:
    """Throw at every line of a scenario, the first time that it is reached and the last, or at some; one in each run.

    beside: lines that are left out. Returns what was found afterwards.
    """
    counting = passed_by(name)
    assert counting.lines > 100
    kind, run = SCENARIOS[name]
    lens = lens_of(kind)
    model, names = getattr(lens, "bridge", lens.model), registered()
    before, wanted, found = hooked([*model.named_modules(), *lens.hook_dict.items()]), answers(lens), []
    kept = [times for line, times in counting.passed.items() if line not in beside]
    moments = sorted({at for times in kept for at in (times[0], times[-1])})
    for at in moments if some is None else moments[:: max(1, len(moments) // some)]:
        thrower = Thrower(at)
        error = thrower(lambda: run(lens))  # as long as it is held, so is all that its traceback holds
        if not isinstance(error, Interrupt):
            found.append(f"{thrower.where}: {error!r} in place of the interrupt")
        found += [f"{thrower.where}: {trace}" for trace in left(lens, model, names, before)]
        if not all(map(torch.equal, answers(lens), wanted)):
            found.append(f"{thrower.where}: the next call says something else")
        del error
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_at_some_lines(name: str) -> None:
    assert traces(name, SOME if name in FIRST else FEW) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FIRST)
def test_an_interrupt_at_every_line(name: str) -> None:
    assert traces(name) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_at_every_line_that_only_others_reach() -> None:
    found, passed = [], {line for name in FIRST for line in passed_by(name).passed}
    for name in FURTHER:
        own = passed_by(name).passed.keys()
        if not own <= passed:
            found += [f"{name}: {trace}" for trace in traces(name, beside=passed)]
        passed |= own
    assert found == []


REACHED = 0.7
"""Of the lines of all rooms so many are passed; the others are refusals, and branches of models of other kinds."""
NOT_REACHED = ("lens/__init__.py", "interventions/__init__.py", "interventions/catalogue.py")
"""What runs when it is imported, or reads a folder once."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_scenarios_pass_through_every_file_of_the_rooms() -> None:
    passed = {line for name in SCENARIOS for line in passed_by(name).passed}
    lines = {path: lines_in(path) for room in ("seam", "lens", "cache", "interventions") for path in files_in(room)}
    missed = [str(path.relative_to(HOME)) for path, there in lines.items() if there and not there & passed]
    assert set(missed) <= set(NOT_REACHED)
    there = set().union(*lines.values())
    assert len(there & passed) / len(there) > REACHED


def files_in(room: str) -> list[Path]:
    return sorted((HOME / room).rglob("*.py"))


def lines_in(path: Path) -> set[Line]:
    """Lines of a file's functions."""
    found: set[int] = set()

    def look(code: types.CodeType, inside: bool) -> None:
        if inside:
            found.update(line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno)
        for one in code.co_consts:
            if isinstance(one, types.CodeType):
                look(one, inside or bool(one.co_flags & 2))  # 2: a function's own names

    look(compile(path.read_text(encoding="utf-8"), str(path), "exec"), False)
    return {(str(path), line) for line in found}


def test_gradients_that_a_models_own_code_left_off_are_on_again() -> None:
    """As an interrupt at the end of its `no_grad` does, which is torch's."""
    lens = lens_of("llama")

    def leave_off(*_: Any) -> None:
        torch.set_grad_enabled(False)
        raise Interrupt

    handle = lens.model.lm_head.register_forward_hook(leave_off)
    try:
        with pytest.raises(Interrupt):
            lens(TEXT)
        assert torch.is_grad_enabled()
    finally:
        handle.remove()
        torch.set_grad_enabled(True)


def test_a_hook_that_was_made_and_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens makes a hook, then notes it; an interrupt may come in between."""
    lens = lens_of("llama")
    point, wanted = lens.hook_dict["blocks.1.attn.hook_z"], answers(lens)

    class Notes(list[Any]):
        def append(self, handle: Any) -> None:
            raise Interrupt

    monkeypatch.setattr(point, "fwd_hooks", Notes())
    with pytest.raises(Interrupt), lens.hooks(fwd_hooks=HOOKS[:1]):
        pass
    monkeypatch.undo()
    assert not point._forward_hooks
    assert all(map(torch.equal, answers(lens), wanted))


def leave_at_the_wrong_moment(block: Any) -> BaseException:
    """Leave a block as Ctrl-C does that arrives as its `__exit__` is entered."""

    def interrupt(frame: types.FrameType, event: str, arg: Any) -> None:
        if frame.f_code is undoing._LEAVING:
            sys.settrace(None)
            raise Interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        block.__exit__(None, None, None)
    except Interrupt as error:
        return error
    finally:
        sys.settrace(before)
    raise AssertionError("it was left")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["hooks", "edit", "policy"])
def test_a_block_that_died_as_it_was_left_is_ended_by_the_next_call(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a prompt or in a notebook, which hold the traceback of the last exception."""
    lens = lens_of("llama")
    model, names, wanted = lens.model, registered(), answers(lens)
    before = hooked([*model.named_modules(), *lens.hook_dict.items()])
    block = {
        "hooks": lambda: lens.hooks(fwd_hooks=HOOKS[:1]),
        "edit": lambda: lens.apply(interp.KnockOut(keys=0)),
        "policy": lambda: lens.apply(interp.H2O(budget=8)),
    }[kind]()
    block.__enter__()
    error = leave_at_the_wrong_moment(block)
    assert lens.context_level or lens.edits_in_force or lens.policies_in_force, "it is open"
    monkeypatch.setattr(sys, "last_traceback", error.__traceback__, raising=False)
    assert torch.equal(lens(TEXT), wanted[1])
    assert left(lens, model, names, before) == []
    assert all(map(torch.equal, answers(lens), wanted))


def test_a_block_that_is_open_stays_open_whatever_went_wrong_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = lens_of("llama")
    try:
        with lens.hooks(fwd_hooks=HOOKS[:1]):
            raise ValueError("of the user's own")
    except ValueError as error:
        monkeypatch.setattr(sys, "last_traceback", error.__traceback__, raising=False)
    with lens.hooks(fwd_hooks=HOOKS[:1]):
        hooked_once = lens(TEXT)
    assert torch.equal(hooked_once, lens.run_with_hooks(TEXT, fwd_hooks=HOOKS[:1]))
    assert not torch.equal(hooked_once, lens(TEXT))
