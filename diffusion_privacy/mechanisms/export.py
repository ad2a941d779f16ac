"""Write a release to disk: complete or absent, paid for before it is visible.

Order: refuse if the directory exists; write everything into a hidden sibling; spend in the ledger; rename. A crash
before the rename leaves no release (at worst a spent budget, never an unpaid release). What a killed process left of
its hidden sibling is removed by the next one: a second draw of the same records would be another release.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.data.pictures import to_uint8
from diffusion_privacy.data.table_csv import csv_text
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.ledger import Entry, Ledger, Total
from diffusion_privacy.mechanisms.mechanism import MetricMechanism
from diffusion_privacy.mechanisms.release import Privatised

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def complete_or_absent(directory: Path) -> Iterator[Path]:
    """A hidden folder beside ``directory`` to write into: it takes that name when the block ends, and is removed when
    the block raises. Nobody sees a part of it. Hidden folders of writers that are no longer alive are removed first.

    Raises:
      InputError: ``directory`` exists. What is given away is never overwritten.
    """
    if directory.exists():
        raise InputError(f"{directory}: exists already; a release is never overwritten")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    # A writer holds its folder's lock as long as it lives; the parent's keeps a folder from being seen without one.
    with _locked(directory.parent):
        _remove_abandoned(directory)
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield temporary
        sync(temporary)
        os.rename(temporary, directory)
        sync(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(held)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(directory: Path) -> None:
    """Removes the hidden folders of ``directory`` whose writers are gone: not paid for, and made of private records."""
    for left in directory.parent.glob(f".{glob.escape(directory.name)}.*.tmp"):
        try:
            handle = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            continue  # complete since it was listed
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # being written
        finally:
            os.close(handle)
        _LOG.warning("%s: removed, left behind by a process that was killed", left)
        shutil.rmtree(left)


def publish(
    release: Privatised,
    directory: Path,
    *,
    ledger: Ledger | None,
    class_names: Sequence[str] | None = None,
    table: Sequence[Sequence[Any]] | None = None,
    header: Sequence[str] | None = None,
) -> Path:
    """Write ``release`` as ``directory``, which must not exist.

    Images [N, H, W, C] in [-1, 1]: ``images/<class>/<number>.png`` and ``data.npz`` (image uint8, label int32). Where
    the condition is attributes [N, A]: ``images/<number>.png``, ``attributes.csv`` (path, then a column an attribute)
    and the same npz. Tables: ``data.csv`` with ``header`` and the rows of ``table``, which the caller has formatted
    from ``release.data``. ``manifest.json`` beside either.

    Args:
      ledger: where to account for it, or None (the manifest then says that earlier releases are not counted).
      class_names: folder names, the class numbers when None; or names of the attributes.
      table: N rows, for a table.
      header: column names, for a table.

    Raises:
      InputError: the directory exists, the ledger is exhausted or has no entry of the flow's private training, the
        records were given up as public ones, a public flow learnt from records that the ledger has as private ones, or
        the table has another number of rows. Nothing is left behind, but the note of what a public flow learnt from.
    """
    directory = Path(directory)
    count = release.manifest.count_in
    rows = release.data.shape[0] if table is None else len(table)
    if rows != count or release.labels.shape[0] != count:
        raise InputError(f"{directory}: {count} records came in, {rows} would go out; expected the same number")
    with complete_or_absent(directory) as temporary:
        if table is None:
            _write_images(release, temporary, class_names)
        else:
            _write_table(temporary / "data.csv", header, table)
        composition = release.manifest.composition if ledger is None else _spend(release, ledger, directory.name)
        manifest = dataclasses.replace(release.manifest, composition=composition, count_out=rows)
        write_text(temporary / "manifest.json", manifest_json(manifest))
    return directory


def manifest_json(manifest: Any) -> str:
    """The manifest as indented JSON; numbers that are not finite are refused."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _spend(release: Privatised, ledger: Ledger, name: str) -> dict[str, Any]:
    """Append the release to the ledger and describe the new total, with the number by which the two are known.

    One of metric privacy is entered under its own promise; it has no ε, and the total says "no guarantee" from then on.
    """
    mechanism_only = release.manifest.flow_training == "mechanism-only"
    metric = release.manifest.mechanism == MetricMechanism.name
    flow = release.flow
    if flow.spend is not None and all((e.stage, e.spend) != (flow.stage, flow.spend) for e in ledger.entries()):
        raise InputError(f"{ledger.path}: no entry {flow.stage!r} with the event of the flow's training; expected one")
    if flow.training == "public" and flow.trained_on and release.hashes is not None:
        # Without source hashes those of the flow are of prepared values, which would meet nothing.
        ledger.give_up(sorted(flow.trained_on), f"training of the public flow of release {name}", flow.kind)
    training = Entry(f"flow training for release {name}", None, release.hashes, kind=release.hash_kind)
    if mechanism_only and training not in ledger.entries():
        ledger.record(training)
    entered = f"release {name} ({release.manifest.guarantee})" if metric else f"release {name}"
    # Drawn anew for each attempt: one that was paid for and never published is another draw of noise.
    number = secrets.token_hex(16)
    after: Total = ledger.record(
        Entry(entered, release.spend, release.hashes, release.relation, number, release.hash_kind),
        accept_uncovered=mechanism_only or metric,
    )
    return {
        "ledger": True,
        "id": number,
        "stages": after.stages,
        "epsilon_covered_stages": after.account.epsilon,
        "delta": after.account.delta,
        "relation": after.relation.describe(),
        "stated_total": {"epsilon": ledger.epsilon, "delta": ledger.delta},
        "guarantee": after.guarantee,
        "uncovered": list(after.uncovered),
        "summary": after.describe(),
    }


