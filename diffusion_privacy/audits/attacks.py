"""Membership scores of generative models: larger means "looks like a training record". Judged by `audits.membership`.

All of them take callables, one compiled program for all records on every device, chunk by chunk: memory does not grow
with the number of records, and no result depends on chunk or device count. With ε(x, t) = −σ(t)·score(x, t):

| score | network calls a record | idea |
| --- | --- | --- |
| `loss` | times x draws | the denoising loss is lower on what was trained on |
| `pia` | 2 | one-step consistency of the noise that the model sees in the clean record |
| `secmi` | steps + 2 | error of one deterministic step there and back on the record's own trajectory |
| `likelihood` | steps x stages of the solver | the model's log-density is higher |
| `flow` | 1 | a flow's exact log-density is higher |

Pass the score as a `jax.tree_util.Partial` that carries its parameters, or every model compiles anew.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.diffusion.likelihood import LikelihoodConfig, log_likelihood
from diffusion_privacy.diffusion.sde import expand, scored
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import rng
from diffusion_privacy.types import SDE, Array, ConditionalScore, ScoreFn

LogProb = Callable[[Array, Array], Array]
"""``log_prob(x[B, ...], cond[B, K]) -> [B]`` in nats; K may be 0."""


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What is compiled in."""

    sde: SDE
    times: tuple[float, ...] = ()
    draws: int = 1
    power: float = 2.0
    normalise: bool = False
    config: LikelihoodConfig | None = None


