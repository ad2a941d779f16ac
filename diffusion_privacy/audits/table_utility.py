"""What a released table is good for: marginals, correlations, and models trained on it and tested on real rows.

As in `fidelity`, these numbers compare private originals with their release and are covered by no guarantee.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from diffusion_privacy.anonymity.intervals import clopper_pearson
from diffusion_privacy.audits.fidelity import CorrelationDifference, bins, correlation_difference, one_way, two_way
from diffusion_privacy.data.table_encoding import Encoder
from diffusion_privacy.data.tables import Schema, Table
from diffusion_privacy.errors import InputError

GROUPS = 20
"""Of rows that the jackknife leaves out in turn."""
RESAMPLES = 1000

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Interval:
    """A measured number with its two-sided interval at ``level``."""

    value: float
    lower: float
    upper: float
    level: float


@dataclasses.dataclass(frozen=True)
class TableFidelity:
    """Distances between two tables; smaller is closer.

    Attributes:
      columns: names, in the order of the arrays.
      one_way: total variation of each column, float64 [K], in [0, 1].
      two_way: total variation of each pair, float64 [K, K], in [0, 1].
      correlation: of the numeric and integer columns; None with fewer than two of them.
    """

    columns: tuple[str, ...]
    one_way: np.ndarray
    two_way: np.ndarray
    correlation: CorrelationDifference | None


def cells(table: Table, number_of_cells: int = 10) -> tuple[np.ndarray, tuple[int, ...]]:
    """``(cells [N, K], sizes)``: categories as they are, numbers in equal cells of their public range.

    Raises:
      InputError: fewer than 2 cells, or a number without a public range.
    """
    if number_of_cells < 2:
        raise InputError(f"cells: expected 2 or more, got {number_of_cells}")
    codes, sizes = [], []
    for column in table.schema.columns:
        values = table.data[column.name]
        if column.kind == "categorical":
            codes.append(values)
            sizes.append(len(column.categories))
        else:
            codes.append(bins(values, np.linspace(*column.range, number_of_cells + 1)[1:-1]))
            sizes.append(number_of_cells)
    return np.stack(codes, axis=1), tuple(sizes)


def compare(real: Table, released: Table, number_of_cells: int = 10) -> TableFidelity:
    """Marginals and correlations of a release against its originals.

    Raises:
      InputError: different schemas, or as in `cells`.
    """
    _same_schema(real.schema, released)
    (one, sizes), (two, _) = cells(real, number_of_cells), cells(released, number_of_cells)
    names = [column.name for column in real.schema.columns if column.kind != "categorical"]
    correlation = None
    if len(names) >= 2 and min(len(real), len(released)) >= 2:
        sides = [np.stack([t.data[name].astype(float) for name in names], axis=1) for t in (real, released)]
        correlation = correlation_difference(sides[0], sides[1])
    return TableFidelity(real.schema.header, one_way(one, two, sizes), two_way(one, two, sizes), correlation)


@dataclasses.dataclass(frozen=True)
class Distance:
    """Mean distances between two tables; smaller is closer.

    Attributes:
      one_way, two_way: total variation in [0, 1], mean over columns and over pairs of columns; two_way is None for a
        single column.
      correlation: absolute difference of Pearson correlations, mean over pairs of numbers; None where there is none.
    """

    one_way: Interval
    two_way: Interval | None
    correlation: Interval | None


def distance(real: Table, released: Sequence[Table], number_of_cells: int = 10, level: float = 0.95) -> Distance:
    """Mean distance from ``real`` to each of ``released``, with normal intervals over the choice of rows.

    The deviation is that of a jackknife which leaves out one of 20 groups of rows in turn, row i of every table with
    row i of the others (Efron & Stein, Annals of Statistics 9, 1981). It does not remove the bias that finite tables
    give every distance: hold the numbers against those of another sample of the same population.

    Raises:
      InputError: no table, fewer rows than groups, or as `compare`.
    """
    if not released or min(len(real), *map(len, released)) < GROUPS:
        raise InputError(f"{real.name}: expected at least one table and {GROUPS} rows in each")
    whole = _means(real, released, number_of_cells)
    left = np.array(
        [_means(_without(real, g), [_without(t, g) for t in released], number_of_cells) for g in range(GROUPS)]
    )
    spread = np.sqrt((GROUPS - 1) / GROUPS * np.sum((left - left.mean(axis=0)) ** 2, axis=0))
    half = float(stats.norm.ppf((1 + level) / 2)) * spread
    made = [
        Interval(float(v), max(0.0, float(v - h)), float(v + h), level) if np.isfinite(v + h) else None
        for v, h in zip(whole, half, strict=True)
    ]
    if made[0] is None:
        raise InputError(f"{real.name}: distances are not finite")
    return Distance(made[0], made[1], made[2])


def _without(table: Table, group: int) -> Table:
    return table.take(np.flatnonzero(np.arange(len(table)) % GROUPS != group))


def _means(real: Table, released: Sequence[Table], number_of_cells: int) -> np.ndarray:
    """(one-way, two-way, correlation), mean over the tables; NaN where not defined."""
    found = []
    for table in released:
        one = compare(real, table, number_of_cells)
        pairs = one.two_way[np.triu_indices(len(one.columns), 1)]
        by_pair = float(pairs.mean()) if pairs.size else np.nan
        found.append((float(one.one_way.mean()), by_pair, np.nan if one.correlation is None else one.correlation.mean))
    return np.mean(found, axis=0)


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Models trained on tables and tested on real rows; larger is better.

    Attributes:
      target: the column they predict.
      measure: ``accuracy``, the share of right categories; or ``r2``, 1 − squared error/variance of the test rows for a
        number (0: no better than their mean; may be negative).
      score: mean over the tables, with its interval over the choice of test rows.
      draws: the score of each table.
      baseline: what a constant scores: the share of the commonest category of the TEST rows, or 0.
    """

    target: str
    measure: Literal["accuracy", "r2"]
    score: Interval
    draws: tuple[float, ...]
    baseline: float


