"""The order in which the private records of a workdir lie: drawn from the operating system, and told to nobody.

A release has one record for each private record, in their order. In the order of the source a record's place there
would say which record it came from, and by that its class, where files or rows lie class after class, although the
class was randomised. So the private share is put into a uniformly random order where it is loaded, and every stage sees
that one: training, release, evaluation and attack stay aligned, record by record.

The order is drawn when a workdir begins and kept in one file there, readable by the owner alone. Only where nothing
but preparations was made under another config is it drawn again under the new one (`workdir.Workdir`). A workdir of an
earlier version has no such file, and goes on in the order of the source, which its further manifests call public.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path

import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.manifest import GIVEN_ORDER, RANDOM_ORDER
from diffusion_privacy.stages import workdir as workdir_module
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import sharding

FILE = workdir_module.ORDER
_NOTE = (
    "Numbers in the source of the private records, in the order in which releases have them. Whoever has this file "
    "knows which published record was made of which original. Without it no stage of this workdir can go on."
)


def is_random(workdir: Workdir) -> bool:
    """Whether the private records of ``workdir`` lie in an order of their own, and not in that of the source."""
    return (workdir.root / FILE).exists()


def note(workdir: Workdir) -> dict[str, str]:
    """What `train/trained_on.json` keeps of the order, so that it is missed, or told from another, later on."""
    if not is_random(workdir):
        return {"order": GIVEN_ORDER}
    return {"order": RANDOM_ORDER, "order_sha256": _digest(workdir)}


def places(workdir: Workdir, index: np.ndarray) -> np.ndarray:
    """Positions int64 [N] in which ``take`` brings the private records into the order of ``workdir``.

    Draws it if the workdir has just begun. Every process of a job must call.

    Args:
      index: int [N], numbers of the private records in the source, all different.

    Raises:
      InputError: the order that the workdir began with is gone, damaged, or one of other records.
    """
    path = workdir.root / FILE
    if not path.exists():
        if _began_without(workdir, path):
            return np.arange(len(index))
        sharding.once(lambda: _draw(path, index), FILE)
    stored = workdir.read_json(path)
    found = stored.get("order") if isinstance(stored, dict) else None
    order = [number for number in found if isinstance(number, int)] if isinstance(found, list) else []
    where = {int(number): position for position, number in enumerate(index)}
    noted = workdir.root / "train" / "trained_on.json"
    expected = workdir.read_json(noted).get("order_sha256") if noted.exists() else None
    if len(order) != len(where) or set(order) != set(where) or expected not in (None, _digest(workdir)):
        raise InputError(
            f"{path}: expected the order of the {len(index)} private records of this workdir, found another; "
            "restore the file and the data as they were, or take another workdir"
        )
    return np.asarray([where[number] for number in order], np.int64)


def _digest(workdir: Workdir) -> str:
    return hashlib.sha256((workdir.root / FILE).read_bytes()).hexdigest()


def _draw(path: Path, index: np.ndarray) -> None:
    order = [int(number) for number in index]
    secrets.SystemRandom().shuffle(order)
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"note": _NOTE, "order": order}, file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _began_without(workdir: Workdir, path: Path) -> bool:
    """Whether something was computed in the source's order; `InputError` where it was in one that is gone."""
    learnt, releases = workdir.root / "train" / "trained_on.json", workdir.root / "releases"
    said = [learnt] if learnt.exists() else []
    said += sorted(releases.glob("*/manifest.json"))
    for file in said:
        if workdir.read_json(file).get("order") == RANDOM_ORDER:
            raise InputError(
                f"{path}: expected the order that the private records of this workdir lie in, found none; restore the "
                "file, nothing else says which record is which, or take another workdir"
            )
    return bool(said) or any(releases.glob("[!.]*"))
