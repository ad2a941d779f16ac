"""The ε lower bound of a latent mechanism on its worst-case pair: antipodal latents at the edge of the clipping ball.

Both directions at once. With an event S for z and an event S' for z' the inequalities P(S | z) <= e^ε P(S | z') + δ and
P(S' | z') <= e^ε P(S' | z) + δ can be averaged, whatever the mechanism is: p <= e^ε q + δ for the mean hit rate p and
the mean false-alarm rate q. Every draw then counts twice, once for p and once for q. The counts are sums of two
binomial ones; such a sum is no wider in the tails than the binomial with its mean (Hoeffding 1956), so that
Clopper-Pearson limits hold for p and q as well.

All draws are made and counted in one compiled loop on every device; nothing is kept of them but counts at a grid of
thresholds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.audits.epsilon import CHOOSING_ERROR, EpsilonBound, choose_event, clopper_pearson, log_ratio
from diffusion_privacy.errors import InputError
from diffusion_privacy.training.sharding import DATA, REPLICATED, data_mesh, data_parallel
from diffusion_privacy.types import Array

BatchMechanism = Callable[[Array, Array], Array]
"""``(keys[B], z[B, D]) -> z̃[B, D]``, one key a record. As a `jax.tree_util.Partial` of one function with other numbers
it is compiled once."""

TAILS = ("gaussian", "laplace")

PILOT = 2**16
"""Outputs of each latent from which the mean outputs are measured, and the direction and the thresholds are taken."""

_GRID = 32
"""Thresholds counted at once; one number for every use, so that one program serves."""

_CHOOSE, _JUDGE = 1000, 1001
"""Parts of the audit's key: trials that choose an event and trials that judge it are independent."""

_SIDES = ((True, True), (True, False), (False, True))
"""Which of the two events an average is over: both, the one for z, the one for z'."""


def directions(dim: int) -> dict[str, np.ndarray]:
    """Unit-free directions [D] along which antipodal latents are tried.

    ``axis`` is the worst for a correct L1 or L2 mechanism; ``ends`` and ``spread`` reach several parts of a latent that
    is clipped in pieces.
    """
    axis, ends = np.zeros(dim, np.float32), np.zeros(dim, np.float32)
    axis[0] = 1.0
    ends[[0, -1]] = 1.0
    return {"axis": axis, "ends": ends, "spread": np.ones(dim, np.float32)}


