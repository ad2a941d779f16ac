"""Screening in the audit: every training record ranked, t' and E2 spent on the head of the list.

The detector of the audited records knows only those; here each listed record gets a ball as in the audit of a given
model (`audits.nearness`): half the distance to the nearest held-out record. It is there for any record, needs no
training, and looks at whole images, fingerprint or not. How many of a record's perturbed copies its ball holds is
measured, and the upper limit of the count of draws is divided by it: a ball that a near copy among the held-out
records made small sees few draws, and bounds little.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from diffusion_privacy.anonymity import adaptive, halving, montecarlo, screening, subspace, verdict
from diffusion_privacy.anonymity.adaptive import AdaptiveAudit, Rule
from diffusion_privacy.anonymity.halving import HalvingResult, Ladder
from diffusion_privacy.anonymity.intervals import Rate
from diffusion_privacy.anonymity.screening import Calibration
from diffusion_privacy.anonymity.screening import Screening as Ranking
from diffusion_privacy.audits import nearness
from diffusion_privacy.audits.nearness import Balls
from diffusion_privacy.data.records import Records
from diffusion_privacy.data.table_csv import csv_text
from diffusion_privacy.diffusion.chain import Chain
from diffusion_privacy.errors import InputError
from diffusion_privacy.reports import estimates, schema
from diffusion_privacy.reports import screening as entries
from diffusion_privacy.reports.arrays import Listed
from diffusion_privacy.settings import FEWEST_HELD_OUT, Study
from diffusion_privacy.stages import study as common
from diffusion_privacy.stages.spaces import Space
from diffusion_privacy.stages.workdir import Workdir
from diffusion_privacy.training import rng
from diffusion_privacy.types import PyTree, ScoreFn

_LOG = logging.getLogger(__name__)
_SHARE = 0.5
_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What the parts of one screening share; ``top`` are the listed records, in the order of the ranking."""

    study: Study
    chain: Chain
    score: ScoreFn
    top: Records
    name: str
    chunk: int


def screen(
    study: Study,
    workdir: Workdir,
    roles: common.Roles,
    chain: Chain,
    score: ScoreFn,
    space: Space,
    samples: np.ndarray,
    name: str,
    chunk: int,
) -> tuple[entries.Screening | None, Listed | None]:
    """What ``audit.screen`` asks for: an entry of release.json and the listed records' pictures; None for no screening.

    Writes ``audit/NAME_ranking.csv``, all training records of the model with their scores.

    Args:
      study, workdir, roles: of the run.
      chain, score, space: the sampler, the model and where it works. Balls are of decoded images.
      samples: its draws, decoded, ``[G, H, W, C]``.
      name: of the model.
      chunk: lanes a device handles at a time.
    """
    if study.audit.screen.top == 0:
        return None, None
    train, held_out = roles.train[name], _never_seen(roles, name)
    ranked, placed = ranking = _rank(study, chain, score, space, train, held_out, name, chunk)
    order = ranked.ranking[ranked.ranking < len(train)]
    _write_ranking(workdir, name, train, order, ranked, placed)
    rows = order[: study.audit.screen.top]
    setting = _Setting(study, chain, score, train.take(rows), name, chunk)
    balls = _balls(setting, held_out[0])
    ball = nearness.ball_detector(nearness.named("l2"), setting.top.image, np.array([b.radius for b in balls]))
    detect, listed_records = space.detector(ball), space.encode(setting.top.image)
    brackets = adaptive.intervals_of(
        chain,
        score,
        detect,
        listed_records,
        rng.stream(study.seed, f"screen.t_prime.{name}"),
        _rule(study, balls),
        uids=np.asarray(setting.top.index),
        chunk=chunk,
    )
    _LOG.info("audit %s: t' of the first %d by bisection, %d rounds", name, len(rows), brackets.rounds)
    final = _halve(setting, detect, listed_records, brackets)
    listed, hits = _nearest(setting, balls, samples)
    seen = _copies(setting, balls)
    entry: entries.Screening = {
        "records": len(train),
        "held_out": len(held_out[0]),
        "times": [float(chain.times[k]) for k in ranked.levels],
        "draws": ranked.draws,
        "level": study.audit.level,
        "gamma": brackets.rule.gamma,
        "gamma_upper": brackets.rule.ceiling,
        "detector": entries.DETECTOR,
        "network_calls": {
            "ranking": ranked.network_calls,
            "t_prime": brackets.network_calls,
            "subspace": final[0].network_calls,
        },
        "listed": _entries(setting, rows, ranking, balls, seen, brackets, final, hits, len(samples)),
        "assumes": list(entries.ASSUMES),
    }
    return entry, listed


