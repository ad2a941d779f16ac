"""Rows of a table as the rest of the program takes records: numbers, a condition, a person, a place in the source."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffusion_privacy.data.pipeline import Batches
from diffusion_privacy.data.records import split_positions
from diffusion_privacy.data.table_encoding import Encoder, combinations, one_hots, ranges
from diffusion_privacy.data.tables import Table
from diffusion_privacy.errors import InputError

_MOST_CONDITIONS = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """N rows and the public map that makes vectors of them; has the fields of `records.Records` that a flow needs.

    Attributes:
      table: the rows.
      encoder: of the same schema.
      index: int32 [N], positions in the source, whatever was left out of it.

    Raises:
      InputError: too many combinations of the columns apart.
    """

    table: Table
    encoder: Encoder
    index: np.ndarray

    def __post_init__(self) -> None:
        if self.num_classes > _MOST_CONDITIONS:
            raise InputError(
                f"{self.name}: columns apart have {self.num_classes} combinations; expected at most {_MOST_CONDITIONS}"
            )

    def __len__(self) -> int:
        return len(self.table)

    def take(self, indices: np.ndarray) -> Rows:
        """The rows at these positions (not source indices), in this order."""
        return Rows(self.table.take(indices), self.encoder, self.index[indices])

    @property
    def name(self) -> str:
        """What to call the table in messages."""
        return self.table.name

    @property
    def num_classes(self) -> int:
        """Number of combinations of the columns apart; 1 without any."""
        return math.prod(self.encoder.sizes)

    @functools.cached_property
    def image(self) -> np.ndarray:
        """The vectors, float32 [N, D], read-only; named like the numbers of any record that a flow models."""
        vectors = self.encoder.encode(self.table)
        vectors.flags.writeable = False
        return vectors

    @functools.cached_property
    def label(self) -> np.ndarray:
        """Combination of the columns apart, int32 [N], read-only; 0 without any."""
        joint = combinations(self.encoder.codes(self.table), self.encoder.sizes).astype(np.int32)
        joint.flags.writeable = False
        return joint

    @property
    def identity(self) -> np.ndarray:
        """Each row is another person, where the table does not say otherwise."""
        return self.index if self.table.person is None else self.table.person

    @property
    def attributes(self) -> None:
        """None: a row's condition are its columns apart, see `label` and `RowBatches`."""
        return None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what a flow sees of the rows."""
        digest = hashlib.sha256(repr((self.image.shape, self.encoder.sizes)).encode())
        for array, kind in ((self.image, "<f4"), (self.label, "<i4"), (self.index, "<i4")):
            digest.update(np.ascontiguousarray(array, kind).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class RowBatches(Batches):
    """Batches with the one-hots of the columns apart, ``attributes`` float32 [B, K]."""

    sizes: tuple[int, ...] = ()

    def gather(self, chosen: np.ndarray, positions: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `Batches.gather`, with ``attributes``."""
        found = super().gather(chosen, positions)
        return {**found, "attributes": one_hots(found["label"], self.sizes)}


def together(*keys: np.ndarray) -> np.ndarray:
    """int [N]: one number for all rows that are linked by equal values in any of ``keys`` [N], directly or by others.

    Args:
      keys: whole numbers; e.g. which rows are equal, and whose they are.
    """
    n, columns, offset = len(keys[0]), [], len(keys[0])
    for key in keys:
        values, code = np.unique(key, return_inverse=True)
        columns.append(code + offset)
        offset += len(values)
    rows = np.tile(np.arange(n), len(keys))
    links = coo_array((np.ones(len(rows), np.int8), (rows, np.concatenate(columns))), shape=(offset, offset))
    return connected_components(links, directed=False)[1][:n]


def groups_of_source(table: Table, same: np.ndarray) -> np.ndarray:
    """int [M]: ``same`` for all rows of the source: one that was left out is in no row's group but its person's.

    So the division of rows into shares does not depend on which of them were left out.

    Args:
      same: int [N], one number for the rows of the table that belong together.
    """
    if table.place is None:
        return same if table.person is None else together(same, table.person)
    kept = np.unique(same, return_inverse=True)[1]
    every = len(kept) + np.arange(len(kept) + table.dropped)
    every[table.place] = kept
    return every if table.people is None else together(every, table.people)


def split_rows(
    table: Table,
    same: np.ndarray,
    fractions: tuple[float, ...],
    seed: int,
    *,
    apart: tuple[str, ...] = (),
    bounds: dict[str, tuple[float, float]] | None = None,
    vouched: bool = False,
) -> tuple[Rows, ...]:
    """Divides a table; ranges and statistics that nobody stated come from the FIRST part, which is given up as public.

    The places of the source are dealt, those of rows that were left out too: whether a row is complete moves no other.

    Args:
      table: all rows that were kept.
      same: int [N]; rows with one number stay together, so that no part holds a copy of another's row. So do a person's
        rows.
      fractions: see `records.split_records`.
      seed: of the split.
      apart: see `Encoder`.
      bounds: public ranges, see `table_encoding.ranges`.
      vouched: see `Schema.vouched`.

    Raises:
      InputError: as these, or every row of a part was left out.
    """
    schema = ranges(table.schema, {} if bounds is None else bounds)
    place = np.arange(len(table)) if table.place is None else table.place
    dealt = split_positions(groups_of_source(table, same), fractions, seed, table.name)
    positions = [np.flatnonzero(np.isin(place, part)) for part in dealt]
    if empty := [part for part, kept in enumerate(positions) if not len(kept)]:
        raise InputError(f"{table.name}: every row of part {empty[0]} was left out; expected fewer missing values")
    schema = schema.standardised_by(table.take(positions[0]))
    encoder = Encoder(schema.vouched() if vouched else schema, apart)
    return tuple(Rows(table.take(p).with_schema(encoder.schema), encoder, place[p].astype(np.int32)) for p in positions)
