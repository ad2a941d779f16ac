"""The baselines of an audit, each run over one model and given as plain rows with interval, unit and direction.

None of them says how often one record comes back; that is what the fingerprint audit is for. They are what the field
uses, and they fail in different places: an audit whose verdict none of them supports deserves a second look.

| name | asks | by |
| --- | --- | --- |
| `loss`, `pia`, `secmi`, `likelihood` | can members be told from non-members by the score? | `attacks` |
| `authpct` | are samples closer to training records than these are to each other? | `authenticity` |
| `copy_ratio` | are samples closer to training records than held-out records are? | `extraction` |
| `extraction` | which samples are copies, which records come back? | `extraction` |
| `frechet_gap` | are samples, as a set, closer to the training set than to unseen records? | `frechet` |
| `flipd` | does the model allow members fewer variations? | `dimension` |
| `one_run` | how well can canaries in be told from canaries out? A lower limit of ε | `one_run` |
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from diffusion_privacy.anonymity import lanes
from diffusion_privacy.anonymity.conformal import conformal_count
from diffusion_privacy.anonymity.intervals import Rate, outwards, rate
from diffusion_privacy.audits import attacks, dimension, extraction, frechet, neighbours, one_run
from diffusion_privacy.audits.authenticity import authenticity
from diffusion_privacy.audits.membership import Membership, OperatingPoint, attack_with, membership
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import SDE, ScoreFn

HIGHER, LOWER = "higher = more leak", "lower = more leak"


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a baseline.

    Attributes:
      name: ``"baseline: quantity"``.
      value: the estimate; None where there is none, with the reason in ``notes``.
      lower, upper: its interval; None where it is not defined, ``upper`` alone where nothing is claimed from above.
      level: two-sided confidence level; a one-sided limit errs with (1 − level)/2.
      unit: of value and limits.
      direction: `HIGHER` or `LOWER`.
      n: records or samples behind it.
      notes: what it is conditional on, what to compare it with, why not to trust it.
    """

    name: str
    value: float | None
    lower: float | None
    upper: float | None
    level: float
    unit: str
    direction: str
    n: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What is looked at.

    Attributes:
      score: the model; a `jax.tree_util.Partial` reuses compiled programs across models.
      sde: its forward process.
      members: its whole training set ``[N, ...]``.
      non_members: records of the same law without a person in common ``[M, ...]``. One that equals a member is none,
        and few of them are enough to hide copies from `copy_ratio`.
      samples: independent draws of the model ``[G, ...]``.
      features: ``x[B, ...] -> [B, D]`` of a network trained in this project; None: no number for `frechet_gap`.
      attacked: members that score attacks look at, the first so many; a random choice if the members are in no order.
      drawn: samples that are compared with records, the first so many.
      canaries: records ``[K, ...]`` of which `one_run` asks whether they were trained on, with ``included``, bool
        ``[K]``, the fair coins that decided it; None: no number for `one_run`.
      delta: δ at which `one_run` reads ε.
      chunk: records at once on one device.
      seed: of attacks and resampling.
      level: two-sided confidence level.
    """

    score: ScoreFn
    sde: SDE
    members: np.ndarray
    non_members: np.ndarray
    samples: np.ndarray
    features: Callable[[np.ndarray], np.ndarray] | None = None
    attacked: int = 512
    drawn: int = 4096
    canaries: np.ndarray | None = None
    included: np.ndarray | None = None
    delta: float = 1e-5
    chunk: int = 64
    seed: int = 0
    level: float = 0.95


def _missing(name: str, unit: str, direction: str, subject: Subject, reason: str) -> Row:
    return Row(name, None, None, None, subject.level, unit, direction, 0, (reason,))


def _membership_rows(found: Membership) -> list[Row]:
    """AUC, with the wider limits of DeLong's interval and a bootstrap, and the two operating points."""
    area, boot = found.auc, found.auc_bootstrap
    n = found.members + found.non_members
    notes = [f"{found.members} members, {found.non_members} non-members"]
    notes.append(f"wider of {area.method} and stratified bootstrap")
    upper = max(area.upper, boot[1])
    if upper < 0.5:
        notes.append("below chance: this score tells members, but the other way round")
    rows = [
        Row(
            f"{found.attack}: AUC",
            area.value,
            min(area.lower, boot[0]),
            upper,
            area.level,
            "probability; 0.5 is chance",
            HIGHER,
            n,
            tuple(notes),
        )
    ]
    return rows + [_point_row(found.attack, point, area.level, n) for point in found.points]


