"""A measurement repeated while a model is trained.

The signature of a two-layer model that learns GD++ (von Oswald et al. 2023, section 4) is a trajectory: its cosine with
plain gradient descent rises and then falls, while that with GD++ keeps rising.

    algorithms = {"gd": tune_gd(tasks, 2), "gd++": tune_gdpp(tasks, 2)}
    watch = Trajectory(lambda model: align(model, algorithms, tasks, parts="query"))
    train(model, sample, 4000, on_step=watch)
    interp.figures.icl_alignment(watch.dataset())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import xarray as xr

from interp.errors import InterpError


class Trajectory:
    """Collects `measure(model)` at the steps at which it is called, as `on_step` of `train` or by hand.

    Args:
        measure: gives the dataset of one step, such as `align` or `copying_score` with everything but the model.
        path: a NetCDF file that holds what was collected so far, written at every step. If it exists its steps are
            taken over, so a training that was killed and continued has the trajectory of one that was not; a step that
            is measured again replaces the old one. A measurement with other attributes raises InterpError.

    Examples:
        >>> tasks = interp.icl.make_regression(200, N=10, d=3, seed=1)
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> one_step = interp.icl.gd(1, 5.0)
        >>> watch = interp.icl.Trajectory(lambda model: interp.icl.align(model, one_step, tasks), "steps.nc")
        >>> sample = lambda batch, seed: interp.icl.make_regression(batch, N=10, d=3, seed=seed)
        >>> _ = interp.icl.train(model, sample, 4, lr=1e-3, batch=64, every=2, on_step=watch)
        >>> interp.storage.load("steps.nc").sizes["step"]
        3
    """

    def __init__(self, measure: Callable[[Any], xr.Dataset], path: str | Path | None = None) -> None:
        self.measure, self.path = measure, None if path is None else Path(path)
        self.steps: dict[int, xr.Dataset] = {}
        if self.path is not None and self.path.is_file():
            from interp.results.storage import load

            stored = load(self.path)
            self.steps = {int(step): stored.sel(step=step, drop=True) for step in stored["step"].values}

    @classmethod
    def of(cls, checkpoints: Iterable[tuple[int, Any]], measure: Callable[[Any], xr.Dataset]) -> Self:
        """The trajectory over checkpoints `(step, model)`, which are used one at a time: a generator may load them."""
        watch = cls(measure)
        for step, model in checkpoints:
            watch(step, model)
        return watch

    def __call__(self, step: int, model: Any) -> None:
        found = self.measure(model)
        if found.attrs != next(iter(self.steps.values()), found).attrs:
            raise InterpError(f"{self.path or 'this trajectory'} holds another measurement; start another one.")
        self.steps[int(step)] = found
        if self.path is not None:
            from interp.results.storage import save

            save(self.dataset(), self.path)

    def dataset(self) -> xr.Dataset:
        """Everything collected, along `step` in the order of steps. Raises InterpError where nothing was."""
        if not self.steps:
            raise InterpError("this trajectory is empty; hand it to train(..., on_step=...) or call it with a model.")
        steps = sorted(self.steps)
        joined = xr.concat([self.steps[step] for step in steps], "step", combine_attrs="drop_conflicts")
        return joined.assign_coords(step=("step", steps, {"units": "step", "description": "training steps done"}))
