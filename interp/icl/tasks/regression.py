"""Batches of in-context regression tasks: N labelled pairs, one query, and what the query's label is.

A task draws a teacher, then N inputs and one more for the query. Everything in a batch is drawn at once from one
generator, so a training loop can hand in its own and ask for a new batch every step.

Source: von Oswald et al. 2023 ("Transformers learn in-context by gradient descent"), section 3 and the released
`data.py`. Paper and release disagree: the text says x ~ U(-1, 1), the code that made the figures draws
U(-0.5, 0.5). The default here is the code's; `half_width=1.0` is the paper's. The variance of x is in `Tasks.about`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InterpError
from interp.icl.tasks.covariance import Covariance, covariance_root
from interp.settings.checking import checked

HALF_WIDTH = 0.5
"""Inputs of the released code: U(-0.5, 0.5), variance 1/12."""


@dataclass(frozen=True)
class InputLaw:
    """Independent coordinates at scale 1."""

    mean: float
    variance: float
    kurtosis: float  # fourth central moment / variance squared
    draw: Callable[[Draws, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch: a generator, and the dtype and device of what it yields."""

    generator: torch.Generator
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(
        cls, seed: int | torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None
    ) -> Draws:
        """From a seed, or continuing a generator (which then says the device).

        Raises:
            InterpError: a seed that is no integer, a dtype that is not floating, or a generator on another device than
                `device`.
        """
        if not dtype.is_floating_point:
            raise InterpError(f"Tasks are real numbers, and {dtype} holds none: use torch.float32 or torch.float64.")
        if isinstance(seed, Integral):
            return cls(torch.Generator(device or "cpu").manual_seed(int(seed)), dtype)
        if not isinstance(seed, torch.Generator):
            raise InterpError(f"seed is an integer or a torch.Generator, not {seed!r}.")
        if device is not None and torch.device(device).type != seed.device.type:
            raise InterpError(
                f"The generator is on {seed.device} and the tasks were asked for on {device}: make the generator "
                f"there, torch.Generator({str(device)!r})."
            )
        return cls(seed, dtype)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.generator.device)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._empty(shape).uniform_(low, high, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return self._empty(shape).normal_(generator=self.generator)

    def exponential(self, *shape: int) -> Tensor:
        return self._empty(shape).exponential_(generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.generator.device)


INPUT_LAWS: dict[str, InputLaw] = {
    "uniform": InputLaw(0.0, 1 / 3, 9 / 5, lambda draws, shape: draws.uniform(*shape, low=-1.0, high=1.0)),
    "normal": InputLaw(0.0, 1.0, 3.0, lambda draws, shape: draws.normal(*shape)),
    "exponential": InputLaw(1.0, 1.0, 9.0, lambda draws, shape: draws.exponential(*shape)),
    # the difference of two exponentials; the inverse of the distribution function is infinite at the edge of rand()
    "laplace": InputLaw(0.0, 2.0, 6.0, lambda draws, shape: draws.exponential(*shape) - draws.exponential(*shape)),
}


class Teacher(Protocol):
    """A law of functions, one drawn for each task. Its repr names it in `Tasks.about`."""

    def draw(self, B: int, d: int, draws: Draws) -> Callable[[Float[Tensor, "B M d"]], Float[Tensor, "B M"]]:
        """B functions, evaluated together on M inputs each."""


class Shift(Protocol):
    """A change of where context and query lie, made before the teacher labels them. Its repr names it."""

    def __call__(
        self, X: Float[Tensor, "B N d"], xq: Float[Tensor, "B d"], draws: Draws
    ) -> tuple[Float[Tensor, "B N d"], Float[Tensor, "B d"]]: ...


@dataclass(frozen=True)
class Tasks:
    """B regression prompts.

    Attributes:
        X: Context inputs [B, N, d].
        y: Their labels [B, N], or [B, N, d_y] for vector targets.
        xq: Queries [B, d].
        yq: The teacher's value at the query, without label noise, [B] or [B, d_y]. A squared error against a noisy
            label is larger by the noise variance.
        w: The teacher's weights [B, d] or [B, d_y, d]; None for a teacher that is not linear.
        about: Law, variance of x, noise, seed, as plain values for the attributes of a result.

    Examples:
        >>> tasks = interp.icl.make_regression(200, N=10, d=3, seed=1)
        >>> tasks.X.shape, tasks.y.shape, tasks.xq.shape
        (torch.Size([200, 10, 3]), torch.Size([200, 10]), torch.Size([200, 3]))
    """

    X: Float[Tensor, "B N d"]
    y: Tensor
    xq: Float[Tensor, "B d"]
    yq: Tensor
    w: Tensor | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, part: slice) -> Tasks:
        if not isinstance(part, slice):
            raise InterpError(f"Tasks are cut by slices, and {part!r} is none: ask for tasks[3:4] to get task 3.")
        return self._each(lambda tensor: tensor[part])

    def to(self, *args: Any, **kwargs: Any) -> Tasks:
        """The same tasks in another dtype or on another device; arguments as for `Tensor.to`."""
        return self._each(lambda tensor: tensor.to(*args, **kwargs))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tasks:
        w = None if self.w is None else change(self.w)
        return dataclasses.replace(
            self, X=change(self.X), y=change(self.y), xq=change(self.xq), yq=change(self.yq), w=w
        )


