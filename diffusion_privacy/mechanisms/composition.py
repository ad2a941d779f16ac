"""What the entries of a ledger add up to: all of them (`total`), or those behind one thing (`covering`)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from diffusion_privacy.mechanisms.accounting import Account, account, leaves
from diffusion_privacy.mechanisms.entries import Entry
from diffusion_privacy.mechanisms.relation import Relation, meet
from diffusion_privacy.rounding import promised


@dataclasses.dataclass(frozen=True)
class Total:
    """What a ledger adds up to.

    Attributes:
      account: (ε, δ) that holds for every record, of the stages that have an event: the largest ε, and the largest δ,
        which may be another record's; δ is at most the ledger's, and 0 where all is pure. Method and bounds are of ε.
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
            f"ε = {promised(self.account.epsilon)} at δ = {promised(self.account.delta)} over {self.stages} stages "
            f"({self.relation.describe()})"
        )


def total(entries: Sequence[Entry], delta: float) -> Total:
    """Compose ``entries`` at ``delta``: sequentially for a record, in parallel over declared distinct records.

    Only hashes of one kind tell that records are distinct: a record that some stages know by one kind may be any of
    those that others know by another, and the dearest combination counts.

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
    touched: dict[str, dict[str, list[int]]] = {}
    for i, entry in enumerate(covered):
        for record in set(entry.records or ()) if entry.parallel else ():
            touched.setdefault(entry.kind, {}).setdefault(record, []).append(i)
    # A record outside every list still went through the stages declared without one.
    ways = [{tuple(path) for path in records.values()} | {()} for records in touched.values()]
    paths = [[i for part in parts for i in part] for parts in itertools.product(*ways)]
    accounts = [
        account([*everywhere, *(s for s in (covered[i].spend for i in path) if s is not None)], delta) for path in paths
    ]
    dearest = max(accounts, key=lambda a: a.epsilon)
    # A pure ε of one record says nothing of another's δ at a smaller ε. A path that spent nothing has δ = 0.
    whole = dataclasses.replace(dearest, delta=max(a.delta for a in accounts))
    relation = meet(r for r in (entry.hides for entry in covered) if r is not None)
    return Total(whole, tuple(lost), len(entries), relation)


@dataclasses.dataclass(frozen=True)
class Covering:
    """What the stages behind ONE thing cost together, or why nothing can be promised for it; see `covering`.

    Attributes:
      account: ε in nats of the named stages together, under replace-one; infinite without a guarantee, so that whoever
        reads it alone promises nothing.
      stages: the names that were asked for, each once.
      missing: named, but the ledger has no such entry, or only others' (`covering`, ``ours``).
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
            f"ε = {promised(self.account.epsilon)} at δ = {promised(self.account.delta)} over {', '.join(self.stages)} "
            f"({self.relation.describe()})"
        )


def covering(
    entries: Sequence[Entry],
    stages: Sequence[str],
    delta: float,
    unpaid: Mapping[str, str] | None = None,
    ours: Callable[[Entry], bool] | None = None,
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
      ours: whether an entry with one of these names is of this thing and not of another study's, in a ledger that both
        use; None for all of them. Entries of others are listed in ``left_out`` and pay for nothing here.

    Raises:
      InputError: δ out of range, or an event that cannot be converted to replace-one.
    """
    named = tuple(dict.fromkeys(stages))
    chosen = [entry.stage in named and (ours is None or ours(entry)) for entry in entries]
    own = [entry for entry, mine in zip(entries, chosen, strict=True) if mine]
    count = {name: sum(entry.stage == name for entry in own) for name in named}
    composed = total(own, delta)
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
        tuple(entry.stage for entry, mine in zip(entries, chosen, strict=True) if not mine),
        composed.relation,
        refused,
    )
