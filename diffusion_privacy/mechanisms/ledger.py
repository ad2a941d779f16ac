"""What has been spent on which records: an append-only JSON-lines file that refuses to exceed a stated total.

Line 1 states the total (ε, δ) under replace-one; an entry is one stage that touched private records. Releases of the
same records compose sequentially. Distinct records compose in parallel only where both entries declare their records by
hashes of one kind: the total is the largest ε over the sets of stages that some record may have gone through. A stage
declared without hashes counts against every record, and stages whose hashes are of different kinds, or of which one
does not say its kind, against each other. So a hash must be of the record's SOURCE (a file's bytes, stored grey levels,
a row's values: `Records.source_hash`, `table.row_hashes`): prepared in another way, resized say, it is still the same
record. Where the source is not at hand a stage is declared without hashes. A stage whose relation speaks of a person's
records counts against every record, whatever hashes it declares: two images of one person in two stages have two hashes
and one person. A stage that cannot give its event makes the total "no guarantee"; leaving it out would be worse.

Each entry keeps the relation of its event: what its neighbours may differ in. A total is for data sets that are
neighbours in all of its entries (`relation.meet`) and says so; one release that publishes the class makes it a total
for neighbours with equal classes, whatever the others randomised. Entries of ledgers that were written before relations
were kept count as the narrowest: one record, its condition fixed.

A line of another kind notes records that were given up: used as public ones, without noise, by a study with this
ledger. It costs nothing, and no entry with an event may name such a record afterwards, as no record of an entry may be
given up: what one study protects another one must not give away.

The file stays with the data: a record's hash lets anyone who holds a candidate test for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_privacy.data.records import ROW_HASH
from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.composition import Covering, Total, covering, total
from diffusion_privacy.mechanisms.entries import Entry, GivenUp, Line, event_from_json, event_to_json, line_from_json
from diffusion_privacy.rounding import promised

__all__ = [
    "Covering",
    "Entry",
    "GivenUp",
    "Ledger",
    "Total",
    "covering",
    "event_from_json",
    "event_to_json",
    "total",
    "value_hashes",
]

_LOG = logging.getLogger(__name__)

SCHEMA = 2
"""2: hashes are of a record's source. Ledgers of schema 1 hashed prepared arrays, which do not meet these."""


