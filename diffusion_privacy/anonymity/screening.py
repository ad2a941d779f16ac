"""Which training records to look at first: a ranking of all of them, without a single reverse chain.

The variational bound of Ho et al. (arXiv 2006.11239, eq. 5) is a sum over the steps of the chain that samples,

    L_j(x_0) = E_{x_j | x_0} KL( q(x_{j−1} | x_j, x_0) ‖ p_θ(x_{j−1} | x_j) )                      (nats)
             = E ½ [ ‖μ_q − μ_θ‖² / s_j² + d (B_j²/s_j² − 1 − log(B_j²/s_j²)) ],

and a record that the model has by heart has small terms at every level at which others still cost something: the model
guesses it from its noised image. One term takes forward noise and one network call; a sum over a window of
levels ranks every record, and the reverse chains of h(t) and E2 go to the top of the list.

A ranking is no finding. A small sum is also what an easy record has (dark, smooth, near many others); the difference
to a reference model that never saw the record, or a comparison with held-out records, tells the two apart in part. The
last step, j = 1, is noiseless and has no KL; it is left out.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.anonymity import intervals, lanes
from diffusion_privacy.diffusion import chain as chains
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, PyTree, ScoreFn

# Keeps a caller's one key for every part of an audit from giving two parts the same noise.
_STREAM = 0x73637265


@dataclasses.dataclass(frozen=True)
class Screening:
    """The partial bound of every record; smaller is more suspicious.

    Attributes:
      levels: ``[L]`` ascending levels of the chain that were summed, 2 … J.
      nats: ``[N, L]`` mean term of each record at each level, nats; differences to the reference if there was one.
      score: ``[N]`` their sums over levels, nats.
      stderr: ``[N]`` standard error of ``score`` from the spread of the draws, nats.
      draws: M, draws a record and level.
      network_calls: score evaluations spent, those of the reference included.
      differenced: whether a reference model's sum was subtracted.
    """

    levels: np.ndarray
    nats: np.ndarray
    score: np.ndarray
    stderr: np.ndarray
    draws: int
    network_calls: int
    differenced: bool

    @property
    def ranking(self) -> np.ndarray:
        """``[N]`` rows of the records, most suspicious first; equal scores in their given order."""
        return np.argsort(self.score, kind="stable")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Scores of training records among those of held-out ones.

    Attributes:
      z: ``[N]`` standard deviations of the held-out scores above their mean; negative is suspicious.
      p_value: ``[N]`` (1 + held-out scores at or below) / (1 + m). For a record that is exchangeable with the held-out
        ones it is at most u with probability at most u. One record at a time: a list of N holds N u of them by chance.
      held_out: m.
    """

    z: np.ndarray
    p_value: np.ndarray
    held_out: int


def window(chain: Chain, low: float = 0.05, high: float = 0.6, count: int = 10) -> np.ndarray:
    """At most ``count`` levels spread evenly over those with times in [low, high], without level 1.

    At the lowest times every model knows the record from its barely noised image, at the highest none does.

    Raises:
      InputError: no level there, or count < 1.
    """
    inside = np.flatnonzero((chain.times >= low) & (chain.times <= high))
    inside = inside[inside >= 2]
    if inside.size == 0 or count < 1:
        raise InputError(f"screening window: expected count >= 1 and a level from 2 up in [{low}, {high}], got none")
    return np.unique(inside[np.round(np.linspace(0, inside.size - 1, min(count, inside.size))).astype(int)])


def _variance_term(chain: Chain) -> np.ndarray:
    """B²/s² − 1 − log(B²/s²) at each level, float64 ``[J + 1]``; 0 where it is not used."""
    ratio = (chain.posterior[2][2:] / chain.kernel_std[2:]) ** 2
    return np.concatenate([[0.0, 0.0], ratio - 1 - np.log(ratio)])


def step_terms(setting: tuple[Chain, bool], operands: PyTree, batch: dict[str, Array]) -> Array:
    """One draw of a term of the bound; the lane function of `screen`.

    Args:
      setting: the chain, and whether the reference's term is subtracted. Both models see the same noised image.
      operands: ``key``, ``score``, ``reference`` (any score; unused without subtraction), ``records [N, ...]``.
      batch: per lane ``record``, ``uid``, ``level`` (2 … J), ``draw``.

    Returns:
      ``[B]`` nats.
    """
    chain, differenced = setting
    level = batch["level"]
    target = operands["records"][batch["record"]]
    keys = lanes.lane_keys(operands["key"], batch["uid"], level, batch["draw"])
    noise = chains.step_noise(keys, jnp.zeros_like(level), target.shape[1:])
    alpha, sigma = chains.take(chain.alpha, level), chains.take(chain.sigma, level)
    x = expand(alpha, target) * target + expand(sigma, target) * noise
    wanted = chain.posterior_mean(x, target, level)
    size = math.prod(target.shape[1:])

    def kl(score: ScoreFn) -> Array:
        delta = (chain.model_mean(score, x, level) - wanted) / expand(chains.take(chain.kernel_std, level), x)
        spread = chains.take(size * _variance_term(chain), level)
        return 0.5 * (jnp.sum(delta.reshape(x.shape[0], -1) ** 2, axis=1) + spread)

    return kl(operands["score"]) - kl(operands["reference"]) if differenced else kl(operands["score"])


