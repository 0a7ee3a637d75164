"""What studies share that train a regressor: one resumable part with measurements along the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import xarray as xr

from interp.icl.measures.alignment import Model
from interp.icl.models.attention_regressor import AttentionRegressor
from interp.icl.models.training import Recipe, Sample, train
from interp.icl.studies.base import Choice, Variant
from interp.icl.tasks.regression import Tasks, make_regression

if TYPE_CHECKING:
    from interp.icl.studies.parts import StudyParts

M = TypeVar("M", bound=AttentionRegressor)
Watch = Callable[[int, AttentionRegressor], Mapping[str, float]]
Report = Callable[[float], None]
"""Told the fraction of one part that is done."""

EVALUATION_SEED = 20_000
"""Seed of the tasks that trained models are measured on; training seeds are small numbers."""


def trained_regressor(
    parts: StudyParts,
    name: str,
    model: M,
    law: Mapping[str, Any],
    steps: int,
    *,
    seed: int,
    every: int,
    watch: Watch,
    report: Report,
    sample: Sample | None = None,
    **optimiser: Any,
) -> tuple[M, xr.Dataset]:
    """`model` trained for `steps` on tasks of `law`, drawn with `seed`, and the curve of its training.

    `law` holds the keywords of `make_regression`; `sample` draws something else, and `law` then only names it.
    `watch(step, model)` is measured every `every` steps and kept in the curve along `measured_step`.
    """
    draw = partial(make_regression, **law) if sample is None else sample
    settings = {"cfg": asdict(model.cfg), "law": dict(law), "steps": steps, "seed": seed, "every": every, **optimiser}

    def note(step: int, model: AttentionRegressor) -> Mapping[str, float]:
        report(step / steps)
        return watch(step, model)

    def fit(model: M, checkpoint: Path) -> xr.Dataset:
        curve = train(model, draw, steps, seed=seed, every=every, on_step=note, checkpoint=checkpoint, **optimiser)
        return curve.drop_attrs(deep=False)  # the part says its settings itself

    return parts.trained(name, settings, model, fit)


def over_seeds(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets of the seeds 0, 1, ... side by side along `seed`."""
    joined = xr.concat(datasets, "seed", combine_attrs="drop_conflicts")
    return joined.assign_coords(seed=("seed", range(len(datasets)), {"description": "of weights and tasks"}))


def scalars(ds: xr.Dataset, *names: str, prefix: str = "") -> dict[str, float]:
    """The named scalars of a dataset, or all that are no standard error, as `on_step` of `train` keeps them."""
    wanted = names or [str(name) for name in ds.data_vars if not str(name).endswith(("_se", "_tasks"))]
    return {f"{prefix}{name}": float(ds[name]) for name in wanted}


@torch.no_grad()
def half_mse(model: Model, tasks: Tasks) -> float:
    """Half the mean squared error at the tasks' own queries, the loss of all these studies."""
    return 0.5 * float((model(tasks.X, tasks.y, tasks.xq) - tasks.yq).double().square().mean())


def shared_size(size: float | tuple[float, ...]) -> float:
    """The step size that all steps of a tuned algorithm share."""
    return size[0] if isinstance(size, tuple) else size


def farthest(values: xr.DataArray, aim: float) -> float:
    """The value farthest from `aim`: the worst seed of a claim about all of them."""
    flat = values.values.ravel()
    return float(flat[abs(flat - aim).argmax()])


def recipe_choices(used: Recipe) -> list[Choice]:
    """The settings on which the paper and its released code differ, with the ones of this recipe."""
    mine, other = used.variant == "paper", ("released code" if used.variant == "paper" else "paper")
    variant: Variant = "paper" if mine else "released code"
    rows = {
        "inputs": ("U(-1, 1), variance 1/3", "U(-0.5, 0.5), variance 1/12"),
        "largest norm of the gradient": ("10", "0.001 for up to 2 layers, else 10"),
        "Adam's betas": ("(0.9, 0.999)", "(0.9, 0.98)"),
        "initial weights": (
            "standard deviation 0.002 / layers",
            "variance 0.002 / (layers · fan-in), cut off at two deviations",
        ),
        "learning rate": ("1e-3 for fewer than 3 layers, else 5e-4", "1e-3 for up to 3 layers, else 5e-4"),
        "tokens kept within ±10": ("for more than 2 layers", "for more than 3 layers"),
    }
    return [
        Choice(setting, paper if mine else code, variant, f"{other}: {code if mine else paper}")
        for setting, (paper, code) in rows.items()
    ]
