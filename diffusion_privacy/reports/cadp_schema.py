"""release.json of a CADP study: what was released, what it is good for, what attacks found.

Schema version cadp-1.0 for images, cadp-table-1.0 for tables, which differ in how usefulness is measured.

As in `schema`: every field is required (`NotRequired`: missing from older files only), null means "not defined", an
interval is lower <= value <= upper at ``level``, probabilities are in [0, 1], ε is in nats. Larger accuracy is more
useful; larger linkage, membership and measured ε mean less privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import structure
from diffusion_privacy.reports.estimates import interval_rule
from diffusion_privacy.reports.schema import FILE_NAME, Count, Data, Device, NonNegative, Positive, Probability, Program

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "TABLE_VERSION", "read", "validate"]

SCHEMA_VERSION = "cadp-1.0"
TABLE_VERSION = "cadp-table-1.0"


class Interval(TypedDict):
    value: Probability
    lower: Probability
    upper: Probability
    level: Probability


class Accuracy(TypedDict):
    """Share of right answers: mean over seeds with a Student t interval, and the seeds."""

    value: Probability
    lower: Probability
    upper: Probability
    level: Probability
    seeds: list[Probability]


class Likeness(TypedDict):
    """Of each image to the original in its place (psnr_db, ssim; larger is closer), and of the set to the originals.

    psnr_db is the mean over images that differ from their original; it is infinite for the others, which equal counts.
    frechet is in squared feature units (smaller is closer); precision and recall are shares (larger is closer), all in
    features of a classifier trained on the originals: not comparable with Inception features.
    """

    psnr_db: float | None  # null: every image equals its original
    equal: NotRequired[Count]
    ssim: float
    frechet: NonNegative
    precision: Probability
    recall: Probability


class Arm(TypedDict):
    """Classifiers trained on one set and tested on real images, and on test images privatised alike (p/p)."""

    name: str
    kind: Literal["original", "public", "released", "control", "pixels", "dp-sgd"]
    epsilon: NonNegative | None  # of the whole set; null where none is claimed
    n_train: Positive
    accuracy: Accuracy
    accuracy_private_test: Accuracy | None
    likeness: Likeness | None


class Number(TypedDict):
    """A measured number that is no probability."""

    value: float
    lower: float
    upper: float
    level: Probability


class Score(TypedDict):
    """Of a model on real test rows: accuracy or R² (`TableFacts.measure`); interval over the choice of test rows."""

    value: float
    lower: float
    upper: float
    level: Probability
    seeds: list[float]  # one a drawn table, or a training


class TableDistance(TypedDict):
    """Of a table to the private rows, see `audits.table_utility.Distance`; smaller is closer."""

    one_way: Number
    two_way: Number | None
    correlation: Number | None


class TableArm(TypedDict):
    """A model trained on one table and tested on real rows."""

    name: str
    kind: Literal["original", "public", "released", "control", "dp-sgd"]
    epsilon: NonNegative | None  # of the whole table, or of the model; null where none is claimed
    n_train: Positive
    score: Score
    distance: TableDistance | None  # null for the private rows themselves and for models of them


class TableFacts(TypedDict):
    """What usefulness of a table means here."""

    target: str
    measure: Literal["accuracy", "r2"]
    baseline: float  # what a constant scores
    cells: Positive  # of a number's range, in marginals
    outside_range: Count  # private rows with a number beyond its public range, moved to its end
    dropped: Count  # rows of the source left out for missing values, on request


class LinkRate(TypedDict):
    """Share of released images whose original is among the first k candidates; exact interval."""

    value: Probability
    lower: Probability
    upper: Probability
    level: Probability
    hits: Count
    n: Positive
    chance: Probability
    p_value: Probability  # of at least so many hits by guessing


class Linkage(TypedDict):
    name: str
    kind: Literal["released", "study", "control", "no noise"]  # only "released" sets are published
    epsilon: NonNegative | None
    similarity: float  # mean cosine between a released image's latent and its original's
    rank1: LinkRate
    rank10: LinkRate


class Bound(TypedDict):
    """Lower confidence bound on ε of the latent step, measured on the worst-case pair."""

    claimed: NonNegative
    lower: NonNegative
    ceiling: float  # the largest bound that so many trials can give
    confidence: Probability
    trials: Positive
    holds: bool  # lower <= claimed
    decisive: bool  # ceiling > claimed: a false claim could have been refuted
    # What the attack drew. Noise of exact integers is stood in for by the continuous law of its scale, which the attack
    # on older files drew as well: faults of the integer sampler and of rounding to the grid do not show.
    attacked: NotRequired[Literal["gaussian", "laplace"]]


class Faults(TypedDict):
    """What a search for faults between records of a release found: sentence by kind of fault; empty for none."""

    epsilon: NonNegative
    passed: bool
    faults: dict[str, str]


class FlowFacts(TypedDict):
    """The flow: fit (lower is closer), membership AUC (one half is chance), largest error of inverting itself.

    What a share gets together (a person's records, equal rows of a table) is one draw to the intervals of membership;
    in older files each record was.
    """

    bits_per_dim: dict[str, float]
    grey_levels: Positive | None  # null for tables: bits are per number, each in units of its standard deviation
    membership: Interval
    members: Positive
    others: Positive
    left_out: NotRequired[Count]  # test images that equal a member: no strangers, and not among the others
    # Rows among the others that the flow cannot tell from a member, and membership without them, which overstates it as
    # the other overstates privacy; null where there are none, or fewer than two others.
    same: NotRequired[Count]
    membership_without_same: NotRequired[Interval | None]
    inversion_error: NonNegative  # of latents as the decoder gets them
    record_error: NonNegative  # of records as the flow takes them


class ReleasedSet(TypedDict):
    folder: str  # below the workdir
    latent_epsilon: NonNegative
    manifest: dict[str, Any]  # as published, see `mechanisms.manifest.Manifest`


class AnyRelease(TypedDict):
    """What a study states whatever its records are."""

    schema_version: str
    program: Program
    versions: dict[str, str]
    device: Device
    seed: Count
    config: dict[str, Any]
    config_hash: str
    question: str
    answer: str
    limits: list[str]
    data: Data
    releases: list[ReleasedSet]
    ledger: dict[str, Any]
    n_test: Positive
    by_class: bool  # the attacker knows the class and looks among candidates of that class
    linkage: list[Linkage]
    epsilon_bounds: list[Bound]
    release_faults: Faults | None
    flow: FlowFacts
    timings: dict[str, dict[str, NonNegative]]


class CadpRelease(AnyRelease):
    """Schema cadp-1.0."""

    arms: list[Arm]


class TableRelease(AnyRelease):
    """Schema cadp-table-1.0."""

    arms: list[TableArm]
    table: TableFacts


SCHEMAS: dict[str, type] = {SCHEMA_VERSION: CadpRelease, TABLE_VERSION: TableRelease}


def attacked(mechanism: str) -> str:
    """What is drawn to attack a mechanism: itself, or the continuous law that a discrete one has on its grid."""
    return mechanism.removeprefix("discrete_")


def _release_rule(entry: Mapping[str, Any], path: str) -> None:
    if not entry["releases"]:
        raise InputError(f"{path}.releases: expected at least one released data set")
    laws = {attacked(str(one["manifest"].get("mechanism"))) for one in entry["releases"]}
    for i, bound in enumerate(entry["epsilon_bounds"]):
        if "attacked" in bound and bound["attacked"] not in laws:
            raise InputError(
                f"{path}.epsilon_bounds[{i}].attacked: expected {' or '.join(sorted(laws))}, as the releases have it, "
                f"got {bound['attacked']!r}"
            )
    kinds = [arm["kind"] for arm in entry["arms"]]
    for kind in ("original", "released", "control"):
        if kind not in kinds:
            raise InputError(f"{path}.arms: expected an arm of kind {kind!r}")


OPEN = frozenset({Data})
RULES: dict[type, Callable[[Mapping[str, Any], str], None]] = {
    Interval: interval_rule,
    Accuracy: interval_rule,
    LinkRate: interval_rule,
    Number: interval_rule,
    Score: interval_rule,
    CadpRelease: _release_rule,
    TableRelease: _release_rule,
}


def validate(release: object) -> None:
    """Raise `InputError` with the JSON path of the first fault; None when ``release`` follows the schema it names."""
    version = release.get("schema_version") if isinstance(release, Mapping) else None
    if version not in SCHEMAS:
        raise InputError(f"release.schema_version: expected one of {', '.join(SCHEMAS)}, got {version!r}")
    structure.check(release, SCHEMAS[version], "release", OPEN, RULES)


def read(path: Path) -> Mapping[str, Any]:
    """The validated content of ``path``; `InputError` names the file and what is wrong."""
    return cast(Mapping[str, Any], structure.read_json(path, validate))
