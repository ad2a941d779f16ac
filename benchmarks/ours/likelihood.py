"""Likelihood by the probability flow, one Hutchinson probe, images of 16x16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import pairs, shapes
from benchmarks.job import Job, first_call
from diffusion_privacy.diffusion.likelihood import Likelihood, LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.sde import VP
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training import sharding
from diffusion_privacy.training.sharding import REPLICATED, SHARDED
from diffusion_privacy.types import Array

PAIR = pairs.LIKELIHOOD
SDE = VP()


@functools.cache
def _program(config: LikelihoodConfig) -> Callable[..., Likelihood]:
    task = ScoreTask(PAIR.network(), SDE, shapes.LIKELIHOOD_IMAGES)

    def likelihood(params: Any, x: Array, keys: Array) -> Likelihood:
        return log_likelihood(task.score(params), SDE, x, jax.vmap(jax.random.wrap_key_data)(keys), config)

    mesh = sharding.data_mesh()
    return sharding.data_parallel(likelihood, mesh, in_specs=(REPLICATED, SHARDED, SHARDED), out_specs=SHARDED)


@functools.cache
def _inputs() -> tuple[Any, Any, Any]:
    mesh, count = sharding.data_mesh(), shapes.LIKELIHOOD_IMAGES
    params = sharding.put_replicated(pairs.mild_params(PAIR.network(), PAIR.shape), mesh)
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), count)))
    x, keys = sharding.put_batch((shapes.images(count, PAIR.shape)[0], keys), mesh)
    return params, x, keys


def _bits(config: LikelihoodConfig) -> tuple[np.ndarray, np.ndarray]:
    """(bits per dimension without the grey levels' constant, network calls), each ``[B]``."""
    found = _program(config)(*_inputs())
    return -np.asarray(found.nats) / np.prod(PAIR.shape) / np.log(2), np.asarray(found.network_calls)


def _tolerance() -> Job:
    config = LikelihoodConfig(
        solver="adaptive", rtol=shapes.TOLERANCE, atol=shapes.TOLERANCE, probes=1, max_steps=10_000
    )
    run = functools.partial(_bits, config)
    first = first_call(run)
    _, calls = run()
    return Job(run, shapes.LIKELIHOOD_IMAGES, None, {"first_call_s": first, "network_calls": float(calls.mean())})


def _error() -> Job:
    """The fewest fixed steps within the wanted error of 320 steps."""
    exact, _ = _bits(LikelihoodConfig(solver="rk4", steps=320, probes=1))
    tried: dict[int, float] = {}
    for steps in (10, 15, 20, 30, 40, 60, 80, 120):
        config = LikelihoodConfig(solver="rk4", steps=steps, probes=1)
        tried[steps] = float(np.max(np.abs(_bits(config)[0] - exact)))
        if tried[steps] <= shapes.WANTED_ERROR:
            facts = {"steps": steps, "largest_error": tried[steps], "tried": tried, "network_calls": 4 * steps}
            return Job(functools.partial(_bits, config), shapes.LIKELIHOOD_IMAGES, None, facts)
    raise ValueError(f"no number of steps within {shapes.WANTED_ERROR} bits/dim: {tried}")


JOBS: dict[str, Callable[[], Job]] = {"tolerance": _tolerance, "error": _error}
