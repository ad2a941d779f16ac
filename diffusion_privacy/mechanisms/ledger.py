"""What has been spent on which records: an append-only JSON-lines file that refuses to exceed a stated total.

Line 1 states the total (ε, δ) under replace-one; every other line is one stage that touched private records. Releases
of the same records compose sequentially. Distinct records compose in parallel only where both entries declare their
records by hash: the total is the largest ε over the sets of stages that some record went through, and a stage declared
without hashes counts against every record. So a hash must be of the record's SOURCE (a file's bytes, stored grey
levels, a row's values: `Records.source_hash`, `table.row_hashes`): prepared in another way, resized say, it is still
the same record. Where the source is not at hand a stage is declared without hashes. A stage whose relation speaks of a
person's records counts against every record, whatever hashes it declares: two images of one person in two stages have
two hashes and one person. A stage that cannot give its event makes the total "no guarantee"; leaving it out would be
worse.

Each entry keeps the relation of its event: what its neighbours may differ in. A total is for data sets that are
neighbours in all of its entries (`relation.meet`) and says so; one release that publishes the class makes it a total
for neighbours with equal classes, whatever the others randomised. Entries of ledgers that were written before relations
were kept count as the narrowest: one record, its condition fixed.

The file stays with the data: a record's hash lets anyone who holds a candidate test for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import ADJACENCIES, Account, Spend, account, leaves
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, Relation, meet

if TYPE_CHECKING:
    from dp_accounting import DpEvent

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


def _event_classes() -> dict[str, type]:
    from dp_accounting import dp_event

    names = (
        "NoOpDpEvent NonPrivateDpEvent UnsupportedDpEvent RandomizedResponseDpEvent GaussianDpEvent LaplaceDpEvent "
        "DiscreteLaplaceDpEvent SelfComposedDpEvent ComposedDpEvent PoissonSampledDpEvent ZCDpEvent"
    )
    return {name: vars(dp_event)[name] for name in names.split()}


def event_to_json(event: DpEvent) -> dict[str, Any]:
    """``{"type": class name, field: value, ...}``, nested for compositions.

    Raises:
      InputError: an event of a kind that the ledger cannot read back.
    """
    import attr

    name = type(event).__name__
    if name not in _event_classes():
        raise InputError(f"ledger: cannot store an event of type {name}; expected one of {sorted(_event_classes())}")

    def plain(value: Any) -> Any:
        if attr.has(type(value)):
            return event_to_json(value)
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return value

    return {"type": name} | {field.name: plain(getattr(event, field.name)) for field in attr.fields(type(event))}


def event_from_json(obj: dict[str, Any]) -> DpEvent:
    """Inverse of `event_to_json`.

    Raises:
      InputError: unknown type.
    """
    classes = _event_classes()
    if obj.get("type") not in classes:
        raise InputError(f"ledger: unknown event type {obj.get('type')!r}")

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return event_from_json(value)
        if isinstance(value, list):
            return [restore(v) for v in value]
        return value

    return classes[obj["type"]](**{name: restore(value) for name, value in obj.items() if name != "type"})


@dataclasses.dataclass(frozen=True)
class Entry:
    """One stage.

    Attributes:
      stage: what was done, e.g. ``"flow training"``, ``"release dir-name"``.
      spend: its event, or None when it touched the records without one.
      records: source hashes of the records it touched, sorted, whatever order they are given in: that of a release is
        not the ledger's to tell. None for "all of them", or where no such hash is known. An empty list counts as None:
        a stage that touched nothing has no entry.
      relation: that the event was computed for; None where it is not known, or where there is no event.
    """

    stage: str
    spend: Spend | None
    records: tuple[str, ...] | None = None
    relation: Relation | None = None

    def __post_init__(self) -> None:
        if self.records is not None:
            object.__setattr__(self, "records", tuple(sorted(self.records)))

    def to_json(self) -> dict[str, Any]:
        """The ledger line."""
        spend = self.spend
        return {
            "stage": self.stage,
            "event": None if spend is None else event_to_json(spend.event),
            "adjacency": None if spend is None else spend.adjacency,
            "records": None if self.records is None else list(self.records),
        } | ({} if self.relation is None else {"relation": self.relation.to_json()})

    @property
    def hides(self) -> Relation | None:
        """The neighbours that this stage alone does not tell apart; None for one that saw nothing: any two."""
        if self.spend is None or not any(True for _ in leaves(self.spend.event)):
            return None
        return REPLACE_RECORD if self.relation is None else self.relation

    @property
    def parallel(self) -> bool:
        """Whether it leaves records outside its list alone, so that other stages on these cost nothing more."""
        return bool(self.records) and (self.relation is None or self.relation.records_per_person == 1)


@dataclasses.dataclass(frozen=True)
class Total:
    """What a ledger adds up to.

    Attributes:
      account: ε at the ledger's δ of the stages that have an event, for the record that spent most.
      uncovered: stages without an event, or whose event is not private.
      stages: number of entries.
      relation: the neighbours that ``account`` speaks of: those of all covered stages.
    """

    account: Account
    uncovered: tuple[str, ...]
    stages: int
    relation: Relation

    @property
    def guarantee(self) -> bool:
        """False means "no guarantee": some stage is not covered, whatever ε the others have."""
        return not self.uncovered and math.isfinite(self.account.epsilon)

    def describe(self) -> str:
        """One sentence for the report."""
        if self.uncovered:
            return f"no guarantee: {', '.join(self.uncovered)} touched the records without a privacy event"
        if not self.guarantee:
            return "no guarantee: the composition has no finite ε"
        return (
            f"ε = {self.account.epsilon:.6g} at δ = {self.account.delta:g} over {self.stages} stages "
            f"({self.relation.describe()})"
        )


def total(entries: Sequence[Entry], delta: float) -> Total:
    """Compose ``entries`` at ``delta``: sequentially for a record, in parallel over declared distinct records.

    Why the relation of the result is the meet: two data sets that are neighbours in every stage differ in records of
    which each stage's event speaks, so that the stages' events compose; of other pairs some stage promises nothing.
    """
    import dp_accounting

    open_ended = (dp_accounting.NonPrivateDpEvent, dp_accounting.UnsupportedDpEvent)
    lost, covered = [], []
    for entry in entries:
        if entry.spend is None or any(isinstance(leaf, open_ended) for leaf, _ in leaves(entry.spend.event)):
            lost.append(entry.stage)
        else:
            covered.append(entry)
    everywhere = [e.spend for e in covered if not e.parallel and e.spend is not None]
    touched: dict[str, list[int]] = {}
    for i, entry in enumerate(covered):
        for record in set(entry.records or ()) if entry.parallel else ():
            touched.setdefault(record, []).append(i)
    # A record outside every list still went through the stages declared without one.
    paths = {tuple(path) for path in touched.values()} | {()}
    accounts = [
        account([*everywhere, *(s for s in (covered[i].spend for i in path) if s is not None)], delta) for path in paths
    ]
    relation = meet(r for r in (entry.hides for entry in covered) if r is not None)
    return Total(max(accounts, key=lambda a: a.epsilon), tuple(lost), len(entries), relation)


@dataclasses.dataclass(frozen=True)
class Covering:
    """What the stages behind ONE thing cost together, or why nothing can be promised for it; see `covering`.

    Attributes:
      account: ε in nats of the named stages together, under replace-one; infinite without a guarantee, so that whoever
        reads it alone promises nothing.
      stages: the names that were asked for, each once.
      missing: named, but the ledger has no such entry.
      repeated: named, and the ledger has several such entries: which of them the thing rests on cannot be told, so that
        all of them are composed (a release that crashed after it was paid for is paid for again).
      uncovered: named, without an event or with one that is not private.
      left_out: every other entry of the ledger, in its order. The promise holds only while nothing of theirs is shared.
      relation: the neighbours that ``account`` speaks of: those of all stages that were composed.
      unpaid: named, with an entry that does not pay for what is shared, and why; the caller says so.
    """

    account: Account
    stages: tuple[str, ...]
    missing: tuple[str, ...]
    repeated: tuple[str, ...]
    uncovered: tuple[str, ...]
    left_out: tuple[str, ...]
    relation: Relation
    unpaid: tuple[str, ...] = ()

    @property
    def guarantee(self) -> bool:
        """False means "no guarantee"; `why` says why."""
        return math.isfinite(self.account.epsilon)

    @property
    def why(self) -> str:
        """Why there is no guarantee; empty where there is one."""
        if self.guarantee:
            return ""
        faults = {
            "without an entry in the ledger": self.missing,
            "without a privacy event": self.uncovered,
        }
        found = [*(f"{', '.join(names)} {fault}" for fault, names in faults.items() if names), *self.unpaid]
        if not self.stages:
            found = ["no stage was named, and nothing that learned from records rests on none"]
        return "; ".join(found) or "the composition has no finite ε"

    def describe(self) -> str:
        """One sentence for the report."""
        if not self.guarantee:
            return f"no guarantee: {self.why}"
        return (
            f"ε = {self.account.epsilon:.6g} at δ = {self.account.delta:g} over {', '.join(self.stages)} "
            f"({self.relation.describe()})"
        )


def covering(
    entries: Sequence[Entry], stages: Sequence[str], delta: float, unpaid: Mapping[str, str] | None = None
) -> Covering:
    """What may be promised for a thing that was computed from the outputs of the named stages alone.

    Why that is enough: the entries are mechanisms, each private whatever the earlier ones gave out. What is computed
    from the outputs of a set S of them, and from nothing else that depends on the private records, is post-processing
    of the composition over S. Its (ε, δ) holds whatever the other stages did, as long as nothing of theirs is given
    out too. So ``stages`` must be closed upstream: a stage that used the output of another one on the same records
    (a score model that learned from a private copy, a copy made by a private flow) needs that one named as well. Only
    the caller knows that; a name too many makes ε larger and nothing wrong.

    Nothing is dropped: an entry is either composed or listed in ``left_out``, and whatever cannot be told from the
    ledger (no entry, no event) makes the whole "no guarantee". Of several entries of one name all are composed: one too
    many makes ε larger and nothing wrong.

    Args:
      entries: of the ledger, all of them.
      stages: names of its entries, in any order; a name given twice is the same stage.
      delta: δ in [0, 1) at which ε is read.
      unpaid: stages whose entry is known not to be that of the thing (another run under the same name, say), each with
        the reason in words; one of them makes the whole "no guarantee".

    Raises:
      InputError: δ out of range, or an event that cannot be converted to replace-one.
    """
    named = tuple(dict.fromkeys(stages))
    count = {name: sum(entry.stage == name for entry in entries) for name in named}
    composed = total([entry for entry in entries if entry.stage in count], delta)
    missing = tuple(name for name in named if count[name] == 0)
    repeated = tuple(name for name in named if count[name] > 1)
    refused = tuple(f"{name}: {(unpaid or {})[name]}" for name in named if count[name] and name in (unpaid or {}))
    whole = bool(named) and not missing and not refused and composed.guarantee
    return Covering(
        composed.account if whole else Account(math.inf, delta, "none", {}),
        named,
        missing,
        repeated,
        tuple(dict.fromkeys(composed.uncovered)),
        tuple(entry.stage for entry in entries if entry.stage not in count),
        composed.relation,
        refused,
    )


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger file and the total it must not exceed.

    Attributes:
      path: the JSON-lines file; created with the first entry. ``path`` with the suffix ``.lock`` guards it.
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
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        if not lines:
            raise InputError(f"{self.path}: empty ledger; expected a first line that states the total")
        head = self._parse(lines[0], 1)
        if head != self._head():
            raise InputError(f"{self.path}: states the total {head}, expected {self._head()}")
        return [self._entry(self._parse(line, number), number) for number, line in enumerate(lines[1:], start=2)]

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
          InputError: the total would exceed the stated one, or is already "no guarantee".
        """
        with self._locked():
            before = self.entries()
            after = total([*before, entry], self.delta)
            if entry.spend is not None:
                if after.uncovered and not accept_uncovered:
                    raise InputError(f"{self.path}: {after.describe()}; expected a ledger in which every stage has one")
                if after.account.epsilon > self.epsilon * (1.0 + 1e-9):
                    raise InputError(
                        f"{self.path}: exhausted: {entry.stage!r} would bring ε to {after.account.epsilon:.4g}, "
                        f"the stated total is {self.epsilon:g} at δ = {self.delta:g}"
                    )
            self._write([*before, entry])
        return after

    def _head(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "epsilon": self.epsilon, "delta": self.delta, "relation": "replace-one"}

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: line {number} is damaged; expected a JSON object")
        return value

    def _entry(self, obj: dict[str, Any], number: int) -> Entry:
        fields = set(obj) - {"relation"}
        if fields != {"stage", "event", "adjacency", "records"} or obj["adjacency"] not in (None, *ADJACENCIES):
            raise InputError(f"{self.path}: line {number} is not a ledger entry")
        spend = None if obj["event"] is None else Spend(event_from_json(obj["event"]), obj["adjacency"])
        try:
            relation = Relation.from_json(obj["relation"]) if "relation" in obj else None
        except InputError as error:
            raise InputError(f"{self.path}: line {number}: {error}") from error
        return Entry(obj["stage"], spend, None if obj["records"] is None else tuple(obj["records"]), relation)

    def _write(self, entries: Sequence[Entry]) -> None:
        # A link stays a link: replacing it would fork the ledger, and each half would allow the whole total.
        target = self.path.resolve()
        temporary = target.with_name(target.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            for obj in (self._head(), *(entry.to_json() for entry in entries)):
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
            yield
