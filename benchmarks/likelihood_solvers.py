"""Error of the likelihood's solvers against calls of the network, on mixtures of Gaussians whose density is known.

    python -m benchmarks.likelihood_solvers

Exact divergence in float64; the error is the largest over eight draws in bits per dimension against the closed form,
which the prior's own mismatch at t = 1 keeps above 2e-5.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.diffusion.likelihood import LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.sde import VE, VP, SubVP
from diffusion_privacy.types import SDE, Array

_DRAWS = 8
_SETTINGS = tuple(
    LikelihoodConfig(solver=solver, steps=steps, divergence="exact")
    for solver, counts in (("rk4", (10, 15, 20, 30, 40)), ("adams", (20, 30, 40, 60, 80)))
    for steps in counts
)


def _log_density(means: np.ndarray, std: np.ndarray, sde: SDE) -> Callable[[Array, Array], Array]:
    def log_density(x: Array, t: Array) -> Array:
        alpha, sigma = sde.alpha(t)[:, None, None], sde.sigma(t)[:, None, None]
        variance = (alpha * std) ** 2 + sigma**2
        terms = jnp.square(x[:, None] - alpha * means) / variance + jnp.log(2 * np.pi * variance)
        return jax.scipy.special.logsumexp(-0.5 * jnp.sum(terms, axis=2), axis=1) - np.log(len(means))

    return log_density


def _errors(sde: SDE, dim: int, finest: float, coarsest: float) -> list[float]:
    """Of each setting, on three components with standard deviations from ``finest`` to ``coarsest``."""
    rng = np.random.default_rng(dim)
    std = np.geomspace(finest, coarsest, dim)
    means = 1.5 * std * rng.standard_normal((3, dim))
    means -= means.mean(0)
    log_density = _log_density(means, std, sde)
    x = jnp.asarray(means[rng.integers(0, 3, _DRAWS)] + std * rng.standard_normal((_DRAWS, dim)))
    want = log_density(x, jnp.full(_DRAWS, sde.t_min))
    keys = jax.random.split(jax.random.key(0), _DRAWS)

    def score(x: Array, t: Array) -> Array:
        return jax.grad(lambda u: jnp.sum(log_density(u, t)))(x)

    def error(config: LikelihoodConfig) -> float:
        found = jax.jit(lambda x: log_likelihood(score, sde, x, keys, config).nats)(x)
        return float(jnp.max(jnp.abs(found - want)) / dim / np.log(2))

    return [error(config) for config in _SETTINGS]


def main() -> None:
    """Prints a table and, as the last line, JSON."""
    cases: tuple[tuple[str, SDE, int, float, float], ...] = (
        ("VP, 32, std .02 to 1", VP(), 32, 0.02, 1.0),
        ("VP, 64, std .4", VP(), 64, 0.4, 0.4),
        ("VE, 32, std .02 to 1", VE(), 32, 0.02, 1.0),
        ("sub-VP, 48, std .05 to 1.2", SubVP(), 48, 0.05, 1.2),
    )
    with jax.enable_x64(True):
        found = {name: _errors(*case) for name, *case in cases}
    print("| solver, steps | calls of the network | with divergence |", " | ".join(found), "|")
    print("|---" * (3 + len(found)) + "|")
    for i, config in enumerate(_SETTINGS):
        calls, costly = (4, 4) if config.solver == "rk4" else (2, 1)
        cells = " | ".join(f"{errors[i]:.1e}" for errors in found.values())
        print(f"| `{config.solver}`, {config.steps} | {calls * config.steps} | {costly * config.steps} | {cells} |")
    print(json.dumps({"settings": [(c.solver, c.steps) for c in _SETTINGS], "errors": found}))


if __name__ == "__main__":
    main()
