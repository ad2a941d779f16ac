"""E2: the probability of reproducing a record, by integrating over the score function's subspace that leads to it.

The sampler is a Markov chain x_J → … → x_0 with steps N(μ_θ(x_j), s_j² I) (`diffusion.chain`). Detected paths are rare
under it, so paths are drawn from chains guided towards the record x_p,

    step j > k:   x_{j−1} ~ N(μ_θ + λ(μ_q − μ_θ), s_j² I),      step j <= k: the sampler's own,

where μ_q(x_j, x_p) is the forward posterior's mean. λ = 1 is forward noising of x_p run backwards, the subspace of
Dombrowski & Kainz (arXiv 2306.01363, section 4), and to first order the chain conditioned on ending at x_p. With
e_j = x_{j−1} − μ_θ and Δ_j = μ_θ − μ_q the density ratio of a path under the sampler and under component (k, λ) is

    log w_{k,λ} = λ A_k + ½ λ² Q_k,    A_k = Σ_{j>k} e_j·Δ_j / s_j²,    Q_k = Σ_{j>k} ‖Δ_j‖² / s_j²,

so one path tells its weight under every k and λ for free. Components are mixed by the balance heuristic (Veach &
Guibas, SIGGRAPH 1995) with a share a_0 of unguided paths: q̂ = mean( D / (a_0 + Σ_c a_c / w_c) ), unbiased for every
score, every number of steps and every choice of components, with terms never above 1/a_0.

Why λ < 1 is in the mixture: with few steps the sampler commits to a record later than forward noising does; under
λ = 1 alone those paths are rare and carry huge weights (tail index up to .6 at n = 1000, D = 256, J = 50; with
λ in {.5, .75, 1} a median of .28, and intervals that cover).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_privacy.anonymity import intervals, lanes, weights
from diffusion_privacy.anonymity.weights import WeightedMean
from diffusion_privacy.diffusion.chain import Chain, step_noise, take
from diffusion_privacy.diffusion.sde import expand
from diffusion_privacy.types import Array, Estimate, PyTree, ScoreFn

GUIDANCE = (0.5, 0.75, 1.0)
TARGETS = (0.9, 0.6, 0.3)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Proposal components and their shares; hashable, so that it can be compiled in.

    Attributes:
      levels: k of each component, each in 1 … J.
      guidance: λ of each component.
      share: fraction of draws of each component.
      unconditional: fraction a_0 of unguided paths; all fractions sum to 1.
    """

    levels: tuple[int, ...]
    guidance: tuple[float, ...]
    share: tuple[float, ...]
    unconditional: float

    def __post_init__(self) -> None:
        if not len(self.levels) == len(self.guidance) == len(self.share) >= 1:
            raise ValueError("a mixture needs one level, one guidance and one share for each of its components")
        if min(self.levels) < 1 or min(self.share) <= 0 or not 0 < self.unconditional < 1:
            raise ValueError(f"levels must be at least 1 and shares positive, got {self}")
        if abs(self.unconditional + sum(self.share) - 1) > 1e-9:
            raise ValueError(f"shares must sum to 1, got {self.unconditional + sum(self.share)}")

    def allocate(self, draws: int) -> np.ndarray:
        """Whole numbers of draws, ``[1 + K]``, unguided first, summing to ``draws``."""
        wanted = np.array([self.unconditional, *self.share]) * draws
        counts = np.floor(wanted).astype(int)
        for i in np.argsort(counts - wanted)[: draws - counts.sum()]:
            counts[i] += 1
        return counts


