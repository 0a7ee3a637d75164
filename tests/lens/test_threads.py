"""Several threads, several Lenses, several texts in one call: each gets what is its own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import interp
from tests.models import shared, tiny, tokens

LONG = tokens(1, 40)
IN_FORCE: dict[str, Callable[[], Any]] = {
    "knock_out": lambda: interp.KnockOut(keys=0),
    "temperature": lambda: interp.Temperature(temperature=2.0),
    "h2o": lambda: interp.H2O(budget=12),
    "think": lambda: interp.ThinK(ratio=0.5, window=8, recent=8),
    "both": lambda: interp.KnockOut(keys=0) | interp.StreamingLLM(budget=16),
}


def during(lens: Any, intervention: Any, run: Callable[[], Any]) -> Any:
    """What `run` returns in a thread of its own while this one is inside `lens.apply`."""
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("ignore")
        with lens.apply(intervention):
            return pool.submit(run).result(timeout=60)


@pytest.mark.parametrize("name", IN_FORCE)
def test_a_block_is_its_own_threads(name: str) -> None:
    lens = interp.load(shared("llama"))
    plain, scored = lens(LONG), lens.score(LONG, tokens(1))
    for run, wanted in ((lambda: lens(LONG), plain), (lambda: lens.score(LONG, tokens(1)), scored)):
        assert torch.equal(during(lens, IN_FORCE[name](), run), wanted)
    assert during(lens, IN_FORCE[name](), lambda: (lens.edits_in_force, lens.policies_in_force)) == ((), ())


def test_two_threads_each_with_a_block() -> None:
    lens = interp.load(shared("llama"))
    wanted = {}
    for name, make in IN_FORCE.items():
        with lens.apply(make()):
            wanted[name] = lens.score(LONG, tokens(1), chunk=1)
    gate = threading.Barrier(len(IN_FORCE))

    def run(name: str) -> torch.Tensor:
        with lens.apply(IN_FORCE[name]()):
            gate.wait(60)
            return lens.score(LONG, tokens(1), chunk=1)

    with ThreadPoolExecutor(len(IN_FORCE)) as pool:
        for name, nats in zip(IN_FORCE, pool.map(run, IN_FORCE), strict=True):
            assert torch.equal(nats, wanted[name]), name


def test_hooks_inside_apply_and_a_thread_that_waits() -> None:
    """Hooks belong to the points of the Lens, so another thread waits for their block, and gets on after it."""
    lens = interp.load(shared("llama"))
    plain, started, found = lens(LONG), threading.Event(), []

    def other() -> None:
        started.set()
        found.append(lens(LONG))

    thread = threading.Thread(target=other)
    with lens.apply(interp.KnockOut(keys=0)), lens.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda v, hook: v * 0)]):
        thread.start()
        started.wait(60)
        thread.join(0.2)
        assert not found
        lens(LONG)
    thread.join(60)
    assert torch.equal(found[0], plain)


@pytest.mark.parametrize("block", ["apply", "hooks"])
def test_an_exception_lets_others_get_on(block: str) -> None:
    lens = interp.load(shared("llama"))
    plain = lens(LONG)
    opened = (
        lens.apply(interp.KnockOut(keys=0))
        if block == "apply"
        else lens.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: value * 0)])
    )

    def fail() -> None:
        lens(LONG)
        raise KeyError("mine")

    with pytest.raises(KeyError), opened:
        fail()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(lens, LONG).result(timeout=60), plain)
    assert lens.edits_in_force == ()


def test_tasks_of_an_event_loop_have_blocks_of_their_own() -> None:
    lens = interp.load(shared("llama"))
    plain = lens(LONG)

    async def inside(entered: asyncio.Event, done: asyncio.Event) -> None:
        with lens.apply(interp.KnockOut(keys=0)):
            lens(LONG)
            entered.set()
            await done.wait()

    async def outside(entered: asyncio.Event, done: asyncio.Event) -> torch.Tensor:
        await entered.wait()
        logits: torch.Tensor = lens(LONG)
        done.set()
        return logits

    async def both() -> torch.Tensor:
        entered, done = asyncio.Event(), asyncio.Event()
        _, logits = await asyncio.gather(inside(entered, done), outside(entered, done))
        return logits

    assert torch.equal(asyncio.run(both()), plain)


def test_a_copied_context_is_inside_while_the_block_lasts() -> None:
    lens = interp.load(shared("llama"))
    plain = lens(LONG)
    with lens.apply(interp.KnockOut(keys=0)):
        edited, copied = lens(LONG), contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            assert torch.equal(pool.submit(copied.run, lens, LONG).result(timeout=60), edited)
    assert torch.equal(copied.run(lens, LONG), plain)


def test_two_lenses_on_one_model() -> None:
    model = tiny("llama")
    one, other = interp.load(model), interp.load(model)
    plain = other(LONG)
    with one.apply(interp.KnockOut(keys=0)):
        edited = one(LONG)
        assert torch.equal(other(LONG), plain)
        assert not torch.equal(edited, plain)
    hooks = [("blocks.1.attn.hook_z", lambda value, hook: value * 0)]
    wanted = one.run_with_hooks(LONG, fwd_hooks=hooks)

    def run(number: int) -> bool:
        if number % 2:
            return torch.equal(one.run_with_hooks(LONG, fwd_hooks=hooks), wanted)
        return torch.equal(other(LONG), plain)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(24)))


def test_scores_of_several_threads_go_on_from_their_own_caches() -> None:
    lens = interp.load(shared("llama"))
    texts = [tokens(1, 20, seed) for seed in range(8)]
    wanted = [lens.score(text, tokens(1), chunk=1) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: lens.score(text, tokens(1), chunk=1), texts))
    assert all(map(torch.equal, found, wanted))
    lens.generate(LONG, max_new_tokens=2)
    thread = threading.Thread(target=lambda: lens(LONG[:, :5], use_cache=True))
    thread.start()
    thread.join()
    assert lens.last_cache.get_seq_length() == 41


def test_the_bare_model_of_another_thread_meets_no_hooks() -> None:
    """Forward hooks lie on the model's own modules while a call runs, for every thread to meet."""
    model = tiny("llama")
    lens, found = interp.load(model), []
    plain = model(LONG).logits
    point = "blocks.0.attn.hook_z"

    def wait(value: torch.Tensor, hook: Any) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(model, LONG).result(timeout=60).logits)
        return value * 0

    lens.run_with_hooks(LONG, fwd_hooks=[(point, wait), ("blocks.1.hook_resid_post", lambda value, hook: value * 0)])
    assert len(found) == 1
    assert torch.equal(found[0], plain)


