"""Private training and the ledger: paid for before the first step, by the run's secret; read back from the checkpoint.

For any stage that trains on private records with ``training.privacy`` on::

    loop.train(..., workdir=folder, pay=dp_training.payment(ledger, "train flow", hashes))
    spend = dp_training.require_paid(ledger, folder)                  # afterwards, for what is given away

A mechanism is one secret with one set of settings and records: `secret.Secret.fingerprint` tells two of them apart. A
run that goes on has the secret it began with and finds its own entry. One that is repeated, in the same folder or in
another, has a new secret: it is another mechanism on the same records, and pays as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.ledger import Entry, Ledger
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD_AND_CONDITION
from diffusion_privacy.training import privacy
from diffusion_privacy.training.checkpoint import has_checkpoint, read_progress
from diffusion_privacy.training.loop import Pay
from diffusion_privacy.training.privacy import Plan

_NAME = "ledger_stage.json"
_SHOWN = 16
"""Hexadecimal digits of a fingerprint in a name in the ledger: 64 bits, so that no two runs meet by chance."""


RELATION = REPLACE_RECORD_AND_CONDITION
"""Of a private run's event: one record's gradient is clipped whatever the record, its class included."""


def spend_of_plan(plan: Plan) -> Spend:
    """The event of a whole run. Its multiplier is over C: the accountant converts it to replace-one."""
    return Spend(plan.event(), "add-or-remove-one")


def spend_of(folder: Path) -> Spend | None:
    """The event of the private run in ``folder``, by its latest checkpoint; None where training was not private.

    It is that of all steps of the run, whatever the checkpoint's own: less would have to be proved.

    Raises:
      InputError: no checkpoint, or a damaged one.
    """
    progress = read_progress(folder)
    return spend_of_plan(privacy.from_json(progress["privacy"])) if "privacy" in progress else None


def plan_of(folder: Path) -> Plan:
    """The plan of the private run in ``folder``, by its latest checkpoint.

    Raises:
      InputError: no checkpoint, a damaged one, or training that was not private.
    """
    return privacy.from_json(_private(folder))


def _private(folder: Path) -> dict[str, Any]:
    """What the latest checkpoint in ``folder`` keeps of a private run: its plan, and the fingerprint of its secret."""
    progress = read_progress(folder)
    if "privacy" not in progress:
        raise InputError(f"{folder}: expected a model trained with DP-SGD, this one was not")
    return dict(progress["privacy"])


def payment(ledger: Ledger, stage: str, hashes: Sequence[str], kind: str = "") -> Pay:
    """What enters a private run into ``ledger`` before it makes a step: for the argument ``pay`` of `loop.train`.

    The entry's name is ``stage`` with the secret's fingerprint, so that a run is entered once however often it goes on.
    A note of it is left in the run's folder.

    Args:
      ledger: of the records.
      stage: what is trained, in words.
      hashes: of the records it draws from, one each.
      kind: what they are hashes of, one of `data.records.HASH_KINDS`; empty where that is not known.

    Returns:
      ``(folder, plan, fingerprint) -> None``. It raises InputError where the ledger is exhausted or says "no
      guarantee", or ``hashes`` are not as many as the plan's records.
    """

    def pay(folder: Path, plan: Plan, fingerprint: str) -> None:
        if len(hashes) != plan.records:
            raise InputError(f"{stage}: expected one hash for each of {plan.records} records, got {len(hashes)}")
        name = f"{stage}, DP-SGD, run {fingerprint[:_SHOWN]}"
        entry = Entry(name, spend_of_plan(plan), tuple(hashes), RELATION, kind=kind)
        if entry not in ledger.entries():
            ledger.record(entry)
        # After the entry: a refused run leaves the note of the one before it.
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _NAME
        temporary = path.with_name(path.name + ".partial")
        temporary.write_text(json.dumps({"stage": entry.stage, "secret": fingerprint}) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    return pay


def require_paid(ledger: Ledger, folder: Path) -> Spend:
    """The event of the private run in ``folder``, of which the ledger has an entry.

    Raises:
      InputError: training was not private, or the ledger does not know of this run, of its secret, or says something
        else of it.
    """
    spend = spend_of(folder)
    if spend is None:
        raise InputError(
            f"config.release.flow_training: 'dp-sgd', but the model in {folder} was not trained with DP-SGD; set "
            "flow.training.privacy.epsilon and train it in another workdir"
        )
    fault = fault_of(ledger, folder)
    if fault:
        raise InputError(
            f"{ledger.path}: expected the entry {stage_of(folder)!r} for the model in {folder}, but {fault}; train in "
            "another workdir, or start the stage again without its done.json, which enters the run by its secret"
        )
    return spend


def fault_of(ledger: Ledger, folder: Path) -> str:
    """Why the private run in ``folder`` is not paid for in ``ledger``, without names of files; empty where it is.

    Raises:
      InputError: no checkpoint, or no note of a payment; see `plan_of` and `stage_of`.
    """
    note, run = _note(folder), _private(folder)
    if "secret" not in note:
        # One note was left for all runs in a folder, so it does not say that this one was paid for.
        return "it was entered by an earlier version, which did not tell two runs in a folder apart"
    if note["secret"] != run.get("secret_fingerprint"):
        return "that entry is of a run with another secret than the model's"
    spend = spend_of_plan(privacy.from_json(run))
    if all(entry.stage != note["stage"] or entry.spend != spend for entry in ledger.entries()):
        return "the ledger has none of that name with the event of the model's training"
    return ""


def goes_on(ledger: Ledger, folder: Path) -> bool:
    """Whether training in ``folder`` would go on with a run that is paid for, or find it finished.

    Without a checkpoint it is False, also where a stored secret would make the paid run again: who plans what is still
    to be spent errs upwards.
    """
    return (folder / _NAME).exists() and has_checkpoint(folder) and not fault_of(ledger, folder)


def was_paid(ledger: Ledger, folder: Path) -> bool:
    """Whether some run in ``folder`` has been entered into ``ledger``, and may go on without paying again.

    Whether it does, its secret decides (`payment`). One that was killed before its first checkpoint has an entry too:
    a plan that counted it once more could refuse what is paid for.
    """
    return (folder / _NAME).exists() and any(entry.stage == stage_of(folder) for entry in ledger.entries())


def stage_of(folder: Path) -> str:
    """The name in the ledger of the private run in ``folder``; InputError where `payment` was not made for it."""
    return str(_note(folder)["stage"])


def _note(folder: Path) -> dict[str, Any]:
    path = folder / _NAME
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        return {**note, "stage": str(note["stage"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: expected the name of this run in the ledger, found none that can be read") from None
