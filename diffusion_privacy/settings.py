"""A run's settings as frozen dataclasses: what a config file may say, with its meaning and its limits.

`parse` builds them from a config's nested dictionary and refuses what it does not know, so that a typing error stops
the run before it starts instead of being ignored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from diffusion_privacy.anonymity.conformal import conformal_count
from diffusion_privacy.anonymity.splitting import Splitting
from diffusion_privacy.audits import baselines
from diffusion_privacy.errors import InputError, within
from diffusion_privacy.settings_latent import Autoencoder, check_study
from diffusion_privacy.training.state import TrainConfig

ESTIMATORS = ("change_of_variables", "splitting", "counterfactual")
"""What `Audit.estimators` may name."""

Params = dict[str, Any]
"""Fields of a constructor chosen by name; they are checked by that constructor."""


def _check(group: str, values: object, *rules: tuple[str, bool, str]) -> None:
    """Raises InputError for the first broken one of ``rules``: field, whether its value is right, what was expected."""
    for field, valid, expected in rules:
        if not valid:
            raise InputError(f"config.{group}.{field}: expected {expected}, got {vars(values)[field]!r}")


@dataclasses.dataclass(frozen=True)
class Named:
    """A choice from a dictionary of constructors: its name and its fields."""

    name: str
    params: Params = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the records come from.

    Attributes:
      source: a name of `data.sources.SOURCES`, for a table of `data.table_sources.TABLES`.
      params: its parameters; the paths of files among them.
      obtain: where the data are to be had, under which licence, and how they must lie; said when they are missing.
    """

    source: str
    params: Params = dataclasses.field(default_factory=dict)
    obtain: str = ""


@dataclasses.dataclass(frozen=True)
class Split:
    """Who is in which set. Drawn by the seed, written to the workdir, never two records of a person in two sets.

    Attributes:
      private: number of the private record in the source; None draws one.
      careless: records that the careless model is trained on, the private one included.
      controls: held-out records that are audited like the private one.
      held_out: further held-out records, for likelihood and detectors.
      canaries: further records, each of another person, of which a fair coin each puts about half into every model's
        training set, for the baseline ``"one_run"``; 0 for none, else 8 or more.
    """

    private: int | None = None
    careless: int = 64
    controls: int = 3
    held_out: int = 97
    canaries: int = 0