def _never_seen(roles: common.Roles, name: str) -> tuple[np.ndarray, np.ndarray]:
    """`study.never_seen` for the balls and ranks of a screening.

    Raises:
      InputError: fewer than `settings.FEWEST_HELD_OUT` are left.
    """
    images, numbers = common.never_seen(roles, name)
    if len(images) < FEWEST_HELD_OUT:
        raise InputError(
            f"config.audit.screen: expected at least {FEWEST_HELD_OUT} held-out records that equal no training record "
            f"of {name}, got {len(images)}"
        )
    return images, numbers


def _rank(
    study: Study,
    chain: Chain,
    score: ScoreFn,
    space: Space,
    train: Records,
    held_out: tuple[np.ndarray, np.ndarray],
    name: str,
    chunk: int,
) -> tuple[Ranking, Calibration]:
    """The bound of all training records, then of the held-out ones; the former placed among the latter."""
    wanted = study.audit.screen
    found = screening.screen(
        chain,
        score,
        space.encode(np.concatenate([train.image, held_out[0]])),
        rng.stream(study.seed, f"screen.rank.{name}"),
        levels=screening.window(chain, count=wanted.levels),
        draws=wanted.draws,
        uids=np.concatenate([train.index, held_out[1]]),
        chunk=chunk,
    )
    placed = screening.calibrate(found.score[: len(train)], found.score[len(train) :])
    usual = int(np.sum(placed.p_value <= 0.05))
    _LOG.info("audit %s: %d records ranked, %d below 95 %% of held-out ones", name, len(train), usual)
    return found, placed


def _write_ranking(
    workdir: Workdir, name: str, train: Records, order: np.ndarray, ranked: Ranking, placed: Calibration
) -> None:
    """Numbers of private records: a file of the workdir, never of a release."""
    path = workdir.path("audit", f"{name}_ranking.csv")
    rows = []
    for rank, i in enumerate(order, 1):
        numbers = (f"{value:.6g}" for value in (ranked.score[i], ranked.stderr[i], placed.p_value[i]))
        rows.append((rank, int(train.index[i]), int(train.label[i]), *numbers))
    header = ("rank", "index", "label", "score_nats", "stderr_nats", "p_value")
    workdir.write_text(path, csv_text(header, rows))


def _balls(setting: _Setting, held_out: np.ndarray) -> list[Balls]:
    measure, count = nearness.named("l2"), len(held_out)
    to_listed = nearness.distances(measure, held_out, setting.top.image)
    among = nearness.distances(measure, held_out, held_out)
    # A little above 1/(m + 1), which as a decimal may fall short of it.
    smallest = (1 + 1e-9) / (count + 1)
    level = setting.study.audit.level
    return [nearness.balls(to_listed[:, r], among, smallest, _SHARE, level) for r in range(len(setting.top))]


def _rule(study: Study, balls: list[Balls]) -> Rule:
    gamma = max(study.audit.gamma, *(b.false_positive_rate.upper for b in balls))
    upper = max(study.audit.screen.gamma_upper, gamma)
    return Rule(gamma, gamma_upper=upper, error=1 - study.audit.level)


def _halve(
    setting: _Setting, detect: PyTree, records: np.ndarray, brackets: AdaptiveAudit
) -> tuple[HalvingResult, Ladder]:
    wanted, audit = setting.study.audit.screen, setting.study.audit
    ladder = Ladder(
        finalists=min(wanted.finalists, len(setting.top)),
        final_draws=audit.subspace_draws,
        max_draws=audit.subspace_max_draws,
        level=audit.level,
    )
    mixtures = [subspace.design(brackets.by_level(r)) for r in range(len(setting.top))]
    found = halving.successive_halving(
        setting.chain,
        setting.score,
        detect,
        records,
        mixtures,
        rng.stream(setting.study.seed, f"screen.subspace.{setting.name}"),
        ladder,
        uids=np.asarray(setting.top.index),
        chunk=setting.chunk,
    )
    return found, ladder


