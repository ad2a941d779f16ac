"""E5: rare reproductions without an assumption about where they come from, by splitting on the detector's margin.

Subset simulation (Au & Beck, Probabilistic Engineering Mechanics 16, 2001) in the sampler's own Gaussian noise u
(`paths`): with levels m_1 < … < m_L = 0 of the margin g,

    q = P(g > 0) = P(g >= m_1) Π_l P(g >= m_{l+1} | g >= m_l),

each factor near p₀ = .1, so that q = 1e-8 takes eight of them. N particles are kept; those that pass are resampled and
moved by preconditioned Crank-Nicolson steps u' = √(1−b²) u + b ξ, accepted if g(u') still passes. Such a step leaves
the law of u given "passes" as it is, in any dimension (Cotter et al., Statistical Science 28, 2013).

Two phases. A pilot chooses levels and step sizes while it runs. The replicas that count use them unchanged: then each
replica's product is UNBIASED for every N and every number of moves (Del Moral, "Feynman-Kac formulae", 2004, theorem
7.4.2), replicas are independent, and their mean obeys Markov's inequality. What is not certain is the interval: if the
moves do not reach a part of the rare set, most replicas miss it, agree with each other, and are all too small. It is an
estimate, not a certified bound.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy import stats

from diffusion_privacy.anonymity import intervals, lanes
from diffusion_privacy.anonymity.paths import NoisePath
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, Estimate, PyTree, ScoreFn

MIN_REPLICAS = 8
MAX_SPREAD = 0.8
MIN_ACCEPTANCE = 0.05
_ACCEPTANCE_GOAL = 0.4

ASSUMES = (
    "moves in the sampler's noise reach every part of the detected set that matters; agreeing replicas do not prove it",
    "the logarithm of the mean over replicas is near normal",
    "the detector's margin rises towards the record; an answer of yes or no alone gives nothing to climb",
)


@dataclasses.dataclass(frozen=True)
class Splitting:
    """Cost and accuracy; compiled in.

    Attributes:
      particles: N of one replica.
      moves: Crank-Nicolson steps of every particle at each level.
      share: p₀, the part that passes a level, in (0, .5].
      max_levels: levels after which it gives up; ``share ** max_levels`` is about the smallest q within reach.
      replicas: independent repetitions, at least 2; fewer than `MIN_REPLICAS` never count as reliable.

    Raises:
      InputError: a value out of range.
    """

    particles: int = 500
    moves: int = 10
    share: float = 0.1
    max_levels: int = 12
    replicas: int = 16

    def __post_init__(self) -> None:
        for field, valid, expected in (
            ("share", 0 < self.share <= 0.5, "a number in (0, .5]"),
            ("particles", self.particles * self.share >= 5, "at least 5 / share"),
            ("moves", self.moves >= 1, "1 or more"),
            ("max_levels", self.max_levels >= 1, "1 or more"),
            ("replicas", self.replicas >= 2, "2 or more"),
        ):
            if not valid:
                raise InputError(f"splitting.{field}: expected {expected}, got {vars(self)[field]!r}")


class _State(NamedTuple):
    """One replica. Arrays over levels are ``[max_levels]``; a level's share is 1 where it was not reached."""

    level: Array
    noise: Array
    margin: Array
    done: Array
    broken: Array
    thresholds: Array
    shares: Array
    sizes: Array
    acceptance: Array


@dataclasses.dataclass(frozen=True)
class _Run:
    """The static part of a replica."""

    path: NoisePath
    settings: Splitting
    shape: tuple[int, ...]


def _passes(margin: Array, threshold: Array) -> Array:
    # The last level is the detection itself, which is strict.
    return jnp.where(threshold >= 0, margin > 0, margin >= threshold)