def design(
    curve: np.ndarray,
    *,
    targets: tuple[float, ...] = TARGETS,
    guidance: tuple[float, ...] = GUIDANCE,
    unconditional: float = 0.1,
) -> Mixture:
    """Chooses the components from a pilot estimate of h.

    Args:
      curve: ``[J]``, h at levels 1 … J from any number of draws (NaN where it was not looked at).
      targets: for each, the highest level at which h still reaches it; level 1 if none does. A badly chosen level
        costs variance, never bias.
      guidance: each is crossed with each level.
      unconditional: a_0 in (0, 1).

    Raises:
      ValueError: ``unconditional`` out of range.
    """
    if not 0 < unconditional < 1:
        raise ValueError(f"unconditional must lie in (0, 1), got {unconditional}")
    levels = []
    for target in targets:
        reached = np.flatnonzero(np.nan_to_num(curve, nan=-1.0) >= target)
        levels.append(int(reached[-1]) + 1 if reached.size else 1)
    pairs = sorted({(k, lam) for k in levels for lam in guidance})
    share = (1 - unconditional) / len(pairs)
    return Mixture(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), (share,) * len(pairs), unconditional)


def _add(total: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
    """Compensated (Neumaier) sum: float32 over a thousand steps keeps log-weights to 1e-6."""
    value, lost = total
    new = value + term
    lost = lost + jnp.where(jnp.abs(value) >= jnp.abs(term), (value - new) + term, (term - new) + value)
    return new, lost


def guided_paths(chain: Chain, operands: PyTree, batch: dict[str, Array]) -> dict[str, Array]:
    """Draws guided paths; the lane function of `estimate`.

    Args:
      chain: static.
      operands: ``key``, ``score`` (a score), ``detect`` (``margin(x[B, ...], record[B]) -> [B]``), ``records``
        ``[R, ...]``, ``read`` int ``[R, K]``: the levels at which A and Q are read for each record.
      batch: per lane: ``record`` (row of ``records``), ``uid`` and ``draw`` (for the key), ``level`` k (J + 1 for an
        unguided path), ``guidance`` λ.

    Returns:
      ``margin [B]``, ``a [B, K]`` and ``q [B, K]`` at the record's levels.
    """
    target = operands["records"][batch["record"]]
    keys = lanes.lane_keys(operands["key"], batch["uid"], batch["draw"])
    x = jax.vmap(lambda k: chain.sde.prior_sample(jax.random.fold_in(k, 0), target.shape[1:]))(keys)
    zero = jnp.zeros(x.shape[0])

    def step(carry: PyTree, level: Array) -> tuple[PyTree, tuple[Array, Array]]:
        x, a, q = carry
        at = jnp.full((x.shape[0],), level)
        mean = chain.model_mean(operands["score"], x, at)
        delta = mean - chain.posterior_mean(x, target, at)
        std = take(chain.kernel_std, at)
        noise = step_noise(keys, at, x.shape[1:])
        guided = jnp.where(level > batch["level"], batch["guidance"], 0.0)
        error = expand(std, x) * noise - expand(guided, x) * delta
        # The last step has no noise; it is the sampler's own in every component (k >= 1) and has no ratio.
        inverse = jnp.where(at >= 2, 1.0 / jnp.where(at >= 2, std, 1.0) ** 2, 0.0)
        before = (a[0] + a[1], q[0] + q[1])
        axes = tuple(range(1, x.ndim))
        a = _add(a, jnp.sum(error * delta, axes) * inverse)
        q = _add(q, jnp.sum(delta * delta, axes) * inverse)
        return (mean + error, a, q), before

    levels = jnp.arange(chain.steps, 0, -1)
    (x, _, _), (a, q) = jax.lax.scan(step, (x, (zero, zero), (zero, zero)), levels)
    # Row i of a, q holds the sums over steps j > J − i, that is A_k at k = J − i.
    rows = chain.steps - operands["read"][batch["record"]]
    pick = jax.vmap(lambda column, r: column[r], in_axes=(1, 0))
    margin = lanes.checked_margin(operands["detect"], x, batch["record"])
    return {"margin": margin, "a": pick(a, rows), "q": pick(q, rows)}


@dataclasses.dataclass(frozen=True)
class SubspaceResult:
    """E2 for one record: the estimate, its diagnostics, and where the draws came from.

    ``log_terms`` and ``hit``, ``[N]``, are the paths' weights (nats) and detections, round after round, and within a
    round one component of `Mixture.allocate` after the other: what `lower_bounds` needs.
    """

    estimate: Estimate
    pareto_k: float
    max_weight_share: float
    hits: int
    mixture: Mixture
    times: tuple[float, ...]
    log_terms: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False, compare=False)
    hit: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool), repr=False, compare=False)


