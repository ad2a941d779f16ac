"""Which two data sets a guarantee calls neighbours. A release that does not say is refused.

A CADP release gives out one private record for every record taken in, so the number of records is public and only
replacement makes sense: adding or removing a record would change the count. Between two neighbours the norm-C ball is
crossed from side to side, hence the sensitivity is 2C and not C (cadp.md, section 2).
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable
from typing import Any

from diffusion_privacy.errors import InputError


class Neighbours(enum.Enum):
    """What may differ between two neighbouring data sets of equal size."""

    SAME_CONDITION = "replace-record-same-public-condition"
    """The record changes, its condition (class, attributes) does not: the condition is declared public."""

    ANY_CONDITION = "replace-record-and-condition"
    """The record and its condition change; holds only when the condition was itself randomised."""


@dataclasses.dataclass(frozen=True)
class Relation:
    """A neighbouring relation, at the level of one record or of one person.

    Attributes:
      neighbours: what may differ.
      records_per_person: k >= 1; two data sets are neighbours when they differ in at most k records, all of one person.
        k must be a public bound, stated before the data are looked at.
    """

    neighbours: Neighbours
    records_per_person: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.neighbours, Neighbours):
            raise InputError(
                f"relation: expected one of {[n.value for n in Neighbours]}, got {self.neighbours!r}; "
                "a guarantee without a neighbouring relation means nothing"
            )
        k = self.records_per_person
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"relation.records_per_person: expected an integer >= 1, got {k!r}")

    def l1_factor(self) -> float:
        """L1 sensitivity of the released table over that of one record: k (k independent releases, stacked)."""
        return float(self.records_per_person)

    def l2_factor(self) -> float:
        """L2 sensitivity of the released table over that of one record: √k, since the k differences are orthogonal."""
        return math.sqrt(self.records_per_person)

    def describe(self) -> str:
        """The words of the manifest, e.g. ``replace-record-same-public-condition`` or ``…, 3 records a person``."""
        if self.records_per_person == 1:
            return self.neighbours.value
        return f"{self.neighbours.value}, {self.records_per_person} records a person"

    def to_json(self) -> dict[str, Any]:
        """``{"neighbours": name, "records_per_person": k}``; `from_json` is its inverse."""
        return {"neighbours": self.neighbours.value, "records_per_person": self.records_per_person}

    @staticmethod
    def from_json(obj: Any) -> Relation:
        """Inverse of `to_json`. Raises InputError on anything else."""
        if not isinstance(obj, dict) or set(obj) != {"neighbours", "records_per_person"}:
            raise InputError(f"relation: expected neighbours and records_per_person, got {obj!r}")
        return parse_relation(obj["neighbours"], obj["records_per_person"])


REPLACE_RECORD = Relation(Neighbours.SAME_CONDITION)
"""Replace one record by any other with the same declared-public condition."""

REPLACE_RECORD_AND_CONDITION = Relation(Neighbours.ANY_CONDITION)
"""Replace one record and its condition by any others."""


def replace_person(records_per_person: int, neighbours: Neighbours = Neighbours.SAME_CONDITION) -> Relation:
    """Person level: replace all records, at most ``records_per_person``, of one person."""
    return Relation(neighbours, records_per_person)


def parse_relation(name: str, records_per_person: int = 1) -> Relation:
    """The relation that a config names by ``Neighbours.value``.

    Raises:
      InputError: the name is not one of the relations, the empty string included.
    """
    try:
        return Relation(Neighbours(name), records_per_person)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"relation: expected one of {[n.value for n in Neighbours]}, got {name!r}") from None


def require_relation(relation: object) -> Relation:
    """``relation`` itself; `InputError` when it is unspecified or of another kind."""
    if not isinstance(relation, Relation):
        raise InputError(f"relation: expected a Relation such as REPLACE_RECORD, got {relation!r}")
    return relation


def meet(relations: Iterable[Relation]) -> Relation:
    """What is a neighbour under every one of ``relations``: the relation that their composition speaks of.

    Each mechanism is private for its own neighbours, so that all of them together are for data sets that are neighbours
    in all. With one that holds the condition fixed the composition does; the fewest records a person count. None at
    all leave one record free, its condition included.
    """
    given = tuple(relations)
    same = any(r.neighbours is Neighbours.SAME_CONDITION for r in given)
    people = min((r.records_per_person for r in given), default=1)
    return Relation(Neighbours.SAME_CONDITION if same else Neighbours.ANY_CONDITION, people)
