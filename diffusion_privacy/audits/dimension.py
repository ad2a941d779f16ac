"""FLIPD: how many directions can a record vary in, as the model sees it? Small where the model holds a single point.

Kamkari et al., "A Geometric View of Data Complexity" (arXiv 2406.03537), theorem 3.2 for any process with marginals
x_t ~ N(α(t) x_0, σ(t)² I), of which VP, sub-VP and VE are cases. The density of x_0 + τ N(0, I) at x grows with log τ
at the rate of (local intrinsic dimension − D) as τ = σ/α goes to 0, and the heat equation gives that rate from one
evaluation of the score s and its divergence:

    FLIPD(x, t) = D + σ(t)² (div s(α(t) x, t) + ‖s(α(t) x, t)‖²)

On an exact memoriser the dimension of a training record is 0 and that of other records is not defined (their score
pulls to some record: large values). The time matters: too small and a network's errors dominate, too large and the
neighbourhood is no longer local.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.audits import neighbours
from diffusion_privacy.diffusion.likelihood import (
    PROBES,
    LikelihoodConfig,
    exact_slope,
    hutchinson_slope,
    probe_vectors,
)
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import rng
from diffusion_privacy.types import SDE, Array, ScoreFn

EXACT_UP_TO = 256
"""Dimensions up to which the divergence is exact by default: D tangents a record."""


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What is compiled in."""

    sde: SDE
    t: float
    divergence: LikelihoodConfig


def _flipd_lanes(setting: _Setting, operands: Any, batch: dict[str, Array]) -> dict[str, Array]:
    score, key = operands
    x, sde, config = batch["x"], setting.sde, setting.divergence
    t = jnp.full(x.shape[:1], setting.t, x.dtype)
    at = expand(sde.alpha(t), x) * x

    def field(_: Array, y: Array) -> Array:
        return score(y, t)

    zero = jnp.zeros(())
    if config.divergence == "exact":
        s, divergence = exact_slope(field, config.chunk)(zero, (at, zero))
    else:
        probes = probe_vectors(config, lanes.lane_keys(key, batch["index"]), x)
        s, divergence = hutchinson_slope(field, probes)(zero, (at, zero))
    # The slopes are divergences per dimension, one column a probe.
    dim = math.prod(x.shape[1:])
    square = jnp.sum(jnp.square(s).reshape(x.shape[0], -1), axis=1)
    scale = sde.sigma(t) ** 2
    values = dim + scale[:, None] * (dim * divergence + square[:, None])
    count = divergence.shape[1]
    error = jnp.std(values, axis=1, ddof=1) / math.sqrt(count) if count > 1 else jnp.zeros_like(square)
    return {"value": jnp.mean(values, axis=1), "stderr": error}


@dataclasses.dataclass(frozen=True)
class Dimension:
    """Local intrinsic dimensions; smaller means that the model allows fewer variations of the record.

    Attributes:
      value: FLIPD of each record, float64 [N]; may leave [0, D] (the model's score is not exact, t is not 0).
      probe_stderr: Hutchinson's standard error, [N]; 0 for the exact divergence, NaN for a single probe.
      t: time at which the score was read.
      network_calls: score evaluations a record; each carries its tangents.
    """

    value: np.ndarray
    probe_stderr: np.ndarray
    t: float
    network_calls: int


def flipd(
    score: ScoreFn,
    sde: SDE,
    x: np.ndarray,
    *,
    t: float = 0.05,
    divergence: str | None = None,
    probe: str = "rademacher",
    probes: int = 8,
    seed: int = 0,
    chunk: int = 64,
) -> Dimension:
    """FLIPD of every record, chunk by chunk on all devices.

    Args:
      score: the model; a `jax.tree_util.Partial` reuses compiled programs across models.
      sde: its forward process.
      x: records ``[N, ...]`` in the model's range.
      t: time in [t_min, 1]; 0.05 in the paper's experiments on images.
      divergence: ``"exact"``, ``"hutchinson"``, or None: exact up to `EXACT_UP_TO` dimensions.
      probe, probes, seed: of Hutchinson's estimate, which is unbiased here.
      chunk: records at once on one device.

    Raises:
      InputError: records or model outputs that are not finite, a time out of range, an unknown choice.
    """
    neighbours.rows(x, "flipd: records")
    x = np.asarray(x, np.float32)
    if not sde.t_min <= t <= 1.0:
        raise InputError(f"flipd.t: expected a time within [{sde.t_min:g}, 1], got {t!r}")
    if probe not in PROBES:
        raise InputError(f"flipd.probe: expected one of {', '.join(PROBES)}, got {probe!r}")
    kind = divergence or ("exact" if x[0].size <= EXACT_UP_TO else "hutchinson")
    config = LikelihoodConfig(divergence=kind, probe=probe, probes=probes)
    batch = {"x": x, "index": np.arange(len(x), dtype=np.int32)}
    operands = (lanes.operand(score), jax.random.key(seed, impl=rng.LAW))
    out = lanes.run(_flipd_lanes, _Setting(sde, float(t), config), operands, batch, chunk=chunk)
    value = np.asarray(out["value"], np.float64)
    bad = np.flatnonzero(~np.isfinite(value))
    if bad.size:
        raise InputError(f"flipd: the model gives no number for record {bad[0]} ({bad.size} such); expected one")
    error = np.asarray(out["stderr"], np.float64)
    if kind == "hutchinson" and probes == 1:
        error = np.full(len(x), np.nan)
    return Dimension(value, error, float(t), 1)
