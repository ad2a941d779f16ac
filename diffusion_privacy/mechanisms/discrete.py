"""Discrete Gaussian and Laplace mechanisms on a grid, sampled exactly (no floating point in the noise).

Rounding and sensitivity. The clipped latent is divided by the grid step γ (a power of two: exact) and rounded to the
nearest integers; if the exact integer norm then exceeds C/γ, the record is rounded towards zero instead, which cannot
increase any coordinate and so leaves the norm within C/γ. Every record thus becomes an integer vector inside the ball
of radius C/γ, and two of them differ by at most 2C/γ: rounding costs no sensitivity. (Rounding to nearest alone would
cost up to γ√D in L2 and γD in L1.)

Samplers: Canonne, Kamath & Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv 2004.00010), algorithms 1
to 3, vectorised over numpy int64 with every intermediate bounded below 2^63.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import jax
import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import calibration, clipping, noise
from diffusion_privacy.mechanisms.relation import Relation, require_relation

if TYPE_CHECKING:
    import dp_accounting

MAX_SCALE = 2**12
"""Largest noise scale in grid steps: keeps the integers of algorithm 3 inside int64."""

_CHUNK = 2**18


def uniform_below(bound: np.ndarray, draw: noise.RandomBytes) -> np.ndarray:
    """Exact uniform integers in [0, bound[i]), int64, by rejection; 1 <= bound <= 2^62."""
    bound = np.asarray(bound, dtype=np.uint64)
    out = np.zeros(bound.shape, dtype=np.uint64)
    todo = np.arange(bound.size)
    while todo.size:
        words = np.frombuffer(draw(8 * todo.size), dtype=np.uint64) >> np.uint64(1)
        limit = bound[todo]
        # Words at or above the largest multiple of the bound below 2^63 would favour small residues.
        good = words < (np.uint64(2**63) // limit) * limit
        out[todo[good]] = words[good] % limit[good]
        todo = todo[~good]
    return out.astype(np.int64)


def _bernoulli_exp_below_one(numerator: np.ndarray, denominator: np.ndarray, draw: noise.RandomBytes) -> np.ndarray:
    """Exact Bernoulli(e^{−n/d}) for 0 <= n <= d: algorithm 1, the parity of a run of Bernoulli(n/(d·k)) successes."""
    k = np.ones(numerator.size, dtype=np.int64)
    todo = np.arange(numerator.size)
    while todo.size:
        hit = uniform_below(denominator[todo] * k[todo], draw) < numerator[todo]
        todo = todo[hit]
        k[todo] += 1
    return k % 2 == 1


def bernoulli_exp(numerator: np.ndarray, denominator: np.ndarray, draw: noise.RandomBytes) -> np.ndarray:
    """Exact Bernoulli(e^{−n/d}) for int64 n >= 0, 1 <= d <= 2^54: bool, same shape [N].

    e^{−n/d} is a product of ⌊n/d⌋ factors e^{−1} and one e^{−(n mod d)/d}; the draw stops at the first failure.
    """
    alive = _bernoulli_exp_below_one(numerator % denominator, denominator, draw)
    whole = numerator // denominator
    todo = np.flatnonzero(alive & (whole > 0))
    ones = np.ones_like(todo)
    while todo.size:
        survived = _bernoulli_exp_below_one(ones, ones, draw)
        alive[todo[~survived]] = False
        whole[todo] -= 1
        todo = todo[survived & (whole[todo] > 0)]
        ones = np.ones_like(todo)
    return alive


def sample_laplace(scale: int, count: int, draw: noise.RandomBytes) -> np.ndarray:
    """``count`` exact draws with P(x) ∝ e^{−|x|/scale} on the integers, int64 (algorithm 2 with s = 1).

    Args:
      scale: integer in [1, 2^32].
    """
    out = np.zeros(count, dtype=np.int64)
    todo = np.arange(count)
    while todo.size:
        remainder = uniform_below(np.full(todo.size, scale), draw)
        keep = bernoulli_exp(remainder, np.full(todo.size, scale), draw)
        todo_kept, remainder = todo[keep], remainder[keep]
        quotient = np.zeros(todo_kept.size, dtype=np.int64)
        running = np.arange(todo_kept.size)
        while running.size:
            ones = np.ones_like(running)
            running = running[bernoulli_exp(ones, ones, draw)]
            quotient[running] += 1
        size = remainder + scale * quotient
        negative = uniform_below(np.full(size.size, 2), draw) == 1
        # A negative zero is refused, or zero would be drawn twice as often as it should.
        good = ~(negative & (size == 0))
        out[todo_kept[good]] = np.where(negative, -size, size)[good]
        todo = np.concatenate([todo[~keep], todo_kept[~good]])
    return out


def sample_gaussian(sigma: int, count: int, draw: noise.RandomBytes) -> np.ndarray:
    """``count`` exact draws with P(x) ∝ e^{−x²/2σ²} on the integers, int64 (algorithm 3).

    A Laplace proposal beyond 64(σ+1), which has probability below e^-64, is refused outright; its acceptance
    probability would have been below e^-1900.

    Args:
      sigma: integer in [1, `MAX_SCALE`].

    Raises:
      InputError: ``sigma`` out of range.
    """
    if not 1 <= sigma <= MAX_SCALE:
        raise InputError(f"sigma: expected an integer within [1, {MAX_SCALE}] grid steps, got {sigma!r}")
    t = sigma + 1
    out = np.zeros(count, dtype=np.int64)
    todo = np.arange(count)
    while todo.size:
        proposal = sample_laplace(t, todo.size, draw)
        size = np.abs(proposal)
        near = size <= 64 * t
        # (|y| − σ²/t)² / 2σ² = (|y|t − σ²)² / (2σ²t²)
        numerator = np.where(near, size * t - sigma**2, 0) ** 2
        accept = near & bernoulli_exp(numerator, np.full(todo.size, 2 * sigma**2 * t**2), draw)
        out[todo[accept]] = proposal[accept]
        todo = todo[~accept]
    return out


def grid_step(scale: float, resolution: int = 1024) -> float:
    """The largest power of two at or below scale/resolution."""
    return 2.0 ** math.floor(math.log2(scale / resolution))


def round_to_grid(z: np.ndarray, clip_norm: float, norm: clipping.Norm, step: float) -> np.ndarray:
    """Integer vectors inside the ball of radius C/γ: ``z[B, D]`` already clipped to C -> int64 [B, D].

    Raises:
      InputError: C/γ exceeds 2^24, beyond which float32 latents cannot be divided exactly.
    """
    radius = Fraction(clip_norm) / Fraction(step)
    if radius > 2**24:
        raise InputError(f"grid step {step:g}: too fine for clip_norm {clip_norm:g}; the noise is below its 2^-14")
    scaled = np.asarray(z, dtype=np.float64) / step
    nearest, inward = np.rint(scaled).astype(np.int64), np.trunc(scaled).astype(np.int64)
    if norm == "l2":
        outside = np.sum(nearest * nearest, axis=1) > math.floor(radius**2)
    else:
        outside = np.sum(np.abs(nearest), axis=1) > math.floor(radius)
    return np.where(outside[:, None], inward, nearest)


class _Grid:
    """What the two discrete mechanisms share; a subclass is a frozen dataclass with clip_norm, step and steps."""

    clip_norm: float
    step: float
    steps: int
    arithmetic: ClassVar[str] = "exact integer noise (Canonne, Kamath, Steinke 2020)"

    def __post_init__(self) -> None:
        clipping.check_clip_norm(self.clip_norm)
        if not (self.step > 0.0 and math.frexp(self.step)[0] == 0.5):
            raise InputError(f"step: expected a power of two > 0, got {self.step!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_SCALE:
            raise InputError(f"steps: expected an integer within [1, {MAX_SCALE}], got {self.steps!r}")

    @property
    def norm(self) -> clipping.Norm:
        raise NotImplementedError

    @property
    def noise_scale(self) -> float:
        """Noise scale in units of the latent: steps·step."""
        return self.steps * self.step

    def _sample(self, count: int, draw: noise.RandomBytes) -> np.ndarray:
        raise NotImplementedError

    def __call__(self, key: bytes, z: np.ndarray) -> np.ndarray:
        """One record, ``z[D] -> z̃[D]`` float64 on the grid; ``key`` is 32 fresh bytes, used for this record alone."""
        if np.ndim(z) != 1:
            raise ValueError(f"a mechanism takes the latent of one record, shape [D]; got {np.shape(z)}; use `many`")
        return self.many(noise.keyed_bytes(key), np.asarray(z)[None])[0]

    def many(self, draw: noise.RandomBytes, z: np.ndarray) -> np.ndarray:
        """Independent releases of B records, ``z[B, D] -> z̃[B, D]`` float64 on the grid.

        Each record is clipped by itself and every coordinate spends its own bytes of ``draw``.
        """
        clipped = jax.vmap(lambda row: clipping.clip(row, self.clip_norm, self.norm))(np.asarray(z, np.float32))
        grid = round_to_grid(np.asarray(clipped), self.clip_norm, self.norm, self.step)
        flat = grid.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            part += self._sample(part.size, draw)
        return grid * self.step


@dataclasses.dataclass(frozen=True)
class DiscreteGaussian(_Grid):
    """z̃ = γ·(round(clip₂(z, C)/γ) + N_ℤ(0, s²)), σ = γs.

    Guarantee: stacked integer releases of neighbours differ by at most Δ = 2C√k/γ in L2. On one coordinate with integer
    shift d the Rényi divergence of order α is at most αd²/2s² (Canonne, Kamath & Steinke 2020, section 2); coordinates
    add up, so the release is Δ²/2s²-zCDP. The (ε, δ) derived from it is an upper bound, not attained.
    """

    clip_norm: float
    step: float
    steps: int
    name: ClassVar[str] = "discrete_gaussian"

    @classmethod
    def calibrated(
        cls, epsilon: float, delta: float, clip_norm: float, relation: Relation, records: int
    ) -> DiscreteGaussian:
        """Noise whose zCDP, converted to (epsilon, delta), meets the budget; rounded up to whole grid steps.

        Raises:
          InputError: as `GaussianMechanism.calibrated`.
        """
        from diffusion_privacy.mechanisms import accounting

        sensitivity = 2.0 * clipping.check_clip_norm(clip_norm) * require_relation(relation).l2_factor()
        calibration.check_epsilon(epsilon)
        rho = accounting.zcdp_for(epsilon, calibration.check_delta(delta, records))
        sigma = sensitivity / math.sqrt(2.0 * rho) * (1.0 + 1e-9)
        step = grid_step(sigma)
        return cls(float(clip_norm), step, math.ceil(sigma / step))

    @property
    def norm(self) -> clipping.Norm:
        return "l2"

    def _sample(self, count: int, draw: noise.RandomBytes) -> np.ndarray:
        return sample_gaussian(self.steps, count, draw)

    def sensitivity(self, relation: Relation) -> float:
        """2C√k in L2, rounding included."""
        return 2.0 * self.clip_norm * require_relation(relation).l2_factor()

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """zCDP with ρ = Δ²/2σ²."""
        import dp_accounting

        return dp_accounting.ZCDpEvent(rho=0.5 * (self.sensitivity(relation) / self.noise_scale) ** 2)


@dataclasses.dataclass(frozen=True)
class DiscreteLaplace(_Grid):
    """z̃ = γ·(round(clip₁(z, C)/γ) + Lap_ℤ(s)), b = γs.

    Guarantee: integer releases of neighbours differ by at most Δ = 2⌊C/γ⌋k in L1, so the probability ratio is at most
    e^{Δ/s}: (Δ/s, 0)-private.
    """

    clip_norm: float
    step: float
    steps: int
    name: ClassVar[str] = "discrete_laplace"

    @classmethod
    def calibrated(cls, epsilon: float, clip_norm: float, relation: Relation) -> DiscreteLaplace:
        """The least noise, in whole grid steps, that is (epsilon, 0)-private under ``relation``.

        Raises:
          InputError: as `LaplaceMechanism.calibrated`.
        """
        factor = require_relation(relation).l1_factor()
        scale = calibration.laplace_multiplier(epsilon) * 2.0 * clipping.check_clip_norm(clip_norm) * factor
        step = grid_step(scale)
        return cls(float(clip_norm), step, math.ceil(scale / step))

    @property
    def norm(self) -> clipping.Norm:
        return "l1"

    def _sample(self, count: int, draw: noise.RandomBytes) -> np.ndarray:
        return sample_laplace(self.steps, count, draw)

    def _integer_sensitivity(self) -> int:
        return 2 * math.floor(Fraction(self.clip_norm) / Fraction(self.step))

    def sensitivity(self, relation: Relation) -> float:
        """2γ⌊C/γ⌋k <= 2Ck in L1, rounding included."""
        return self._integer_sensitivity() * self.step * require_relation(relation).l1_factor()

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """k discrete Laplace releases with parameter 1/s and integer sensitivity 2⌊C/γ⌋ each."""
        import dp_accounting
        from dp_accounting.dp_event import DiscreteLaplaceDpEvent

        one = DiscreteLaplaceDpEvent(noise_parameter=1.0 / self.steps, sensitivity=self._integer_sensitivity())
        k = require_relation(relation).records_per_person
        return one if k == 1 else dp_accounting.SelfComposedDpEvent(one, k)
