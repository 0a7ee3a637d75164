"""The desk: one piece of work at a time, shared by whoever asks for the same, given up when nobody waits."""

from __future__ import annotations

import threading
import time

import pytest

from interp_explorer import desk as desk_module
from interp_explorer import waiting
from interp_explorer.desk import Cancelled, Desk, Job
from interp_explorer.text import plain

LONG = 30.0  # seconds; a test that hangs fails long before pytest's own limit


def ended(job, who="tab"):
    assert job.wait(who, LONG), "the job did not end"
    return job


def test_one_key_is_worked_on_once_for_all_who_ask():
    desk, calls = Desk(), []
    go = threading.Event()

    def work(progress):
        calls.append(1)
        go.wait(LONG)
        return 42

    one, two = desk.ask(("a", 1), "adding", work, "tab 1"), desk.ask(("a", 1), "adding", work, "tab 2")
    assert one is two
    go.set()
    assert ended(one).value == 42
    assert ended(desk.ask(("a", 1), "adding", work, "tab 3")).value == 42
    assert calls == [1]


def test_a_second_piece_waits_and_can_say_for_what():
    desk, go = Desk(), threading.Event()
    first = desk.ask(("a", 1), "first", lambda progress: go.wait(LONG), "tab 1")
    second = desk.ask(("a", 2), "second", lambda progress: "done", "tab 2")
    while not first.running:
        time.sleep(0.001)
    assert not second.finished
    assert desk.holder() is first
    go.set()
    assert ended(second, "tab 2").value == "done"
    assert desk.holder() is None


def test_work_stops_at_its_next_report_once_all_have_left():
    desk, steps, left = Desk(), [], threading.Event()

    def work(progress):
        for i in range(1000):
            progress(i, 1000)
            steps.append(i)
            left.wait(LONG)

    job = desk.ask(("a", 1), "long", work, "tab")
    while not steps:
        time.sleep(0.001)
    job.leave("tab")
    left.set()
    assert job._finished.wait(LONG)
    assert isinstance(job.error, Cancelled)
    assert len(steps) == 1


def test_work_goes_on_while_another_tab_waits():
    desk, left = Desk(), threading.Event()

    def work(progress):
        left.wait(LONG)
        progress(1, 2)
        return "done"

    job = desk.ask(("a", 1), "long", work, "tab 1")
    job.wait("tab 2", 0)
    job.leave("tab 1")
    left.set()
    assert ended(job, "tab 2").value == "done"


def test_a_tab_that_gives_no_sign_of_life_is_not_waiting(monkeypatch):
    monkeypatch.setattr(desk_module, "PATIENCE", 0.05)
    desk, go = Desk(), threading.Event()

    def work(progress):
        go.wait(LONG)
        progress(1, 2)

    job = desk.ask(("a", 1), "long", work, "tab")
    time.sleep(0.2)
    go.set()
    assert job._finished.wait(LONG)
    assert isinstance(job.error, Cancelled)


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError()])
def test_an_error_is_told_and_the_next_who_asks_has_it_tried_again(error):
    desk, outcomes = Desk(), [error, "better"]

    def work(progress):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert ended(desk.ask(("a", 1), "trying", work, "tab")).error is error
    assert ended(desk.ask(("a", 1), "trying", work, "tab")).value == "better"


def test_old_results_are_forgotten_models_first():
    desk = Desk()
    for kind, count in (("lens", 4), ("probes", 4)):
        for i in range(count):
            ended(desk.ask((kind, i), "x", lambda progress, i=i: i, "tab"))
    held = [key for key in desk._jobs if key[0] == "lens"]
    assert len(held) <= desk_module.KEPT["lens"] + 1
    assert len([key for key in desk._jobs if key[0] == "probes"]) == 4


def test_work_that_reports_nothing_stops_before_the_next_pass_of_the_model():
    import interp

    lens, passes = interp.load("demo"), []

    def report(done: int, of: int) -> None:
        passes.append((done, of))
        if done == 2:
            raise Cancelled

    with waiting.told_of_passes(lens, report, 5):
        lens("one two three")
        lens("one two three")
        with pytest.raises(Cancelled):
            lens("one two three")
    assert passes == [(0, 5), (1, 5), (2, 5)]
    lens("one two three")
    assert len(passes) == 3, "nobody is told any more"


def test_what_is_waited_for_is_shown_letter_by_letter(monkeypatch):
    first, second = Job(("lens", 1), "loading ![m](http://a.b/c)"), Job(("lens", 2), "loading $x$")
    first.running = True
    assert waiting._status(first) == plain("loading ![m](http://a.b/c) ...")
    monkeypatch.setattr(waiting, "desk", lambda: type("Busy", (), {"holder": lambda self: first})())
    busy = "waiting for the model, which is busy with another tab's work: loading ![m](http://a.b/c) ..."
    assert waiting._status(second) == plain(busy)
