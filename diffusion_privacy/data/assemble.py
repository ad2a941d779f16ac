"""What every source shares: finding files, naming people, choosing records, and grey levels to [-1, 1]."""

from __future__ import annotations

import csv
import hashlib
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from diffusion_privacy.data.records import CLASSES_KEPT, LEVEL_HASH, LIST_OF_CLASSES, Records
from diffusion_privacy.errors import InputError, MissingDataError

T = TypeVar("T")
_LARGEST = np.iinfo(np.int32).max


def existing_file(path: object, field: str) -> Path:
    """``path`` as a Path. Raises InputError naming ``field`` unless it is a path to a file."""
    return _existing(path, field, "a file", Path.is_file)


def existing_folder(path: object, field: str) -> Path:
    """``path`` as a Path. Raises InputError naming ``field`` unless it is a path to a folder."""
    return _existing(path, field, "a folder", Path.is_dir)


def _existing(path: object, field: str, kind: str, test: Callable[[Path], bool]) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise MissingDataError(f"{field} is {path!r}; expected the path of {kind}")
    found = Path(path).expanduser()
    try:
        if not found.exists():
            raise MissingDataError(f"{field}: {found} does not exist; expected {kind}")
        if not test(found):
            raise InputError(f"{field}: {found} is not {kind}")
    except OSError as error:
        raise InputError(f"{field}: {found} cannot be reached ({one_line(error)}); expected {kind}") from error
    return found


def one_line(error: BaseException) -> str:
    """An exception of a library as one line, for the end of a message."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def whole_number(value: object, field: str, minimum: int) -> int:
    """``value`` as int. Raises InputError naming ``field`` unless it is a whole number >= minimum."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise InputError(f"{field} is {value!r}; expected a whole number >= {minimum}")
    return int(value)


