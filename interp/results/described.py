"""A described dataset: every variable with named dimensions, units and one line of what it is.

described(
    {"loss": ("step", losses, "nats", "mean over the batch, before the step's update")},
    coords={"step": range(1, 101)},
    attrs={"title": "Training", "description": "The curve of one model"},
)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import xarray as xr

from interp.errors import InterpError


class Row(NamedTuple):
    """One variable; a plain tuple in this order will do."""

    dims: str | Sequence[str]
    """One name, or several in the order of the axes; `()` for a single number."""
    values: Any
    """What `numpy.asarray` takes, or a tensor on any device."""
    units: str = ""
    """Such as `nats`, `token`, `layer`; `1` for a pure number, `text` for text. Must be given."""
    description: str = ""
    """Must be given too."""
    about: Mapping[str, Any] = {}
    """More attributes, if there are any."""


def described(
    variables: Mapping[str, Row | tuple[Any, ...]],
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """The dataset of these variables; their units and descriptions are their attributes.

    `coords` and `attrs` are those of `xarray.Dataset`; a result has a `title` and a `description` among its attributes.
    Raises InterpError for a variable that lacks its units or its description.
    """
    return xr.Dataset({name: _variable(name, Row(*row)) for name, row in variables.items()}, coords, attrs)


def _variable(name: str, row: Row) -> xr.Variable:
    if lacking := [what for what in ("units", "description") if not getattr(row, what)]:
        raise InterpError(
            f"the variable {name!r} has no {' and no '.join(lacking)}; a row is (dims, values, units, description), "
            "with the units '1' for a pure number."
        )
    values = row.values.detach().cpu().numpy() if isinstance(row.values, torch.Tensor) else row.values
    return xr.Variable(row.dims, values, {"units": row.units, "description": row.description, **row.about})


def with_error(name: str, row: Row, error: Any, how: str = "") -> dict[str, Row]:
    """A variable and `<name>_se`, its standard error, in the same units; `how` ends the error's description."""
    return {name: row, f"{name}_se": row._replace(values=error, description=f"standard error of {name}{how}")}
