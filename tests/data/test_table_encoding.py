"""Rows to vectors and back."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from oracles.tables import halves
from scipy import stats

from diffusion_privacy.data.table_encoding import Encoder, ranges
from diffusion_privacy.data.table_sources import load_table
from diffusion_privacy.data.tables import Column, Schema, Table
from diffusion_privacy.errors import InputError

SCHEMA = Schema(
    (
        Column("x", "numeric", lower=-1.0, upper=3.0, decimals=2),
        Column("k", "integer", lower=0, upper=9),
        Column("c", "categorical", ("a", "b", "c")),
        Column("d", "categorical", ("yes", "no")),
    )
)


def table(n=500, seed=0):
    rng = np.random.default_rng(seed)
    data = {
        "x": np.round(rng.uniform(-1, 3, n), 2),
        "k": rng.integers(0, 10, n),
        "c": rng.integers(0, 3, n),
        "d": rng.integers(0, 2, n),
    }
    return Table(SCHEMA, data, "toy")


@pytest.mark.parametrize("apart", [(), ("d",), ("d", "c")])
def test_round_trip_is_exact(apart):
    whole, encoder = table(), Encoder(SCHEMA, apart)
    assert encoder.dim == 7 - sum({"c": 3, "d": 2}[name] for name in apart)
    vectors = encoder.encode(whole)
    noisy = encoder.dequantise(vectors, seed=1)
    assert vectors.dtype == noisy.dtype == np.float32
    for given in (vectors, noisy):
        assert encoder.decode(given, encoder.codes(whole)).rows() == whole.rows()


def test_vectors_by_hand():
    whole, encoder = table(), Encoder(SCHEMA)
    clean = encoder.encode(whole)
    vectors = encoder.dequantise(clean, seed=2)
    np.testing.assert_allclose(clean[:, 0], (whole.data["x"] - 1) / (4 / math.sqrt(12)), rtol=1e-5, atol=1e-6)
    steps = (
        (vectors[:, 0] * (4 / math.sqrt(12)) + 1 - whole.data["x"]) * 100,
        vectors[:, 1] * (9 / math.sqrt(12)) + 4.5 - whole.data["k"],
        (vectors[:, 2:5] * math.sqrt(2 / 9 + 1 / 12) + 1 / 3 - np.eye(3)[whole.data["c"]]).ravel(),
    )
    for u in steps:
        assert np.abs(u).max() < 0.5
        # Uniform over the unit: Kolmogorov-Smirnov, false-alarm rate 1e-6 each.
        assert stats.kstest(u + 0.5, "uniform").pvalue > 1e-6
    # Uniform columns come out with unit variance, one-hot entries too (within 10 %, 5 standard errors).
    np.testing.assert_allclose(vectors.std(axis=0)[:5], 1, atol=0.1)


def test_a_row_draws_its_own_noise():
    encoder = Encoder(SCHEMA)
    vectors = encoder.encode(table())
    np.testing.assert_array_equal(encoder.dequantise(vectors, 3)[:10], encoder.dequantise(vectors[:10], 3))
    assert not np.array_equal(encoder.dequantise(vectors, 3), encoder.dequantise(vectors, 4))
    assert not np.array_equal(encoder.dequantise(vectors, None), encoder.dequantise(vectors, None))


def test_any_vector_decodes_to_the_schema():
    vectors = np.array([[np.inf, -np.inf, 0, 9, 9, -1, -1], [np.nan] * 7, [-1e30, 1e30, 1, 0, 0, 0, 5]], np.float32)
    back = Encoder(SCHEMA).decode(vectors)
    assert back.rows() == [["3.00", "0", "b", "yes"], ["1.00", "4", "a", "yes"], ["-1.00", "9", "a", "no"]]


def test_values_outside_the_public_range_move_to_its_ends():
    data = {"x": np.array([-7.0, 7.0]), "k": np.array([-3, 12]), "c": np.zeros(2, np.int64), "d": np.zeros(2, np.int64)}
    outside = Table(SCHEMA, data, "outside")
    encoder = Encoder(SCHEMA)
    assert outside.outside() == 2
    assert [row[:2] for row in encoder.decode(encoder.encode(outside)).rows()] == [["-1.00", "0"], ["3.00", "9"]]


def test_integers_of_every_size_survive_float32():
    """Property: any range up to 2^20 wide, any standard, any value and noise."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    @hypothesis.given(
        st.integers(-(2**20), 2**20), st.integers(1, 2**20), st.floats(1e-3, 1e6), st.floats(0, 1), st.integers(0, 99)
    )
    def check(lower, width, scale, place, seed):
        centre = lower + width * place
        column = Column("k", "integer", lower=lower, upper=lower + width, centre=centre, scale=scale)
        values = np.unique(np.linspace(lower, lower + width, 50).astype(np.int64))
        encoder = Encoder(Schema((column,)))
        made = Table(encoder.schema, {"k": values}, "whole numbers")
        np.testing.assert_array_equal(encoder.decode(encoder.dequantise(encoder.encode(made), seed)).data["k"], values)

    check()


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer"])
def test_real_tables_round_trip(name):
    """Statistics from a public half; a value inside their range comes back with all of its digits."""
    public, private = halves(load_table(name), seed=5)
    assert abs(len(public) - len(private)) <= 1
    schema = public.schema.standardised_by(public)
    private = private.with_schema(schema)
    encoder = Encoder(schema)
    back = encoder.decode(encoder.dequantise(encoder.encode(private), seed=6))
    for column in schema.columns:
        values = private.data[column.name]
        if column.kind != "categorical":
            values = np.clip(values, *column.range)
        np.testing.assert_allclose(back.data[column.name], values, rtol=1e-12, err_msg=column.name)
    vectors = encoder.encode(public.with_schema(schema))
    assert np.abs(vectors.mean(axis=0)[0]) < 0.1


def test_bad_encodings_are_refused():
    bare = Schema((Column("x", "numeric"), *SCHEMA.columns[2:]))
    with pytest.raises(InputError, match="column 'x': no public range; expected lower and upper"):
        Encoder(bare)
    assert Encoder(ranges(bare, {"x": (0, 1)})).dim == 6
    with pytest.raises(InputError, match="'c' is categorical"):
        ranges(bare, {"c": (0, 1)})
    with pytest.raises(InputError, match="expected a categorical column"):
        Encoder(SCHEMA, ("x",))
    with pytest.raises(InputError, match="'y' does not exist"):
        Encoder(SCHEMA, ("y",))
    with pytest.raises(InputError, match="every column is kept apart"):
        Encoder(Schema(SCHEMA.columns[2:]), ("c", "d"))
    with pytest.raises(InputError, match="spans"):
        Encoder(Schema((Column("k", "integer", lower=0, upper=2**21),)))
    other = Schema((dataclasses.replace(SCHEMA.columns[0], upper=4.0), *SCHEMA.columns[1:]))
    with pytest.raises(InputError, match="another schema"):
        Encoder(other).encode(table())
    with pytest.raises(InputError, match=r"expected vectors \[N, 7\]"):
        Encoder(SCHEMA).decode(np.zeros((2, 6)))
    with pytest.raises(InputError, match="does not exist"):
        Encoder(SCHEMA, ("d",)).decode(np.zeros((2, 5)), np.full((2, 1), 2))
