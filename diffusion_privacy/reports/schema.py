"""release.json, schema version 1.0: what an audit found, for machines; every picture and page is made from it.

The structure is the TypedDicts below, read by `validate` itself: a field documented here is a field checked there.

- Every field is required. ``null`` means "not defined" or "not computed", as the field's comment says. A field marked
  ``NotRequired`` is written too, and is missing only from files that are older than it.
- NaN and infinity are not JSON. A quantity that can be infinite (``log_value`` of a zero estimate is −inf,
  ``log_stderr`` of a single hit is inf) is null in that case; `finite` makes the change.
- q and h are probabilities per drawn image; larger means that the record comes back more often. Times t run from 0
  (data) to 1 (noise); a larger t' means that the record comes back from more noise. Logarithms are natural (nats).
- An interval is ``lower <= value <= upper`` at the two-sided confidence ``level``.
- Unknown fields are refused, except where a class says that it is open.
- Models have free names made of ``a-z 0-9 _``; the main job calls its two ``careless`` and ``careful``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import baselines, screening, structure
from diffusion_privacy.reports.baselines import Baseline
from diffusion_privacy.reports.estimates import (
    Count,
    Direct,
    Estimator,
    NonNegative,
    Positive,
    Probability,
    Rate,
    Subspace,
    estimate_rule,
    estimator_rule,
    ordered,
)
from diffusion_privacy.reports.estimates import direct_entry as direct_entry
from diffusion_privacy.reports.estimates import estimator_entry as estimator_entry
from diffusion_privacy.reports.estimates import finite as finite
from diffusion_privacy.reports.estimates import subspace_entry as subspace_entry
from diffusion_privacy.reports.screening import Screened, Screening

SCHEMA_VERSION = "1.0"
FILE_NAME = "release.json"

_MODEL_NAME = re.compile(r"[a-z0-9_]+")


class Program(TypedDict):
    name: str
    version: str


class Device(TypedDict):
    platform: str  # "cpu", "gpu", "tpu"
    kind: str
    count: Positive


class Data(TypedDict):
    """Open: a source may add its own facts."""

    source: str
    n: Positive  # records available to the run
    shape: list[Positive]  # H, W, C of one record


class Sampler(TypedDict):
    """Open: a sampler may add its own settings."""

    name: str
    steps: Positive


class Detector(TypedDict):
    """Open. Error rates of the whole detector (fingerprint AND identity), per image, with exact intervals."""

    false_positive_rate: Rate  # lower is better
    true_positive_rate: Rate  # higher is better; measured on regenerated positives
    thresholds: dict[str, float]


class TrainingCurve(TypedDict):
    """Summary of the training loss; lower is a closer fit, which is not the same as a safer model."""

    metric: str
    unit: str
    points: Count
    first: float | None
    last: float | None
    lowest: float | None


class Fingerprint(TypedDict):
    """Open: radius, centre and the like."""

    kind: str


class PaperTPrime(TypedDict):
    """Largest t with any hit; null when no draw at any level hit. Comes without a confidence statement."""

    value: Probability | None
    draws: Positive  # per level
    levels: Positive


class StatisticalTPrime(TypedDict):
    """Largest tested t at which the lower limit of h(t) exceeds gamma.

    ``censored`` "above": the true value may be larger, the largest level tested still passed (``value`` is that level);
    "below": no level passed, the true value may lie under the smallest level tested (``value`` is null or that level).
    """

    value: Probability | None
    censored: Literal["below", "above"] | None
    gamma: Probability
    level: Probability  # simultaneous over the comparisons
    comparisons: Count


class TPrime(TypedDict):
    paper: PaperTPrime
    statistical: StatisticalTPrime


class HCurve(TypedDict):
    """h(t) at increasing t: all lists have one entry a level; intervals hold at ``level`` for each t by itself."""

    t: list[Probability]
    draws: list[Positive]
    hits: list[Count]
    value: list[Probability]
    lower: list[Probability]
    upper: list[Probability]
    level: Probability


class Verdict(TypedDict):
    """``bound`` is the rate that the status speaks of, usually 1/n of the model. "leaks" is refused unless lower > 0,
    "no leak above bound" unless upper <= bound."""

    status: Literal["leaks", "no leak above bound", "not certified"]
    bound: Probability
    lower: Probability
    estimate: NonNegative | None
    upper: Probability
    level: Probability
    sentence: str
    assumes: list[str]
    samples_needed: Count | None  # direct samples that would decide; null: decided, or samples alone do not help
    # When so many would, null: decided. Where it is missing the number is that of samples without a hit.
    more_samples: NotRequired[
        Literal["certify without a hit", "certify if hits come as they did", "not expected to certify"] | None
    ]


class Record(TypedDict):
    role: Literal["private", "control"]
    index: Count  # position in the source
    label: int
    fingerprint: Fingerprint | None  # null: none planted
    t_prime: TPrime
    h_curve: HCurve
    direct: Direct
    subspace: Subspace | None  # null: not defined for the sampler as run
    estimators: list[Estimator]
    verdict: Verdict


class Model(TypedDict):
    n_train: Positive
    epochs: NonNegative
    steps: Count
    memoriser_rate: Probability  # 1 / n_train
    training_curve: TrainingCurve
    sampler: Sampler
    n_samples: Count
    expected_if_memorised: NonNegative  # hits among n_samples of a model that memorised all its records alike
    detector: Detector
    records: list[Record]
    baselines: list[Baseline]  # empty: none asked for
    screening: Screening | None  # null: not asked for


class Timing(TypedDict):
    compile_s: NonNegative | None  # null: not measured apart
    run_s: NonNegative


class Release(TypedDict):
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
    models: dict[str, Model]
    timings: dict[str, Timing]


OPEN: frozenset[type] = frozenset({Data, Sampler, Detector, Fingerprint})
"""Structures that take further JSON fields."""


def _verdict_rule(entry: Mapping[str, Any], path: str) -> None:
    ordered(entry, path, "estimate")
    if entry["status"] == "leaks" and not entry["lower"] > 0:
        raise InputError(f"{path}.status: expected lower > 0 for 'leaks', got lower = {entry['lower']!r}")
    if entry["status"] == "no leak above bound" and entry["upper"] > entry["bound"]:
        raise InputError(
            f"{path}.status: expected upper <= bound = {entry['bound']!r} for 'no leak above bound', "
            f"got upper = {entry['upper']!r}"
        )
    if "more_samples" not in entry:
        return
    more = entry["more_samples"]
    if (more is None) == (entry["status"] == "not certified"):
        raise InputError(f"{path}.more_samples: expected it for 'not certified' and null otherwise, got {more!r}")
    if (entry["samples_needed"] is None) == (more is not None and more.startswith("certify")):
        raise InputError(f"{path}.samples_needed: expected a number exactly where more_samples says that it would do")


def _curve_rule(entry: Mapping[str, Any], path: str) -> None:
    times = entry["t"]
    for name in ("draws", "hits", "value", "lower", "upper"):
        if len(entry[name]) != len(times):
            raise InputError(f"{path}.{name}: expected {len(times)} entries, as t has, got {len(entry[name])}")
    if any(b <= a for a, b in itertools.pairwise(times)):
        raise InputError(f"{path}.t: expected strictly increasing times")
    for i in range(len(times)):
        ordered({k: entry[k][i] for k in ("lower", "value", "upper")}, f"{path}[{i}]")
        if entry["hits"][i] > entry["draws"][i]:
            raise InputError(f"{path}.hits[{i}]: expected at most draws = {entry['draws'][i]}, got {entry['hits'][i]}")


def model_rule(entry: Mapping[str, Any], path: str) -> None:
    expected = {"memoriser_rate": 1 / entry["n_train"], "expected_if_memorised": entry["n_samples"] / entry["n_train"]}
    for name, number in expected.items():
        if not math.isclose(entry[name], number, rel_tol=1e-6):
            raise InputError(
                f"{path}.{name}: expected {number!r} for n_train = {entry['n_train']}, got {entry[name]!r}"
            )
    if not any(record["role"] == "private" for record in entry["records"]):
        raise InputError(f"{path}.records: expected at least one record with role 'private'")


def _release_rule(entry: Mapping[str, Any], path: str) -> None:
    if entry["schema_version"] != SCHEMA_VERSION:
        raise InputError(f"{path}.schema_version: expected {SCHEMA_VERSION!r}, got {entry['schema_version']!r}")
    if not entry["models"]:
        raise InputError(f"{path}.models: expected at least one model")
    for name in entry["models"]:
        # The name becomes part of a file name.
        if not _MODEL_NAME.fullmatch(name):
            raise InputError(f"{path}.models: expected names made of a-z, 0-9 and _, got {name!r}")


RULES: dict[type, Callable[[Mapping[str, Any], str], None]] = {
    Rate: ordered,
    Direct: estimate_rule,
    Subspace: estimate_rule,
    Estimator: estimator_rule,
    Baseline: baselines.rule,
    Screened: screening.screened_rule,
    Screening: screening.rule,
    Verdict: _verdict_rule,
    HCurve: _curve_rule,
    Model: model_rule,
    Release: _release_rule,
}
"""What must hold between the fields of one structure; called after each field has its type."""


def validate(release: object) -> None:
    """Raise `InputError` with the JSON path of the first fault; return None when ``release`` follows schema 1.0."""
    structure.check(release, Release, "release", OPEN, RULES)


def read(path: Path) -> Release:
    """The validated content of ``path``; `InputError` names the file and the JSON path of what is wrong."""
    return cast(Release, structure.read_json(path, validate))
