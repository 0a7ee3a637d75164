"""Settings given in Python are checked as those of a command line are: one sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import explaining, icl, probes
from interp.runs.generating import generate
from interp.runs.patching import logit_difference
from interp.settings.checking import fields_of, settings_of
from tests.models import shared, tokens

TEXT = tokens(1, 12)
KINDS = {**probes.available(), **probes.available("tasks"), **explaining.available()}
FIELDS = [(cls, field.name) for cls in KINDS.values() for field in fields_of(cls)]


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_a_setting_of_another_type(cls: Any, field: str) -> None:
    wrong = [object(), "a thing", math.inf, math.nan, [[0.5]]]
    wrong += [2.5] if "float" not in str(settings_of(cls)[field]) else []
    for value in wrong:
        if isinstance(value, list) and "Any" in str(settings_of(cls)[field]):
            continue  # other prompts are whatever a Lens reads
        with pytest.raises(interp.InterpError, match=rf"^{cls.name}: {field} should be "):
            cls(**{field: value})


def test_settings_as_numpy_and_tensors_have_them() -> None:
    assert interp.TextSinks(epsilon=np.float64(0.5)).thresholds == (0.5,)
    assert interp.TextSinks(epsilon=0.5, position=np.int64(1)).position == 1
    assert interp.AttentionRank(k=np.int64(3)).k == 3
    assert interp.KnockOut(keys=np.int64(3), layers=np.int64(1)).keys == (3,)
    assert interp.Temperature(heads=np.int64(3), temperature=2).heads == (3,)
    assert repr(interp.Temperature(temperature=np.float32(2))) == repr(interp.Temperature(temperature=2.0))
    assert interp.icl.RegressorConfig(n_layers=np.int64(2), attention=["softmax", "linear"]).kinds[0] == "softmax"


LENS: Callable[[], Any] = lambda: interp.load(shared("llama"))  # noqa: E731
DIFFERENCE = logit_difference(5, 6)
CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "lens.generate": ("max_new_tokens", lambda value: LENS().generate(TEXT, max_new_tokens=value)),
    "generate": ("max_new_tokens", lambda value: generate(LENS(), TEXT, None, value)),
    "side_by_side": ("max_new_tokens", lambda value: interp.side_by_side(LENS(), TEXT, interp.KnockOut(keys=0), value)),
    "score": ("chunk", lambda value: LENS().score(TEXT, TEXT, chunk=value)),
    "probe": ("tokens", lambda value: interp.probe(LENS(), TEXT, ["text_sinks"], tokens=value)),
    "positions": (
        "positions",
        lambda value: interp.patch(LENS(), TEXT, TEXT, "hook_embed", DIFFERENCE, positions=[value]),
    ),
    "heads": ("heads", lambda value: interp.patch(LENS(), TEXT, TEXT, "attn.hook_z", DIFFERENCE, heads=[value])),
    "steps": ("steps", lambda value: icl.gd(value, 0.1)),
    "eta": ("eta", lambda value: icl.gd(1, "a" if value == 2.5 else value)),
    "gamma": ("gamma", lambda value: icl.gdpp(1, 0.1, "a" if value == 2.5 else value)),
    "newton": ("steps", lambda value: icl.newton(value)),
    "ridge": ("lam", lambda value: icl.ridge("a" if value == 2.5 else value)),
    "bayes_ridge": ("noise_var", lambda value: icl.bayes_ridge("a" if value == 2.5 else value)),
    "sgd_one_pass": ("alpha", lambda value: icl.sgd_one_pass("a" if value == 2.5 else value)),
    "knn": ("k ", lambda value: icl.knn(value)),
    "tune_gd": ("steps", lambda value: icl.tune_gd(icl.make_regression(8, 4, 2), value)),
    "noise": ("noise", lambda value: icl.make_regression(8, 4, 2, noise="a" if value == 2.5 else value)),
    "B": ("B ", lambda value: icl.make_regression(value, 4, 2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind(name: str) -> None:
    argument, call = CALLS[name]
    for value in (2.5, math.inf, math.nan if name != "eta" else "b"):
        with pytest.raises(interp.InterpError, match=argument):
            call(value)


def test_whole_numbers_of_numpy_and_torch() -> None:
    assert LENS().generate(TEXT, np.int64(2), min_new_tokens=2).shape == (1, 14)
    found = interp.patch(
        LENS(), TEXT, TEXT.flip(1), "hook_embed", DIFFERENCE, by="position", positions=torch.tensor([1, 2])
    )
    assert found.sizes["position"] == 2
    assert icl.gd(1, np.float64(0.5)).eta == 0.5


@pytest.mark.parametrize("value", [10**400, 10**5_000, 2**400], ids=lambda value: f"{value.bit_length()} bits")
def test_numbers_that_no_tensor_counts_with(value: int) -> None:
    """Of so many digits that Python itself refuses to write them, or to make floats of them."""
    for call in (
        lambda: interp.TextSinks(position=value),
        lambda: interp.H2O(sinks=value),
        lambda: icl.gd(value, 0.1),
    ):
        with pytest.raises(interp.InterpError, match=r"whole number") as caught:
            call()
        assert len(str(caught.value)) < 300
