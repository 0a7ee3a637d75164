"""Settings, wherever they come from: Python, the command line's `--with` and `--probes`, TOML, tasks and studies."""

from __future__ import annotations

import interp
from interp import explaining, interventions, probes
from interp.icl import studies
from interp.interventions._specs import from_toml, to_toml
from interp.settings.reading import split
from tests.fuzzing.drawing import Draw
from tests.fuzzing.trying import fuzz, inputs

CLASSES = {
    **interventions.available(), **probes.every(), **explaining.available(),
}  # fmt: skip
SPECS = [
    "think:ratio=0.5,window=16", "snapkv:budget=0.5,window=8", "h2o:budget=8", "streaming_llm:budget=0.25",
    "d2o:budget=0.3", "knock_out:keys=[0,1]", "temperature:temperature=2.0,layers=[0]",
    "attention_bias:keys=0,bias=-2.5",
    "text_sinks:epsilon=[0.3,0.8],position=1", "attention_rank:k=16", "logit_lens", "channel_imbalance",
    "attribution:samples=100", "masks", "pyramidkv:budget=0.3,window=8", "recall:budget=8",
]  # fmt: skip


def built(draw: Draw) -> None:
    name = draw.choice(sorted(CLASSES))
    cls = CLASSES[name]
    settings = draw.settings(cls)
    draw.trying(name, settings)
    if name in interventions.available():
        made = interventions.named(name, **settings)
        repr(made)
        assert to_toml(from_toml(to_toml(made))) == to_toml(made)
        return
    from interp.settings.checking import check_names

    check_names(cls, settings)
    repr(cls(**settings))


@inputs(1400)
def test_settings_in_python(count: int) -> None:
    fuzz("settings in Python", count, built)


def read(draw: Draw) -> None:
    text = draw.text(draw.choice(SPECS))
    if draw.often(0.2):
        text = f"{text},{draw.text(draw.choice(SPECS))}"
    kind = draw.choice(("intervention", "probe", "question"))
    draw.trying(kind, text)
    if kind == "intervention":
        if not text.strip().endswith(".toml"):
            interventions.parse(text)
    elif kind == "probe":
        probes.resolve(split([text], "probe"))
    else:
        explaining.resolve([text], interp.ThinK() | interp.H2O(budget=8))


@inputs(1400)
def test_settings_as_text(count: int) -> None:
    fuzz("settings as text", count, read)


def toml(draw: Draw) -> None:
    whole = to_toml(interventions.parse_all(draw.sample(SPECS[:8], 2)))
    text = draw.text(whole)
    draw.trying(text)
    from_toml(text)


@inputs(400)
def test_settings_in_toml(count: int) -> None:
    fuzz("settings in TOML", count, toml)


def study(draw: Draw) -> None:
    name = draw.choice(sorted(studies.available()))
    settings = draw.settings(studies.available()[name])
    name = draw.text(name) if draw.often(0.1) else name
    draw.trying(name, settings)
    studies.make(name, **settings)


@inputs(250)
def test_settings_of_studies(count: int) -> None:
    fuzz("settings of studies", count, study)
