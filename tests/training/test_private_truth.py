"""What the private loop really does, seen from outside: its noise, its draws, its average, its ε by a one-run audit.

Everything is measured on what `loop.train` leaves behind after each step; each check is then held against a loop with a
fault planted in it, and must see it. The secret is fixed here (in a run it is not), so that every number is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from private_toys import PullTask, ToyRecords, plan_of, private_config
from scipy import stats

from diffusion_privacy.audits.one_run import OneRunBound, audit_scores, flip_coins
from diffusion_privacy.training import loop, private_step, sharding
from diffusion_privacy.training import state as states
from diffusion_privacy.training.rng import GRID_BITS
from diffusion_privacy.training.secret import Secret

CLIP, NOISE, EXPECTED = 0.5, 3.0, 4


@dataclasses.dataclass(frozen=True)
class Seen:
    """After each step: the noised mean gradient, the parameters and their average; ``{leaf: [T, size]}`` each."""

    gradient: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    ema: dict[str, np.ndarray]


Fault = Callable[[pytest.MonkeyPatch], None]


def honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fault."""


def watch(folder: Path, fault: Fault, task: Any, source: ToyRecords, **changes: Any) -> Seen:
    """A whole private run on one device with ``fault`` planted. Adam's first moment is the gradient where beta1 = 0."""
    rows: list[tuple[Any, Any, Any]] = []

    def keep(state: states.TrainState) -> dict[str, float]:
        moments = jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        gradient = next(s.mu for s in moments if hasattr(s, "mu"))
        rows.append(jax.tree.map(lambda leaf: np.asarray(leaf).ravel(), (gradient, state.params, state.ema_params)))
        return {"seen": 1.0}

    config = private_config(
        **{"beta1": 0.0, "weight_decay": 0.0, "p_clip_norm": CLIP, "p_noise_multiplier": NOISE, "eval_every": 1}
        | changes
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.secrets, "obtain", lambda workdir, context, fingerprint: Secret(b"t" * 32, context))
        fault(patch)
        mesh = sharding.data_mesh(jax.devices()[:1])
        loop.train(task, source, config, workdir=folder, seed=3, name="toy", eval_fn=keep, mesh=mesh)
    assert len(rows) == config.steps
    return Seen(*({name: np.stack([row[i][name] for row in rows]) for name in rows[0][i]} for i in range(3)))


# --- noise ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StillTask:
    """Records that pull nothing, two arrays of one shape and a third: what moves is noise."""

    def init(self, key: Any, batch: Any) -> Any:
        return {"a": jnp.zeros((40, 50)), "b": jnp.zeros((40, 50)), "c": jnp.zeros(1000)}

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        return 0.0 * jnp.take(params["c"], batch["position"]), {}

    def evaluate(self, params: Any, batch: Any, key: Any) -> Any:
        return {}


def beyond(statistic: np.ndarray, comparisons: int) -> bool:
    """Whether the largest of so many standard normal statistics is one that right noise gives once in 10⁶."""
    return bool(np.max(np.abs(statistic)) > stats.norm.isf(5e-7 / comparisons))


def spread_is_off(squares: np.ndarray, freedom: int) -> bool:
    """Whether any of the sums of so many squared standard normals is too small or too large, once in 10⁶ by chance."""
    tail = 5e-7 / squares.size
    low, high = stats.chi2.ppf(tail, freedom), stats.chi2.isf(tail, freedom)
    return bool(np.any((squares < low) | (squares > high)))


def _within_cells(sigma: float, count: int) -> np.ndarray:
    """Places within a cell of the grid on which noised sums lie, in σ."""
    width = 2.0 ** (math.frexp(sigma)[1] - 1 - GRID_BITS)
    return np.random.default_rng(9).uniform(-0.5, 0.5, count) * width / sigma


