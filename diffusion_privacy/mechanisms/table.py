"""A private table: every row through the flow and the mechanism, categories kept apart released or randomised.

A row is split in two. The columns apart are the condition: public, or each through k-ary randomised response. The rest
is one vector, clipped and noised in the flow's latent space. Under `REPLACE_RECORD_AND_CONDITION` the ε of the
responses and of the latent step add up to that of the whole row; the accounting does so by itself.

The schema (columns, categories, ranges, statistics, decimals) is released and must be public.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp
import numpy as np

from diffusion_privacy.data.records import ROW_HASH
from diffusion_privacy.data.table_encoding import Encoder, combinations, digits, one_hots
from diffusion_privacy.data.tables import Table
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms import noise
from diffusion_privacy.mechanisms.condition import PublicCondition, RandomizedResponse, check_labels
from diffusion_privacy.mechanisms.decoding import CoarseSelection
from diffusion_privacy.mechanisms.export import publish
from diffusion_privacy.mechanisms.ledger import Ledger
from diffusion_privacy.mechanisms.manifest import CLASS_IS_PUBLIC, FlowProvenance
from diffusion_privacy.mechanisms.mechanism import Mechanism
from diffusion_privacy.mechanisms.relation import Neighbours, Relation, require_relation
from diffusion_privacy.mechanisms.release import Privatised, privatise
from diffusion_privacy.types import Array

if TYPE_CHECKING:
    import dp_accounting


TableMap = Callable[[Array, Array], Array]
"""``(rows[B, D], cond[B, K]) -> [B, D]``: one direction of the flow. K is 0 without columns apart."""

_MOST_CLASSES = 2**30


def row_hashes(table: Table) -> tuple[str, ...]:
    """128-bit SHA-256 prefixes, one a row, of its values by column name.

    For `FlowProvenance.trained_on` and the ledger. They do not depend on the kinds of columns, ranges, statistics,
    decimals, the order of columns or of categories, so that two releases of one row meet in the ledger although they
    were read or encoded differently. A cell is the number that it spells, if it does, else its text without spaces
    around it: the categories "1" and "1.0" are one, which may count a row twice and never forgets one. A row with other
    columns is another row: when parts of one table are released, account for them by person instead.
    """
    columns = sorted(table.schema.columns, key=lambda column: column.name)
    values = []
    for column in columns:
        data = table.data[column.name]
        if column.kind == "categorical":
            names = [_cell(name) for name in column.categories]
            named = [names[v] for v in data]
        else:
            named = [_cell(float(v)) for v in data]
        values.append([(column.name, text) for text in named])
    return tuple(
        hashlib.sha256(json.dumps(row, ensure_ascii=True).encode()).hexdigest()[:32]
        for row in zip(*values, strict=True)
    )


def _cell(value: str | float) -> str:
    """One text for all ways to read and to write the same number; adding 0 makes one zero of the two."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return repr(number + 0.0) if math.isfinite(number) else str(value).strip()


