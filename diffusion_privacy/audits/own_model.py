"""The audit of a model that somebody else trained, by what can be known without its twin.

The main job calibrates a trained detector on a reference model that never saw the private record. Here there is no such
model: the detector is a ball around each record (`audits.nearness`), and what it says is reduced to match:

- a *reproduction* is an image inside the ball, nothing more. The upper limit of its rate holds whatever the model
  does; it is divided by a lower limit of the share of perturbed copies that the ball holds;
- *leaks* is said only if the draws fall into the private record's ball more often than into those of held-out records
  that the model never saw (a rank test), and the lower limit exceeds the upper limit of the busiest of them.
"""

from __future__ import annotations

import dataclasses
import logging

import jax
import numpy as np

from diffusion_privacy.anonymity import lanes, montecarlo, subspace, tprime, verdict
from diffusion_privacy.anonymity.intervals import Rate, outwards, rate
from diffusion_privacy.anonymity.montecarlo import DirectResult
from diffusion_privacy.anonymity.subspace import SubspaceResult
from diffusion_privacy.anonymity.tprime import HCurve, TPrime
from diffusion_privacy.anonymity.verdict import Verdict
from diffusion_privacy.audits import nearness, plausible
from diffusion_privacy.audits.nearness import Balls, ControlTest, Copies, Distance
from diffusion_privacy.audits.plausible import Plausibility
from diffusion_privacy.diffusion import given_model
from diffusion_privacy.diffusion.given_model import GivenModel
from diffusion_privacy.errors import InputError
from diffusion_privacy.training import rng

