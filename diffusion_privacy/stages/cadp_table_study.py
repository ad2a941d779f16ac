"""A private table as the stages of a CADP study take it: divided rows, and releases read back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.data.table_csv import read_csv
from diffusion_privacy.data.table_rows import Rows, split_rows
from diffusion_privacy.data.table_sources import load_table
from diffusion_privacy.data.tables import Schema, Table
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.table import row_hashes
from diffusion_privacy.settings_cadp import CadpTable

_LOG = logging.getLogger(__name__)

_WHERE_TO_GET = {
    "adult": "download adult.data of the data set Adult from the UCI Machine Learning Repository",
    "heart_disease": "download processed.cleveland.data of the data set Heart Disease from the UCI Machine Learning "
    "Repository",
    "csv": "name a CSV file with a header",
}


def check_file(settings: CadpTable) -> None:
    """`InputError` that says how to go on where the file of the table is missing."""
    source, path = settings.data.source, settings.data.params.get("path")
    if source in _WHERE_TO_GET and isinstance(path, str) and not Path(path).expanduser().is_file():
        raise InputError(
            f"config.data.params.path: {path!r} is no file; expected a table: {_WHERE_TO_GET[source]}, and give "
            "--config.data.params.path=FILE"
        )


def load_source(settings: CadpTable) -> Table:
    """The whole table of the config, its columns checked against what the config says of them.

    Raises:
      InputError: no such file or column, a missing value without a policy, or a policy that mixes rows.
    """
    check_file(settings)
    data, columns = settings.data, settings.columns
    params: dict[str, Any] = dict(data.params)
    policies = params.get("missing", "error")
    if "median" in (policies.values() if isinstance(policies, dict) else (policies,)):
        raise InputError(
            "config.data.params.missing: 'median' makes a row depend on all others, which no guarantee for one row "
            "covers; expected 'error', 'drop' or 'category'"
        )
    if columns.declared:
        params["schema"] = Schema(columns.declared)
    table = load_table(data.source, **params)
    names = table.schema.header
    for field, name in (
        ("evaluation.target", settings.evaluation.target),
        *(("columns.apart", name) for name in columns.apart),
        *((f"columns.ranges.{name}", name) for name in columns.ranges),
    ):
        if name not in names:
            raise InputError(
                f"config.{field}: the table has no column {name!r}; expected one of {', '.join(map(repr, names))}"
            )
    if table.schema.origin != "declared" and not columns.vouched:
        raise InputError(
            f"{table.name}: its columns were inferred from the private rows; expected config.columns.declared, or "
            "config.columns.vouched = True if names, kinds, categories and decimals are public"
        )
    return table


def load_parts(settings: CadpTable) -> tuple[Rows, Rows, Rows]:
    """Public, private and test rows. A person's rows stay together, and so do equal rows, or a flow would learn from
    copies of private ones.

    The division is public and not accounted for. It depends on places in the file, on whose rows they are and on which
    are equal: exchanging a row that equals no other for another such row moves nobody, nor does it where one of the two
    is left out for a missing value. How many rows a share keeps then changes: which rows are complete is public too.

    Raises:
      InputError: as `load_source` and `table_rows.split_rows`.
    """
    table, columns, shares = load_source(settings), settings.columns, settings.split
    if table.dropped:
        _LOG.info("%s: %d rows with missing values left out, as the config asks", table.name, table.dropped)
    _, same = np.unique(np.array(row_hashes(table)), return_inverse=True)
    return split_rows(  # type: ignore[return-value]
        table,
        same,
        (shares.public, shares.private, shares.test),
        settings.seed,
        apart=columns.apart,
        bounds={name: (ends[0], ends[1]) for name, ends in columns.ranges.items()},
        vouched=columns.vouched,
    )


def read_release(folder: Path, like: Rows) -> Rows:
    """``data.csv`` of a release as anybody would read it, in the order of ``like``.

    Raises:
      InputError: another header, a cell that fits no column, or another number of rows.
    """
    table = read_csv(folder / "data.csv", schema=like.table.schema)
    if len(table) != len(like):
        raise InputError(f"{folder / 'data.csv'}: holds {len(table)} rows; expected the {len(like)} that came in")
    return Rows(table, like.encoder, like.index)
