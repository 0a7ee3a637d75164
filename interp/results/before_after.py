"""Two results of one probe on the same text and images, before and after something was changed, as one dataset."""

from __future__ import annotations

import numpy as np
import xarray as xr

from interp.errors import InterpError

SIDES = ("before", "after")
SAME = (
    ("title", "probes", "run the same probe twice"),
    ("model", "models", "interp.compare puts those side by side"),
    ("tokens_sha256", "texts", "read the same text with and without the edit"),
    ("pictures", "images", "read the same text and images with and without the edit"),
    ("heads", "heads", "keep the same heads in both"),
)
"""Attributes that both results share, what differs where they do not, and what to do then."""


def before_after(before: xr.Dataset, after: xr.Dataset) -> xr.Dataset:
    """Two results of the same probe, model, text and images as one, with a dimension `edited` ("before", "after").

    All variables of both that have the same shape are kept. `attrs["before"]` and `attrs["after"]` are the edits that
    were in force, as JSON; attributes that differ otherwise are those of `before`.

    Raises InterpError, in one sentence, for results of different probes, models, texts or images, or of several texts.

    Examples:
        >>> before = interp.probe(lens, prompt, "text_sinks")["text_sinks"]
        >>> with lens.apply(interp.Temperature(temperature=0.5)):
        ...     after = interp.probe(lens, prompt, "text_sinks")["text_sinks"]
        >>> interp.before_after(before, after)["mean_received"].dims
        ('edited', 'layer', 'head', 'token')
    """
    from interp.results.many_texts import single
    from interp.results.reading import read_off

    if not (isinstance(before, xr.Dataset) and isinstance(after, xr.Dataset)):
        raise InterpError("before_after takes two results of interp.probe, one before and one after an edit.")
    if several := [name for name, one in zip(SIDES, (before, after), strict=True) if "text" in one.dims]:
        raise InterpError(f"{several[0]} holds several texts; choose one of each with .isel(text=0).")
    with read_off("a result before or after an edit"):
        return _joined(single(before), single(after))


def _joined(before: xr.Dataset, after: xr.Dataset) -> xr.Dataset:
    for name, what, instead in SAME:
        if before.attrs.get(name) != after.attrs.get(name):
            raise InterpError(f"these two results are of different {what}; {instead}.")
    kept = [name for name in before.data_vars if name in after and before[name].sizes == after[name].sizes]
    differ = [name for name, one in before.coords.items() if name not in after.coords or not one.equals(after[name])]
    if not kept or differ:
        raise InterpError(
            f"these two results differ in {', '.join(map(str, differ)) or 'all variables'}, not in an edit."
        )
    two = [one.drop_vars([name for name in one.data_vars if name not in kept]) for one in (before, after)]
    joined = xr.concat(two, dim="edited", combine_attrs="override", coords="minimal", compat="override")
    edits = {name: one.attrs.get("interventions", "[]") for name, one in zip(SIDES, (before, after), strict=True)}
    dropped = {name: value for name, value in joined.attrs.items() if name != "interventions"}
    joined.attrs = dropped | edits
    return joined.assign_coords(edited=np.array(SIDES, dtype=object))
