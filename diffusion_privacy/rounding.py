"""Numbers cut to a few digits in a stated direction: a promise is never printed stronger than it is."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Literal

Direction = Literal["nearest", "down", "up"]
ROUNDING = {"nearest": ROUND_HALF_EVEN, "down": ROUND_FLOOR, "up": ROUND_CEILING}


def to_digits(value: float, digits: int, direction: Direction = "nearest") -> Decimal:
    """A finite ``value`` with that many significant digits.

    What is rounded is the shortest decimal that reads as ``value``: .1 stays .1 in every direction.
    """
    number = Decimal(repr(float(value)))
    if number == 0:
        return Decimal(0)
    return number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1), rounding=ROUNDING[direction])


def promised(value: float, digits: int = 6) -> str:
    """ε, δ or a rate of a promise as ``:g`` writes it, rounded up: ``float`` of the text is at least ``value``.

    ``"inf"`` for what has no bound.
    """
    return f"{float(to_digits(value, digits, 'up')) if math.isfinite(value) else value:.{digits}g}"


def of_pld(compositions: int) -> float:
    """Allowance for the δ that composing so many privacy loss distributions loses to rounding: measured, not proven.

    dp-accounting takes powers of Fourier transforms in float64 and counts no error of theirs. Held against the exact δ
    of Gaussian noise it was off by up to 6·10⁻¹⁷ a composition: by 6·10⁻¹¹ after a million, whatever δ was asked for.
    This is nearly four times as much.
    """
    return compositions * 2.0**-52
