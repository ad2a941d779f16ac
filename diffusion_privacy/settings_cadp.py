"""Settings of a CADP study: a flow, a release of private records, its utility and its audit.

`Cadp` is that of images, `CadpTable` that of a table; see `settings_kinds` for how a config chooses.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from diffusion_privacy import settings
from diffusion_privacy.data.tables import Column
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.relation import Neighbours
from diffusion_privacy.settings import Data, Outputs, Params, Report, need
from diffusion_privacy.training.state import TrainConfig

MECHANISMS = ("gaussian", "laplace", "discrete_gaussian", "discrete_laplace")
METRICS = {"metric_l1": "l1", "metric_l2": "l2"}
"""Mechanisms of metric privacy and their norms: a guarantee of its own, without ε."""
DECLARATIONS = ("public", "dp-sgd", "mechanism-only")
PRIVATE_ARMS = ("full-batch", "loop")
_TARGETS = {"label": "none", "attributes": "the attribute to predict"}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of the records, in (0, 1), sum 1. People are never divided between sets.

    Attributes:
      public: the flow learns from these; they are given up as public.
      private: these are released through the mechanism.
      test: nobody learns from these; classifiers are scored on them.
    """

    public: float = 0.5
    private: float = 0.3
    test: float = 0.2


@dataclasses.dataclass(frozen=True)
class Flow:
    """The conditional flow and how it is trained.

    Attributes:
      training: by the one loop; with ``training.privacy`` on, by DP-SGD.
      params: fields of `flows.cinn.FlowConfig`; shape and cond_dim come from the data.
      condition: of images: ``"label"``, the class, or ``"attributes"``, all attributes that ``data.params.attributes``
        names, as a vector of 0 and 1. Of a table it is what ``columns.apart`` says.
      training_precision: ``"float32"``, or ``"bfloat16"``: while it is trained, convolutions of ``conv_net = "glow"``
        round their operands; the trained flow is used in float32, and its likelihood is that of float32.
      preprocess: ``"affine"``, ``"logit"`` or ``"ink"`` for images, ``"none"`` for tables, see
        `flows.preprocess.Preprocess`.
      logit_alpha: α of the logit map, in (0, 0.5); where most pixels are black or white a small one (0.001) is learned
        far sooner.
      reconstruction, perturbation: see `flows.objective.loss`.
      trained_on: ``"public"`` or ``"private"``: which share it learns from. With ``"private"`` a release must be
        declared ``dp-sgd`` or ``mechanism-only``.
    """

    training: TrainConfig
    params: Params = dataclasses.field(default_factory=dict)
    condition: str = "label"
    training_precision: str = "float32"
    preprocess: str = "affine"
    logit_alpha: float = 0.05
    reconstruction: float = 0.0
    perturbation: float = 0.0
    trained_on: str = "public"


