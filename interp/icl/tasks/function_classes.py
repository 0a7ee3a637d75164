"""Teachers that are not dense linear functions: the function classes of Garg et al., and sine waves.

Each is a law of functions for `make_regression(..., teacher=...)`: `draw` makes one function for every task of a batch,
all evaluated together.

Source: Garg et al. 2022 ("What can transformers learn in-context?") and their release, where x ~ N(0, I):
`make_regression(B, N, d, x="normal", teacher=ReLUNetwork())`. Noisy linear regression there is the linear teacher with
`noise=1.0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.tasks.regression import Draws
from interp.settings.checking import Checked

DEEPEST = 24  # 17 million leaves for each task
Functions = Callable[[Float[Tensor, "B M d"]], Float[Tensor, "B M"]]


@dataclass(frozen=True)
class SparseLinear(Checked):
    """w . x with only `nonzero` coordinates of w, chosen at random for each task, different from 0 and N(0, 1)."""

    nonzero: int = 3

    def draw(self, B: int, d: int, draws: Draws) -> Functions:
        if not 1 <= self.nonzero <= d:
            raise InterpError(f"{self.nonzero} of {d} coordinates cannot be different from 0: choose 1 to {d}.")
        chosen = draws.uniform(B, d).topk(self.nonzero, dim=1).indices
        w = draws.normal(B, d)
        w = torch.zeros_like(w).scatter(1, chosen, w.gather(1, chosen))
        return lambda x: torch.einsum("bmd,bd->bm", x, w)


@dataclass(frozen=True)
class Quadratic:
    """sum_j w_j x_j² / sqrt(3), w ~ N(0, I). The factor gives the variance of a linear teacher but for the mean."""

    def draw(self, B: int, d: int, draws: Draws) -> Functions:
        w = draws.normal(B, d) / math.sqrt(3)
        return lambda x: torch.einsum("bmd,bd->bm", x.square(), w)


@dataclass(frozen=True)
class ReLUNetwork(Checked):
    """scale * v . relu(W x), all weights N(0, 1).

    Args:
        hidden: Units.
        scale: sqrt(2 / hidden) by default, as Garg et al.; 1 is the network of `relu_network_step`.
    """

    hidden: int = 100
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise InterpError(f"A network has 1 hidden unit or more, not {self.hidden}.")

    def draw(self, B: int, d: int, draws: Draws) -> Functions:
        W, v = draws.normal(B, self.hidden, d), draws.normal(B, self.hidden, 1)
        scale = math.sqrt(2 / self.hidden) if self.scale is None else self.scale
        return lambda x: scale * ((x @ W.mT).relu() @ v)[..., 0]


@dataclass(frozen=True)
class DecisionTree(Checked):
    """A full binary tree: every node tests the sign of one random coordinate, every leaf is N(0, 1)."""

    depth: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= DEEPEST:
            raise InterpError(f"A tree is 1 to {DEEPEST} deep, not {self.depth}.")

    def draw(self, B: int, d: int, draws: Draws) -> Functions:
        tested = draws.integers(d, B, 2**self.depth - 1)
        leaves = draws.normal(B, 2**self.depth)

        def evaluate(x: Float[Tensor, "B M d"]) -> Float[Tensor, "B M"]:
            node = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)  # heap order: children 2i + 1, 2i + 2
            for _ in range(self.depth):
                coordinate = tested.gather(1, node)
                right = x.gather(2, coordinate[..., None])[..., 0] > 0
                node = 2 * node + 1 + right.long()
            return leaves.gather(1, node - (2**self.depth - 1))

        return evaluate


@dataclass(frozen=True)
class Sines(Checked):
    """a sin(x + phase) of one input, a uniform on `amplitude`, the phase on (0, pi); with x on (-5, 5):
    `make_regression(B, 10, 1, 5.0, teacher=Sines())`.

    Source: von Oswald et al. 2023, section 5. Paper and release disagree: amplitudes are (0.1, 5) in the text and
    (0.1, 0.5) in the code that made the figures, the default. That code also draws amplitude and phase with one random
    key, so that phase = pi (a - low) / (high - low) exactly and the family has one parameter instead of two. Here they
    are independent; `shared_key` asks for the old figure's.
    """

    amplitude: tuple[float, float] = (0.1, 0.5)
    shared_key: bool = False

    def draw(self, B: int, d: int, draws: Draws) -> Functions:
        if d != 1:
            raise InterpError(f"A sine wave has one input, not {d}: use d=1.")
        low, high = self.amplitude
        height = draws.uniform(B, 1)
        phase = math.pi * (height if self.shared_key else draws.uniform(B, 1))
        return lambda x: (low + (high - low) * height) * torch.sin(x[..., 0] + phase)
