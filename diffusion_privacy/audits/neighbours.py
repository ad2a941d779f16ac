"""Nearest neighbours block by block: memory is of the order of chunk² + chunk·D, whatever the number of rows.

Matrix products in float64 choose a few more candidates than asked for; their distances are then computed from
differences, because ‖x‖² − 2x·y + ‖y‖² leaves only rounding errors of the distance between an image and its copy.
"""

from __future__ import annotations

import numpy as np

from diffusion_privacy.errors import InputError

_VALUES = 2**26
"""Most numbers of a block: half a gigabyte in float64, a handful of times. 1,024 images of 256 pixels are as many."""
_SPARE = 8
"""Candidates beyond k. One that is lost to rounding is as far away as those kept, to a relative 1e-12 of ‖x‖²."""


def rows(x: np.ndarray, name: str) -> np.ndarray:
    """``x[N, ...]`` as one part a row, ``[N, 1, D]``.

    Raises:
      InputError: no row, no value, or one that is not finite; the message carries ``name``.
    """
    x = np.asarray(x)
    if x.ndim < 2 or x.size == 0:
        raise InputError(f"{name}: expected rows [N, ...] with at least one number each, got {x.shape}")
    flat = x.reshape(len(x), 1, -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=(1, 2)))
    if bad.size:
        raise InputError(f"{name}: row {bad[0]} is not finite; expected numbers")
    return flat


def tiles(x: np.ndarray, across: int, name: str) -> np.ndarray:
    """Images ``[N, H, W, C]`` cut into across x across equal tiles: ``[N, across², D]``.

    Raises:
      InputError: as `rows`, not images, or a side that ``across`` does not divide.
    """
    x = np.asarray(x)
    rows(x, name)
    if x.ndim != 4 or across < 1 or x.shape[1] % across or x.shape[2] % across:
        raise InputError(f"{name}: expected images [N, H, W, C] with sides divisible by {across}, got {x.shape}")
    n, height, width, channels = x.shape
    cut = x.reshape(n, across, height // across, across, width // across, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, across * across, -1)


def squared_block(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Largest squared distance over the parts of ``one[A, T, D]`` and ``two[B, T, D]``, approximate, float64 [A, B]."""
    worst = np.full((len(one), len(two)), -np.inf)
    for part in range(one.shape[1]):
        a, b = one[:, part], two[:, part]
        squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)
        np.maximum(worst, squares - 2.0 * (a @ b.T), out=worst)
    return worst


def squared_pairs(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Largest squared distance over parts of row i of ``one[A, T, D]`` and row i of ``two``, from differences, [A]."""
    return np.max(np.sum((one.astype(np.float64) - two.astype(np.float64)) ** 2, axis=2), axis=1)


def nearest(
    queries: np.ndarray, table: np.ndarray, k: int = 1, *, exclude_self: bool = False, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of ``table`` nearest to each query; the distance is the largest over the parts of a row.

    Args:
      queries, table: ``[Q, T, D]`` and ``[N, T, D]`` as `rows` or `tiles` give them.
      k: number of neighbours.
      exclude_self: ``queries`` is ``table``; a row is not its own neighbour (its duplicates are).
      chunk: rows of either side held against each other at once; fewer of long rows.

    Returns:
      ``(squared distances float64 [Q, k], row numbers int64 [Q, k])``, nearest first, the lower number first in a tie.

    Raises:
      InputError: rows of different shapes, or fewer neighbours than k.
    """
    if queries.ndim != 3 or queries.shape[1:] != table.shape[1:]:
        raise InputError(f"nearest: expected rows of one shape, got {queries.shape[1:]} and {table.shape[1:]}")
    available = len(table) - int(exclude_self)
    if not 1 <= k <= available or chunk < 1:
        raise InputError(f"nearest: expected k between 1 and {available} and chunk >= 1, got {k} and {chunk}")
    chunk = max(1, min(chunk, _VALUES // (table.shape[1] * table.shape[2])))
    # Around the mean: the products' rounding errors grow with the length of the rows.
    centre = table.mean(axis=0, dtype=np.float64)
    distance, index = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), chunk):
        block = queries[start : start + chunk]
        own = np.arange(start, start + len(block)) if exclude_self else np.full(len(block), -1)
        found = _candidates(block - centre, table, centre, min(k + _SPARE, available), own, chunk)
        exact = np.stack([squared_pairs(block, table[column]) for column in found.T], axis=1)
        order = np.lexsort((found, exact))[:, :k]
        index[start : start + chunk] = np.take_along_axis(found, order, axis=1)
        distance[start : start + chunk] = np.take_along_axis(exact, order, axis=1)
    return distance, index


def _candidates(
    block: np.ndarray, table: np.ndarray, centre: np.ndarray, count: int, own: np.ndarray, chunk: int
) -> np.ndarray:
    """Row numbers [A, count] of the nearest by matrix products, in no order."""
    value, index = np.empty((len(block), 0)), np.empty((len(block), 0), np.int64)
    for start in range(0, len(table), chunk):
        piece = table[start : start + chunk] - centre
        numbers = np.broadcast_to(np.arange(start, start + len(piece)), (len(block), len(piece)))
        squared = np.where(numbers == own[:, None], np.inf, squared_block(block, piece))
        value, index = np.concatenate([value, squared], axis=1), np.concatenate([index, numbers], axis=1)
        if value.shape[1] > count:
            keep = np.argpartition(value, count - 1, axis=1)[:, :count]
            value, index = np.take_along_axis(value, keep, axis=1), np.take_along_axis(index, keep, axis=1)
    if value.shape[1] > count or np.isinf(value).any():
        keep = np.argsort(value, axis=1, kind="stable")[:, :count]
        index = np.take_along_axis(index, keep, axis=1)
    return index
