"""h(t): from which noise level does the record still come back? And t', the largest such level.

h(t) = P(D(x_0) = 1 | x_t ~ N(α_t x_p, σ_t² I), then the sampler from t to 0); Dombrowski & Kainz (arXiv 2306.01363,
section 4) call max{t : h(t) > 0} t'. Estimated from 16 draws a level that number is mostly the detector's luck: with a
false-positive rate of 1e-3 a clean model shows a hit somewhere in 80 % of the runs. Both readings are given:

- paper mode: the highest level with any hit among the first 16 draws;
- statistical: max{t : lower confidence limit of h(t) > γ}, exact limits, corrected for every level looked at.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.anonymity import intervals, lanes
from diffusion_privacy.diffusion import chain as chains
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import Array, PyTree, ScoreFn


@dataclasses.dataclass(frozen=True)
class HCurve:
    """Hits of one record at each level looked at.

    Attributes:
      levels: ``[L]`` ascending integer levels of the chain, 1 … J.
      times: ``[L]`` their times in (0, 1].
      hit: bool ``[L, M]``, each draw's detection; draws are in the order of their keys.
      steps: J, the chain's number of steps.
    """

    levels: np.ndarray
    times: np.ndarray
    hit: np.ndarray
    steps: int

    @property
    def hits(self) -> np.ndarray:
        """``[L]`` number of detections."""
        return self.hit.sum(axis=1)

    @property
    def draws(self) -> int:
        """M, draws at each level."""
        return self.hit.shape[1]

    @property
    def network_calls(self) -> int:
        """Score evaluations spent: a draw from level k costs k."""
        return int(self.levels.sum()) * self.draws

    @property
    def by_level(self) -> np.ndarray:
        """``[J]`` hit rates at levels 1 … J, NaN where none was looked at (the input of `subspace.design`)."""
        curve = np.full(self.steps, np.nan)
        curve[self.levels - 1] = self.hits / self.draws
        return curve

    def limits(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Pointwise exact limits of h, each ``[L]``, at a two-sided confidence level."""
        return intervals.clopper_pearson(self.hits, np.full(len(self.levels), self.draws), level)


def regenerate(chain: Chain, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    """Noises a record to a level and runs the sampler back; the lane function of `h_curves`.

    Args:
      chain: static.
      operands: ``key``, ``score``, ``detect`` (``margin(x[B, ...], record[B]) -> [B]``), ``records [R, ...]``.
      batch: per lane ``record``, ``uid``, ``level`` (1 … J), ``draw``.

    Returns:
      ``margin [B]`` and the images ``x0 [B, ...]``.
    """
    target = operands["records"][batch["record"]]
    keys = lanes.lane_keys(operands["key"], batch["uid"], batch["level"], batch["draw"])
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), target.shape[1:]))(keys)
    alpha, sigma = chains.take(chain.alpha, batch["level"]), chains.take(chain.sigma, batch["level"])
    x = expand(alpha, target) * target + expand(sigma, target) * noise
    x0 = chains.run(chain, operands["score"], keys, x, batch["level"])
    return {"margin": lanes.checked_margin(operands["detect"], x0, batch["record"]), "x0": x0}


def _margin_only(chain: Chain, operands: PyTree, batch: dict[str, Array]) -> Array:
    return regenerate(chain, operands, batch)["margin"]


def _operands(score_fn: ScoreFn, detect: PyTree, records: np.ndarray, key: Array) -> PyTree:
    return {
        "key": key,
        "score": lanes.operand(score_fn),
        "detect": lanes.operand(detect),
        "records": jnp.asarray(records, jnp.float32),
    }


def lane_grid(records: int, uids: np.ndarray, levels: np.ndarray, draws: int) -> dict[str, np.ndarray]:
    """Lanes sorted by level, highest first: a chunk runs as long as its highest lane."""
    level, record, draw = np.meshgrid(levels[::-1], np.arange(records), np.arange(draws), indexing="ij")
    flat = {"level": level, "record": record, "draw": draw, "uid": uids[record]}
    return {name: z.reshape(-1).astype(np.int32) for name, z in flat.items()}


def _checked_levels(chain: Chain, levels: np.ndarray) -> np.ndarray:
    levels = np.sort(np.asarray(levels, int))
    if levels.size == 0 or levels[0] < 1 or levels[-1] > chain.steps or np.any(np.diff(levels) == 0):
        raise ValueError(f"levels must be distinct and lie in 1 … {chain.steps}, got {levels.tolist()}")
    return levels


