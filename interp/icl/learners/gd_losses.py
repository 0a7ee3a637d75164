"""What one step of gradient descent costs on random linear regression, in closed form.

Coordinates of x are independent with variance s² and kurtosis κ, weights are N(0, I), and the loss is half the mean
squared error of the query, against a label without noise. Everything follows from two moments of the context, so one
number c = (N + d - 2 + κ + σ²/s²) / N carries the law: the best "mean" step is 1 / (c s²).

Derived here; von Oswald et al. 2023 find the same step by a line search over 10,000 tasks, whose loss scatters by about
0.003.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from interp.errors import InterpError
from interp.icl.tasks.regression import HALF_WIDTH, INPUT_LAWS
from interp.settings.checking import Checked


@dataclass(frozen=True)
class GDLaw(Checked):
    """A law of linear regression tasks; the defaults are von Oswald et al.'s released code, U(-0.5, 0.5).

    Args:
        d: Input dimension.
        N: Context pairs.
        x_variance: s², variance of each coordinate of x (mean zero).
        kurtosis: κ = E x⁴ / s⁴, 9/5 for the uniform law and 3 for the Gaussian.
        noise_var: σ² of the noise on the context's labels.

    Raises:
        InterpError: a law that cannot be.

    Examples:
        >>> law = interp.icl.GDLaw(d=10, N=10)
        >>> round(law.best_eta, 2), round(law.best_loss, 3)
        (6.06, 0.206)
    """

    d: int = 10
    N: int = 10
    x_variance: float = HALF_WIDTH**2 * INPUT_LAWS["uniform"].variance
    kurtosis: float = INPUT_LAWS["uniform"].kurtosis
    noise_var: float = 0.0

    def __post_init__(self) -> None:
        if min(self.d, self.N) < 1 or min(self.x_variance, self.noise_var) < 0 or self.kurtosis < 1:
            raise InterpError(f"{self} is no law: d and N are 1 or more, variances 0 or more, the kurtosis 1 or more.")

    @property
    def crowding(self) -> float:
        """c: by how much the second moment of the gradient exceeds the square of its mean."""
        return (self.N + self.d - 2 + self.kurtosis + self.noise_var / self.x_variance) / self.N

    @property
    def best_eta(self) -> float:
        """The "mean" step of least loss; divide by N for the "sum" step."""
        return 1 / (self.crowding * self.x_variance)

    @property
    def zero_loss(self) -> float:
        """Loss of predicting 0."""
        return self.d * self.x_variance / 2

    @property
    def best_loss(self) -> float:
        """Loss of one step with the best size."""
        return self.zero_loss * (1 - 1 / self.crowding)

    def loss(self, eta: float) -> float:
        """Loss of one step with the mean step `eta`."""
        return self._half_mse(eta / self.N, self.N)

    def loss_at_context(self, N: int, eta: float | None = None) -> float:
        """Loss on contexts of `N` pairs with the mean step unchanged (`best_eta` of the training N by default).

        A trained layer has eta / N_train in its weights, so its mean step at another N is larger by N / N_train.
        """
        return self._half_mse(self._eta(eta) / N, N)

    def loss_at_input_scale(self, alpha: float, eta: float | None = None) -> float:
        """Loss when all inputs, and so all labels but their noise, are multiplied by `alpha`; same step."""
        return replace(self, x_variance=alpha**2 * self.x_variance).loss(self._eta(eta))

    def loss_at_teacher_scale(self, alpha: float, eta: float | None = None) -> float:
        """Loss when all weights are multiplied by `alpha`; same step."""
        return self._half_mse(self._eta(eta) / self.N, self.N, teacher=alpha)

    def loss_with_corrupted_targets(self, k: int, variance: float = 1.0, eta: float | None = None) -> float:
        """Loss when `k` of the N context labels are replaced by N(0, variance); same step.

        Raises:
            InterpError: k is not between 0 and N.
        """
        if not 0 <= k <= self.N:
            raise InterpError(f"{k} of {self.N} context labels cannot be corrupted: choose 0 to {self.N}.")
        return self._half_mse(self._eta(eta) / self.N, self.N - k, label_noise=k * variance)

    def _half_mse(self, sum_step: float, clean: int, teacher: float = 1.0, label_noise: float = 0.0) -> float:
        """With `clean` labelled pairs, and pairs labelled by pure noise whose variances add up to `label_noise`."""
        s2 = self.x_variance
        u = sum_step * s2
        signal = 1 - 2 * u * clean + u**2 * clean * (clean + self.d - 2 + self.kurtosis)
        noise = u**2 * (clean * self.noise_var + label_noise)
        return self.d / 2 * (teacher**2 * s2 * signal + noise)

    def _eta(self, eta: float | None) -> float:
        return self.best_eta if eta is None else eta
