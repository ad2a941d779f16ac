"""One record's gradient cut to a norm, and the sum of many with noise: what every private training here is made of.

`private_step` and `mechanisms.dp_gradient` differ in which records a step sees and in where their keys come from. What
they promise rests on these two functions, so that neither has its own.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from diffusion_privacy.training import rng
from diffusion_privacy.types import Array, PyTree

CLIP_MARGIN = 2.0**-10
"""Gradients are clipped to C·(1 − margin): a float32 norm over millions of numbers may come out too small."""


def clip_one(gradient: PyTree, clip_norm: float) -> tuple[PyTree, Array]:
    """``g · min(1, C'/‖g‖₂)`` of ONE record over all parameters together, and whether it was shortened (0 or 1).

    C' = C·(1 − CLIP_MARGIN). A gradient whose norm is not finite in float32 (NaN, infinity, or a sum of squares beyond
    its range) becomes zero and counts as shortened.

    Args:
      gradient: arrays of any shapes, without an axis for records.
      clip_norm: C in [1e-12, ∞): below, squares of float32 numbers vanish, and nothing would be clipped.
    """
    radius = clip_norm * (1.0 - CLIP_MARGIN)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradient)))
    fine = jnp.isfinite(norm)
    scale = radius / jnp.maximum(norm, radius)
    clipped = jax.tree.map(lambda leaf: jnp.where(fine, leaf * scale, 0.0), gradient)
    return clipped, (~fine | (norm > radius)).astype(jnp.float32)


def add_exactly(total: PyTree, lost: PyTree, term: PyTree) -> tuple[PyTree, PyTree]:
    """``total + term``, and ``lost`` with what rounding took from it: their sum is right to one rounding (Neumaier).

    One record in a plain sum of thousands changes the rounding of every later addition, so that it may move the sum by
    more than it adds to it.
    """
    new = jax.tree.map(jnp.add, total, term)

    def taken(a: Array, b: Array, c: Array) -> Array:
        return jnp.where(jnp.abs(a) >= jnp.abs(b), (a - c) + b, (b - c) + a)

    return new, jax.tree.map(lambda gone, a, b, c: gone + taken(a, b, c), lost, total, term, new)


def noised_mean(total: PyTree, keys: Array, scale: Array | float, expected: float) -> PyTree:
    """(total + scale·N(0, I)) / expected, the noise by `rng.unit_gaussian` and the sum rounded by `rng.add`.

    Args:
      total: Σ clip(gᵢ) over all devices.
      keys: data of one threefry key for each leaf, uint32 [leaves, 2].
      scale: σ = multiplier·C; 0 adds nothing, rounds nothing and promises nothing.
      expected: the batch size on average, a constant. Dividing by the size drawn would spend privacy on it.
    """
    leaves, structure = jax.tree.flatten(total)
    noised = []
    for leaf, words in zip(leaves, keys, strict=True):
        unit = rng.unit_gaussian(jax.random.wrap_key_data(words, impl=rng.LAW), math.prod(leaf.shape))
        added = rng.add(leaf, unit.reshape(leaf.shape), scale)
        noised.append(jnp.where(scale == 0, leaf, added) / expected)
    return jax.tree.unflatten(structure, noised)
