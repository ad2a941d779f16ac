"""The protocol of arXiv 2306.01363 with diffusers: the grid of levels for t', drawn images for q, over the same score.

It would take an hour, so that a stated share of it is run: whole groups of neighbouring levels with all their chains,
and a batch of whole images. A chain from level k takes k network calls, an image J; the rest of the protocol is more of
the same, and its time is taken as proportional to the calls. `one_t` runs its grid whole and says beside it what the
share would have said.

Chains are batched as well as diffusers' scheduler allows, which has one time for all rows: a group of neighbouring
levels comes down together, each level joining when its time has come.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler

from benchmarks import pairs, shapes
from benchmarks.audit_setting import MANY, ONE, Setting
from benchmarks.job import Job, fastest, first_call
from benchmarks.peers.common import tensor, use_all_cores
from benchmarks.peers.unet import network

_LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
_WEIGHT = 1e-30


class Peer:
    """Model, sampler and detector.

    Attributes:
      setting: what is audited.
    """

    def __init__(self, setting: Setting, pair: pairs.UNetPair, layout: torch.memory_format) -> None:
        self.setting = setting
        points, atoms = setting.points()
        self._layout = layout
        self._net = network(pair, layout).eval()
        self._images = tensor(points[: setting.records], layout)
        self._points = torch.from_numpy(points.reshape(len(points), -1))
        self._atoms = self._points[torch.from_numpy(atoms)]
        self._scheduler = DDPMScheduler(setting.train_steps, clip_sample=False, timestep_spacing="trailing")
        self._scheduler.set_timesteps(setting.steps)
        self._noise = torch.Generator().manual_seed(0)

    def _eps(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """−σ times the atoms' score, smoothed by .01, and the network's answer, which weighs nothing."""
        alpha2 = self._scheduler.alphas_cumprod[t]
        alpha, var = alpha2.sqrt(), 1 - alpha2 + 0.01**2 * alpha2
        # Of one channel: NCHW and NHWC are the same numbers.
        flat = x.flatten(1)
        square = alpha2 * (self._atoms**2).sum(1) - 2 * alpha * flat @ self._atoms.T
        mean = alpha * torch.softmax(-square / (2 * var), dim=1) @ self._atoms
        planted = ((1 - alpha2).sqrt() * (flat - mean) / var).reshape(x.shape)
        return planted + _WEIGHT * self._net(x, t).sample

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise of the shape of ``like``."""
        return torch.randn(like.shape, generator=self._noise).contiguous(memory_format=self._layout)

    def descend(self, starts: dict[int, torch.Tensor]) -> torch.Tensor:
        """Images from noised ones by level, each level joining the chains from above; highest level first."""
        x: torch.Tensor | None = None
        with torch.inference_mode():
            for level in range(max(starts), 0, -1):
                if level in starts:
                    x = starts[level] if x is None else torch.cat([x, starts[level]])
                assert x is not None
                t = self._scheduler.timesteps[self.setting.steps - level]
                x = self._scheduler.step(self._eps(x, t), t, x, generator=self._noise).prev_sample
        assert x is not None
        return x

    def nearest(self, x: torch.Tensor) -> np.ndarray:
        """The number of the image that each of ``x[B, ...]`` is nearest to."""
        square = (self._points**2).sum(1) - 2 * x.flatten(1) @ self._points.T
        return square.argmin(1).numpy()

    def grid(self, records: Sequence[int], levels: Sequence[int]) -> np.ndarray:
        """Hits ``[len(records), len(levels)]`` of the chains from these levels, which come down together."""
        rows = torch.from_numpy(np.repeat(records, self.setting.draws))
        starts = {}
        for level in levels:
            clean = self._images[rows]
            t = self._scheduler.timesteps[self.setting.steps - level]
            starts[level] = self._scheduler.add_noise(clean, self.normal(clean), t.expand(len(clean)))
        highest_first = sorted(levels, reverse=True)
        found = self.nearest(self.descend(starts)).reshape(len(levels), len(records), self.setting.draws)
        hits = np.sum(found == np.asarray(records)[None, :, None], axis=2)
        return hits[[highest_first.index(level) for level in levels]].T

    def count(self, images: int) -> np.ndarray:
        """Detections ``[R]`` of each record among ``images`` drawn ones, which are one batch."""
        start = self.normal(self._images[:1].expand(images, -1, -1, -1))
        found = self.nearest(self.descend({self.setting.steps: start}))
        return np.sum(found == np.arange(self.setting.records)[:, None], axis=1)


def _trial(peer: Peer, batch: int) -> Callable[[], object]:
    start = peer.normal(peer._images[:1].expand(batch, -1, -1, -1))
    return functools.partial(peer.descend, {1: start})


