"""E1: how often one drawn image shows the record, by drawing images and counting.

The only estimator here that bounds q from above whatever the model does. K hits in N independent samples give exact
Clopper-Pearson limits of the rate at which the DETECTOR fires; a detector that misses a share of true reproductions
hides as many, so the upper limit is divided by a lower limit of its true-positive rate. With N = 30,000 and no hit the
limit is 1.2e-4 (two-sided 95 %, before that division).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy import special

from diffusion_privacy.anonymity import intervals, lanes
from diffusion_privacy.diffusion import chain as chains
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.types import Array, ConditionalScore, Estimate, PyTree, ScoreFn


def sample_lanes(setting: tuple[Chain, tuple[int, ...]], operands: PyTree, batch: dict[str, Array]) -> Array:
    """Unconditional samples; the lane function of `sample`. ``batch["draw"]`` numbers them."""
    chain, shape = setting
    keys = lanes.lane_keys(operands["key"], batch["draw"])
    x = jax.vmap(lambda k: chain.sde.prior_sample(jax.random.fold_in(k, 0), shape))(keys)
    level = jnp.full((x.shape[0],), chain.steps)
    return chains.run(chain, operands["score"], keys, x, level)


def sample(
    chain: Chain,
    score_fn: ScoreFn,
    shape: tuple[int, ...],
    count: int,
    key: Array,
    *,
    first: int = 0,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """``[count, *shape]`` samples of the model, float32, in one compiled program.

    Sample i is a function of (key, first + i): drawing more later continues the same sequence. Of one object whose
    weights are exchanged between two calls the second would see the first ones: give them as leaves of a
    `jax.tree_util.Partial`, or the score as `lanes.fresh`.

    Raises:
      FloatingPointError: a sample is not finite.
    """
    draw = np.arange(first, first + count, dtype=np.int32)
    operands = {"key": key, "score": lanes.operand(score_fn)}
    return _finite(lanes.run(sample_lanes, (chain, shape), operands, {"draw": draw}, chunk=chunk, mesh=mesh))


def _finite(samples: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(samples).reshape(len(samples), -1).all(axis=1)
    if bad.any():
        raise FloatingPointError(f"{np.sum(bad)} of {len(samples)} samples are not finite")
    return samples


def _labelled_lanes(setting: tuple[Chain, tuple[int, ...]], operands: PyTree, batch: dict[str, Array]) -> Array:
    def score(x: Array, t: Array) -> Array:
        return operands["score"](batch["label"], x, t)

    return sample_lanes(setting, {"key": operands["key"], "score": score}, batch)


def sample_labelled(
    chain: Chain,
    score: ConditionalScore,
    shape: tuple[int, ...],
    labels: np.ndarray,
    key: Array,
    *,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """``[N, *shape]`` samples of a conditional model, float32, the i-th of class ``labels[i]``, in one program.

    With labels drawn independently from the classes' shares the samples are independent draws of one sampler: first a
    class, then an image of it. That is the sampler that E1 then speaks of.

    Args:
      chain: the sampler.
      score: ``(label[B], x[B, ...], t[B]) -> [B, ...]``; a `jax.tree_util.Partial` reuses compiled programs.
      shape: of one image.
      labels: int ``[N]``.
      key: sample i is a function of (key, i) and its label.
      chunk, mesh: see `lanes.run`.

    Raises:
      FloatingPointError: a sample is not finite.
    """
    rows = {"draw": np.arange(len(labels), dtype=np.int32), "label": np.asarray(labels, np.int32)}
    operands = {"key": key, "score": lanes.operand(score)}
    return _finite(lanes.run(_labelled_lanes, (chain, shape), operands, rows, chunk=chunk, mesh=mesh))


def _margins(setting: int, operands: PyTree, batch: dict[str, Array]) -> Array:
    x = batch["x"]

    def one(record: Array) -> Array:
        return lanes.checked_margin(operands["detect"], x, jnp.full((x.shape[0],), record))

    # A loop inside the program: its size, and the time to compile it, do not grow with the number of records.
    return jnp.swapaxes(jax.lax.map(one, jnp.arange(setting, dtype=jnp.int32)), 0, 1)


def margins(
    detect: PyTree, images: np.ndarray, records: int, *, chunk: int = 256, mesh: Mesh | None = None
) -> np.ndarray:
    """``[N, R]`` margins of every image for every record.

    Raises:
      FloatingPointError: an image or a margin is not finite.
    """
    operands = {"detect": lanes.operand(detect)}
    out = lanes.run(_margins, records, operands, {"x": np.asarray(images, np.float32)}, chunk=chunk, mesh=mesh)
    if not np.all(np.isfinite(out)):
        raise FloatingPointError("an image or its margin is not finite")
    return out


@dataclasses.dataclass(frozen=True)
class DirectResult:
    """E1 for one record: the estimate and the count behind it.

    `estimate.value` is hits / n; its upper limit already contains the division by ``tpr_lower``.
    """

    estimate: Estimate
    hits: int
    tpr_lower: float


def direct(hits: int, n: int, *, tpr_lower: float = 1.0, steps: int, level: float = 0.95) -> DirectResult:
    """Exact interval of q from ``hits`` among ``n`` independent samples.

    Args:
      hits: samples that the detector named.
      n: samples drawn.
      tpr_lower: lower confidence limit of the detector's true-positive rate in (0, 1]. Its own confidence must be
        shared with ``level`` by the caller (see `verdict`).
      steps: network calls of one sample.
      level: two-sided confidence level of the count's interval.

    Raises:
      ValueError: tpr_lower outside (0, 1]: a detector that may never fire bounds nothing.
    """
    if not 0 < tpr_lower <= 1:
        raise ValueError(
            f"tpr_lower must lie in (0, 1], got {tpr_lower}: a detector that may never fire bounds nothing"
        )
    lower, upper = intervals.clopper_pearson(hits, n, level)
    reasons = ("no hit: the value is 0, the upper limit is what was shown",) if hits == 0 else ()
    return DirectResult(
        Estimate(
            method="direct",
            log_value=math.log(hits / n) if hits else -math.inf,
            log_stderr=math.sqrt((1 - hits / n) / hits) if hits else math.inf,
            lower=lower,
            upper=min(upper / tpr_lower, 1.0),
            level=level,
            n=n,
            ess=float(hits),
            reliable=True,
            network_calls=n * steps,
            reasons=reasons,
        ),
        hits,
        tpr_lower,
    )


def samples_needed(bound: float, *, tpr_lower: float = 1.0, level: float = 0.95) -> int:
    """Smallest N at which no hit at all certifies q <= ``bound`` (two-sided ``level``, after the TPR division).

    Without a hit the limit is 1 − ((1 − level)/2)^{1/N}.

    Raises:
      ValueError: ``bound`` not in (0, 1), or ``tpr_lower`` not in (0, 1].
    """
    if not 0 < bound < 1 or not 0 < tpr_lower <= 1:
        raise ValueError(f"bound must lie in (0, 1) and tpr_lower in (0, 1], got {bound}, {tpr_lower}")
    return math.ceil(math.log((1 - level) / 2) / math.log1p(-min(bound * tpr_lower, 1 - 1e-12)))


MOST_SAMPLES = 10**12
"""More than this nobody draws: a rate that needs them cannot be told from the bound."""


def samples_needed_at_rate(
    bound: float, hits: int, n: int, *, tpr_lower: float = 1.0, level: float = 0.95
) -> int | None:
    """Smallest N that certifies q <= ``bound`` if hits keep coming as they did: ⌈N·hits/n⌉ hits in N samples.

    The limit is that of `direct`: Clopper-Pearson's upper one, divided by ``tpr_lower``. It falls while N grows and the
    count stays, and rises with the count; the first count k with a good N is found by bisection, then the first N.

    Args:
      bound: in (0, 1).
      hits, n: hits that were seen, at least 1, and samples drawn.
      tpr_lower, level: as in `direct`.

    Returns:
      Samples in all, those already drawn among them; None where hits/(n·tpr_lower) is at or above ``bound``, or so
      close below it that 10¹² samples would not do.

    Raises:
      ValueError: bound or tpr_lower out of range, or not 1 <= hits <= n.
    """
    if not 0 < bound < 1 or not 0 < tpr_lower <= 1 or not 1 <= hits <= n:
        raise ValueError(f"expected bound in (0, 1), tpr_lower in (0, 1], hits >= 1; got {bound}, {tpr_lower}, {hits}")
    limit, tail = bound * tpr_lower, (1 - level) / 2
    if hits / n >= limit:
        return None

    def certifies(k: int, samples: float) -> bool:
        return samples > k and bool(special.betaincc(k + 1, samples - k, limit) <= tail)

    # With N no whole number the limit at k hits in k·n/hits samples falls as k grows. Rounding N down raises it, so
    # that the first k may lie a little higher.
    k = _first(lambda count: count * n / hits > MOST_SAMPLES or certifies(count, count * n / hits), 1)
    while not certifies(k, k * n // hits):
        if k * n / hits > MOST_SAMPLES:
            return None
        k += 1
    return _first(lambda samples: certifies(k, samples), (k - 1) * n // hits + 1)


def _first(holds: Callable[[int], bool], start: int) -> int:
    """Smallest whole number from ``start`` for which ``holds``, which stays true once it is."""
    step = 1
    while not holds(start + step - 1):
        start, step = start + step, 2 * step
    low, high = start, start + step - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