def _point_row(attack: str, point: OperatingPoint, level: float, n: int) -> Row:
    name = f"{attack}: TPR at {100 * point.requested:g} % FPR"
    if point.tpr is None or point.fpr is None:
        unit = f"share of members; {point.requested:g} is chance"
        return Row(name, None, None, None, level, unit, HIGHER, n, (point.reason,))
    tpr, chance = point.tpr, outwards(point.fpr.upper, "up")
    notes = ("exact given the threshold, which is what the limit of chance allows for",)
    return Row(
        name, tpr.value, tpr.lower, tpr.upper, level, f"share of members; chance is at most {chance}", HIGHER, n,
        (*notes, *filter(None, (point.reason,))),
    )  # fmt: skip


def _attack(name: str) -> Callable[[Subject], list[Row]]:
    def rows(subject: Subject) -> list[Row]:
        attack = attacks.ATTACKS[name]
        members = subject.members[: subject.attacked]
        found = attack_with(
            name,
            lambda x: attack(subject.score, subject.sde, x, chunk=subject.chunk),  # type: ignore[call-arg]
            members,
            subject.non_members,
            level=subject.level,
            seed=subject.seed,
        )
        return _membership_rows(found)

    return rows


def _authpct(subject: Subject) -> list[Row]:
    found = authenticity(subject.samples[: subject.drawn], subject.members, level=subject.level).share
    usual = authenticity(subject.non_members, subject.members, level=subject.level).share
    limits = f"{outwards(usual.lower, 'down')} to {outwards(usual.upper, 'up')}"
    notes = (f"held-out records: {usual.value:.3g} ({limits})",)
    unit = "share of samples further from their nearest record than it is from its own neighbour"
    return [Row("authpct", found.value, found.lower, found.upper, found.level, unit, LOWER, found.n, notes)]


def _neighbours_used(subject: Subject) -> int:
    return min(extraction.NEIGHBOURS, len(subject.members))


def _copy_ratio(subject: Subject) -> list[Row]:
    unit, requested = "share of samples closer to a record than held-out records are; 0.01 is chance", 0.01
    try:
        conformal_count(len(subject.non_members), requested)
    except InputError as error:
        return [_missing("copy_ratio", unit, HIGHER, subject, str(error))]
    found = extraction.calibrated_copy_ratio(
        subject.samples[: subject.drawn],
        subject.members,
        subject.non_members,
        requested=requested,
        neighbours_used=_neighbours_used(subject),
        level=subject.level,
    )
    if found.share is None:
        reason = "held-out records equal training records, and no sample can be closer: leave such records out"
        return [_missing("copy_ratio", unit, HIGHER, subject, reason)]
    notes = (
        f"given the threshold {found.threshold:.3g} of {len(subject.non_members)} held-out records",
        "samples that are smoother than records are closer to everything, without being copies",
    )
    share = found.share
    return [Row("copy_ratio", share.value, share.lower, share.upper, share.level, unit, HIGHER, share.n, notes)]


