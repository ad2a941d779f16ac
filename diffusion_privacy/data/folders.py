"""Folders of image files: which files are records, of which class, and whose."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_privacy.data.assemble import existing_file, infer_num_classes, number_people, read_table
from diffusion_privacy.data.records import SHARED_NAMES
from diffusion_privacy.errors import InputError

BY_NAME = "files by the hash of their path below the class folder"
"""How class sub-folders are listed, see `Listing.order`."""

_OF_ARCHIVES = ("__MACOSX",)
"""Folders that unpacking leaves beside those of classes."""

_COLUMNS = {"path": "path", "label": "label", "identity": "identity"}
"""What a table is expected to call them."""


class Kind(NamedTuple):
    """Which files a source reads.

    Attributes:
      name: in words, for messages.
      reads: whether a file is one of them.
      refused: suffixes (lower case) of images that it does not read, which must not be passed over.
    """

    name: str
    reads: Callable[[Path], bool]
    refused: tuple[str, ...]


class Listing(NamedTuple):
    """The records of a folder in their order.

    Attributes:
      files: their paths, N.
      label: int64 [N].
      person: int32 [N], or None where only the files can say.
      num_classes: number of classes.
      where: what to name in messages about labels.
      attributes: int64 [N, A] of 0 and 1, or None where none were asked for.
      stated: whether the list of classes is known without looking at a record.
      order: `BY_NAME`, or empty where a table gives the order.
      ties: `SHARED_NAMES` where files of one name lie in several class folders, else empty.
    """

    files: list[Path]
    label: np.ndarray
    person: np.ndarray | None
    num_classes: int
    where: str
    attributes: np.ndarray | None = None
    stated: bool = False
    order: str = ""
    ties: tuple[str, ...] = ()


def listing(
    folder: Path,
    table: str | None,
    num_classes: int | None,
    kind: Kind,
    columns: Mapping[str, str] | None = None,
    person: str | None = None,
    attributes: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
) -> Listing:
    """The records of ``folder``, by class sub-folders or by a CSV table.

    Without a table each sub-folder is a class, numbered by sorted name; its records are all files of the kind below it.
    They are ordered by the SHA-256 of their path below the class folder: a file's place does not tell its class, and
    stays when it is moved into another class folder or its content is exchanged. Hashed, since names such as cat_1 and
    dog_1 would sort by class. Files of one name in several class folders follow each other by class
    (`Listing.ties`). Files and folders that start with a dot, and files that are no images, are passed over.

    A table has columns ``path`` (relative to the folder), ``label`` (numbers, or names numbered in sorted order) and,
    if known, ``identity`` (blank: unknown); its rows are the records, in their order, no file twice.

    Args:
      folder: an existing folder.
      table: path of the CSV, or None.
      num_classes: how many classes there are; None: as many as ``class_names``, else the number of sub-folders, or as
        many as occur in the table.
      kind: which files.
      columns: what the table calls them, where not ``path``, ``label``, ``identity``: ``{"path": "Image Index", …}``.
      person: regular expression that is searched for in every file's name; what its groups match names the person.
      attributes: columns of the table that hold 0 or 1 for each record.
      class_names: the sub-folders, or the labels of the table, in the order of their numbers, whether or not a record
        has them; None: those that are found. (With sub-folders ``num_classes`` states them as well, where there are so
        many, empty ones included; with labels that are numbers it always does.)

    Raises:
      InputError: a class that ``class_names`` lacks, no records, a loose image, an image of another format, a table
        that does not fit, or a name in which ``person`` is not found.
    """
    named_here = isinstance(columns, Mapping) and set(columns) <= set(_COLUMNS)
    if columns is not None and (table is None or not named_here):
        raise InputError(f"columns is {columns!r}; expected names of {', '.join(_COLUMNS)}, beside a table")
    if isinstance(attributes, str):
        raise InputError(f"attributes is {attributes!r}; expected a list of columns")
    if attributes and table is None:
        raise InputError(f"attributes is {list(attributes)!r}; expected none without a table that has such columns")
    names = _class_names(class_names, num_classes)
    wanted = num_classes if names is None else len(names)
    marks, order = None, ""
    ties: tuple[str, ...] = ()
    if table is not None:
        table_file, named = existing_file(table, "table"), {**_COLUMNS, **(columns or {})}
        files, label, people, marks, numbered = _from_table(folder, table_file, kind, named, attributes, names)
        classes, where = infer_num_classes(label, wanted, str(table_file)), str(table_file)
        # Names are numbered by their rank among those that occur: a number of classes does not say which these are.
        stated = names is not None or (numbered and num_classes is not None)
    else:
        files, label, found, ties = _from_folders(folder, kind, names)
        people, where, order = None, str(folder), BY_NAME
        classes = infer_num_classes(label, found if wanted is None else wanted, where)
        stated = names is not None or num_classes == found
    if person is not None:
        if people is not None:
            raise InputError(f"person is {person!r}, but {where} has a column of people; expected one of the two")
        people = _from_names(files, person)
    return Listing(files, label, people, classes, where, marks, stated, order, ties)


def _class_names(class_names: object, num_classes: int | None) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    given = tuple(class_names) if isinstance(class_names, Sequence) and not isinstance(class_names, str) else ()
    if not given or not all(isinstance(name, str) and name for name in given) or len(set(given)) < len(given):
        raise InputError(f"class_names is {class_names!r}; expected different names")
    if num_classes not in (None, len(given)):
        raise InputError(f"num_classes is {num_classes!r}; expected {len(given)}, as many as class_names")
    return given


def _marks(table: Mapping[str, list[str]], table_file: Path, names: Sequence[str]) -> np.ndarray:
    """int64 [N, A] from the columns of these names."""
    for name in names:
        for row, cell in enumerate(table[name], start=2):
            if cell not in ("0", "1"):
                raise InputError(f"{table_file}: {name} in row {row} is {cell!r}; expected 0 or 1")
    return np.stack([np.asarray(table[name], np.int64) for name in names], axis=1)


def _from_names(files: list[Path], pattern: str) -> np.ndarray:
    """Person int32 [N]; equal texts of all groups are one person."""
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(
            f"person is {pattern!r}, no regular expression ({error}); expected one with a group"
        ) from error
    if compiled.groups == 0:
        raise InputError(f"person is {pattern!r}; expected a group, (…), around what names the person")
    names = []
    for file in files:
        found = compiled.search(file.name)
        text = "|".join(group or "" for group in found.groups()) if found else ""
        if not text.strip("|"):
            raise InputError(f"{file}: person {pattern!r} is not found in its name; expected it in every file")
        names.append(text)
    return number_people(names)


def _from_folders(
    folder: Path, kind: Kind, names: tuple[str, ...] | None
) -> tuple[list[Path], np.ndarray, int, tuple[str, ...]]:
    """Files in an order that does not tell their class, the class int64 [N], how many there are, and `Listing.ties`."""
    stray = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and kind.reads(p))
    if stray:
        raise InputError(f"{folder / stray[0]}: lies beside the class sub-folders of {folder}; expected it inside one")
    class_folders = sorted(
        p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in _OF_ARCHIVES
    )
    if names is not None and (other := [p for p in class_folders if p.name not in names]):
        raise InputError(f"{other[0]}: is no class of class_names; expected one of {', '.join(names)}")
    numbers = {name: number for number, name in enumerate(names or [p.name for p in class_folders])}
    listed: list[tuple[bytes, str, Path]] = []
    for class_folder in class_folders:
        found = sorted(p for p in class_folder.rglob("*") if not p.is_dir() and not _hidden(p, class_folder))
        for file in found:
            if not file.exists():
                raise InputError(f"{file}: is a link to a file that is not there; expected a file")
            if file.suffix.lower() in kind.refused:
                raise InputError(f"{file}: format is not read; expected {kind.name}")
        listed += [(_name_hash(p, class_folder), class_folder.name, p) for p in found if kind.reads(p)]
    if not listed:
        raise InputError(f"{folder}: holds zero records; expected {kind.name} files in one sub-folder for each class")
    # By class where names are shared, and not by content: then exchanging a file's content would move the others.
    listed.sort()
    ties = (SHARED_NAMES,) if len({name for name, _, _ in listed}) < len(listed) else ()
    label = np.asarray([numbers[class_name] for _, class_name, _ in listed], np.int64)
    return [file for _, _, file in listed], label, len(numbers), ties


def _name_hash(file: Path, below: Path) -> bytes:
    """SHA-256 of a file's path below a folder, the same on every system."""
    return hashlib.sha256(os.fsencode(file.relative_to(below).as_posix())).digest()


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def _from_table(
    folder: Path,
    table_file: Path,
    kind: Kind,
    columns: Mapping[str, str],
    attributes: Sequence[str],
    names: tuple[str, ...] | None,
) -> tuple[list[Path], np.ndarray, np.ndarray | None, np.ndarray | None, bool]:
    """Files, their label int64 [N] and, where the table says it, person int32 [N]; attributes int64 [N, A]; whether
    labels are numbers.
    """
    given = read_table(table_file, [columns["path"], columns["label"], *attributes])
    marks = _marks(given, table_file, attributes) if attributes else None
    table = {ours: given[theirs] for ours, theirs in columns.items() if theirs in given}
    files = [folder / cell for cell in table["path"]]
    first: dict[Path, int] = {}
    for row, file in enumerate(files, start=2):
        if first.setdefault(file, row) < row:
            # Where persons are not named, each row would be another one, with the same image.
            raise InputError(f"{table_file}: path in row {row} is that of row {first[file]}; expected each file once")
        if not file.is_file():
            raise InputError(
                f"{table_file}: path in row {row} is {table['path'][row - 2]!r}; expected a file in {folder}"
            )
        if not kind.reads(file):
            raise InputError(f"{table_file}: path in row {row} is {table['path'][row - 2]!r}; expected {kind.name}")
    cells = table["label"]
    if "" in cells:
        raise InputError(f"{table_file}: label in row {cells.index('') + 2} is blank; expected a number or a name")
    numbered = names is None and all(re.fullmatch(r"-?[0-9]{1,9}", cell) for cell in cells)
    if names is not None:
        if other := [row for row, cell in enumerate(cells, start=2) if cell not in names]:
            raise InputError(
                f"{table_file}: label in row {other[0]} is {cells[other[0] - 2]!r}; expected one of {', '.join(names)}"
            )
        label = np.asarray([names.index(cell) for cell in cells], np.int64)
    elif numbered:
        label = np.asarray([int(cell) for cell in cells], np.int64)
    else:
        label = np.unique(np.asarray(cells), return_inverse=True)[1].astype(np.int64)
    people = number_people(table["identity"]) if "identity" in table else None
    return files, label, people, marks, numbered


def stack(files: list[Path], read: Callable[[Path], tuple[np.ndarray, str]]) -> tuple[np.ndarray, list[str]]:
    """``read(file) -> (pixels [H, W, C], hash)`` of every file: pixels ``[N, H, W, C]`` and the hashes.

    Raises:
      InputError: two images differ in size, or what ``read`` raises.
    """
    first, _ = read(files[0])
    pixels, source = np.empty((len(files), *first.shape), first.dtype), []
    for i, file in enumerate(files):
        image, found = read(file)
        source.append(found)
        if image.shape != first.shape:
            raise InputError(
                f"{file}: is {image.shape[0]} x {image.shape[1]} (height x width); expected {first.shape[0]} x"
                f" {first.shape[1]} as {files[0].name}, or give size"
            )
        pixels[i] = image
    return pixels, source
