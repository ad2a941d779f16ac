"""release.json of a joined study: the ways to share private records, what each is good for, risks and promises.

Schema version joined-1.0. As in `schema`: every field is required, null means "not defined" or "not computed", an
interval is lower <= value <= upper at the two-sided ``level``, probabilities are in [0, 1], ε is in nats.

Directions: larger accuracy, precision and recall are more useful, a smaller Fréchet distance is closer to real records;
larger q, t', linkage and attack rates mean less privacy; a smaller ε and a smaller certified bound promise more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import structure
from diffusion_privacy.reports.cadp_schema import Accuracy, Interval, Linkage, LinkRate, Number
from diffusion_privacy.reports.estimates import interval_rule
from diffusion_privacy.reports.schema import (
    FILE_NAME,
    OPEN,
    RULES,
    Count,
    Data,
    Detector,
    Device,
    Direct,
    Fingerprint,
    HCurve,
    NonNegative,
    Positive,
    Probability,
    Program,
    Subspace,
    TPrime,
    Verdict,
)

__all__ = ["FILE_NAME", "SCHEMA_VERSION", "WAYS", "read", "validate"]

SCHEMA_VERSION = "joined-1.0"
WAYS = ("raw_model", "dp_model", "copy_model", "copy")
"""The four ways to share: a score model trained on the records as they are, one trained on them with DP-SGD, one
trained on the private copy, and the private copy itself."""


class Facts(Data):
    """Open. Sizes of the sets; no person is in two of them."""

    classes: Positive
    private: Positive  # records to be shared in some way, the marked ones among them
    public: Positive  # what the flow learns from; given up as public
    test: Positive  # real records that nobody learns from: utility is scored on them, attacks call them non-members
    marked: Positive  # private records with a planted fingerprint
    controls: Positive  # held-out records with a planted fingerprint


class Utility(TypedDict):
    """What the shared thing is good for, judged by somebody who has nothing else.

    Classifiers are trained on it and tested on real records. Fréchet distance, precision (are shared images plausible?)
    and recall (coverage: is every kind of real image there?) compare it with the test records, in features of a
    classifier trained on the public records: not comparable with Inception features.
    """

    n_train: Positive  # images that the classifiers and the distances see
    accuracy: Accuracy
    frechet: Number  # squared feature units, smaller is closer; interval over bootstrap resamples
    precision: Interval
    recall: Interval


class Yardstick(TypedDict):
    """Utility of a set that is not on offer, to compare with."""

    name: str
    what: str
    utility: Utility


class RecordRisk(TypedDict):
    """One marked record: how often an image of the shared thing shows it.

    For a model: one drawn image. For the private copy: one image of it picked at random; the copy is ONE draw of its
    mechanism, and ``direct`` counts over images of simulated copies that were never released: it speaks of the
    mechanism.
    """

    role: Literal["private", "control"]
    index: Count
    label: int
    fingerprint: Fingerprint | None
    verdict: Verdict  # its lower, estimate and upper are q's
    direct: Direct
    subspace: Subspace | None  # null: not defined, as for a data set
    t_prime: TPrime | None  # null: not defined, as for a data set
    h_curve: HCurve | None
    in_copy: Count | None  # images of the released copy itself that show it; null for a model


class AttackPoint(TypedDict):
    """True-positive rate of a membership attack at one false-positive rate."""

    false_positive_rate: Probability  # asked for
    value: Probability | None  # null: too few non-members, see reason
    lower: Probability | None
    upper: Probability | None
    level: Probability
    reason: str


class Attack(TypedDict):
    """A membership attack: can the private records be told from others by the shared thing? One half is chance."""

    name: str
    what: str  # in words
    members: Positive
    non_members: Positive
    left_out: NotRequired[Count]  # test records that equal a private one: no strangers, and not among the non-members
    auc: Interval
    points: list[AttackPoint]


class Risk(TypedDict):
    records: list[RecordRisk]  # private ones first
    linkage: Linkage | None  # of the private copy's images to their originals; null: images have no originals
    attack: Attack


class Certified(TypedDict):
    """E6: an upper bound of q handed down by the guarantee, q <= e^ε q_without + δ (`anonymity.inherited`).

    A probability over training, mechanism noise AND sampling, given the flow where ``assumes`` says so: of what this
    way of sharing produces on average, not of the one thing that was produced. ``without`` is the rate with the record
    replaced, over ``models`` independent trainings (for the copy: independent copies).
    """

    index: Count  # the record that was replaced
    value: Probability  # the bound at the measured rate
    upper: Probability  # the bound at the upper limit of the rate: what is certified
    level: Probability  # two-sided, as of every estimate
    without: Number  # rate with the record replaced; lower is 0: nothing is claimed from below
    models: Count  # 0: none was made, since even without a hit the bound would say nothing
    images: Count
    models_needed: Count | None  # without a hit, to certify 1/n; null: δ alone exceeds it
    reliable: bool  # false: the bound says nothing
    assumes: list[str]
    reasons: list[str]


class Guarantee(TypedDict):
    """What may be promised if this is shared and NOTHING else that touched the records is.

    ``epsilon`` is null where nothing is promised; then ``why`` says why.
    """

    epsilon: NonNegative | None
    delta: Probability
    relation: str
    mechanism: str
    public: list[str]  # taken to be public knowledge
    stages: list[str]  # entries of the ledger that this way rests on
    why: str
    sentence: str
    certified: list[Certified]  # one for each private record, or empty where there is no guarantee


class Way(TypedDict):
    """One way to share."""

    title: str
    kind: Literal["model", "data set"]
    what: str  # in one sentence
    n_train: Positive  # private records that went into it
    folder: str  # below the workdir: what would be given away
    utility: Utility
    risk: Risk
    guarantee: Guarantee


class LedgerEntry(TypedDict):
    stage: str
    event: dict[str, Any] | None  # null: the stage has none, the total is "no guarantee"
    records: Count | None  # null: all of them


class Ledger(TypedDict):
    """Everything that touched the private records in this run, shared or not."""

    entries: list[LedgerEntry]
    guarantee: bool
    sentence: str
    uncovered: list[str]  # stages without an event
    not_recorded: list[str]  # what touched the records and is in no ledger: empty, or the program is wrong
    stated_total: dict[str, float]


class JoinedRelease(TypedDict):
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
    data: Facts
    level: Probability
    detector: Detector
    ways_to_share: dict[str, Way]  # keys: `WAYS`
    yardsticks: list[Yardstick]
    ledger: Ledger
    uncertified: list[str]  # what could not be certified, with the number of samples or models that would do
    timings: dict[str, dict[str, NonNegative]]


def _point_rule(entry: Mapping[str, Any], path: str) -> None:
    if entry["value"] is None:
        if not entry["reason"]:
            raise InputError(f"{path}.reason: expected a reason where there is no value")
        return
    interval_rule(entry, path)


def _certified_rule(entry: Mapping[str, Any], path: str) -> None:
    if entry["value"] > entry["upper"] + 1e-9:
        raise InputError(f"{path}.value: expected at most upper = {entry['upper']!r}, got {entry['value']!r}")
    if entry["reliable"] and entry["upper"] >= 1:
        raise InputError(f"{path}.reliable: expected false where the bound is 1")


def _guarantee_rule(entry: Mapping[str, Any], path: str) -> None:
    promised = entry["epsilon"] is not None
    if promised and not entry["stages"]:
        raise InputError(f"{path}.stages: expected the ledger's entries behind a finite epsilon, got none")
    if not promised and (entry["certified"] or not entry["why"]):
        raise InputError(f"{path}: without epsilon, expected the reason in why and nothing certified")


def _ledger_rule(entry: Mapping[str, Any], path: str) -> None:
    # Under-reporting is the fault that this file must never show.
    hidden = [e["stage"] for e in entry["entries"] if e["event"] is None and e["stage"] not in entry["uncovered"]]
    if hidden:
        raise InputError(f"{path}.uncovered: expected {hidden[0]!r} among them, its entry has no event")
    if entry["guarantee"] and (entry["uncovered"] or entry["not_recorded"]):
        raise InputError(f"{path}.guarantee: expected false, some stages have no event or no entry")


def _release_rule(entry: Mapping[str, Any], path: str) -> None:
    if entry["schema_version"] != SCHEMA_VERSION:
        raise InputError(f"{path}.schema_version: expected {SCHEMA_VERSION!r}, got {entry['schema_version']!r}")
    if set(entry["ways_to_share"]) != set(WAYS):
        raise InputError(f"{path}.ways_to_share: expected {', '.join(WAYS)}, got {', '.join(entry['ways_to_share'])}")
    for name, way in entry["ways_to_share"].items():
        _rests_on(way["guarantee"], entry["ledger"], f"{path}.ways_to_share.{name}.guarantee")


def _rests_on(guarantee: Mapping[str, Any], ledger: Mapping[str, Any], path: str) -> None:
    """A promise is worth what the ledger knows of its stages."""
    known = {one["stage"] for one in ledger["entries"]}
    for stage in guarantee["stages"]:
        if stage not in known:
            raise InputError(f"{path}.stages: the ledger has no entry {stage!r}")
        if guarantee["epsilon"] is not None and stage in ledger["uncovered"]:
            raise InputError(f"{path}.epsilon: expected null, the stage {stage!r} that it rests on has no event")


def _way_rule(entry: Mapping[str, Any], path: str) -> None:
    marked = [record["index"] for record in entry["risk"]["records"] if record["role"] == "private"]
    if not marked:
        raise InputError(f"{path}.risk.records: expected at least one record with role 'private'")
    for one in entry["guarantee"]["certified"]:
        if one["index"] not in marked:
            raise InputError(f"{path}.guarantee.certified: expected a private record of this way, got {one['index']}")


_OPEN: frozenset[type] = OPEN | {Facts}
_RULES: dict[type, Callable[[Mapping[str, Any], str], None]] = {
    **RULES,
    Accuracy: interval_rule,
    Interval: interval_rule,
    LinkRate: interval_rule,
    Number: interval_rule,
    Way: _way_rule,
    AttackPoint: _point_rule,
    Certified: _certified_rule,
    Guarantee: _guarantee_rule,
    Ledger: _ledger_rule,
    JoinedRelease: _release_rule,
}


def validate(release: object) -> None:
    """Raise `InputError` with the JSON path of the first fault; None when ``release`` follows joined-1.0."""
    structure.check(release, JoinedRelease, "release", _OPEN, _RULES)


def read(path: Path) -> JoinedRelease:
    """The validated content of ``path``; `InputError` names the file and what is wrong."""
    return cast(JoinedRelease, structure.read_json(path, validate))
