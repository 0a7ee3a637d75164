"""Every method of a TransformerBridge and of its cache, with every keyword: ours takes it, or says what to do instead.

The lists are read off TransformerLens itself, so that what a new release adds is found here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.model_bridge import TransformerBridge

import interp
from tests.models import shared, tokenizer, tokens

ONE = tokens(1, 6)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "forward": (ONE,),
    "run_with_cache": (ONE,),
    "run_with_hooks": (ONE,),
    "generate": ("w5 w6", 2),
    "to_tokens": ("w5 w6",),
    "to_str_tokens": ("w5 w6",),
    "to_string": (ONE,),
    "to_single_token": ("w5",),
    "to_single_str_token": (5,),
    "get_token_position": ("w6", "w5 w6"),
    "tokens_to_residual_directions": ("w5",),
    "loss_fn": (torch.zeros(1, 6, 128), ONE),
    "accumulated_bias": (1,),
    "add_hook": ("hook_embed", lambda value, hook: None),
    "add_perma_hook": ("hook_embed", lambda value, hook: None),
    "cache_all": ({},),
    "cache_some": ({}, lambda name: name == "hook_embed"),
    "get_neuron_results": (1,),
    "stack_neuron_results": (1,),
    "stack_activation": ("resid_pre",),
    "apply_slice_to_batch_dim": (0,),
    "apply_ln_to_stack": (torch.ones(2, 1, 6, 64),),
    "logit_attrs": (torch.ones(2, 1, 6, 64), "w5"),
    "to": ("cpu",),
}
"""What a method is called with beside the keyword in question."""
VALUES: dict[str, Any] = {
    "prepend_bos": True,
    "padding_side": "left",
    "stop_at_layer": 1,
    "start_at_layer": 1,
    "return_type": "loss",
    "names_filter": "blocks.0.hook_resid_pre",
    "pos_slice": -1,
    "batch_slice": 0,
    "layer": 3,
    "mode": "last",
    "device": "cpu",
    "incorrect_tokens": "w6",
    "pixel_values": ONE,
    "attention_mask": torch.ones_like(ONE),
    "labels": ONE,
    "fwd_hooks": [("hook_embed", lambda value, hook: None)],
    "temperature": 0,
    "top_k": 3,
    "stop_strings": "w9",
    "eos_token_id": 1,
    "forced_bos_token_id": 5,
    "freq_penalty": 1.0,
    "expand_neurons": False,
}
"""Values of keywords; of others the opposite of a truth value, or else the default."""
ONLY_OF = {
    "generate": {"return_type": "tokens", "attention_mask": None},
    "toggle_autodiff": {"mode": False},
    "decompose_resid": {"mode": "attn"},
    "to_tokens": {"truncate": True},
}
"""Values for one method, where those above mean something else."""


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


@pytest.fixture
def cache(lens: interp.Lens) -> Any:
    return lens.run_with_cache(ONE)[1]


def members(*classes: type) -> list[str]:
    """Public names that these classes add to what every torch module has."""
    found = {name for cls in classes for name in dir(cls) if not name.startswith("_") and not hasattr(nn.Module, name)}
    return sorted(found | {"forward"} if nn.Module in classes[0].__mro__ else found)


def keywords(*classes: type) -> list[tuple[str, inspect.Parameter]]:
    """Methods with each parameter that has a default, those of no parameters with an empty one."""
    nothing = inspect.Parameter("nothing", inspect.Parameter.KEYWORD_ONLY, default=None)
    found: dict[tuple[str, str], inspect.Parameter] = {}
    for cls in classes:
        for name in members(cls):
            if inspect.isfunction(method := getattr(cls, name, None)):
                given = [p for p in list(inspect.signature(method).parameters.values())[1:] if p.default is not p.empty]
                found |= {(name, parameter.name): parameter for parameter in given or [nothing]}
    return [(name, parameter) for (name, _), parameter in found.items()]


def call(of: Any, method: str, parameter: inspect.Parameter) -> None:
    """Call a method with one keyword. What it says where it refuses has to be one sentence."""
    opposite = not parameter.default if isinstance(parameter.default, bool) else parameter.default
    value = ONLY_OF.get(method, {}).get(parameter.name, VALUES.get(parameter.name, opposite))
    arguments = ARGUMENTS.get(method, ())
    named = {} if parameter.name in ("nothing", "input", "max_new_tokens") else {parameter.name: value}
    try:
        getattr(of, method)(*arguments, **named)
    except interp.InterpError as error:
        said = str(error)
        assert said.endswith("."), said
        assert "\n" not in said


METHODS = keywords(TransformerBridge, HookedRootModule)
OF_CACHE = keywords(ActivationCache)


def test_the_lists_are_long() -> None:
    assert len(METHODS) > 100
    assert len(OF_CACHE) > 40


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", sorted({method for method, _ in METHODS}))
def test_every_keyword_of_a_bridge_is_taken_or_refused(lens: interp.Lens, method: str) -> None:
    if not hasattr(lens, method) or method in ("check_hooks_to_add", "check_and_add_hook"):  # torch's hooks call these
        return
    for parameter in (parameter for name, parameter in METHODS if name == method):
        call(lens, method, parameter)
        lens.reset_hooks(including_permanent=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", sorted({method for method, _ in OF_CACHE}))
def test_every_keyword_of_a_cache_is_taken_or_refused(lens: interp.Lens, method: str) -> None:
    for parameter in (parameter for name, parameter in OF_CACHE if name == method):
        call(lens.run_with_cache(ONE)[1], method, parameter)


def test_what_a_lens_does_not_have_is_told(lens: interp.Lens) -> None:
    absent = [name for name in members(TransformerBridge, HookedRootModule) if not hasattr(lens, name)]
    assert "W_pos" in absent
    for name in absent:
        with pytest.raises(interp.InterpError, match=rf"^a Lens has no {name}: .+\.$"):
            getattr(lens, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lens.nonsense  # noqa: B018
