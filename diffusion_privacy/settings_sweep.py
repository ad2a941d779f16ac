"""Settings of a sweep: the anonymity study of one record over training-set sizes and network sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusion_privacy import settings
from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Data, Named, Report, Score, Study


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is varied. Every size is combined with every value.

    Attributes:
      sizes: numbers of training records n, increasing; smaller sets are parts of larger ones, and all hold the private
        record.
      samples: images drawn from each model, N.
      field: a field of the score network that is varied too, e.g. ``"hidden"``; empty for none.
      values: its values; empty for none.
      reduce: images are averaged over squares of this many pixels a side before anything else; 1 leaves them alone.
    """

    sizes: tuple[int, ...]
    samples: int = 5000
    field: str = ""
    values: tuple[int, ...] = ()
    reduce: int = 1

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 2 or sorted(set(self.sizes)) != list(self.sizes):
            raise InputError(f"config.sweep.sizes: expected increasing numbers from 2, got {list(self.sizes)}")
        if self.samples < 1 or self.reduce < 1:
            raise InputError(
                f"config.sweep: expected samples >= 1 and reduce >= 1, got {self.samples} and {self.reduce}"
            )
        if bool(self.field) != bool(self.values) or len(set(self.values)) != len(self.values):
            raise InputError(
                f"config.sweep.values: expected different values for a field, or neither, "
                f"got {list(self.values)} for {self.field!r}"
            )


@dataclasses.dataclass(frozen=True)
class Point:
    """One model of the sweep: its name in the workdir, n, and the varied field's value."""

    name: str
    size: int
    value: int | None


@dataclasses.dataclass(frozen=True)
class SizeSweep:
    """A sweep and the study that is repeated at each of its points.

    Attributes:
      study: as of one model; its two sample counts are the sweep's.
      sweep: what is varied.
    """

    study: Study
    sweep: Sweep

    @property
    def score(self) -> Score:
        """The score model before anything is varied."""
        return self.study.score

    @property
    def report(self) -> Report:
        """What may be shown."""
        return self.study.report

    @property
    def data(self) -> Data:
        """Where the records come from."""
        return self.study.data

    def points(self) -> list[Point]:
        """All models, smallest n first."""
        values: tuple[int | None, ...] = self.sweep.values or (None,)
        return [
            Point(f"n{size}" if value is None else f"n{size}_{self.sweep.field}{value}", size, value)
            for size in self.sweep.sizes
            for value in values
        ]

    def at(self, point: Point) -> Study:
        """The study with the point's network."""
        if point.value is None:
            return self.study
        network = self.study.score.network
        varied = Named(network.name, {**network.params, self.sweep.field: point.value})
        return dataclasses.replace(self.study, score=dataclasses.replace(self.study.score, network=varied))


def parse(config: Mapping[str, Any]) -> SizeSweep:
    """A sweep from a config: the fields of a `settings.Study` and ``sweep``.

    Raises:
      InputError: as `settings.parse`; ``audit.samples`` beside ``sweep.samples``; what takes further models.
    """
    fields = {name: value for name, value in config.items() if name not in ("kind", "sweep")}
    if "sweep" not in config:
        raise InputError("config.sweep: expected a group of fields, the config gives none")
    sweep = settings.parse(Sweep, config["sweep"], "config.sweep")
    audit = fields.get("audit")
    if isinstance(audit, Mapping):
        if "samples" in audit:
            raise InputError("config.audit.samples: expected none in a sweep, sweep.samples says how many")
        counts = {"careless": sweep.samples, "careful": sweep.samples}
        fields["audit"] = {**audit, "samples": counts}
    study = settings.parse(Study, fields)
    if "counterfactual" in study.audit.estimators:
        raise InputError("config.audit.estimators: expected no 'counterfactual', a sweep trains no twins of its models")
    if study.split.canaries:
        raise InputError("config.split.canaries: expected 0, the sets of a sweep have fixed sizes")
    return SizeSweep(study, sweep)
