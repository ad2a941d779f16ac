"""What both sides of the audit's benchmarks share: the memoriser, the protocol, and what a statement must hold.

Needs numpy and scipy alone. The protocol is that of Dombrowski & Kainz (arXiv 2306.01363): 16 chains from every one of
100 levels of a 100-step DDPM sampler for t', detections among 50,000 drawn images for q; 1,080 memorised images are
as many as their retina data has.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusion_privacy.anonymity import intervals


@dataclasses.dataclass(frozen=True)
class Setting:
    """An audit of the first records of a memoriser, some of which it holds.

    Attributes:
      records, leaked: how many are audited, and how many of those are atoms of the model; the others are held out.
      atoms: n images that the model gives back, each with q = 1/n.
      shape: (H, W, C) of an image.
      steps: J of the sampler, and the number of levels of the grid.
      draws: of the grid at each level.
      images: drawn by the peer, once for all records, to count detections in.
      gamma, gamma_upper: γ and γ' of the bracket of t'.
      error: of a record's bracket; 1 − error is the two-sided level of q's interval.
      train_steps: T of the DDPM schedule (linear β from 1e-4 to .02).
    """

    records: int
    leaked: int
    atoms: int = 1080
    shape: tuple[int, int, int] = (8, 8, 1)
    steps: int = 100
    draws: int = 16
    images: int = 50_000
    gamma: float = 0.05
    gamma_upper: float = 0.5
    error: float = 0.05
    train_steps: int = 1000

    def grid_calls(self, levels: np.ndarray | None = None) -> int:
        """Network calls of the grid for one record: a chain from level k takes k."""
        return int(np.sum(np.arange(1, self.steps + 1) if levels is None else levels)) * self.draws

    @property
    def count_calls(self) -> int:
        """Network calls of the images that are drawn to count in."""
        return self.images * self.steps

    @property
    def log_width(self) -> float:
        """log(upper/lower) of q's exact interval from as many detections as are expected: what ours may not exceed."""
        lower, upper = intervals.clopper_pearson(round(self.images / self.atoms), self.images, 1 - self.error)
        return float(np.log(upper / lower))

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """(all images, the audited ones first; the numbers of the atoms among them), ``[n + held out, H, W, C]``.

        The atoms are the orbit of one of them under a group of rotations, under which neither their set nor the
        sampler's noise changes: all of them have the same q and the same h(t).
        """
        every = orbit(2 * self.atoms, 0, int(np.prod(self.shape))).reshape(-1, *self.shape)
        atoms, others = every[::2], every[1::2]
        order = [atoms[: self.leaked], others[: self.records - self.leaked], atoms[self.leaked :]]
        numbers = np.concatenate(
            [np.arange(self.leaked), np.arange(self.records, self.records + self.atoms - self.leaked)]
        )
        return np.concatenate(order), numbers


ONE = Setting(records=1, leaked=1)
MANY = Setting(records=64, leaked=4)


@dataclasses.dataclass(frozen=True)
class Statement:
    """What an audit says.

    Attributes:
      lower: int ``[R]``, the highest level of which h > γ was shown; 0 for none.
      upper: int ``[R]``, the lowest level above it of which h <= γ' was shown; J + 1 for none.
      rates: (lower, upper) of q for records by number; of the others nothing is said.
    """

    lower: np.ndarray
    upper: np.ndarray
    rates: dict[int, tuple[float, float]]


