"""Likelihood as score_sde computes it: scipy over the whole batch, the divergence by a second pass backward.

The probability flow of the same VP process in its own time t, the state (images, log-density) as one vector with one
step size, drift and vᵀJ v through PyTorch's autograd (github.com/yang-song/score_sde_pytorch, `likelihood.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import integrate

from benchmarks import pairs, shapes
from benchmarks.job import Job
from benchmarks.peers.common import best_layout, tensor, use_all_cores
from benchmarks.peers.unet import network

_PAIR = pairs.LIKELIHOOD
_MIN, _MAX, _START = 0.1, 20.0, 1e-3


def _beta(t: float) -> float:
    return _MIN + t * (_MAX - _MIN)


def _sigma(t: float) -> float:
    return float(np.sqrt(-np.expm1(-(t * _MIN + 0.5 * t * t * (_MAX - _MIN)))))


class _Flow:
    def __init__(self, layout: torch.memory_format) -> None:
        self._net = network(_PAIR, layout, mild=True).eval().requires_grad_(False)
        self._layout = layout
        self._x = tensor(shapes.images(shapes.LIKELIHOOD_IMAGES, _PAIR.shape)[0], layout)
        torch.manual_seed(3)
        self._probe = torch.randint_like(self._x, 2) * 2 - 1
        self.calls = 0

    def _slope(self, t: float, state: np.ndarray) -> np.ndarray:
        self.calls += 1
        size = self._x.numel()
        x = torch.from_numpy(state[:size].reshape(self._x.shape)).float().contiguous(memory_format=self._layout)
        x.requires_grad_(True)
        with torch.enable_grad():
            eps = self._net(x, torch.full((len(x),), 1000.0 * t)).sample
            drift = -0.5 * _beta(t) * (x - eps / _sigma(t))
            back = torch.autograd.grad((drift * self._probe).sum(), x)[0]
        divergence = (back * self._probe).flatten(1).sum(1)
        return np.concatenate([drift.detach().contiguous().numpy().reshape(-1), divergence.numpy()]).astype(np.float64)

    def bits(self, tolerance: float, method: str = "RK45") -> np.ndarray:
        """Bits per dimension ``[B]`` without the grey levels' constant, by this method of `scipy.integrate`."""
        count, size, dim = len(self._x), self._x.numel(), self._x[0].numel()
        start = np.concatenate([self._x.contiguous().numpy().reshape(-1), np.zeros(count)])
        self.calls = 0
        found = integrate.solve_ivp(self._slope, (_START, 1.0), start, rtol=tolerance, atol=tolerance, method=method)
        if not found.success:
            raise FloatingPointError(found.message)
        end, change = found.y[:size, -1].reshape(count, dim), found.y[size:, -1]
        nats = -0.5 * np.sum(end**2, axis=1) - 0.5 * dim * np.log(2 * np.pi) + change
        return -nats / dim / np.log(2)


def _tolerance() -> Job:
    calls: dict[str, int] = {}

    def make(layout: torch.memory_format) -> Callable[[], object]:
        flow = _Flow(layout)

        def run() -> np.ndarray:
            found = flow.bits(shapes.TOLERANCE)
            calls[str(layout)] = flow.calls
            return found

        return run

    job = best_layout(make, shapes.LIKELIHOOD_IMAGES)
    return Job(job.run, job.units, None, {**job.facts, "network_calls": calls})


_METHODS = ("RK45", "DOP853")
_TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 5e-6, 3e-6, 2e-6, 1e-6, 3e-7)


def _at(tolerance: float, method: str, layout: torch.memory_format) -> Callable[[], object]:
    return functools.partial(_Flow(layout).bits, tolerance, method)


def _error() -> Job:
    """The method with the fewest calls of those at the loosest tolerance within the wanted error of a tight one."""
    use_all_cores()
    flow = _Flow(torch.contiguous_format)
    exact = flow.bits(1e-7)
    tried: dict[str, dict[float, float]] = {method: {} for method in _METHODS}
    best: dict[str, Any] = {}
    for method in _METHODS:
        for tolerance in _TOLERANCES:
            error = tried[method][tolerance] = float(np.max(np.abs(flow.bits(tolerance, method) - exact)))
            if best and flow.calls >= best["network_calls"]:
                break
            if error <= shapes.WANTED_ERROR:
                best = {"method": method, "tolerance": tolerance, "largest_error": error, "network_calls": flow.calls}
                break
    if not best:
        raise ValueError(f"no tolerance within {shapes.WANTED_ERROR} bits/dim: {tried}")
    make = functools.partial(_at, best["tolerance"], best["method"])
    return best_layout(make, shapes.LIKELIHOOD_IMAGES, **best, tried=tried)


JOBS: dict[str, Callable[[], Job]] = {"tolerance": _tolerance, "error": _error}
