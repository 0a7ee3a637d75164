"""Ctrl-C at any line leaves no trace: nothing on the model, nothing in force, and the next call is bit-identical."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from tests.lens.interrupts import Interrupt, Thrower, hooked, left, registered
from tests.models import GROUPED, tokens
from tests.seam.test_bridge import bridged
from tests.seam.test_softmax_seam import model_of

TEXT = tokens(1, 14)
HOOKS: list[tuple[str, Any]] = [
    ("blocks.1.attn.hook_z", lambda z, hook: z * 0.5),
    ("blocks.0.hook_resid_mid", lambda x, hook: x + 0.0),
    ("blocks.1.attn.hook_pattern", lambda x, hook: None),
    ("blocks.0.attn.hook_column_mass", lambda x, hook: None),
]
GENERATE = {"max_new_tokens": 3, "min_new_tokens": 3}
SOME = 10
"""So many lines of each scenario are tried in the fast tests."""


def llama() -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, "num_hidden_layers": 2}))


@cache
def lens_of(kind: str) -> Any:
    """A Lens on a model in train mode, which has no dropout: what measures has to put the mode back."""
    if kind == "bridge":
        lens = interp.load(bridged("llama"))
        lens.bridge.train()
        return lens
    return interp.load((llama() if kind == "llama" else model_of(kind)).train())


def in_hooks(lens: Any, hooks: list[tuple[str, Any]]) -> None:
    with lens.hooks(fwd_hooks=hooks):
        lens(TEXT)


def generate(lens: Any, intervention: Any, **kwargs: Any) -> None:
    with lens.apply(intervention):
        lens.generate(TEXT, **GENERATE, **kwargs)


def score(lens: Any, intervention: Any) -> None:
    with lens.apply(intervention):
        lens.score(TEXT, TEXT[:, :5], chunk=2)


def autocast(lens: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        lens.run_with_cache(TEXT, names_filter=["blocks.0.attn.hook_column_mass", "blocks.1.attn.hook_pattern"])


def seen_in_code(name: str) -> bool:
    return name.endswith(("hook_pattern", "hook_z", "hook_resid_post"))


SCENARIOS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "plain": ("llama", lambda lens: lens(TEXT)),
    "cache": ("llama", lambda lens: lens.run_with_cache(TEXT)),
    "hooks": ("llama", lambda lens: in_hooks(lens, HOOKS)),
    "policy": ("llama", lambda lens: generate(lens, interp.H2O(budget=8))),
    "prefill": ("llama", lambda lens: generate(lens, interp.SnapKV(budget=8, window=4), names_filter="hook_embed")),
    "edit": ("llama", lambda lens: generate(lens, interp.KnockOut(keys=0) | interp.StreamingLLM(budget=8))),
    "score": ("llama", lambda lens: score(lens, interp.Temperature(temperature=2.0))),
    "autocast": ("llama", autocast),
    "building": ("llama", lambda lens: interp.load(lens.model)),
    "in code": ("bloom", lambda lens: lens.run_with_cache(TEXT, names_filter=seen_in_code)),
    "sdpa in code": ("falcon", lambda lens: lens.run_with_cache(TEXT)),
    "bridge": ("bridge", lambda lens: in_hooks(lens, HOOKS[:1] + HOOKS[3:])),
}


@torch.no_grad()
def answers(lens: Any) -> list[torch.Tensor]:
    """What the next calls say: of the bare model, of the Lens, and of the Lens with an eye on something."""
    model = getattr(lens, "bridge", lens.model)
    bare = model(TEXT)
    made = [] if model is not lens.model else [lens.generate(TEXT, max_new_tokens=1)]
    hooks = HOOKS[:1] if HOOKS[0][0] in lens.hook_dict else []
    return [getattr(bare, "logits", bare), lens(TEXT), lens.run_with_hooks(TEXT, fwd_hooks=hooks), *made]


def traces(name: str, some: int | None = None) -> list[str]:
    """Throw at every line of a scenario, the first time that it is reached and the last, or at some; one in each run.

    Returns what was found afterwards.
    """
    kind, run = SCENARIOS[name]
    lens = lens_of(kind)
    run(lens)  # what is remembered from then on
    counting = Thrower()
    assert counting(lambda: run(lens)) is None
    assert counting.lines > 100
    model, names = getattr(lens, "bridge", lens.model), registered()
    before, wanted, found = hooked([*model.named_modules(), *lens.hook_dict.items()]), answers(lens), []
    moments = sorted({at for times in counting.passed.values() for at in (times[0], times[-1])})
    for at in moments if some is None else moments[:: len(moments) // some]:
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
    assert traces(name, SOME) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupt_at_every_line(name: str) -> None:
    assert traces(name) == []


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
