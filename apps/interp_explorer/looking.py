"""A model, a picture and a question: its answer, where its words look, and which tokens are sinks."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
import xarray as xr

from interp.errors import InterpError
from interp.interventions import parse
from interp.lens.spelling import AS_THE_TOKENIZER_DOES
from interp.probes import available, resolve
from interp.probes.image_attention import ImageAttention
from interp.probes.visual_sinks import VisualSinks
from interp.results import repeating
from interp.vision.prompts import PLACE, with_parts
from interp_explorer import memory, patches, subject, view, waiting
from interp_explorer.desk import Progress
from interp_explorer.pictures import Picture

if TYPE_CHECKING:
    from interp.lens.lens import Lens

ROWS = 96
"""Words that are asked where they look, the last ones."""
TEXTS = 32
"""That `interp.sink_channels` reads by itself."""


@dataclass(frozen=True)
class Asked:
    """A question about a picture, for one model."""

    model: str
    dtype: str
    picture: Picture
    question: str
    steps: int
    chat: bool

    @property
    def key(self) -> tuple[Hashable, ...]:
        return self.model, self.dtype, self.picture.key, subject.fingerprint(self.question), self.steps, self.chat

    @property
    def prompt(self) -> str:
        """As `lens.generate(prompt, images=..., chat=...)` takes it."""
        return self.question if self.chat else self.with_place

    @property
    def with_place(self) -> str:
        """The question as plain text, with a place for the picture."""
        return self.question if PLACE in self.question else f"{PLACE} {self.question}"

    def talk(self, answer: str) -> Any:
        """The question and what came of it, as `interp.probe` reads them."""
        if not self.chat:
            return self.prompt + answer
        said = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer.strip() else []
        return [{"role": "user", "content": with_parts(self.question, 1)}, *said]


def answered(lens: Lens, asked: Asked) -> tuple[str, int]:
    """What the model says, and the position of the token after which it begins."""

    def generate(progress: Progress) -> tuple[str, int]:
        from interp.runs.generating import generate

        seen = {"images": asked.picture.image}
        read = lens.read_arguments(asked.prompt, None, dict(seen), AS_THE_TOKENIZER_DOES, asked.chat, goes_on=True)
        memory.check_reading(lens.cfg, read.tokens.shape[1] + asked.steps)
        told = generate(lens, asked.prompt, None, asked.steps, chat=asked.chat, **seen, progress=progress)
        return str(told["text"]), int(told["prompt_tokens"]) - 1

    return waiting.done(("answer", *asked.key), f"writing up to {asked.steps} tokens", generate)


def attention(lens: Lens, asked: Asked, answer: str, head: int | None) -> xr.Dataset:
    """Where the words of question and answer look."""
    return _probed(lens, asked, answer, _words(head), "seeing where words look")


def sinks(lens: Lens, asked: Asked, answer: str, channels: tuple[int, ...], tau_rel: float) -> xr.Dataset:
    """Which tokens are sinks, by these channels, or by those that stand out where there are none."""
    probe = VisualSinks(channels=channels or None, tau_rel=tau_rel)
    result = _probed(lens, asked, answer, probe, "looking for sinks")
    view.code("sinks = results['visual_sinks']")
    return result


def sink_channels(lens: Lens, asked: Asked, texts: bool) -> tuple[int, ...]:
    """The channels by which sinks are told: on the texts that the library brings along, or on this question alone."""

    def find(progress: Progress) -> tuple[int, ...]:
        import interp

        with waiting.told_of_passes(lens, progress, TEXTS if texts else 1):
            if texts:
                return interp.sink_channels(lens)
            return interp.sink_channels(lens, asked.with_place, images=asked.picture.image)

    key = (asked.model, asked.dtype) if texts else asked.key
    what = f"finding sink channels in {f'{TEXTS} texts' if texts else 'this question'}"
    return waiting.done(("sink_channels", texts, *key), what, find)


def threshold(lens: Lens, asked: Asked, channels: tuple[int, ...]) -> float | None:
    """The share of √d from which tokens of this question are sinks, by where attention piles up; None where it does
    not."""

    def find(_: Progress) -> float:
        import interp

        found = interp.sink_threshold(lens, channels, asked.with_place, images=asked.picture.image)
        return float(found.attrs["tau_rel"])

    share = waiting.done(("threshold", *asked.key, channels), "seeing where attention piles up", find)
    return share if math.isfinite(share) else None


def others(lens: Lens, asked: Asked, answer: str, name: str) -> xr.Dataset:
    """The result of any other probe of texts with images, by its name."""
    return _probed(lens, asked, answer, resolve([name], "images")[0], f"reading with {name}")


def changed(lens: Lens, asked: Asked, answer: str, head: int | None, spec: str) -> xr.Dataset:
    """Where the words look before and after an intervention, that `spec` is as on the command line."""
    before = attention(lens, asked, answer, head)

    def work(progress: Progress) -> xr.Dataset:
        import interp

        probe = _words(head)
        with lens.apply(parse(spec)):
            seen = interp.probe(lens, asked.talk(answer), [probe], images=asked.picture.image, progress=progress)
        return interp.before_after(before, seen[probe.name])

    both = waiting.done(("changed", *asked.key, head, spec), "seeing where words look then", work)
    view.code(*repeating.changed(_words(head), [spec], pictured=True))
    shown = view.current()
    if shown is not None:
        shown.data["before_after"] = both
    return both


def _words(head: int | None) -> ImageAttention:
    return ImageAttention(rows=ROWS, head=head)


def _probed(lens: Lens, asked: Asked, answer: str, probe: Any, what: str) -> xr.Dataset:
    talk = asked.talk(answer)

    def work(progress: Progress) -> xr.Dataset:
        import interp

        return interp.probe(lens, talk, [probe], images=asked.picture.image, progress=progress)[probe.name]

    result = waiting.done(("looking", *asked.key, repr(probe)), what, work)
    view.code(*repeating.loaded(asked.model, repr(talk), asked.dtype))
    view.code(*repeating.looked_at([probe], asked.picture.python))
    shown = view.current()
    if shown is not None:
        shown.data[probe.name] = result
    return result


def talks(lens: Lens) -> bool:
    """Whether a model has a chat template."""
    return bool(getattr(lens.processor, "chat_template", None) or getattr(lens.tokenizer, "chat_template", None))


def more(*known: str) -> list[str]:
    """Names of probes of texts with images, besides those that the page knows by name."""
    return [name for name in available("images") if name not in known]


def findings(name: str, result: xr.Dataset) -> list[str]:
    """What the probe called `name` says of its result."""
    told: list[str] = resolve([name], "images")[0].findings(result)
    return told


def channels_in(line: str, width: int) -> tuple[int, ...]:
    """Channels as they are typed. Raises InterpError for what is no channel of a stream of this width."""
    found = patches.read(line)
    if found and found[-1] >= width:
        raise InterpError(f"the residual stream has channels 0 to {width - 1}, found {found[-1]}.")
    return tuple(found)


def patches_of(looks: xr.Dataset, line: str) -> list[int]:
    """Patches as they are typed. Raises InterpError where one of them is no token of the image."""
    found = patches.read(line)
    own = looks["token"].values[looks["modality"].values == "image"]
    if wrong := [token for token in found if token not in own]:
        raise InterpError(
            f"token {wrong[0]} is no part of the image, whose tokens lie from {own.min()} to {own.max()}."
        )
    return found


def chosen(label: str, key: str, options: list[str], at_first: str) -> str:
    """One of the options, of which the address may name one."""
    known = st.session_state.get(key, st.query_params.get(key))
    if known not in options:  # of another question
        st.session_state[key] = at_first if at_first in options else options[-1]
    return str(st.selectbox(label, options, key=key, bind="query-params"))


def take_word(key: str) -> None:
    """Make a clicked word the one that looks."""
    for point in st.session_state[key]["selection"]["points"]:
        st.session_state["word"] = str(point["customdata"][0])


def take_bar(key: str) -> None:
    """The same where a word is a bar at its position."""
    for point in st.session_state[key]["selection"]["points"]:
        st.session_state["word"] = str(int(point["x"]))
