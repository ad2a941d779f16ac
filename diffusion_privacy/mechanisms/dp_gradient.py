"""Differentially private gradient descent with all records in every step: what a release of data is held against.

Full batches need no amplification by sampling: T steps are T Gaussian releases of sums of clipped gradients, whose
composition is one Gaussian and known exactly. Replacing a record moves each sum by at most 2C.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_privacy.mechanisms.calibration import gaussian_multiplier
from diffusion_privacy.training import convolutions
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
    """Σᵢ gᵢ·min(1, C/‖gᵢ‖₂), gᵢ the gradient of record i over all parameters together.

    Args:
      x: records [N, ...].
      y: classes [N].
      clip: C.
      chunk: records whose gradients are held at once.
    """

    def one(xi: Array, yi: Array, weight: Array) -> PyTree:
        with convolutions.for_training():
            gradient = jax.grad(loss)(params, xi, yi)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
        scale = weight * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
        return jax.tree.map(lambda leaf: leaf * scale, gradient)

    count = x.shape[0]
    pad = -count % chunk
    rows = jnp.minimum(jnp.arange(count + pad), count - 1)
    weight = (jnp.arange(count + pad) < count).astype(jnp.float32)
    split = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), (x[rows], y[rows], weight))

    def add(total: PyTree, part: tuple[Array, Array, Array]) -> tuple[PyTree, None]:
        sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.vmap(one)(*part))
        return jax.tree.map(jnp.add, total, sums), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), split)[0]


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

    Private for replacing one record when ``multiplier`` = σ/C comes from `noise_multiplier` for the same ``steps`` and
    ``key`` is kept secret; what is done with the parameters afterwards is post-processing. Traceable: vmap over
    (params, key) for several runs, over ``multiplier`` for several ε.
    """
    leaves, structure = jax.tree.flatten(params)

    def step(carry: tuple[PyTree, PyTree], number: Array) -> tuple[tuple[PyTree, PyTree], None]:
        params, velocity = carry
        total = clipped_sum(loss, params, x, y, clip, chunk)
        keys = jax.random.split(jax.random.fold_in(key, number), len(leaves))
        noise = jax.tree.unflatten(
            structure, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        )
        mean = jax.tree.map(lambda g, n: (g + multiplier * clip * n) / x.shape[0], total, noise)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, mean)
        return (jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity), velocity), None

    start = (params, jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(step, start, jnp.arange(steps))[0][0]
