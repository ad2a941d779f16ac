"""What stands in a ledger, and its JSON: stages with their privacy events, and records that were given up as public."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusion_privacy.errors import InputError
from diffusion_privacy.mechanisms.accounting import ADJACENCIES, Spend, leaves
from diffusion_privacy.mechanisms.relation import REPLACE_RECORD, Relation

if TYPE_CHECKING:
    from dp_accounting import DpEvent


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
      kind: what ``records`` are hashes of, one of `data.records.HASH_KINDS`; empty where that is not known. Hashes
        of two kinds never meet, so that stages of two kinds are taken to be about the same records.
      id: drawn at random for one release, and written into its manifest too: the names of two studies' releases are
        often the same. None for other stages, and for releases of earlier versions.
    """

    stage: str
    spend: Spend | None
    records: tuple[str, ...] | None = None
    relation: Relation | None = None
    id: str | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if self.records is not None:
            object.__setattr__(self, "records", tuple(sorted(self.records)))

    def to_json(self) -> dict[str, Any]:
        """The ledger line."""
        spend = self.spend
        optional = {
            "relation": None if self.relation is None else self.relation.to_json(),
            "id": self.id,
            "kind": self.kind or None,
        }
        return {
            "stage": self.stage,
            "event": None if spend is None else event_to_json(spend.event),
            "adjacency": None if spend is None else spend.adjacency,
            "records": None if self.records is None else list(self.records),
        } | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Entry:
        """Inverse of `to_json`; lines of earlier versions lack the relation, the id or the kind.

        Raises:
          InputError: another kind of line, or an event or a relation that cannot be read.
        """
        fields = set(obj) - {"relation", "id", "kind"}
        known = fields == {"stage", "event", "adjacency", "records"} and obj["adjacency"] in (None, *ADJACENCIES)
        texts = isinstance(obj.get("id"), str | None) and isinstance(obj.get("kind", ""), str)
        if not (known and texts):
            raise InputError("expected a ledger entry")
        spend = None if obj["event"] is None else Spend(event_from_json(obj["event"]), obj["adjacency"])
        relation = Relation.from_json(obj["relation"]) if "relation" in obj else None
        records = None if obj["records"] is None else tuple(obj["records"])
        return cls(obj["stage"], spend, records, relation, obj.get("id"), obj.get("kind", ""))

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
class GivenUp:
    """Records that were used as public ones, without noise: it costs no ε, and none can be promised to them afterwards.

    Attributes:
      records: source hashes, one a record.
      stage: what they were used for.
      kind: what they are hashes of, one of `data.records.HASH_KINDS`; empty where that is not known.
    """

    records: tuple[str, ...]
    stage: str
    kind: str = ""

    def to_json(self) -> dict[str, Any]:
        """The ledger line."""
        return {"given_up": list(self.records), "stage": self.stage, "kind": self.kind}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> GivenUp:
        """Inverse of `to_json`.

        Raises:
          InputError: a field is missing, one too many, or of another type.
        """
        records = obj.get("given_up")
        hashes = isinstance(records, list) and all(isinstance(record, str) for record in records)
        words = isinstance(obj.get("stage"), str) and isinstance(obj.get("kind"), str)
        if records is None or set(obj) != {"given_up", "stage", "kind"} or not (hashes and words):
            raise InputError("expected hashes of records that were given up, a stage and a kind of hashes")
        return cls(tuple(records), obj["stage"], obj["kind"])


Line = Entry | GivenUp
"""What a ledger holds below its first line."""


def line_from_json(obj: Mapping[str, Any]) -> Line:
    """A line of either kind; InputError where it is neither."""
    return GivenUp.from_json(obj) if "given_up" in obj else Entry.from_json(obj)
