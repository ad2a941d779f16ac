"""What a released table is good for: marginals, correlations, and models trained on it and tested on real rows.

As in `fidelity`, these numbers compare private originals with their release and are covered by no guarantee.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusion_privacy.anonymity.intervals import Rate, rate
from diffusion_privacy.audits.fidelity import CorrelationDifference, bins, correlation_difference, one_way, two_way
from diffusion_privacy.data.table_encoding import Encoder
from diffusion_privacy.data.tables import Schema, Table
from diffusion_privacy.errors import InputError


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
class Transfer:
    """A model trained on one table and tested on real rows; larger is better.

    Attributes:
      target: the column it predicts.
      accuracy: share of right categories with its exact interval over test rows; None for a number.
      majority: accuracy of always naming the commonest category of the TEST rows; None for a number.
      r2: 1 − squared error/variance of the test rows for a number (0: no better than their mean, may be negative); None
        for a category.
    """

    target: str
    accuracy: Rate | None
    majority: float | None
    r2: float | None


def train_and_test(train: Table, test: Table, target: str, *, level: float = 0.95) -> Transfer:
    """Train on ``train`` (a release, or real rows for the bar to reach), test on real rows that had no part in either.

    Logistic regression or ridge regression with unit penalty on the vectors of `Encoder` without the target: a
    deterministic model that can be fitted to a few hundred rows. A training table with one category only always
    predicts that one.

    Raises:
      InputError: different schemas, a target that does not exist, or numbers without a public range.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    _same_schema(train.schema, test)
    column = train.schema.column(target)
    x_train, x_test = _features(train, target), _features(test, target)
    y_train, y_test = train.data[target], test.data[target]
    if column.kind != "categorical":
        centre, scale = column.standard
        fitted = Ridge(alpha=1.0).fit(x_train, (y_train - centre) / scale).predict(x_test) * scale + centre
        spread = float(np.sum((y_test - y_test.mean()) ** 2))
        if spread == 0.0:
            raise InputError(f"{test.name}: column {target!r} is constant; expected values that differ")
        return Transfer(target, None, None, 1.0 - float(np.sum((y_test - fitted) ** 2)) / spread)
    if np.all(y_train == y_train[0]):
        named = np.full(len(y_test), y_train[0])
    else:
        named = LogisticRegression(C=1.0, max_iter=5000).fit(x_train, y_train).predict(x_test)
    majority = float(np.bincount(y_test).max() / len(y_test))
    return Transfer(target, rate(int(np.sum(named == y_test)), len(y_test), level), majority, None)


def _features(table: Table, target: str) -> np.ndarray:
    kept = tuple(column for column in table.schema.columns if column.name != target)
    schema = Schema(kept, table.schema.origin)
    data = {column.name: table.data[column.name] for column in kept}
    return Encoder(schema).encode(Table(schema, data, table.name)).astype(np.float64)


def _same_schema(schema: Schema, other: Table) -> None:
    if other.schema != schema:
        raise InputError(f"{other.name}: has another schema than the table it is held against")
