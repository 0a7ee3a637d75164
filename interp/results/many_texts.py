"""Results of several texts as one, and one text's result out of it again.

`gather` keeps what belongs to a text with that text and gives what all of them share once:

* Variables get a `text` dimension. Along positions and components shorter texts are filled with NaN or empty strings;
  `<dimension>_size(text)` says how many entries are a text's own.
* Coordinates beside a dimension's own, such as `token_text(token)`, get a `text` dimension where they lie along
  positions or differ between texts.
* Token bins of different width are put side by side by their number; `token_bin_start(text, token_bin)` says at which
  token each begins.
* Attributes that are equal in all texts stay attributes. Others become variables along `text`: `<attribute>` where it
  is the result's own, `<variable>_<attribute>` where it is a variable's; with `_attribute` after it if that is taken.
* Numbers without a position dimension get `<name>_mean` and, from two texts on, `<name>_low` and `<name>_high`; whole
  numbers that name a token, channel or text do not, because a mean of places means nothing.

`one` undoes all of this for one text. `single` does the same for what `.isel(text=0)` leaves of a gathered result.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.results.ragged import mean_of_known
from interp.results.reading import read_off

POSITIONS = ("token", "token_bin", "query", "key", "patch")  # dimensions that mean something else in every text
PLACES = {"token", "channel", "text"}  # units of whole numbers that point at something instead of counting it
RESAMPLES = 1000
CONFIDENCE = 0.95


def gather(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """One dataset with a `text` dimension from one dataset per text; the module says by which rules.

    Low and high are the limits of the 95 % percentile bootstrap over texts (1,000 resamples, fixed seed). A mean is
    over the texts that have a value; limits are NaN where so few have one that a resample may hold none.
    """
    datasets = _by_number(datasets)
    unlabelled = {dim for d in datasets for dim in d.dims} - {dim for d in datasets for dim in d.indexes}
    datasets = [indexed(dataset) for dataset in datasets]
    joined = stack(datasets, "text").assign_coords(text=np.arange(len(datasets)))
    for name, variable in list(joined.data_vars.items()):
        if _averaged(variable, [d[name] for d in datasets if name in d]):
            joined = joined.assign(_summary(str(name), variable))
        if lacking := _lacking([d.get(name) for d in datasets]):
            joined[name].attrs["absent"] = lacking
    joined = joined.assign(_sizes(datasets, joined)).drop_vars(unlabelled)
    return _with_attributes(joined, datasets).assign_attrs(texts=len(datasets))


def one(result: xr.Dataset, text: int) -> xr.Dataset:
    """The result of one text out of a gathered one, as if it had been read alone: its attributes, and no fill.

    Raises InterpError for a result of a single text and for a text that is not there.

    Examples:
        >>> from interp.results.many_texts import one
        >>> both = interp.probe(lens, [prompt, "w9 w8 w7"], ["text_sinks"])["text_sinks"]
        >>> one(both, 1).sizes["token"]  # <bos> and three words
        4
    """
    if "text" not in result.dims:
        raise InterpError(
            "this is the result of one text already; interp.results.many_texts.one picks from results of several."
        )
    if not -result.sizes["text"] <= text < result.sizes["text"]:
        raise InterpError(f"there is no text {text}; these are results of {_texts(result)}, counted from 0.")
    return single(result.isel(text=text))


def single(result: xr.Dataset) -> xr.Dataset:
    """A result of one text: `result` itself, or with everything put back where it is `.isel(text=i)` of a gathered one.

    Raises InterpError for results of several texts.
    """
    with read_off("the result of one text"):
        return _single(result)


def _single(result: xr.Dataset) -> xr.Dataset:
    if "text" in result.dims:
        raise InterpError(f"these are results of {_texts(result)}; pick one with .isel(text=0).")
    if "text" not in result.coords:
        return result
    text = str(int(result["text"]))
    about = {name: variable.attrs for name, variable in result.variables.items()}
    foreign = [name for name, a in about.items() if "summary_of" in a or text in a.get("absent", "").split()]
    result = result.drop_vars([*foreign, "text"]).copy()
    result.attrs.pop("texts", None)
    for name, variable in list(result.variables.items()):
        if dim := variable.attrs.get("size_of"):
            result = result.isel({dim: slice(int(variable))}).drop_vars([name])
    for name, variable in list(result.variables.items()):
        if dim := variable.attrs.get("labels_of"):
            labels = variable.values.astype(variable.attrs["whole"])
            result = result.drop_vars([name]).assign_coords({dim: (dim, labels)})
        elif "attribute" in variable.attrs:
            result = result.drop_vars([name])
            _put_back(result, variable)
        else:
            values = variable.values.astype(variable.attrs.get("whole", variable.dtype))
            rest = {key: value for key, value in variable.attrs.items() if key not in ("whole", "absent")}
            result[name] = (variable.dims, values, rest)
    return result


def stack(datasets: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    """Datasets along a new dimension: aligned by label, filled with NaN or empty strings.

    Coordinates beside a dimension's own are stacked too, where they lie along positions or differ. Attributes that
    conflict are left out.
    """
    datasets = [indexed(dataset) for dataset in datasets]
    beside = dict.fromkeys(name for d in datasets for name in d.coords if name not in d.dims)
    own = [name for name in beside if not _shared(datasets, name)]
    variables = {name: v for d in datasets for name, v in d.variables.items()}
    joined = xr.concat(
        [d.reset_coords([name for name in own if name in d.coords]) for d in datasets],
        dim=dim,
        join="outer",
        data_vars="all",
        coords="minimal",
        compat="override",
        combine_attrs="drop_conflicts",
        fill_value={name: "" for name, variable in variables.items() if variable.dtype.kind in "OUST"},
    )
    for name, variable in variables.items():
        if variable.dtype.kind in "iu" and joined[name].dtype.kind == "f":
            joined[name].attrs["whole"] = str(variable.dtype)
    return joined.set_coords(own)


def indexed(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with a counting coordinate on every dimension that has none, so that shorter ones can be aligned."""
    bare = {dim: np.arange(size) for dim, size in dataset.sizes.items() if dim not in dataset.indexes}
    return dataset.assign_coords(bare)


