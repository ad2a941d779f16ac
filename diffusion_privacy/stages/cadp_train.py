"""Stage `train` of a CADP study: the conditional flow, by the one loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_privacy import settings as settings_module
from diffusion_privacy.data.records import Records
from diffusion_privacy.errors import within
from diffusion_privacy.mechanisms.ledger import Entry
from diffusion_privacy.mechanisms.manifest import FlowProvenance
from diffusion_privacy.settings_cadp import PrivateStudy
from diffusion_privacy.stages import cadp_privatize, dp_training, private_order, watching
from diffusion_privacy.stages import cadp_study as common
from diffusion_privacy.stages.cadp_flow import TrainedFlow
from diffusion_privacy.stages.cadp_study import Parts, R
from diffusion_privacy.stages.watching import Watch
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.tasks import FlowTask
from diffusion_privacy.training import privacy, rng
from diffusion_privacy.types import PyTree


def train(settings: PrivateStudy, workdir: Workdir) -> None:
    """Trains the flow.

    Raises:
      InputError: as `fit_flow` and `cadp_privatize.check_release`: what could not be released is not trained.
    """
    parts = common.load_parts(settings, workdir)
    done = workdir.root / "train" / "done.json"
    if done.exists():
        # Earlier versions wrote no note: other studies of this ledger are to know of the share all the same.
        common.give_up(common.make_ledger(settings, workdir), parts)
        return
    # A private run is paid for before its first step, and a paid workdir is bound to its settings.
    cadp_privatize.check_release(settings, workdir, parts.private, _planned(settings, workdir, parts))
    records = fit_flow(settings, workdir, parts)
    workdir.write_json(done, {"models": ["flow"], "records": len(records)})


def _planned(settings: PrivateStudy, workdir: Workdir, parts: Parts[Any]) -> list[Entry]:
    """The flow's own private training, unless a run here was paid for: if another has to be, it is refused in time."""
    config, folder = settings.flow.training, workdir.root / "train" / "flow"
    ledger = common.make_ledger(settings, workdir)
    if not config.privacy.on or settings.flow.trained_on == "public" or dp_training.was_paid(ledger, folder):
        return []
    with within({"training": "config.flow.training"}):
        plan = privacy.make_plan(
            config.privacy, records=len(parts.private), batch_size=config.batch_size, steps=config.steps
        )
    spend = dp_training.spend_of_plan(plan)
    private = parts.private
    return [Entry("train flow", spend, common.hashes(private), dp_training.RELATION, kind=common.hash_kind(private))]


def fit_flow(settings: PrivateStudy, workdir: Workdir, parts: Parts[R]) -> R:
    """Writes down which records the flow learns from, pays for them where it must, trains it; returns those records.

    Raises:
      InputError: a record is in the public and in the private share, and the flow is to be called public, or one of the
        public share is in the ledger as a private one, or one of the private share as a public one; as
        `cadp_study.require_stated_classes`.
    """
    records = parts.public if settings.flow.trained_on == "public" else parts.private
    common.require_stated_classes(settings, parts.private)
    if settings.flow.trained_on == "public" and settings.release.flow_training == "public":
        # The release will refuse copies of one record in both shares: better said before hours of training.
        public = FlowProvenance("public", frozenset(common.hashes(records)), kind=common.hash_kind(records))
        with within({"flow_training": "config.release.flow_training"}):
            public.check(common.hashes(parts.private), common.hash_kind(parts.private))
    common.give_up(common.make_ledger(settings, workdir), parts)
    learnt = {"kind": common.hash_kind(records), "hashes": list(common.hashes(records))}
    # From here on another order of the private records would not go with what is there.
    workdir.write_json(workdir.path("train", "trained_on.json"), learnt | private_order.note(workdir))
    config, folder = settings.flow.training, workdir.path("train", "flow")
    pay = None
    if config.privacy.on and settings.flow.trained_on == "private":
        ledger, kind = common.make_ledger(settings, workdir), common.hash_kind(records)
        pay = dp_training.payment(ledger, "train flow", common.hashes(records), kind)
    identity = {"config": settings_module.digest({"flow": settings_module.to_dict(settings.flow)})}
    task = common.flow_task(settings, records)
    with workdir.timed("train flow"), within({"training": "config.flow.training"}):
        watching.train(
            task,
            common.batches(records, config.batch_size, settings.seed),
            config,
            _watch(settings, task, parts),
            workdir=folder,
            seed=settings.seed,
            name="flow",
            identity=identity,
            pay=pay,
        )
    return records


def _watch(settings: PrivateStudy, task: FlowTask, parts: common.Parts[Any]) -> Watch:
    """Pictures of images only: what the flow draws, class after class."""
    if not isinstance(parts.test, Records):
        return Watch(settings.outputs, settings.profile)
    by_attributes = settings.flow.condition == "attributes"
    # Class after class; of attributes what public records have.
    shown = parts.public.attributes if by_attributes else np.arange(parts.test.num_classes)
    key = rng.stream(settings.seed, "grid")

    def draw(params: PyTree, count: int) -> np.ndarray:
        return TrainedFlow(task.model, params).sample(np.resize(shown, (count, *shown.shape[1:])), key)

    return Watch(settings.outputs, settings.profile, parts.test, draw)