def _judge(run: _Run, state: _State, adapt: Array) -> _State:
    """Sets the threshold of the present level (pilot) or takes the given one, and counts who passes."""
    keep = round(run.settings.share * run.settings.particles)
    own = jnp.minimum(jnp.sort(state.margin)[-keep], 0.0)
    last = state.level == run.settings.max_levels - 1
    threshold = jnp.where(adapt, own, state.thresholds[state.level])
    share = jnp.mean(_passes(state.margin, threshold).astype(jnp.float32))
    return state._replace(
        thresholds=state.thresholds.at[state.level].set(threshold),
        shares=state.shares.at[state.level].set(share),
        done=(threshold >= 0) | (share == 0) | last | state.broken,
    )


def _move(run: _Run, operands: PyTree, key: Array, record: Array, state: _State, adapt: Array) -> _State:
    """Resamples those that passed the present level and moves them; goes on to the next level."""
    threshold = state.thresholds[state.level]
    count = run.settings.particles
    key = jax.random.fold_in(key, state.level + 1)
    weight = jnp.cumsum(_passes(state.margin, threshold).astype(jnp.float32))
    # One uniform number for all (systematic resampling): survivors get equal numbers of children, up to one.
    place = (jax.random.uniform(jax.random.fold_in(key, 0)) + jnp.arange(count)) / count * weight[-1]
    parent = jnp.minimum(jnp.searchsorted(weight, place, side="right"), count - 1)

    def step(i: Array, carry: tuple) -> tuple:
        noise, margin, size, accepted, broken = carry
        fresh = jax.random.normal(jax.random.fold_in(key, i + 1), noise.shape)
        proposal = jnp.sqrt(1 - size**2) * noise + size * fresh
        new = _margin(run, operands, proposal, record)
        accept = _passes(new, threshold)
        rate = jnp.mean(accept.astype(jnp.float32))
        adapted = jnp.clip(size * jnp.exp(0.7 * (rate - _ACCEPTANCE_GOAL)), 0.01, 1.0)
        return (
            jnp.where(accept[:, None], proposal, noise),
            jnp.where(accept, new, margin),
            jnp.where(adapt, adapted, size),
            accepted + rate / run.settings.moves,
            broken | jnp.any(~jnp.isfinite(new)),
        )

    # A level begins with the step size at which the one before ended.
    begin = jnp.where(
        adapt,
        jnp.where(state.level > 0, state.sizes[jnp.maximum(state.level - 1, 0)], 0.7),
        state.sizes[state.level],
    )
    first = (state.noise[parent], state.margin[parent], begin, jnp.zeros(()), state.broken)
    noise, margin, size, accepted, broken = jax.lax.fori_loop(0, run.settings.moves, step, first)
    return state._replace(
        level=state.level + 1,
        noise=noise,
        margin=margin,
        broken=broken,
        sizes=state.sizes.at[state.level].set(size),
        acceptance=state.acceptance.at[state.level].set(accepted),
    )


def _margin(run: _Run, operands: PyTree, noise: Array, record: Array) -> Array:
    x = run.path(operands["score"], noise.reshape(noise.shape[0], run.path.noises, *run.shape))
    return lanes.checked_margin(operands["detect"], x, jnp.full((x.shape[0],), record))


