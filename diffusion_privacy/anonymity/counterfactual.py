"""E7: would the image have come without the record? The same settings, the same data but for x_p, two models.

Both models draw from the same noise; the detector sees both images of every pair. With the four cells of the table of
pairs,

    Δq = q_with − q_without = P(only with) − P(only without) = p₁₀ − p₀₁,

so pairs that agree tell nothing, and noise that both share does not widen the interval. Limits are exact: each of p₁₀
and p₀₁ gets a Clopper-Pearson interval, and the lower limit of Δq is the lower one of p₁₀ minus the upper one of p₀₁
(α/4 each, α/2 together; the same above). The one-sided p-value is McNemar's exact test (Psychometrika 12, 1947).

What it tells apart: a plausible image comes as often without the record, a memorised one does not.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.sharding import Mesh
from scipy import stats

from diffusion_privacy.anonymity import intervals, montecarlo
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, PyTree, ScoreFn

ASSUMES = (
    "this one pair of models: training with another seed may give another difference",
    "both were trained with the same settings on the same data but for the record (all records of its person); unless "
    "initial weights and the order of records were shared too, part of the difference is that of two trainings",
    "a reproduction is what the detector says it is; a detector's false alarm that hits both models cancels",
)


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """Δq of one record, a difference of probabilities in [−1, 1]; positive: the record's presence brings it forth.

    Attributes:
      value, lower, upper: q_with − q_without and its limits.
      level: two-sided confidence level of (lower, upper), at least.
      only_with, only_without, both: pairs in which that model's image, or both, was named the record.
      n: pairs.
      p_value: of "the record makes no difference" against "it raises q"; 1 without a discordant pair.
      network_calls: score evaluations of both models.
      reasons: what the numbers cannot show.
    """

    value: float
    lower: float
    upper: float
    level: float
    only_with: int
    only_without: int
    both: int
    n: int
    p_value: float
    network_calls: int
    reasons: tuple[str, ...]


def paired(
    with_record: np.ndarray, without_record: np.ndarray, level: float = 0.95, *, steps: int = 0
) -> Counterfactual:
    """Δq and its interval from paired detections.

    Args:
      with_record, without_record: bool ``[n]``, the detector on image i of each model, drawn with the same noise.
      level: two-sided.
      steps: network calls of one image.

    Raises:
      InputError: arrays that are not equally long rows of truth values, or a level outside (0, 1).
    """
    a, b = np.asarray(with_record), np.asarray(without_record)
    if a.dtype != bool or b.dtype != bool or a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise InputError(f"with_record, without_record: expected one truth value a pair, got {a.shape} and {b.shape}")
    n, gained, lost = a.size, int(np.sum(a & ~b)), int(np.sum(~a & b))
    part = 1 - (1 - level) / 2
    gain, loss = (intervals.clopper_pearson(count, n, part) for count in (gained, lost))
    discordant = gained + lost
    p_value = float(stats.binom.sf(gained - 1, discordant, 0.5)) if discordant else 1.0
    reasons = []
    if discordant == 0:
        reasons.append("no pair differs: the interval is what that many pairs can exclude")
    if a.all() or b.all():
        reasons.append("the detector fired on every image of a model: it may not tell the record from anything")
    return Counterfactual(
        value=(gained - lost) / n,
        lower=gain[0] - loss[1],
        upper=gain[1] - loss[0],
        level=level,
        only_with=gained,
        only_without=lost,
        both=int(np.sum(a & b)),
        n=n,
        p_value=p_value,
        network_calls=2 * n * steps,
        reasons=tuple(reasons),
    )


def counterfactual(
    chain: Chain,
    with_record: ScoreFn,
    without_record: ScoreFn,
    detect: PyTree,
    shape: tuple[int, ...],
    records: int,
    count: int,
    key: Array,
    *,
    level: float = 0.95,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> list[Counterfactual]:
    """Δq of every record: ``count`` images of each model from the same noise.

    Args:
      chain: the sampler as it is run, for both.
      with_record, without_record: scores of the two models.
      detect: ``margin(x[B, ...], record[B]) -> [B]``.
      shape: of one image.
      records: number of records that the detector knows.
      count: pairs.
      key: of the noise, the same for both.
      level: two-sided, of each record by itself.
      chunk, mesh: see `lanes.run`.

    Raises:
      FloatingPointError: an image or a margin is not finite.
    """
    hits = []
    for score in (with_record, without_record):
        images = montecarlo.sample(chain, score, shape, count, key, chunk=chunk, mesh=mesh)
        hits.append(montecarlo.margins(detect, images, records, chunk=chunk, mesh=mesh) > 0)
    return [paired(hits[0][:, r], hits[1][:, r], level, steps=chain.steps) for r in range(records)]
