"""Distribution functions of logistic mixtures as the element-wise map of a coupling."""

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

_STEPS = 100  # of the inverse at most; halving alone is down to rounding by then
# In scales. Derivatives of a quotient square it: e^-32 times a small weight is a float32 still, e^-80 is not.
_FAR = 16.0


class _Mixture(NamedTuple):
    """π, μ and 1/s of every component, each an array of the elements' shape."""

    weights: list[Array]
    means: list[Array]
    rates: list[Array]


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """y = exp(a)·(logit F(x) + φ·x) + b, F(x) = Σ_k π_k·σ((x − μ_k)/s_k) (Flow++, Ho et al., arXiv 1902.00275).

    One such map takes a law with several modes to one with a single mode, where an affine map shifts and scales it. The
    term φ·x is ours: between modes that lie far apart logit F is as flat as you like, and then float32 cannot be
    inverted at release noise. With it dy/dx > φ·exp(a).

    Numbers an element: K of log π, K of μ, K of −log s, then a and b, unconstrained. π is a softmax; log π before it,
    log s and a pass p -> m·tanh(p/m), so that they stay within (−m, m). Zeros give an odd map close to the identity and
    not the identity itself: components that start in one place would have equal gradients and never part. A coupling
    stretches by less than exp(2m) + φ·exp(m).

    Attributes:
      components: K, >= 2.
      clamp: m > 0, for log s and a; twice that for log π.
      floor: φ > 0.
      spread: components start evenly from −spread to spread.
    """

    components: int = 4
    clamp: float = 1.5
    floor: float = 0.05
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.components < 2 or not min(self.clamp, self.floor, self.spread) > 0:
            raise ValueError(f"need two components and clamp, floor and spread above 0, got {self}")

    @property
    def num_parameters(self) -> int:
        return 3 * self.components + 2

    def forward(self, params: Sequence[Array], x: Array) -> tuple[Array, Array]:
        """3K + 2 arrays ``[...]``, ``x[...] -> (y[...], log dy/dx [...])``."""
        mixture, gain, shift = self._parts(params)
        value, slope = self._curve(mixture, x)
        return jnp.exp(gain) * value + shift, gain + jnp.log(slope)

    def inverse(self, params: Sequence[Array], y: Array) -> tuple[Array, Array]:
        """3K + 2 arrays ``[...]``, ``y[...] -> (x[...], log dx/dy [...])``; found by iteration, see `_root`.

        Derivatives, of reverse mode too, are those of the implicit function and know nothing of the iteration.
        """
        mixture, gain, shift = self._parts(params)
        target = (y - shift) * jnp.exp(-gain)
        x = self._root(*jax.lax.stop_gradient((mixture, target)))
        # One more Newton step has the root's derivatives where its slope is taken as a constant.
        value, slope = self._curve(mixture, x)
        x = x - (value - target) / jax.lax.stop_gradient(slope)
        return x, -gain - jnp.log(self._curve(mixture, x)[1])

    def _parts(self, params: Sequence[Array]) -> tuple[_Mixture, Array, Array]:
        """The mixture, a and b.

        Components are separate arrays and not an axis to sum over: that is one pass over memory.
        """
        k = self.components
        odds = [jnp.exp(_clamp(p, 2 * self.clamp)) for p in params[:k]]
        total = _sum(odds)
        means = [
            p + float(m) for p, m in zip(params[k : 2 * k], np.linspace(-self.spread, self.spread, k), strict=True)
        ]
        rates = [jnp.exp(_clamp(p, self.clamp)) for p in params[2 * k : 3 * k]]
        return _Mixture([v / total for v in odds], means, rates), _clamp(params[3 * k], self.clamp), params[3 * k + 1]

    def _curve(self, mixture: _Mixture, x: Array) -> tuple[Array, Array]:
        """logit F(x) + φ·x and its slope, with one exponential a component.

        Where x lies on one side of all components, more than `_FAR` scales from the nearest, the smaller of F and 1 − F
        would underflow: it is formed times exp(far). Value and slope do not depend on ``far``, which therefore is a
        constant to derivatives.
        """
        zs = [(x - mean) * rate for mean, rate in zip(mixture.means, mixture.rates, strict=True)]
        first, last = functools.reduce(jnp.minimum, zs), functools.reduce(jnp.maximum, zs)
        far = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(first, -last) - _FAR, 0.0))
        shrink = jnp.exp(-far)
        below, above, density = [], [], []
        for z, weight, rate in zip(zs, mixture.weights, mixture.rates, strict=True):
            right = z > 0
            tail = jnp.exp(far - jnp.where(right, z, -z))
            most = 1 / (1 + tail * shrink)
            near = weight * most
            beyond = near * tail
            below.append(jnp.where(right, near, beyond))
            above.append(jnp.where(right, beyond, near))
            density.append(beyond * most * rate)
        cdf, survival = _sum(below), _sum(above)
        logit = jnp.log(cdf) - jnp.log(survival) + jnp.where(first > 0, far, -far)
        return logit + self.floor * x, _sum(density) / (cdf * survival) + self.floor

    def _root(self, mixture: _Mixture, target: Array) -> Array:
        """x with logit F(x) + φ·x = target.

        logit F lies between the logits (x − μ_k)/s_k of the components, so that the least and the greatest root of
        (x − μ_k)/s_k + φ·x = target bracket the one that is sought. Newton's step is taken where it stays in the
        bracket and is half of the last one at most, else the bracket is halved (without the second condition it can
        alternate between two points for ever). An element that has arrived stays, whatever others need: no record
        depends on its batch.
        """
        ends = [(target + m * r) / (r + self.floor) for m, r in zip(mixture.means, mixture.rates, strict=True)]
        low, high = functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends)
        tiny = float(jnp.finfo(target.dtype).eps)

        def unfinished(state: _Search) -> Array:
            return (state.step < _STEPS) & jnp.any(~state.done)

        def halve(state: _Search) -> _Search:
            value, slope = self._curve(mixture, state.x)
            low = jnp.where(value < target, state.x, state.low)
            high = jnp.where(value < target, state.high, state.x)
            move = (target - value) / slope
            newton = state.x + move
            good = (newton >= low) & (newton <= high) & (jnp.abs(move) <= 0.5 * state.last)
            x = jnp.where(good, newton, 0.5 * (low + high))
            arrived = jnp.abs(x - state.x) <= 2 * tiny * (1 + jnp.abs(x))
            last = jnp.where(good, jnp.abs(move), high - low)
            return _Search(state.step + 1, low, high, jnp.where(state.done, state.x, x), last, state.done | arrived)

        # A number that is not finite has nowhere to go.
        start = _Search(jnp.int32(0), low, high, 0.5 * (low + high), high - low, ~jnp.isfinite(target))
        return jax.lax.while_loop(unfinished, halve, start).x


class _Search(NamedTuple):
    """Where the search for a root is: the bracket, the point, the length of the last step, whether it has arrived."""

    step: Array
    low: Array
    high: Array
    x: Array
    last: Array
    done: Array


def _clamp(raw: Array, most: float) -> Array:
    """Within (−most, most), slope 1 at 0."""
    return most * jnp.tanh(raw / most)


def _sum(parts: list[Array]) -> Array:
    return functools.reduce(operator.add, parts)