def train_and_test(trains: Sequence[Table], test: Table, target: str, *, level: float = 0.95) -> Transfer:
    """Train on each of ``trains`` (releases, or real rows for the bar to reach), test on real rows without part in any.

    Logistic regression or ridge regression with unit penalty on the vectors of `Encoder` without the target: a
    deterministic model that can be fitted to a few hundred rows. A training table with one category only always
    predicts that one. The interval of an accuracy is exact for one table; for a mean over several it is that of one
    table with as many right answers, which is wider. That of R² is a percentile bootstrap over test rows.

    Raises:
      InputError: no table, different schemas, a target that does not exist, or numbers without a public range.
    """
    if not trains:
        raise InputError(f"{test.name}: expected at least one table to train on")
    for train in trains:
        _same_schema(train.schema, test)
    return score(np.stack([_predictions(train, test, target) for train in trains]), test, target, level=level)


def score(guesses: np.ndarray, test: Table, target: str, *, level: float = 0.95) -> Transfer:
    """How right ``guesses[S, N]`` of S models are about column ``target`` of the N rows of ``test``.

    Args:
      guesses: category numbers, or numbers in the column's own units.

    Raises:
      InputError: a numeric target that is constant.
    """
    column, truth = test.schema.column(target), test.data[target]
    if column.kind == "categorical":
        right = np.mean(guesses == truth, axis=1)
        value, n = float(right.mean()), len(test)
        lower, upper = clopper_pearson(round(value * n), n, level)
        interval = Interval(value, min(lower, value), max(upper, value), level)
        baseline = float(np.bincount(truth).max() / n)
        return Transfer(target, "accuracy", interval, tuple(map(float, right)), baseline)
    if np.all(truth == truth[0]):
        raise InputError(f"{test.name}: column {target!r} is constant; expected values that differ")
    draws = _r2(guesses, truth)
    rows = np.random.default_rng(_SEED).integers(len(test), size=(RESAMPLES, len(test)))
    again = [float(np.mean(_r2(guesses[:, r], truth[r]))) for r in rows]
    tail = 50 * (1 - level)
    lower, upper = (float(v) for v in np.nanpercentile(again, [tail, 100 - tail]))
    value = float(draws.mean())
    interval = Interval(value, min(lower, value), max(upper, value), level)
    return Transfer(target, "r2", interval, tuple(map(float, draws)), 0.0)


def _r2(guesses: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``guesses[S, N], truth[N] -> [S]``; NaN where the truth is constant."""
    spread = float(np.sum((truth - truth.mean()) ** 2))
    error = np.sum((truth - guesses) ** 2, axis=1)
    return 1.0 - error / spread if spread > 0 else np.full(len(guesses), np.nan)


def _predictions(train: Table, test: Table, target: str) -> np.ndarray:
    """What a model trained on ``train`` says of each test row, [N]: category numbers, or numbers in their own units."""
    from sklearn.linear_model import LogisticRegression, Ridge

    column = train.schema.column(target)
    x_train, x_test, y_train = features(train, target), features(test, target), train.data[target]
    if column.kind != "categorical":
        centre, scale = column.standard
        return np.asarray(Ridge(alpha=1.0).fit(x_train, (y_train - centre) / scale).predict(x_test) * scale + centre)
    if np.all(y_train == y_train[0]):
        return np.full(len(test), y_train[0])
    return np.asarray(LogisticRegression(C=1.0, max_iter=5000).fit(x_train, y_train).predict(x_test))


def features(table: Table, target: str) -> np.ndarray:
    """``float64 [N, F]``: the vectors of `Encoder` without column ``target``."""
    kept = tuple(column for column in table.schema.columns if column.name != target)
    schema = Schema(kept, table.schema.origin)
    data = {column.name: table.data[column.name] for column in kept}
    return Encoder(schema).encode(Table(schema, data, table.name)).astype(np.float64)


def _same_schema(schema: Schema, other: Table) -> None:
    if other.schema != schema:
        raise InputError(f"{other.name}: has another schema than the table it is held against")
