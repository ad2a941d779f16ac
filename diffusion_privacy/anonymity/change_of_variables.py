"""E3: q of a deterministic sampler, whose images have a density but whose paths have none.

A deterministic sampler maps x_J ~ prior to x_0 through levels x_j (`transport`). One draw of component k starts at
x_k ~ N(α_k x_p, σ_k² I), climbs to the x_J that the sampler takes to x_k, and comes down as the sampler does, through
every level to x_0. On the way down the change of variables gives log p_j at every level, so that one path tells its
weight under every component,

    log w_k = log p_k(x_k) − log N(x_k; α_k x_p, σ_k² I),

and components are mixed by the balance heuristic with a share a_0 of plain samples, as in `subspace`. In the latent
space this is importance sampling of q = ∫ 1[D(F(x_J))] N(x_J) dx_J: unbiased for every score and every level, as far as

- the climb finds the x_J that leads to x_k. Draws where it does not count as misses (the estimate is too small, never
  too large) and are reported; so is how far the way down passes from x_k;
- the map does not fold. Where several x_J lead to one x_k, the climb finds one of them: too small again. The sign of
  the determinant shows local folds;
- determinants are exact. Hutchinson's probes err symmetrically in log w and hence upward in w, by a factor near
  exp(s²/2) for a standard error s: the lower limit is divided by it, and an estimate where it matters is not reliable.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.anonymity import intervals, lanes, tprime, weights
from diffusion_privacy.anonymity.subspace import Mixture, balance_terms
from diffusion_privacy.anonymity.transport import Inverse, Transport
from diffusion_privacy.diffusion.chain import step_noise, take
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, Estimate, PyTree, ScoreFn

MAX_FAILED = 0.01
MAX_RESIDUAL = 0.05  # of σ, on average over draws
MAX_PROBE_BIAS = 0.05

ASSUMES = (
    "the deterministic sampler named here, not the stochastic one of the other estimators",
    "the sampler's map has one way up from every point (a fold makes the estimate too small)",
    "the region near the record that its noised copies reach; plain samples alone look elsewhere",
)


def _row_norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1))


def _log_normal(x: Array, mean: Array, std: Array) -> Array:
    dim = x.reshape(x.shape[0], -1).shape[1]
    return -0.5 * jnp.square(_row_norm(x - mean) / std) - dim * (0.5 * np.log(2 * np.pi) + jnp.log(std))


def _noised(transport: Transport, operands: PyTree, batch: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """``(keys, start level, x at it, prior draw)``; level J + 1 stands for a plain sample from level J."""
    chain = transport.chain
    target = operands["records"][batch["record"]]
    keys = lanes.lane_keys(operands["key"], batch["uid"], batch["level"], batch["draw"])
    noise = step_noise(keys, jnp.zeros(keys.shape[0], int), target.shape[1:])
    prior = chain.sde.prior_std * noise
    start = jnp.minimum(batch["level"], chain.steps)
    alpha, sigma = (expand(take(v, start), target) for v in (chain.alpha, chain.sigma))
    guided = expand(batch["level"] <= chain.steps, target)
    return keys, start, jnp.where(guided, alpha * target + sigma * noise, prior), prior


def _climb(transport: Transport, score: ScoreFn, x: Array, start: Array) -> Inverse:
    """x_J for rows that start at levels ``start[B]``."""
    rows = x.shape[0]

    def body(level: Array, carry: Inverse) -> Inverse:
        active = (start < level) & carry.found
        new = transport.up(score, carry.x, jnp.full((rows,), level))
        return Inverse(
            jnp.where(expand(active, carry.x), new.x, carry.x),
            carry.found & (new.found | ~active),
            carry.broken | (new.broken & active),
            carry.calls + jnp.where(active, new.calls, 0),
        )

    first = Inverse(x, jnp.ones(rows, bool), jnp.zeros(rows, bool), jnp.zeros(rows, int))
    return jax.lax.fori_loop(jnp.min(start) + 1, transport.chain.steps + 1, body, first)


def transport_paths(transport: Transport, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    """Paths through a noised record; the lane function of `estimate`.

    Args:
      transport: static.
      operands: ``key``, ``score``, ``detect``, ``records [R, ...]``, ``read`` int ``[R, K]``: levels at which weights
        are read for each record.
      batch: per lane ``record``, ``uid``, ``level`` (1 … J; J + 1 for a plain sample), ``draw``.

    Returns:
      ``margin [B]``; ``log_w [B, K]`` and its standard error by probes ``stderr [B, K]``; ``found``, ``folded``
      ``[B]``; ``residual [B]``, the distance between x_k and the way down in units of σ_k; ``climb_calls [B]``.
    """
    chain, score = transport.chain, operands["score"]
    target, read = operands["records"][batch["record"]], operands["read"][batch["record"]]
    keys, start, origin, prior = _noised(transport, operands, batch)
    climbed = _climb(transport, score, origin, start)
    found, rows = climbed.found, origin.shape[0]
    # Rows without a way up go on as plain samples, so that they stay finite; they count as misses.
    top = jnp.where(expand(found, prior), climbed.x, prior)

    def visit(level: Array, x: Array, log_p: Array, log_w: Array, residual: Array) -> tuple[Array, Array]:
        at = jnp.full((rows,), level)
        alpha, sigma = take(chain.alpha, at), take(chain.sigma, at)
        here = log_p - _log_normal(x, expand(alpha, x) * target, sigma)[:, None]
        log_w = jnp.where((read == level)[:, :, None], here[:, None, :], log_w)
        return log_w, jnp.where(start == level, _row_norm(x - origin) / sigma, residual)

    def descend(i: Array, carry: PyTree) -> PyTree:
        x, log_p, log_w, residual, folded = carry
        level = chain.steps - i
        log_w, residual = visit(level, x, log_p, log_w, residual)
        at = jnp.full((rows,), level)
        probe_keys = jax.vmap(lambda k: jax.random.fold_in(k, level))(keys)
        new = transport.down(score, x, at, probe_keys)
        return new.x, log_p - new.log_det, log_w, residual, folded | (new.sign <= 0)

    columns = transport.columns
    log_p = jnp.broadcast_to(chain.sde.prior_logp(top)[:, None], (rows, columns))
    first = (top, log_p, jnp.zeros((*read.shape, columns)), jnp.zeros(rows), jnp.zeros(rows, bool))
    lowest = jnp.minimum(jnp.min(read), jnp.min(start))
    x, log_p, log_w, residual, folded = jax.lax.fori_loop(0, chain.steps - lowest, descend, first)
    log_w, residual = visit(lowest, x, log_p, log_w, residual)

    def finish(i: Array, x: Array) -> Array:
        return transport.step(score, x, jnp.full((rows,), lowest - i))

    x = jax.lax.fori_loop(0, lowest, finish, x)
    spread = jnp.std(log_w, axis=2, ddof=1) / np.sqrt(columns) if columns > 1 else jnp.zeros(read.shape)
    return {
        # A broken score must not pass for a point without a way up.
        "margin": jnp.where(climbed.broken, jnp.nan, lanes.checked_margin(operands["detect"], x, batch["record"])),
        "log_w": jnp.mean(log_w, axis=2),
        "stderr": spread,
        "found": found,
        "folded": folded & found,
        "residual": jnp.where(found, residual, 0.0),
        "climb_calls": climbed.calls,
    }


def _regenerate(transport: Transport, operands: PyTree, batch: dict[str, Array]) -> Array:
    _, start, x, _ = _noised(transport, operands, batch)

    def body(i: Array, x: Array) -> Array:
        level = jnp.max(start) - i
        new = transport.step(operands["score"], x, jnp.full((x.shape[0],), level))
        return jnp.where(expand(level <= start, x), new, x)

    x = jax.lax.fori_loop(0, jnp.max(start), body, x)
    return lanes.checked_margin(operands["detect"], x, batch["record"])


def _operands(transport: Transport, score_fn: ScoreFn, detect: PyTree, records: np.ndarray, key: Array) -> PyTree:
    transport.check(int(np.prod(np.shape(records)[1:])))
    return {
        "key": key,
        "score": lanes.operand(score_fn),
        "detect": lanes.operand(detect),
        "records": jnp.asarray(records, jnp.float32),
    }


def h_curves(
    transport: Transport,
    score_fn: ScoreFn,
    detect: PyTree,
    records: np.ndarray,
    levels: np.ndarray,
    draws: int,
    key: Array,
    *,
    uids: np.ndarray | None = None,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """``[R, J]`` share of noised copies that the deterministic sampler returns, NaN at levels not looked at.

    For `subspace.design` with ``guidance=(1.0,)``. Arguments and errors as in `tprime.h_curves`.
    """
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    levels = np.sort(levels)
    batch = tprime.lane_grid(len(records), uids, levels, draws)
    operands = _operands(transport, score_fn, detect, records, key)
    margin = tprime.checked_finite(lanes.run(_regenerate, transport, operands, batch, chunk=chunk, mesh=mesh))
    hit = (margin > 0).reshape(len(levels), len(records), draws)[::-1]
    curves = np.full((len(records), transport.chain.steps), np.nan)
    curves[:, levels - 1] = hit.mean(axis=2).T
    return curves


@dataclasses.dataclass(frozen=True)
class TransportResult:
    """E3 for one record.

    Attributes:
      estimate: its lower limit already allows for the probes' bias, its upper one for climbs that failed.
      pareto_k, max_weight_share: of the hits' weights, see `weights`.
      hits: draws that were detected.
      failed: share of draws without a way up.
      residual: mean distance between a start and the way down, in units of its σ. Weights are those of the way down;
        the draws' law is off by at most about 0.4 times this, in total variation.
      folded: share of draws on whose way a determinant was not positive.
      probe_bias: nats by which the logarithm of the estimate is too large on average, by the probes' own spread.
    """

    estimate: Estimate
    pareto_k: float
    max_weight_share: float
    hits: int
    failed: float
    residual: float
    folded: float
    probe_bias: float


def estimate(
    transport: Transport,
    score_fn: ScoreFn,
    detect: PyTree,
    records: np.ndarray,
    mixtures: list[Mixture],
    key: Array,
    *,
    uids: np.ndarray | None = None,
    draws: int = 512,
    level: float = 0.95,
    chunk: int = 64,
    mesh: Mesh | None = None,
) -> list[TransportResult]:
    """q of every record under a deterministic sampler.

    Args:
      transport: the sampler, `transport.Discrete` or `transport.Continuous`.
      score_fn, detect, records, uids, level, chunk, mesh: as in `subspace.estimate`.
      mixtures: one a record, every guidance 1 (`subspace.design` with ``guidance=(1.0,)`` on `h_curves`).
      key: of the run.
      draws: a record; at least one for every component.

    Raises:
      InputError: images too large for exact determinants; a mixture that does not fit the sampler or the draws.
      FloatingPointError: an image, a weight or a margin is not finite.
    """
    records = np.asarray(records)
    if len(mixtures) != len(records):
        raise InputError(f"mixtures: expected one a record, got {len(mixtures)} for {len(records)}")
    for mixture in mixtures:
        if max(mixture.levels) > transport.chain.steps or set(mixture.guidance) != {1.0}:
            raise InputError(f"mixture: expected levels up to {transport.chain.steps} and guidance 1, got {mixture}")
        if mixture.allocate(draws).min() < 1:
            raise InputError(f"draws: expected at least one for each component of {mixture}, got {draws}")
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    width = max(len(m.levels) for m in mixtures)
    # Rows are padded by their own last level.
    read = np.array([[m.levels[min(i, len(m.levels) - 1)] for i in range(width)] for m in mixtures])
    operands = {**_operands(transport, score_fn, detect, records, key), "read": jnp.asarray(read)}
    counts = [m.allocate(draws) for m in mixtures]
    starts = [np.repeat([transport.chain.steps + 1, *m.levels], c) for m, c in zip(mixtures, counts, strict=True)]
    rows = np.repeat(np.arange(len(records)), draws)
    batch = {
        "record": rows,
        "uid": uids[rows],
        "level": np.concatenate(starts),
        "draw": np.tile(np.arange(draws), len(records)),
    }
    flat = {name: z.astype(np.int32) for name, z in batch.items()}
    out = lanes.run(transport_paths, transport, operands, flat, chunk=chunk, mesh=mesh)
    for name in ("margin", "log_w", "stderr"):
        if not np.all(np.isfinite(out[name])):
            raise FloatingPointError(f"the score or the detector made {name} not finite on a deterministic path")
    cost = _cost(transport, int(np.prod(records.shape[1:])), int(read.min()))
    return [
        _result(mixtures[r], counts[r], {name: z[rows == r] for name, z in out.items()}, level, cost)
        for r in range(len(records))
    ]


def _cost(transport: Transport, dim: int, lowest: int) -> int:
    """Network calls of one way down, tangents included."""
    rest = sum(transport.step_calls(j) for j in range(1, lowest + 1))
    return (transport.chain.steps - lowest) * transport.down_calls(dim) + rest


def _probe_bias(
    mixture: Mixture, counts: np.ndarray, out: dict[str, np.ndarray], terms: np.ndarray, hit: np.ndarray
) -> float:
    """log of the factor by which probe noise raises the estimate, if that noise is normal."""
    if not hit.any():
        return 0.0
    k = len(mixture.levels)
    # A term moves with each log w by that component's share of the mixture at its path; errors may go together.
    share = np.log(counts[1:] / counts.sum()) - out["log_w"][:, :k] + terms[:, None]
    error = np.sum(np.exp(np.minimum(share, 0.0)) * out["stderr"][:, :k], axis=1)
    shifted = terms[hit] + 0.5 * error[hit] ** 2
    return float(np.logaddexp.reduce(shifted) - np.logaddexp.reduce(terms[hit]))


def _result(
    mixture: Mixture, counts: np.ndarray, out: dict[str, np.ndarray], level: float, cost: int
) -> TransportResult:
    k, n = len(mixture.levels), len(out["margin"])
    terms = balance_terms(mixture, counts, out["log_w"][:, :k], np.zeros((n, k)))
    hit = (out["margin"] > 0) & out["found"]
    mean = weights.weighted_mean(terms, hit, level)
    failed, folded = float(np.mean(~out["found"])), float(np.mean(out["folded"]))
    residual, bias = float(out["residual"].mean()), _probe_bias(mixture, counts, out, terms, hit)
    reasons = [*mean.reasons]
    for bad, text in (
        (failed > MAX_FAILED, f"{failed:.1%} of the draws found no way up (limit {MAX_FAILED:.0%}): too small"),
        (folded > 0, f"the sampler's map folds on {folded:.1%} of the draws: too small"),
        (
            residual > MAX_RESIDUAL,
            f"ways down pass {residual:.2g} σ from their starts on average (limit {MAX_RESIDUAL})",
        ),
        (bias > MAX_PROBE_BIAS, f"probe noise raises the estimate by about {np.expm1(bias):.0%}"),
    ):
        if bad:
            reasons.append(text)
    if reasons:
        error, value = (1 - level) / 2, min(float(np.exp(mean.log_value)), 1.0)
        # Markov below, where weights and the law of the draws are exact; above, what the plain samples alone say.
        sound = residual <= MAX_RESIDUAL and bias <= MAX_PROBE_BIAS
        unguided = slice(0, int(counts[0]))
        plain = int(np.sum(out["margin"][unguided] > 0))
        lower, upper = (
            error * value if sound else 0.0,
            max(intervals.clopper_pearson(plain, int(counts[0]), level)[1], value),
        )
    else:
        # Each failed climb could have been a hit as heavy as the heaviest.
        lower, upper = mean.lower, mean.upper + failed * float(np.exp(terms[hit].max()))
    calls = int(out["climb_calls"].sum()) + n * cost
    found = Estimate(
        "change of variables", mean.log_value, mean.log_stderr, lower * float(np.exp(-bias)), min(upper, 1.0), level, n,
        mean.ess, not reasons, calls, tuple(reasons),
    )  # fmt: skip
    return TransportResult(found, mean.pareto_k, mean.max_share, mean.hits, failed, residual, folded, bias)
