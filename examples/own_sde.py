"""Use a noising process that is yours, and audit a model under it.

    python examples/own_sde.py

The process is the straight path of flow matching, x_t = (1 − st) x_0 + t ε. Training, samplers, likelihood and audit
ask for its α, its σ and its coefficients only. The model is a closed form that has memorised 30 digits, so that the
truth is known: each comes back once in 30 images.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import montecarlo, subspace, tprime
from diffusion_privacy.data import sources
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import SDES, GaussianMarginals, expand
from diffusion_privacy.types import Array, Estimate

KNOWN = 30


@dataclasses.dataclass(frozen=True)
class Straight(GaussianMarginals):
    """α(t) = 1 − st and σ(t) = t, s < 1 so that the rates stay finite at t = 1.

    From α and σ follow dx = f dt + g dw with f = (α'/α) x and g² = (σ²)' − 2 (α'/α) σ².
    """

    stretch: float = 0.99
    t_min: float = 1e-3

    def alpha(self, t: Array) -> Array:
        return 1.0 - self.stretch * t

    def sigma(self, t: Array) -> Array:
        return t

    def coefficients(self, x: Array, t: Array) -> tuple[Array, Array]:
        rate = -self.stretch / self.alpha(t)
        return expand(rate, x) * x, jnp.sqrt(2 * t - 2 * rate * t**2)


SDES["straight"] = Straight  # or a line in diffusion_privacy/diffusion/sde.py; then --config.score.sde.name=straight


def main() -> tuple[Estimate, Estimate]:
    records = jnp.asarray(sources.load("digits", limit=KNOWN).image)
    process, key = Straight(), jax.random.key(0)

    def score(x: Array, t: Array) -> Array:
        """Put your network here."""
        mean, var = process.alpha(t)[:, None, None] * records.reshape(KNOWN, -1), process.sigma(t)[:, None] ** 2
        gap = mean - x.reshape(len(x), 1, -1)
        weight = jax.nn.softmax(-jnp.sum(gap**2, axis=2) / (2 * var))
        return (jnp.einsum("bn,bnd->bd", weight, gap) / var).reshape(x.shape)

    def detect(x: Array, record: Array) -> Array:
        """Positive where an image is record number ``record``."""
        return 1.0 - jnp.linalg.norm((x - records[record]).reshape(len(x), -1), axis=1)

    sampler = Chain(process, steps=40)
    [curve] = tprime.h_curves(sampler, score, detect, records[:1], np.arange(1, 41, 8), 64, key)
    design = subspace.design(curve.by_level)
    [e2] = subspace.estimate(sampler, score, detect, records[:1], [design], key)
    images = montecarlo.sample(sampler, score, (8, 8, 1), 1500, key)
    hits = montecarlo.margins(detect, images, 1) > 0
    e1 = montecarlo.direct(int(hits.sum()), 1500, steps=40)
    for q in (e1.estimate, e2.estimate):
        print(f"{q.method}: {q.value:.4f}, 95 % interval {q.lower:.4f} to {q.upper:.4f} (truth {1 / KNOWN:.4f})")
    return e1.estimate, e2.estimate


if __name__ == "__main__":
    main()
