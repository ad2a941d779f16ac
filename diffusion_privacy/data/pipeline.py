"""From records to batches, as a function of (seed, step): no iterator state to lose, no record dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from diffusion_privacy.data.records import check_seed, random_order
from diffusion_privacy.errors import InputError

_EPOCH_TAG = 0x4550
"""Keeps the order of an epoch apart from every other use of the same seed."""

_STATE_VERSION = 1
"""Rises when the same (seed, step) would give another batch than before."""


class Drawable(Protocol):
    """What batches are drawn from: `records.Records`, or rows of a table (`table_rows.Rows`)."""

    @property
    def image(self) -> np.ndarray:
        """float32 [N, ...]."""
        ...

    @property
    def label(self) -> np.ndarray:
        """int32 [N]."""
        ...

    @property
    def identity(self) -> np.ndarray:
        """int32 [N], equal for records of one person."""
        ...

    @property
    def index(self) -> np.ndarray:
        """int32 [N], positions in the source."""
        ...

    @property
    def attributes(self) -> np.ndarray | None:
        """int32 [N, A] of 0 and 1; None where there are none."""
        ...

    @property
    def digest(self) -> str:
        """Equal for equal data."""
        ...

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """An endless stream of batches; batch ``k`` is a pure function of (records, batch_size, seed, shuffle, k).

    The stream is the concatenation of epochs, each a permutation of all records keyed by (seed, epoch). Batch ``k``
    takes its positions ``k·B … (k+1)·B − 1``, across the seam where an epoch ends: nothing is dropped or padded, and
    fewer records than a batch works.

    Attributes:
      records: what to draw from.
      batch_size: B >= 1, over all processes; each of them reads its own `rows`.
      seed: 0 <= seed < 2**32.
      shuffle: False gives source order in every epoch.

    Raises:
      InputError: a batch size below 1, or a seed out of range.
    """

    records: Drawable
    batch_size: int
    seed: int
    shuffle: bool = True
    # Only speed: the orders of the last epochs, each of which can be computed again.
    _orders: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_size(self.batch_size)
        check_seed(self.seed)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number ``step`` >= 0.

        Returns:
          ``image`` float32 [B, H, W, C], ``label``, ``identity``, ``index`` int32 [B], and ``position`` int32 [B], the
          row in the batch (0..B−1), by which tasks key their random draws; where the records have them, ``attributes``
          float32 [B, A].
        """
        return self.rows(step, np.arange(self.batch_size))

    def rows(self, step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """These rows, int [R] in 0 … B−1, of batch number ``step`` as `batch` has them; no other record is read."""
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more")
        n = len(self.records)
        epochs, places = np.divmod(int(step) * self.batch_size + np.asarray(rows, np.int64), n)
        chosen = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            chosen[at] = self._order(int(epoch))[places[at]]
        return self.gather(chosen, rows)

    @property
    def num_records(self) -> int:
        """n."""
        return len(self.records)

    def gather(self, chosen: np.ndarray, positions: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The fields of single records, those of `batch`.

        Args:
          chosen: numbers of records, int [R] in 0 … n − 1.
          positions: what ``position`` says, int [R]; by default each record's own number, so that what a task draws for
            a record does not depend on which others come with it.
        """
        return _gather(self.records, chosen, chosen if positions is None else positions)

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.records))
        order = self._orders.get(epoch)
        if order is None:
            order = random_order(len(self.records), self.seed, _EPOCH_TAG, epoch)
            self._orders[epoch] = order
            # Two, because a batch often straddles a seam. `list` and `pop` are safe beside a prefetching thread.
            for old in list(self._orders)[:-2]:
                self._orders.pop(old, None)
        return order

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the next step, and what must not change for it to mean the same.

        The number of processes is not part of it: the global batches are the same for any.
        """
        return {"step": int(step), **self._fixed()}

    def check(self, state: Mapping[str, Any]) -> int:
        """The step to resume at, from a `state` saved earlier.

        Raises:
          InputError: the state is of other records, another seed, batch size, order, or version, or lacks a field.
        """
        expected = self._fixed()
        for field in ("step", *expected):
            if field not in state:
                raise InputError(
                    f"checkpointed data state: {field} is missing; expected {', '.join(['step', *expected])}"
                )
        for field, value in expected.items():
            if state[field] != value:
                raise InputError(
                    f"checkpointed data state: {field} was {state[field]!r}, is {value!r}; expected the same"
                )
        step = state["step"]
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise InputError(f"checkpointed data state: step is {step!r}; expected a whole number >= 0")
        return int(step)

    def _fixed(self) -> dict[str, Any]:
        return {
            "version": _STATE_VERSION,
            "seed": int(self.seed),
            "batch_size": int(self.batch_size),
            "shuffle": bool(self.shuffle),
            "num_records": len(self.records),
            "records": self.records.digest,
        }


def eval_batches(records: Drawable, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, in order, in batches of one shape.

    The last batch is filled up with its last record. ``position`` is the record's position in ``records`` (padding
    counts on), not the row in the batch: with one key for the whole evaluation, draws keyed by it differ between
    batches and do not depend on the batch size.

    Args:
      records: what to evaluate.
      batch_size: B >= 1.

    Yields:
      The fields of `Batches.batch` and ``mask`` float32 ``[B]``: 1 for a record, 0 for padding.

    Raises:
      InputError: a batch size below 1.
    """
    _check_size(batch_size)
    return _eval_batches(records, batch_size)


def _eval_batches(records: Drawable, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(records), batch_size):
        positions = start + np.arange(batch_size)
        batch = _gather(records, np.minimum(positions, len(records) - 1), positions)
        batch["mask"] = (positions < len(records)).astype(np.float32)
        yield batch


def _check_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected a whole number >= 1")


def _gather(records: Drawable, chosen: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    found = {
        "image": records.image[chosen],
        "label": records.label[chosen],
        "identity": records.identity[chosen],
        "index": records.index[chosen],
        "position": positions.astype(np.int32),
    }
    attributes = records.attributes
    return found if attributes is None else {**found, "attributes": attributes[chosen].astype(np.float32)}
