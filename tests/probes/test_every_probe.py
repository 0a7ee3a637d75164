"""What holds for every probe, whoever wrote it: it is crossed with all this by being found.

What its numbers should be is its own test's matter. A module `test_NAME.py` in this folder may say of the probe called
NAME
- `BLANK`: variables that may hold NaN though their descriptions do not say so;
- `REFUSES`: {architecture of tests.models: what the refusal says}.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import figures
from interp.errors import InterpError
from interp.interventions import available as interventions
from interp.probes import Context, Probe, TaskProbe, available, every, resolve
from interp.runs import probing
from tests.authors import said
from tests.interventions.test_specs import variants
from tests.models import NAMES, shared, tokenizer, tokens
from tests.probes.schema import check_result

READ = 40
PROBES: dict[str, type[Probe]] = every()
every_probe = pytest.mark.parametrize("name", PROBES)
every_probe_of_text = pytest.mark.parametrize("name", available())
every_probe_of_tasks = pytest.mark.parametrize("name", available("tasks"))
on_every_architecture = pytest.mark.parametrize("kind", NAMES)
PASSING = ("seconds_forward", "seconds", "time")


@cache
def lens_of(kind: str) -> interp.Lens:
    return interp.load(shared(kind), tokenizer())


def read(name: str, kind: str = "llama", length: int = READ, **how: Any) -> xr.Dataset:
    return interp.probe(lens_of(kind), tokens(1, length)[0], name, **how)[name]


result = cache(read)


def refused(name: str, kind: str) -> bool:
    """Whether this architecture cannot be read: it lacks a hook point, or the author says so. Checks what is said."""
    lens, ids = lens_of(kind), tokens(1, READ)
    says = said("probes", name, "REFUSES", {}).get(kind)
    if says is None:
        points = PROBES[name]().begin(Context(lens, ids, lens.to_str_tokens(ids))).hooks()
        in_every_layer = [point for point in points if point not in lens.hook_dict]
        layers = range(lens.cfg.n_layers)
        if all(f"blocks.{i}.{point}" in lens.hook_dict for point in in_every_layer for i in layers):
            return False
        says = lens.cfg.architecture
    with pytest.raises(InterpError, match=says) as told:
        read(name, kind)
    assert "\n" not in str(told.value)
    return True


def writes_out(name: str) -> bool:
    """Whether the probe has layers compute their attention in the open."""
    lens, ids = lens_of("llama"), tokens(1, READ)
    points = PROBES[name]().begin(Context(lens, ids, lens.to_str_tokens(ids))).hooks()
    return any(point.endswith(("hook_attn_scores", "hook_pattern")) for point in points)


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    xr.testing.assert_identical(*(ds.assign_attrs(dict.fromkeys(PASSING, 0)) for ds in (one, other)))


def check_numbers(ds: xr.Dataset, name: str, layers: int) -> None:
    """Dimensions are named, layers numbered, and what is not finite was said to be so."""
    blank = said("probes", name, "BLANK", ())
    if "layer" in ds.dims:
        assert set(ds["layer"].values.tolist()) <= set(range(layers))
    for key, variable in ds.data_vars.items():
        assert not [dim for dim in variable.dims if str(dim).startswith("dim_")], f"{key} has dimensions without names"
        if variable.dtype.kind == "f":
            infinite = np.isinf(variable.values).sum()
            missing = np.isnan(variable.values).sum()
            assert not infinite, f"{key} is infinite"
            assert not missing or key in blank or "NaN" in variable.attrs["description"], (
                f"{key} has {missing} NaN, of which its description says nothing"
            )


def check_said(about: Probe, ds: xr.Dataset) -> None:
    """Findings are sentences, and columns have a cell for each layer."""
    told = about.findings(ds)
    assert all(isinstance(sentence, str) and sentence[-1] in ".!?" and "\n" not in sentence for sentence in told)
    assert not [sentence for sentence in told if re.search(r"\bnan\b", sentence)]
    for column in type(about).columns(ds):
        assert column.title
        assert column.about
        assert len(column.cells) == ds.sizes["layer"]
        assert all(isinstance(cell, str) for cell in column.cells)


@every_probe
def test_it_is_a_frozen_dataclass_that_its_name_alone_gives(name: str) -> None:
    cls = PROBES[name]
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    (made,) = resolve(name, cls.reads)
    assert made == cls() == eval(repr(cls()), {cls.__name__: cls})
    assert hash(made) == hash(cls())
    assert cls.__doc__
    assert cls.__doc__ != dataclasses.make_dataclass(cls.__name__, []).__doc__
    assert not name.startswith("_")
    assert name not in interventions()


@every_probe
def test_every_setting_can_be_written_as_text(name: str) -> None:
    cls = PROBES[name]
    for key, value in variants(cls):
        try:
            wanted = cls(**{key: value})
        except InterpError:  # alone it makes no sense
            continue
        assert resolve(f"{name}:{key}={value}", cls.reads) == [wanted]
    with pytest.raises(InterpError, match=f"{name} has no setting 'no_such_setting'"):
        resolve(f"{name}:no_such_setting=1", cls.reads)


@on_every_architecture
@every_probe_of_text
def test_its_result_describes_itself(name: str, kind: str, tmp_path: Any) -> None:
    if refused(name, kind):
        return
    lens, ds = lens_of(kind), result(name, kind)
    check_result(ds, tmp_path)
    check_numbers(ds, name, lens.cfg.n_layers)
    check_said(PROBES[name](), ds)
    n_heads = {"head": lens.cfg.n_heads, "kv_head": lens.cfg.n_key_value_heads or lens.cfg.n_heads}
    for dim, size in {**n_heads, "token": READ}.items():
        assert dim not in ds.dims or ds.sizes[dim] == size, f"{dim} is not the model's"
    for figure in figures.figures_of(name).values():
        assert figure(ds).data


@on_every_architecture
@every_probe_of_text
def test_it_changes_no_bit_of_what_it_looks_at(name: str, kind: str) -> None:
    """Logits beside hooks at the same points that look at nothing; points that leave the model's own attention to run
    leave its logits too."""
    if refused(name, kind):
        return
    lens, ids = lens_of(kind), tokens(1, READ)
    hooks = probing._attach(lens, name, PROBES[name]().begin(Context(lens, ids, lens.to_str_tokens(ids))))
    idle = [(point, lambda value, hook: None) for point, _ in hooks]
    with torch.no_grad():
        found = lens.run_with_hooks(ids, fwd_hooks=hooks)
        assert torch.equal(found, lens.run_with_hooks(ids, fwd_hooks=idle))
        plain = lens.model(ids).logits
        if not [point for point, _ in hooks if point.endswith(("hook_attn_scores", "hook_pattern"))]:
            assert torch.equal(found, plain)
        assert torch.equal(lens(ids), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lens.model.modules())


@every_probe_of_text
def test_two_readings_are_one(name: str) -> None:
    """And what else is read in the same pass, or in which order, makes no difference, unless that has patterns written
    out: then rounding differs."""
    same(read(name), result(name))
    others = [other for other in available() if other != name and writes_out(other) <= writes_out(name)]
    beside = interp.probe(lens_of("llama"), tokens(1, READ)[0], [*others, name])
    same(beside[name], result(name))


@every_probe_of_text
def test_padding_is_not_read(name: str) -> None:
    """Left, right, and in a batch: each text is what it is alone."""
    for left, right in ((7, 0), (0, 5)):
        ids = torch.full((left + READ + right,), 2)
        mask = torch.zeros_like(ids)
        ids[left : left + READ], mask[left : left + READ] = tokens(1, READ)[0], 1
        found = interp.probe(lens_of("llama"), ids, name, attention_mask=mask)[name]
        same(found, result(name))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("length", [1, 2, 3])
@every_probe_of_text
def test_texts_of_hardly_any_token(name: str, length: int, kind: str, tmp_path: Any) -> None:
    if refused(name, kind):
        return
    ds = read(name, kind, length)
    check_result(ds, tmp_path)
    check_numbers(ds, name, lens_of(kind).cfg.n_layers)
    check_said(PROBES[name](), ds)
    for figure in figures.figures_of(name).values():
        figure(ds)


@every_probe_of_text
def test_half_precision_is_read_too(name: str) -> None:
    import copy

    lens = interp.load(copy.deepcopy(shared("llama")).to(torch.bfloat16), tokenizer())
    ds = interp.probe(lens, tokens(1, READ)[0], name)[name]
    check_numbers(ds, name, 3)
    assert {key: v.dtype for key, v in ds.variables.items() if v.dtype.kind != "O"} == {
        key: v.dtype for key, v in result(name).variables.items() if v.dtype.kind != "O"
    }


@cache
def regressors() -> dict[str, Any]:
    """(model, tasks) of each kind that probes of tasks may meet."""
    icl = interp.icl
    about = {
        "one step": {}, "two layers": {"n_layers": 2}, "shared weights": {"n_layers": 3, "recurrent": True},
        "softmax": {"attention": "softmax", "n_heads": 2},
        "copying": {"n_layers": 2, "layout": "interleaved", "attention": ("softmax", "linear"), "n_pos_enc": 4,
                    "init_std": 0.3},
    }  # fmt: skip
    tasks = icl.make_regression(60, 8, 4, seed=3, dtype=torch.float64)
    torch.manual_seed(0)
    models = {
        kind: icl.AttentionRegressor(icl.RegressorConfig(d_in=4, n_ctx=8, **more)).double()
        for kind, more in about.items()
    }
    icl.construct_gd(models["one step"], 1.0)
    return {kind: (model, tasks) for kind, model in models.items()}


@pytest.mark.parametrize("kind", ["one step", "two layers", "shared weights", "softmax", "copying"])
@every_probe_of_tasks
def test_its_result_of_tasks_describes_itself(name: str, kind: str, tmp_path: Any) -> None:
    model, tasks = regressors()[kind]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, other = (interp.probe(model, tasks, name)[name] for _ in range(2))
    # not bit for bit: a least-squares fit rounds by where its arrays lie, which shows in errors of 1e-32
    xr.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)
    check_result(one, tmp_path)
    check_numbers(one, name, model.cfg.n_layers)
    check_said(PROBES[name](), one)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(InterpError, match=f"{name} reads"):
        interp.probe(lens_of("llama"), tasks, name)
    with pytest.raises(InterpError, match=f"{name} reads"):
        interp.probe(lens_of("llama"), "w5 w6", name)
    assert issubclass(PROBES[name], TaskProbe)