_LOG = logging.getLogger(__name__)
_ROUND = 2048


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and at what cost.

    Attributes:
      samples: images drawn for E1; a bound of 1/n needs about 4.5 n of them.
      h_levels, h_draws: noise levels of the h(t) curve, evenly spread over the sampler's steps, and draws at each, at
        least 16.
      gamma: γ of the statistical t'; at least the ball's false-positive limit is taken.
      subspace_draws, subspace_max_draws: paths a round and at most, for E2.
      copies: perturbed copies of each record that measure what its ball holds.
      false_positive_rate: of a fresh record of the held-out kind, in (0, 1); 0 takes the smallest, 1/(held-out + 1).
      share: of the conformal radius, in (0, 1]; at most ½ keeps balls of different records apart.
      level: confidence level of each record's verdict.
      chunk: lanes a device handles at a time; 0 chooses by ``memory_gb`` of temporaries.
      check: refuse a score that does not fit its schedule or its records (`audits.plausible`).
    """

    samples: int = 10_000
    h_levels: int = 20
    h_draws: int = 32
    gamma: float = 0.05
    subspace_draws: int = 1024
    subspace_max_draws: int = 4096
    copies: int = 512
    false_positive_rate: float = 0.0
    share: float = 0.5
    level: float = 0.95
    chunk: int = 0
    memory_gb: float = 2.0
    check: bool = True

    def __post_init__(self) -> None:
        for field, valid, expected in (
            ("samples", self.samples >= 256, "256 or more"),
            ("h_levels", self.h_levels >= 1, "1 or more"),
            ("h_draws", self.h_draws >= 16, "16 or more"),
            ("gamma", 0 <= self.gamma < 1, "a number in [0, 1)"),
            ("subspace_draws", 100 <= self.subspace_draws <= self.subspace_max_draws, "100 … subspace_max_draws"),
            ("copies", self.copies >= 16, "16 or more"),
            ("false_positive_rate", 0 <= self.false_positive_rate < 1, "a number in [0, 1)"),
            ("share", 0 < self.share <= 1, "a number in (0, 1]"),
            ("level", 0.5 < self.level < 1, "a number in (0.5, 1)"),
            ("chunk", self.chunk >= 0, "0 or more"),
            ("memory_gb", 0 < self.memory_gb < float("inf"), "a finite positive number"),
        ):
            if not valid:
                raise InputError(f"audit.{field}: expected {expected}, got {vars(self)[field]!r}")


@dataclasses.dataclass(frozen=True)
class RecordAudit:
    """What was found of one private record.

    Attributes:
      balls: the detector, and its false-positive rate on fresh records.
      copies_seen: share of perturbed copies inside the ball.
      curve, t_prime, paper_t_prime: h(t) and both readings of it.
      direct, subspace: E1 and E2.
      control: the rank test.
      verdict: its interval is of the rate at which a drawn image falls into the ball.
      reasons: why not to trust the detector; empty when nothing was found.
    """

    balls: Balls
    copies_seen: Rate
    curve: HCurve
    t_prime: TPrime
    paper_t_prime: float | None
    direct: DirectResult
    subspace: SubspaceResult
    control: ControlTest
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class OwnAudit:
    """The audit of a given model.

    Attributes:
      records: one a private record, in their order.
      plausibility: of score and schedule; None if it was not looked at.
      shown: some drawn images ``[<= 64, ...]``.
      nearest: ``[R, ...]`` the drawn image nearest to each private record, of all; ``distances [R]`` how far it is.
      notes: what came with the model.
    """

    records: tuple[RecordAudit, ...]
    plausibility: Plausibility | None
    shown: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    notes: tuple[str, ...]


def audit_model(
    model: GivenModel,
    private: np.ndarray,
    held_out: np.ndarray,
    *,
    n_train: int,
    distance: str | Distance = "l2",
    copy: Copies | None = None,
    plan: Plan | None = None,
    seed: int = 0,
) -> OwnAudit:
    """How often does this model give these records back?

    Args:
      model: score and sampler, see `diffusion.given_model` and `interop.diffusers`. The score is looked at anew in
        every audit, so that one object may be audited, trained on and audited again (`lanes.fresh`).
      private: ``[R, ...]`` records in question, as the model would draw them (images in [-1, 1]).
      held_out: ``[M, ...]`` records of the same kind that the model certainly never saw, M >= 19; none of them may
        equal a private one. With M = 19 "leaks" can be said at 95 %, with M = 99 at 99 %.
      n_train: number of records that the model was trained on; 1/n_train is the rate of an ideal memoriser, which the
        verdict speaks of.
      distance: ``"l2"``, ``"max"`` or a function, e.g. in the features of a network.
      copy: how a copy may differ from the record; None for `detector_tasks.Perturbation` (images), or white noise of
        0.05 (records of another shape).
      plan: see `Plan`.
      seed: 0 <= seed < 2**32; results depend on it and on nothing else random.

    Raises:
      InputError: records, model or detector that are not usable, or a score that does not fit its schedule: one line
        says what was expected.
    """
    plan = Plan() if plan is None else plan
    if not 0 <= seed < 2**32:
        raise InputError(f"seed: expected 0 … 2**32 − 1, got {seed}")
    private, held_out = _checked(private, held_out, n_train)
    given_model.check(model, private.shape[1:])
    # Programs of what the user gives are this audit's alone: an object may hold other weights by the next one.
    measure = nearness.named(distance) if isinstance(distance, str) else lanes.Fresh(distance)
    score = lanes.fresh(model.score)
    found = _detector(measure, private, held_out, plan)
    chunk = plan.chunk or lanes.chunk_for_budget(score, private.shape[1:], plan.memory_gb * 2**30, ceiling=256)
    work = _Work(dataclasses.replace(model, score=score), private, held_out, n_train, measure, found, plan, chunk, seed)
    try:
        return _run(work, copy)
    except FloatingPointError as error:
        raise InputError(f"model.score: expected finite numbers; {error}") from error


def _checked(private: np.ndarray, held_out: np.ndarray, n_train: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name, value, fewest in (("private", private, 1), ("held_out", held_out, 19)):
        array = np.asarray(value, np.float32)
        if array.ndim < 2 or len(array) < fewest:
            raise InputError(f"{name}: expected at least {fewest} records [N, ...], got shape {array.shape}")
        if not np.all(np.isfinite(array)):
            raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
        arrays.append(array)
    if arrays[0].shape == arrays[1].shape[1:]:
        raise InputError(
            f"private: expected records [R, ...], got one of shape {arrays[0].shape} without an axis for it"
        )
    if arrays[0].shape[1:] != arrays[1].shape[1:]:
        raise InputError(f"held_out: expected records of shape {arrays[0].shape[1:]}, got {arrays[1].shape[1:]}")
    if isinstance(n_train, bool) or not isinstance(n_train, int | np.integer) or n_train < 2:
        raise InputError(f"n_train: expected a whole number of 2 or more, got {n_train!r}")
    return arrays[0], arrays[1]


def _detector(measure: Distance, private: np.ndarray, held_out: np.ndarray, plan: Plan) -> list[Balls]:
    """The balls of every private record; all distances in one program each."""
    to_private = nearness.distances(measure, held_out, private)
    among = nearness.distances(measure, held_out, held_out)
    # A little above 1/(m + 1), which as a decimal may fall short of it.
    requested = plan.false_positive_rate or (1 + 1e-9) / (len(held_out) + 1)
    level = verdict.part_level(plan.level)
    return [nearness.balls(to_private[:, r], among, requested, plan.share, level) for r in range(len(private))]


@dataclasses.dataclass(frozen=True)
class _Work:
    """What all parts of one audit share."""

    model: GivenModel
    private: np.ndarray
    held_out: np.ndarray
    n_train: int
    distance: Distance
    balls: list[Balls]
    plan: Plan
    chunk: int
    seed: int

    @property
    def level(self) -> float:
        return verdict.part_level(self.plan.level)

    @property
    def detect(self) -> jax.tree_util.Partial:
        return nearness.ball_detector(self.distance, self.private, np.array([b.radius for b in self.balls]))


def _run(work: _Work, copy: Copies | None) -> OwnAudit:
    plan, chain = work.plan, work.model.chain
    radii = np.array([b.radius for b in work.balls])
    seen = nearness.copies_held(
        work.distance,
        work.private,
        radii,
        rng.stream(work.seed, "own.copies"),
        copy=copy,
        copies=plan.copies,
        level=work.level,
    )
    drawn = _draw(work)
    levels = np.unique(np.round(np.linspace(1, chain.steps, min(plan.h_levels, chain.steps))).astype(int))
    curves = tprime.h_curves(
        chain,
        work.model.score,
        work.detect,
        work.private,
        levels,
        plan.h_draws,
        rng.stream(work.seed, "own.h"),
        chunk=work.chunk,
    )
    _LOG.info("audit: h(t) drawn at %d levels for %d records", len(levels), len(curves))
    paths = subspace.estimate(
        chain,
        work.model.score,
        work.detect,
        work.private,
        [subspace.design(curve.by_level) for curve in curves],
        rng.stream(work.seed, "own.subspace"),
        draws=plan.subspace_draws,
        max_draws=plan.subspace_max_draws,
        level=work.level,
        chunk=work.chunk,
    )
    _LOG.info("audit: subspaces integrated, %s paths", [e2.estimate.n for e2 in paths])
    records = tuple(_record(work, r, seen[r], drawn.controls[r], curves[r], paths[r]) for r in range(len(work.private)))
    return OwnAudit(records, drawn.plausibility, drawn.shown, drawn.nearest, drawn.distances, work.model.notes)


@dataclasses.dataclass(frozen=True)
class _Draws:
    """What is kept of the images drawn; see `OwnAudit`."""

    shown: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray
    plausibility: Plausibility | None
    controls: list[ControlTest]


def _draw(work: _Work) -> _Draws:
    """Draws the images of E1 in rounds and keeps counts: memory does not grow with their number.

    Raises:
      InputError: the first of them say that the score does not fit its schedule.
    """
    plan, key = work.plan, rng.stream(work.seed, "own.sample")
    records = np.concatenate([work.private, work.held_out])
    count, shape = len(work.private), work.private.shape[1:]
    hits = np.zeros(count, int)
    control_hits = np.zeros((count, len(work.held_out)), int)
    shown, plausibility = None, None
    nearest, closest = np.array(work.private), np.full(count, np.inf)
    size = min(_ROUND, plan.samples)
    for first in range(0, plan.samples, size):
        # Every round is full, so that one program serves all; the last one is cut.
        drawn = montecarlo.sample(work.model.chain, work.model.score, shape, size, key, first=first, chunk=work.chunk)
        drawn = drawn[: plan.samples - first]
        if shown is None:
            shown = drawn[:64]
            if plan.check:
                plausibility = _plausible(work, drawn)
        near = nearness.distances(work.distance, drawn, records)
        for r, balls in enumerate(work.balls):
            best = int(np.argmin(near[:, r]))
            if near[best, r] < closest[r]:
                nearest[r], closest[r] = drawn[best], near[best, r]
            hits[r] += int(np.sum(near[:, r] < balls.radius))
            control_hits[r] += np.sum(near[:, count:] < balls.control_radii, axis=0)
        _LOG.info("audit: %d of %d images drawn", min(first + size, plan.samples), plan.samples)
    assert shown is not None
    controls = [nearness.control_test(int(hits[r]), control_hits[r]) for r in range(count)]
    return _Draws(shown, nearest, closest, plausibility, controls)


def _plausible(work: _Work, drawn: np.ndarray) -> Plausibility:
    found = plausible.plausibility(work.model, drawn, work.held_out, rng.stream(work.seed, "own.plausible"))
    if found.faults:
        raise InputError(f"model: expected a score that fits its schedule and records; {'; '.join(found.faults)}")
    return found


def _record(
    work: _Work, number: int, seen: Rate, control: ControlTest, curve: HCurve, e2: SubspaceResult
) -> RecordAudit:
    plan, balls = work.plan, work.balls[number]
    direct = montecarlo.direct(
        control.hits, plan.samples, tpr_lower=nearness.divisor(seen), steps=work.model.chain.steps, level=work.level
    )
    gamma = max(plan.gamma, balls.false_positive_rate.upper)
    return RecordAudit(
        balls,
        seen,
        curve,
        tprime.statistical_t_prime(curve, gamma, plan.level),
        tprime.paper_t_prime(curve),
        direct,
        e2,
        control,
        _decide(work, direct, e2, control),
        _reasons(seen, control, work.plan),
    )


def _decide(work: _Work, direct: DirectResult, e2: SubspaceResult, control: ControlTest) -> Verdict:
    """`verdict.decide` against the busiest control; "leaks" needs the rank test besides."""
    plan, bound = work.plan, 1 / work.n_train
    busiest = rate(int(control.control_hits.max()), plan.samples, work.level)
    found = verdict.decide(direct, e2, busiest, bound, plan.level)
    if found.status == verdict.LEAKS and control.p_value > 1 - plan.level:
        # What is missing is a rank among the held-out records: with more samples the interval speaks of a leak as well.
        found = dataclasses.replace(found, status=verdict.OPEN, more_samples=verdict.NOT_EXPECTED)
    assumes = (
        "the sampler as it was run (its steps, its clipping); another sampler has another rate",
        "a reproduction is an image inside the record's ball; a copy that differs more than the perturbed copies that "
        "were tried is not counted, and an image inside is not shown to be recognisable",
        f"the {len(control.control_hits)} held-out records were never seen by the model and are of the same kind as "
        "the private one",
        "the model is used with the schedule that it was trained with; only gross mismatches are found",
        *(note for note in found.assumes if note.startswith("E1 and E2 exclude")),
        *work.model.notes,
        *(
            (f"each of the {len(work.private)} records is judged by itself at this level",)
            if len(work.private) > 1
            else ()
        ),
        *(("score, schedule and records were not checked against each other",) if not plan.check else ()),
    )
    return dataclasses.replace(found, assumes=assumes)


def _reasons(seen: Rate, control: ControlTest, plan: Plan) -> tuple[str, ...]:
    reasons = nearness.doubts(seen)
    if control.hits == plan.samples:
        reasons.append("every drawn image lies inside the ball: the detector says nothing")
    others = int(np.sum(control.control_hits > 0))
    if others:
        reasons.append(
            f"draws also fall into the balls of {others} of {len(control.control_hits)} records that the model never "
            f"saw (rank test: p = {outwards(control.p_value, 'up')})"
        )
    return tuple(reasons)