def noise_faults(gradient: dict[str, np.ndarray], sigma: float, expected: float) -> set[str]:
    """In what ``{leaf: [T, size]}`` is not independent N(0, (σ/L)²), σ = multiplier·C; each way errs once in 10⁶."""
    unit = {name: values.astype(float) * expected / sigma for name, values in gradient.items()}
    every = np.concatenate(list(unit.values()), axis=1)
    steps, size = every.shape
    pairs = list(itertools.combinations(range(steps), 2))
    across = np.array([every[s] @ every[t] / math.sqrt(size) for s, t in pairs])
    leaves = unit["a"] @ unit["b"].T / math.sqrt(unit["a"].shape[1])
    found = {
        "mean": beyond(np.sum(every) / math.sqrt(every.size), 1),
        "mean of a coordinate": beyond(np.sum(every, axis=0) / math.sqrt(steps), size),
        "size": spread_is_off(np.array([np.sum(every**2)]), every.size),
        "size at a coordinate": spread_is_off(np.sum(every**2, axis=0), steps),
        "steps depend": beyond(across, len(pairs)),
        "leaves depend": beyond(leaves, leaves.size),
        "law": stats.kstest(every.ravel()[::7] + _within_cells(sigma, every.size)[::7], "norm").pvalue < 1e-6,
    }
    return {name for name, wrong in found.items() if wrong}


def rescaled(factor: float) -> Fault:
    real = private_step.noised_mean

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(private_step, "noised_mean", lambda total, keys, scale, n: real(total, keys, scale * factor, n))

    return plant


def keys_of(change: Callable[[Any, int, int], np.ndarray]) -> Fault:
    """Noise keys by ``change(real, step, count)``."""
    real = Secret.noise_keys

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Secret, "noise_keys", lambda self, step, n: change(lambda s, m: real(self, s, m), step, n))

    return plant