def balance_terms(mixture: Mixture, counts: np.ndarray, a: np.ndarray, q: np.ndarray) -> np.ndarray:
    """log of 1 / (a_0 + Σ_c a_c / w_c) for paths with ``a, q [N, K]`` in nats; float64 ``[N]``, at most log(1/a_0)."""
    lam = np.asarray(mixture.guidance)
    log_w = lam * np.asarray(a, np.float64) + 0.5 * lam**2 * np.asarray(q, np.float64)
    share = counts / counts.sum()
    terms = np.concatenate([np.full((len(log_w), 1), np.log(share[0])), np.log(share[1:]) - log_w], axis=1)
    return -np.logaddexp.reduce(terms, axis=1)


def estimate(
    chain: Chain,
    score_fn: ScoreFn,
    detect: PyTree,
    records: np.ndarray,
    mixtures: list[Mixture],
    key: Array,
    *,
    uids: np.ndarray | None = None,
    draws: int = 1024,
    max_draws: int = 8192,
    level: float = 0.95,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> list[SubspaceResult]:
    """Estimates q for every record, all records and draws in one compiled program a round.

    Each round draws ``draws`` paths for every record not yet reliable; rounds pool until it is, or ``max_draws``
    is spent, or its effective sample size shows that ``max_draws`` would not do. The stopping rule looks at the
    weights' tail, not at the estimate. Limits of an estimate that is not reliable come from Markov's inequality and
    from the unguided paths alone: wide, but they hold whatever the tail.

    Args:
      chain: the sampler as it is run.
      score_fn: ``score(x, t)``; a `jax.tree_util.Partial` reuses compiled programs across models. Weights that are
        not its leaves may be exchanged between two calls only if it is given as `lanes.fresh` each time.
      detect: ``margin(x[B, ...], record[B]) -> [B]``, positive means record number ``record[B]`` is shown.
      records: ``[R, ...]``, the private images with their fingerprints.
      mixtures: one `Mixture` a record (`design`).
      key: of the run; every lane folds in its record's uid and its draw number.
      uids: ``[R]`` stable numbers of the records (default 0 … R−1).
      draws: paths a record a round, at least 100 and at least one for every component.
      max_draws: upper limit of paths a record, at least ``draws``; rounds are whole.
      level: two-sided confidence level.
      chunk, mesh: see `lanes.run`.

    Returns:
      One `SubspaceResult` a record. An estimate says nothing of mass that no guided path reaches.

    Raises:
      ValueError: numbers of records, mixtures, draws or levels that do not fit.
      FloatingPointError: the score or the detector returned a value that is not finite.
    """
    if not 100 <= draws <= max_draws:
        raise ValueError(f"need 100 <= draws <= max_draws, got {draws} and {max_draws}")
    if len(mixtures) != len(records) or not mixtures:
        raise ValueError(f"need one mixture a record, got {len(mixtures)} for {len(records)}")
    for mixture in mixtures:
        if max(mixture.levels) > chain.steps or min(mixture.allocate(draws)) < 1:
            raise ValueError(
                f"{draws} draws of a chain of {chain.steps} steps do not serve every component of {mixture}"
            )
    # At least the widest default design, though levels that coincide make it narrower: one program serves all records.
    width = max(len(TARGETS) * len(GUIDANCE), *(len(m.levels) for m in mixtures))
    read = np.array([list(m.levels) + [m.levels[-1]] * (width - len(m.levels)) for m in mixtures], np.int32)
    uids = np.arange(len(records)) if uids is None else np.asarray(uids)
    operands = {
        "key": key,
        "score": lanes.operand(score_fn),
        "detect": lanes.operand(detect),
        "records": jnp.asarray(records, jnp.float32),
        "read": jnp.asarray(read),
    }
    pools: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in mixtures]
    results: list[SubspaceResult | None] = [None] * len(mixtures)
    spent = 0
    while spent + draws <= max_draws:
        todo = [i for i, r in enumerate(results) if r is None or _worth_more(r, max_draws)]
        if not todo:
            break
        batch = _lanes_of(todo, mixtures, uids, draws, spent, chain.steps)
        out = lanes.run(guided_paths, chain, operands, batch, chunk=chunk, mesh=mesh)
        if not all(np.all(np.isfinite(z)) for z in out.values()):
            raise FloatingPointError("the score or the detector returned a value that is not finite on a guided path")
        spent += draws
        for i in todo:
            mine = batch["record"] == i
            k = len(mixtures[i].levels)
            counts = mixtures[i].allocate(draws)
            terms = balance_terms(mixtures[i], counts, out["a"][mine][:, :k], out["q"][mine][:, :k])
            pools[i].append((terms, out["margin"][mine] > 0))
            results[i] = _result(mixtures[i], pools[i], draws, level, chain)
    return [r for r in results if r is not None]