def make_regression(
    B: int,
    N: int,
    d: int,
    half_width: float | None = None,
    *,
    x: str | None = None,
    scale: float | None = None,
    cov: Covariance | None = None,
    prior_cov: Covariance | None = None,
    noise: float = 0.0,
    d_y: int = 1,
    teacher: Literal["linear"] | Teacher = "linear",
    shift: Shift | None = None,
    seed: int | torch.Generator = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Tasks:
    """B tasks of N pairs in d dimensions; N = 0 are queries without a context.

    Args:
        half_width: x ~ U(-half_width, half_width) in each coordinate; 0.5 unless another law is asked for.
        x: "uniform" (default), "normal", "exponential" or "laplace", independent coordinates.
        scale: Factor on a law other than the uniform one, whose unit is given by `INPUT_LAWS` (default 1).
        cov: x ~ N(0, cov) instead; a number is that multiple of the identity.
        prior_cov: Weights of a linear teacher ~ N(0, prior_cov) (default: identity), each output alike.
        noise: Standard deviation of Gaussian noise on the context's labels. The query's label has none.
        d_y: Outputs of a linear teacher; above 1 the labels gain a last axis.
        teacher: "linear", or a law of functions from `interp.icl.function_classes`.
        shift: A change of the inputs from `interp.icl.shifts`; the variance in `about` is then the sample's.
        seed: An integer, or a generator to draw from, which then also says the device.

    Raises:
        InterpError: two settings exclude each other, a law does not exist, or a number is out of its range.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, noise=0.1, seed=1)
        >>> tasks.X.shape, tasks.y.shape, tasks.xq.shape
        (torch.Size([100, 10, 3]), torch.Size([100, 10]), torch.Size([100, 3]))
    """
    _check_sizes(B, N, d, d_y, noise)
    draws = Draws.of(seed, dtype, device)
    inputs, about = _inputs(B, N + 1, d, half_width, x, scale, cov, draws)
    X, xq = inputs[:, :N], inputs[:, N]
    if shift is not None:
        X, xq = shift(X, xq, draws)
        inputs = torch.cat([X, xq[:, None]], dim=1)
        about |= {"shift": repr(shift), "x_variance": float(inputs.var(correction=0))}
        about.pop("x_kurtosis", None)
    if teacher == "linear":
        w = _linear_weights(B, d, d_y, prior_cov, draws)
        labels = torch.einsum("bnd,bd->bn", inputs, w) if d_y == 1 else inputs @ w.mT
    else:
        _refuse_what_is_linear(prior_cov, d_y, teacher)
        w, labels = None, teacher.draw(B, d, draws)(inputs)
    y, yq = labels[:, :N], labels[:, N]
    if noise:
        y = y + noise * draws.normal(*y.shape)
    about |= {
        "teacher": teacher if isinstance(teacher, str) else repr(teacher),
        "prior_cov": _plain(prior_cov if prior_cov is not None else 1.0) if w is not None else "none",
        "noise_std": float(noise),
        "N": N,
        "d": d,
        "d_y": d_y,
        "seed": int(seed) if isinstance(seed, Integral) else "continued generator",
    }
    return Tasks(X, y, xq, yq, w, about)


def tokenise(
    tasks: Tasks, layout: Literal["concat", "interleaved"] = "concat", w0: Tensor | None = None
) -> Float[Tensor, "B T D"]:
    """Tasks as the tokens of a transformer, the query last and its label slot 0 (or -w0 . x_q).

    "concat": one token (x, y) for each pair, [B, N+1, d + d_y]. "interleaved": tokens x_1, y_1, x_2, ... x_q of
    dimension d, [B, 2N+1, d], a label in the last coordinates of its own token.

    Raises:
        InterpError: an unknown layout, labels wider than inputs, `w0` of another shape than [d_y, d] (or [d] for one
            label), or `w0` for tokens that have no label slot.

    Examples:
        >>> tasks = interp.icl.make_regression(100, N=10, d=3, seed=1)
        >>> interp.icl.tokenise(tasks).shape
        torch.Size([100, 11, 4])
    """
    X, xq = tasks.X, tasks.xq
    y = tasks.y if tasks.y.ndim == 3 else tasks.y[..., None]
    B, N, d = X.shape
    d_y = y.shape[-1]
    if layout == "concat":
        query_slot = xq.new_zeros(B, d_y) if w0 is None else -xq @ start_weights(w0, d_y, d).to(xq).mT
        return torch.cat([torch.cat([X, xq[:, None]], dim=1), torch.cat([y, query_slot[:, None]], dim=1)], dim=2)
    if layout != "interleaved":
        raise InterpError(f"Layout {layout!r} does not exist: choose 'concat' or 'interleaved'.")
    if w0 is not None:
        raise InterpError("Interleaved tokens have no label slot beside the query, so w0 has no place: use 'concat'.")
    if d_y > d:
        raise InterpError(f"Labels of {d_y} numbers do not fit into interleaved tokens of {d}: use layout='concat'.")
    tokens = X.new_zeros(B, 2 * N + 1, d)
    tokens[:, 0 : 2 * N : 2] = X
    tokens[:, 1 : 2 * N : 2, d - d_y :] = y
    tokens[:, -1] = xq
    return tokens


def start_weights(w0: Tensor, d_y: int, d: int) -> Float[Tensor, "d_y d"]:
    """Where descent starts, as [d_y, d]; one label may be given as [d]. Raises InterpError for any other shape."""
    w0 = torch.as_tensor(w0)
    if w0.shape != (d_y, d) and (d_y > 1 or w0.shape != (d,)):
        asked = f"[{d_y}, {d}]" + (f" or [{d}]" if d_y == 1 else "")
        raise InterpError(f"A start for {d} inputs and labels of {d_y} is {asked}, not {list(w0.shape)}.")
    return w0.reshape(d_y, d)


def _inputs(
    B: int,
    M: int,
    d: int,
    half_width: float | None,
    x: str | None,
    scale: float | None,
    cov: Covariance | None,
    draws: Draws,
) -> tuple[Float[Tensor, "B M d"], dict[str, Any]]:
    """M inputs for each task, and what `about` says of them."""
    if cov is not None:
        if half_width is not None or scale is not None or x not in (None, "normal"):
            raise InterpError("cov means x ~ N(0, cov): leave out half_width, scale and other laws of x.")
        inputs = draws.normal(B, M, d)
        root = covariance_root(cov, d).to(inputs)
        inputs = inputs * root if root.ndim == 0 else inputs @ root.mT
        matrix = torch.as_tensor(cov, dtype=torch.float64)
        variance = float(matrix.diagonal().mean() if matrix.ndim else matrix)
        return inputs, {"x_law": "normal", "x_variance": variance, "x_kurtosis": 3.0, "x_cov": _plain(cov)}
    name = x or "uniform"
    if not isinstance(name, str) or name not in INPUT_LAWS:
        raise InterpError(f"There is no law of inputs {name!r}: choose one of {', '.join(INPUT_LAWS)}.")
    if name == "uniform" and scale is not None:
        raise InterpError("The uniform law has no scale: give half_width.")
    if name != "uniform" and half_width is not None:
        raise InterpError(f"half_width belongs to the uniform law, and x is {name!r}: give scale.")
    for what, value in (("half_width", half_width), ("scale", scale)):
        checked("make_regression", what, value, float | None)
        if value is not None and not value > 0:
            raise InterpError(f"{what} is positive, not {value}.")
    if name == "uniform":
        factor = HALF_WIDTH if half_width is None else float(half_width)
        inputs, law = draws.uniform(B, M, d, low=-factor, high=factor), INPUT_LAWS[name]
        width = {"half_width": factor}
    else:
        factor, law = 1.0 if scale is None else float(scale), INPUT_LAWS[name]
        inputs, width = law.draw(draws, (B, M, d)) * factor, {"scale": factor}
    return inputs, {"x_law": name, **width, "x_variance": factor**2 * law.variance, "x_kurtosis": law.kurtosis}


def _linear_weights(B: int, d: int, d_y: int, prior_cov: Covariance | None, draws: Draws) -> Tensor:
    w = draws.normal(B, d) if d_y == 1 else draws.normal(B, d_y, d)
    if prior_cov is None:
        return w
    root = covariance_root(prior_cov, d).to(w)
    return w * root if root.ndim == 0 else w @ root.mT


def _refuse_what_is_linear(prior_cov: Covariance | None, d_y: int, teacher: str | Teacher) -> None:
    if isinstance(teacher, type):
        raise InterpError(f"The teacher is a class and not one of its values: write {teacher.__name__}().")
    if isinstance(teacher, str):
        raise InterpError(f"There is no teacher {teacher!r}: use 'linear', or a class of interp.icl.function_classes.")
    if prior_cov is not None:
        raise InterpError(f"prior_cov is the law of linear weights, and {teacher!r} draws its own: leave it out.")
    if d_y != 1:
        raise InterpError(f"{teacher!r} has one output: d_y = {d_y} needs the linear teacher.")


def _check_sizes(B: Any, N: Any, d: Any, d_y: Any, noise: float) -> None:
    for name, size, least in (("B", B, 1), ("N", N, 0), ("d", d, 1), ("d_y", d_y, 1)):
        if isinstance(size, bool) or not isinstance(size, Integral) or size < least:
            raise InterpError(f"{name} is a whole number, {least} or more, and not {size!r}.")
    if checked("make_regression", "noise", noise, float) < 0:
        raise InterpError(f"noise is a standard deviation, 0 or more, and not {noise}.")


def _plain(cov: Covariance) -> float | list[list[float]]:
    return torch.as_tensor(cov).tolist()