@dataclasses.dataclass(frozen=True)
class Release:
    """The privatised data sets, one for each ε, and what all of them together may spend.

    Attributes:
      relation: neighbouring relation by name (`mechanisms.relation.Neighbours`); there is no default.
      epsilons: ε of the latent step of each released data set, increasing; none with a metric mechanism.
      rates: with a metric mechanism, increasing: the nats by which two latents at distance 1 may be told apart, one
        released data set each; the further apart, the more. This is NOT ε and adds up with none; the ledger then says
        "no guarantee". Such a study has the stages train and privatize, since the others measure against an ε.
      total_epsilon: the ledger refuses a release that would bring the sum above this.
      delta: δ of each release and of the ledger; below 1/n.
      mechanism: one of `MECHANISMS`, or of `METRICS`.
      flow_training: what the manifest says of the flow: ``"public"`` (checked record by record), ``"dp-sgd"`` (trained
        on the private share with ``flow.training.privacy``; its event is in the ledger and composed) or
        ``"mechanism-only"`` (no end-to-end guarantee).
      records_per_person: bound on the records of one person; above 1 the guarantee is for a person.
      coverage: share of the prior inside the clip radius, in (0, 1).
      coarse: number of coarse latents that are privatised, the others are drawn from the prior; 0 privatises all.
      label_epsilon: ε of randomised response on the class, or on all attributes together in even shares, added to that
        of the latent; 0 publishes the class, or all attributes, as they are.
      prior_matched: bring noised latents back to the flow's prior before decoding.
      ledger: file of the ledger, absolute or below the workdir; give several studies of the same records one file.
    """

    relation: str
    epsilons: tuple[float, ...]
    total_epsilon: float
    delta: float = 1e-5
    mechanism: str = "gaussian"
    flow_training: str = "public"
    records_per_person: int = 1
    coverage: float = 0.99
    coarse: int = 0
    label_epsilon: float = 0.0
    prior_matched: bool = True
    ledger: str = "ledger.jsonl"
    rates: tuple[float, ...] = ()

    @property
    def metric(self) -> bool:
        """Whether the promise is metric privacy, and not ε."""
        return self.mechanism in METRICS

    @property
    def strengths(self) -> tuple[float, ...]:
        """What tells the released data sets apart: their rates where `metric`, else their ε."""
        return self.rates if self.metric else self.epsilons


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Classifiers by which the utility of a release is measured.

    Attributes:
      training: of the classifiers of all arms and seeds at once; its clipping must be off, so that they stay apart.
      target: name of the attribute that classifiers predict, where ``flow.condition`` is ``"attributes"``; else empty,
        since they predict the class.
      seeds: classifiers an arm, at least 2; each draws its own initialisation and order of records.
      hidden, dp_hidden: width of the two hidden layers of a classifier, and of one trained privately, where noise grows
        with the number of parameters; 0 for none (logistic regression).
      level: confidence level of the intervals over seeds.
      dp_arm: how the arm of private training learns: ``"full-batch"`` (all ε and seeds in one program) or ``"loop"``
        (DP-SGD by the common training loop, one run for each ε and seed).
      dp_steps, dp_clip, dp_learning_rate: of full batches: steps, norm to which each record's gradient is clipped, step
        length; dp_steps = 0 leaves the arm out, whatever dp_arm says.
      dp_training: of the loop; its privacy gets each release's ε, δ and replace-one.
      pixel_block: side of the squares that DP-Pix averages; 0 leaves it out.
    """

    training: TrainConfig
    target: str = ""
    seeds: int = 5
    hidden: int = 128
    dp_hidden: int = 0
    level: float = 0.95
    dp_arm: str = "full-batch"
    dp_steps: int = 10
    dp_clip: float = 1.0
    dp_learning_rate: float = 1.0
    dp_training: TrainConfig | None = None
    pixel_block: int = 4


@dataclasses.dataclass(frozen=True)
class Attack:
    """What the audit tries.

    Attributes:
      records: the first so many private records (in their secret order) are looked for, among each other, and so many
        members and others of the flow, drawn by the seed, are told apart; 0 for all. With fewer than all, chance is
        higher and intervals are wider, both as reported.
      study_epsilons: ε at which private records are noised for the attack alone; nothing of it is published. Far above
        what one would release, they show from where on the attack would succeed.
      trials: most draws of each worst-case latent for the lower bound on ε; fewer are made where fewer suffice.
      tightness: share of the claimed ε, in (0, 1), that the draws are planned to show.
      trial_dim: number of latents of the worst-case pair.
      confidence: of the lower bound on ε.
      level: confidence level of the linkage and membership intervals.
      release_repeats: repetitions of a whole release in the search for faults between records; 0 for none.
    """

    records: int = 0
    study_epsilons: tuple[float, ...] = (16.0, 64.0, 256.0, 1024.0)
    trials: int = 64_000_000
    tightness: float = 0.8
    trial_dim: int = 2
    confidence: float = 0.99
    level: float = 0.95
    release_repeats: int = 100


@dataclasses.dataclass(frozen=True)
class Columns:
    """What is public about a table, and which columns the latent leaves out.

    Attributes:
      apart: categorical columns that become the flow's condition. With ``release.label_epsilon`` each goes through
        k-ary randomised response, an even share of it each; without, they are published as they are. All other
        categorical columns are dequantised one-hots and part of the latent.
      declared: every column of a CSV file, in its order; empty to infer them from the rows.
      vouched: the user states that names, kinds, categories and decimals as inferred are public. A release refuses
        inferred columns without it.
      ranges: public ``(lower, upper)`` of numbers by column; those not named take theirs from the public share.
      noise: deviation of normal noise on the standardised numbers, in training and in release alike: a flow of few rows
        overfits without.
    """

    apart: tuple[str, ...] = ()
    declared: tuple[Column, ...] = ()
    vouched: bool = False
    ranges: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    noise: float = 0.1


@dataclasses.dataclass(frozen=True)
class TableEvaluation:
    """How the utility of a released table is measured.

    Attributes:
      target: the column that a model trained on the release predicts on real rows.
      draws: control tables, at least 2, each drawn anew from the flow.
      cells: of a number's range, for marginals.
      level: confidence level of the intervals.
      dp_steps, dp_clip, dp_learning_rate: of the arm of private training, a linear model of the private rows by full
        batches: steps, norm to which each row's gradient is clipped, step length; dp_steps = 0 leaves the arm out.
    """

    target: str
    draws: int = 5
    cells: int = 10
    level: float = 0.95
    dp_steps: int = 20
    dp_clip: float = 1.0
    dp_learning_rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivateStudy:
    """What the study of a private data set states, whatever its records are, but for the noise of its releases."""

    seed: int
    data: Data
    flow: Flow
    release: Release
    split: Shares = dataclasses.field(default_factory=Shares)
    attack: Attack = dataclasses.field(default_factory=Attack)
    report: Report = dataclasses.field(default_factory=Report)
    outputs: Outputs = dataclasses.field(default_factory=Outputs)
    profile: int = 0

    def __post_init__(self) -> None:
        settings.check_profile(self.profile)
        release = self.release
        need(0 <= self.seed < 2**32, "seed", "0 <= seed < 2**32", self.seed)
        shares = dataclasses.astuple(self.split)
        need(
            all(s > 0 for s in shares) and abs(sum(shares) - 1) < 1e-9, "split", "positive shares that sum to 1", shares
        )
        _choice("flow.training_precision", self.flow.training_precision, ("float32", "bfloat16"))
        _choice("flow.trained_on", self.flow.trained_on, ("public", "private"))
        _choice("release.mechanism", release.mechanism, (*MECHANISMS, *METRICS))
        _choice("release.flow_training", release.flow_training, DECLARATIONS)
        _check_flow(self.flow, release)
        for field, values in (
            ("release.epsilons", release.epsilons),
            ("release.rates", release.rates),
            ("attack.study_epsilons", self.attack.study_epsilons),
        ):
            rising = all(a < b for a, b in itertools.pairwise(values))
            need(rising and all(0 < e < math.inf for e in values), field, "finite increasing numbers > 0", values)
            # They name the folders of releases and the entries of the ledger, to six digits.
            apart = len({f"{e:g}" for e in values}) == len(values)
            need(apart, field, "numbers that differ in their first six digits", values)
        _check_promise(release)
        self._check_relation()
        need(0 < release.coverage < 1, "release.coverage", "a number in (0, 1)", release.coverage)
        need(bool(release.ledger), "release.ledger", "the name of a file", release.ledger)
        need(release.coarse >= 0, "release.coarse", "0 or more", release.coarse)
        need(0 <= release.delta < 1, "release.delta", "a number in [0, 1)", release.delta)
        total = release.total_epsilon
        need(0 < total < math.inf, "release.total_epsilon", "a finite number > 0", total)
        need(self.attack.records >= 0, "attack.records", "0 (all) or more", self.attack.records)
        trials = self.attack.trials
        need(1000 <= trials <= 2**30, "attack.trials", "within 1000 and 2^30", trials)
        share = self.attack.tightness
        need(0 < share < 1, "attack.tightness", "a number in (0, 1)", share)
        for field, least in (("confidence", 0.0), ("level", 0.5)):
            value = getattr(self.attack, field)
            need(least < value < 1, f"attack.{field}", f"a number in ({least:g}, 1)", value)
        need(self.attack.trial_dim >= 1, "attack.trial_dim", "1 or more", self.attack.trial_dim)
        for field in ("reconstruction", "perturbation"):
            value = getattr(self.flow, field)
            need(0 <= value < math.inf, f"flow.{field}", "a finite number, 0 or more", value)
        repeats = self.attack.release_repeats
        need(repeats == 0 or repeats >= 100, "attack.release_repeats", "0 or at least 100", repeats)

    @property
    def any_condition(self) -> bool:
        """Whether neighbours differ in the condition too: exactly where it is randomised."""
        return self.release.label_epsilon > 0

    def _check_relation(self) -> None:
        name, people, spent = self.release.relation, self.release.records_per_person, self.release.label_epsilon
        _choice("release.relation", name, tuple(one.value for one in Neighbours))
        need(people >= 1, "release.records_per_person", "1 or more", people)
        need(0 <= spent < math.inf, "release.label_epsilon", "a finite number, 0 or more", spent)
        if self.any_condition != (name == Neighbours.ANY_CONDITION.value):
            raise InputError(
                f"config.release.relation: {name!r} with label_epsilon = {spent:g}; expected "
                f"{Neighbours.ANY_CONDITION.value!r} exactly where the class is randomised, or a table has no columns "
                "apart"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cadp(PrivateStudy):
    """A private set of images."""

    evaluation: Evaluation
    kind: str = "cadp"

    def __post_init__(self) -> None:
        super().__post_init__()
        evaluation = self.evaluation
        check_image_flow(self.flow)
        _choice("flow.condition", self.flow.condition, ("label", "attributes"))
        named, of = bool(evaluation.target), self.flow.condition
        need(named == (of == "attributes"), "evaluation.target", f"{_TARGETS[of]} with {of!r}", evaluation.target)
        check_evaluation(evaluation)
        _choice("evaluation.dp_arm", evaluation.dp_arm, PRIVATE_ARMS)
        given = evaluation.dp_arm != "loop" or evaluation.dp_training is not None
        need(given, "evaluation.dp_training", "settings of the loop, where dp_arm is 'loop'", None)
        if evaluation.dp_training is not None:
            fixed = evaluation.dp_training.privacy
            need(not fixed.on, "evaluation.dp_training.privacy", "no ε or noise: it gets those of the releases", fixed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CadpTable(PrivateStudy):
    """A private table; see `Columns` for what is public about it. Its guarantee is for a row, whoever's it is."""

    evaluation: TableEvaluation
    columns: Columns = dataclasses.field(default_factory=Columns)
    kind: str = "cadp_table"

    @property
    def any_condition(self) -> bool:
        """Also without columns apart, where there is no condition: any row may take the place of any other."""
        return super().any_condition or not self.columns.apart

    def __post_init__(self) -> None:
        super().__post_init__()
        columns, evaluation = self.columns, self.evaluation
        _choice("flow.preprocess", self.flow.preprocess, ("none",))
        _choice("flow.condition", self.flow.condition, ("label",))
        people = self.release.records_per_person
        need(people == 1, "release.records_per_person", "1: the guarantee of a table is for a row", people)
        randomised = self.release.label_epsilon > 0
        need(not randomised or bool(columns.apart), "columns.apart", "columns to spend label_epsilon on", columns.apart)
        declared = not columns.declared or self.data.source == "csv"
        need(declared, "columns.declared", "none, but for the source csv", self.data.source)
        for name, ends in columns.ranges.items():
            need(len(ends) == 2, f"columns.ranges.{name}", "(lower, upper)", ends)
        need(0 <= columns.noise < 1, "columns.noise", "a number in [0, 1)", columns.noise)
        need(evaluation.draws >= 2, "evaluation.draws", "at least 2", evaluation.draws)
        need(evaluation.dp_steps >= 0, "evaluation.dp_steps", "0 or more", evaluation.dp_steps)
        _check_descent(evaluation)
        need(evaluation.cells >= 2, "evaluation.cells", "at least 2", evaluation.cells)
        need(0.5 < evaluation.level < 1, "evaluation.level", "a number in (0.5, 1)", evaluation.level)


