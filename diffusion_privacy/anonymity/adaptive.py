"""t' of all records at once, by bisection that stops looking at a level as soon as it is decided.

A grid of 100 levels spends most of its draws where the answer is plain. Here every record has one level under
consideration; it is drawn from until `sequential.decide` tells on which side of γ its h lies, and the bracket shrinks.
The open (record, level) pairs of all records fill the lanes of one compiled program, round after round.

What is claimed. A record may look at up to ``looks`` levels, each decided at α' = α / (records · looks). The i-th level
looked at is chosen by earlier draws and decided by fresh ones, so its decision errs with probability at most α'
whatever came before; the sum over looks and records gives

    P(any decision about any level of any record is wrong) <= α.

A decision speaks of its own level. `Interval.lower`: h > γ there, so that t' = max{t : h(t) > γ} is at or above it for
EVERY curve h. `Interval.upper`: h <= γ' there. That t' lies below it follows only if h does not rise again above it, as
for a curve that falls with t; levels above that no one looked at are not vouched for. For any curve the bracket
holds a level at which h > γ below one at which h <= γ'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.anonymity import lanes, sequential, tprime
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.training.sharding import data_mesh
from diffusion_privacy.types import Array, PyTree, ScoreFn

_GIVEN_UP = 2
_GROWTH = 0.5
# Rounds stay few near γ, at the price of so many draws too many.
_LEAST_GROWTH = 0.125
_PATIENCE = 4
_LEAST_BUDGET = 64
_MOST = 10**8
# A core takes a row at a time about as fast as many together; elsewhere 64 rows take as long as two.
_LEAST_CHUNK = {"cpu": 2}
_LEAST_ELSEWHERE = 64

Censored = Literal["below", "above", "both"]

Draw = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""``draw(record[P], place[P], first[P], count[P]) -> hits[P]``: ``count`` fresh draws from number ``first`` on."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a level is decided and a record finished.

    Attributes:
      gamma: γ in [0, 1), at least the upper limit of the detector's false-positive rate.
      gamma_upper: γ' in [γ, 1), or None for γ. That h <= γ' takes about log(1/α')/γ' draws without a hit: a γ' above γ
        says less and costs less.
      error: α, the probability of any wrong decision about any level of any record.
      looks: levels a record may look at; None for twice what an undisturbed bisection takes.
      max_draws: draws after which a level is given up as too close to γ; the search goes on beside it. None for four
        times what a level without a hit takes, 64 at least.
      width: a bracket of so many places of the list of levels is narrow enough; 1 for neighbours.
      simultaneous: False for α a record instead of for all.

    Raises:
      InputError: a value out of range.
    """

    gamma: float
    gamma_upper: float | None = None
    error: float = 0.05
    looks: int | None = None
    max_draws: int | None = None
    width: int = 1
    simultaneous: bool = True

    def __post_init__(self) -> None:
        for field, valid, expected in (
            ("gamma", 0 <= self.gamma < 1, "in [0, 1)"),
            ("gamma_upper", self.gamma <= self.ceiling < 1 and self.ceiling > 0, "at least gamma, above 0 and below 1"),
            ("error", 0 < self.error < 1, "strictly between 0 and 1"),
            ("looks", self.looks is None or self.looks >= 1, "1 or more"),
            ("max_draws", self.max_draws is None or self.max_draws >= 1, "1 or more"),
            ("width", self.width >= 1, "1 or more"),
        ):
            if not valid:
                raise InputError(f"adaptive.{field} must be {expected}, got {vars(self)[field]!r}")

    @property
    def ceiling(self) -> float:
        """γ'."""
        return self.gamma if self.gamma_upper is None else self.gamma_upper

    def most_looks(self, levels: int) -> int:
        """Levels that a record may look at, of ``levels``."""
        return 2 * math.ceil(math.log2(levels + 1)) if self.looks is None else self.looks

    def error_each(self, records: int, levels: int) -> float:
        """α' of one decision."""
        return self.error / (self.most_looks(levels) * (records if self.simultaneous else 1))

    def budget(self, records: int, levels: int) -> int:
        """Draws after which a level is given up.

        Raises:
          InputError: ``max_draws`` with which no level could ever be decided at most γ'.
        """
        each = self.error_each(records, levels)
        needed = int(sequential.draws_to_decide(0, 0, self.gamma, self.ceiling, each, _MOST)[1])
        if self.max_draws is not None and self.max_draws < needed:
            raise InputError(
                f"adaptive.max_draws: {self.max_draws} draws without a hit cannot show h <= {self.ceiling:g} at error "
                f"{each:.2g}; expected {needed} or more, or a larger gamma_upper"
            )
        return max(_LEAST_BUDGET, _PATIENCE * needed) if self.max_draws is None else self.max_draws


