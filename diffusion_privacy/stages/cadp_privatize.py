"""Stage `privatize`: the private records through the mechanism, once for each ε, paid for in the ledger.

Every release draws its own noise from the operating system: two runs of this stage give different images.
"""

from __future__ import annotations

import logging
from pathlib import Path

from diffusion_privacy.data.records import Records
from diffusion_privacy.mechanisms.accounting import Spend, account, record_spend
from diffusion_privacy.mechanisms.export import publish
from diffusion_privacy.mechanisms.ledger import Ledger, record_hashes
from diffusion_privacy.mechanisms.release import FlowProvenance, Privatised, privatise
from diffusion_privacy.settings_cadp import Cadp
from diffusion_privacy.stages import cadp_study as common
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng

_LOG = logging.getLogger(__name__)


def provenance(settings: Cadp, workdir: Workdir) -> FlowProvenance:
    """What the release may say of the flow; `privatise` holds it against the records, one by one."""
    found = workdir.read_json(workdir.root / "train" / "trained_on.json")
    return FlowProvenance(settings.release.flow_training, frozenset(found["hashes"]))  # type: ignore[arg-type]


def planned_spend(settings: Cadp, dims: int, records: int, classes: int) -> list[Spend]:
    """The event of every release of the study."""
    relation, condition = common.make_relation(settings), common.make_condition(settings, classes)
    return [
        record_spend(common.make_mechanism(settings, e, dims, records), condition, relation)
        for e in settings.release.epsilons
    ]


def _release(
    settings: Cadp,
    epsilon: float,
    flow: common.TrainedFlow,
    source: FlowProvenance,
    private: Records,
    public: Records,
) -> Privatised:
    dims = flow.model.dims
    public_z, _ = flow.encode(public.image, public.label, rng.stream(settings.seed, "clip_share"))
    return privatise(
        flow.release_encode,
        flow.release_decode,
        private.image,
        private.label,
        mechanism=common.make_mechanism(settings, epsilon, dims, len(private)),
        condition=common.make_condition(settings, private.num_classes),
        relation=common.make_relation(settings),
        delta=settings.release.delta,
        flow=source,
        selection=common.make_selection(settings, dims),
        match=settings.release.prior_matched,
        person=private.identity,
        public_latents=public_z,
    )


def privatize(settings: Cadp, workdir: Workdir) -> None:
    """Writes ``releases/eps_E`` for each ε that is not there yet: PNG by class, data.npz, manifest.json.

    Raises:
      InputError: the flow learned from these records and is not declared ``mechanism-only``; the ledger is exhausted;
        the relation, ε or δ is missing or out of range. No release is left half-written.
    """
    missing = [e for e in settings.release.epsilons if not common.release_path(workdir, e).exists()]
    if not missing:
        return
    parts = common.load_parts(settings, workdir)
    private = parts.private
    # Everything that can be refused is refused before the flow is read.
    spends = planned_spend(settings, int(private.image[0].size), len(private), private.num_classes)
    planned = account(spends, settings.release.delta).epsilon
    _LOG.info("privatize: %d releases compose to ε = %.4g at δ = %g", len(spends), planned, settings.release.delta)
    source = provenance(settings, workdir)
    source.check(record_hashes(private.image))
    flow = common.load_flow(settings, workdir, private)
    path = Path(settings.release.ledger)
    ledger = Ledger(workdir.root / path, settings.release.total_epsilon, settings.release.delta)
    with workdir.timed("privatize"):
        for epsilon in missing:
            release = _release(settings, epsilon, flow, source, private, parts.public)
            folder = publish(release, common.release_path(workdir, epsilon), ledger=ledger)
            _LOG.info("privatize: %s, %s", folder, release.manifest.guarantee)
