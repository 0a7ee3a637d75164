"""Train a regressor on a stream of fresh tasks, resumably, and the published settings by depth.

    settings = recipe(RegressorConfig(d_in=10, n_ctx=10))
    model = AttentionRegressor(settings.cfg, seed=0)
    draw = partial(make_regression, N=10, d=10, half_width=settings.half_width)
    curve = train(model, draw, steps=2000, **settings.optimiser, checkpoint="run/lsa.safetensors")

The loss is ½ mean (ŷ - y_q)² on the query alone. One linear layer is trained with gradients written out by hand
(`_single_layer_step.py`), every other model with autograd through its fast path.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.icl.models._single_layer_step import is_one_linear_layer, single_layer_gradients
from interp.icl.models._training_run import OnStep, TrainingRun
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.tasks.regression import Tasks


class Sample(Protocol):
    """Draws a batch of tasks from a generator; `functools.partial(make_regression, N=10, d=10)` is one."""

    def __call__(self, B: int, /, *, seed: torch.Generator) -> Tasks: ...


def train(
    model: AttentionRegressor,
    sample: Sample,
    steps: int,
    *,
    lr: float | Mapping[int, float],
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = None,
    batch: int = 2048,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    every: int = 100,
    on_step: OnStep | None = None,
) -> xr.Dataset:
    """Adam on fresh batches until `steps` steps are done; the model is changed in place.

    Args:
        lr: learning rate, or several by the step after which each begins: {0: 3e-3, 1500: 5e-4}.
        sample: called as `sample(batch, seed=generator)` with a generator of its own that only `seed` determines.
        clip: largest norm of all gradients together; None: not limited.
        checkpoint: a file written every `every` steps and at the end. Where it exists, training goes on from it, and
            ends with the same bits as a run that was never stopped (on the same machine); a finished one only loads.
        on_step: called on the model at step 0, every `every` steps and at the end. Numbers that it returns are kept in
            the result, and in the checkpoint, so a resumed run has all of them.

    Returns:
        `loss` [step] before each step's update, `grad_norm` [step] before clipping, and one variable
        [measured_step] for each number that `on_step` returned.

    Raises:
        InterpError: no learning rate for the first step, numbers that are none of steps or tasks, a loss that is no
            longer finite, or a checkpoint of another model, law of tasks or settings.

    Examples:
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> found = interp.icl.train(
        ...     model, lambda batch, seed: interp.icl.make_regression(batch, N=10, d=3, seed=seed), 5, lr=1e-3, batch=64
        ... )
        >>> found.loss.sizes["step"]
        5
    """
    if steps < 0 or min(every, batch) < 1:
        raise InterpError(f"steps are 0 or more, every and batch 1 or more; found {steps}, {every} and {batch}.")
    rates = lr if isinstance(lr, Mapping) else {0: lr}
    if 0 not in rates:
        raise InterpError(f"lr says nothing of the first step: begin with {{0: ...}}, not {min(rates, default=None)}.")
    settings = {
        "cfg": asdict(model.cfg), "lr": [list(pair) for pair in sorted(rates.items())], "betas": list(betas),
        "clip": "none" if clip is None else clip, "batch": batch, "seed": seed, "every": every,
        "dtype": str(model.W0.dtype), "trained": [name for name, w in model.named_parameters() if w.requires_grad],
    }  # fmt: skip
    generator = torch.Generator(model.W0.device).manual_seed(seed)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    run = TrainingRun(model, torch.optim.Adam(trained, lr=rates[0], betas=betas, fused=True), generator, settings)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        run.read(path)
    if run.step > steps:
        raise InterpError(f"the run in {path} is at step {run.step}, past the {steps} asked for; name another file.")
    gradients = single_layer_gradients if is_one_linear_layer(model) else autograd_gradients
    start = time.perf_counter()
    if run.step == 0:
        run.note(on_step)
    first = run.step
    while run.step < steps:
        tasks = sample(batch, seed=generator)
        if run.step == first:
            run.follow_law(tasks)
        loss = gradients(model, tasks)
        norm = torch.nn.utils.clip_grad_norm_(trained, float("inf") if clip is None else clip)
        run.optimiser.param_groups[0]["lr"] = rates[max(begin for begin in rates if begin <= run.step)]
        run.optimiser.step()
        run.losses.append(float(loss))
        run.grad_norms.append(float(norm))
        if run.step % every and run.step < steps:
            continue
        if not math.isfinite(run.losses[-1]):
            raise InterpError(f"the loss is {run.losses[-1]} at step {run.step}; lower lr or clip, or clamp tokens.")
        run.note(on_step)
        if path is not None:
            run.write(path)
    return run.result(time.perf_counter() - start)


def autograd_gradients(model: AttentionRegressor, tasks: Tasks) -> Tensor:
    """Half the mean squared error of the query, summed over targets; gradients go to `.grad`."""
    for weight in model.parameters():
        weight.grad = None
    loss: Tensor = 0.5 * (model(tasks.X, tasks.y, tasks.xq) - tasks.yq).square().sum() / len(tasks)
    loss.backward()
    return loss.detach()


@dataclass(frozen=True)
class Recipe:
    """Settings of von Oswald et al. 2023 for a model of given shape.

    Examples:
        >>> interp.icl.recipe(interp.icl.RegressorConfig(), variant="paper").clip
        10.0
    """

    variant: Literal["code", "paper"]
    cfg: RegressorConfig
    """The shape with `init_std` and `clamp` filled in where they were None."""
    half_width: float
    """Inputs are uniform on ±half_width."""
    lr: float
    betas: tuple[float, float]
    clip: float
    batch: int = 2048

    @property
    def optimiser(self) -> dict[str, Any]:
        """Keywords for `train`."""
        return {"lr": self.lr, "betas": self.betas, "clip": self.clip, "batch": self.batch}


def recipe(cfg: RegressorConfig, variant: Literal["code", "paper"] = "code") -> Recipe:
    """The settings for K = `cfg.n_layers` layers, as the released code or as the paper has them. They disagree:

    | | paper | released code (made the figures; the default) |
    |---|---|---|
    | inputs | U(-1, 1) | U(-0.5, 0.5) |
    | clip of the gradient's norm | 10 | 0.001 for K <= 2, else 10 |
    | Adam's betas | (0.9, 0.999) | (0.9, 0.98) |
    | initial weights | standard deviation 0.002 / K | variance 0.002 / (K · fan-in) |
    | learning rate | 1e-3 for K < 3, else 5e-4 | 1e-3 for K <= 3, else 5e-4 |
    | tokens clamped to ±10 | for K > 2 | for K > 3 |

    The clip decides whether two softmax heads converge: with 0.001 all seeds tried do, with 10 most do not.

    Examples:
        >>> released = interp.icl.recipe(interp.icl.RegressorConfig())
        >>> released.half_width, released.clip
        (0.5, 0.001)
    """
    K = cfg.n_layers
    if variant == "paper":
        filled = _filled(cfg, init_std=0.002 / K, clamp=10.0 if K > 2 else None)
        return Recipe("paper", filled, 1.0, 1e-3 if K < 3 else 5e-4, (0.9, 0.999), 10.0)
    if variant == "code":
        filled = _filled(cfg, init_std=None, clamp=10.0 if K > 3 else None)
        return Recipe("code", filled, 0.5, 1e-3 if K <= 3 else 5e-4, (0.9, 0.98), 0.001 if K <= 2 else 10.0)
    raise InterpError(f"variant is 'code' or 'paper', not {variant!r}.")


def _filled(cfg: RegressorConfig, init_std: float | None, clamp: float | None) -> RegressorConfig:
    return replace(cfg, init_std=cfg.init_std or init_std, clamp=clamp if cfg.clamp is None else cfg.clamp)
