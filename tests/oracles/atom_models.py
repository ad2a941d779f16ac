"""Atom scores and detectors whose parameters are arguments: models of one shape share one compiled program.

`gaussian_mixture.GaussianMixture` compiles its means in, which is right for a few models; coverage over hundreds of
oracles needs one compilation a shape.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import SDE, Array


@dataclasses.dataclass(frozen=True)
class AtomScore:
    """Score of Σ_i N(atoms_i, var I) / n noised by ``sde``: ``score(atoms[n, d], x[B, d], t[B]) -> [B, d]``."""

    sde: SDE
    var: float = 1e-4

    def __call__(self, atoms: Array, x: Array, t: Array) -> Array:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        var = alpha**2 * self.var + sigma**2
        square = alpha**2 * jnp.sum(atoms**2, axis=1) - 2 * alpha * x @ atoms.T
        return (alpha * (jax.nn.softmax(-square / (2 * var), axis=1) @ atoms) - x) / var


def atom_score(sde: SDE, atoms: np.ndarray, var: float = 1e-4) -> Partial:
    """The score of ``atoms[n, d]`` with the atoms as an argument."""
    return Partial(AtomScore(sde, var), jnp.asarray(atoms, jnp.float32))


def _nearest(atoms: Array, x: Array, record: Array) -> Array:
    square = jnp.sum(atoms**2, axis=1) - 2 * x @ atoms.T
    own = jnp.take_along_axis(square, record[:, None], axis=1)
    others = jnp.where(jnp.arange(atoms.shape[0]) == record[:, None], jnp.inf, square)
    return jnp.min(others, axis=1) - own[:, 0]


def nearest(atoms: np.ndarray) -> Partial:
    """Detector "record r is the nearest of ``atoms[n, d]``": the cells of all records cover the space."""
    return Partial(_nearest, jnp.asarray(atoms, jnp.float32))


def _ball(records: Array, radius: Array, x: Array, record: Array) -> Array:
    return radius - jnp.sqrt(jnp.sum((x - records[record]) ** 2, axis=1))


def ball(records: np.ndarray, radius: float) -> Partial:
    """Detector "closer than ``radius`` to record r"."""
    return Partial(_ball, jnp.asarray(records, jnp.float32), jnp.float32(radius))


def _control(atoms: Array, controls: Array, x: Array, record: Array) -> Array:
    to_atoms = jnp.min(jnp.sum(atoms**2, axis=1) - 2 * x @ atoms.T, axis=1) + jnp.sum(x**2, axis=1)
    to_control = jnp.sum((x - controls[record]) ** 2, axis=1)
    return jnp.minimum(to_atoms - to_control, 1.0 - to_control)


def control(atoms: np.ndarray, controls: np.ndarray) -> Partial:
    """Detector "control r is nearer than every atom, and closer than 1".

    Without the second condition it fires on the blurred mean of two atoms that a single denoising step gives.
    """
    return Partial(_control, jnp.asarray(atoms, jnp.float32), jnp.asarray(controls, jnp.float32))


def rolled_orbit(n: int, seed: int) -> np.ndarray:
    """``[n, n]`` atoms, the cyclic shifts of one vector in (-1, 1)^n.

    Shifts permute coordinates, so they commute with clipping to [-1, 1] as well: the sampler that clips x_0 lands
    nearest to each atom with probability exactly 1/n.
    """
    base = np.random.default_rng(seed).uniform(-0.9, 0.9, n)
    return np.stack([np.roll(base, k) for k in range(n)])


@dataclasses.dataclass(frozen=True)
class BrokenScore:
    """A score that is NaN below time ``until`` and pulls to 0 above it."""

    until: float

    def __call__(self, x: Array, t: Array) -> Array:
        return jnp.where(expand(t, x) < self.until, jnp.nan, -x)


def blind(x: Array, record: Array) -> Array:
    """A detector that compares, and so says "not detected" of NaN."""
    return jnp.where(jnp.sum(x, axis=tuple(range(1, x.ndim))) > 1e6, 1.0, -1.0)