@dataclasses.dataclass(frozen=True)
class Interval:
    """What was decided about one record; None where nothing was.

    Attributes:
      lower_level, lower: highest level decided h > γ, and its time; t' is at or above it for every h.
      upper_level, upper: lowest level decided h <= γ', and its time; t' is below it if h falls with t.
      censored: ``"below"`` when no level was decided above γ, ``"above"`` when none was decided at most γ', ``"both"``.
      given_up: levels looked at and left open when the draws ran out: too close to γ to tell.
      finished: whether the bracket reached the width asked for; otherwise looks or levels ran out.
      looks, draws, network_calls: levels looked at, draws over all of them, score evaluations (a draw from level k
        takes k).
    """

    lower_level: int | None
    upper_level: int | None
    lower: float | None
    upper: float | None
    censored: Censored | None
    given_up: tuple[int, ...]
    finished: bool
    looks: int
    draws: int
    network_calls: int


@dataclasses.dataclass(frozen=True)
class AdaptiveAudit:
    """Result of `intervals_of`.

    Attributes:
      rule: as given.
      error_each: α' of one decision.
      levels: ``[L]`` ascending.
      intervals: one a record.
      hits, draws: int ``[R, L]``; 0 draws where no one looked.
      steps: J of the chain.
      rounds: times the lanes were filled.
      lanes_run: rows put through the program, the padding of its fixed size included.
    """

    rule: Rule
    error_each: float
    levels: np.ndarray
    intervals: list[Interval]
    hits: np.ndarray
    draws: np.ndarray
    steps: int
    rounds: int
    lanes_run: int

    @property
    def network_calls(self) -> int:
        """Score evaluations over all records."""
        return int(np.sum(self.draws * self.levels))

    def by_level(self, record: int) -> np.ndarray:
        """``[J]`` hit rates of a record at levels 1 … J, NaN where no one looked: the input of `subspace.design`.

        Biased by the rule that ended the draws; fit to choose a proposal, not to be quoted.
        """
        curve = np.full(self.steps, np.nan)
        seen = self.draws[record] > 0
        curve[self.levels[seen] - 1] = self.hits[record, seen] / self.draws[record, seen]
        return curve


@dataclasses.dataclass
class _State:
    """The search as it stands; rows are records, columns places in the list of levels."""

    decision: np.ndarray
    hits: np.ndarray
    draws: np.ndarray
    place: np.ndarray
    rounds: int = 0


def _bracket(decision: np.ndarray) -> tuple[int, int]:
    """(highest place decided above or −1, lowest decided below or L) of a row ``[L]``."""
    above, below = np.flatnonzero(decision == sequential.ABOVE), np.flatnonzero(decision == sequential.BELOW)
    return (int(above[-1]) if above.size else -1), (int(below[0]) if below.size else len(decision))


