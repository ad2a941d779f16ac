"""Private training and the ledger: paid for before the first step, read back from the checkpoint.

For any stage that trains on private records with ``training.privacy`` on::

    dp_training.pay(ledger, folder, "train flow", config, hashes)     # before loop.train(..., workdir=folder)
    spend = dp_training.spend_of(folder)                              # afterwards, for what is given away
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import Spend
from diffusion_privacy.mechanisms.ledger import Entry, Ledger
from diffusion_privacy.training import privacy
from diffusion_privacy.training.checkpoint import read_progress
from diffusion_privacy.training.privacy import Plan
from diffusion_privacy.training.state import TrainConfig

_NAME = "ledger_stage.json"


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
    progress = read_progress(folder)
    if "privacy" not in progress:
        raise InputError(f"{folder}: expected a model trained with DP-SGD, this one was not")
    return privacy.from_json(progress["privacy"])


def pay(ledger: Ledger, folder: Path, stage: str, config: TrainConfig, hashes: Sequence[str]) -> str:
    """Enters a private run into the ledger, once, before it sees a record; returns the stage's name there.

    A run that goes on finds its own entry. One in another folder is another run and pays again.

    Args:
      folder: of the run; keeps its name in the ledger.
      stage: what is trained, in words.
      config: with privacy on.
      hashes: of the records it will draw from.

    Raises:
      InputError: the ledger is exhausted or says "no guarantee"; or the settings are out of range.
    """
    plan = privacy.make_plan(config.privacy, records=len(hashes), batch_size=config.batch_size, steps=config.steps)
    path = folder / _NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".partial")
        temporary.write_text(json.dumps({"stage": f"{stage}, DP-SGD, run {secrets.token_hex(4)}"}) + "\n")
        os.replace(temporary, path)
    name = stage_of(folder)
    if name not in {entry.stage for entry in ledger.entries()}:
        ledger.record(Entry(name, spend_of_plan(plan), tuple(hashes)))
    return name


def require_paid(ledger: Ledger, folder: Path) -> Spend:
    """The event of the private run in ``folder``, of which the ledger has an entry.

    Raises:
      InputError: training was not private, or the ledger does not know of this run or says something else of it.
    """
    spend = spend_of(folder)
    if spend is None:
        raise InputError(
            f"config.release.flow_training: 'dp-sgd', but the model in {folder} was not trained with DP-SGD; set "
            "flow.training.privacy.epsilon and train it in another workdir"
        )
    name = stage_of(folder)
    if all(entry.stage != name or entry.spend != spend for entry in ledger.entries()):
        raise InputError(f"{ledger.path}: expected the entry {name!r} with the event of {folder}, found none")
    return spend


def stage_of(folder: Path) -> str:
    """The name in the ledger of the private run in ``folder``; InputError where `pay` was not called for it."""
    path = folder / _NAME
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: expected the name of this run in the ledger, found none that can be read") from None