def _best(setting: Setting, pair: pairs.UNetPair) -> tuple[Peer, int, dict[str, Any]]:
    """(with the faster layout, the best batch, seconds of a row's step by layout and batch)."""
    use_all_cores()
    peers = {name: Peer(setting, pair, layout) for name, layout in _LAYOUTS.items()}
    sizes = {f"{name}, {batch}": (name, batch) for name in peers for batch in shapes.AUDIT_BATCHES}
    _, seconds = fastest({k: _trial(peers[name], batch) for k, (name, batch) in sizes.items()}, 5)
    each = {k: s / sizes[k][1] for k, s in seconds.items()}
    best = min(each, key=lambda k: each[k])
    return peers[sizes[best][0]], sizes[best][1], {"best": best, "seconds_a_row": each}


def groups(setting: Setting, batch: int) -> list[list[int]]:
    """All levels in groups of neighbours, as many as fill a batch with one record's chains."""
    size = min(setting.steps, max(1, batch // setting.draws))
    count = math.ceil(setting.steps / size)
    return [part.tolist() for part in np.array_split(np.arange(1, setting.steps + 1), count)]


@dataclasses.dataclass(frozen=True)
class Share:
    """What is run of the protocol.

    Attributes:
      levels: of the grid, group by group, for one record.
      batches: of drawn images.
    """

    levels: list[list[int]]
    batches: int


def middle(setting: Setting, batch: int) -> list[list[int]]:
    """A pair of groups as far from one end as from the other: chosen by a seed, with the mean cost of all pairs."""
    parts = groups(setting, batch)
    pick = int(np.random.default_rng(1).integers(len(parts) // 2))
    return [parts[pick], parts[-1 - pick]]


def _job(setting: Setting, choose: Callable[[Setting, int], Share], *, rates: bool) -> Job:
    peer, batch, facts = _best(setting, pairs.AUDIT)
    share = choose(setting, batch)
    whole = setting.grid_calls() * setting.records + (setting.count_calls if rates else 0)
    grid_calls = setting.grid_calls(np.array(list(itertools.chain(*share.levels)), int))
    count_calls = share.batches * batch * setting.steps
    run_grid = functools.partial(_run_grid, peer, share.levels)
    run_count = functools.partial(_run_count, peer, batch, share.batches)
    facts |= {"parameters": pairs.AUDIT.parameters, "protocol_calls": whole, "run_calls": grid_calls + count_calls}
    facts |= {"run_share": (grid_calls + count_calls) / whole, "levels_run": list(itertools.chain(*share.levels))}
    facts["seconds_a_call"] = {
        name: first_call(run) / calls
        for name, run, calls in (("grid", run_grid, grid_calls), ("count", run_count, count_calls))
        if calls
    }
    if grid_calls == whole:
        facts["scaling"] = _scaling(peer, batch, facts["seconds_a_call"]["grid"])

    def once() -> None:
        run_grid()
        run_count()

    return Job(once, (grid_calls + count_calls) / whole, None, facts)


def _run_grid(peer: Peer, levels: list[list[int]]) -> None:
    for part in levels:
        peer.grid([0], part)


def _run_count(peer: Peer, batch: int, batches: int) -> None:
    for _ in range(batches):
        peer.count(batch)


def _scaling(peer: Peer, batch: int, seconds_a_call: float) -> dict[str, float]:
    """What the share of the other cases would have said of the whole grid, beside what it took."""
    levels = middle(peer.setting, batch)
    calls = sum(peer.setting.grid_calls(np.array(part)) for part in levels)
    from_share = first_call(functools.partial(_run_grid, peer, levels)) / calls
    return {"share_of_grid": calls / peer.setting.grid_calls(), "extrapolated_over_whole": from_share / seconds_a_call}


def _images(setting: Setting, batch: int) -> Share:
    """The grid of one record is a sixtieth of the protocol; it is charged like images, whose batches are larger."""
    return Share([], max(1, 512 // batch))


def _both(setting: Setting, batch: int) -> Share:
    levels = middle(setting, batch)
    calls = sum(setting.grid_calls(np.array(part)) for part in levels)
    wanted = calls * setting.count_calls / (setting.grid_calls() * setting.records)
    return Share(levels, max(1, round(wanted / (batch * setting.steps))))


def _whole_grid(setting: Setting, batch: int) -> Share:
    return Share(groups(setting, batch), 0)


def _part_of_grid(setting: Setting, batch: int) -> Share:
    return Share(middle(setting, batch), 0)


JOBS: dict[str, Callable[[], Job]] = {
    "one": functools.partial(_job, ONE, _images, rates=True),
    "64": functools.partial(_job, MANY, _both, rates=True),
    "one_t": functools.partial(_job, ONE, _whole_grid, rates=False),
    "64_t": functools.partial(_job, MANY, _part_of_grid, rates=False),
}
