"""Blocked nearest neighbours against brute force, copies and ties among them."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from diffusion_privacy.audits import neighbours
from diffusion_privacy.audits.neighbours import nearest, rows, tiles
from diffusion_privacy.errors import InputError


def brute(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return ((one[:, None] - two[None]) ** 2).sum(axis=3).max(axis=2)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_it_is_brute_force(chunk):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(23, 3, 4)), rng.normal(size=(40, 3, 4))
    squared, index = nearest(one, two, 5, chunk=chunk)
    want = brute(one, two)
    order = np.argsort(want, axis=1)[:, :5]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(squared, np.take_along_axis(want, order, axis=1), rtol=1e-12)
    own, who = nearest(two, two, 39, exclude_self=True, chunk=chunk)
    want = brute(two, two)
    np.fill_diagonal(want, np.inf)
    np.testing.assert_array_equal(who, np.argsort(want, axis=1)[:, :39])
    assert np.all(np.diff(own, axis=1) >= 0)


def test_long_rows_come_in_smaller_blocks(monkeypatch):
    """Of 512 pixels a block of 1,024 rows would take 2 GB, several times over."""
    rng, blocks = np.random.default_rng(2), []
    table, whole = rows(rng.normal(size=(40, 12)), "x"), neighbours.squared_block
    wanted = nearest(table, table, 3, exclude_self=True)
    monkeypatch.setattr(neighbours, "_VALUES", 7 * 12)
    monkeypatch.setattr(neighbours, "squared_block", lambda a, b: blocks.append(max(len(a), len(b))) or whole(a, b))
    for found, want in zip(nearest(table, table, 3, exclude_self=True), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-12)
    assert max(blocks) == 7


def test_memory_does_not_grow_with_queries_times_rows():
    """What numpy holds at most, over 4 times as many of both: in all, 16 times as many distances."""
    peaks = []
    for count in (1000, 4000):
        points = rows(np.random.default_rng(0).normal(size=(count, 4)), "points")
        tracemalloc.start()
        nearest(points, points, k=2, exclude_self=True, chunk=128)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0]
    assert peaks[1] < 0.1 * 8 * 4000**2


def test_copies_are_at_distance_zero_and_ties_go_by_number():
    """A large common offset leaves products no digit of such distances: differences do."""
    rng = np.random.default_rng(1)
    base = rows(1e4 + rng.normal(size=(30, 6)).astype(np.float32), "x")
    table = np.concatenate([base, base[:10], base + np.float32(1 / 128)])
    squared, index = nearest(base[:10], table, 2, chunk=16)
    np.testing.assert_array_equal(squared, 0)
    np.testing.assert_array_equal(index, np.stack([np.arange(10), np.arange(30, 40)], axis=1))
    close, who = nearest(base[10:], table, 2, chunk=16)
    np.testing.assert_array_equal(who[:, 0], np.arange(10, 30))
    np.testing.assert_allclose(close[:, 1], np.sum((base[10:, 0] - table[who[:, 1], 0]) ** 2, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(who[:, 1], np.arange(50, 70))
    alone, _ = nearest(table, table, 1, exclude_self=True, chunk=16)
    np.testing.assert_array_equal(alone[:10], 0)


def test_tiles_are_the_squares_of_an_image():
    image = np.arange(2 * 4 * 4 * 1.0).reshape(2, 4, 4, 1)
    cut = tiles(image, 2, "x")
    np.testing.assert_array_equal(cut[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    colour = np.random.default_rng(2).normal(size=(3, 6, 4, 2))
    np.testing.assert_array_equal(tiles(colour, 2, "x")[1, 3], colour[1, 3:, 2:].ravel())
    np.testing.assert_array_equal(tiles(colour, 1, "x"), rows(colour, "x"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: rows(np.array([1.0]), "set"), "set: expected rows"),
        (lambda x: rows(np.array([[1.0], [np.inf]]), "set"), "set: row 1 is not finite"),
        (lambda x: tiles(np.zeros((2, 6, 6, 1)), 4, "set"), "divisible by 4"),
        (lambda x: nearest(x, x[:, :, :1]), "rows of one shape"),
        (lambda x: nearest(x, x, 3, exclude_self=True), "k between 1 and 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(np.zeros((3, 1, 2)))