def _records(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim < 2 or x.size == 0:
        raise InputError(f"{name}: expected records [N, ...] with at least one number each, got {x.shape}")
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
    if bad.size:
        raise InputError(f"{name}: record {bad[0]} is not finite; expected numbers")
    return x


def _time(sde: SDE, t: float, name: str) -> float:
    if not sde.t_min <= t <= 1.0:
        raise InputError(f"{name}: expected times within [{sde.t_min:g}, 1], got {t!r}")
    return float(t)


def _finite(scores: np.ndarray, name: str) -> np.ndarray:
    bad = np.flatnonzero(np.isnan(scores))
    if bad.size:
        raise InputError(f"{name}: the model gives NaN for record {bad[0]} ({bad.size} such); expected a number")
    return np.asarray(scores, np.float64)


def _run(
    fn: lanes.LaneFn,
    setting: _Setting,
    score: Any,
    x: np.ndarray,
    chunk: int,
    name: str,
    label: np.ndarray | None = None,
) -> np.ndarray:
    rows = {"x": x, "index": np.arange(len(x), dtype=np.int32)}
    if label is not None:
        rows["label"] = np.asarray(label, np.int32)
    return _finite(lanes.run(fn, setting, score, rows, chunk=chunk), name)


def _noise_seen(sde: SDE, score: ScoreFn, x: Array, t: Array) -> Array:
    """ε(x, t) = −σ(t)·score(x, t)."""
    return -expand(sde.sigma(t), x) * scored(score, x, t)


def _flat_norm(x: Array, power: float) -> Array:
    """‖x‖_p of each row, ``[B]``."""
    return jnp.linalg.norm(x.reshape(x.shape[0], -1), ord=power, axis=1)


def _loss_lanes(setting: _Setting, operands: Any, rows: dict[str, Array]) -> Array:
    given, key = operands
    x, sde = rows["x"], setting.sde
    score = functools.partial(given, rows["label"]) if "label" in rows else given
    size = math.prod(x.shape[1:])
    times = jnp.repeat(jnp.asarray(setting.times, x.dtype), setting.draws)

    def one(numbered: tuple[Array, Array]) -> Array:
        number, time = numbered
        keys = lanes.lane_keys(key, rows["index"], jnp.full(x.shape[:1], number))
        # Drawn flat: draws of more axes take long to compile.
        noise = jax.vmap(lambda k: jax.random.normal(k, (size,), x.dtype))(keys).reshape(x.shape)
        t = jnp.full(x.shape[:1], time)
        mean, std = sde.marginal(x, t)
        error = _noise_seen(sde, score, mean + expand(std, x) * noise, t) - noise
        return jnp.mean(jnp.square(error).reshape(x.shape[0], -1), axis=1)

    return -jnp.mean(jax.lax.map(one, (jnp.arange(times.size), times)), axis=0)


def loss(
    score: ScoreFn | ConditionalScore,
    sde: SDE,
    x: np.ndarray,
    *,
    label: np.ndarray | None = None,
    times: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    draws: int = 2,
    seed: int = 0,
    chunk: int = 256,
) -> np.ndarray:
    """Minus the denoising loss ‖ε − ε(x_t, t)‖²/D, averaged over times and draws (Matsumoto et al., arXiv 2302.03262).

    Args:
      score: the model; with ``label`` a `types.ConditionalScore`.
      sde: its forward process.
      x: records [N, ...] in the model's range.
      label: classes int [N] of the records, for a conditional model: the attacker knows them.
      times: within [t_min, 1].
      draws: noises at each time, each a function of (seed, record number, time, draw).
      seed: of the noise.
      chunk: records at once on one device.

    Returns:
      float64 [N], dimensionless, <= 0.

    Raises:
      InputError: records or model outputs that are not finite, a time out of range, no time or draw.
    """
    x = _records(x, "loss")
    if not times or draws < 1:
        raise InputError(f"loss: expected at least one time and one draw, got {list(times)} and {draws}")
    setting = _Setting(sde, tuple(_time(sde, t, "loss.times") for t in times), draws)
    return _run(
        _loss_lanes, setting, (lanes.operand(score), jax.random.key(seed, impl=rng.LAW)), x, chunk, "loss", label
    )


def _pia_lanes(setting: _Setting, operands: Any, rows: dict[str, Array]) -> Array:
    x, sde = rows["x"], setting.sde
    start, t = (jnp.full(x.shape[:1], time, x.dtype) for time in (sde.t_min, setting.times[0]))
    noise = _noise_seen(sde, operands, x, start)
    if setting.normalise:
        size = math.prod(x.shape[1:])
        noise = noise * expand(size * math.sqrt(2 / math.pi) / _flat_norm(noise, 1.0), noise)
    mean, std = sde.marginal(x, t)
    return -_flat_norm(noise - _noise_seen(sde, operands, mean + expand(std, x) * noise, t), setting.power)


def pia(
    score: ScoreFn,
    sde: SDE,
    x: np.ndarray,
    *,
    t: float = 0.2,
    power: float = 4.0,
    normalise: bool = False,
    chunk: int = 256,
) -> np.ndarray:
    """Proximal initialisation attack (Kong et al., arXiv 2305.18355, eq. 9): −‖ε₀ − ε(α x + σ ε₀, t)‖_p.

    ε₀ = ε(x, t_min) is the noise that the model sees in the clean record. With ``normalise`` (PIAN) it is scaled to
    the mean magnitude √(2/π) of normal noise first.

    Args:
      score, sde, x, chunk: as in `loss`.
      t: attack time in [t_min, 1]; the paper uses 200 of 1,000 steps.
      power: p >= 1; 4 in the paper.

    Returns:
      float64 [N], <= 0. No randomness.

    Raises:
      InputError: as in `loss`, or p < 1.
    """
    x = _records(x, "pia")
    if not power >= 1.0:
        raise InputError(f"pia.power: expected a number >= 1, got {power!r}")
    setting = _Setting(sde, (_time(sde, t, "pia.t"),), power=float(power), normalise=normalise)
    return _run(_pia_lanes, setting, lanes.operand(score), x, chunk, "pia")


def _secmi_lanes(setting: _Setting, operands: Any, rows: dict[str, Array]) -> Array:
    x, sde = rows["x"], setting.sde

    def step(at: Array, times: tuple[Array, Array]) -> tuple[Array, None]:
        """The deterministic map of DDIM from one time to another (arXiv 2010.02502, eq. 12 with η = 0)."""
        s, u = (jnp.full(x.shape[:1], time, x.dtype) for time in times)
        noise = _noise_seen(sde, operands, at, s)
        clean = (at - expand(sde.sigma(s), at) * noise) / expand(sde.alpha(s), at)
        mean, std = sde.marginal(clean, u)
        return mean + expand(std, at) * noise, None

    grid = jnp.asarray(setting.times, x.dtype)
    reached, _ = jax.lax.scan(step, x, (grid[:-2], grid[1:-1]))
    back, _ = jax.lax.scan(step, reached, (jnp.stack([grid[-2], grid[-1]]), jnp.stack([grid[-1], grid[-2]])))
    return -jnp.square(_flat_norm(back - reached, 2.0))


def secmi(score: ScoreFn, sde: SDE, x: np.ndarray, *, t: float = 0.1, steps: int = 10, chunk: int = 256) -> np.ndarray:
    """Step-wise error (Duan et al., arXiv 2302.01316, SecMI_stat): −‖one step up and down again from x̃_t − x̃_t‖².

    x̃_t is reached from the record by ``steps`` equal deterministic steps; the step beyond has the same length.

    Args:
      score, sde, x, chunk: as in `loss`.
      t: attack time; the paper uses 100 of 1,000 steps, in 10 strides.
      steps: strides up to t, at least 1.

    Returns:
      float64 [N], <= 0, in squared units of x. No randomness.

    Raises:
      InputError: as in `loss`, fewer than one step, or a step that leaves [t_min, 1].
    """
    x = _records(x, "secmi")
    if steps < 1:
        raise InputError(f"secmi.steps: expected 1 or more, got {steps}")
    _time(sde, t, "secmi.t")
    stride = (t - sde.t_min) / steps
    times = [sde.t_min + i * stride for i in range(steps + 2)]
    _time(sde, times[-1], "secmi.t + one step")
    if stride <= 0:
        raise InputError(f"secmi.t: expected a time above {sde.t_min:g}, got {t!r}")
    return _run(_secmi_lanes, _Setting(sde, tuple(times)), lanes.operand(score), x, chunk, "secmi")


def _likelihood_lanes(setting: _Setting, operands: Any, rows: dict[str, Array]) -> Array:
    score, key = operands
    assert setting.config is not None
    keys = lanes.lane_keys(key, rows["index"])
    return log_likelihood(score, setting.sde, rows["x"], keys, setting.config, t=setting.times[0]).nats


LIKELIHOOD = LikelihoodConfig(solver="rk4", steps=20, divergence="hutchinson", probes=1)
"""Coarse settings: an attack needs an order, not a number."""


def likelihood(
    score: ScoreFn,
    sde: SDE,
    x: np.ndarray,
    *,
    t: float | None = None,
    config: LikelihoodConfig = LIKELIHOOD,
    seed: int = 0,
    chunk: int = 64,
) -> np.ndarray:
    """log p_t(x) of the model's probability flow, nats.

    Args:
      score, sde, x, seed, chunk: as in `loss`; the seed is that of Hutchinson's probes.
      t: time whose density is read; None for t_min. Later times smooth over digits of x.
      config: solver and divergence.

    Raises:
      InputError: as in `loss`.
    """
    x = _records(x, "likelihood")
    setting = _Setting(sde, (_time(sde, sde.t_min if t is None else t, "likelihood.t"),), config=config)
    operands = (lanes.operand(score), jax.random.key(seed, impl=rng.LAW))
    return _run(_likelihood_lanes, setting, operands, x, chunk, "likelihood")


def _flow_lanes(setting: None, operands: Any, rows: dict[str, Array]) -> Array:
    x = rows["x"]
    # An argument without entries, divided among devices, brings down the compiler of jaxlib 0.11.
    return operands(x, rows["cond"] if "cond" in rows else jnp.zeros((len(x), 0), x.dtype))


def flow(log_prob: LogProb, x: np.ndarray, cond: np.ndarray | None = None, *, chunk: int = 256) -> np.ndarray:
    """log p(x | cond) of a flow in nats: the negative of the loss it was trained on.

    A flow trained on dequantised images should see them with noise of its own here; average over several if needed.

    Args:
      log_prob: ``(x[B, ...], cond[B, K]) -> [B]``; a `jax.tree_util.Partial` keeps the parameters out of the program.
      x: records [N, ...].
      cond: conditions [N, K]; None gives K = 0.
      chunk: records at once on one device.

    Raises:
      InputError: records or densities that are not numbers, or conditions of another length.
    """
    x = _records(x, "flow")
    rows = {"x": x}
    if cond is not None:
        given = np.asarray(cond, np.float32)
        if given.ndim != 2 or len(given) != len(x):
            raise InputError(f"flow.cond: expected conditions [{len(x)}, K], got {given.shape}")
        rows |= {"cond": given} if given.shape[1] else {}
    return _finite(lanes.run(_flow_lanes, None, lanes.operand(log_prob), rows, chunk=chunk), "flow")


ATTACKS: dict[str, Callable[[ScoreFn, SDE, np.ndarray], np.ndarray]] = {
    "loss": loss,
    "pia": pia,
    "secmi": secmi,
    "likelihood": likelihood,
}
"""Attacks on diffusion scores with their default settings, by the name of a report."""
