"""Ours beside a peer, round by round: which rounds count, and what the ratios say."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Window:
    """One side's turn.

    Attributes:
      units: how much was done.
      seconds: how long it took.
      foreign: share of the machine's processor time that others took meanwhile, 0 to 1.
    """

    units: float
    seconds: float
    foreign: float

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


@dataclasses.dataclass(frozen=True)
class Round:
    """Both sides' turns, one right after the other."""

    ours: Window
    peer: Window

    @property
    def ratio(self) -> float:
        """Our rate over the peer's: above 1 we are faster."""
        return self.ours.rate / self.peer.rate

    @property
    def foreign(self) -> float:
        """The larger of the two shares."""
        return max(self.ours.foreign, self.peer.foreign)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """What the rounds that count say of ours over the peer's rate.

    Attributes:
      median, quartiles: of the ratios; None without a round that counts (quartiles: without two).
      interval: exact interval of the median of such rounds, from order statistics, that holds it with at least
        ``level``, the rounds taken as independent; None with too few of them.
      level: 0.95.
      kept, dropped: rounds that counted, and those taken out because others used more of the machine than allowed.
      ours, peer: median rates of the rounds that counted, units a second.
    """

    median: float | None
    quartiles: tuple[float, float] | None
    interval: tuple[float, float] | None
    level: float
    kept: int
    dropped: int
    ours: float | None
    peer: float | None

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)


def quiet(rounds: Sequence[Round], most_foreign: float) -> list[Round]:
    """The rounds in which others took at most ``most_foreign`` (0 to 1) of the machine, in either turn."""
    return [r for r in rounds if r.foreign <= most_foreign]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The narrowest interval between order statistics x_(k), x_(n+1−k) that holds the median with at least ``level``.

    P(x_(k) <= median <= x_(n+1−k)) >= 1 − 2 P(Bin(n, ½) <= k − 1) for independent values of one law. None where even
    the smallest and the largest value do not reach it: below six values at 95 %.
    """
    ordered, n = sorted(values), len(values)
    k = 0
    below = 0.0
    while k + 1 <= n - k and 1 - 2 * (below + math.comb(n, k) / 2**n) >= level:
        below += math.comb(n, k) / 2**n
        k += 1
    return None if k == 0 else (ordered[k - 1], ordered[n - k])


def compare(rounds: Sequence[Round], most_foreign: float) -> Ratio:
    """Statistics of ``rounds``; those that `quiet` leaves out are counted and nothing else."""
    kept = quiet(rounds, most_foreign)
    values = [r.ratio for r in kept]
    if any(not math.isfinite(v) or v <= 0 for v in values):
        raise ValueError(f"rates must be positive numbers, got ratios {values}")
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else None
    return Ratio(
        median=statistics.median(values) if values else None,
        quartiles=(quartiles[0], quartiles[2]) if quartiles else None,
        interval=median_interval(values),
        level=0.95,
        kept=len(kept),
        dropped=len(rounds) - len(kept),
        ours=statistics.median([r.ours.rate for r in kept]) if kept else None,
        peer=statistics.median([r.peer.rate for r in kept]) if kept else None,
    )
