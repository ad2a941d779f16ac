"""What the PyTorch peers share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.job import Job, fastest


def use_all_cores() -> None:
    """Threads of PyTorch: one a core."""
    torch.set_num_threads(os.cpu_count() or 1)


def best_layout(make: Callable[[torch.memory_format], Callable[[], object]], units: float, **facts: Any) -> Job:
    """The faster of channels-last and PyTorch's own layout.

    Args:
      make: builds the work in this layout.
      units: of one call.
      facts: for the record.
    """
    use_all_cores()
    runs = {"channels last": make(torch.channels_last), "contiguous": make(torch.contiguous_format)}
    name, seconds = fastest(runs)
    return Job(runs[name], units, None, {**facts, "layout": name, "seconds": seconds})


def best_piece(
    make: Callable[[int], Callable[[torch.memory_format], Callable[[], object]]],
    pieces: Sequence[int],
    units: float,
    **facts: Any,
) -> Job:
    """The fastest of these pieces, each in its faster layout.

    Args:
      make: gives, for so many images at a time, what builds the work in a layout.
      pieces: images at a time.
      units: of one call.
      facts: for the record.
    """
    jobs = [best_layout(make(piece), units, chunk=piece, **facts) for piece in pieces]
    return min(jobs, key=lambda job: min(job.facts["seconds"].values()))


def tensor(array: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
    """``[B, H, W, C]`` as PyTorch's ``[B, C, H, W]`` in this layout."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).contiguous(memory_format=layout)
