"""How a model's attention calls reach their sites: our function behind the name that the model uses, for a while.

transformers' models look their attention function up by the name in their config (`sdpa`, `eager`, ...). While a Lens
call is on, that name leads to a function of ours in the registry, and so does the name of its mask function. Names and
masks stay the model's own: some models ask for the name before they apply a sparse mask, or compute with their mask,
and would silently be wrong under another. Modules that have no site, other models and other threads get what they would
have got anyway.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import GeneralInterface

from interp.seam.call import AttentionCall, eager_of
from interp.seam.masks import remembering
from interp.undoing import Gate, Undo, undoing

Tensor = torch.Tensor


class Attending(Protocol):
    """What stands where a module's attention is called: a `Site`, or what looks on while a model is taken apart."""

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]: ...


_sites: WeakKeyDictionary[nn.Module, tuple[int, Attending]] = WeakKeyDictionary()
"""The site of each module and the thread whose call it belongs to."""


@contextmanager
def attention_through(model: PreTrainedModel, sites: Mapping[nn.Module, Attending]) -> Iterator[None]:
    """Route the attention of `model`'s modules through their `sites` while the block runs."""
    with undoing() as undo:
        for name in dict.fromkeys(config._attn_implementation for config in _configs_of(model)):
            for registry in _registries_of(model):
                _lead(registry, name, partial(partial, _attention, name), undo)
            if name in ALL_MASK_ATTENTION_FUNCTIONS:
                _lead(ALL_MASK_ATTENTION_FUNCTIONS, name, remembering, undo)
        for module, site in sites.items():
            undo.later(_sites.pop, module, None)
            _sites[module] = threading.get_ident(), site
        yield


_configs: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
_registries: WeakKeyDictionary[nn.Module, list[AttentionInterface]] = WeakKeyDictionary()


def forget(model: nn.Module) -> None:
    """Look again at the next call: the model has other parts now."""
    _configs.pop(model, None)
    _registries.pop(model, None)


def _configs_of(model: nn.Module) -> list[Any]:
    """Configs of all parts that are models; looked up once, since generating asks at every token."""
    if model not in _configs:
        _configs[model] = list(
            {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
        )
    return _configs[model]


def _registries_of(model: nn.Module) -> list[AttentionInterface]:
    """transformers' registry and those that modelling files made for themselves (Doge)."""
    if model not in _registries:
        files = {type(module).__module__ for module in model.modules()}
        own = [vars(sys.modules[file]).get("ALL_ATTENTION_FUNCTIONS") for file in sorted(files)]
        found = [ALL_ATTENTION_FUNCTIONS, *(r for r in own if isinstance(r, AttentionInterface))]
        _registries[model] = list({id(registry): registry for registry in found}.values())
    return _registries[model]


class _Route:
    """One name of a registry while Lens calls need it to lead elsewhere: what it leads to now and led to before."""

    def __init__(self, registry: GeneralInterface, name: str, ours: Callable[[Any], Callable[..., Any]]) -> None:
        self.registry, self.name = registry, name
        self.before = registry._local_mapping.get(name)
        self.ours = ours(registry.get(name))
        self.users: set[object] = set()


_gate = Gate()
_routes: dict[tuple[int, str], _Route] = {}
"""Names that lead to us now, of all threads' calls; the last call that needs one takes it away."""


def _lead(registry: GeneralInterface, name: str, ours: Callable[[Any], Callable[..., Any]], undo: Undo) -> None:
    """Let a name of a registry lead to `ours(what it led to)` until the end of `undo`; a name it lacked led to None."""
    user, key = object(), (id(registry), name)
    undo.later(_leave, key, user)
    with _gate.held():
        if key not in _routes:
            _routes[key] = _Route(registry, name, ours)
        _routes[key].users.add(user)
        registry._local_mapping[name] = _routes[key].ours


def _leave(key: tuple[int, str], user: object) -> None:
    with _gate.held():
        route = _routes.get(key)
        if route is None:
            return
        route.users.discard(user)
        if not route.users:
            mapping = route.registry._local_mapping
            if route.before is None:
                mapping.pop(route.name, None)
            else:
                mapping[route.name] = route.before
            _routes.pop(key)


def _attention(
    name: str, registered: Callable[..., Any] | None,
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any,
    scaling: float | None = None, **rest: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """What a name of the attention registry leads to: finds whose attention this is and lets its site attend."""
    own = registered or eager_of(cast(Hashable, type(module)))
    call = AttentionCall.through_registry(module, query, key, value, attention_mask, scaling, rest, name, own)
    thread, site = _sites.get(module, (None, None))
    return call.answer() if site is None or thread != threading.get_ident() else site.attend(call)


def refusal(model: nn.Module, attends: bool) -> str:
    """Why a model cannot be loaded of whose attention nothing was seen.

    attends: whether something in it looks like attention all the same.
    """
    name = type(model).__name__
    if attends:
        return (
            f"{name} has attention that no seam reaches: it neither calls transformers' attention registry or torch's "
            "scaled_dot_product_attention, nor computes one softmax over all keys."
        )
    return (
        f"{name} has no attention that a Lens could look at: nothing in it attended, by transformers' registry or by a "
        "softmax over keys, while it read two tokens. Recurrent models (Mamba, RWKV, xLSTM) have none."
    )
