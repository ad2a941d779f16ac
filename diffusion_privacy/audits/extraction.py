"""Extraction: which generated images are copies of training records, and which records come back?

Carlini et al., "Extracting Training Data from Diffusion Models" (arXiv 2301.13188). Two tests:

- With the training set at hand (section 5.1, `copies`): a generated image x̂ is a copy of its nearest record x when the
  distance is small for its neighbourhood, d(x̂, x) <= δ·α·mean of d(x̂, ·) over the n nearest records, x among them.
- Without it (section 4.2, `cliques`): a group of generated images that are all near duplicates of each other is a
  sign that the model draws one image over and over.

The distance is the largest of the tiles' root mean square differences: one large plain region cannot make two images
look alike. Units are those of the grey scale [-1, 1], twice those of the paper's [0, 1].
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusion_privacy.anonymity.conformal import conformal_threshold
from diffusion_privacy.anonymity.intervals import Rate, rate
from diffusion_privacy.audits import neighbours
from diffusion_privacy.errors import InputError

NEIGHBOURS, ALPHA = 50, 0.5
"""n and α of the paper's section 5.1."""


def across_of(shape: tuple[int, ...]) -> int:
    """Tiles a side for records of this shape: 4 as in the paper where both sides divide by 4, else 1 (no tiles)."""
    return 4 if len(shape) == 3 and shape[0] % 4 == 0 and shape[1] % 4 == 0 else 1


def _parts(x: np.ndarray, across: int, name: str) -> np.ndarray:
    return neighbours.rows(x, name) if across == 1 else neighbours.tiles(x, across, name)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What was extracted. Larger means that more comes back.

    Attributes:
      ratio: d(x̂, x)/(α·mean over the n nearest) of each generated image, [M]; a copy at or below δ.
      distance: d(x̂, x), root mean square in units of the grey scale, [M].
      nearest: row of the training set that each generated image is nearest to, [M].
      copies: share of generated images that are copies, exact interval over draws of the model.
      extracted: training rows with at least one copy, rising. A lower bound on what the model can give back: more
        images can only add to it.
      delta: δ.
    """

    ratio: np.ndarray
    distance: np.ndarray
    nearest: np.ndarray
    copies: Rate
    extracted: np.ndarray
    delta: float


def copy_ratios(
    x: np.ndarray,
    training: np.ndarray,
    *,
    neighbours_used: int = NEIGHBOURS,
    across: int = 1,
    exclude_self: bool = False,
    chunk: int = 1024,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(ratio, distance, nearest)``, each [M]: distance to the nearest record over the mean of the n nearest (α = 1).

    The ratio lies in [0, 1]: 1 where all n are equally far, and 0 for an exact copy, however often its record occurs.

    Args:
      x: images ``[M, ...]`` (rows of a table go too, with ``across = 1``).
      training: the training records ``[N, ...]``, N >= n.
      neighbours_used: n.
      across: tiles a side.
      exclude_self: ``x`` is ``training``.
      chunk: see `neighbours.nearest`.

    Raises:
      InputError: shapes that do not fit, values that are not finite, or fewer records than n.
    """
    one, two = _parts(x, across, "extraction: images"), _parts(training, across, "extraction: training records")
    squared, index = neighbours.nearest(one, two, neighbours_used, exclude_self=exclude_self, chunk=chunk)
    distance = np.sqrt(squared / one.shape[2])
    usual = distance.mean(axis=1)
    # Where all n are equal to the image their mean is 0 too, and d <= δ·α·0 holds.
    ratio = np.divide(distance[:, 0], usual, out=np.zeros(len(one)), where=usual > 0)
    return ratio, distance[:, 0], index[:, 0]


