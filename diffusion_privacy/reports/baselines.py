"""Fields of a baseline in release.json, and what must hold between them; see `reports.schema`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from diffusion_privacy.audits.baselines import Row
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports.structure import Range


class Baseline(TypedDict):
    """One number of a baseline (`audits.baselines`). Enters no verdict; its interval holds by itself at ``level``."""

    name: str
    value: float | None  # null: no number, the notes say why
    lower: float | None
    upper: float | None  # null beside a lower limit: nothing is claimed from above
    level: Annotated[float, Range(0.0, 1.0)]  # two-sided; a one-sided limit errs with (1 - level) / 2
    unit: str
    direction: Literal["higher = more leak", "lower = more leak"]
    n: Annotated[int, Range(0)]  # records or samples behind it
    notes: list[str]


def entry(row: Row) -> Baseline:
    """The entry of a row; a number that is not finite becomes null, with a note."""
    numbers = (row.value, row.lower, row.upper)
    known = all(value is None or math.isfinite(value) for value in numbers)
    fields = dataclasses.asdict(row if known else dataclasses.replace(row, value=None, lower=None, upper=None))
    notes = [*row.notes] if known else [*row.notes, "the numbers are not finite"]
    return {**fields, "notes": notes}  # type: ignore[typeddict-item]


def rule(fields: Mapping[str, Any], path: str) -> None:
    """Raises InputError unless value and limits are in their order and there together, but for an open upper end."""
    numbers = [fields[name] for name in ("lower", "value", "upper")]
    if all(number is None for number in numbers):
        if not fields["notes"]:
            raise InputError(f"{path}.notes: expected a reason where there is no value, got none")
        return
    lower, value, upper = numbers
    if lower is None or value is None or not lower <= value <= (value if upper is None else upper):
        raise InputError(f"{path}.value: expected lower <= value <= upper, got {numbers}")
