"""Logistic-mixture distribution functions as the element-wise map of a coupling."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.types import Array

_STEPS = 40  # of the inverse; twelve did for parameters of any size that was tried
_FAR = 40.0


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """y = exp(a)·(logit F(x) + φ·x) + b, F(x) = Σ_k π_k·σ((x − μ_k)/s_k) (Ho et al., Flow++, arXiv 1902.00275, eq. 9).

    One such map sends a law with several modes to a normal one, where an affine map only shifts and scales it. The term
    φ·x is ours: between modes that lie far apart logit F is flat to any power of ten, and then float32 cannot be
    inverted at release noise; with it the slope is at least φ·exp(a).

    Parameters an element: ``components`` each of log π, μ and log s, then a and b, all unconstrained. Scales pass the
    soft clamp of the affine couplings, π is a softmax. Zeros give a map that is odd and close to the identity and not
    the identity itself: components that start in one place would get equal gradients and stay together.

    Attributes:
      components: K >= 2.
      clamp: a > 0; log s and a lie in (−a, a).
      floor: φ > 0.
      spread: half of the distance between the first and the last component at the start.
    """

    components: int = 4
    clamp: float = 1.5
    floor: float = 0.05
    spread: float = 1.0

    @property
    def num_parameters(self) -> int:
        return 3 * self.components + 2

    def forward(self, params: Sequence[Array], x: Array) -> tuple[Array, Array]:
        """3K + 2 arrays ``[...]``, ``x[...] -> (y[...], log dy/dx [...])``."""
        mixture, gain, shift = self._parts(params)
        u, slope = self._curve(mixture, x)
        return jnp.exp(gain) * u + shift, gain + jnp.log(slope)

    def inverse(self, params: Sequence[Array], y: Array) -> tuple[Array, Array]:
        """3K + 2 arrays ``[...]``, ``y[...] -> (x[...], log dx/dy [...])``, by Newton steps inside a bracket.

        logit F lies between the logits (x − μ_k)/s_k of its components, so that the least and the greatest root of
        (x − μ_k)/s_k + φ·x = u bracket the one that is sought. Where a Newton step leaves the bracket, or gains less than a
        halving would, it is halved.
        """
        mixture, gain, shift = self._parts(params)
        u = (y - shift) * jnp.exp(-gain)
        x = jax.lax.stop_gradient(self._root(mixture, u))
        # One more Newton step, whose derivatives are those of the root by the implicit function theorem.
        value, slope = self._curve(mixture, x)
        x = x - (value - u) / jax.lax.stop_gradient(slope)
        return x, -gain - jnp.log(self._curve(mixture, x)[1])

    def _parts(self, p: Sequence[Array]) -> tuple[_Mixture, Array, Array]:
        """The mixture, a and b, each number an array of the elements' shape.

        Components are taken apart and not summed over an axis: that is one loop over memory, and four times as fast on a
        CPU.
        """
        k = self.components
        start = np.linspace(-self.spread, self.spread, k)
        odds = [jnp.exp(_clamp(v, 2 * self.clamp)) for v in p[:k]]
        total = _sum(odds)
        means = [v + float(m) for v, m in zip(p[k : 2 * k], start, strict=True)]
        rates = [jnp.exp(_clamp(v, self.clamp)) for v in p[2 * k : 3 * k]]
        return _Mixture([v / total for v in odds], means, rates), _clamp(p[3 * k], self.clamp), p[3 * k + 1]

    def _curve(self, mixture: _Mixture, x: Array) -> tuple[Array, Array]:
        """logit F(x) + φ·x and its slope, with one exponential a component.

        Where x lies on one side of all components and `_FAR` scales from the nearest, the smaller of F and 1 − F would
        underflow: it is formed times exp(far). Value and slope do not depend on ``far``, which is a constant to
        derivatives.
        """
        zs = [(x - mean) * rate for mean, rate in zip(mixture.means, mixture.rates, strict=True)]
        first, last = functools.reduce(jnp.minimum, zs), functools.reduce(jnp.maximum, zs)
        far = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(first, -last) - _FAR, 0.0))
        shrink = jnp.exp(-far)
        cdf, survival, density = [], [], []
        for z, weight, rate in zip(zs, mixture.weights, mixture.rates, strict=True):
            right = z > 0
            tail = jnp.exp(far - jnp.where(right, z, -z))
            most = 1 / (1 + tail * shrink)
            near = weight * most
            beyond = near * tail
            cdf.append(jnp.where(right, near, beyond))
            survival.append(jnp.where(right, beyond, near))
            density.append(beyond * most * rate)
        below, above = _sum(cdf), _sum(survival)
        logit = jnp.log(below) - jnp.log(above) + jnp.where(first > 0, far, -far)
        return logit + self.floor * x, _sum(density) / (below * above) + self.floor

    def _root(self, mixture: _Mixture, u: Array) -> Array:
        """x with logit F(x) + φ·x = u: Newton's step while it stays inside the bracket and halves, else a bisection."""
        ends = [(u + m * r) / (r + self.floor) for m, r in zip(mixture.means, mixture.rates, strict=True)]
        low, high = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)

        def step(_: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            low, high, x, last = state
            value, slope = self._curve(mixture, x)
            low, high = jnp.where(value < u, x, low), jnp.where(value < u, high, x)
            move = (u - value) / slope
            good = (x + move >= low) & (x + move <= high) & (jnp.abs(move) <= 0.5 * last)
            return low, high, jnp.where(good, x + move, 0.5 * (low + high)), jnp.where(good, jnp.abs(move), high - low)

        return jax.lax.fori_loop(0, _STEPS, step, (low, high, 0.5 * (low + high), high - low))[2]


class _Mixture(NamedTuple):
    """π, μ and 1/s of each component."""

    weights: list[Array]
    means: list[Array]
    rates: list[Array]


def _clamp(raw: Array, most: float) -> Array:
    """Within (−most, most), slope 1 at 0. Not `spline.soft_clamp`: a CPU takes twenty times as long over an arctangent."""
    return most * jnp.tanh(raw / most)


def _sum(parts: list[Array]) -> Array:
    return functools.reduce(operator.add, parts)