@dataclasses.dataclass(frozen=True)
class JointResponse:
    """Several categories of one record, each by randomised response of its own; one class number for all of them.

    (Σ ε_j, 0)-private for replacing all of them at once: independent responses compose.

    Attributes:
      parts: one response a column; the product of their classes is at most 2^30.
    """

    parts: tuple[RandomizedResponse, ...]
    name: ClassVar[str] = "randomized_response_each"
    subject: ClassVar[str] = "class"

    def __post_init__(self) -> None:
        if not self.parts or self.classes > _MOST_CLASSES:
            raise InputError(f"condition: expected 1 to {_MOST_CLASSES} combinations of categories, got {self.classes}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each column."""
        return tuple(part.classes for part in self.parts)

    @property
    def classes(self) -> int:
        """Number of combinations."""
        return math.prod(self.sizes)

    def many(self, draw: noise.RandomBytes, labels: np.ndarray) -> np.ndarray:
        """Published combinations int32 [B] of private ones [B]; every column and record spends its own bytes."""
        codes = digits(check_labels(labels, self.classes), self.sizes)
        return combinations(
            np.stack([part.many(draw, codes[:, j]) for j, part in enumerate(self.parts)], axis=1), self.sizes
        ).astype(np.int32)

    def event(self, relation: Relation) -> dp_accounting.DpEvent:
        """The responses composed; nothing when the condition may not differ."""
        import dp_accounting

        return dp_accounting.ComposedDpEvent([part.event(relation) for part in self.parts])


@dataclasses.dataclass(frozen=True)
class PrivatisedTable:
    """A private table in memory, made by `privatise_table` only.

    Attributes:
      table: rows of the schema that came in, in the same order and number.
      release: the vectors behind them, with the manifest.
    """

    table: Table
    release: Privatised


def privatise_table(
    table: Table,
    encoder: Encoder,
    encode: TableMap,
    decode: TableMap,
    *,
    mechanism: Mechanism,
    relation: Relation,
    delta: float,
    flow: FlowProvenance,
    response_epsilon: float | None = None,
    selection: CoarseSelection | None = None,
    match: bool = True,
    public_latents: np.ndarray | None = None,
    random_order: bool = False,
    assumed: Sequence[str] = (),
    batch_size: int = 256,
) -> PrivatisedTable:
    """One private row for each row.

    Args:
      table: private rows; its schema must be declared (`Schema.vouched`).
      encoder: the public map to vectors; its columns apart are the flow's condition.
      encode, decode: the flow on dequantised vectors ``[B, encoder.dim]`` with the one-hot conditions of the columns
        apart side by side ``[B, K]``.
      mechanism: latent step.
      relation: with ``response_epsilon``, `REPLACE_RECORD_AND_CONDITION`; otherwise the columns apart are public.
      delta: δ of the statement.
      flow: how the flow was trained; ``trained_on`` are the `row_hashes` of its training table, of
        kind `data.records.ROW_HASH`.
      response_epsilon: ε_y in nats, split evenly over the columns apart; None releases them as they are.
      selection, match, public_latents, random_order, assumed, batch_size: see `release.privatise`.

    Raises:
      InputError: a schema that was read off these rows, a response without columns apart or without a relation in which
        they differ, or what `release.privatise` refuses.
    """
    if table.schema.origin != "declared":
        raise InputError(
            f"{table.name}: its schema was inferred from the private rows; expected a declared one, or a code book "
            "that you vouch for (Schema.vouched)"
        )
    sizes = encoder.sizes
    condition = column_condition(sizes, response_epsilon, relation)

    def cond(joint: Array) -> Array:
        return jnp.asarray(one_hots(np.asarray(joint), sizes))

    def to_latent(rows: Array, joint: Array) -> Array:
        return encode(jnp.asarray(encoder.dequantise(np.asarray(rows), None)), cond(joint))

    def to_rows(z: Array, joint: Array) -> Array:
        return decode(z, cond(joint))

    release = privatise(
        to_latent,
        to_rows,
        encoder.encode(table),
        combinations(encoder.codes(table), sizes),
        mechanism=mechanism,
        condition=condition,
        relation=relation,
        delta=delta,
        flow=flow,
        selection=selection,
        match=match,
        person=table.person,
        # The vectors' own hashes would change with the public statistics: the ledger would take one row for two.
        hashes=row_hashes(table),
        hash_kind=ROW_HASH,
        public_latents=public_latents,
        random_order=random_order,
        assumed=assumed,
        batch_size=batch_size,
    )
    public = _public(release.manifest.public, encoder)
    release = dataclasses.replace(release, manifest=dataclasses.replace(release.manifest, public=public))
    decoded = encoder.decode(release.data, digits(release.labels, sizes), f"{table.name}, privatised")
    return PrivatisedTable(decoded, release)


def _public(said: tuple[str, ...], encoder: Encoder) -> tuple[str, ...]:
    """What a manifest calls public, ``said`` of any records, for a table: columns apart by name, and its schema."""
    known = [name for name in said if name != CLASS_IS_PUBLIC]
    if len(known) < len(said) and encoder.apart:
        known.append(f"{', '.join(encoder.apart)} of every row")
    schema = "the schema: columns, categories, ranges, statistics and decimals"
    return (*known, schema, "which rows of the source are among the records")


def column_condition(
    sizes: tuple[int, ...], epsilon: float | None, relation: Relation
) -> PublicCondition | JointResponse:
    """How columns apart with so many categories are released: as they are, or ε in even shares (see `privatise_table`).

    Raises:
      InputError: a response without columns or without a relation in which they differ.
    """
    if epsilon is None:
        if math.prod(sizes) > _MOST_CLASSES:
            raise InputError(f"columns apart: expected at most {_MOST_CLASSES} combinations, got {math.prod(sizes)}")
        return PublicCondition(math.prod(sizes))
    if not sizes:
        raise InputError("response_epsilon: expected columns apart to randomise, got none")
    if require_relation(relation).neighbours is not Neighbours.ANY_CONDITION:
        raise InputError(
            f"relation: {relation.describe()!r} takes the columns apart as public; expected "
            f"{Neighbours.ANY_CONDITION.value!r} beside a response_epsilon"
        )
    return JointResponse(tuple(RandomizedResponse(epsilon / len(sizes), size) for size in sizes))


def publish_table(result: PrivatisedTable, directory: Path, *, ledger: Ledger | None) -> Path:
    """``data.csv`` with the source's header, types and category names, and ``manifest.json``; see `export.publish`.

    Raises:
      InputError: as `export.publish`.
    """
    table = result.table
    return publish(result.release, directory, ledger=ledger, table=table.rows(), header=table.schema.header)