def _extraction(subject: Subject) -> list[Row]:
    samples = subject.samples[: subject.drawn]
    across, used = extraction.across_of(samples.shape[1:]), _neighbours_used(subject)
    found, usual = (
        extraction.copies(x, subject.members, neighbours_used=used, across=across, level=subject.level)
        for x in (samples, subject.non_members)
    )
    notes = (
        f"distance to the nearest record at most {extraction.ALPHA:g} of the mean of {used}, "
        f"largest of {across * across} tile(s)",
        f"the same decision on held-out records: {usual.copies.hits} of {usual.copies.n}",
        f"{len(found.extracted)} of {len(subject.members)} training records come back in these samples",
        _clique_note(subject, across),
    )
    share = found.copies
    unit = "share of samples that count as copies; its chance level is that of held-out records"
    row = Row("extraction", share.value, share.lower, share.upper, share.level, unit, HIGHER, share.n, notes)
    return [row, _excess(found.copies, usual.copies, subject.level)]


def _excess(samples: Rate, held_out: Rate, level: float) -> Row:
    """Samples that count as copies beyond what held-out records do, which cannot be copies.

    Each share has its exact interval at (1 + level)/2, so that both hold at ``level`` and with them their difference.
    """
    one, two = (rate(found.hits, found.n, 0.5 * (1.0 + level)) for found in (samples, held_out))
    return Row(
        "extraction: excess over held-out records",
        one.value - two.value,
        one.lower - two.upper,
        one.upper - two.lower,
        level,
        "difference of shares; 0 is chance",
        HIGHER,
        one.n + two.n,
        ("the paper's decision has no error rate of its own: in thin or clustered data fresh records pass it too",),
    )


_CLIQUE_SAMPLES = 2000


def _clique_note(subject: Subject, across: int) -> str:
    """Cliques at half the smallest distance between two held-out records that differ: no two people look as alike.

    Equal ones are left out: at a limit of 0 only equal draws would count, and a memoriser would have no clique.
    """
    samples = subject.samples[: min(subject.drawn, _CLIQUE_SAMPLES)]
    cut = neighbours.rows if across == 1 else (lambda x, name: neighbours.tiles(x, across, name))
    parts = cut(subject.non_members, "cliques: held-out records")
    # By digests: `np.unique` makes a field of every pixel. Adding 0 turns −0 into 0.
    parts = np.stack(list({hashlib.sha256((row + 0.0).tobytes()).digest(): row for row in parts}.values()))
    limit = 0.0
    if len(parts) > 1:
        squared, _ = neighbours.nearest(parts, parts, exclude_self=True)
        limit = 0.5 * math.sqrt(float(squared.min()) / parts.shape[2])
    found = extraction.cliques(samples, limit, across=across)
    unsure = f", search given up in {found.undecided} regions" if found.undecided else ""
    near = f"near duplicates in {len(samples)} samples, at most {limit:.2g} apart"
    return f"{len(found.groups)} cliques of {found.size} or more {near}{unsure}"


def _frechet_gap(subject: Subject) -> list[Row]:
    name, unit = "frechet_gap", "squared feature units; 0 is equally far from members and non-members"
    if subject.features is None:
        return [_missing(name, unit, HIGHER, subject, "no feature network was given")]
    sets = [subject.features(x) for x in (subject.samples[: subject.drawn], subject.members, subject.non_members)]
    found = frechet.frechet_gap(*sets, level=subject.level, seed=subject.seed)
    notes = (
        f"distance to members {found.train:.3g}, to non-members {found.held_out:.3g}, {found.size} records a side",
        f"p = {outwards(found.p_value, 'up', 2)} for members and non-members being alike",
    )
    n = sum(len(x) for x in sets)
    return [Row(name, found.value, found.lower, found.upper, found.level, unit, HIGHER, n, notes)]


def _flipd(subject: Subject) -> list[Row]:
    members = subject.members[: subject.attacked]
    both = np.concatenate([members, subject.non_members])
    found = dimension.flipd(subject.score, subject.sde, both, seed=subject.seed, chunk=subject.chunk)
    one, two = found.value[: len(members)], found.value[len(members) :]
    value, reach = _welch(two, one, subject.level)
    notes = (
        f"median {np.median(one):.3g} for members, {np.median(two):.3g} for non-members, of {members[0].size}",
        f"read at t = {found.t:g}; Welch's interval of the means",
    )
    name, unit = "flipd: dimensions that members lack", "dimensions"
    row = Row(name, value, value - reach, value + reach, subject.level, unit, HIGHER, len(both), notes)
    judged = membership("flipd", -one, -two, level=subject.level, seed=subject.seed)
    return [row, *_membership_rows(judged)]


