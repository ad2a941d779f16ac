"""A detector that needs no training: is this image closer to the record than any record that the model never saw?

For a record p and m held-out records the radius is ``share`` times the k-th smallest distance from p to them, k = 1
unless a larger false-positive rate is asked for. A fresh record of the same kind falls into a ball of share = 1 with
probability at most k/(m + 1), whatever the distance (`anonymity.conformal`); share <= ½ and a metric make every image
inside nearer to p than to any held-out record.

Held-out records are real; a model's draws are not, and blurred ones lie nearer to everything. What the threshold
promises of real records it does not promise of draws. So every held-out record is treated as p is, with a ball by the
same rule among the same records, and the draws that fall into those are counted too. If the model knows nothing of p, p
is exchangeable with them, and its count is among the k largest of m + 1 with probability at most k/(m + 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.anonymity.conformal import conformal_count, conformal_rate
from diffusion_privacy.anonymity.detector_tasks import Perturbation
from diffusion_privacy.anonymity.intervals import Rate, outwards, rate
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import rng
from diffusion_privacy.types import Array, PyTree

Distance = Callable[[Array, Array], Array]
"""``distance(x[B, ...], record[B, ...]) -> [B]``, 0 or more; smaller means more alike."""

Copies = Callable[[Array, Array], Array]
"""``copy(record[...], key) -> [...]``: the record as a careless copy may look."""


def _l2(x: Array, record: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x - record).reshape(x.shape[0], -1), axis=1))


def _largest(x: Array, record: Array) -> Array:
    return jnp.max(jnp.abs(x - record).reshape(x.shape[0], -1), axis=1)


DISTANCES: dict[str, Distance] = {"l2": _l2, "max": _largest}
"""Distances by the name that a config gives: Euclidean, and that of the pixel that differs most; grey scale [-1, 1]."""


def named(distance: str | Distance) -> Distance:
    """A distance by name, or the one given. Raises InputError on an unknown name."""
    if not isinstance(distance, str):
        return distance
    if distance not in DISTANCES:
        raise InputError(f"distance: expected one of {', '.join(DISTANCES)} or a function, got {distance!r}")
    return DISTANCES[distance]


def _to_records(distance: Distance, operands: PyTree, batch: dict[str, Array]) -> Array:
    x = batch["x"]

    def one(record: Array) -> Array:
        out = distance(x, jnp.broadcast_to(record, x.shape))
        if jnp.shape(out) != x.shape[:1]:
            raise InputError(f"distance: expected one number an image, got shape {jnp.shape(out)} for {x.shape}")
        return out

    return jnp.swapaxes(jax.lax.map(one, operands["records"]), 0, 1)


def distances(distance: Distance, images: np.ndarray, records: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """``[N, R]`` distances of every image to every record, in one compiled program.

    Raises:
      InputError: a distance of another shape, not finite or below 0.
    """
    operands = {"records": jnp.asarray(records, jnp.float32)}
    out = lanes.run(_to_records, distance, operands, {"x": np.asarray(images, np.float32)}, chunk=chunk)
    if not np.all(np.isfinite(out)) or np.min(out) < 0:
        raise InputError(f"distance: expected finite numbers of 0 or more, got {out[~(out >= 0)][:1] or out.max()}")
    return out


@dataclasses.dataclass(frozen=True)
class BallMargin:
    """``radii[record] − distance(x, records[record])``; hashable, its arrays are arguments."""

    distance: Distance

    def __call__(self, records: Array, radii: Array, x: Array, record: Array) -> Array:
        """``[B]``; positive inside the ball of record number ``record[B]``."""
        return radii[record] - self.distance(x, records[record])


def ball_detector(distance: Distance, records: np.ndarray, radii: np.ndarray) -> jax.tree_util.Partial:
    """The detector of the audit: ``margin(x[B, ...], record[B]) -> [B]``."""
    return jax.tree_util.Partial(
        BallMargin(distance), jnp.asarray(records, jnp.float32), jnp.asarray(radii, jnp.float32)
    )


@dataclasses.dataclass(frozen=True)
class Balls:
    """The balls of one private record and of the held-out records that it is compared with.

    Attributes:
      radius: of the private record, in units of the distance.
      control_radii: ``[m]``, each by the same rule among the other held-out records and the private one.
      nearest: distance from the private record to the nearest held-out one.
      false_positive_rate: of the private record's ball on fresh records of the held-out kind.
    """

    radius: float
    control_radii: np.ndarray
    nearest: float
    false_positive_rate: Rate


def balls(to_held_out: np.ndarray, among_held_out: np.ndarray, requested: float, share: float, level: float) -> Balls:
    """Radii from distances.

    Args:
      to_held_out: ``[m]`` from the private record.
      among_held_out: ``[m, m]`` between held-out records.
      requested: false-positive rate of a fresh record in (0, 1); 1/(m + 1) is the smallest that m records allow.
      share: of the conformal radius, in (0, 1].
      level: two-sided confidence of the false-positive rate's interval.

    Raises:
      InputError: too few records for the rate, a share out of range, or a held-out record that equals the private one.
    """
    if not 0 < share <= 1:
        raise InputError(f"detector.share: expected a number in (0, 1], got {share}")
    count = len(to_held_out)
    k = conformal_count(count, requested)
    nearest = float(to_held_out.min())
    if nearest == 0:
        raise InputError(
            f"held_out: record {int(np.argmin(to_held_out))} equals the private record; expected records that the "
            "model never saw"
        )
    threshold = float(np.partition(to_held_out, k - 1)[k - 1])
    others = np.array(among_held_out, np.float64)
    # A record is no neighbour of itself; the private one takes its place, so that all m + 1 are treated alike.
    np.fill_diagonal(others, to_held_out)
    radius = share * threshold
    return Balls(
        radius,
        share * np.partition(others, k - 1, axis=1)[:, k - 1],
        nearest,
        conformal_rate(to_held_out < radius, threshold, requested, level),
    )


@dataclasses.dataclass(frozen=True)
class ControlTest:
    """Draws near the private record against draws near records that the model never saw.

    Attributes:
      hits: draws inside the private record's ball.
      control_hits: ``[m]`` the same for each held-out record.
      p_value: that a record which the model knows nothing of has as many hits; never below 1/(m + 1).
    """

    hits: int
    control_hits: np.ndarray
    p_value: float


def control_test(hits: int, control_hits: np.ndarray) -> ControlTest:
    """The rank of ``hits`` among ``control_hits[m]``, ties counted against the private record."""
    p = (1 + int(np.sum(control_hits >= hits))) / (1 + len(control_hits))
    return ControlTest(hits, control_hits, p)


def _noisy(record: Array, key: Array) -> Array:
    return record + 0.05 * jax.random.normal(key, record.shape)


def copies_held(
    distance: Distance,
    records: np.ndarray,
    radii: np.ndarray,
    key: Array,
    *,
    copy: Copies | None = None,
    copies: int = 512,
    level: float,
    uids: np.ndarray | None = None,
) -> list[Rate]:
    """For each record the share of its perturbed copies that its ball holds: the detector's true-positive rate.

    A ball says nothing of copies that it does not hold. Its radius follows from held-out records alone, so that a
    near copy of the record among these makes it a point; a count of draws inside must be divided by a lower limit of
    this rate before it bounds the rate of copies.

    Args:
      distance: of the balls.
      records: ``[R, ...]``; images in [-1, 1] where ``copy`` is None and they are ``[R, H, W, C]``.
      radii: ``[R]``, in units of the distance; a copy is inside if it is nearer than that.
      key: copies of a record are a function of (key, uid).
      copy: how a copy may differ; None for `detector_tasks.Perturbation` of images, white noise of .05 of others.
      copies: of each record, 1 or more.
      level: two-sided confidence of each rate by itself.
      uids: ``[R]`` numbers of the records, the position if not given.
    """
    if copy is None:
        copy = Perturbation() if np.ndim(records) == 4 else _noisy
    make = jax.jit(lambda record, keys: jax.vmap(lambda one: copy(record, one))(keys))
    numbers = np.arange(len(records)) if uids is None else uids
    rates = []
    for record, radius, uid in zip(records, radii, numbers, strict=True):
        keys = rng.per_record(jax.random.fold_in(key, int(uid)), jnp.arange(copies))
        near = distances(distance, np.asarray(make(record, keys)), record[None], chunk=256)[:, 0] < radius
        rates.append(rate(int(near.sum()), copies, level))
    return rates


def divisor(seen: Rate) -> float:
    """Lower limit of the share of copies that a ball holds, as `montecarlo.direct` takes it: above 0, in (0, 1].

    Where the ball held none, any count divided by it gives the limit 1, which bounds nothing.
    """
    return max(seen.lower, 1e-12)


def doubts(seen: Rate) -> list[str]:
    """Why not to trust a ball with this share of copies; empty when it holds most."""
    if seen.hits == 0:
        return [f"the ball holds none of {seen.n} perturbed copies: it would miss a copy, and bounds nothing"]
    if seen.lower < 0.5:
        least = outwards(seen.lower, "down")
        return [f"the ball may miss more than half of the copies: it holds at least {least} of them"]
    return []