def _worth_more(result: SubspaceResult, max_draws: int) -> bool:
    """Whether further rounds may make the estimate reliable: judged by the weights' tail, never by the estimate."""
    projected = result.estimate.ess * max_draws / result.estimate.n
    return not result.estimate.reliable and projected >= weights.MIN_ESS


def _lanes_of(
    todo: list[int], mixtures: list[Mixture], uids: np.ndarray, draws: int, first: int, steps: int
) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {"record": [], "uid": [], "draw": [], "level": [], "guidance": []}
    for i in todo:
        counts = mixtures[i].allocate(draws)
        rows["record"].append(np.full(draws, i, np.int32))
        rows["uid"].append(np.full(draws, uids[i], np.int32))
        rows["draw"].append(np.arange(first, first + draws, dtype=np.int32))
        rows["level"].append(np.repeat([steps + 1, *mixtures[i].levels], counts).astype(np.int32))
        rows["guidance"].append(np.repeat([0.0, *mixtures[i].guidance], counts).astype(np.float32))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _result(
    mixture: Mixture, pool: list[tuple[np.ndarray, np.ndarray]], draws: int, level: float, chain: Chain
) -> SubspaceResult:
    log_terms = np.concatenate([p[0] for p in pool])
    hit = np.concatenate([p[1] for p in pool])
    mean: WeightedMean = weights.weighted_mean(log_terms, hit, level)
    lower, upper = mean.lower, mean.upper
    if not mean.reliable:
        lower, upper = _without_tail(mixture, pool, draws, mean.log_value, level)
    n = len(hit)
    return SubspaceResult(
        estimate=Estimate(
            method="subspace",
            log_value=mean.log_value,
            log_stderr=mean.log_stderr,
            lower=lower,
            upper=min(upper, 1.0),
            level=level,
            n=n,
            ess=mean.ess,
            reliable=mean.reliable,
            network_calls=n * chain.steps,
            reasons=mean.reasons,
        ),
        pareto_k=mean.pareto_k,
        max_weight_share=mean.max_share,
        hits=mean.hits,
        mixture=mixture,
        times=tuple(float(chain.times[k]) for k in mixture.levels),
        log_terms=log_terms,
        hit=hit,
    )


def _without_tail(
    mixture: Mixture, pool: list[tuple[np.ndarray, np.ndarray]], draws: int, log_value: float, level: float
) -> tuple[float, float]:
    """Limits that hold whatever the weights' tail, each erring with at most (1 − level)/2.

    Lower: Markov, q >= δ q̂ with probability 1 − δ; the means of growing samples are a reverse martingale, so that it
    holds at whichever round the draws stopped. Upper: the exact limit of the unguided paths alone, which are ordinary
    samples; never below the estimate.
    """
    error = (1 - level) / 2
    unguided = int(mixture.allocate(draws)[0])
    hits = sum(int(np.sum(hit[:unguided])) for _, hit in pool)
    upper = intervals.clopper_pearson(hits, unguided * len(pool), level)[1]
    value = min(float(np.exp(log_value)), 1.0)
    return error * value, max(upper, value)