def worst_case_bound(
    mechanism: BatchMechanism,
    key: Array,
    *,
    dim: int,
    clip_norm: float,
    delta: float,
    trials: int,
    tails: str,
    confidence: float = 0.99,
    overshoot: float = 16.0,
    chunk: int = 2**14,
    mesh: Mesh | None = None,
) -> EpsilonBound:
    """ε lower bound on antipodal latents ±overshoot·C·u, which a correct mechanism clips to norm C.

    The score is the log-likelihood ratio of the noise around the two mean outputs, which are measured on a pilot, as
    is the pair (one of `directions`). Up to two events are judged, each at its share of the error: the one that looks
    best on an eighth as many trials, and for ``tails="gaussian"`` the one that a normal law fitted to the scores calls
    best. The second finds rare events that the first cannot have seen; should the law be wrong, the bound is valid all
    the same.

    Args:
      mechanism: batched, one key a record.
      key: seeds the audit. An audit is no release, so a fixed key is right.
      dim: length D of the latents to try; 2 to 16 is enough for a mechanism that treats coordinates alike.
      clip_norm: C that the mechanism states.
      trials: draws of each latent that judge, rounded up to whole chunks; every draw counts as a hit or a miss on one
        side and as a false alarm or none on the other, so that each limit rests on twice as many trials.
      tails: ``"gaussian"`` or ``"laplace"``: which likelihood ratio.
      overshoot: how far outside the ball the latents lie.
      chunk: draws of each latent that a device computes at once; the draws depend on it, and on no number of devices.
      mesh: default: every device.

    Raises:
      InputError: unknown ``tails``, fewer than 1,000 or more than 2^30 trials, or NaN from the mechanism.
    """
    if tails not in TAILS:
        raise InputError(f"tails: expected 'gaussian' or 'laplace', got {tails!r}")
    if not 1000 <= trials <= 2**30:
        raise InputError(f"trials: expected within 1,000 and 2^30, got {trials!r}")
    run = mechanism if isinstance(mechanism, jax.tree_util.Partial) else jax.tree_util.Partial(mechanism)
    chunk = min(chunk, trials)
    counter = _counter(tails, chunk, data_mesh() if mesh is None else mesh)
    name, latents, centres, scores = _pilot(run, key, dim, overshoot * clip_norm, delta, tails, min(PILOT, trials))
    thresholds = _candidates(scores)

    def counts(part: int, at: np.ndarray, draws: int) -> tuple[np.ndarray, int]:
        padded, chunks = np.full(_GRID, np.inf, np.float32), -(-draws // chunk)
        padded[: at.size] = at
        total, broken = counter(run, jax.random.fold_in(key, part), latents, centres, padded, np.int32(chunks))
        if broken:
            raise InputError("audit: a score is NaN; expected numbers")
        return np.asarray(total, np.int64)[..., : at.size], chunks * chunk

    tuned, n = counts(_CHOOSE, thresholds, max(trials // 8, 1000))
    events = [_best_event(tuned, n, delta, thresholds)]
    if tails == "gaussian":
        events.append((np.ones(2, bool), _fitted_threshold(scores, delta, 2 * trials, confidence)))
    judged, n = counts(_JUDGE, np.array([threshold for _, threshold in events]), trials)
    error = (1.0 - confidence) / 2.0 / len(events)
    found = [_bound(judged[:, sides, i], n, delta, confidence, error, name) for i, (sides, _) in enumerate(events)]
    return max(found, key=lambda bound: bound.lower)


@functools.partial(jax.jit, static_argnames=("count",))
def _outputs(mechanism: jax.tree_util.Partial, key: Array, latents: Array, count: int) -> Array:
    """``latents[2, D] -> [2, count, D]``. Latents are an argument: the compiler would clip a constant batch."""
    keys = jax.random.split(key, (2, count))
    batch = jnp.broadcast_to(latents[:, None], (2, count, latents.shape[1]))
    return jnp.stack([mechanism(keys[0], batch[0]), mechanism(keys[1], batch[1])])


def _own_scores(out: Array, centres: Array, tails: str) -> Array:
    """``out[2, B, D] -> [2, B]``: how much an output looks like its own latent's and not like the other's."""
    if tails == "gaussian":
        scores = (out - jnp.mean(centres, axis=0)) @ (centres[0] - centres[1])
    else:
        scores = jnp.sum(jnp.abs(out - centres[1]) - jnp.abs(out - centres[0]), axis=-1)
    return scores * jnp.array([[1.0], [-1.0]])


@functools.cache
def _counter(tails: str, chunk: int, mesh: Mesh) -> Callable[..., tuple[Array, Array]]:
    """`_counts` compiled for every device of the mesh."""
    counts = functools.partial(_counts, tails=tails, chunk=chunk, devices=mesh.devices.size)
    return data_parallel(counts, mesh, in_specs=REPLICATED, out_specs=REPLICATED)


def _counts(
    mechanism: jax.tree_util.Partial,
    key: Array,
    latents: Array,
    centres: Array,
    thresholds: Array,
    chunks: Array,
    *,
    tails: str,
    chunk: int,
    devices: int,
) -> tuple[Array, Array]:
    """Hits and false alarms int32 [2, 2, K] of the two events at each threshold, over ``chunks · chunk`` draws each.

    With them whether any score was NaN, which exceeds nothing and would pass for no leak. Chunks have keys of their own
    and are dealt to the devices in turn, so that the counts do not depend on how many there are.
    """
    device = jax.lax.axis_index(DATA)

    def step(turn: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        total, broken = state
        own = _own_scores(
            _outputs(mechanism, jax.random.fold_in(key, turn * devices + device), latents, chunk), centres, tails
        )
        # Without the barrier the draws might be fused into, and repeated for, every comparison.
        own = jax.lax.optimization_barrier(own)[:, None, :]
        hits = jnp.sum(own >= thresholds[:, None], axis=2, dtype=jnp.int32)
        # What is drawn under one latent is a false alarm of the other's event.
        alarms = jnp.sum(-own >= thresholds[:, None], axis=2, dtype=jnp.int32)[::-1]
        return total + jnp.stack([hits, alarms]), broken | jnp.isnan(own).any()

    start = jnp.zeros((2, 2, thresholds.shape[0]), jnp.int32), jnp.bool_(False)
    turns = (chunks - device + devices - 1) // devices
    total, broken = jax.lax.fori_loop(0, turns, step, start)
    return jax.lax.psum(total, DATA), jax.lax.psum(broken.astype(jnp.int32), DATA) > 0


def _pilot(
    mechanism: jax.tree_util.Partial, key: Array, dim: int, length: float, delta: float, tails: str, count: int
) -> tuple[str, Array, Array, np.ndarray]:
    """Direction, latents [2, D], mean outputs [2, D] and own scores [2, count] of the pair that leaks most."""
    found = []
    for i, (name, direction) in enumerate(directions(dim).items()):
        latent = jnp.asarray(length * direction, jnp.float32)
        latents = jnp.stack([latent, -latent])
        out = _outputs(mechanism, jax.random.fold_in(key, i), latents, count)
        centres = jnp.median(out, axis=1)
        own = np.asarray(_own_scores(out, centres, tails))
        if np.isnan(own).any():
            raise InputError("audit: a score is NaN; expected numbers")
        found.append((choose_event(own[0], -own[1], delta)[2], name, latents, centres, own))
    _, name, latents, centres, own = max(found, key=lambda entry: entry[0])
    return name, latents, centres, own


def _candidates(scores: np.ndarray) -> np.ndarray:
    """`_GRID` thresholds, float32: quantiles of the scores under either latent, and steps beyond all that were seen."""
    own = np.sort(scores.ravel())
    upper, other = np.geomspace(1, own.size, 14).astype(int), np.geomspace(1, own.size, 8).astype(int)
    beyond = np.mean(own) + np.std(own) * np.linspace(-1.0, 6.0, _GRID - upper.size - other.size)
    return np.concatenate([own[own.size - upper], -own[other - 1], beyond]).astype(np.float32)


def _best_event(counts: np.ndarray, n: int, delta: float, thresholds: np.ndarray) -> tuple[np.ndarray, float]:
    """``(sides, threshold)`` of the largest bound, at wide limits, on these counts [2, 2, K] of ``n`` draws each."""
    best = (-math.inf, np.ones(2, bool), 0)
    for sides in _SIDES:
        hits, alarms = counts[:, list(sides)].sum(axis=1)
        m = n * sum(sides)
        hit, alarm = clopper_pearson(hits, m, CHOOSING_ERROR)[0], clopper_pearson(alarms, m, CHOOSING_ERROR)[1]
        values = log_ratio(hit, alarm, delta)
        k = int(np.argmax(values))
        if values[k] > best[0]:
            best = (float(values[k]), np.array(sides), k)
    return best[1], float(thresholds[best[2]])


def _fitted_threshold(scores: np.ndarray, delta: float, n: int, confidence: float) -> float:
    """Threshold at which ``n`` trials are expected to show most, were the own scores normal."""
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    at, expected = expected_bounds(2.0 * mean / deviation, n, delta, "gaussian", (1.0 - confidence) / 4.0)
    return mean + deviation * (float(at[int(np.argmax(expected))]) - 2.0 * mean / deviation)


def expected_bounds(
    separation: float, n: int, delta: float, tails: str, error: float, deviations: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """``(thresholds, bounds)``: what `n` trials show at each threshold when both counts are unlucky by ``deviations``.

    Args:
      separation: distance of the two mean outputs in noise scales: Δ/σ or Δ/b of the mechanism.
      tails: Gaussian thresholds are in σ from the mean under z'; for Laplace noise one event is best, at 0.
      error: of each Clopper-Pearson limit.
    """
    from scipy import special

    if tails == "gaussian":
        at = np.linspace(0.0, 8.0, 161)
        hit, alarm = n * special.ndtr(separation - at), n * special.ndtr(-at)
    else:
        at, hit, alarm = np.zeros(1), np.array([0.5 * n]), np.array([0.5 * n * math.exp(-separation)])
    hit = np.maximum(hit - deviations * np.sqrt(hit), 0.0)
    alarm = np.minimum(alarm + deviations * np.sqrt(alarm), float(n))
    return at, log_ratio(clopper_pearson(hit, n, error)[0], clopper_pearson(alarm, n, error)[1], delta)


def planned_trials(
    separation: float,
    claim: float,
    delta: float,
    tails: str,
    *,
    most: int,
    share: float = 0.8,
    confidence: float = 0.99,
) -> int:
    """Trials for `worst_case_bound` at which a mechanism of this ``separation`` shows ``share`` of ``claim``.

    Both counts are taken two standard deviations unlucky at the threshold that is best without. At most ``most``: with
    Gaussian noise the trials grow exponentially for large ε (false alarms become rare) and like 1/ε² for small. At
    least 100,000, and enough for the ceiling to lie above the claim, where ``most`` allows them.
    """
    error = (1.0 - confidence) / (4.0 if tails == "gaussian" else 2.0)
    trials = 1e5
    while trials < most:
        n = int(2 * trials)
        best = int(np.argmax(expected_bounds(separation, n, delta, tails, error)[1]))
        shown = expected_bounds(separation, n, delta, tails, error, deviations=2.0)[1][best]
        if shown >= share * claim and _ceiling(n, delta, error) > claim:
            return int(trials)
        trials *= math.sqrt(2.0)
    return most


def _ceiling(n: int, delta: float, error: float) -> float:
    """What ``n`` trials show when all hit and none is a false alarm."""
    return float(log_ratio(clopper_pearson(n, n, error)[0], clopper_pearson(0, n, error)[1], delta))


def _bound(counts: np.ndarray, n: int, delta: float, confidence: float, error: float, direction: str) -> EpsilonBound:
    """The bound from hits and false alarms [2, S] of S events, ``n`` draws each, averaged."""
    m = n * counts.shape[1]
    hit = float(clopper_pearson(int(counts[0].sum()), m, error)[0])
    false_alarm = float(clopper_pearson(int(counts[1].sum()), m, error)[1])
    value = float(log_ratio(hit, false_alarm, delta))
    return EpsilonBound(max(value, 0.0), delta, confidence, m, _ceiling(m, delta, error), hit, false_alarm, direction)
