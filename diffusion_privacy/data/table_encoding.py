"""Rows of a table as vectors for a flow, and back to rows of the same schema.

    numeric       (x − centre)/scale, one number
    integer       the same
    categorical   either one-hot, standardised, K numbers; or kept apart as a category number, to be the flow's
                  condition or to go through randomised response (`mechanisms.table`)

`Encoder.encode` is a function of the row alone, so that equal rows have equal record hashes. Dequantisation, uniform
noise over one unit of the last decimal or over a one-hot entry, makes discrete columns continuous, so that a density
exists: add it before the flow, in training and in release alike. Decoding takes the nearest value or the largest of the
K. None of this is part of a guarantee, and all of it is public: see `tables` about where ranges and statistics may come
from. Values outside the public range are moved to its ends, row by row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from diffusion_privacy.data.tables import Column, Schema, Table
from diffusion_privacy.errors import InputError

_WIDEST = 2**20
"""Largest range of an integer column whose steps float32 still tells apart with noise on them."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The public map between rows and vectors.

    Attributes:
      schema: of the tables that it takes and gives.
      apart: categorical columns that are left out of the vector.

    Raises:
      InputError: a number without a public range, a wide integer range, or a column apart that is no category.
    """

    schema: Schema
    apart: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.apart:
            if self.schema.column(name).kind != "categorical":
                raise InputError(f"column {name!r} is {self.schema.column(name).kind}; expected a categorical column")
        if len(set(self.apart)) < len(self.apart):
            raise InputError(f"columns apart: expected different names, got {list(self.apart)}")
        for column in self.schema.columns:
            if column.kind != "categorical":
                lower, upper = column.range
                if column.kind == "integer" and upper - lower > _WIDEST:
                    raise InputError(
                        f"column {column.name!r} spans {upper - lower:g} whole numbers; expected at most {_WIDEST} or "
                        "the kind 'numeric' with 0 decimals"
                    )
        if self.dim == 0:
            raise InputError("encoding: every column is kept apart; expected at least one for the vector")

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return sum(width for _, _, width in self._slots())

    def _slots(self) -> Iterator[tuple[Column, int, int]]:
        """(column, first place, width) of every column in the vector."""
        start = 0
        for column in self.schema.columns:
            if column.name not in self.apart:
                width = len(column.categories) if column.kind == "categorical" else 1
                yield column, start, width
                start += width

    def encode(self, table: Table) -> np.ndarray:
        """float32 [N, dim], without noise.

        Raises:
          InputError: another schema.
        """
        self._check(table)
        vectors = np.empty((len(table), self.dim), np.float32)
        for column, start, width in self._slots():
            values = table.data[column.name]
            if column.kind == "categorical":
                centre, scale = _one_hot_standard(width)
                number = (values[:, None] == np.arange(width)).astype(np.float64)
            else:
                centre, scale = column.standard
                number = np.clip(values, *_ends(column)).astype(np.float64)[:, None]
            vectors[:, start : start + width] = (number - centre) / scale
        return vectors

    @property
    def noise_width(self) -> np.ndarray:
        """Width of the dequantisation noise on each number of a vector, float32 [dim]; 0 for continuous columns."""
        widths = np.zeros(self.dim)
        for column, start, width in self._slots():
            if column.kind == "categorical":
                # A hair less than one unit: the largest of the K stays the category after rounding.
                widths[start : start + width] = (1 - 2.0**-16) / _one_hot_standard(width)[1]
            else:
                widths[start] = _room(column) / column.standard[1]
        return widths.astype(np.float32)

    def dequantise(self, vectors: np.ndarray, seed: int | None) -> np.ndarray:
        """``vectors + noise_width·(U − ½)``, float32 [N, dim]; `decode` undoes it.

        Row i draws from (seed, i), whatever the other rows are; None draws from the operating system's entropy.
        """
        uniform = np.random.Generator(np.random.Philox(seed)).random(vectors.shape) - 0.5
        return (vectors + self.noise_width * uniform.astype(np.float32)).astype(np.float32)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of categories of each column apart."""
        return tuple(len(self.schema.column(name).categories) for name in self.apart)

    def codes(self, table: Table) -> np.ndarray:
        """Category numbers of the columns apart, int64 [N, len(apart)]."""
        self._check(table)
        return np.array([table.data[name] for name in self.apart], np.int64).reshape(len(self.apart), len(table)).T

    def decode(self, vectors: np.ndarray, codes: np.ndarray | None = None, name: str = "decoded") -> Table:
        """Rows of the schema from ``vectors[N, dim]`` and category numbers ``codes[N, len(apart)]``.

        Numbers are moved into their range and rounded to their decimals, the largest of K names the category. A value
        that is NaN becomes the centre of its range, or the first category: nothing is dropped.

        Raises:
          InputError: other shapes, or a category that does not exist.
        """
        vectors = np.asarray(vectors, np.float64)
        codes = np.zeros((len(vectors), 0), np.int64) if codes is None else np.asarray(codes)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or codes.shape != (len(vectors), len(self.apart)):
            raise InputError(
                f"{name}: expected vectors [N, {self.dim}] and categories [N, {len(self.apart)}], "
                f"got {vectors.shape} and {codes.shape}"
            )
        data: dict[str, np.ndarray] = {n: codes[:, j].astype(np.int64) for j, n in enumerate(self.apart)}
        for column, start, width in self._slots():
            part = vectors[:, start : start + width]
            if column.kind == "categorical":
                data[column.name] = np.argmax(np.nan_to_num(part, nan=-np.inf), axis=1)
                continue
            (lower, upper), (centre, scale) = column.range, column.standard
            number = np.nan_to_num(part[:, 0] * scale + centre, nan=0.5 * (lower + upper), posinf=upper, neginf=lower)
            if column.kind == "integer":
                data[column.name] = np.clip(np.rint(number), *_ends(column)).astype(np.int64)
            else:
                number = np.clip(number, lower, upper)
                data[column.name] = number if column.decimals is None else np.round(number, column.decimals)
        return Table(self.schema, data, name)

    def _check(self, table: Table) -> None:
        if table.schema != self.schema:
            raise InputError(f"{table.name}: has another schema than the encoding; expected {list(self.schema.header)}")


