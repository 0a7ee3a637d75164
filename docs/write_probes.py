"""Writes `probes.md` from the probes themselves: `python -m docs.write_probes`.

Formulas, sources and defaults come from the docstrings and fields; names, dimensions, units and descriptions of the
variables from the results of a tiny random model, so that the page cannot say what the code does not do.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

import torch
import xarray as xr
from PIL import Image

import interp
from docs.sections import cell, markdown, settings
from interp.probes import Probe, available

PAGE = Path(__file__).with_name("probes.md")

HEAD = """# Probes

A probe listens at hook points during one forward pass and keeps a few numbers of each layer.
`interp.probe(lens, text, names)` runs any number of them in the same pass and returns an `xarray.Dataset` for each.
Pass a probe object instead of a name to change its parameters, `interp.TextSinks(epsilon=(0.3, 0.8))`, or write them
behind the name: `"text_sinks:epsilon=[0.3,0.8]"`, on the command line `--probes text_sinks:epsilon=[0.3,0.8]`.
Probes of texts with images, `interp.probe(lens, text, names, images=...)`, follow those of text, and those of models
that read regression tasks come last: `interp.probe(regressor, tasks, names)`. This page is written by
`python -m docs.write_probes`.
"""


def tiny_lens() -> interp.Lens:
    """A random two-layer Llama: what variables a result has does not depend on the weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    return interp.load(LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **shape)).eval())


def tiny_regressor() -> interp.icl.AttentionRegressor:
    """One layer of gradient descent."""
    return interp.icl.construct_gd(interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=4)), 1.0)


def tiny_seeing() -> interp.Lens:
    """A random LLaVA with its processor."""
    from tests.vision_models import built

    return interp.Lens(*built("llava"))


def section(probe: type[Probe], result: xr.Dataset) -> str:
    module = sys.modules[probe.__module__]
    lines = [f"\n## `{probe.name}`: {result.attrs['title'].lower()}\n", markdown(inspect.getdoc(module) or "")]
    lines += [f"\n### `{probe.__name__}`\n", markdown(inspect.getdoc(probe) or "", leave_out=("Args",))]
    if fields := dataclasses.fields(probe):
        lines += ["\n| setting | default | what |", "| --- | --- | --- |"]
        told = settings(probe)
        lines += [f"| `{f.name}` | `{f.default!r}` | {cell(told.get(f.name, ''))} |" for f in fields]
    lines += ["\n| variable | dimensions | units | what |", "| --- | --- | --- | --- |"]
    for name, variable in result.data_vars.items():
        dims = ", ".join(map(str, variable.dims)) or "scalar"
        lines.append(f"| `{name}` | {dims} | {variable.attrs['units']} | {cell(str(variable.attrs['description']))} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    results = interp.probe(tiny_lens(), torch.arange(1, 31))
    results |= interp.probe(tiny_regressor(), interp.icl.make_regression(40, 4, 3))
    results |= interp.probe(tiny_seeing(), "w1 <image> w2", [*available("images")], images=Image.new("RGB", (56, 56)))
    probes = available() | available("images") | available("tasks")
    return HEAD + "".join(section(probe, results[name]) for name, probe in probes.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