def check_image_flow(flow: Flow) -> None:
    """Raises InputError for preprocessing that images do not have."""
    _choice("flow.preprocess", flow.preprocess, ("affine", "logit", "ink"))
    need(0 < flow.logit_alpha < 0.5, "flow.logit_alpha", "a number in (0, 0.5)", flow.logit_alpha)


def check_evaluation(evaluation: Evaluation) -> None:
    """Raises InputError for a field out of range, whichever study trains these classifiers."""
    need(evaluation.seeds >= 2, "evaluation.seeds", "at least 2", evaluation.seeds)
    need(0.5 < evaluation.level < 1, "evaluation.level", "a number in (0.5, 1)", evaluation.level)
    for field in ("hidden", "dp_hidden", "dp_steps", "pixel_block"):
        need(getattr(evaluation, field) >= 0, f"evaluation.{field}", "0 or more", getattr(evaluation, field))
    _check_descent(evaluation)
    clip = evaluation.training.grad_clip_norm
    need(clip == 0, "evaluation.training.grad_clip_norm", "0 (it would couple the classifiers)", clip)
    private = evaluation.training.privacy.on
    need(not private, "evaluation.training.privacy", "none: for private classifiers see dp_arm", "one")


def _check_descent(evaluation: Evaluation | TableEvaluation) -> None:
    for field in ("dp_clip", "dp_learning_rate"):
        value = getattr(evaluation, field)
        need(0 < value < math.inf, f"evaluation.{field}", "a finite number > 0", value)