def replicas(run: _Run, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    """Runs replicas; the lane function of `estimate`.

    Args:
      run: static.
      operands: ``key``, ``score``, ``detect``, ``adapt`` (bool: choose thresholds and sizes), ``thresholds`` and
        ``sizes`` ``[R, max_levels]``, read unless ``adapt``.
      batch: per lane ``record``, ``uid``, ``replica``.

    Returns:
      per lane ``thresholds``, ``shares``, ``sizes``, ``acceptance`` ``[B, max_levels]``, ``levels`` (how many were
      moved at), ``reached`` (the last threshold was the detection itself), ``broken`` (a margin was not finite).
    """
    settings, adapt = run.settings, operands["adapt"]
    keys = lanes.lane_keys(operands["key"], batch["uid"], batch["replica"])
    size = run.path.noises * math.prod(run.shape)

    def one(key: Array, record: Array) -> dict[str, Array]:
        noise = jax.random.normal(jax.random.fold_in(key, 0), (settings.particles, size))
        margin = _margin(run, operands, noise, record)
        blank = jnp.zeros(settings.max_levels)
        state = _State(
            jnp.zeros((), int), noise, margin, jnp.zeros((), bool), jnp.any(~jnp.isfinite(margin)),
            operands["thresholds"][record], blank + 1, operands["sizes"][record], blank + 1,
        )  # fmt: skip
        state = jax.lax.while_loop(
            lambda s: ~s.done,
            lambda s: _judge(run, _move(run, operands, key, record, s, adapt), adapt),
            _judge(run, state, adapt),
        )
        return {
            "thresholds": state.thresholds,
            "shares": state.shares,
            "sizes": state.sizes,
            "acceptance": state.acceptance,
            "levels": state.level,
            "reached": state.thresholds[state.level] >= 0,
            "broken": state.broken,
        }

    return jax.vmap(one)(keys, batch["record"])


@dataclasses.dataclass(frozen=True)
class SplittingResult:
    """E5 for one record.

    Attributes:
      estimate: mean over replicas with its interval.
      thresholds: margins of the levels, the last one 0; empty when the pilot did not reach a detection.
      acceptance: of the moves at each level but the last, mean over replicas.
      values: ``[replicas]`` each replica's estimate of q.
    """

    estimate: Estimate
    thresholds: tuple[float, ...]
    acceptance: tuple[float, ...]
    values: np.ndarray


def _finite(out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if np.any(out["broken"]):
        raise FloatingPointError("the score or the detector returned a value that is not finite while splitting")
    return out


def estimate(
    path: NoisePath,
    score_fn: ScoreFn,
    detect: PyTree,
    shape: tuple[int, ...],
    records: int,
    key: Array,
    *,
    settings: Splitting | None = None,
    uids: np.ndarray | None = None,
    level: float = 0.95,
    chunk: int = 4,
    mesh: Mesh | None = None,
) -> list[SplittingResult]:
    """q of every record by splitting.

    Args:
      path: the sampler, a `paths.ChainPath` or `paths.SamplerPath`.
      score_fn: ``score(x, t)``.
      detect: ``margin(x[B, ...], record[B]) -> [B]``, finite; positive means that the record is shown.
      shape: of one image.
      records: R, how many records the detector knows.
      key: of the run.
      settings: cost; default `Splitting()`.
      uids: ``[R]`` stable numbers of the records (default 0 … R−1).
      level: two-sided.
      chunk: replicas a device handles at a time; each is a batch of ``particles`` images.
      mesh: see `lanes.run`.

    Returns:
      one result a record. A detector that never fires, or whose margin stops rising, gives the value 0, limits 0 and 1,
      and the reason.

    Raises:
      FloatingPointError: an image or a margin is not finite.
      InputError: ``level`` not in (0, 1).
    """
    settings = Splitting() if settings is None else settings
    if not 0 < level < 1:
        raise InputError(f"level: expected a number strictly between 0 and 1, got {level}")
    uids = np.arange(records) if uids is None else np.asarray(uids)
    run = _Run(path, settings, shape)
    blank = np.zeros((records, settings.max_levels), np.float32)
    operands = {"key": key, "score": lanes.operand(score_fn), "detect": lanes.operand(detect)}

    def go(which: np.ndarray, first: int, count: int, adapt: bool, thresholds: np.ndarray, sizes: np.ndarray) -> dict:
        extra = {"adapt": jnp.asarray(adapt), "thresholds": jnp.asarray(thresholds), "sizes": jnp.asarray(sizes)}
        record = np.repeat(which, count).astype(np.int32)
        batch = {
            "record": record,
            "uid": uids[record].astype(np.int32),
            "replica": np.tile(np.arange(first, first + count, dtype=np.int32), len(which)),
        }
        return _finite(lanes.run(replicas, run, {**operands, **extra}, batch, chunk=chunk, mesh=mesh))

    pilot = go(np.arange(records), 0, 1, True, blank, blank)
    reached = np.flatnonzero(pilot["reached"])
    results = [_not_reached(run, level, pilot, r) for r in range(records)]
    if reached.size:
        main = go(reached, 1, settings.replicas, False, pilot["thresholds"], pilot["sizes"])
        for i, r in enumerate(reached):
            mine = slice(i * settings.replicas, (i + 1) * settings.replicas)
            results[r] = _result(run, level, pilot, int(r), {name: z[mine] for name, z in main.items()})
    return results


def _cost(run: _Run, levels: np.ndarray) -> int:
    each = run.settings.particles * run.path.network_calls
    return int(np.sum(1 + run.settings.moves * levels.astype(int))) * each


def _not_reached(run: _Run, level: float, pilot: dict[str, np.ndarray], r: int) -> SplittingResult:
    top = float(pilot["thresholds"][r, pilot["levels"][r]])
    why = f"no detection within {run.settings.max_levels} levels: the margin rose to {top:.3g} only"
    found = Estimate(
        "splitting", -math.inf, math.inf, 0.0, 1.0, level, 0, 0.0, False, _cost(run, pilot["levels"][r : r + 1]), (why,)
    )
    return SplittingResult(found, (), (), np.zeros(0))


def _result(
    run: _Run, level: float, pilot: dict[str, np.ndarray], r: int, out: dict[str, np.ndarray]
) -> SplittingResult:
    settings = run.settings
    count = int(pilot["levels"][r])
    values = np.prod(out["shares"].astype(np.float64), axis=1)
    # A replica that died out before the last level counts as 0, as its product says.
    mean, n = float(values.mean()), settings.replicas
    error = float(values.std(ddof=1) / math.sqrt(n) / mean) if mean > 0 else math.inf
    acceptance = out["acceptance"][:, :count].mean(axis=0)
    reasons = _doubts(values, error, acceptance)
    if count == 0:
        # Not rare: the particles are plain samples, and their count has exact limits.
        hits, images = round(mean * n * settings.particles), n * settings.particles
        lower, upper = intervals.clopper_pearson(hits, images, level)
    elif reasons:
        lower, upper = (1 - level) / 2 * mean, 1.0
    else:
        # Replicas are skewed: with n − 1 degrees of freedom 95 % intervals of 8 replicas cover 89 to 93 %.
        reach = float(stats.t.ppf(0.5 + level / 2, n // 2 - 1)) * error
        lower, upper = mean * math.exp(-reach), mean * math.exp(reach)
    found = Estimate(
        method="splitting",
        log_value=math.log(mean) if mean > 0 else -math.inf,
        log_stderr=error,
        lower=lower,
        upper=min(upper, 1.0),
        level=level,
        n=n,
        ess=1 / error**2 if error > 0 else math.inf,
        reliable=not reasons or count == 0,
        network_calls=_cost(run, np.append(out["levels"], pilot["levels"][r])),
        reasons=() if count == 0 else reasons,
    )
    thresholds = tuple(float(t) for t in pilot["thresholds"][r, : count + 1])
    return SplittingResult(found, thresholds, tuple(float(a) for a in acceptance), values)


def _doubts(values: np.ndarray, error: float, acceptance: np.ndarray) -> tuple[str, ...]:
    reasons = []
    if len(values) < MIN_REPLICAS:
        reasons.append(f"{len(values)} replicas are fewer than {MIN_REPLICAS}")
    if np.any(values == 0):
        reasons.append(f"{int(np.sum(values == 0))} of {len(values)} replicas found nothing")
    spread = error * math.sqrt(len(values))
    if not spread <= MAX_SPREAD:
        reasons.append(f"replicas scatter by {spread:.2f} of their mean (limit {MAX_SPREAD})")
    if acceptance.size and acceptance.min() < MIN_ACCEPTANCE:
        reasons.append(f"only {acceptance.min():.0%} of the moves at a level were accepted")
    return tuple(reasons)