def screen(
    chain: Chain,
    score_fn: ScoreFn,
    records: np.ndarray,
    key: Array,
    *,
    levels: np.ndarray | None = None,
    draws: int = 4,
    reference: ScoreFn | None = None,
    uids: np.ndarray | None = None,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> Screening:
    """Partial variational bound of every record: records x levels x draws in one compiled program.

    Args:
      chain: the sampler as it is run; clipping and kernel variance enter the terms.
      score_fn: ``score(x, t)``; a `jax.tree_util.Partial` reuses the program across models. Weights that are not its
        leaves may be exchanged between two calls only if it is given as `lanes.fresh` each time.
      records: ``[N, ...]``.
      key: of the run; a stream of its own, into which a lane folds its record's uid, its level and its draw.
      levels: distinct, in 2 … J; default `window`.
      draws: M >= 2 a record and level (one has no standard error).
      reference: a model that never saw the records; its terms on the same noised images are subtracted, at twice the
        network calls.
      uids: ``[N]`` stable numbers of the records (default 0 … N−1).
      chunk, mesh: see `lanes.run`.

    Raises:
      InputError: levels or draws out of range.
      FloatingPointError: a term is not finite.
    """
    levels = window(chain) if levels is None else np.sort(np.asarray(levels, int))
    if levels.size == 0 or levels[0] < 2 or levels[-1] > chain.steps or np.any(np.diff(levels) == 0):
        raise InputError(f"screening levels: expected distinct ones in 2 … {chain.steps}, got {levels.tolist()}")
    if draws < 2:
        raise InputError(f"screening draws: expected 2 or more, got {draws}")
    count = len(records)
    uids = np.arange(count) if uids is None else np.asarray(uids)
    record, level, draw = np.meshgrid(np.arange(count), levels, np.arange(draws), indexing="ij")
    flat = {"record": record, "uid": uids[record], "level": level, "draw": draw}
    batch = {name: z.reshape(-1).astype(np.int32) for name, z in flat.items()}
    operands = {
        "key": jax.random.fold_in(key, _STREAM),
        "score": lanes.operand(score_fn),
        "reference": lanes.operand(score_fn if reference is None else reference),
        "records": jnp.asarray(records, jnp.float32),
    }
    differenced = reference is not None
    terms = lanes.run(step_terms, (chain, differenced), operands, batch, chunk=chunk, mesh=mesh)
    if not np.all(np.isfinite(terms)):
        raise FloatingPointError("the score returned a value that is not finite while screening")
    terms = terms.astype(np.float64).reshape(count, len(levels), draws)
    nats = terms.mean(axis=2)
    stderr = np.sqrt(np.sum(terms.var(axis=2, ddof=1) / draws, axis=1))
    calls = terms.size * (2 if differenced else 1)
    return Screening(levels, nats, nats.sum(axis=1), stderr, draws, calls, differenced)


def calibrate(scores: np.ndarray, held_out: np.ndarray) -> Calibration:
    """Places ``scores[N]`` of training records among ``held_out[m]``, scores of records the model never saw.

    Both must come from `screen` with the same levels, draws and models.

    Raises:
      InputError: fewer than 2 held-out scores, or a score that is not finite.
    """
    scores, held_out = np.asarray(scores, np.float64), np.asarray(held_out, np.float64)
    if held_out.size < 2 or not (np.all(np.isfinite(scores)) and np.all(np.isfinite(held_out))):
        raise InputError(f"held_out: expected 2 or more finite scores, got {held_out.size}")
    spread = float(np.std(held_out, ddof=1))
    if spread == 0:
        raise InputError("held_out: all scores are equal, they calibrate nothing")
    below = np.searchsorted(np.sort(held_out), scores, side="right")
    return Calibration((scores - held_out.mean()) / spread, (1 + below) / (1 + held_out.size), held_out.size)


def recall_at(scores: np.ndarray, leaked: np.ndarray, share: float, level: float = 0.95) -> intervals.Rate:
    """Share of the leaked records that are among the ``share`` of records with the lowest scores.

    The list holds ⌈share · N⌉ records; if more than that are leaked, recall cannot reach 1. Ties count against the
    ranking: of equal scores the leaked ones come last.

    Args:
      scores: ``[N]``, smaller is more suspicious (of `screen`, or `Calibration.z`).
      leaked: bool ``[N]``, what an estimator of q found.
      share: in (0, 1].
      level: of the exact interval, which takes the leaked records as a sample of such records.

    Raises:
      InputError: shapes that do not fit, a share out of range, or nothing leaked.
    """
    scores, leaked = np.asarray(scores, np.float64), np.asarray(leaked, bool)
    if scores.shape != leaked.shape or scores.ndim != 1 or not np.all(np.isfinite(scores)):
        raise InputError(f"scores: expected one finite number a record, got {scores.shape} for {leaked.shape}")
    if not 0 < share <= 1:
        raise InputError(f"share: expected a number above 0, at most 1, got {share}")
    if not leaked.any():
        raise InputError("leaked: no record is leaked, recall has no meaning")
    # Rounded first: .05 · 100 is a little above 5 in floating point.
    listed = np.lexsort((leaked, scores))[: math.ceil(round(share * scores.size, 9))]
    return intervals.rate(int(leaked[listed].sum()), int(leaked.sum()), level)