def copies(
    generated: np.ndarray,
    training: np.ndarray,
    *,
    delta: float = 1.0,
    alpha: float = ALPHA,
    neighbours_used: int = NEIGHBOURS,
    across: int = 1,
    level: float = 0.95,
    chunk: int = 1024,
) -> Extraction:
    """The test with the training set at hand.

    Args:
      generated: images drawn from the model ``[M, ...]``, independent draws.
      training: its training records ``[N, ...]``.
      delta: δ > 0; smaller asks for closer copies.
      alpha: α > 0.
      neighbours_used, across, chunk: see `copy_ratios`.
      level: two-sided confidence level.

    Raises:
      InputError: δ or α not positive, or as in `copy_ratios`.
    """
    if not (delta > 0 and alpha > 0):
        raise InputError(f"extraction: expected delta > 0 and alpha > 0, got {delta} and {alpha}")
    ratio, distance, nearest = copy_ratios(
        generated, training, neighbours_used=neighbours_used, across=across, chunk=chunk
    )
    ratio = ratio / alpha
    copied = ratio <= delta
    found = rate(int(copied.sum()), len(copied), level)
    return Extraction(ratio, distance, nearest, found, np.unique(nearest[copied]), delta)


@dataclasses.dataclass(frozen=True)
class CopyRatio:
    """How many generated images are closer to a training record than held-out records of the same law are.

    Attributes:
      share: share of generated images whose ratio is below the threshold, exact interval given the threshold; None
        where that is 0, which no ratio is below: so many held-out records equal a training record.
      threshold: that all but a share ``requested`` of fresh held-out records exceed.
      requested: that share: what a model without copies shows at most, were it as varied as the held-out records.
    """

    share: Rate | None
    threshold: float
    requested: float


def calibrated_copy_ratio(
    generated: np.ndarray,
    training: np.ndarray,
    held_out: np.ndarray,
    *,
    requested: float = 0.01,
    neighbours_used: int = NEIGHBOURS,
    level: float = 0.95,
    chunk: int = 1024,
) -> CopyRatio:
    """The nearest-neighbour ratio with a conformal threshold from held-out records.

    Args:
      generated, training, neighbours_used, level, chunk: as in `copies`.
      held_out: records of the same law that are not in the training set, at least 1/requested − 1.
      requested: share of held-out records that may fall below the threshold, in (0, 1).

    Raises:
      InputError: too few held-out records, or as in `copy_ratios`.
    """
    own, _, _ = copy_ratios(generated, training, neighbours_used=neighbours_used, chunk=chunk)
    other, _, _ = copy_ratios(held_out, training, neighbours_used=neighbours_used, chunk=chunk)
    threshold = -conformal_threshold(-other, requested)
    share = rate(int(np.sum(own < threshold)), len(own), level) if threshold > 0 else None
    return CopyRatio(share, threshold, requested)


@dataclasses.dataclass(frozen=True)
class Cliques:
    """Groups of generated images that are near duplicates of each other.

    Attributes:
      groups: disjoint cliques of at least ``size``, row numbers, largest first.
      size: smallest clique that counts.
      distance: largest distance of a near-duplicate pair.
      undecided: regions in which the search was given up; cliques in them may be missing.
    """

    groups: tuple[tuple[int, ...], ...]
    size: int
    distance: float
    undecided: int


LIMIT = 20_000
"""Most images of a clique search: its graph has a bit for every pair."""
_EFFORT = 200_000


def cliques(generated: np.ndarray, distance: float, *, size: int = 10, across: int = 1, chunk: int = 1024) -> Cliques:
    """The test without the training set: disjoint cliques of near duplicates, found one after the other.

    A clique of ``size`` is searched for in each connected region of the graph, after images with fewer than
    ``size`` − 1 near duplicates are dropped; what is found is extended greedily, taken out, and the search goes on. No
    clique of ``size`` remains when it ends, unless ``undecided`` says otherwise.

    Args:
      generated: images ``[M, ...]``, at most `LIMIT`.
      distance: two images are near duplicates up to this, in units of the grey scale (0.15 in [0, 1] in the paper).
      size: 10 in the paper (of 500 images drawn).
      across, chunk: see `copy_ratios`.

    Raises:
      InputError: too many images, size below 2, a negative distance, or images that are not finite.
    """
    if len(generated) > LIMIT or size < 2 or not distance >= 0:
        raise InputError(
            f"cliques: expected at most {LIMIT} images, size >= 2 and distance >= 0, "
            f"got {len(generated)}, {size} and {distance}"
        )
    graph = _graph(_parts(generated, across, "cliques: images"), distance, chunk)
    groups, undecided = [], 0
    alive = _core(graph, (1 << len(graph)) - 1, size - 1)
    while alive:
        region = _region(graph, alive)
        found, left = _search(graph, region, size, _EFFORT)
        if found:
            clique = _extend(graph, found, region)
            groups.append(tuple(_members(clique)))
            alive &= ~clique
        else:
            undecided += int(left <= 0)
            alive &= ~region
        alive = _core(graph, alive, size - 1)
    return Cliques(tuple(sorted(groups, key=len, reverse=True)), size, distance, undecided)


