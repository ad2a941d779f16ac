"""NumPy archives: MedMNIST files with splits, or plain ``images``/``labels`` with, where known, ``patient``."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_privacy.data.assemble import (
    assemble,
    assumed,
    choose,
    existing_file,
    infer_num_classes,
    level_hashes,
    number_people,
    one_line,
    read_table,
    table_integers,
)
from diffusion_privacy.data.preparation import Sides, preparation
from diffusion_privacy.data.records import LEVEL_HASH, Records
from diffusion_privacy.errors import InputError

_SPLITS = ("train", "val", "test")
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a broken archive makes NumPy and zipfile raise."""


class _Archive:
    """An open archive, read without pickle, whose every failure names the file and the array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            loaded = np.load(path, allow_pickle=False)
        except _UNREADABLE as error:
            raise InputError(f"{path}: not a complete npz archive ({one_line(error)})") from error
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: holds a single array; expected an npz archive")
        self._loaded = loaded
        self.names = tuple(loaded.files)

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.close()

    def read(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise InputError(f"{self.path}: array {name!r} is missing; found {', '.join(self.names) or 'none'}")
        try:
            return self._loaded[name]
        except _UNREADABLE as error:
            raise InputError(
                f"{self.path}: array {name!r} is damaged or pickled ({one_line(error)});"
                " expected numbers or strings stored without pickle"
            ) from error

    def images(self, name: str) -> np.ndarray:
        """uint8 [N, H, W, C]."""
        pixels = self.read(name)
        if pixels.dtype != np.uint8:
            nans = int(np.isnan(pixels).sum()) if pixels.dtype.kind == "f" else 0
            note = f" with {nans} NaN pixels" if nans else ""
            raise InputError(
                f"{self.path}: array {name!r} holds {pixels.dtype}{note}; expected uint8 grey levels 0..255"
            )
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
            raise InputError(
                f"{self.path}: array {name!r} has shape {pixels.shape}; expected [N, H, W] or [N, H, W, 3]"
            )
        if 0 in pixels.shape[1:]:
            raise InputError(f"{self.path}: array {name!r} has shape {pixels.shape}; expected H and W of at least 1")
        return pixels

    def labels(self, name: str, finding: int | str | None) -> np.ndarray:
        """int64 [N]."""
        labels = self.read(name)
        if finding is not None:
            return self._finding(name, labels, finding)
        if labels.dtype.kind not in "iu":
            raise InputError(f"{self.path}: array {name!r} holds {labels.dtype}; expected whole numbers")
        if labels.ndim == 0 or labels.shape not in ((len(labels),), (len(labels), 1)):
            raise InputError(
                f"{self.path}: array {name!r} has shape {labels.shape}; expected [N] or [N, 1], one label each, or"
                " give finding"
            )
        if labels.dtype == np.uint64 and labels.size and labels.max() > np.iinfo(np.int64).max:
            raise InputError(f"{self.path}: array {name!r} holds label {labels.max()}, which is out of range")
        return labels.reshape(-1).astype(np.int64)

    def _finding(self, name: str, labels: np.ndarray, finding: int | str) -> np.ndarray:
        """int64 [N]: 1 where the finding is there."""
        if labels.ndim != 2 or labels.dtype.kind not in "iub" or not np.isin(labels, (0, 1)).all():
            raise InputError(
                f"{self.path}: array {name!r} is {labels.dtype} {labels.shape}; expected 0 and 1 in [N, K] for finding"
                f" = {finding!r}"
            )
        if finding == "any":
            return np.asarray(labels.any(axis=1), np.int64)
        if isinstance(finding, bool) or not isinstance(finding, int) or not 0 <= finding < labels.shape[1]:
            raise InputError(f"finding is {finding!r}; expected 'any' or a number in 0..{labels.shape[1] - 1}")
        return np.asarray(labels[:, finding], np.int64)

    def people(self, name: str, count: int) -> list[str]:
        """Names of people, [N]; whole numbers count as names."""
        names = self.read(name)
        if names.dtype.kind not in "USiu" or names.shape != (count,):
            raise InputError(
                f"{self.path}: array {name!r} is {names.dtype} {names.shape}; expected {count} strings or whole numbers"
            )
        if names.dtype.kind == "S":
            return [value.decode("utf-8", "backslashreplace") for value in names.tolist()]
        return [str(value).strip() for value in names.tolist()]


def npz(
    path: str,
    *,
    split: str | None = None,
    identities: str | None = None,
    identity_array: str | None = None,
    num_classes: int | None = None,
    finding: int | str | None = None,
    channels: int | None = None,
    crop: Sides | str | None = None,
    size: Sides | None = None,
    classes: Sequence[int] | None = None,
    limit: int | None = None,
) -> Records:
    """An npz archive (MedMNIST of 28 … 224 pixels, or your own) of uint8 images [N, H, W] or [N, H, W, 3] and labels.

    Args:
      path: arrays ``{split}_images`` and ``{split}_labels`` (MedMNIST), or plain ``images`` and ``labels``.
      split: for MedMNIST: ``"train"``, ``"val"``, ``"test"``, or several joined by ``+``; None for a plain archive.
        `Records.index` counts through all splits of the file in this order, so it tells their records apart.
      identities: path of a CSV with columns ``split``, ``index`` (within the split), ``patient`` (blank: unknown); a
        column ``label``, if there, must agree with the archive. A plain archive needs no ``split`` column.
      identity_array: name of the array of people (``{split}_`` goes before it); default: ``patient`` where it exists.
        Equal numbers mean the same person across the splits of one file, not across files.
      num_classes: how many classes there are; None: 2 with ``finding``, else as many as occur in the whole file.
      finding: where labels are [N, K] of 0 and 1 (ChestMNIST): the class is 1 if finding number 0 … K−1 is there, or,
        for ``"any"``, if one of them is. None: labels are [N] or [N, 1].
      channels, crop, size: see `preparation.Preparation`.
      classes: keep these labels only; labels keep their numbers.
      limit: keep the first so many. A file sorted by class then gives few classes: `split_records` takes a fair part.

    Raises:
      InputError: a missing, truncated or pickled file, wrong shapes, zero records, counts or labels that do not fit,
        an unknown split, or a table that does not cover the split.
    """
    prepare = preparation(channels, crop, size)
    file = existing_file(path, "path")
    with _Archive(file) as archive:
        parts = _parts(archive)
        chosen = _chosen(archive, parts, split)
        labels = {part: archive.labels(_key(part, "labels"), finding) for part in parts}
        pixels = _pixels(archive, chosen, labels)
        starts = dict(zip(parts, np.cumsum([0] + [len(labels[part]) for part in parts]), strict=False))
        every = np.concatenate(list(labels.values()))
        # A finding is there or is not, whether or not some record has it.
        num_classes = 2 if num_classes is None and finding is not None else num_classes
        stated = num_classes is not None
        num_classes = infer_num_classes(every, num_classes, str(file))
        if identities is not None and identity_array is not None:
            raise InputError("identities and identity_array are both given; expected one of them")
        if identities is not None:
            people = _people_from_table(existing_file(identities, "identities"), labels, chosen, starts)
        else:
            people = _people_from_archive(archive, labels, chosen, identity_array)
    index = np.concatenate([starts[part] + np.arange(len(labels[part])) for part in chosen])
    keep = choose(every[index], num_classes, classes, limit, str(file))
    index = index[keep]
    name = file.name if split is None else f"{file.name} [{split}]"
    return assemble(
        prepare.stack(pixels[keep], 255, str(file)),
        every[index],
        people[index],
        index,
        num_classes=num_classes,
        name=name,
        source_hash=level_hashes(pixels[keep]),
        hash_kind=LEVEL_HASH,
        preparation=prepare.steps(),
        assumed=assumed(stated, classes),
    )


def _key(part: str, field: str) -> str:
    return f"{part}_{field}" if part else field


def _parts(archive: _Archive) -> list[str]:
    """The splits of the file, train, val, test first; ``[""]`` for a plain archive."""
    if "images" in archive.names:
        return [""]
    parts = [name.removesuffix("_images") for name in archive.names if name.endswith("_images")]
    if not parts:
        raise InputError(
            f"{archive.path}: found arrays {', '.join(archive.names) or 'none'};"
            " expected 'images' and 'labels', or '{split}_images' and '{split}_labels'"
        )
    return [part for part in _SPLITS if part in parts] + sorted(set(parts) - set(_SPLITS))


def _chosen(archive: _Archive, parts: list[str], split: str | None) -> list[str]:
    if parts == [""]:
        if split is not None:
            raise InputError(f"split is {split!r}, but {archive.path} is a plain archive; expected no split")
        return parts
    wanted = split.split("+") if isinstance(split, str) else []
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(parts):
        raise InputError(
            f"split is {split!r}; expected one of {', '.join(parts)}, or several joined by +, for {archive.path}"
        )
    return [part for part in parts if part in wanted]


def _pixels(archive: _Archive, chosen: list[str], labels: dict[str, np.ndarray]) -> np.ndarray:
    """uint8 [N, H, W, C] of the chosen splits, one after the other."""
    images = {part: archive.images(_key(part, "images")) for part in chosen}
    first = images[chosen[0]].shape[1:]
    for part in chosen:
        if len(images[part]) != len(labels[part]):
            raise InputError(
                f"{archive.path}: {_key(part, 'labels')!r} holds {len(labels[part])} labels;"
                f" expected {len(images[part])}, as many as {_key(part, 'images')!r}"
            )
        if images[part].shape[1:] != first:
            raise InputError(
                f"{archive.path}: {_key(part, 'images')!r} has images {images[part].shape[1:]}; expected {first}"
            )
    pixels = np.concatenate(list(images.values()))
    if len(pixels) == 0:
        raise InputError(f"{archive.path}: {_key(chosen[0], 'images')!r} holds zero records; expected at least one")
    return pixels


def _people_from_archive(
    archive: _Archive, labels: dict[str, np.ndarray], chosen: list[str], field: str | None
) -> np.ndarray:
    """int32 for every record of the file; a split without names counts as unknown unless it is asked for."""
    wanted = "patient" if field is None else field
    names: list[str] = []
    for part, label in labels.items():
        key = _key(part, wanted)
        required = field is not None and part in chosen
        names += archive.people(key, len(label)) if required or key in archive.names else [""] * len(label)
    return number_people(names)


def _people_from_table(
    file: Path, labels: dict[str, np.ndarray], chosen: list[str], starts: dict[str, np.integer]
) -> np.ndarray:
    """int32 for every record of the archive; every chosen split must be covered exactly."""
    plain = chosen == [""]
    table = read_table(file, ["index", "patient"] if plain else ["split", "index", "patient"])
    row_split = np.asarray([""] * len(table["index"]) if plain else table["split"])
    row_index = table_integers(file, table, "index")
    names = np.full(sum(len(label) for label in labels.values()), "", dtype=object)
    for part, label in labels.items():
        rows = np.flatnonzero(row_split == part)
        if part in chosen and not np.array_equal(np.sort(row_index[rows]), np.arange(len(label))):
            raise InputError(
                f"{file}: {len(rows)} rows for {f'split {part!r}' if part else 'the archive'};"
                f" expected index 0..{len(label) - 1} once each"
            )
        rows = rows[(row_index[rows] >= 0) & (row_index[rows] < len(label))]
        names[starts[part] + row_index[rows]] = np.asarray(table["patient"], dtype=object)[rows]
        if "label" in table and part in chosen:
            wrong = np.flatnonzero(table_integers(file, table, "label")[rows] != label[row_index[rows]])
            if len(wrong):
                raise InputError(
                    f"{file}: label in row {rows[wrong[0]] + 2} differs from the archive;"
                    " expected a table of the same images"
                )
    return number_people([str(name) for name in names])
