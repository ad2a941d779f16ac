"""A model that has some records by heart and generalises over the rest: narrow atoms in one broad Gaussian.

Data law: Σ_i w/k N(atoms_i, var I) + (1 − w) N(0, I); its score at any noise level is closed form.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from diffusion_privacy.types import SDE, Array


@dataclasses.dataclass(frozen=True)
class PartScore:
    """``score(atoms[k, d], x[B, d], t[B]) -> [B, d]``; ``share`` is w."""

    sde: SDE
    share: float
    var: float = 1e-4

    def __call__(self, atoms: Array, x: Array, t: Array) -> Array:
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        narrow, broad = alpha**2 * self.var + sigma**2, alpha**2 + sigma**2
        k, d = atoms.shape
        square = jnp.sum((x[:, None] - alpha[:, :, None] * atoms) ** 2, axis=2)
        near = jnp.log(self.share / k) - square / (2 * narrow) - d / 2 * jnp.log(narrow)
        far = jnp.log1p(-self.share) - jnp.sum(x**2, axis=1, keepdims=True) / (2 * broad) - d / 2 * jnp.log(broad)
        weight = jax.nn.softmax(jnp.concatenate([far, near], axis=1), axis=1)
        pull = (alpha * (weight[:, 1:] @ atoms) - jnp.sum(weight[:, 1:], axis=1, keepdims=True) * x) / narrow
        return pull - weight[:, :1] * x / broad


def part_score(sde: SDE, atoms: np.ndarray, share: float = 0.2, var: float = 1e-4) -> Partial:
    """The score with the atoms as an argument; a tiny ``share`` makes it the generalising reference."""
    return Partial(PartScore(sde, share, var), jnp.asarray(atoms, jnp.float32))
