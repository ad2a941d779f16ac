"""Gradient descent with all records in every step, clipped and noised: what a release of data is held against.

Full batches need no amplification by sampling: T steps are T Gaussian releases of sums of clipped gradients, whose
composition is one Gaussian and known exactly. Replacing a record moves each sum by at most 2C.

Clipping and noise are those of `training.private_step` (`training.gradients`). Keys are not: they are the caller's, and
the promise is theirs. See `descend`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.calibration import gaussian_multiplier
from diffusion_privacy.training import convolutions
from diffusion_privacy.training.gradients import add_exactly, clip_one, noised_mean
from diffusion_privacy.types import Array, PyTree

Loss = Callable[[PyTree, Array, Array], Array]
"""``loss(params, x[...], y[]) -> []`` of ONE record."""


def noise_multiplier(epsilon: float, delta: float, steps: int, records: int) -> float:
    """σ/C of every step, so that ``steps`` of them together are (epsilon, delta)-private for replacing one record.

    One release of sensitivity Δ needs σ = s·Δ (`calibration.gaussian_multiplier`); T releases compose like one with
    Δ√T (Dong, Roth & Su 2022, corollary 3.3), and Δ = 2C.

    Raises:
      InputError: ε <= 0, δ outside (0, 1) or >= 1/records.
    """
    return 2.0 * math.sqrt(steps) * gaussian_multiplier(epsilon, delta, records)


def clipped_sum(loss: Loss, params: PyTree, x: Array, y: Array, clip: float, chunk: int) -> PyTree:
    """Σᵢ clip(gᵢ), gᵢ the gradient of record i over all parameters together, clip = `gradients.clip_one`.

    No record adds more than norm C; one whose gradient is not finite, or whose norm is not, adds nothing.

    Args:
      x: records [N, ...].
      y: classes [N].
      clip: C in [1e-12, ∞).
      chunk: records whose gradients are held at once.

    Returns:
      Finite arrays of the shapes of ``params``.

    Raises:
      InputError: C out of range.
    """
    if not 1e-12 <= clip < math.inf:
        raise InputError(f"clip: expected a finite number, at least 1e-12, got {clip!r}")

    def one(xi: Array, yi: Array, weight: Array) -> PyTree:
        with convolutions.for_training():
            gradient = jax.grad(loss)(params, xi, yi)
        clipped, _ = clip_one(gradient, clip)
        return jax.tree.map(lambda leaf: jnp.where(weight > 0, leaf, 0.0), clipped)

    count = x.shape[0]
    pad = -count % chunk
    rows = jnp.minimum(jnp.arange(count + pad), count - 1)
    weight = (jnp.arange(count + pad) < count).astype(jnp.float32)
    split = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), (x[rows], y[rows], weight))

    def add(carry: tuple[PyTree, PyTree], part: tuple[Array, Array, Array]) -> tuple[tuple[PyTree, PyTree], None]:
        sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(one)(*part))
        return add_exactly(*carry, sums), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, lost = jax.lax.scan(add, (zeros, zeros), split)[0]
    return jax.tree.map(jnp.add, total, lost)


def descend(
    loss: Loss,
    params: PyTree,
    x: Array,
    y: Array,
    key: Array,
    multiplier: Array | float,
    *,
    clip: float,
    steps: int,
    learning_rate: float,
    momentum: float = 0.9,
    chunk: int = 128,
) -> PyTree:
    """Parameters after ``steps`` of p ← p − rate·m, m ← momentum·m + (Σᵢ clip(gᵢ) + σ·N(0, I))/N.

    (ε, δ)-private for replacing one record, N being public, when

    - ``multiplier`` = σ/C comes from `noise_multiplier` for the same ``steps``, and
    - ``key`` was drawn from fresh entropy (`noise.fresh_key`), serves this call alone, and stays secret.

    What is done with the parameters afterwards is post-processing. With a key made from a seed that others know nothing
    is promised: the arms of `stages` do so, which give away no parameters.

    The proof is for real numbers. In float32 a record's norm is cut a thousandth below C to cover rounding in the norm,
    each noised sum is rounded to a grid (`rng.add`) so that its lowest bits tell nothing, and the noise has tails to 9
    deviations (`rng.unit_gaussian`); the sum of records is right to one rounding, beside those within a chunk. Noise is
    threefry's, from 64 bits of key for each step and array of parameters, see `noise`.

    Traceable: vmap over (params, key) for several runs, over ``multiplier`` for several ε.

    Args:
      params: float32 arrays.
      x, y, clip, chunk: see `clipped_sum`.
      key: one threefry key.
      multiplier: σ/C, scalar; 0 for descent without noise or promise.

    Raises:
      InputError: see `clipped_sum`.
    """
    count = len(jax.tree.leaves(params))

    def step(carry: tuple[PyTree, PyTree], number: Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, velocity = carry
        total = clipped_sum(loss, params, x, y, clip, chunk)
        keys = jax.random.key_data(jax.random.split(jax.random.fold_in(key, number), count))
        mean = noised_mean(total, keys, multiplier * clip, x.shape[0])
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, mean)
        return (jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity), velocity), None

    start = (params, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(step, start, jnp.arange(steps))[0][0]