def digits(joint: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Category numbers, int64 [N, len(sizes)], of combinations ``joint[N]``; the first column is the slowest."""
    if not sizes:
        return np.zeros((len(joint), 0), np.int64)
    return np.stack(np.unravel_index(np.asarray(joint, np.int64), sizes), axis=1).astype(np.int64)


def combinations(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The number of each row of ``codes[N, len(sizes)]``, int64 [N]; all 0 without columns. Undoes `digits`."""
    if not sizes:
        return np.zeros(len(codes), np.int64)
    return np.ravel_multi_index(tuple(codes.T), sizes).astype(np.int64)


def one_hots(joint: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The one-hots of every column side by side, float32 [N, Σ sizes], of combinations ``joint[N]``."""
    codes = digits(joint, sizes)
    hot = [np.eye(size, dtype=np.float32)[codes[:, j]] for j, size in enumerate(sizes)]
    return np.concatenate([np.zeros((len(codes), 0), np.float32), *hot], axis=1)


def _ends(column: Column) -> tuple[float, float]:
    """Smallest and largest value of a number in its range; whole ones for an integer column."""
    lower, upper = column.range
    if column.kind == "numeric":
        return lower, upper
    low, high = math.ceil(lower), math.floor(upper)
    if low > high:
        raise InputError(f"column {column.name!r}: no whole number in its range {lower:g} to {upper:g}")
    return low, high


def _room(column: Column) -> float:
    """Width of the noise in units of the column: one step, less what float32 rounding takes from it.

    0 for numbers without a stated step, and where float32 cannot tell the steps apart with noise on them.
    """
    if column.kind == "numeric" and column.decimals is None:
        return 0.0
    step = 1.0 if column.decimals is None else 10.0**-column.decimals
    (lower, upper), (centre, _) = column.range, column.standard
    reach = max(abs(lower - centre), abs(upper - centre)) + step
    return max(0.0, step - 4.0 * reach * 2.0**-23)


def _one_hot_standard(width: int) -> tuple[float, float]:
    """Mean and deviation of an entry when all categories are equally likely, noise included."""
    return 1.0 / width, math.sqrt((1.0 - 1.0 / width) / width + 1.0 / 12.0)


def ranges(schema: Schema, bounds: Mapping[str, tuple[float, float]]) -> Schema:
    """The schema with public ranges for the named numbers.

    Raises:
      InputError: a name that does not exist or is no number, or an empty range.
    """
    for name, (lower, upper) in bounds.items():
        column = schema.column(name)
        if column.kind == "categorical":
            raise InputError(f"column {name!r} is categorical; expected a numeric or integer column for a range")
        schema = schema.replaced(dataclasses.replace(column, lower=float(lower), upper=float(upper)))
    return schema
