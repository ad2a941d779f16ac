"""E2 for the most suspicious of many records: successive halving (Jamieson & Talwalkar, arXiv 1502.07943).

Every rung draws paths for the records still in, more for each the fewer they are, and keeps the share with the largest
estimates. Choosing by an estimate makes it too large (and those of the records dropped too small), so no rung's numbers
are reported: the finalists get fresh draws, whose intervals know nothing of the choice. Of the records that were
dropped nothing is claimed, in particular not that they are clean.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.anonymity import lanes, subspace
from diffusion_privacy.anonymity.subspace import Mixture, SubspaceResult
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array, PyTree, ScoreFn

_LOG = logging.getLogger(__name__)
# As in `screening`: one key may serve every part of an audit.
_STREAM = 0x68616C76


@dataclasses.dataclass(frozen=True)
class Ladder:
    """How the draws are shared out.

    Attributes:
      finalists: records that get an interval.
      keep: share of the records that goes on from a rung, in (0, 1).
      draws: paths a record on the first rung, 100 or more; each rung has 1/keep times those of the one before.
      final_draws: fresh paths a finalist a round.
      max_draws: upper limit of a finalist's fresh paths, see `subspace.estimate`.
      level: two-sided confidence level.
      simultaneous: whether ``level`` is that of all finalists' intervals together (Bonferroni) or of each.

    Raises:
      InputError: a value out of range.
    """

    finalists: int
    keep: float = 0.25
    draws: int = 128
    final_draws: int = 1024
    max_draws: int = 8192
    level: float = 0.95
    simultaneous: bool = True

    def __post_init__(self) -> None:
        for field, valid, expected in (
            ("finalists", self.finalists >= 1, "1 or more"),
            ("keep", 0 < self.keep < 1, "strictly between 0 and 1"),
            ("draws", self.draws >= 100, "100 or more"),
            ("final_draws", self.final_draws >= 100, "100 or more"),
            ("max_draws", self.max_draws >= self.final_draws, "at least final_draws"),
            ("level", 0 < self.level < 1, "strictly between 0 and 1"),
        ):
            if not valid:
                raise InputError(f"halving.{field} must be {expected}, got {vars(self)[field]!r}")

    def rungs(self, records: int) -> list[tuple[int, int]]:
        """(records, paths a record) of each rung before the final."""
        found, count, draws = [], records, float(self.draws)
        while count > self.finalists:
            found.append((count, math.ceil(draws)))
            count, draws = max(self.finalists, math.floor(count * self.keep)), draws / self.keep
        return found


@dataclasses.dataclass(frozen=True)
class HalvingResult:
    """Result of `successive_halving`.

    Attributes:
      finalists: ``[F]`` rows of the records, in their given order.
      results: their E2 from fresh draws alone.
      dropped_at: int ``[R]``, the rung that dropped a record, from 0; −1 for finalists.
      network_calls: score evaluations of all rungs and the final.
    """

    finalists: np.ndarray
    results: list[SubspaceResult]
    dropped_at: np.ndarray
    network_calls: int


def _among(rows: Array, detect: PyTree, x: Array, record: Array) -> Array:
    return detect(x, rows[record])


def successive_halving(
    chain: Chain,
    score_fn: ScoreFn,
    detect: PyTree,
    records: np.ndarray,
    mixtures: list[Mixture],
    key: Array,
    ladder: Ladder,
    *,
    uids: np.ndarray | None = None,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> HalvingResult:
    """Finds the records with the largest q by E2 and gives intervals for them.

    One program is compiled for each rung (its number of records differs).

    Args:
      chain: the sampler as it is run.
      score_fn: ``score(x, t)``.
      detect: ``margin(x[B, ...], record[B]) -> [B]``, positive means record number ``record[B]`` is shown.
      records: ``[R, ...]``, the most suspicious first where there is a ranking: it breaks ties.
      mixtures: one a record, e.g. `subspace.design` of `AdaptiveAudit.by_level`.
      key: of the run; a stream of its own, then the rung's number, then a lane's uid and draw.
      ladder: see `Ladder`.
      uids: ``[R]`` stable numbers of the records (default 0 … R−1).
      chunk, mesh: see `lanes.run`.

    Raises:
      ValueError, FloatingPointError: as `subspace.estimate`.
    """
    if len(mixtures) != len(records) or not mixtures:
        raise ValueError(f"need one mixture a record, got {len(mixtures)} for {len(records)}")
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    dropped, calls = np.full(len(records), -1), 0

    def estimates(rows: np.ndarray, rung: int, draws: int, most: int, level: float) -> list[SubspaceResult]:
        nonlocal calls
        found = subspace.estimate(
            chain,
            score_fn,
            jax.tree_util.Partial(_among, jnp.asarray(rows), lanes.operand(detect)),
            records[rows],
            [mixtures[i] for i in rows],
            jax.random.fold_in(jax.random.fold_in(key, _STREAM), rung),
            uids=uids[rows],
            draws=draws,
            max_draws=most,
            level=level,
            chunk=chunk,
            mesh=mesh,
        )
        calls += sum(r.estimate.network_calls for r in found)
        return found

    rows, rungs = np.arange(len(records)), ladder.rungs(len(records))
    for rung, (count, draws) in enumerate(rungs):
        value = np.array([r.estimate.log_value for r in estimates(rows, rung, draws, draws, ladder.level)])
        goes_on = rungs[rung + 1][0] if rung + 1 < len(rungs) else ladder.finalists
        order = np.argsort(-value, kind="stable")
        dropped[rows[order[goes_on:]]] = rung
        rows = np.sort(rows[order[:goes_on]])
        _LOG.info("halving: %d paths for each of %d records, %d go on", draws, count, goes_on)
    level = 1 - (1 - ladder.level) / len(rows) if ladder.simultaneous else ladder.level
    results = estimates(rows, len(rungs), ladder.final_draws, ladder.max_draws, level)
    return HalvingResult(rows, results, dropped, calls)
