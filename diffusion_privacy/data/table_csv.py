"""CSV files to tables and back: same header, same types, same category names.

Nothing is guessed about a missing value and no row disappears by itself: the first missing cell is an error that names
row and column, unless a policy is chosen for its column:

- ``drop``: leave the row out; `Table.dropped` counts them, and the others keep their places (`Table.place`).
- ``category``: the mark itself ("?", say) becomes one more category of a categorical column.
- ``median``: the median of the present values of a number, which is a statistic of these rows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_privacy.data.assemble import existing_file, number_people, one_line, whole_number
from diffusion_privacy.data.tables import KINDS, Column, Kind, Schema, Table
from diffusion_privacy.errors import InputError

POLICIES = ("error", "drop", "category", "median")
MARKS = ("", "?", "NA", "N/A", "nan", "NaN", "null", "NULL")
"""Cells that count as missing, unless they are declared categories."""
MAX_CATEGORIES = 64
_DELIMITERS = (";", "\t", "|", ",")

# Leading zeros mark a code, not a number: 007 would come back as 7.
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_PLAIN = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_CODE = re.compile(r"[+-]?0\d+")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)


def read_csv(
    path: str | Path,
    *,
    header: Sequence[str] | None = None,
    schema: Schema | None = None,
    kinds: Mapping[str, Kind] | None = None,
    missing: str | Mapping[str, str] = "error",
    marks: Sequence[str] = MARKS,
    delimiter: str | None = None,
    comment: str | None = None,
    strip: bool = False,
    max_categories: int = MAX_CATEGORIES,
    person: str | None = None,
) -> Table:
    """A table from a UTF-8 file (a byte-order mark is left out).

    Args:
      path: the file.
      header: names of the columns of a file without a header line.
      schema: the declared columns, in the order of the file; None to infer them from the rows: whole numbers are
        integers, numbers are numeric, the rest is categorical with its texts in sorted order.
      kinds: kind by column, where inference should not decide; refused beside a schema.
      missing: policy (see the module), for all columns or by column (``error`` for those not named).
      marks: texts that mean missing.
      delimiter: one character; None for a comma.
      comment: lines that begin with it are left out.
      strip: whether blanks around a cell are left out; otherwise they belong to it.
      max_categories: largest number of categories that inference takes for a categorical column.
      person: a column that says whose row it is (any text; blank: unknown). It becomes `Table.person` and is no column
        of the table, nor of ``schema``.

    Raises:
      InputError: no such file, not a CSV file, a row of another length, a missing value, a cell that does not fit its
        column, or options that contradict each other. One line with row (1 is the first below the header) and column.
    """
    delimiter = "," if delimiter is None else delimiter
    _check_options(header, marks, delimiter, comment, strip, max_categories)
    file = existing_file(path, "table")
    names, cells = _cells(file, header, delimiter, comment, strip, schema is not None)
    where = file.name
    names, cells, who = _apart(where, names, cells, person)
    if schema is not None and (kinds is not None or schema.header != tuple(names)):
        raise InputError(
            f"{where}: columns {names} and kinds {kinds}; expected the schema's {list(schema.header)} only"
        )
    policies = _policies(names, missing)
    if kinds is not None and (unknown := [n for n in kinds if n not in names or kinds[n] not in KINDS]):
        raise InputError(f"{where}: kinds of {unknown[0]!r} is {kinds[unknown[0]]!r}; expected a column and its kind")
    absent = _absent(names, cells, schema, tuple(marks))
    drop = [any(absent[i][j] and policies[n] == "drop" for j, n in enumerate(names)) for i in range(len(cells))]
    _refuse_missing(where, names, policies, cells, absent, drop)
    kept = [i for i, dropped in enumerate(drop) if not dropped]
    if not kept:
        raise InputError(f"{where}: every row has a missing value; expected rows to keep")
    columns, data = [], {}
    for j, name in enumerate(names):
        reader = _ColumnReader(where, name, [(i, cells[i][j], absent[i][j]) for i in kept], policies[name])
        given = None if schema is None else schema.columns[j]
        if given is None:
            given = reader.inferred(None if kinds is None else kinds.get(name), max_categories)
        columns.append(given)
        data[name] = reader.values(given)
    made = Schema(tuple(columns), "inferred") if schema is None else schema
    people = None if who is None else number_people(who)
    dropped = len(cells) - len(kept)
    return Table(
        made,
        data,
        where,
        dropped,
        None if people is None else people[kept],
        np.asarray(kept, np.int64) if dropped else None,
        people if dropped else None,
    )


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Header and rows as CSV, quoted where needed, lines ended by a line feed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _check_options(
    header: object, marks: object, delimiter: object, comment: object, strip: object, max_categories: object
) -> None:
    # What is wrong with the type alone: a config file may hold anything.
    for field, value in (("header", header), ("marks", marks)):
        # A text would be taken for the list of its letters.
        texts = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, str) for v in value)
        if value is not None and not texts:
            raise InputError(f"{field} is {value!r}; expected a list of texts")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '\r\n"':
        raise InputError(f"delimiter is {delimiter!r}; expected one character, ';' or a tab say")
    if comment is not None and (not isinstance(comment, str) or not comment):
        raise InputError(f"comment is {comment!r}; expected what begins such lines")
    if not isinstance(strip, bool):
        raise InputError(f"strip is {strip!r}; expected True or False")
    whole_number(max_categories, "max_categories", 1)


def _cells(
    file: Path, header: Sequence[str] | None, delimiter: str, comment: str | None, strip: bool, declared: bool
) -> tuple[list[str], list[list[str]]]:
    """Names and text of every cell, all rows of one length."""

    def lines(handle: io.TextIOBase) -> Iterator[str]:
        for line in handle:
            if comment is None or not line.startswith(comment):
                yield line

    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.reader(lines(handle), delimiter=delimiter, strict=True, skipinitialspace=strip))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file.name}: not a readable CSV file ({one_line(error)})") from error
    if strip:
        rows = [[cell.strip() for cell in row] for row in rows]
    names = list(header) if header is not None else (rows.pop(0) if rows else [])
    if not names:
        raise InputError(f"{file.name}: holds no header; expected names of columns")
    # A blank line is a row of one empty cell, or nothing at all where rows are longer.
    rows = [row or [""] for row in rows] if len(names) == 1 else [row for row in rows if row]
    if not rows:
        raise InputError(f"{file.name}: holds no rows; expected at least one")
    if header is None and not declared:
        _check_delimiter(file.name, names, rows, delimiter)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise InputError(f"{file.name}: row {number} has {len(row)} cells; expected {len(names)}")
    return names, rows


def _check_delimiter(where: str, names: list[str], rows: list[list[str]], delimiter: str) -> None:
    """`InputError` where what looks like one column is several, of another delimiter."""
    for mark in _DELIMITERS:
        if len(names) == 1 and mark != delimiter and mark in names[0] and mark in "".join(rows[0]):
            raise InputError(
                f"{where}: its header is one name with {mark!r} in it; expected {delimiter!r} between names, or give "
                f"delimiter = {mark!r}"
            )


def _apart(
    where: str, names: list[str], cells: list[list[str]], person: str | None
) -> tuple[list[str], list[list[str]], list[str] | None]:
    """Names and cells without the column of persons, and that column."""
    if person is None:
        return names, cells, None
    if names.count(person) != 1 or len(names) == 1:
        raise InputError(f"{where}: column {person!r} of persons stands {names.count(person)} times; expected it once")
    at = names.index(person)
    rest = [[cell for j, cell in enumerate(row) if j != at] for row in cells]
    return [name for name in names if name != person], rest, [row[at].strip() for row in cells]


def check_missing(missing: object) -> None:
    """Raises InputError unless ``missing`` is a text, or maps columns to texts; which ones is looked at later."""
    if not isinstance(missing, str | Mapping):
        raise InputError(f"missing is {missing!r}; expected one of {', '.join(POLICIES)}, or one by column")


def _policies(names: Sequence[str], missing: str | Mapping[str, str]) -> dict[str, str]:
    check_missing(missing)
    chosen = (
        dict.fromkeys(names, missing) if isinstance(missing, str) else dict.fromkeys(names, "error") | dict(missing)
    )
    for name, policy in chosen.items():
        if name not in names or policy not in POLICIES:
            raise InputError(f"missing: {name!r} is {policy!r}; expected a column and one of {', '.join(POLICIES)}")
    return chosen


def _absent(
    names: Sequence[str], cells: list[list[str]], schema: Schema | None, marks: tuple[str, ...]
) -> list[list[bool]]:
    """Which cells are missing; a declared category never is."""
    known = [set(marks) - set(() if schema is None else schema.columns[j].categories) for j in range(len(names))]
    return [[cell in known[j] for j, cell in enumerate(row)] for row in cells]


def _refuse_missing(
    where: str,
    names: Sequence[str],
    policies: Mapping[str, str],
    cells: list[list[str]],
    absent: list[list[bool]],
    drop: list[bool],
) -> None:
    for i, row in enumerate(absent):
        for j, gone in enumerate(row):
            if gone and not drop[i] and policies[names[j]] == "error":
                raise InputError(
                    f"{where}: row {i + 1}, column {names[j]!r} is missing ({cells[i][j]!r}); expected a value, or "
                    "missing='drop' or 'category' for that column"
                )


class _ColumnReader:
    """One column's cells (row, text, missing) on their way to numbers."""

    def __init__(self, where: str, name: str, cells: list[tuple[int, str, bool]], policy: str) -> None:
        self.where, self.name, self.cells, self.policy = where, name, cells, policy
        self.present = [(row, text) for row, text, gone in cells if not gone]
        if not self.present:
            raise InputError(f"{where}: column {name!r} has no value at all; expected at least one")

    def _error(self, row: int, text: str, expected: str) -> InputError:
        return InputError(f"{self.where}: row {row + 1}, column {self.name!r} is {text!r}; expected {expected}")

    def inferred(self, kind: Kind | None, max_categories: int) -> Column:
        texts = [text for _, text in self.present]
        odd = next(((row, text) for row, text in self.present if not _is_number(text)), None)
        if kind is None:
            kind = "categorical"
            if odd is None:
                kind = "integer" if all(_INTEGER.fullmatch(text) for text in texts) else "numeric"
            elif all(_is_number(text) or _INFINITE.fullmatch(text) for text in texts):
                raise self._error(*odd, "a finite number")
        if kind == "numeric":
            plain = all(_PLAIN.fullmatch(text) for text in texts)
            decimals = max(len(text.partition(".")[2]) for text in texts) if plain else None
            return Column(self.name, kind, decimals=None if decimals is None or decimals > 15 else decimals)
        if kind == "integer":
            return Column(self.name, kind)
        categories = sorted(set(texts))
        if len(categories) > max_categories:
            first = f"; row {odd[0] + 1} is {odd[1]!r}, no number" if odd else ""
            raise InputError(
                f"{self.where}: column {self.name!r} has {len(categories)} different values{first}; expected numbers, "
                f"at most {max_categories} categories, or a declared column"
            )
        if self.policy == "category":
            categories += sorted({text for _, text, gone in self.cells if gone})
        return Column(self.name, kind, tuple(categories))

    def values(self, column: Column) -> np.ndarray:
        """float64 or int64, missing values replaced by the policy."""
        if column.kind == "categorical":
            return self._codes(column)
        if self.policy == "category" and len(self.present) < len(self.cells):
            raise InputError(
                f"{self.where}: column {self.name!r} is {column.kind}; missing='category' is for categories"
            )
        numbers = {row: self._number(column, row, text) for row, text in self.present}
        dtype = np.float64 if column.kind == "numeric" else np.int64
        known = np.array(list(numbers.values()), dtype)
        middle = float(np.median(known)) if column.kind == "numeric" else round(float(np.median(known)))
        return np.array([numbers[row] if not gone else middle for row, _, gone in self.cells], dtype)

    def _number(self, column: Column, row: int, text: str) -> float | int:
        if column.kind == "integer":
            if not _INTEGER.fullmatch(text):
                raise self._error(row, text, "a whole number")
            return int(text)
        if not _NUMBER.fullmatch(text) or not np.isfinite(float(text)):
            raise self._error(row, text, "a finite number")
        return float(text)

    def _codes(self, column: Column) -> np.ndarray:
        position = {category: i for i, category in enumerate(column.categories)}
        codes = []
        for row, text, gone in self.cells:
            if gone and self.policy == "median":
                raise InputError(f"{self.where}: column {self.name!r} is categorical; missing='median' is for numbers")
            if text not in position:
                raise self._error(row, text, f"one of {len(position)} categories such as {column.categories[0]!r}")
            codes.append(position[text])
        return np.array(codes, np.int64)


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) and not _CODE.fullmatch(text) and bool(np.isfinite(float(text)))
