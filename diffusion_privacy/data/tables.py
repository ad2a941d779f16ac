"""Tables with mixed columns: what a column is, and the rows that fit.

A schema is public. Categories, bounds, means and decimals that are taken from the private rows themselves say something
about them that no mechanism covers: declare them, or take them from a public split (`Schema.standardised_by`). A
schema that was read off the rows says so in `Schema.origin`, until somebody vouches for it (`Schema.vouched`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from diffusion_privacy.errors import InputError

Kind = Literal["numeric", "integer", "categorical"]
KINDS: tuple[Kind, ...] = ("numeric", "integer", "categorical")
Origin = Literal["declared", "inferred"]

_UNWRITABLE = ("\r", "\n", "\0", "\ufeff")
"""Characters that CSV writers and readers do not agree about."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table; every field is public.

    Attributes:
      name: as it stands in the header.
      kind: ``numeric`` (float64), ``integer`` (int64) or ``categorical`` (int64 position in `categories`).
      categories: names of a categorical column, byte for byte, all different.
      lower, upper: range of a number; values outside are moved to its ends when encoded.
      centre, scale: what a number is standardised with, (x − centre)/scale. None: the middle of the range, and its
        length/√12, the deviation of a uniform value.
      decimals: digits after the point when a numeric column is written; None for as many as it takes.

    Raises:
      InputError: fields that contradict each other.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    lower: float | None = None
    upper: float | None = None
    centre: float | None = None
    scale: float | None = None
    decimals: int | None = None

    def __post_init__(self) -> None:
        self._need(self.kind in KINDS, f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        for text in (self.name, *self.categories):
            self._need(isinstance(text, str), f"{text!r} is no text; expected names of columns and categories as text")
            bad = [mark for mark in _UNWRITABLE if mark in text]
            self._need(not bad, f"the name {text!r} holds a line break, a null or a byte-order mark")
        if self.kind == "categorical":
            self._need(len(self.categories) >= 1, "is categorical; expected at least one category")
            self._need(len(set(self.categories)) == len(self.categories), "names a category twice")
        else:
            self._need(not self.categories, f"is {self.kind}; expected no categories")
        numbers = (self.lower, self.upper, self.centre, self.scale)
        self._need(all(x is None or math.isfinite(x) for x in numbers), f"has {numbers}; expected finite numbers")
        if self.lower is not None and self.upper is not None:
            self._need(self.lower < self.upper, f"has the range {self.lower} to {self.upper}; expected lower < upper")
        self._need(self.scale is None or self.scale > 0, f"has scale {self.scale}; expected a number > 0")
        self._need(self.decimals is None or 0 <= self.decimals <= 15, f"has {self.decimals} decimals; expected 0 to 15")

    def _need(self, holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"column {self.name!r} {what}")

    @property
    def range(self) -> tuple[float, float]:
        """(lower, upper). Raises InputError when it was not stated."""
        if self.lower is None or self.upper is None:
            raise InputError(
                f"column {self.name!r}: no public range; expected lower and upper, declared or from a public split"
            )
        return self.lower, self.upper

    @property
    def standard(self) -> tuple[float, float]:
        """(centre, scale). Raises InputError when neither they nor the range were stated."""
        if self.centre is not None and self.scale is not None:
            return self.centre, self.scale
        lower, upper = self.range
        return 0.5 * (lower + upper), (upper - lower) / math.sqrt(12.0)

    def text(self, value: float | int) -> str:
        """One value as it is written to a CSV file."""
        if self.kind == "categorical":
            return self.categories[int(value)]
        if self.kind == "integer":
            return str(int(value))
        return repr(float(value)) if self.decimals is None else f"{float(value):.{self.decimals}f}"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Columns in the order of the file.

    Attributes:
      columns: at least one, with different names.
      origin: ``declared`` (or vouched for), or ``inferred`` from the rows themselves, which no guarantee
        covers.
    """

    columns: tuple[Column, ...]
    origin: Origin = "declared"

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError("schema: expected at least one column")
        twice = [name for name in self.header if self.header.count(name) > 1]
        if twice:
            raise InputError(f"schema: column {twice[0]!r} stands {self.header.count(twice[0])} times; expected once")

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        """The column of this name; InputError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise InputError(f"column {name!r} does not exist; expected one of {', '.join(map(repr, self.header))}")

    def replaced(self, column: Column) -> Schema:
        """The schema with the column of the same name replaced; InputError when there is none."""
        self.column(column.name)
        new = tuple(column if old.name == column.name else old for old in self.columns)
        return dataclasses.replace(self, columns=new)

    def standardised_by(self, public: Table) -> Schema:
        """Mean, deviation and, where none is stated, the range of every number, taken from PUBLIC rows.

        A column that is constant there gets scale 1 and a range of length 1 around its value. Names, kinds, categories,
        decimals and `origin` stay as they are.

        Raises:
          InputError: other columns than these.
        """
        if public.schema.header != self.header or [c.kind for c in public.schema.columns] != [
            c.kind for c in self.columns
        ]:
            raise InputError(f"{public.name}: expected the columns {', '.join(self.header)} with the same kinds")
        columns = []
        for column in self.columns:
            if column.kind != "categorical":
                values = public.data[column.name].astype(np.float64)
                low, high = float(values.min()), float(values.max())
                if low == high:
                    low, high = low - 0.5, high + 0.5
                deviation = float(values.std())
                column = dataclasses.replace(
                    column,
                    lower=low if column.lower is None else column.lower,
                    upper=high if column.upper is None else column.upper,
                    centre=float(values.mean()),
                    scale=deviation if deviation > 0 else 1.0,
                )
            columns.append(column)
        return dataclasses.replace(self, columns=tuple(columns))

    def vouched(self) -> Schema:
        """The schema as declared: the caller states that all of it is public (a code book, say)."""
        return dataclasses.replace(self, origin="declared")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """N rows that fit a schema. Arrays are read-only views of those given.

    Attributes:
      schema: the columns.
      data: for each column its N values: float64 (numeric) or int64 (integer; category number), in no particular order.
      name: what to call it in messages.
      dropped: rows of the source that were left out on request because of missing values.
      person: int32 [N], equal for rows of one person; None where each row is taken for another person.
      place: int64 [N], positions in the source, counting rows that were left out; None: all rows in their order.
      people: int32 [M], ``person`` of all M rows of the source, those left out too; None where none was left out, or
        where ``person`` is.

    Raises:
      InputError: no rows, a column that is missing or of another length or type, a number that is not finite, a
        category that does not exist.
    """

    schema: Schema
    data: Mapping[str, np.ndarray]
    name: str
    dropped: int = 0
    person: np.ndarray | None = None
    place: np.ndarray | None = None
    people: np.ndarray | None = None

    def __post_init__(self) -> None:
        if set(self.data) != set(self.schema.header):
            raise InputError(f"{self.name}: has columns {sorted(self.data)}; expected {sorted(self.schema.header)}")
        views = {}
        for column in self.schema.columns:
            values = self.data[column.name]
            self._check(column, values)
            views[column.name] = values.view()
            views[column.name].flags.writeable = False
        object.__setattr__(self, "data", views)
        if self.person is not None and self.person.shape != (len(self),):
            raise InputError(f"{self.name}: person has shape {self.person.shape}; expected one number for each row")
        if self.place is not None and self.place.shape != (len(self),):
            raise InputError(f"{self.name}: place has shape {self.place.shape}; expected one number for each row")

    def _check(self, column: Column, values: np.ndarray) -> None:
        where = f"{self.name}: column {column.name!r}"
        dtype = np.float64 if column.kind == "numeric" else np.int64
        first = self.data[self.schema.columns[0].name]
        if not isinstance(values, np.ndarray) or values.dtype != dtype or values.shape != (len(first),):
            raise InputError(f"{where} is no {np.dtype(dtype)} vector of {len(first)} values")
        if len(values) == 0:
            raise InputError(f"{self.name}: holds no rows; expected at least one")
        if column.kind == "numeric" and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise InputError(f"{where}, row {row + 1} is {values[row]}; expected a finite number")
        if column.kind == "categorical":
            wrong = np.flatnonzero((values < 0) | (values >= len(column.categories)))
            if wrong.size:
                raise InputError(f"{where}, row {wrong[0] + 1} has category {values[wrong[0]]}, which does not exist")

    def __len__(self) -> int:
        return len(self.data[self.schema.columns[0].name])

    def take(self, rows: np.ndarray | Sequence[int]) -> Table:
        """The rows at these positions, in this order; ``dropped`` and ``people`` are those of the whole."""
        index = np.asarray(rows, np.int64)
        person = None if self.person is None else self.person[index]
        data = {name: values[index] for name, values in self.data.items()}
        place = None if self.place is None else self.place[index]
        return dataclasses.replace(self, data=data, person=person, place=place)

    def with_schema(self, schema: Schema) -> Table:
        """The same values under a schema with other ranges or statistics."""
        return dataclasses.replace(self, schema=schema)

    def rows(self) -> list[list[str]]:
        """Every row as it is written to a CSV file, in the order of the header."""
        texts = [[column.text(v) for v in self.data[column.name]] for column in self.schema.columns]
        return [list(row) for row in zip(*texts, strict=True)]

    def outside(self) -> int:
        """Rows with a number outside its public range: how many `table_encoding` changes. A private statistic."""
        changed = np.zeros(len(self), bool)
        for column in self.schema.columns:
            if column.kind != "categorical":
                lower, upper = column.range
                changed |= (self.data[column.name] < lower) | (self.data[column.name] > upper)
        return int(changed.sum())