def read_table(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """A CSV file with a header line as ``{column: values}``, blanks trimmed.

    Args:
      path: an existing UTF-8 file.
      columns: columns that it must have; all others are read too.

    Raises:
      InputError: not such a file, a column is missing or twice there, no rows, or a row of another length.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({one_line(error)})") from error
    header = rows[0] if rows else []
    missing = [column for column in columns if header.count(column) != 1]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} stands {header.count(missing[0])} times; expected once")
    if len(rows) == 1:
        raise InputError(f"{path}: holds a header only; expected at least one row")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} cells; expected {len(header)}")
    return {column: [row[place] for row in rows[1:]] for place, column in enumerate(header)}


def table_integers(path: Path, table: dict[str, list[str]], column: str) -> np.ndarray:
    """A column of `read_table` as int64. Raises InputError naming the first cell that is not a whole number."""
    for row, cell in enumerate(table[column], start=2):
        if not cell.removeprefix("-").isdecimal() or len(cell) > 18:
            raise InputError(f"{path}: {column} in row {row} is {cell!r}; expected a whole number")
    return np.asarray([int(cell) for cell in table[column]], np.int64)


def number_people(names: Collection[str]) -> np.ndarray:
    """int32 ``[N]``: equal names get equal numbers (their rank when sorted); a blank name is a person of its own."""
    given = np.asarray(list(names), dtype=np.str_)
    blank = given == ""
    people, numbers = np.unique(given[~blank], return_inverse=True)
    result = np.empty(len(given), np.int32)
    result[~blank] = numbers
    result[blank] = len(people) + np.arange(int(blank.sum()))
    return result


def infer_num_classes(labels: np.ndarray, num_classes: int | None, where: str) -> int:
    """``num_classes`` if given, else how many ``labels[N]`` there are, which then must be 0..K−1 with none missing.

    Raises:
      InputError: a label is negative or not below num_classes, or one is missing and num_classes is not given.
    """
    if num_classes is not None:
        whole_number(num_classes, "num_classes", 1)
    present = np.unique(labels)
    limit = len(present) if num_classes is None else num_classes
    if present[0] < 0 or present[-1] >= limit:
        worst = present[0] if present[0] < 0 else present[-1]
        hint = " (every class must occur, or give num_classes)" if num_classes is None else ""
        raise InputError(f"{where}: label {worst} is out of range; expected 0..{limit - 1}{hint}")
    return limit


def choose(
    labels: np.ndarray, num_classes: int, classes: Sequence[int] | None, limit: int | None, where: str
) -> np.ndarray:
    """Positions of the records to keep, int64, ascending: those of ``classes`` by ``labels[N]``, of these the first
    ``limit``.

    Raises:
      InputError: a class that does not exist or is named twice, a limit below 1, or nothing is left.
    """
    keep = np.arange(len(labels))
    if classes is not None:
        if isinstance(classes, str) or not isinstance(classes, Collection) or len(classes) == 0:
            raise InputError(f"classes is {classes!r}; expected a list of class numbers")
        wanted = [whole_number(c, "classes", 0) for c in classes]
        if max(wanted) >= num_classes or len(set(wanted)) < len(wanted):
            raise InputError(f"classes is {wanted}; expected different numbers in 0..{num_classes - 1} for {where}")
        keep = np.flatnonzero(np.isin(labels, wanted))
    if limit is not None:
        keep = keep[: whole_number(limit, "limit", 1)]
    if len(keep) == 0:
        raise InputError(f"{where}: holds zero records of classes {classes}; expected at least one")
    return keep


def assumed(stated: bool, classes: Sequence[int] | None) -> tuple[str, ...]:
    """`Records.assumed` of a source.

    Args:
      stated: whether the list of classes is known without looking at a record.
      classes: those that were asked for, None for all: who is kept depends on the records' classes.
    """
    return (*(() if stated else (LIST_OF_CLASSES,)), *(() if classes is None else (CLASSES_KEPT,)))


def level_hashes(pixels: np.ndarray) -> list[str]:
    """One hash an image of stored grey levels, integers ``[N, H, W]`` or ``[N, H, W, C]`` in [0, 2^16).

    128-bit SHA-256 prefixes of size and levels. Neither the integer type nor the file format has a part in it: the same
    levels in IDX and npz files are one record.
    """
    rows = np.ascontiguousarray(pixels[..., None] if pixels.ndim == 3 else pixels, "<u2")
    head = f"levels {rows.shape[1:]} ".encode()
    return [hashlib.sha256(head + row.tobytes()).hexdigest()[:32] for row in rows]


def bytes_hash(content: bytes) -> str:
    """Hash of a record that is a file: 128-bit SHA-256 prefix of its bytes.

    Of the bytes and not of the decoded pixels, which for JPEG depend on the decoder's version. A file that was saved
    again is another record.
    """
    return hashlib.sha256(b"file " + content).hexdigest()[:32]


def _whole(values: np.ndarray, name: str, field: str) -> np.ndarray:
    """``values``, which a cast to int32 must not change; InputError names the field otherwise."""
    found = np.asarray(values)
    if found.dtype.kind not in "iu":
        raise InputError(f"{name}: {field} holds {found.dtype}; expected whole numbers")
    if found.size and found.max() > _LARGEST:
        raise InputError(
            f"{name}: {field} {found.max()} is out of range; expected at most {_LARGEST} (assemble.number_people "
            "numbers names and longer numbers)"
        )
    return found


def assemble(
    pixels: np.ndarray,
    label: np.ndarray,
    identity: np.ndarray,
    index: np.ndarray,
    *,
    num_classes: int,
    name: str,
    levels: int = 256,
    source_hash: Sequence[str] | None = None,
    hash_kind: str = "",
    preparation: tuple[str, ...] = (),
    attributes: np.ndarray | None = None,
    attribute_names: Sequence[str] = (),
    listing: str = "",
    assumed: tuple[str, ...] = (),
) -> Records:
    """Records from grey levels: 0..levels−1 map affinely to [-1, 1], both ends exactly.

    Args:
      pixels: integers ``[N, H, W]`` or ``[N, H, W, C]`` in [0, levels).
      label, identity, index: integers ``[N]``, see `Records`.
      num_classes, name, levels, preparation, attributes, attribute_names, listing, assumed: see `Records`.
      source_hash: one text a record; None where the source stores these grey levels themselves, see `level_hashes`.
      hash_kind: what ``source_hash`` is of, see `Records`; that of `level_hashes` where it is None.

    Raises:
      InputError: as `Records`, a level out of range, or an array of other than whole numbers.
    """
    label, index = _whole(label, name, "label"), _whole(index, name, "index")
    identity, pixels = _whole(identity, name, "identity"), np.asarray(pixels)
    if pixels.dtype.kind not in "iu":
        raise InputError(f"{name}: pixels are {pixels.dtype}; expected whole grey levels 0..{levels - 1}")
    if pixels.size and (pixels.min() < 0 or pixels.max() >= levels):
        raise InputError(f"{name}: pixels in {pixels.min()}..{pixels.max()}; expected 0..{levels - 1}")
    # One table in float64, rounded once, so that equal levels give equal bits and none exceeds 1.
    table = (np.arange(levels) * 2.0 / (levels - 1) - 1.0).astype(np.float32)
    image = table[pixels]
    return Records(
        image=image[..., None] if image.ndim == 3 else image,
        label=label.astype(np.int32),
        identity=identity.astype(np.int32),
        index=index.astype(np.int32),
        num_classes=num_classes,
        name=name,
        levels=levels,
        source_hash=np.asarray(level_hashes(pixels) if source_hash is None else source_hash, np.str_),
        hash_kind=LEVEL_HASH if source_hash is None else hash_kind,
        preparation=preparation,
        attributes=None if attributes is None else attributes.astype(np.int32),
        attribute_names=tuple(attribute_names),
        listing=listing,
        assumed=assumed,
    )


def construct(registry: Mapping[str, Callable[..., T]], kind: str, name: str, params: Mapping[str, object]) -> T:
    """``registry[name](**params)``, with an `InputError` of one line where that cannot be called.

    Args:
      kind: what the registry holds, for messages.
      params: None for what it does not take counts as not given: one config can have a flag for each field of several.

    Raises:
      InputError: an unknown name, an argument that it does not take or lacks, or what the constructor raises.
    """
    if name not in registry:
        raise InputError(f"{kind} is {name!r}; expected one of {', '.join(registry)}")
    accepted = inspect.signature(registry[name]).parameters
    params = {field: value for field, value in params.items() if value is not None or field in accepted}
    unknown = [given for given in params if given not in accepted]
    if unknown:
        expected = ", ".join(accepted) or "nothing"
        raise InputError(f"{kind} {name!r} takes no {unknown[0]!r}; expected some of {expected}")
    missing = [field for field, p in accepted.items() if p.default is p.empty and field not in params]
    if missing:
        raise InputError(f"{kind} {name!r} needs {missing[0]!r}; expected {', '.join(missing)}")
    return registry[name](**params)
