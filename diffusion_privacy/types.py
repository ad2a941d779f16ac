"""The types that the rooms of the house exchange. Names are the field's own.

Conventions used everywhere:

- Images are float32 in [-1, 1] with shape ``[B, H, W, C]``; ``B`` is the batch.
- Time ``t`` is continuous in ``[0, 1]``: 0 is data, 1 is the prior. Discrete schedules are read at ``t = i / T``.
- Log-likelihoods and log-weights are in nats unless a name says ``bits``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax

Array = jax.Array
PyTree = Any

ScoreFn = Callable[[Array, Array], Array]
"""``score(x[B, ...], t[B]) -> [B, ...]``, the gradient of log p_t at x. Carries its parameters by closure."""

ConditionalScore = Callable[[Array, Array, Array], Array]
"""``score(label[B], x[B, ...], t[B]) -> [B, ...]``, the gradient of log p_t(x | label) at x."""

Detector = Callable[[Array], Array]
"""``margin(x[B, ...]) -> [B]``; a positive margin means "this image shows the record"."""


class SDE(Protocol):
    """A forward noising process with Gaussian marginals ``x_t | x_0 ~ N(alpha(t) x_0, sigma(t)^2 I)``."""

    @property
    def t_min(self) -> float:
        """Smallest time at which the score is trained and evaluated (0 < t_min < 1)."""
        ...

    @property
    def prior_std(self) -> float:
        """Standard deviation of the isotropic Gaussian prior at t = 1."""
        ...

    def alpha(self, t: Array) -> Array:
        """Signal coefficient, same shape as ``t``, in (0, 1] for VP and sub-VP, 1 for VE."""
        ...

    def sigma(self, t: Array) -> Array:
        """Noise standard deviation, same shape as ``t``; 0 at t = 0."""
        ...

    def marginal(self, x0: Array, t: Array) -> tuple[Array, Array]:
        """``(mean[B, ...], std[B])`` of ``x_t`` given ``x0[B, ...]`` at ``t[B]``."""
        ...

    def coefficients(self, x: Array, t: Array) -> tuple[Array, Array]:
        """``(drift f(x, t)[B, ...], diffusion g(t)[B])`` of ``dx = f dt + g dw``."""
        ...

    def prior_sample(self, key: Array, shape: tuple[int, ...]) -> Array:
        """A draw of ``x_1`` from the prior with the given shape."""
        ...

    def prior_logp(self, z: Array) -> Array:
        """Log-density of the prior in nats, summed over all axes but the first: ``[B]``."""
        ...


class Flow(Protocol):
    """A conditional bijection of ONE record; the caller vmaps."""

    def forward(self, x: Array, cond: Array | None) -> tuple[Array, Array]:
        """``(z, log|det dz/dx|)``."""
        ...

    def inverse(self, z: Array, cond: Array | None) -> tuple[Array, Array]:
        """``(x, log|det dx/dz|)``."""
        ...


class Task(Protocol):
    """What a model learns. The loop in `training.loop` owns everything else."""

    def init(self, key: Array, batch: PyTree) -> PyTree:
        """Parameters for a batch of this structure."""
        ...

    def loss(self, params: PyTree, batch: PyTree, key: Array) -> tuple[Array, dict[str, Array]]:
        """``(per-example losses [B], per-example metrics {name: [B]})``; the loop averages over all devices.

        ``key`` is one key for the step. Every random number must be drawn from ``fold_in(key, batch["position"][i])``
        so that the result does not depend on how the batch is split over devices.
        """
        ...

    def evaluate(self, params: PyTree, batch: PyTree, key: Array) -> dict[str, Array]:
        """Per-example metrics ``{name: [B]}``; the caller masks padding."""
        ...


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated probability with its interval and the conditions under which to believe it.

    Attributes:
      method: short name of the estimator, e.g. ``"direct"`` or ``"subspace"``.
      log_value: natural logarithm of the point estimate; ``-inf`` for zero, NaN where no estimate was made.
      log_stderr: standard error of ``log_value`` (delta method); ``inf`` where it is not defined.
      lower, upper: limits of the probability, each in [0, 1].
      level: two-sided confidence level of (lower, upper), e.g. 0.95.
      n: number of independent draws.
      ess: effective sample size of the draws that hit.
      reliable: whether the estimator's own diagnostics let its interval be quoted.
      network_calls: score evaluations spent, counted per image.
      reasons: why it is not reliable (empty when it is) and what it assumes.
    """

    method: str
    log_value: float
    log_stderr: float
    lower: float
    upper: float
    level: float
    n: int
    ess: float
    reliable: bool
    network_calls: int
    reasons: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The point estimate as a probability in [0, 1] (an importance estimate may exceed 1 by its error)."""
        return math.exp(self.log_value)