def _one_run(subject: Subject) -> list[Row]:
    name, unit = "one_run: ε of training", "nats, a lower limit; 0 is no evidence"
    if subject.canaries is None or subject.included is None:
        return [_missing(name, unit, HIGHER, subject, "no canaries were planted")]
    count = len(subject.canaries)
    scores = attacks.loss(subject.score, subject.sde, subject.canaries, seed=subject.seed, chunk=subject.chunk)
    # Stated before anything is scored: an eighth, a quarter and a half at either end.
    guesses = [(max(1, count // part),) * 2 for part in (8, 4, 2)]
    confidence = 0.5 * (1.0 + subject.level)
    found = one_run.audit_scores(scores, subject.included, guesses, delta=subject.delta, confidence=confidence)
    notes = (
        f"{count} canaries, {int(subject.included.sum())} of them trained on; {found.correct} of {found.guesses} "
        "guesses by the loss are right",
        f"(ε, {subject.delta:g}) under adding or removing one record; with all guesses right it would be "
        f"{found.ceiling:.3g}",
        "a low limit proves nothing: a stronger attack may find more",
    )
    return [Row(name, found.lower, found.lower, None, subject.level, unit, HIGHER, count, notes)]


def _welch(one: np.ndarray, two: np.ndarray, level: float) -> tuple[float, float]:
    """Difference of two means and half its interval (Welch 1947); samples of unlike spread."""
    parts = [float(x.var(ddof=1)) / len(x) for x in (one, two)]
    total = sum(parts)
    if total == 0.0:
        return float(one.mean() - two.mean()), 0.0
    freedom = total**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (one, two), strict=True))
    quantile = float(special.stdtrit(freedom, 0.5 * (1.0 + level)))
    return float(one.mean() - two.mean()), quantile * math.sqrt(total)


BASELINES: dict[str, Callable[[Subject], list[Row]]] = {
    **{name: _attack(name) for name in attacks.ATTACKS},
    "authpct": _authpct,
    "copy_ratio": _copy_ratio,
    "extraction": _extraction,
    "frechet_gap": _frechet_gap,
    "flipd": _flipd,
    "one_run": _one_run,
}
"""By the name that a config gives. A new baseline is a function from a `Subject` to rows, and a line here."""

ASK_THE_SCORE = (*attacks.ATTACKS, "flipd", "one_run")
"""Those that evaluate the score at records and look at no sample: for a latent model their records are latents."""


def check_names(chosen: Sequence[str], field: str = "baselines") -> None:
    """Raises InputError unless every name is one of `BASELINES`, once."""
    for name in chosen:
        if name not in BASELINES:
            raise InputError(f"{field}: expected some of {', '.join(BASELINES)}, got {name!r}")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"{field}: expected each name once, got {', '.join(chosen)}")


def run(chosen: Sequence[str], subject: Subject) -> list[Row]:
    """Rows of the chosen baselines, in that order.

    Raises:
      InputError: an unknown name, sets that do not fit each other or are too small, a score that is not finite.
    """
    check_names(chosen)
    sizes = {"members": subject.members, "non_members": subject.non_members, "samples": subject.samples}
    for name, x in sizes.items():
        if len(x) < 8 or np.shape(x)[1:] != np.shape(subject.members)[1:]:
            raise InputError(
                f"baselines.{name}: expected at least 8 records of shape {np.shape(subject.members)[1:]}, "
                f"got {np.shape(x)}"
            )
    # One program for all of them, and none from before: an object's weights may be others by now.
    subject = dataclasses.replace(subject, score=lanes.fresh(subject.score))
    return [row for name in chosen for row in BASELINES[name](subject)]
