"""Training one linear attention layer: gradients written out by hand against autograd through the whole layer.

Both sides draw the same batches from one generator, compute the loss of the same 2,048 prompts, clip and take the same
Adam step. The straightforward side is what one writes first: four projections of all tokens, all tokens attending, all
tokens updated, `loss.backward()`. Before anything is timed both run 50 steps from the same weights and must agree.
Rounds of the two alternate, so that a busy machine is busy for both; the ratio is of their medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.table import publish
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
from interp.icl.models.training import recipe, train
from interp.icl.tasks.regression import Tasks, make_regression

GATE_STEPS = 50
ROUNDS = 15
STEPS_A_ROUND = 20
BATCH = 2048
LARGEST_DIFFERENCE = {torch.float64: 1e-12, torch.float32: 1e-4}


def straightforward_loss(model: AttentionRegressor, tasks: Tasks) -> Tensor:
    """Half the mean squared error of the query, every token projected and updated."""
    layer = model.block(0)
    W_Q, W_K, W_V, W_O = layer.W_Q[0], layer.W_K[0], layer.W_V[0], layer.W_O[0]
    context = torch.cat([tasks.X, tasks.y.unsqueeze(-1)], -1)
    query = torch.nn.functional.pad(tasks.xq, (0, 1)).unsqueeze(1)
    tokens = torch.cat([context, query], 1)
    scores = (tokens @ W_Q) @ (context @ W_K).mT
    tokens = tokens + (scores @ (context @ W_V)) @ W_O
    return 0.5 * (-tokens[:, -1, -1] - tasks.yq).square().mean()


def train_straightforwardly(model: AttentionRegressor, steps: int, dtype: torch.dtype = torch.float32) -> None:
    """What `interp.icl.models.training.train` does to one linear layer, with autograd."""
    settings = recipe(model.cfg)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=settings.betas, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tasks = make_regression(BATCH, 10, 10, seed=generator, dtype=dtype)
        optimiser.zero_grad()
        straightforward_loss(model, tasks).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()


def train_fast(model: AttentionRegressor, steps: int, dtype: torch.dtype = torch.float32) -> None:
    draw = partial(make_regression, N=10, d=10, dtype=dtype)
    train(model, draw, steps, **recipe(model.cfg).optimiser)


def largest_difference(dtype: torch.dtype) -> float:
    """Between the two sides' weights after the same steps, relative to the largest weight."""
    ends = []
    for one_side in (train_fast, train_straightforwardly):
        model = AttentionRegressor(RegressorConfig()).to(dtype)
        one_side(model, GATE_STEPS, dtype)
        ends.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    fast, slow = ends
    return float((fast - slow).abs().max() / slow.abs().max())


def seconds_per_step(one_side: Callable[[AttentionRegressor, int], None], threads: int) -> float:
    model = AttentionRegressor(RegressorConfig())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        start = time.perf_counter()
        one_side(model, STEPS_A_ROUND)
        return (time.perf_counter() - start) / STEPS_A_ROUND
    finally:
        torch.set_num_threads(before)


def drawing_seconds() -> float:
    """Of one batch: what no way of training can save."""
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for _ in range(STEPS_A_ROUND):
        make_regression(BATCH, 10, 10, seed=generator)
    return (time.perf_counter() - start) / STEPS_A_ROUND


def main() -> None:
    apart = {dtype: largest_difference(dtype) for dtype in LARGEST_DIFFERENCE}
    for dtype, difference in apart.items():
        if difference > LARGEST_DIFFERENCE[dtype]:
            sys.exit(f"the two sides differ by {difference:.1e} after {GATE_STEPS} steps in {dtype}; nothing is timed")
    rows: list[dict[str, Any]] = []
    for threads in sorted({1, torch.get_num_threads()}):
        rounds = [
            (seconds_per_step(train_fast, threads), seconds_per_step(train_straightforwardly, threads))
            for _ in range(ROUNDS)
        ]
        fast, slow = (statistics.median(side) for side in zip(*rounds, strict=True))
        rows.append({
            "batch": BATCH, "N": 10, "d": 10, "threads in use": threads, "autograd ms/step": round(1e3 * slow, 2),
            "by hand ms/step": round(1e3 * fast, 2), "ratio": round(slow / fast, 2),
            "lowest ratio of a round": round(min(s / f for f, s in rounds), 2),
            "drawing ms/batch": round(1e3 * statistics.median(drawing_seconds() for _ in range(ROUNDS)), 2),
            "weights apart, float64": f"{apart[torch.float64]:.1e}",
            "weights apart, float32": f"{apart[torch.float32]:.1e}",
        })  # fmt: skip
    publish("icl_training", rows)


if __name__ == "__main__":
    main()