@dataclasses.dataclass(frozen=True)
class Score:
    """The score model: network, forward process, what is predicted and how it is trained.

    ``autoencoder``: diffuse in its latents; None for pixels.
    """

    network: Named
    sde: Named
    training: TrainConfig
    prediction: str = "eps"
    weighting: str = "simple"
    autoencoder: Autoencoder | None = None


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The sampler that is audited, see `diffusion.chain.Chain`."""

    steps: int = 50
    kernel: str = "ancestral"
    spacing: str = "uniform"
    clip_x0: bool = True


@dataclasses.dataclass(frozen=True)
class Detector:
    """The classifier pair and its calibration.

    Attributes:
      network: fields of `networks.classifier.Classifier` but ``num_outputs``; an embedding has them too.
      training: of both classifiers.
      false_positive_rate: requested of the pair, in (0, 1); needs 1/rate − 1 negatives.
      negatives: images drawn from a reference model that never saw the private record.
      positives: regenerations of the record that measure the true-positive rate, 8 or more; half of them calibrate.
      positive_time: noise level in (0, 1) from which positives are regenerated; small.
      most_fingerprints: largest number of fingerprints on an image of C_id's training, of both classes.
      perturbation: see `anonymity.detector_tasks.Perturbation`.
      identity: how a record is recognised: ``"classifier"``, one output a record (`anonymity.bank`), or
        ``"embedding"``, the cosine with its embedding (`anonymity.reidentification`), which is trained on the careful
        model's records without knowing who is audited; controls are not among them.
    """

    training: TrainConfig
    network: Params = dataclasses.field(default_factory=dict)
    false_positive_rate: float = 1e-4
    negatives: int = 10_000
    positives: int = 512
    positive_time: float = 0.1
    most_fingerprints: int = 4
    perturbation: Params = dataclasses.field(default_factory=dict)
    identity: typing.Literal["classifier", "embedding"] = "classifier"

    def __post_init__(self) -> None:
        _check(
            "detector",
            self,
            ("false_positive_rate", 0 < self.false_positive_rate < 1, "a number in (0, 1)"),
            ("negatives", self.negatives >= 1, "1 or more"),
            ("positives", self.positives >= 8, "8 or more"),
            ("positive_time", 0 < self.positive_time < 1, "a number in (0, 1)"),
            ("most_fingerprints", self.most_fingerprints >= 0, "0 or more"),
        )
        try:
            conformal_count(self.negatives, self.false_positive_rate)
        except InputError as error:
            # The calibration would say so after everything was trained, in a workdir bound to this number.
            raise InputError(f"config.detector.{error}") from None


FEWEST_HELD_OUT = 19
"""Held-out records without which no training record can be told to be unusual at 95 %."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """Which of all training records are looked at (`anonymity.screening`), and how closely.

    Attributes:
      top: records at the head of the ranking that get a t' and enter successive halving; 0 for no screening.
      finalists: how many of them get an interval for q.
      levels, draws: noise levels of the ranking and noised images a record at each, 2 or more.
      gamma_upper: γ' of the bracket of t' (`anonymity.adaptive.Rule`); its γ is the audit's.
    """

    top: int = 0
    finalists: int = 8
    levels: int = 10
    draws: int = 4
    gamma_upper: float = 0.5

    def __post_init__(self) -> None:
        _check(
            "audit.screen",
            self,
            ("top", self.top >= 0, "0 or more"),
            ("finalists", self.finalists >= 1, "1 or more"),
            ("levels", self.levels >= 1, "1 or more"),
            ("draws", self.draws >= 2, "2 or more"),
            ("gamma_upper", 0 < self.gamma_upper < 1, "a number in (0, 1)"),
        )


@dataclasses.dataclass(frozen=True)
class Audit:
    """What is measured, and at what cost.

    Attributes:
      samples: images drawn from each model for E1, by the model's name.
      h_levels: number of noise levels of the h(t) curve, evenly spread over the sampler's steps.
      h_draws: draws a level, at least 16 (paper mode reads the first 16).
      gamma: γ of the statistical t'; at least the detector's false-positive limit is taken.
      subspace_draws, subspace_max_draws: paths a round and at most, for E2.
      level: confidence level of every verdict.
      chunk: lanes a device handles at a time; 0 chooses by ``memory_gb``.
      memory_gb: memory for one device's temporaries.
      likelihood_records: records of each set whose likelihood is computed; 0 for none.
      estimators: further estimators to run beside E1, E2 and E4, of `ESTIMATORS`; each multiplies the audit's cost.
      flow_draws: draws a record of ``"change_of_variables"``.
      deterministic: the sampler whose rate ``"change_of_variables"`` estimates, on the study's grid of times: the
        probability flow, its divergence by Hutchinson's probes (images of any size) or exact (up to
        `transport.MAX_DIM` values), or DDIM's own steps with η = 0, exact (the same limit).
      splitting: cost of ``"splitting"``, see `anonymity.splitting.Splitting`.
      pairs: pairs of images of ``"counterfactual"``, 100 or more; the careless model's twin without the private
        person's records is trained for it (the careful model's is the reference).
      baselines: what else to run over each model, of `audits.baselines.BASELINES`.
      screen: which training records to look at beside the private one, see `Screen`.
    """

    samples: dict[str, int]
    h_levels: int = 50
    h_draws: int = 32
    gamma: float = 0.05
    subspace_draws: int = 1024
    subspace_max_draws: int = 8192
    level: float = 0.95
    chunk: int = 0
    memory_gb: float = 2.0
    likelihood_records: int = 64
    estimators: tuple[str, ...] = ()
    flow_draws: int = 512
    deterministic: typing.Literal["ode_hutchinson", "ode_exact", "ddim"] = "ode_hutchinson"
    splitting: Splitting = dataclasses.field(default_factory=Splitting)
    pairs: int = 4096
    baselines: tuple[str, ...] = ()
    screen: Screen = dataclasses.field(default_factory=Screen)

    def __post_init__(self) -> None:
        _check(
            "audit",
            self,
            ("h_draws", self.h_draws >= 16, "16 or more"),
            ("gamma", 0 <= self.gamma < 1, "a number in [0, 1)"),
            ("subspace_draws", 100 <= self.subspace_draws <= self.subspace_max_draws, "100 … subspace_max_draws"),
            ("level", 0.5 < self.level < 1, "a number in (0.5, 1)"),
            ("chunk", self.chunk >= 0, "0 or more"),
            (("memory_gb", 0 < self.memory_gb < float("inf"), "a finite positive number")),
            ("likelihood_records", self.likelihood_records >= 0, "0 or more"),
            ("flow_draws", self.flow_draws >= 100, "100 or more"),
            ("pairs", self.pairs >= 100, "100 or more"),
            ("samples", all(count >= 1 for count in self.samples.values()), "1 or more of each model"),
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """What may be shown.

    Attributes:
      show_private: embed pictures of private records in the report; right only for public data.
      risk_on_cards: print measured rates and attacks on the cards of what is given away. They are statistics of the
        private records that no promise covers: right only where the records are public, or nothing leaves the house.
    """

    show_private: bool = False
    risk_on_cards: bool = False


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a run writes besides its results. Decides no number, so it may change from one start to the next.

    Attributes:
      wandb: project of Weights & Biases that gets the rows of metrics.csv; empty for none. They leave this machine.
      grid_every: training steps between pictures of what the model draws, with the loss of held-out records; 0 for
        none. Under ``train/NAME/grids`` and in TensorBoard.
      grid_images: images on such a picture.
      png: so many of the images that a stage draws are written as single PNG files, too.
    """

    wandb: str = ""
    grid_every: int = 0
    grid_images: int = 16
    png: int = 0

    def __post_init__(self) -> None:
        for name in ("grid_every", "png"):
            if getattr(self, name) < 0:
                raise InputError(f"config.outputs.{name}: expected 0 or more, got {getattr(self, name)}")
        if self.grid_images < 1:
            raise InputError(f"config.outputs.grid_images: expected at least 1, got {self.grid_images}")


