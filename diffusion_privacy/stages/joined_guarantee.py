"""What may be promised for each way to share, read from the ledger's entries and from nothing else.

A way to share rests on the stages that lead to it. Its ε is their composition, under the one condition that nothing
else that touched the records is given away: the run as a whole trains a model on the records as they are, so its total
is "no guarantee", and the report says so. A stage that the ledger does not know makes the way "no guarantee" as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_privacy.mechanisms import ledger as ledger_module
from diffusion_privacy.mechanisms import receipt
from diffusion_privacy.mechanisms.ledger import Covering, Entry, event_to_json
from diffusion_privacy.mechanisms.manifest import ORDER_IS_PUBLIC, RANDOM_ORDER
from diffusion_privacy.mechanisms.relation import meet
from diffusion_privacy.rounding import promised
from diffusion_privacy.settings_joined import Joined
from diffusion_privacy.stages import cadp_study, dp_training
from diffusion_privacy.stages import joined_study as common
from diffusion_privacy.stages.workdir import Workdir

ONLY_THIS = "if nothing else that was computed from these records is given away, the study's report included"
"""It stands in the report, on cards and in manifests: "this report" would be the card on a card."""
_ON_TRUST = (
    "The copy was made by an earlier version: that its entry in the ledger is not another study's is taken on trust."
)
_MODEL_PUBLIC = (
    "the number of records",
    "the share of each class among the records, by which the model draws classes",
    "the settings of network, training and sampler",
)


def stages(settings: Joined, workdir: Workdir, way: str) -> tuple[str, ...]:
    """Names in the ledger of everything that way to share rests on."""
    if way == "raw_model":
        return (common.RAW_STAGE,)
    if way == "dp_model":
        return _entered(settings, workdir, way)
    release = common.release_stage(settings, workdir)
    found = {
        "public": (),
        "dp-sgd": _entered(settings, workdir, way),
        "mechanism-only": (f"flow training for {release}",),
    }[settings.release.flow_training]
    return (*found, release, *((common.COPY_STAGE,) if way == "copy_model" else ()))


def _entered(settings: Joined, workdir: Workdir, way: str) -> tuple[str, ...]:
    """Names in the ledger of the DP-SGD runs that the way rests on."""
    return tuple(dp_training.stage_of(folder) for folder in _private_runs(settings, workdir, way))


def unpaid(settings: Joined, workdir: Workdir, way: str) -> dict[str, str]:
    """Private trainings behind the way whose entry does not pay for the model that is there: name to reason.

    As `dp_training.require_paid` finds it: the secret, and the event, must be those of the checkpoint.

    Raises:
      InputError: such a model was not trained, not privately, or never entered.
    """
    ledger = common.make_ledger(settings, workdir)
    found = {dp_training.stage_of(f): dp_training.fault_of(ledger, f) for f in _private_runs(settings, workdir, way)}
    return {name: fault for name, fault in found.items() if fault}


def _private_runs(settings: Joined, workdir: Workdir, way: str) -> tuple[Path, ...]:
    """Folders of the DP-SGD runs that the way rests on."""
    if way == "dp_model":
        return (common.dp_folder(workdir),)
    by_dp_sgd = way in ("copy_model", common.COPY) and settings.release.flow_training == "dp-sgd"
    return (workdir.path("train", "flow"),) if by_dp_sgd else ()


def promise(settings: Joined, workdir: Workdir, way: str, delta: float | None = None) -> Covering:
    """The composition of the way's stages at ``delta`` (default: the release's).

    "No guarantee" where one has no event or is not in the ledger, or where the entry of a private training is that of
    another run than the model's (`unpaid`). Entries of other studies in the same ledger pay for nothing here.

    Raises:
      InputError: as `unpaid`; δ out of range.
    """
    ledger = common.make_ledger(settings, workdir)
    wanted = settings.release.delta if delta is None else delta
    not_for_this = unpaid(settings, workdir, way)
    entries = ledger.entries()
    ours = _ours(settings, workdir, entries)
    return ledger_module.covering(entries, stages(settings, workdir, way), wanted, not_for_this, ours)


def _ours(settings: Joined, workdir: Workdir, entries: Sequence[Entry]) -> Callable[[Entry], bool]:
    """Whether an entry is this study's: the release by its number, other stages by the records of that one.

    A stage of the same name and records costs as much whichever study wrote it: nothing, or all.
    """
    name = common.release_stage(settings, workdir)
    paid = receipt.paid_by(entries, cadp_study.release_path(workdir, settings.epsilon))

    def ours(entry: Entry) -> bool:
        if entry.stage == name:
            return entry in paid
        return not paid or entry.records == paid[0].records

    return ours


def _manifest(settings: Joined, workdir: Workdir) -> dict[str, Any]:
    folder = cadp_study.release_path(workdir, settings.epsilon)
    return dict(workdir.read_json(folder / "manifest.json"))


def guarantee(settings: Joined, workdir: Workdir, way: str, certified: list[Any]) -> dict[str, Any]:
    """`joined_schema.Guarantee` of one way."""
    total = promise(settings, workdir, way)
    epsilon = total.account.epsilon if total.guarantee else None
    manifest = _manifest(settings, workdir)
    # DP-SGD's ε is for replacing a record by any other. But the model is handed out with the classes' shares, by which
    # it draws and was audited: these would change with the record's class.
    relation = meet((cadp_study.make_relation(settings.cadp), total.relation)).describe()
    public = list(_MODEL_PUBLIC) if way in ("raw_model", "dp_model") else list(manifest["public"])
    if way in ("copy", "copy_model") and manifest.get("order") != RANDOM_ORDER and ORDER_IS_PUBLIC not in public:
        public.append(ORDER_IS_PUBLIC)  # so it was before manifests said it
    if way == "copy_model":
        public = list(dict.fromkeys([*public, *_MODEL_PUBLIC]))
    mechanism = {
        "raw_model": "none",
        "dp_model": _dp_sgd(settings, workdir),
        "copy_model": f"trained on the private copy alone, which is {_copy_words(manifest)}",
        "copy": _copy_words(manifest),
    }[way]
    why = total.why
    sentence = "No promise is made to any record."
    if epsilon is not None:
        within = f"ε = {promised(epsilon, 4)} at δ = {promised(total.account.delta)}"
        sentence = f"{within} for every record ({relation}), {ONLY_THIS}."
        of_copy = way in (common.COPY, "copy_model")
        if of_copy and receipt.by_place(cadp_study.release_path(workdir, settings.epsilon)):
            sentence += f" {_ON_TRUST}"
    return {
        "epsilon": epsilon,
        "delta": total.account.delta,
        "relation": relation,
        "mechanism": mechanism,
        "public": public,
        "stages": list(stages(settings, workdir, way)) if epsilon is not None else [],
        "why": why,
        "sentence": sentence,
        "certified": certified if epsilon is not None else [],
    }


def _dp_sgd(settings: Joined, workdir: Workdir) -> str:
    plan = dp_training.plan_of(common.dp_folder(workdir))
    return (
        f"DP-SGD: {plan.steps} steps, each record drawn with probability {plan.sampling_probability:.4g}, "
        f"gradients cut to norm {plan.clip_norm:g}, noise of {plan.noise_multiplier:.4g} times that"
    )


def _copy_words(manifest: Mapping[str, Any]) -> str:
    return (
        f"made by {manifest['mechanism']} noise of scale {manifest['noise_scale']:.4g} on latents cut to norm "
        f"{manifest['clip_norm']:.4g}; flow training: {manifest['flow_training']}"
    )


def ledger_entry(settings: Joined, workdir: Workdir) -> dict[str, Any]:
    """`joined_schema.Ledger`: every entry, the total of all, and what should be there and is not.

    An entry that does not pay for the model that is there (`unpaid`) counts as not there.
    """
    ledger = common.make_ledger(settings, workdir)
    entries, total = ledger.entries(), ledger.total()
    ours, ways = _ours(settings, workdir, entries), (*common.MODELS, common.COPY)
    known = {entry.stage for entry in entries if ours(entry)}
    expected = {stage for way in ways for stage in stages(settings, workdir, way)}
    expected |= {common.DETECTOR_STAGE, common.AUDIT_STAGE}
    missing = sorted((expected - known).union(*(unpaid(settings, workdir, way) for way in ways)))
    sentence = f"no guarantee: the ledger lacks {', '.join(missing)}" if missing else total.describe()
    return {
        "entries": [
            {
                "stage": entry.stage,
                "event": None if entry.spend is None else event_to_json(entry.spend.event),
                "records": None if entry.records is None else len(entry.records),
            }
            for entry in entries
        ],
        "guarantee": total.guarantee and not missing,
        "sentence": sentence,
        "uncovered": list(total.uncovered),
        "not_recorded": missing,
        "stated_total": {"epsilon": ledger.epsilon, "delta": ledger.delta},
    }