def _check_promise(release: Release) -> None:
    """ε or rates, never both: nothing may call one the other."""
    if not release.metric:
        need(len(release.epsilons) > 0, "release.epsilons", "at least one ε", release.epsilons)
        need(not release.rates, "release.rates", f"none with {release.mechanism!r}, which has ε", release.rates)
        return
    need(len(release.rates) > 0, "release.rates", "at least one rate", release.rates)
    need(not release.epsilons, "release.epsilons", "none with a metric mechanism: see rates", release.epsilons)
    randomised, why = release.label_epsilon, "0 with a metric mechanism, whose rate adds up with no ε"
    need(randomised == 0, "release.label_epsilon", why, randomised)
    need(not release.prior_matched, "release.prior_matched", "False with a metric mechanism", release.prior_matched)


def _check_flow(flow: Flow, release: Release) -> None:
    """Declared as what it is, before it is trained, and no more promised than DP-SGD accounts for."""
    declared = release.flow_training != "public" or flow.trained_on == "public"
    expected = "'dp-sgd' or 'mechanism-only' where flow.trained_on is 'private'"
    need(declared, "release.flow_training", expected, release.flow_training)
    if release.flow_training != "dp-sgd":
        return
    private = flow.trained_on == "private" and flow.training.privacy.on
    expected = "'dp-sgd' only with flow.trained_on = 'private' and flow.training.privacy.epsilon > 0"
    need(private, "release.flow_training", expected, release.flow_training)
    # DP-SGD counts single records; for k of one person its ε would be larger.
    people = release.records_per_person
    need(people == 1, "release.records_per_person", "1 where release.flow_training is 'dp-sgd'", people)


def _choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    need(value in choices, field, f"one of {', '.join(choices)}", value)
