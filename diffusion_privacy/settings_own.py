"""Settings of the audit of a model that was trained elsewhere (``kind = "own_model"``)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from diffusion_privacy.audits.own_model import Plan
from diffusion_privacy.errors import InputError
from diffusion_privacy.settings import Data, Params, Report


@dataclasses.dataclass(frozen=True)
class Model:
    """The model under audit.

    Attributes:
      kind: ``"diffusers"``: ``path`` is a checkpoint directory, see `interop.diffusers.load`. ``"python"``: ``path`` is
        ``module:function`` or ``file.py:function``, a function of ``params`` that returns a
        `diffusion.given_model.GivenModel`.
      path: as ``kind`` says.
      n_train: number of records that it was trained on, 2 or more.
      steps: network calls of one sample (``"diffusers"``; a Python function brings its sampler along).
      label: class to audit, of a class-conditional checkpoint.
      params: arguments of the Python function.
    """

    kind: Literal["diffusers", "python"]
    path: str
    n_train: int
    steps: int = 100
    label: int | None = None
    params: Params = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Records:
    """Which records are in question, and which the model certainly never saw.

    Attributes:
      private: their numbers in ``data``.
      held_out: where the others come from; None for ``data`` itself.
      start, stop: numbers of the held-out records in their source: start, start + 1, … stop − 1; stop = 0 is its end,
        and a number behind its end is refused.
    """

    private: tuple[int, ...]
    held_out: Data | None = None
    start: int = 0
    stop: int = 0


@dataclasses.dataclass(frozen=True)
class Ball:
    """The detector, see `audits.nearness`.

    Attributes:
      distance: ``"l2"`` or ``"max"``.
      copy: how far a copy may differ from the record, fields of `anonymity.detector_tasks.Perturbation`.
    """

    distance: str = "l2"
    copy: Params = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnModel:
    """Everything that decides the numbers of such an audit."""

    seed: int
    data: Data
    model: Model
    records: Records
    detector: Ball = dataclasses.field(default_factory=Ball)
    audit: Plan = dataclasses.field(default_factory=Plan)
    report: Report = dataclasses.field(default_factory=Report)
    kind: str = "own_model"

    def __post_init__(self) -> None:
        records = self.records
        for field, valid, expected, got in (
            ("seed", 0 <= self.seed < 2**32, "0 <= seed < 2**32", self.seed),
            ("model.path", bool(self.model.path), "a path", self.model.path),
            ("records.private", len(records.private) >= 1, "at least one record number", records.private),
            ("records.start", records.start >= 0, "0 or more", records.start),
            ("records.stop", records.stop == 0 or records.stop > records.start, "0 or above start", records.stop),
        ):
            if not valid:
                raise InputError(f"config.{field}: expected {expected}, got {got!r}")
