"""What an edit changes in a report: the picture of attention is read once more, with the edit in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError

if TYPE_CHECKING:
    import xarray as xr

    from interp.interventions.base import Intervention
    from interp.lens.lens import Lens
    from interp.probes import Probe

READ, CHANGED = "image_attention", "before_after"


def edits_to_show(
    specs: Sequence[str] | None, wanted: Sequence[Probe], images: Sequence[Path] | None
) -> Intervention | None:
    """The edits that a report is asked to show, as one; None where there are none.

    Raises InterpError where there is no picture to show it on, or for what is no attention edit.
    """
    from interp.interventions import AttentionEdit, parse_all
    from interp.interventions.base import parts

    edit = parse_all(specs or ())
    if edit is None:
        return None
    if not images or all(probe.name != READ for probe in wanted):
        raise InterpError(
            f"--with shows in a report what an edit changes in a picture: pass --image FILE, and the probe {READ}."
        )
    if other := [part.name for part in parts(edit) if not isinstance(part, AttentionEdit)]:
        raise InterpError(f"{other[0]} is no attention edit; a report shows what those change.")
    return edit


def changed(
    lens: Lens, edit: Intervention, wanted: Sequence[Probe], results: Mapping[str, xr.Dataset], given: Any,
    pictures: Any, chat: bool,
) -> dict[str, xr.Dataset]:  # fmt: skip
    """The results, and behind that of the picture of attention what becomes of it with the edit, as `before_after`."""
    import interp

    probe = next(probe for probe in wanted if probe.name == READ)
    with lens.apply(edit):
        after = interp.probe(lens, given, probe, images=pictures, chat=chat)[READ]
    both = interp.before_after(results[READ], after)
    told = both.assign_attrs(
        title="Attention to the image, before and after",
        description="What an edit changes in what the last token attends to",
        summary=_summary(both),
    )
    order = [name for one in results for name in ((one, CHANGED) if one == READ else (one,))]
    return {name: told if name == CHANGED else results[name] for name in order}


def _summary(both: xr.Dataset) -> str:
    attention = (
        both["attention"].isel(query=-1).mean([dim for dim in ("layer", "head") if dim in both["attention"].dims])
    )
    to_image = attention.values[:, np.isfinite(both["box"].values[:, 0])].sum(-1)
    return (
        f"With the edit the last token gives {to_image[1]:.1%} of its attention to the image, where it gives "
        f"{to_image[0]:.1%} without, in the mean over layers and heads."
    )