def need(holds: bool, field: str, expected: str, value: object) -> None:
    """Raise InputError that names ``config.field``, what was expected and what came, unless ``holds``."""
    if not holds:
        raise InputError(f"config.{field}: expected {expected}, got {value!r}")


def check_profile(steps: int) -> None:
    """Raise InputError unless ``steps`` is 0 or more."""
    if steps < 0:
        raise InputError(f"config.profile: expected 0 or more training steps, got {steps}")


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that decides the numbers of an anonymity study, and what else it writes.

    Attributes:
      profile: training steps of each model that are traced into ``train/NAME/profile``; 0 for none.
    """

    seed: int
    data: Data
    split: Split
    fingerprint: Named
    score: Score
    sampler: Sampler
    detector: Detector
    audit: Audit
    report: Report = dataclasses.field(default_factory=Report)
    outputs: Outputs = dataclasses.field(default_factory=Outputs)
    profile: int = 0

    def __post_init__(self) -> None:
        check_profile(self.profile)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"config.seed: expected 0 <= seed < 2**32, got {self.seed}")
        unknown = [name for name in self.audit.estimators if name not in ESTIMATORS]
        if unknown:
            raise InputError(f"config.audit.estimators: expected some of {', '.join(ESTIMATORS)}, got {unknown[0]!r}")
        baselines.check_names(self.audit.baselines, "config.audit.baselines")
        if self.split.canaries and self.split.canaries < 8:
            raise InputError(f"config.split.canaries: expected 0, or 8 or more, got {self.split.canaries}")
        if "one_run" in self.audit.baselines and not self.split.canaries:
            raise InputError("config.split.canaries: expected 8 or more for the baseline 'one_run', got 0")
        if self.fingerprint.name == "none":
            raise InputError("config.fingerprint.name: expected a mark that the detector can learn, got 'none'")
        if set(self.audit.samples) != {"careless", "careful"}:
            raise InputError(f"config.audit.samples: expected fields careless and careful, got {self.audit.samples}")
        if not 1 <= self.audit.h_levels <= self.sampler.steps:
            raise InputError(
                f"config.audit.h_levels: expected 1 … sampler.steps = {self.sampler.steps}, got {self.audit.h_levels}"
            )
        if self.detector.training.privacy.on:
            # Its tasks hold audited records outside of the batches, which Poisson sampling would not cover.
            raise InputError("config.detector.training.privacy: expected none, the detector is not given away")
        if self.score.autoencoder is not None:
            private, clip = self.score.training.privacy.on, self.sampler.clip_x0
            check_study(private, clip, self.audit.likelihood_records, self.audit.estimators)
        never_seen = self.split.controls + self.split.held_out
        if self.audit.screen.top and never_seen < FEWEST_HELD_OUT:
            raise InputError(
                f"config.audit.screen: expected at least {FEWEST_HELD_OUT} held-out and control records to compare "
                f"with, config.split gives {never_seen}"
            )
        if self.split.controls < 1 or self.split.careless < 2 or self.split.held_out < 1:
            raise InputError("config.split: expected controls >= 1, careless >= 2 and held_out >= 1")


def parse(kind: type[Any], value: Any, path: str = "config") -> Any:
    """``value`` (nested mappings of plain values) as an instance of the dataclass ``kind``.

    Raises:
      InputError: a field that is unknown, missing or of the wrong type; the message names its path.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: expected a group of fields, got {value!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise InputError(f"{path}.{name}: unknown field; expected one of {', '.join(fields)}")
    given = {name: _convert(hints[name], value[name], f"{path}.{name}") for name in value}
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise InputError(f"{path}.{name}: expected a value, the config gives none")
    try:
        with within(_own_names(path)):
            return kind(**given)
    except InputError as error:
        if str(error).startswith("config"):
            raise
        raise InputError(f"{path}: {error}") from error


def _own_names(path: str) -> dict[str, str]:
    """How the group at ``path`` may call itself: by its last words, ``private_training`` by ``training``."""
    words = [re.sub(r"^\w+_training$", "training", word) for word in path.split(".")]
    return {".".join(words[start:]): path for start in range(1, len(words))}


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{path}: expected a group of fields, got {value!r}")
        inner = arguments[1]
        return {str(k): v if inner is Any else _convert(inner, v, f"{path}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{path}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


_LATER = (
    ("autoencoder", None),
    ("deterministic", "ode_hutchinson"),
    ("sharding", ()),
    ("condition", "label"),
    ("target", ""),
)


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested dictionaries, lists and numbers, as JSON has them.

    Fields of `_LATER` are left out where they say what was always so, so that the digests of older runs stay the same.
    """
    plain = dataclasses.asdict(settings, dict_factory=lambda pairs: {k: v for k, v in pairs if (k, v) not in _LATER})
    return json.loads(json.dumps(plain))


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
