"""Faults of a whole release, a function of a table, that no single-record test can see.

Records that steer each other's clipping, one noise given to two records, noise that repeats from run to run. Passing
says that this search found nothing; it is no proof of privacy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from diffusion_privacy.anonymity.intervals import outwards
from diffusion_privacy.audits.epsilon import EpsilonBound, epsilon_from_scores
from diffusion_privacy.errors import InputError

Release = Callable[[np.ndarray], np.ndarray]
"""``z[B, D] -> z̃[B, D]``: a whole release with its own randomness, as it would be run."""


@dataclasses.dataclass(frozen=True)
class ReleaseAudit:
    """Faults of a release as a function of a whole table; empty means none was found.

    Attributes:
      faults: sentence by fault: ``"no noise"``, ``"shared noise"``, ``"repeated noise"``, ``"clipping"``,
        ``"coupling"``, ``"leak"``.
      bounds: measured ε by channel: ``"own"`` (a record's own output) and ``"others"`` (everybody else's output).
    """

    faults: Mapping[str, str]
    bounds: Mapping[str, EpsilonBound]

    @property
    def passed(self) -> bool:
        return not self.faults


def audit_release(
    release: Release,
    *,
    dim: int,
    clip_norm: float,
    epsilon: float,
    delta: float,
    records: int = 256,
    repeats: int = 200,
    confidence: float = 0.99,
) -> ReleaseAudit:
    """Look for faults between records and between runs.

    1. Noise: two runs on a table of zeros; outputs are then pure noise. Two of the 2·records noise vectors that point
       the same way (|cosine| above .8) share a key. Independent normal noise with D >= 64 does so with probability
       below 1e-14 a pair.
    2. Clipping: half of the records lie just inside the ball, half far outside. Clipped one by one, each has norm C
       afterwards, so the mean of what every record shows of itself is C in both halves (false alarm 1e-5 each).
    3. Coupling: record 0 is replaced (0 against a latent of norm 1e6·C) among records that lie on axes at norm C/2;
       everybody else's output must not betray it (ε > 0 at the stated confidence).
    4. Leak: the records' own outputs under antipodal latents far outside the ball, every record a trial of its own.

    Args:
      release: called 2 + 5·repeats times on [records, D].
      dim: D >= 64.
      epsilon, delta: the claim for replacing one record.
      records: size of the table, at least 8.
      repeats: runs of each kind; the leak test can refute claims up to about log(records·repeats/10.6).

    Raises:
      InputError: D < 64, fewer than 8 records or 100 repeats.
    """
    if dim < 64 or records < 8 or repeats < 100:
        raise InputError(f"audit: expected dim >= 64, records >= 8, repeats >= 100; got {dim}, {records}, {repeats}")
    faults = _noise_faults(release, dim, records) | _clip_faults(release, dim, clip_norm, records, repeats)
    table = np.zeros((records, dim), np.float32)
    table[np.arange(1, records), np.arange(1, records) % dim] = 0.5 * clip_norm
    # "Others" are scored by how much of their own latent they still show.
    weights = table / (0.5 * clip_norm)
    far = np.zeros(dim, np.float32)
    far[0] = 1e6 * clip_norm

    def others(latent: np.ndarray) -> np.ndarray:
        trial = table.copy()
        trial[0] = latent
        return np.array([float(np.sum(np.asarray(release(trial))[1:] * weights[1:])) for _ in range(repeats)])

    def own(sign: float) -> np.ndarray:
        axes = _axes(records, dim)
        trial = axes * np.float32(sign * 1e6 * clip_norm)
        return np.concatenate([np.sum(np.asarray(release(trial)) * axes, axis=1) for _ in range(repeats)])

    bounds = {
        "others": _in_halves(others(np.zeros_like(far)), others(far), 0.0, confidence, "others"),
        "own": _in_halves(own(1.0), own(-1.0), delta, confidence, "own"),
    }
    lower = {name: outwards(bound.lower, "down") for name, bound in bounds.items()}
    if bounds["others"].lower > 0.0:
        faults["coupling"] = f"one record shows in the others' outputs (ε >= {lower['others']}, expected 0)"
    if bounds["own"].lower > epsilon:
        faults["leak"] = f"a record's own output leaks ε >= {lower['own']}, the claim is {epsilon:.3g}"
    return ReleaseAudit(faults, bounds)


def _in_halves(one: np.ndarray, two: np.ndarray, delta: float, confidence: float, name: str) -> EpsilonBound:
    half = one.size // 2
    return epsilon_from_scores((one[:half], two[:half]), (one[half:], two[half:]), delta, confidence, name)


def _axes(records: int, dim: int) -> np.ndarray:
    """Record i on axis i mod dim, float32 [records, dim]."""
    return np.eye(dim, dtype=np.float32)[np.arange(records) % dim]


def _noise_faults(release: Release, dim: int, records: int) -> dict[str, str]:
    """Noise shared by two records of a run, or by two runs."""
    zeros = np.zeros((records, dim), np.float32)
    runs = [np.asarray(release(zeros), np.float64) for _ in range(2)]
    faults = {}
    if any(run.shape != zeros.shape for run in runs):
        raise InputError(f"audit: the release returned {[run.shape for run in runs]} for {zeros.shape}")
    units = [run / np.maximum(np.linalg.norm(run, axis=1, keepdims=True), 1e-300) for run in runs]
    if any(np.linalg.norm(run, axis=1).min() == 0.0 for run in runs):
        faults["no noise"] = "a record of zeros came back without noise"
    within = np.abs(units[0] @ units[0].T) - np.eye(records)
    if within.max() > 0.8:
        i, j = np.unravel_index(int(np.argmax(within)), within.shape)
        faults["shared noise"] = f"records {i} and {j} got the same noise: their difference is released in the clear"
    if np.abs(units[0] @ units[1].T).max() > 0.8:
        faults["repeated noise"] = "two runs drew the same noise: its key comes from a seed, and can be subtracted"
    return faults


def _clip_faults(release: Release, dim: int, clip_norm: float, records: int, repeats: int) -> dict[str, str]:
    """Records near the edge of the ball must come back with norm C on average, whatever the others are."""
    far = np.arange(records) % 2 == 1
    axes = _axes(records, dim)
    table = axes * np.where(far, 1e6 * clip_norm, 0.999 * clip_norm)[:, None].astype(np.float32)
    shown = np.stack([np.sum(np.asarray(release(table)) * axes, axis=1) for _ in range(repeats)])
    for name, part in (("inside", shown[:, ~far]), ("outside", shown[:, far])):
        error = part.std() / math.sqrt(part.size)
        if abs(part.mean() - clip_norm) > 4.42 * error + 2e-3 * clip_norm:
            return {
                "clipping": f"records {name} the ball come back with norm {part.mean():.3g}, not {clip_norm:.3g}: "
                "they are not clipped one by one to that radius"
            }
    return {}
