"""What a report says, before it becomes HTML or Markdown: plain, unescaped text and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.report.table import Table, layer_table
from interp.results import repeating
from interp.results.columns import Column, layer_columns
from interp.results.reading import read_off

if TYPE_CHECKING:
    import xarray as xr

    from interp.probes import Probe

LABELS = {
    "model": "Model",
    "architecture": "Architecture",
    "text": "Text",
    "n_tokens": "Tokens",
    "tokens_asked": "Tokens asked",
    "images": "Images",
    "context": "Context",
    "seconds": "Time",
    "cpu": "Processor",
    "threads": "Threads",
    "device": "Device",
    "platform": "System",
    "time": "Date",
    "interp": "interp",
    "commit": "Commit",
    "torch": "torch",
    "transformers": "transformers",
    "transformer_lens": "transformer-lens",
    "numpy": "numpy",
    "python": "Python",
}
CHANGED, OF = "before_after", "image_attention"
"""The result that says what an edit changed, and the probe that it is of."""
ELSEWHERE = {
    "command",
    "python_text",
    "python_images",
    "python_chat",
    "python_edits",
}  # shown under "How to regenerate"


@dataclass(frozen=True)
class Section:
    """One probe's part of the report."""

    name: str
    title: str
    description: str
    findings: list[str]
    result: xr.Dataset


@dataclass(frozen=True)
class Content:
    """All that both forms of the report show."""

    model: str
    text: str
    n_tokens: int
    facts: list[tuple[str, str]]
    sections: list[Section]
    table: Table
    command: str
    python: str


def content_of(results: Mapping[str, xr.Dataset], run: Mapping[str, Any], probes: Iterable[Probe] | None) -> Content:
    """Gathers what is to be said; see `write_report` for the arguments."""
    from interp.results.many_texts import single

    if not results:
        raise InterpError("there is nothing to report: pass the results of at least one probe.")
    for name, result in results.items():
        if "text" in result.dims:
            raise InterpError(f"a report is about one text; choose one with results[{name!r}].isel(text=0).")
    with read_off("a report"):
        return _content_of({name: single(result) for name, result in results.items()}, run, probes)


def _content_of(results: Mapping[str, xr.Dataset], run: Mapping[str, Any], probes: Iterable[Probe] | None) -> Content:
    known = {probe.name: probe for probe in (_all_probes() if probes is None else probes)}
    sections = [
        Section(
            name=name,
            title=str(result.attrs.get("title", name.replace("_", " ").capitalize())),
            description=str(result.attrs.get("description", "")),
            findings=known[name].findings(result) if name in known else _summary(result),
            result=result,
        )
        for name, result in results.items()
    ]
    first = next(iter(results.values()))
    n_tokens = int(run.get("n_tokens", first.attrs.get("n_tokens", 0)))
    model = str(run.get("model", first.attrs.get("model", "a model")))
    return Content(
        model=model,
        text=str(run.get("text", "a text")),
        n_tokens=n_tokens,
        facts=facts_of({"model": model, "n_tokens": n_tokens, **run}),
        sections=sections,
        table=layer_table(results, {name: _columns(known.get(name), result, name) for name, result in results.items()}),
        command=str(run.get("command", "")),
        python=repeating.script(
            [
                *repeating.loaded(model, str(run.get("python_text", repeating.NOT_KNOWN)), _dtype(first)),
                *_probed(results, known, n_tokens, run),
                *repeating.reported(),
            ]
        ),
    )


def _probed(
    results: Mapping[str, xr.Dataset], known: Mapping[str, Probe], n_tokens: int, run: Mapping[str, Any]
) -> list[str]:
    """The lines that probe, and again with an edit where a result says what one changed."""
    wanted = [known.get(name, name) for name in results if name != CHANGED]
    read: dict[str, Any] = {"images": run.get("python_images"), "chat": bool(run.get("python_chat"))}
    lines = repeating.probed(wanted, n_tokens, **read)
    return lines + (
        repeating.changed(known.get(OF, OF), run.get("python_edits", []), **read) if CHANGED in results else []
    )


def _summary(result: xr.Dataset) -> list[str]:
    """What a result that no probe made says of itself."""
    return [str(result.attrs["summary"])] if result.attrs.get("summary") else []


def _dtype(result: xr.Dataset) -> str:
    return str(result.attrs.get("dtype", repeating.DEFAULT_DTYPE))


def _columns(probe: Probe | None, result: xr.Dataset, name: str) -> list[Column]:
    """What the probe that made a result puts into the table; everything, where nobody knows that probe."""
    from interp.probes import available

    kind = type(probe) if probe is not None else available().get(name)
    return layer_columns(result) if kind is None else kind.columns(result)


def _all_probes() -> list[Probe]:
    from interp.probes import available

    return [probe() for probe in available().values()]


def facts_of(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, as (label, value): the known ones first, in the order of `LABELS`."""
    flat: dict[str, str] = {}
    for key, value in run.items():
        if key == "seconds":
            flat[key] = _seconds(value)
        elif isinstance(value, Mapping):
            flat |= {inner: _value(content) for inner, content in value.items()}
        elif key not in ELSEWHERE:
            flat[key] = _value(value)
    order = {key: place for place, key in enumerate(LABELS)}
    return [(LABELS.get(key, key), flat[key]) for key in sorted(flat, key=lambda key: order.get(key, len(order)))]


def _seconds(seconds: Any) -> str:
    if not isinstance(seconds, Mapping):
        return f"{float(seconds):.1f} s"
    parts = ", ".join(f"{what} {float(value):.1f} s" for what, value in seconds.items())
    return parts if "total" in seconds else f"{parts} (together {sum(map(float, seconds.values())):.1f} s)"


def _value(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
