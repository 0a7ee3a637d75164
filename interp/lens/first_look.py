"""A model watched while it reads a few tokens: what attends, and what every module is given and puts out.

A decoder-only model reads two tokens. Of an encoder-decoder the encoder reads three and the decoder two, so that keys
tell by their number whose tokens they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interp.errors import InterpError, UnsupportedModelError
from interp.lens.arguments import arguments, is_encoder_decoder
from interp.lens.evaluating import evaluation_mode
from interp.lens.finite import NonFiniteError, said_of
from interp.lens.trying import some_tokens
from interp.lens.writers import ModuleCall
from interp.seam.call import AttentionCall
from interp.seam.routing import attention_through, refusal
from interp.seam.softmax_seam import SoftmaxNotes, own_attention_through
from interp.undoing import undoing

Tensor = torch.Tensor
TOKENS, READ = 2, 3
"""How many tokens the main stack gets, and an encoder."""


@dataclass(frozen=True)
class Look:
    """What was seen of one run."""

    calls: dict[nn.Module, list[dict[str, Any]]]
    """Facts of each attention call, by module, in the order in which modules first attend."""
    seen: list[ModuleCall]
    """The calls of all modules, in the order in which they finish."""
    names: dict[nn.Module, str]
    logits: Tensor
    """What the run ended in."""
    in_code: bool
    """Whether attention is what modelling files compute in their own code."""

    def finished(self, inside: str) -> list[int]:
        """When modules inside the one of that name finished."""
        return [at for at, call in enumerate(self.seen) if call.name.startswith(f"{inside}.")]

    def leaving(self, layers: str) -> tuple[Tensor | None, list[ModuleCall]]:
        """What the last of a list of layers put out, and the calls that finished after it."""
        last = max(at for at, call in enumerate(self.seen) if call.parent == layers)
        return self.seen[last].out, self.seen[last + 1 :]


def first(value: Any) -> Any:
    """The tensor of a module's output, which may be a tuple or a list."""
    return value[0] if isinstance(value, (tuple, list)) else value


class _Watcher(SoftmaxNotes):
    """Stands in as the site of every attention module: notes the calls and delegates them."""

    def __init__(self, in_code: bool, crossing: bool) -> None:
        super().__init__(crossing={(TOKENS, READ)} if crossing else ())
        self.in_code = in_code
        """Whether the calls that it gets come from modelling files' own code."""

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        z, weights = call.answer()
        q, k, rest = call.q, call.k, call.rest
        facts = {
            "n_heads": q.shape[1],
            "n_key_value_heads": k.shape[1],
            "n_keys": k.shape[2],
            "d_head": q.shape[3],
            "seam": "sdpa" if self.in_code else "registry",
            "d_value": z.shape[3],
            "softcap": rest.get("softcap"),
            "sinks": rest.get("s_aux") is not None,
            "window": rest.get("sliding_window"),
            "z": z.flatten(2),
            "k": k,
        }
        self.calls.setdefault(call.module, []).append(facts)
        return z, weights


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[ModuleCall]]:
    """The calls of all modules in the order in which they finish."""
    seen: list[ModuleCall] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given, out = args[0] if args else kwargs.get("hidden_states"), first(output)
            out = _activation(out)
            seen.append(ModuleCall(name, _activation(given), None if out is None else out.clone(), kwargs, out))

        return hook

    with undoing() as undo:
        for name, module in model.named_modules():
            undo.hook(module, note(name), with_kwargs=True)
        yield seen


def look(model: Any) -> Look:
    """Run `model` on a few tokens.

    Raises UnsupportedModelError for models that text alone does not run, models without attention or with one that no
    seam reaches, and models without a language-model head.
    """
    written = some_tokens(model, TOKENS)[None]
    given = arguments(model, some_tokens(model, READ)[None].flip(-1) if is_encoder_decoder(model) else written, written)
    watcher, seen, logits = _watched(model, given, in_code=False)
    if logits is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head; load the ...ForCausalLM class of this architecture."
        )
    if (lost_at := said_of(model, seen, logits)) is not None:  # then nothing is found by arithmetic
        raise NonFiniteError(lost_at)
    if in_code := not watcher.calls:
        watcher, seen, _ = _watched(model, given, in_code)
    if not watcher.calls or watcher.unread.intersection(watcher.calls):
        raise UnsupportedModelError(refusal(model, attends=bool(watcher.unread)))
    return Look(watcher.calls, seen, {module: name for name, module in model.named_modules()}, logits, in_code)


def look_before(model: Any, given: Mapping[str, Any], until: nn.Module) -> tuple[Look, Tensor]:
    """The same of a run on other arguments that ends where a module begins; and what that module was to read.

    Raises whatever the model raises.
    """
    watcher = _Watcher(False, False)
    sites = dict.fromkeys(model.modules(), watcher)
    with evaluation_mode(model), attention_through(model, sites), _recorded(model) as seen:
        stream = entering(model, given, until)
    return Look(watcher.calls, seen, {module: name for name, module in model.named_modules()}, stream, False), stream


def entering(model: Any, given: Mapping[str, Any], module: nn.Module) -> Tensor:
    """What a module reads first in a run on these arguments, which ends there."""
    arrived: list[Tensor] = []

    def end(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        arrived.append(args[0] if args else kwargs["hidden_states"])
        raise _Arrived

    with undoing() as undo, suppress(_Arrived):
        undo.hook(module, end, pre=True, with_kwargs=True)
        model(**given, use_cache=False)
    (stream,) = arrived
    return stream


class _Arrived(Exception):
    """A run has come to where it was to end."""


def _watched(
    model: Any, given: Mapping[str, Tensor], in_code: bool
) -> tuple[_Watcher, list[ModuleCall], Tensor | None]:
    """What the model's attention and its modules do, and its logits.

    in_code: look at what modelling files compute themselves, rather than at the attention registry.
    """
    watcher = _Watcher(in_code, is_encoder_decoder(model))
    modules = list(model.modules())
    inside = [module for module in modules if in_code and any(module.children())]  # an nn.Softmax is not what attends
    try:
        with (
            evaluation_mode(model),
            attention_through(model, dict.fromkeys(modules, watcher)),
            own_attention_through(model, dict.fromkeys(inside, watcher)),
            _recorded(model) as seen,
        ):
            out = model(**given, use_cache=False)
    except InterpError:
        raise
    except Exception as error:  # whatever a model raises that needs more than text
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on text tokens alone ({type(error).__name__}: {reason}); if it "
            "contains a language model that does, load that one."
        ) from error
    if set(modules) != set(model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} replaced modules of its own when it read two tokens: its attention depends on how "
            "long a text is. Load it in a mode that does not (BigBird: attention_type='original_full')."
        )
    return watcher, seen, _activation(getattr(out, "logits", None))


def _activation(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.is_floating_point() else None
