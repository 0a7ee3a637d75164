"""One file per observation; every `Probe` subclass in a module of this folder is found by its `name`, and exported by
`interp`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from interp.discovery import classes_in, fetching, homes
from interp.errors import InterpError
from interp.probes.base import Context, Fold, Probe, TaskProbe, no_images
from interp.settings.reading import made, several

__all__ = ["Context", "Fold", "Probe", "TaskProbe", "available", "every", "resolve"]

EXAMPLE = "text_sinks:epsilon=[0.3,0.8]"


def available(reads: str = "text") -> dict[str, type[Probe]]:
    """All probes that read a "text", or those that read regression "tasks", or a text with "images", by name, in
    alphabetical order."""
    return {name: cls for name, cls in _all().items() if cls.reads == reads}


def every() -> dict[str, type[Probe]]:
    """All probes by name, whatever they read."""
    return dict(_all())


@cache
def _all() -> dict[str, type[Probe]]:
    return classes_in(__name__, __path__, Probe)


def resolve(probes: Iterable[str | Probe] | str | Probe | None, reads: str = "text") -> list[Probe]:
    """Probe objects from names, with settings (`text_sinks:epsilon=[0.3,0.8]`) or without, and probes; None means all
    that read a text (or `reads`; a text with images is a text too).

    Raises UnknownNameError for a name or a setting that is none, InterpError for something else, the same probe twice,
    or a probe that reads something else.
    """
    known = available(reads) | (available("text") if reads == "images" else {})
    if probes is None:
        return [cls() for cls in known.values()]
    found = [made("probe", p, Probe, _all(), EXAMPLE) for p in several(probes)]
    if not found:
        raise InterpError(f"no probe was asked for; there are {', '.join(known)}.")
    for probe in found:
        if isinstance(probe, TaskProbe) and reads != "tasks":
            raise probe.refusal()
        if probe.reads == "images" and reads == "text":
            raise no_images(probe.name)
        if probe.reads != reads and not (reads == "images" and probe.reads == "text"):
            raise InterpError(f"{probe.name} reads text, not regression tasks; those are read by {', '.join(known)}.")
    names = [p.name for p in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InterpError(f"{', '.join(twice)} is asked for twice; results go by name, so run one setting at a time.")
    return found


def __getattr__(name: str) -> Any:
    return fetching(__name__, homes(__name__) if name[:1].isupper() else {})(name)


if TYPE_CHECKING:  # for editors; written by python -m docs.write_names
    from interp.probes.attention_rank import AttentionRank as AttentionRank
    from interp.probes.channel_imbalance import ChannelImbalance as ChannelImbalance
    from interp.probes.icl_gd import IclGd as IclGd
    from interp.probes.image_attention import ImageAttention as ImageAttention
    from interp.probes.image_logit_lens import ImageLogitLens as ImageLogitLens
    from interp.probes.logit_lens import LogitLens as LogitLens
    from interp.probes.text_sinks import TextSinks as TextSinks
    from interp.probes.vision_registers import VisionRegisters as VisionRegisters
    from interp.probes.visual_sinks import VisualSinks as VisualSinks