def _graph(parts: np.ndarray, distance: float, chunk: int) -> list[int]:
    """For each image the set of its near duplicates as the bits of a number."""
    limit = distance**2 * parts.shape[2]
    # What products leave open is decided by differences.
    centre = parts.mean(axis=0, dtype=np.float64)
    moved = parts - centre
    slack = 1e-9 * max(float(np.max(np.sum(moved**2, axis=2))), limit, 1e-300)
    graph = []
    for start in range(0, len(parts), chunk):
        near = np.zeros((len(parts[start : start + chunk]), len(parts)), bool)
        for other in range(0, len(parts), chunk):
            squared = neighbours.squared_block(moved[start : start + chunk], moved[other : other + chunk])
            hit = squared <= limit
            one, two = np.nonzero(np.abs(squared - limit) <= slack)
            for piece in range(0, len(one), chunk):
                i, j = one[piece : piece + chunk], two[piece : piece + chunk]
                hit[i, j] = neighbours.squared_pairs(parts[start + i], parts[other + j]) <= limit
            near[:, other : other + chunk] = hit
        near[np.arange(len(near)), start + np.arange(len(near))] = False
        graph += [int.from_bytes(row.tobytes(), "little") for row in np.packbits(near, axis=1, bitorder="little")]
    return graph


def _members(bits: int) -> list[int]:
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return found


def _core(graph: list[int], alive: int, degree: int) -> int:
    """Largest subset in which every image has at least ``degree`` near duplicates."""
    doomed = [v for v in _members(alive) if (graph[v] & alive).bit_count() < degree]
    while doomed:
        touched = 0
        for v in doomed:
            alive &= ~(1 << v)
            touched |= graph[v]
        doomed = [v for v in _members(touched & alive) if (graph[v] & alive).bit_count() < degree]
    return alive


def _region(graph: list[int], alive: int) -> int:
    """The connected part of ``alive`` around its lowest member."""
    region, front = 0, alive & -alive
    while front:
        region |= front
        reached = 0
        for v in _members(front):
            reached |= graph[v]
        front = reached & alive & ~region
    return region


def _search(graph: list[int], candidates: int, size: int, effort: int) -> tuple[int, int]:
    """``(a clique of exactly size or 0, effort left)``: depth first, best connected images first, cut where too few
    candidates remain. Recursion is at most ``size`` deep."""
    while candidates.bit_count() >= size:
        effort -= 1
        if effort <= 0:
            return 0, 0
        best = max(_members(candidates), key=lambda v: (graph[v] & candidates).bit_count())
        inside = graph[best] & candidates
        if inside.bit_count() < size - 1:
            return 0, effort
        if size == 1:
            return 1 << best, effort
        found, effort = _search(graph, inside, size - 1, effort)
        if found:
            return found | 1 << best, effort
        if effort <= 0:
            return 0, 0
        candidates ^= 1 << best
    return 0, effort


def _extend(graph: list[int], clique: int, within: int) -> int:
    """The clique with further members of ``within`` until no more fits, lowest number first."""
    common = within & ~clique
    for v in _members(clique):
        common &= graph[v]
    while common:
        low = common & -common
        clique |= low
        common &= graph[low.bit_length() - 1]
    return clique