def _next_place(decision: np.ndarray, width: int) -> int:
    """The level to look at next, −1 when there is nothing to do.

    The middle of the longest run inside the bracket that no one looked at. Around a level that was given up, h is near
    γ: if a bracket of the width asked for fits around it, its ends are tried first.
    """
    low, high = _bracket(decision)
    places = np.arange(low + 1, high)
    fresh = places[decision[low + 1 : high] == sequential.OPEN]
    if high - low <= width or fresh.size == 0:
        return -1
    close = places[decision[low + 1 : high] == _GIVEN_UP]
    if close.size and close[-1] - close[0] + 2 <= width:
        start = max(int(close[0]) - max(1, (width - int(close[-1] - close[0])) // 2), low)
        for end in (start, start + width):
            if low < end < high and decision[end] == sequential.OPEN:
                return end
    runs = np.split(fresh, np.flatnonzero(np.diff(fresh) > 1) + 1)
    longest = max(runs, key=len)
    return int(longest[len(longest) // 2])


def _counts(state: _State, rows: np.ndarray, rule: Rule, error: float, budget: int) -> np.ndarray:
    """How many draws to take next: no fewer than could decide, and not many beyond what the trend needs."""
    k, n = state.hits[rows, state.place[rows]], state.draws[rows, state.place[rows]]
    # Many records stand at the same counts.
    seen, back = np.unique(np.stack([k, n]), axis=1, return_inverse=True)
    fewest = sequential.draws_to_decide(seen[0], seen[1], rule.gamma, rule.ceiling, error, budget)
    up, down = (z[back.reshape(-1)] for z in fewest)
    trend = np.where(k > rule.gamma * n, up, down)
    wanted = np.maximum(np.minimum(up, down), np.minimum(np.ceil(_GROWTH * n), trend))
    return np.clip(np.maximum(wanted, np.ceil(_LEAST_GROWTH * n)), 1, budget - n).astype(int)


def _search(draw: Draw, records: int, levels: int, rule: Rule) -> _State:
    error, looks, budget = rule.error_each(records, levels), rule.most_looks(levels), rule.budget(records, levels)
    shape = (records, levels)
    state = _State(np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, int), np.zeros(records, int))
    state.place[:] = levels // 2 if rule.width <= levels else -1
    while (rows := np.flatnonzero(state.place >= 0)).size:
        at = state.place[rows]
        count = _counts(state, rows, rule, error, budget)
        state.hits[rows, at] += draw(rows, at, state.draws[rows, at], count)
        state.draws[rows, at] += count
        state.rounds += 1
        found = sequential.decide(state.hits[rows, at], state.draws[rows, at], rule.gamma, rule.ceiling, error)
        spent = state.draws[rows, at] >= budget
        state.decision[rows, at] = np.where((found == sequential.OPEN) & spent, _GIVEN_UP, found)
        for row in rows[(found != sequential.OPEN) | spent]:
            full = np.count_nonzero(state.draws[row]) >= looks
            state.place[row] = -1 if full else _next_place(state.decision[row], rule.width)
    return state


def _interval(state: _State, row: int, levels: np.ndarray, times: np.ndarray, rule: Rule) -> Interval:
    low, high = _bracket(state.decision[row])
    has_low, has_high = low >= 0, high < len(levels)
    censored: dict[tuple[bool, bool], Censored | None]
    censored = {(True, True): None, (True, False): "above", (False, True): "below", (False, False): "both"}
    draws = state.draws[row]
    return Interval(
        lower_level=int(levels[low]) if has_low else None,
        upper_level=int(levels[high]) if has_high else None,
        lower=float(times[low]) if has_low else None,
        upper=float(times[high]) if has_high else None,
        censored=censored[has_low, has_high],
        given_up=tuple(int(k) for k in levels[state.decision[row] == _GIVEN_UP]),
        finished=high - low <= rule.width,
        looks=int(np.count_nonzero(draws)),
        draws=int(draws.sum()),
        network_calls=int(np.sum(draws * levels)),
    )


def search(draw: Draw, records: int, levels: np.ndarray, times: np.ndarray, rule: Rule) -> AdaptiveAudit:
    """The bisection alone, for draws from anywhere; `intervals_of` draws from a chain.

    Args:
      draw: independent draws with rate h(record, level) for the pairs asked for, each number drawn once.
      records: R.
      levels: ``[L]`` ascending levels, whose place in the list is what ``draw`` is asked for.
      times: ``[L]`` their times.
      rule: see `Rule`.
    """
    state = _search(draw, records, len(levels), rule)
    found = [_interval(state, r, levels, times, rule) for r in range(records)]
    each, lanes_run = rule.error_each(records, len(levels)), int(state.draws.sum())
    steps = int(levels[-1])
    return AdaptiveAudit(rule, each, levels, found, state.hits, state.draws, steps, state.rounds, lanes_run)


def _margin(chain: Chain, operands: PyTree, batch: dict[str, Array]) -> Array:
    return tprime.regenerate(chain, operands, batch)["margin"]


def _packed(
    record: np.ndarray, level: np.ndarray, first: np.ndarray, count: np.ndarray, uids: np.ndarray, width: int
) -> dict[str, np.ndarray]:
    """One lane a draw, highest level first, filled up to whole chunks with lanes of level 0, which take no step."""
    order = np.argsort(-level, kind="stable")
    pair = np.repeat(order, count[order])
    step = np.arange(pair.size) - np.repeat(np.cumsum(count[order]) - count[order], count[order])
    rows = {"record": record[pair], "uid": uids[record[pair]], "level": level[pair], "draw": first[pair] + step}
    spare = -pair.size % width
    return {name: np.pad(z, (0, spare)).astype(np.int32) for name, z in rows.items()}


def _fitting(rule: Rule, records: int, levels: int, mesh: Mesh, chunk: int) -> int:
    """``chunk``, or as many lanes a device as the first round has, if they are fewer: empty lanes cost like others.

    The program is compiled once, so that its size cannot follow the later rounds, whose pairs are fewer and take more
    draws each.
    """
    error, budget = rule.error_each(records, levels), rule.budget(records, levels)
    fewest = sequential.draws_to_decide(0, 0, rule.gamma, rule.ceiling, error, budget)
    first = records * min(int(z) for z in fewest)
    least = _LEAST_CHUNK.get(mesh.devices.flat[0].platform, _LEAST_ELSEWHERE)
    return min(chunk, max(least, math.ceil(first / mesh.devices.size)))


def intervals_of(
    chain: Chain,
    score_fn: ScoreFn,
    detect: PyTree,
    records: np.ndarray,
    key: Array,
    rule: Rule,
    *,
    levels: np.ndarray | None = None,
    uids: np.ndarray | None = None,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> AdaptiveAudit:
    """t' of every record, within limits that err with probability at most ``rule.error``.

    A record's result does not depend on the records beside it but through α', nor on chunks or devices: its draws are
    those of `tprime.h_curves` with the same key.

    Args:
      chain: the sampler as it is run.
      score_fn: ``score(x, t)``; a `jax.tree_util.Partial` reuses the program across models. Weights that are not its
        leaves may be exchanged between two calls only if it is given as `lanes.fresh` each time.
      detect: ``margin(x[B, ...], record[B]) -> [B]``; positive means record number ``record[B]`` is shown.
      records: ``[R, ...]``.
      key: of the run; a lane folds in its record's uid, its level and its draw.
      rule: see `Rule`.
      levels: distinct, in 1 … J; default all.
      uids: ``[R]`` stable numbers of the records (default 0 … R−1).
      chunk: lanes a device takes at a time, at most: a few records are given fewer. The program is compiled once and
        always runs full. See `lanes.run`.
      mesh: default every device.

    Raises:
      InputError: no records, or levels out of range.
      FloatingPointError: an image or a margin is not finite.
    """
    levels = np.arange(1, chain.steps + 1) if levels is None else np.sort(np.asarray(levels, int))
    if levels.size == 0 or levels[0] < 1 or levels[-1] > chain.steps or np.any(np.diff(levels) == 0):
        raise InputError(f"adaptive levels: expected distinct ones in 1 … {chain.steps}, got {levels.tolist()}")
    if len(records) == 0:
        raise InputError("adaptive records: expected at least one, got none")
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    mesh = data_mesh() if mesh is None else mesh
    chunk = _fitting(rule, len(records), len(levels), mesh, chunk)
    operands = {
        "key": key,
        "score": lanes.operand(score_fn),
        "detect": lanes.operand(detect),
        "records": jnp.asarray(records, jnp.float32),
    }
    run = 0

    def draw(record: np.ndarray, place: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        nonlocal run
        batch = _packed(record, levels[place], first, count, uids, chunk * mesh.devices.size)
        margin = lanes.run(_margin, chain, operands, batch, chunk=chunk, mesh=mesh)
        run += margin.size
        real = np.arange(margin.size) < count.sum()
        if not np.all(np.isfinite(margin[real])):
            raise FloatingPointError("the score or the detector returned a value that is not finite while regenerating")
        return np.bincount(batch["record"][real], weights=margin[real] > 0, minlength=len(records))[record].astype(int)

    found = search(draw, len(records), levels, chain.times[levels], rule)
    return dataclasses.replace(found, steps=chain.steps, lanes_run=run)
