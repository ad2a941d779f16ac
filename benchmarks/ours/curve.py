"""A privacy-utility curve of 7 ε and 5 seeds: as one job, and point by point."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ours.flow import MNIST, random_params
from benchmarks.shapes import images
from diffusion_privacy.flows import objective
from diffusion_privacy.flows.objective import flow_model
from diffusion_privacy.mechanisms import decoding
from diffusion_privacy.mechanisms.mechanism import GaussianMechanism
from diffusion_privacy.mechanisms.study import latent_curve_for_internal_study
from diffusion_privacy.training.rng import per_record

_RECORDS = 64
_SCALES = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
_SEEDS = 5
_CLIP = 28.0


def curve() -> dict[str, Any]:
    """Seconds of both, compilation included in both: each point is a program's run of its own in the second."""
    model = flow_model(MNIST, "label", "affine", 256)
    params = jax.tree.map(jnp.asarray, random_params(model))
    image, label = images(_RECORDS)
    cond = objective.one_hot(label, 10, "labels")

    def whole() -> list[float]:
        z, _ = objective.encode(model, params, image, cond, jax.random.key(0))
        scales, found = jnp.asarray(_SCALES), []
        noise = jax.jit(latent_curve_for_internal_study, static_argnums=(0, 1))
        for seed in range(_SEEDS):
            keys = per_record(jax.random.key(seed), np.arange(_RECORDS))
            for scale, row in zip(_SCALES, noise(GaussianMechanism, _CLIP, scales, keys, z), strict=True):
                found.append(_utility(row, scale))
        return found

    def point(seed: int, scale: float) -> float:
        """A run of its own: nothing is kept of the one before, compiled programs included."""
        jax.clear_caches()
        z, _ = objective.encode(model, params, image, cond, jax.random.key(0))
        mechanism = GaussianMechanism(_CLIP, scale)
        keys = per_record(jax.random.key(seed), np.arange(_RECORDS))
        return _utility(jax.jit(jax.vmap(mechanism))(keys, jnp.asarray(z)), scale)

    def _utility(noisy: Any, scale: float) -> float:
        matched = decoding.match_prior(jnp.asarray(noisy), "gaussian", scale)
        back = objective.decode(model, params, np.asarray(matched), cond)
        return float(np.mean(np.square(back - image)))

    jax.clear_caches()
    together, all_at_once = _timed(whole)
    first = [_timed(lambda s=scale: point(0, s)) for scale in _SCALES[:3]]
    each = float(np.mean([seconds for seconds, _ in first]))
    count = len(_SCALES) * _SEEDS
    np.testing.assert_allclose([value for _, value in first], all_at_once[:3], rtol=0.02)
    return {"whole_s": together, "point_s": each, "points": count, "ratio": each * count / together, "goal": 3.0}


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


MEASUREMENTS: dict[str, Callable[[], dict[str, Any]]] = {"curve": curve}