def _nearest(setting: _Setting, balls: list[Balls], samples: np.ndarray) -> tuple[Listed, np.ndarray]:
    """The drawn image nearest to each listed record, and how many lie in its ball, a block of images at a time."""
    records = np.asarray(setting.top.image)
    radii = np.array([b.radius for b in balls], np.float32)
    hits, best = np.zeros(len(records), int), np.full(len(records), np.inf)
    draws = np.zeros_like(records)
    for first in range(0, len(samples), _BLOCK):
        # The last block repeats its last row, so that one compiled program serves all.
        rows = np.minimum(np.arange(first, first + _BLOCK), len(samples) - 1)
        far = nearness.distances(nearness.named("l2"), samples[rows], records)[: len(samples) - first]
        hits += np.sum(far < radii, axis=0)
        closest = np.argmin(far, axis=0)
        for r, i in enumerate(closest):
            if far[i, r] < best[r]:
                best[r], draws[r] = far[i, r], samples[first + i]
    return Listed(records, draws, best, best < radii), hits


def _part_level(setting: _Setting) -> float:
    """Level of a count of draws and of a count of copies, so that all E1 intervals hold together at the audit's."""
    return verdict.part_level(1 - (1 - setting.study.audit.level) / len(setting.top))


def _copies(setting: _Setting, balls: list[Balls]) -> list[Rate]:
    """The share of each listed record's perturbed copies that its ball holds."""
    return nearness.copies_held(
        nearness.named("l2"),
        np.asarray(setting.top.image),
        np.array([b.radius for b in balls]),
        rng.stream(setting.study.seed, f"screen.copies.{setting.name}"),
        copy=common.perturbation(setting.study),
        level=_part_level(setting),
        uids=np.asarray(setting.top.index),
    )


def _entries(
    setting: _Setting,
    rows: np.ndarray,
    ranking: tuple[Ranking, Calibration],
    balls: list[Balls],
    seen: list[Rate],
    brackets: AdaptiveAudit,
    final: tuple[HalvingResult, Ladder],
    hits: np.ndarray,
    drawn: int,
) -> list[entries.Screened]:
    (ranked, placed), (halved, ladder) = ranking, final
    steps, listed = setting.chain.steps, len(rows)
    level = _part_level(setting)
    rungs = np.cumsum([0] + [draws for _, draws in ladder.rungs(listed)]) * steps
    results = dict(zip(halved.finalists.tolist(), halved.results, strict=True))
    made: list[entries.Screened] = []
    for r, row in enumerate(rows):
        e2, dropped = results.get(r), int(halved.dropped_at[r])
        e1 = montecarlo.direct(int(hits[r]), drawn, tpr_lower=nearness.divisor(seen[r]), steps=steps, level=level)
        bracket = brackets.intervals[r]
        spent = int(rungs[dropped + 1] if dropped >= 0 else rungs[-1])
        made.append(
            {
                "rank": r + 1,
                "index": int(setting.top.index[r]),
                "label": int(setting.top.label[r]),
                "score": float(ranked.score[row]),
                "stderr": float(ranked.stderr[row]),
                "p_value": float(placed.p_value[row]),
                "radius": balls[r].radius,
                "copies_inside": estimates.rate_entry(seen[r]),
                "reasons": nearness.doubts(seen[r]),
                "t_prime": {
                    "lower": bracket.lower,
                    "upper": bracket.upper,
                    "censored": bracket.censored,
                    "finished": bracket.finished,
                    "network_calls": bracket.network_calls,
                },
                "direct": schema.direct_entry(e1.estimate, e1.hits),
                "subspace": None
                if e2 is None
                else schema.subspace_entry(e2.estimate, e2.hits, e2.pareto_k, e2.max_weight_share),
                "dropped_at": dropped + 1 if dropped >= 0 else None,
                "network_calls": bracket.network_calls + spent + (e2.estimate.network_calls if e2 else 0),
            }
        )
    return made