def checked_finite(margin: np.ndarray) -> np.ndarray:
    """``margin`` itself; `FloatingPointError` when a regeneration was not finite."""
    if not np.all(np.isfinite(margin)):
        raise FloatingPointError("the score or the detector returned a value that is not finite while regenerating")
    return margin


def h_curves(
    chain: Chain,
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
) -> list[HCurve]:
    """h(t) for every record at every level: records x levels x draws in one compiled program.

    Args:
      chain: the sampler as it is run.
      score_fn: ``score(x, t)``; a `jax.tree_util.Partial` reuses the program across models. Weights that are not its
        leaves may be exchanged between two calls only if it is given as `lanes.fresh` each time.
      detect: ``margin(x[B, ...], record[B]) -> [B]``; positive means record number ``record[B]`` is shown.
      records: ``[R, ...]``.
      levels: distinct integers in 1 … J.
      draws: M, draws a level.
      key: of the run; a lane folds in its record's uid, its level and its draw.
      uids: ``[R]`` stable numbers of the records (default 0 … R−1).
      chunk, mesh: see `lanes.run`.

    Raises:
      ValueError: no levels, levels outside 1 … J or repeated.
      FloatingPointError: an image or a margin is not finite.
    """
    levels = _checked_levels(chain, levels)
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    batch = lane_grid(len(records), uids, levels, draws)
    operands = _operands(score_fn, detect, records, key)
    margin = checked_finite(lanes.run(_margin_only, chain, operands, batch, chunk=chunk, mesh=mesh))
    hit = (margin > 0).reshape(len(levels), len(records), draws)[::-1]
    times = chain.times[levels]
    return [HCurve(levels, times, hit[:, r], chain.steps) for r in range(len(records))]


def regenerated_images(
    chain: Chain,
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
) -> tuple[np.ndarray, np.ndarray]:
    """The images behind `h_curves`, for figures and for measuring a detector's true-positive rate.

    The same key and draw numbers give the same images. Arguments and errors as in `h_curves`, levels ascending.

    Returns:
      ``(images [R, L, M, ...], margins [R, L, M])``.
    """
    levels = _checked_levels(chain, levels)
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    batch = lane_grid(len(records), uids, levels, draws)
    operands = _operands(score_fn, detect, records, key)
    out = lanes.run(regenerate, chain, operands, batch, chunk=chunk, mesh=mesh)
    checked_finite(out["margin"])
    shape = (len(levels), len(records), draws)
    images = out["x0"].reshape(*shape, *records.shape[1:])[::-1]
    return np.swapaxes(images, 0, 1), np.swapaxes(out["margin"].reshape(shape)[::-1], 0, 1)


@dataclasses.dataclass(frozen=True)
class TPrime:
    """The statistical t': a lower limit of the largest time with h > γ, and no upper one.

    A level whose lower limit does not exceed γ may have any h that its draws allow: fewer draws make the value smaller.

    Attributes:
      value: the time; None where no level passed.
      censored: ``"below"`` when no level's lower limit exceeds γ (nothing is shown at any of them), ``"above"`` when
        that of the highest level looked at does, else None.
      gamma: γ.
      level: family-wise confidence level: with this probability no level is named whose h is γ or less.
      comparisons: number of levels corrected for.
    """

    value: float | None
    censored: str | None
    gamma: float
    level: float
    comparisons: int


def statistical_t_prime(curve: HCurve, gamma: float, level: float = 0.95) -> TPrime:
    """max{t : lower limit of h(t) > γ} with a Bonferroni correction over the curve's levels.

    Args:
      curve: of `h_curves`.
      gamma: at least the upper limit of the detector's false-positive rate, in [0, 1).
      level: family-wise confidence level.

    Raises:
      ValueError: ``gamma`` out of range.
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
    count = len(curve.levels)
    lower = intervals.lower_limit(curve.hits, np.full(count, curve.draws), 1 - (1 - level) / count)
    above = np.flatnonzero(lower > gamma)
    if above.size == 0:
        return TPrime(None, "below", gamma, level, count)
    top = int(above[-1])
    value = float(curve.times[top])
    return TPrime(value, "above" if top == count - 1 else None, gamma, level, count)


def paper_t_prime(curve: HCurve, draws: int = 16) -> float | None:
    """The highest time with any hit among the first ``draws`` draws; None without a hit.

    No interval and no correction: kept for comparison with the paper's table.

    Raises:
      ValueError: the curve has fewer draws a level.
    """
    if curve.draws < draws:
        raise ValueError(f"the curve holds {curve.draws} draws a level, paper mode needs {draws}")
    hit = np.flatnonzero(curve.hit[:, :draws].any(axis=1))
    return float(curve.times[hit[-1]]) if hit.size else None
