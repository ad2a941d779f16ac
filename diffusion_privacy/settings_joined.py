"""Settings of a joined study: one set of private records, four ways to share it, one ledger and one report.

It is made of the other studies' groups: ``data``, ``split``, ``flow`` and ``release`` mean what they mean in
`settings_cadp`; ``fingerprint``, ``score``, ``sampler`` and ``detector`` what they mean in `settings`.
"""

from __future__ import annotations

import dataclasses
import functools

from diffusion_privacy.settings import Audit, Data, Detector, Named, Outputs, Report, Sampler, Score, Split, Study, need
from diffusion_privacy.settings_cadp import (
    Evaluation,
    Flow,
    PrivateStudy,
    Release,
    Shares,
    check_evaluation,
    check_image_flow,
)
from diffusion_privacy.training.state import TrainConfig


@dataclasses.dataclass(frozen=True)
class Marks:
    """Who carries the fingerprint.

    Attributes:
      private: private records with a planted fingerprint, whose return is measured; the certificate trains models anew
        for each of them.
      controls: held-out records with one, out of the test share: the audit must not find them.
    """

    private: int = 1
    controls: int = 3


@dataclasses.dataclass(frozen=True)
class Risk:
    """What is measured of every way to share, and at what cost; fields as in `settings.Audit`.

    Attributes:
      samples: images drawn from each model; the first ``evaluation_samples`` of them train classifiers.
      evaluation_samples: as many as that.
      attack_records: most members, and most non-members, that the loss attack looks at.
    """

    samples: int = 10_000
    evaluation_samples: int = 2_000
    h_levels: int = 25
    h_draws: int = 32
    gamma: float = 0.05
    subspace_draws: int = 1024
    subspace_max_draws: int = 4096
    attack_records: int = 2_000
    level: float = 0.95
    chunk: int = 0
    memory_gb: float = 2.0


@dataclasses.dataclass(frozen=True)
class Certify:
    """E6: how often the same way of sharing shows a record that it never saw.

    Attributes:
      copies: private copies simulated with the record replaced, and as many with it for q of the copy.
      copy_models: score models trained on such copies, at most; 0 for none.
      dp_models: score models trained with DP-SGD without the record, at most; 0 for none. Where so many could not make
        the bound say anything, none is trained.
      samples: images drawn from each of these models.
    """

    copies: int = 200
    copy_models: int = 16
    dp_models: int = 4
    samples: int = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """Everything that decides the numbers of a joined study, but for the noise of the release and of private training.

    Attributes:
      score: of all score models; each is conditional on the class, whose number of values comes from the data.
      private_training: of the score model trained with DP-SGD; its ``privacy`` must be on.
      release: exactly one ε; the condition is published, so that ``label_epsilon`` must be 0.
    """

    seed: int
    data: Data
    fingerprint: Named
    flow: Flow
    release: Release
    score: Score
    private_training: TrainConfig
    sampler: Sampler
    detector: Detector
    evaluation: Evaluation
    split: Shares = dataclasses.field(default_factory=Shares)
    marks: Marks = dataclasses.field(default_factory=Marks)
    risk: Risk = dataclasses.field(default_factory=Risk)
    certify: Certify = dataclasses.field(default_factory=Certify)
    report: Report = dataclasses.field(default_factory=Report)
    outputs: Outputs = dataclasses.field(default_factory=Outputs)
    profile: int = 0
    kind: str = "joined"

    def __post_init__(self) -> None:
        self._check_sharing()
        risk, certify = self.risk, self.certify
        for name, value, least in (
            ("marks.private", self.marks.private, 1),
            ("marks.controls", self.marks.controls, 1),
            ("risk.samples", risk.samples, 100),
            ("certify.copies", certify.copies, 1),
            ("certify.copy_models", certify.copy_models, 0),
            ("certify.dp_models", certify.dp_models, 0),
            ("certify.samples", certify.samples, 1),
            ("risk.attack_records", risk.attack_records, 8),
        ):
            need(value >= least, name, f"at least {least}", value)
        within = 50 <= risk.evaluation_samples <= risk.samples
        need(within, "risk.evaluation_samples", f"50 … risk.samples = {risk.samples}", risk.evaluation_samples)
        # Built once here, so that what they refuse is refused before anything is trained.
        _ = self.cadp, self.study

    def _check_sharing(self) -> None:
        release, private = self.release, self.private_training.privacy
        need(len(release.epsilons) == 1, "release.epsilons", "exactly one ε", release.epsilons)
        need(release.label_epsilon == 0, "release.label_epsilon", "0: the class is public", release.label_epsilon)
        people = release.records_per_person
        need(people == 1, "release.records_per_person", "1, DP-SGD counts single records", people)
        need(private.on, "private_training.privacy.epsilon", "a number above 0", private.epsilon)
        need(not self.score.training.privacy.on, "score.training.privacy", "none, see private_training", "one")
        need("num_classes" not in self.score.network.params, "score.network.params.num_classes", "none", "one")
        need(self.flow.condition == "label", "flow.condition", "'label'", self.flow.condition)
        need(self.score.autoencoder is None, "score.autoencoder", "none, its models work on pixels", "one")
        check_image_flow(self.flow)
        check_evaluation(self.evaluation)
        mechanism = release.mechanism
        need(
            not release.metric and not mechanism.startswith("discrete"),
            "release.mechanism",
            "one that has an ε and continuous noise, whose copies the audit can simulate",
            mechanism,
        )
        need(self.fingerprint.name != "none", "fingerprint.name", "a mark that a detector can learn", "none")
        kind = self.detector.identity
        need(kind == "classifier", "detector.identity", "'classifier'", kind)

    @functools.cached_property
    def cadp(self) -> PrivateStudy:
        """The release as the stages of a CADP study take it."""
        return PrivateStudy(
            seed=self.seed,
            data=self.data,
            flow=self.flow,
            release=self.release,
            split=self.split,
            outputs=self.outputs,
            profile=self.profile,
        )

    @functools.cached_property
    def study(self) -> Study:
        """The audit of a score model as the stages of an anonymity study take it."""
        risk = self.risk
        return Study(
            seed=self.seed,
            data=self.data,
            split=Split(controls=self.marks.private - 1 + self.marks.controls),
            fingerprint=self.fingerprint,
            score=self.score,
            sampler=self.sampler,
            detector=self.detector,
            audit=Audit(
                samples={"careless": risk.samples, "careful": risk.samples},
                h_levels=risk.h_levels,
                h_draws=risk.h_draws,
                gamma=risk.gamma,
                subspace_draws=risk.subspace_draws,
                subspace_max_draws=risk.subspace_max_draws,
                level=risk.level,
                chunk=risk.chunk,
                memory_gb=risk.memory_gb,
            ),
            outputs=self.outputs,
            profile=self.profile,
        )

    @property
    def epsilon(self) -> float:
        """ε of the latent step of the private copy."""
        return self.release.epsilons[0]