def _positional(variable: xr.DataArray | xr.Variable) -> bool:
    return any(dim in POSITIONS for dim in variable.dims)


def _texts(result: xr.Dataset) -> str:
    count = result.sizes["text"]
    return f"{count} text{'s' * (count != 1)}"


def _shared(datasets: Sequence[xr.Dataset], name: Any) -> bool:
    """Whether a coordinate is the same for all and will stay so when they are aligned."""
    known = [d.coords[name].variable for d in datasets if name in d.coords]
    return len(known) == len(datasets) and not _positional(known[0]) and all(map(known[0].equals, known))


def _by_number(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Positions whose labels disagree (bins of different width) without them, and the labels as `<dimension>_start`."""
    found = list(datasets)
    for dim in POSITIONS:
        labels = [d.indexes[dim] for d in found if dim in d.indexes]
        longest = max(labels, key=len, default=None)
        if longest is None or all(longest[: len(label)].equals(label) for label in labels):
            continue
        about = {"units": "token", "description": f"where each {dim} of the text begins", "labels_of": dim}
        found = [
            d.drop_vars(dim).assign({f"{dim}_start": (dim, d[dim].values, about | {"whole": str(d[dim].dtype)})})
            if dim in d.indexes
            else d
            for d in found
        ]
    return found


def _sizes(datasets: Sequence[xr.Dataset], joined: xr.Dataset) -> dict[str, xr.Variable]:
    """`<dimension>_size` for dimensions that are longer in some texts, and begin alike in all."""
    found = {}
    for dim in (str(dim) for dim in joined.dims if dim != "text"):
        sizes = [d.sizes.get(dim, 0) for d in datasets]
        alike = all(joined.indexes[dim][: d.sizes[dim]].equals(d.indexes[dim]) for d in datasets if dim in d.dims)
        if len(set(sizes)) > 1 and alike:
            about = {"units": "1", "description": f"entries along {dim} that are the text's own", "size_of": dim}
            found[f"{dim}_size"] = xr.Variable("text", np.array(sizes), about)
    return found


def _with_attributes(joined: xr.Dataset, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """`joined` with the attributes that all texts share, and a variable along `text` for each of the others."""
    owners: dict[Any, list[Mapping[Any, Any]]] = {None: [d.attrs for d in datasets]}
    for name in {name: None for d in datasets for name in d.variables}:
        owners[name] = [d.variables[name].attrs if name in d.variables else {} for d in datasets]
    joined = joined.copy().drop_attrs(deep=False)
    differing: dict[str, xr.Variable] = {}
    for owner, attrs in owners.items():
        having = [a for d, a in zip(datasets, attrs, strict=True) if owner is None or owner in d.variables]
        home = joined.attrs if owner is None else joined[owner].attrs
        for attribute in dict.fromkeys(name for a in having for name in a):
            if all(attribute in a and np.array_equal(a[attribute], having[0][attribute]) for a in having):
                home[attribute] = having[0][attribute]
                continue
            home.pop(attribute, None)
            name = attribute if owner is None else f"{owner}_{attribute}"
            while name in joined.variables or name in joined.dims or name in differing:
                name += "_attribute"
            differing[name] = _along_text([a.get(attribute) for a in attrs], attribute, owner)
    return joined.assign(differing)


def _along_text(values: Sequence[Any], attribute: str, owner: Any) -> xr.Variable:
    """One attribute of all texts as a variable; None, where a text has none, becomes NaN or an empty string."""
    about = {
        "units": "1",
        "description": f"attribute {attribute} of {'the result' if owner is None else owner}",
        "attribute": attribute,
    }
    if owner is not None:
        about["attribute_of"] = str(owner)
    if lacking := _lacking(values):
        about["absent"] = lacking
    if all(value is None or isinstance(value, numbers.Real) for value in values):
        if None in values and all(value is None or isinstance(value, numbers.Integral) for value in values):
            about["whole"] = "int64"
        return xr.Variable("text", np.array([np.nan if value is None else value for value in values]), about)
    texts = ["" if value is None else value if isinstance(value, str) else _json(value) for value in values]
    return xr.Variable("text", np.array(texts, dtype=object), about | {"units": "text"})


def _lacking(values: Sequence[Any]) -> str:
    """The texts where something is None: '1 3'."""
    return " ".join(str(text) for text, value in enumerate(values) if value is None)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _averaged(variable: xr.DataArray, parts: Sequence[xr.DataArray]) -> bool:
    """Whether a mean over texts says something: numbers not along positions that are no places."""
    if variable.dtype.kind not in "fiu" or _positional(variable):
        return False
    return variable.attrs.get("units") not in PLACES or any(part.dtype.kind == "f" for part in parts)


def _summary(name: str, variable: xr.DataArray) -> dict[str, xr.DataArray]:
    about = {"units": variable.attrs.get("units", "1"), "summary_of": name}
    mean = variable.mean("text", keep_attrs=False)
    summary = {"mean": mean.assign_attrs(about, description=f"mean over texts of {name}")}
    if variable.sizes["text"] > 1:
        for side, limit in _interval(variable.transpose("text", ...).values.astype(np.float64)).items():
            what = f"{side} limit of the {CONFIDENCE:.0%} bootstrap interval of the mean of {name}"
            summary[side] = mean.copy(data=limit).assign_attrs(about, description=what)
    return {f"{name}_{kind}": values for kind, values in summary.items()}


def _interval(values: np.ndarray) -> dict[str, np.ndarray]:
    """Limits of the bootstrap interval of the mean along the first axis."""
    from scipy import stats  # slow to import, and not needed to pick one text

    unknown = np.zeros(values.shape[1:], bool)

    def mean(resamples: np.ndarray, axis: int) -> np.ndarray:
        means = mean_of_known(resamples, axis)
        unknown[...] |= np.isnan(means).any(-1)
        known: np.ndarray = np.nan_to_num(means)
        return known  # of NaN scipy would warn

    interval = stats.bootstrap(
        (values,), mean, axis=0, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", batch=50,
        rng=np.random.default_rng(0), vectorized=True,
    ).confidence_interval  # fmt: skip
    # a resample without a value makes the limits NaN
    return {"low": np.where(unknown, np.nan, interval.low), "high": np.where(unknown, np.nan, interval.high)}


def _put_back(result: xr.Dataset, variable: Any) -> None:
    """Give `result` the attribute that `_along_text` had made a variable."""
    about = variable.attrs
    home = result[about["attribute_of"]] if "attribute_of" in about else result
    home.attrs[about["attribute"]] = int(variable.values) if "whole" in about else variable.values.item()
