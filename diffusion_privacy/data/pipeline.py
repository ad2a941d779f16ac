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
      batch_size: B >= 1, the size of the global batch, over all processes.
      seed: 0 <= seed < 2**32.
      shuffle: False gives source order in every epoch.
      process_index, process_count: this process loads rows ``process_index·B/process_count`` and following of every
        batch. Which rows these are is all that they change: `position` stays the row in the global batch.

    Raises:
      InputError: a batch size below 1 or not divisible by the number of processes, or a seed out of range.
    """

    records: Drawable
    batch_size: int
    seed: int
    shuffle: bool = True
    process_index: int = 0
    process_count: int = 1
    # Only speed: the orders of the last epochs, each of which can be computed again.
    _orders: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _rows(self.batch_size, self.process_index, self.process_count)
        check_seed(self.seed)

    @property
    def steps_per_epoch(self) -> float:
        """Batches that make up one pass over the records; a fraction when B does not divide n."""
        return len(self.records) / self.batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number ``step`` >= 0, this process's rows R = B / process_count.

        Returns:
          ``image`` float32 [R, H, W, C], ``label``, ``identity``, ``index`` int32 [R], and ``position`` int32 [R], the
          row in the global batch (0..B−1), by which tasks key their random draws; where the records have them,
          ``attributes`` float32 [R, A].
        """
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more")
        rows = _rows(self.batch_size, self.process_index, self.process_count)
        n = len(self.records)
        first = int(step) * self.batch_size + int(rows[0])
        end = first + len(rows)
        pieces = []
        for epoch in range(first // n, (end - 1) // n + 1):
            pieces.append(self._order(epoch)[max(first - epoch * n, 0) : end - epoch * n])
        return self.gather(np.concatenate(pieces), rows)

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


def eval_batches(
    records: Drawable, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, in order, in batches of one shape.

    The last batch is filled up with its last record. ``position`` is the record's position in ``records`` (padding
    counts on), not the row in the batch: with one key for the whole evaluation, draws keyed by it differ between
    batches and do not depend on the batch size.

    Args:
      records: what to evaluate.
      batch_size: B >= 1, over all processes.
      process_index, process_count: as for `Batches`; every process gets the same number of batches.

    Yields:
      The fields of `Batches.batch` and ``mask`` float32 ``[B / process_count]``: 1 for a record, 0 for padding.

    Raises:
      InputError: a batch size below 1 or not divisible by the number of processes.
    """
    rows = _rows(batch_size, process_index, process_count)
    return _eval_batches(records, batch_size, rows)


def _eval_batches(records: Drawable, batch_size: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(records), batch_size):
        positions = start + rows
        batch = _gather(records, np.minimum(positions, len(records) - 1), positions)
        batch["mask"] = (positions < len(records)).astype(np.float32)
        yield batch


def _rows(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    """The rows of the global batch that belong to a process, int64 [B / process_count]."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; expected a whole number >= 1")
    if process_count < 1 or batch_size % process_count:
        raise InputError(f"batch_size is {batch_size}; expected a multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}; expected 0..{process_count - 1}")
    local = batch_size // process_count
    return np.arange(process_index * local, (process_index + 1) * local)


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