@pytest.mark.parametrize("point", ["blocks.1.attn.hook_z", "blocks.1.hook_resid_pre", "hook_embed"])
def test_the_model_inside_its_own_forward_pass_is_refused(point: str) -> None:
    model = tiny("llama")
    one, other = interp.load(model), interp.load(model)
    for run in (lambda: model(LONG), lambda: one(LONG), lambda: other(LONG), lambda: other.generate(LONG)):
        with pytest.raises(interp.InterpError, match="inside"):
            one.run_with_hooks(LONG, fwd_hooks=[(point, lambda value, hook, run=run: run() and None)])
    assert torch.equal(one(LONG), model(LONG).logits)


@pytest.mark.parametrize("how", ["nothing", "bare", "generate", "pipeline"])
def test_hooks_around_the_bare_model_are_told(how: str) -> None:
    lens = interp.load(shared("llama"))
    run = {
        "nothing": lambda: None,
        "bare": lambda: lens.model(LONG),
        "generate": lambda: lens.model.generate(LONG, max_new_tokens=2),
        "pipeline": lambda: interp.load(lens.model)(LONG),
    }[how]
    for hooks in ({"fwd_hooks": [("blocks.1.attn.hook_z", lambda value, hook: value * 0)]},
                  {"bwd_hooks": [("blocks.1.attn.hook_z", lambda value, hook: None)]}):  # fmt: skip
        with pytest.warns(UserWarning, match=r"never fired.*lens\.model") as told, lens.hooks(**hooks):
            run()
        assert told[0].filename == __file__


def test_hooks_that_fire_are_not_spoken_of() -> None:
    lens = interp.load(shared("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lens.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: None)]):
            lens(LONG)
            lens.model(LONG)
        with lens.hooks():
            lens.model(LONG)
        with pytest.raises(KeyError), lens.hooks(fwd_hooks=[("hook_embed", lambda value, hook: None)]):
            raise KeyError("mine")


def jobs_of(lens: Any) -> dict[str, Callable[[], torch.Tensor]]:
    """Calls with something of their own in force."""

    def under(intervention: Any, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        with lens.apply(intervention):
            return run()

    def generate() -> torch.Tensor:
        made: torch.Tensor = lens.generate(LONG, max_new_tokens=3, min_new_tokens=3)
        return made

    def halved() -> torch.Tensor:
        with lens.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: value / 2)]):
            return lens(LONG)

    def held() -> torch.Tensor:
        names = ["blocks.0.attn.hook_pattern", "blocks.2.hook_resid_post"]
        return lens.run_with_cache(LONG, names_filter=names)[1]["resid_post", 2]

    return {
        "plain": lambda: lens(LONG),
        "bare": lambda: lens.model(LONG).logits,
        "hooks": halved,
        "cache": held,
        "edit": lambda: under(interp.KnockOut(keys=0), lambda: lens(LONG)),
        "edit and hooks": lambda: under(interp.Temperature(temperature=2.0), halved),
        "policy": lambda: under(interp.H2O(budget=12), generate),
        "score": lambda: under(interp.SnapKV(budget=16, window=4), lambda: lens.score(LONG, LONG[:, :3], chunk=1)),
        "both": lambda: under(interp.KnockOut(keys=0) | interp.StreamingLLM(budget=16), generate),
    }


def own_results(calls: int) -> None:
    """Two threads, each with jobs in another order, on one model: every result is that of the job alone."""
    lens = interp.load(tiny("llama"))
    jobs = jobs_of(lens)
    wanted = {name: job() for name, job in jobs.items()}
    orders = (list(jobs), list(jobs)[::-2] + list(jobs)[1::2])

    def run(order: list[str]) -> list[str]:
        names = [order[i % len(order)] for i in range(calls // 2)]
        return [name for name in names if not torch.equal(jobs[name](), wanted[name])]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, orders)) == [[], []]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lens.model.modules())


def test_two_threads_get_their_own_results() -> None:
    own_results(60)


@pytest.mark.slow
def test_two_threads_get_their_own_results_every_time() -> None:
    own_results(1_000)