NOISE_FAULTS: dict[str, tuple[Fault, str]] = {
    "noise not scaled by the clip norm": (rescaled(1 / CLIP), "size"),
    "two thirds of the noise": (rescaled(2 / 3), "size"),
    "three halves of the noise": (rescaled(3 / 2), "size"),
    "one noise for all steps": (keys_of(lambda real, step, n: real(0, n)), "steps depend"),
    "noise of the step before": (keys_of(lambda real, step, n: real(step // 2, n)), "steps depend"),
    "one key for all arrays": (keys_of(lambda real, step, n: np.repeat(real(step, 1), n, axis=0)), "leaves depend"),
}


def still(folder: Path, fault: Fault) -> set[str]:
    return noise_faults(watch(folder, fault, StillTask(), ToyRecords(8)).gradient, NOISE * CLIP, EXPECTED)


def test_the_noise_of_the_loop_is_what_is_accounted_for(tmp_path):
    """12 steps of 5,000 numbers: mean 0, standard deviation σC/L at each coordinate, independent over steps and arrays.
    Seven checks, each wrong once in 10⁶ for right noise; the overall size is known to 2 %."""
    assert still(tmp_path, honest) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", NOISE_FAULTS)
def test_planted_noise_is_seen(tmp_path, name):
    fault, sign = NOISE_FAULTS[name]
    assert sign in still(tmp_path, fault)


# --- draws ------------------------------------------------------------------------------------------------------------

PEOPLE, BATCH, STEPS = 60, 12, 40


def draws(folder: Path, fault: Fault) -> np.ndarray:
    """bool [T, n]: whose gradient each step of a loop with next to no noise contains; record i pulls coordinate i."""
    source = ToyRecords(PEOPLE, batch_size=BATCH)
    found = watch(
        folder, fault, PullTask(PEOPLE), source, batch_size=BATCH, steps=STEPS, p_noise_multiplier=1e-3, p_micro_batch=8
    ).gradient["w"]
    chosen = found < -0.5 * CLIP / BATCH
    assert np.allclose(found, np.where(chosen, -CLIP / BATCH, 0.0), atol=0.01 * CLIP / BATCH)
    return chosen


def sampling_faults(chosen: np.ndarray, q: float) -> set[str]:
    """In what bool [T, n] is not n·T independent coins of probability q; each way errs once in 10⁴ or less.

    Sizes of the batches are binomial, and so are the counts of each record: their sums of squares are compared with
    χ², which is not exact for so few (the error is within the tenth of what a fault moves).
    """
    steps, n = chosen.shape
    sizes = np.sum((chosen.sum(axis=1) - n * q) ** 2) / (n * q * (1 - q))
    counts = np.sum((chosen.sum(axis=0) - steps * q) ** 2) / (steps * q * (1 - q))
    next_time = np.sum(chosen[1:] & chosen[:-1])
    found = {
        "size of a batch": not stats.chi2.ppf(5e-5, steps) < sizes < stats.chi2.isf(5e-5, steps),
        "count of a record": not stats.chi2.ppf(5e-5, n) < counts < stats.chi2.isf(5e-5, n),
        "share": stats.binomtest(int(chosen.sum()), chosen.size, q).pvalue < 1e-4,
        "one step and the next": stats.binomtest(int(next_time), (steps - 1) * n, q * q).pvalue < 1e-4,
    }
    return {name for name, wrong in found.items() if wrong}


def without_replacement(self: Secret, step: int, records: int, probability: float) -> np.ndarray:
    return np.sort(np.random.default_rng([5, step]).choice(records, round(records * probability), replace=False))


def shuffled_epochs(self: Secret, step: int, records: int, probability: float) -> np.ndarray:
    size = round(records * probability)
    epoch, place = divmod(step, records // size)
    return np.sort(np.random.default_rng([6, epoch]).permutation(records)[place * size : (place + 1) * size])


def half_epochs(self: Secret, step: int, records: int, probability: float) -> np.ndarray:
    """Coins, but each record takes part in every second step only, at twice the rate: the size of batches is right."""
    coins = np.random.default_rng([7, step]).random(records) < 2 * probability
    return np.flatnonzero(coins & ((np.arange(records) + step) % 2 == 0))


def drawn_by(sample: Callable[..., np.ndarray]) -> Fault:
    return lambda patch: patch.setattr(Secret, "sample", sample)


def test_the_loop_draws_every_record_by_itself_as_poisson_accounting_needs(tmp_path):
    assert sampling_faults(draws(tmp_path, honest), BATCH / PEOPLE) == set()


def test_batches_without_replacement_that_are_accounted_as_poisson_are_seen(tmp_path):
    assert "size of a batch" in sampling_faults(draws(tmp_path, drawn_by(without_replacement)), BATCH / PEOPLE)


@pytest.mark.parametrize(
    ("sample", "signs"),
    [
        (shuffled_epochs, {"size of a batch", "count of a record"}),
        (half_epochs, {"one step and the next"}),
        (lambda self, step, n, q: np.arange(round(n * q)), {"count of a record", "one step and the next"}),
    ],
)
def test_other_draws_that_are_accounted_as_poisson_are_seen(sample, signs):
    chosen = np.zeros((STEPS, PEOPLE), bool)
    for step in range(STEPS):
        chosen[step, sample(None, step, PEOPLE, BATCH / PEOPLE)] = True
    assert signs <= sampling_faults(chosen, BATCH / PEOPLE)


def test_the_check_of_draws_lets_right_ones_pass():
    """1,000 sets of coins: four checks at 10⁻⁴ each and less than exact, more than 5 alarms once in 10⁴ or so."""
    rng = np.random.default_rng(8)
    alarms = sum(bool(sampling_faults(rng.random((STEPS, PEOPLE)) < 0.2, 0.2)) for _ in range(1000))
    assert alarms <= 5


# --- the average ------------------------------------------------------------------------------------------------------


def average_faults(seen: Seen, decay: float) -> set[str]:
    """Whether the average is anything but that of the noised parameters of each step."""
    found = set()
    for name, params in seen.params.items():
        expected = np.zeros_like(params[0])
        for step, row in enumerate(params):
            expected = decay * expected + (1 - decay) * row
            if not np.allclose(seen.ema[name][step], expected, atol=1e-7):
                found.add("not the average of the parameters")
            # A noised sum is 0 on its grid at 3 % of the coordinates, here of the first step.
            if np.mean(seen.ema[name][step] != 0) < 0.9:
                found.add("coordinates without noise")
    return found


def averages_of_raw(what: str) -> Fault:
    """The step keeps the sum of gradients before noise, and the average follows that."""
    real, kept = private_step.noised_mean, []

    def noised_mean(total: Any, keys: Any, scale: Any, expected: float) -> Any:
        kept.append(jax.tree.map(lambda leaf: leaf / expected, total))
        return real(total, keys, scale, expected)

    def update_ema(ema: Any, params: Any, decay: Any) -> Any:
        raw = kept[-1]
        if what == "gradients":
            return optax.tree.add_scale(ema, 1 - decay, jax.tree.map(jnp.subtract, raw, ema))
        return jax.tree.map(lambda e, g: e - (1 - decay) * 1e-2 * jnp.sign(g), ema, raw)

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(private_step, "noised_mean", noised_mean)
        patch.setattr(states, "update_ema", update_ema)

    return plant


def averaged(folder: Path, fault: Fault) -> set[str]:
    return average_faults(
        watch(folder, fault, PullTask(2000), ToyRecords(8), steps=4, ema_decay=0.5, ema_warmup=False), 0.5
    )


def test_the_average_sees_noised_parameters_and_nothing_else(tmp_path):
    assert averaged(tmp_path, honest) == set()


@pytest.mark.parametrize("what", ["gradients", "parameters"])
def test_an_average_of_raw_gradients_or_parameters_is_seen(tmp_path, what):
    assert averaged(tmp_path, averages_of_raw(what)) == {
        "not the average of the parameters",
        "coordinates without noise",
    }


# --- one run audited --------------------------------------------------------------------------------------------------

CANARIES = 1000


@dataclasses.dataclass(frozen=True)
class CanaryRecords(ToyRecords):
    """Canary i pulls coordinate i if its coin says that it is in the data, and is a record without a gradient if not:
    removing it, to an algorithm that clips and sums."""

    def gather(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        inside = flip_coins(CANARIES, 3).astype(np.float32)
        return {"inside": inside[chosen], "position": np.asarray(chosen, np.int32)}


@dataclasses.dataclass(frozen=True)
class CanaryTask(PullTask):
    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        losses, metrics = super().loss(params, batch, key)
        return losses * batch["inside"], metrics


def audited(folder: Path, fault: Fault) -> tuple[float, OneRunBound]:
    """ε claimed under add-or-remove-one, and the bound from one run; scores sum what every step gave out."""
    source = CanaryRecords(CANARIES, batch_size=600)
    changes = {
        "batch_size": 600, "steps": 4, "p_noise_multiplier": 2.5, "p_micro_batch": 250,
        "p_relation": "add-or-remove-one", "p_delta": 1e-5,
    }  # fmt: skip
    seen = watch(folder, fault, CanaryTask(CANARIES), source, **changes)
    plan = plan_of(private_config(**changes), source)
    coins = flip_coins(CANARIES, 3)
    scores = -seen.gradient["w"].sum(axis=0)
    return plan.epsilon(), audit_scores(scores, coins, [(200, 200), (400, 0)], delta=1e-5, confidence=0.999)


def test_a_one_run_audit_of_the_loop_stays_below_the_claim(tmp_path):
    """Wrong once in 1,000 for a right loop. Well above 0: the audit sees what there is to see."""
    claim, found = audited(tmp_path, honest)
    assert 0.1 * claim < found.lower <= claim < found.ceiling


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_the_same_audit_exceeds_the_claim_without_the_noise(tmp_path, factor):
    claim, found = audited(tmp_path, rescaled(factor))
    assert found.lower > claim