def value_hashes(records: np.ndarray) -> tuple[str, ...]:
    """128-bit SHA-256 prefixes, one a record, of the numbers in ``records[N, ...]``, whatever their type and shape.

    For records of which nothing but an array is at hand, to find a flow that was trained on the same numbers. They do
    not know a record again that was resized, cropped or scaled in between: never declare them to a ledger.
    """
    # Adding 0 makes one zero of the two.
    rows = np.ascontiguousarray(np.asarray(records), "<f8").reshape(len(records), -1) + 0.0
    return tuple(hashlib.sha256(b"values " + row.tobytes()).hexdigest()[:32] for row in rows)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger file and the total it must not exceed.

    Attributes:
      path: the JSON-lines file; created with the first line. ``path`` with the suffix ``.lock`` guards it.
      epsilon, delta: stated total under replace-one; fixed by the first line for good.
    """

    path: Path
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0.0 and 0.0 <= self.delta < 1.0):
            raise InputError(f"ledger total: expected ε > 0 and δ in [0, 1), got ({self.epsilon!r}, {self.delta!r})")

    def entries(self) -> list[Entry]:
        """All entries, oldest first; none when the file does not exist.

        Raises:
          InputError: the file states another total, or a line is damaged.
        """
        return [line for line in self._lines() if isinstance(line, Entry)]

    def given_up(self) -> list[GivenUp]:
        """All notes of records that were given up as public, oldest first; InputError as `entries`."""
        return [line for line in self._lines() if isinstance(line, GivenUp)]

    def total(self) -> Total:
        """The composition of all entries at the ledger's δ."""
        return total(self.entries(), self.delta)

    def record(self, entry: Entry, *, accept_uncovered: bool = False) -> Total:
        """Append ``entry`` and return the new total, or refuse and leave the file as it was.

        Write the entry BEFORE publishing what it pays for. An entry without an event is always written (it reports what
        has happened) and spoils the total.

        Args:
          entry: the stage.
          accept_uncovered: spend although some stage is uncovered and the total says "no guarantee"; the ε of the
            covered stages is limited all the same.

        Raises:
          InputError: the total would exceed the stated one, or is already "no guarantee"; some of the records were
            given up as public ones; a second hard link to the file.
        """
        with self._locked():
            lines = self._lines()
            before = [line for line in lines if isinstance(line, Entry)]
            after = total([*before, entry], self.delta)
            if entry.spend is not None:
                self._require_not_given_up(lines, entry.records or (), repr(entry.stage))
                if after.uncovered and not accept_uncovered:
                    raise InputError(f"{self.path}: {after.describe()}; expected a ledger in which every stage has one")
                if after.account.epsilon > self.epsilon * (1.0 + 1e-9):
                    raise InputError(
                        f"{self.path}: exhausted: {entry.stage!r} would bring ε to "
                        f"{promised(after.account.epsilon, 4)}, the stated total is {self.epsilon:g} at δ = "
                        f"{self.delta:g}"
                    )
            self._write([*lines, entry])
        return after

    def give_up(self, records: Sequence[str], stage: str, kind: str = "") -> None:
        """Note that ``records`` are used as public ones: call it BEFORE anything is computed from them.

        It costs no ε. From here on nothing is promised to them: `record` refuses them. Noted once: records that are all
        given up already add no line.

        Args:
          records: source hashes, one a record.
          stage: what they are used for.
          kind: what they are hashes of, one of `data.records.HASH_KINDS`; empty where that is not known.

        Raises:
          InputError: some of them are in an entry: what protected them would be given up with them. A second hard link
            to the file.
        """
        self.check_public(records, kind)
        if self._are_given_up(records):
            return  # a finished study that is looked at again touches no file
        with self._locked():
            self.check_public(records)
            if not self._are_given_up(records):
                self._write([*self._lines(), GivenUp(tuple(records), stage, kind)])

    def _are_given_up(self, records: Sequence[str]) -> bool:
        return {record for note in self.given_up() for record in note.records}.issuperset(records)

    def check_public(self, records: Sequence[str], kind: str = "") -> None:
        """`InputError` where some of ``records``, to be used as public ones, are in an entry as private ones.

        Where entries know theirs by another ``kind`` of hash, nothing can be found and a warning says so.
        """
        entries = self.entries()
        self._warn("private", {entry.kind for entry in entries if entry.records}, kind)
        protected = {record for entry in entries for record in entry.records or ()}
        if shared := len(protected.intersection(records)):
            raise InputError(
                f"{self.path}: {shared} of the {len(records)} records of the public share are in it as private ones; "
                "expected a split in which they stay private (seed and shares as before)"
            )

    def check_private(self, records: Sequence[str], kind: str = "") -> None:
        """`InputError` where some of ``records``, of which something is to be promised, were given up."""
        lines = self._lines()
        self._require_not_given_up(lines, records, "the private share")
        self._warn("public", {line.kind for line in lines if isinstance(line, GivenUp)}, kind)

    def _warn(self, what: str, kinds: set[str], kind: str) -> None:
        # What earlier versions entered does not say its kind: of images it meets today's hashes, of rows it cannot.
        others = kinds - {kind} if kind == ROW_HASH else kinds - {"", kind}
        if kind and others:
            _LOG.warning(
                "%s: notes %s records by %s, these are known by %s: whether they meet cannot be told",
                self.path,
                what,
                " and ".join(sorted(other or "hashes of a kind that is not said" for other in others)),
                kind,
            )

    def _require_not_given_up(self, lines: Sequence[Line], records: Sequence[str], what: str) -> None:
        wanted, notes = set(records), [line for line in lines if isinstance(line, GivenUp)]
        shared = {record for note in notes for record in wanted.intersection(note.records)}
        if shared:
            stages = dict.fromkeys(note.stage for note in notes if wanted.intersection(note.records))
            raise InputError(
                f"{self.path}: {len(shared)} of the {len(records)} records of {what} were given up as public ones "
                f"({'; '.join(stages)}), and nothing can be promised to them any more; expected a split in which "
                "they stay public (seed and shares as before)"
            )

    def _head(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "epsilon": self.epsilon, "delta": self.delta, "relation": "replace-one"}

    def _lines(self) -> list[Line]:
        """All lines below the first, oldest first; see `entries`."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if not lines:
            raise InputError(f"{self.path}: empty ledger; expected a first line that states the total")
        head = self._parse(lines[0], 1)
        if head != self._head():
            raise InputError(f"{self.path}: states the total {head}, expected {self._head()}")
        return [self._line(line, number) for number, line in enumerate(lines[1:], start=2)]

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: line {number} is damaged; expected a JSON object")
        return value

    def _line(self, line: str, number: int) -> Line:
        value = self._parse(line, number)
        try:
            return line_from_json(value)
        except InputError as error:
            raise InputError(f"{self.path}: line {number}: {error}") from error

    def _write(self, lines: Sequence[Line]) -> None:
        # A link stays a link: replacing it would fork the ledger, and each half would allow the whole total.
        target = self.path.resolve()
        temporary = target.with_name(target.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            for obj in (self._head(), *(line.to_json() for line in lines)):
                file.write(json.dumps(obj) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        target = self.path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(target.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists() and target.stat().st_nlink > 1:
                raise InputError(
                    f"{self.path}: has {target.stat().st_nlink} hard links, of which only one would get the new line; "
                    "expected one file, with symbolic links for other places (and whole copies for backups)"
                )
            yield