def orbit(count: int, seed: int, dim: int) -> np.ndarray:
    """``[count, dim]`` points, the orbit of a random one under a cyclic group that rotates planes; ``dim`` is even."""
    rng = np.random.default_rng(seed)
    turns = rng.integers(1, count, dim // 2)
    turns[0] = 1
    angle = 2 * np.pi * np.outer(np.arange(count), turns) / count + rng.uniform(0, 2 * np.pi, dim // 2)
    return (np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).reshape(count, dim).astype(np.float32)


def grid_brackets(
    hits: np.ndarray, draws: int, gamma: float, gamma_upper: float, error: float
) -> tuple[np.ndarray, np.ndarray]:
    """(highest level with lower limit > γ or 0, lowest above it with upper limit <= γ' or J + 1), each ``[R]``.

    Args:
      hits: ``[R, J]`` of ``draws`` at levels 1 … J; limits are exact and corrected for J levels.
      draws: at each level.
      gamma, gamma_upper: γ, γ'.
      error: of all decisions about a record.
    """
    steps = hits.shape[1]
    level = 1 - error / steps
    above = intervals.lower_limit(hits, draws, level) > gamma
    below = intervals.upper_limit(hits, draws, level) <= gamma_upper
    levels = np.arange(1, steps + 1)
    low = np.max(np.where(above, levels, 0), axis=1)
    return low, np.min(np.where(below & (levels > low[:, None]), levels, steps + 1), axis=1)


def grid_statement(setting: Setting, grid: np.ndarray, counted: np.ndarray) -> Statement:
    """What the protocol says from the grid's hits ``[R, J]`` and from detections ``[R]`` among the drawn images."""
    low, high = grid_brackets(grid, setting.draws, setting.gamma, setting.gamma_upper, setting.error)
    lower, upper = intervals.clopper_pearson(counted, np.full(len(counted), setting.images), 1 - setting.error)
    return Statement(low, high, {r: (float(lower[r]), float(upper[r])) for r in range(setting.records)})


@dataclasses.dataclass(frozen=True)
class Truth:
    """What holds for the atoms.

    Attributes:
      lower, upper: ``[J]`` limits of h at levels 1 … J from many chains of the memoriser, each wrong once in 10,000.
      width: median width in levels of the grid's bracket.
    """

    lower: np.ndarray
    upper: np.ndarray
    width: int


def check_brackets(setting: Setting, said: Statement, truth: Truth, width: int | None = None) -> None:
    """Refuses a bracket of t' that is wrong or wider than ``width`` levels (those of held-out records: than 1).

    Raises:
      ValueError: says of which record, and what.
    """
    for r, (low, high) in enumerate(zip(said.lower.tolist(), said.upper.tolist(), strict=True)):
        if r >= setting.leaked:
            # Denoised from any level, a held-out image becomes an atom: h is 0 to many digits.
            if low > 0 or (width is not None and high > 1):
                raise ValueError(f"record {r} is held out, and its bracket is {low} … {high}, not 0 … 1")
            continue
        if width is not None and (low < 1 or high - low > width):
            raise ValueError(f"record {r}: the bracket {low} … {high} of t' is wider than {width}")
        if low >= 1 and truth.upper[low - 1] <= setting.gamma:
            raise ValueError(f"record {r}: h is at most {truth.upper[low - 1]:.3f} at level {low}, not above γ")
        if high <= setting.steps and truth.lower[high - 1] > setting.gamma_upper:
            raise ValueError(f"record {r}: h is at least {truth.lower[high - 1]:.3f} at level {high}, above γ'")


def check_rates(setting: Setting, said: Statement, log_width: float | None = None) -> None:
    """Refuses intervals of q that miss the truth, leave out an atom, or are wider than ``log_width`` (nats).

    Raises:
      ValueError: says of which record, and what.
    """
    for r in range(setting.leaked):
        lower, upper = said.rates.get(r, (1.0, 0.0))
        if not lower <= 1 / setting.atoms <= upper:
            raise ValueError(f"record {r}: q = 1/{setting.atoms} lies outside {said.rates.get(r)}")
        if log_width is not None and (lower == 0 or np.log(upper / lower) > log_width):
            raise ValueError(f"record {r}: the interval {lower:.3g} … {upper:.3g} of q is wider than {log_width:.2f}")
    for r in range(setting.leaked, setting.records):
        if said.rates.get(r, (0.0, 1.0))[0] > 0:
            raise ValueError(f"record {r} is held out, and its q is said to be above {said.rates[r][0]:.3g}")