def _write_images(release: Privatised, directory: Path, class_names: Sequence[str] | None) -> None:
    from PIL import Image

    if release.data.ndim != 4 or release.data.shape[-1] not in (1, 3):
        raise InputError(
            f"release: expected images [N, H, W, 1 or 3], got {release.data.shape}; give `table` for tables"
        )
    pixels = to_uint8(release.data)
    np.savez_compressed(directory / "data.npz", image=pixels, label=release.labels)
    width = len(str(len(pixels) - 1))
    if release.labels.ndim == 2:
        folders = [""] * len(pixels)
        _write_attributes(directory, release.labels, class_names, width)
    else:
        folders = _class_folders(release.labels, class_names)
    for folder in set(folders):
        (directory / "images" / folder).mkdir(parents=True, exist_ok=True)
    for i, (image, folder) in enumerate(zip(pixels, folders, strict=True)):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.save(directory / "images" / folder / f"{i:0{width}d}.png")


def _write_attributes(directory: Path, labels: np.ndarray, names: Sequence[str] | None, width: int) -> None:
    header = [f"attribute_{j}" for j in range(labels.shape[1])] if names is None else list(names)
    if len(header) != labels.shape[1] or len(set(header)) != len(header):
        raise InputError(f"class_names: expected {labels.shape[1]} distinct names of attributes, got {len(header)}")
    rows = [[f"images/{i:0{width}d}.png", *row] for i, row in enumerate(labels.tolist())]
    _write_table(directory / "attributes.csv", ["path", *header], rows)


def _class_folders(labels: np.ndarray, class_names: Sequence[str] | None) -> list[str]:
    """The folder of each record, a plain name for each class."""
    classes = np.unique(labels)
    names = {int(c): str(int(c)) for c in classes} if class_names is None else dict(enumerate(class_names))
    if any(int(c) not in names or "/" in names[int(c)] or names[int(c)] in ("", ".", "..") for c in classes):
        raise InputError(f"class_names: expected a plain folder name for each class up to {int(classes.max())}")
    if len({names[int(c)] for c in classes}) != len(classes):
        raise InputError("class_names: expected distinct folder names")
    return [names[int(label)] for label in labels]


def _write_table(path: Path, header: Sequence[str] | None, table: Sequence[Sequence[Any]]) -> None:
    if header is None or any(len(row) != len(header) for row in table):
        raise InputError("table: expected a header and rows of its length")
    path.write_text(csv_text(header, table), encoding="utf-8", newline="")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(directory: Path) -> None:
    """Waits until the names in ``directory`` are on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
