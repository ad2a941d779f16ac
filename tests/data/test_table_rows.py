"""Rows as records: nothing lost in the split, statistics from the public part only, batches with their conditions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_privacy.data.table_rows import RowBatches, Rows, split_rows, together
from diffusion_privacy.data.tables import Column, Schema, Table
from diffusion_privacy.errors import InputError

SHARES = (0.5, 0.3, 0.2)


def _table(n: int = 200, copies: bool = True) -> Table:
    rng = np.random.default_rng(0)
    schema = Schema(
        (
            Column("x", "numeric", decimals=1),
            Column("k", "integer"),
            Column("c", "categorical", ("a", "b", "c")),
            Column("d", "categorical", ("yes", "no")),
        )
    )
    rows = np.arange(n) // 2 if copies else np.arange(n)
    data = {
        "x": np.round(rng.normal(5, 2, n), 1)[rows],
        "k": rng.integers(0, 9, n)[rows],
        "c": rng.integers(0, 3, n)[rows],
        "d": rng.integers(0, 2, n)[rows],
    }
    return Table(schema, data, "toy")


def _split(**options) -> tuple[Rows, ...]:
    table = _table()
    return split_rows(table, np.arange(len(table)) // 2, SHARES, 3, **options)


def test_every_row_is_in_one_part_and_equal_rows_stay_together():
    parts = _split()
    np.testing.assert_array_equal(np.sort(np.concatenate([p.index for p in parts])), np.arange(200))
    assert [len(p) for p in parts] == [100, 60, 40]
    for part in parts:
        pairs, counts = np.unique(part.index // 2, return_counts=True)
        assert np.all(counts == 2), pairs


def test_statistics_are_those_of_the_public_part():
    public, private, test = _split(bounds={"k": (0, 100)})
    assert public.encoder is private.encoder is test.encoder
    column = private.table.schema.column("x")
    values = public.table.data["x"]
    assert (column.lower, column.upper, column.centre) == (values.min(), values.max(), values.mean())
    assert private.table.schema.column("k").range == (0.0, 100.0)
    # The same public rows with other private ones: the same schema, so nothing of them is in it.
    table = _table()
    changed = dict(table.data)
    changed["x"] = np.array(changed["x"])
    changed["x"][private.index] = 1e6
    other = split_rows(Table(table.schema, changed, "toy"), np.arange(200) // 2, SHARES, 3, bounds={"k": (0, 100)})
    assert other[0].table.schema == public.table.schema


def test_batches_carry_the_one_hots_of_the_columns_apart():
    private = _split(apart=("c", "d"))[1]
    assert private.num_classes == 6
    assert private.image.shape == (60, 2)
    batch = RowBatches(private, 16, 0, sizes=private.encoder.sizes).batch(1)
    codes = private.encoder.codes(private.table)
    where = np.searchsorted(private.index, batch["index"])
    np.testing.assert_array_equal(np.argmax(batch["attributes"][:, :3], axis=1), codes[where, 0])
    np.testing.assert_array_equal(np.argmax(batch["attributes"][:, 3:], axis=1), codes[where, 1])
    assert np.all(batch["attributes"].sum(axis=1) == 2)


def test_without_columns_apart_there_is_one_condition():
    public = _split()[0]
    assert public.num_classes == 1
    assert not public.label.any()
    assert public.image.shape == (100, 2 + 3 + 2)
    assert public.digest != _split()[1].digest
    assert public.digest == _split()[0].digest


def test_too_many_combinations_are_refused():
    names = tuple(str(i) for i in range(64))
    columns = (Column("x", "numeric"), *(Column(f"c{i}", "categorical", names) for i in range(6)))
    data = {"x": np.arange(9.0), **{f"c{i}": np.zeros(9, np.int64) for i in range(6)}}
    with pytest.raises(InputError, match="combinations"):
        split_rows(
            Table(Schema(columns), data, "wide"), np.arange(9), SHARES, 0, apart=tuple(f"c{i}" for i in range(6))
        )


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
def test_rows_that_are_linked_by_any_key_go_together(pairs):
    keys = [np.array(column) for column in zip(*pairs, strict=True)]
    found = together(*keys)
    for key in keys:
        for value in np.unique(key):
            assert len(np.unique(found[key == value])) == 1
    # And no more than that: groups are those of plain merging.
    groups = list(range(len(pairs)))
    for _ in pairs:
        for i, one in enumerate(pairs):
            for j, other in enumerate(pairs):
                if one[0] == other[0] or one[1] == other[1]:
                    groups[i] = groups[j] = min(groups[i], groups[j])
    assert len(np.unique(found)) == len(set(groups))


def test_persons_of_a_table_come_along_and_are_never_parted():
    table = dataclasses.replace(_table(copies=False), person=(np.arange(200) // 4).astype(np.int32))
    assert table.take([0, 5]).person.tolist() == [0, 1]
    parts = split_rows(table, together(np.arange(200), table.person), SHARES, 3)
    who = [set(part.identity.tolist()) for part in parts]
    assert not who[0] & who[1] | who[1] & who[2] | who[0] & who[2]
    with pytest.raises(InputError, match="one number for each row"):
        dataclasses.replace(table, person=np.zeros(3, np.int32))


def test_a_part_of_which_no_row_was_kept_is_refused():
    table = _table(copies=False)
    place = split_rows(table, np.arange(200), SHARES, 3)[0].index.astype(np.int64)
    left = dataclasses.replace(table.take(place), dropped=200 - len(place), place=place)
    with pytest.raises(InputError, match="every row of part 1 was left out"):
        split_rows(left, np.arange(len(left)), SHARES, 3)
