"""release.json of the audit of a given model, schema version own-1.0: as `schema`, but for the detector and the twins.

There is no fingerprint, no training and no control record with a verdict: a ball around each record is the detector,
and held-out records are what its count of draws is ranked among.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import schema, structure
from diffusion_privacy.reports.estimates import (
    Count,
    Direct,
    Estimator,
    NonNegative,
    Positive,
    Probability,
    Rate,
    Subspace,
)
from diffusion_privacy.reports.schema import Data, Device, HCurve, Program, Sampler, Timing, TPrime, Verdict

SCHEMA_VERSION = "own-1.0"
MODEL = "model"
"""What the one model is called in ``models``."""


class Ball(TypedDict):
    """The detector of one record; distances in the units of the config's distance, images scaled to [-1, 1]."""

    radius: NonNegative
    nearest_held_out: NonNegative
    nearest_drawn: NonNegative
    false_positive_rate: Rate  # of a fresh real record of the held-out kind; lower is better
    copies_inside: Rate  # share of perturbed copies that the ball holds; higher is better
    reasons: list[str]  # why not to trust it


class Controls(TypedDict):
    """Draws inside the balls of held-out records, by the same rule; the p-value is of the private record's rank."""

    hits: list[Count]
    p_value: Probability


class OwnRecord(TypedDict):
    role: Literal["private"]
    index: Count  # position in the source
    label: int
    detector: Ball
    t_prime: TPrime
    h_curve: HCurve
    direct: Direct
    subspace: Subspace
    estimators: list[Estimator]
    controls: Controls
    verdict: Verdict


class Given(TypedDict):
    """The model as it was given and sampled."""

    kind: str
    path: str
    n_train: Positive
    memoriser_rate: Probability  # 1 / n_train
    n_samples: Count
    expected_if_memorised: NonNegative
    sampler: Sampler
    held_out: Positive  # records that the model never saw
    plausibility: dict[str, Any] | None  # whether score and schedule fit; null: not looked at
    notes: list[str]
    records: list[OwnRecord]


class OwnRelease(TypedDict):
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
    models: dict[str, Given]
    timings: dict[str, Timing]


def _record_rule(entry: Mapping[str, Any], path: str) -> None:
    if entry["verdict"]["status"] == "leaks" and entry["controls"]["p_value"] > 1 - entry["verdict"]["level"] + 1e-9:
        raise InputError(f"{path}.verdict.status: expected a rank test at the verdict's level for 'leaks'")


def _release_rule(entry: Mapping[str, Any], path: str) -> None:
    if entry["schema_version"] != SCHEMA_VERSION:
        raise InputError(f"{path}.schema_version: expected {SCHEMA_VERSION!r}, got {entry['schema_version']!r}")
    if list(entry["models"]) != [MODEL]:
        raise InputError(f"{path}.models: expected one, {MODEL!r}, got {list(entry['models'])}")


RULES: dict[type, Callable[[Mapping[str, Any], str], None]] = {
    **schema.RULES,
    OwnRecord: _record_rule,
    Given: schema.model_rule,
    OwnRelease: _release_rule,
}
"""As `schema.RULES`."""


def validate(release: object) -> None:
    """Raise `InputError` with the JSON path of the first fault; return None when ``release`` follows own-1.0."""
    structure.check(release, OwnRelease, "release", schema.OPEN, RULES)


def read(path: Path) -> OwnRelease:
    """The validated content of ``path``; `InputError` names the file and the JSON path of what is wrong."""
    return cast(OwnRelease, structure.read_json(path, validate))
