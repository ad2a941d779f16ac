"""The same U-Net in diffusers on PyTorch, with equal weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DModel

from benchmarks import pairs, shapes
from benchmarks.job import Job
from benchmarks.peers.common import best_layout, best_piece, tensor

_PAIR = pairs.SMALL
_FEW = 8
"""Images at a time, as our side has them; the whole batch is tried too, and the faster one counts."""


def network(pair: pairs.UNetPair, layout: torch.memory_format, *, mild: bool = False) -> Any:
    """With the weights that our side has, `pairs.mild_params` or `pairs.random_params`."""
    net = UNet2DModel(**pair.diffusers_fields())
    draw = pairs.mild_params if mild else pairs.random_params
    weights = pairs.diffusers_weights(pair, draw(pair.network(), pair.shape))
    net.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()})
    return net.to(memory_format=layout)


def _noise(count: int, layout: torch.memory_format) -> torch.Tensor:
    return tensor(np.random.default_rng(1).standard_normal((count, *_PAIR.shape), np.float32), layout)


def _forward() -> Job:
    batch = shapes.UNET_BATCH

    def make(piece: int, layout: torch.memory_format) -> Callable[[], object]:
        net, x, t = network(_PAIR, layout).eval(), _noise(batch, layout), torch.linspace(100, 900, batch)

        def run() -> list[torch.Tensor]:
            with torch.inference_mode():
                return [net(a, b).sample for a, b in zip(x.split(piece), t.split(piece), strict=True)]

        return run

    return best_piece(_by_piece(make), (_FEW, batch), batch, parameters=_PAIR.parameters)


def _by_piece(
    make: Callable[[int, torch.memory_format], Callable[[], object]],
) -> Callable[[int], Callable[[torch.memory_format], Callable[[], object]]]:
    return lambda piece: functools.partial(make, piece)


def _train() -> Job:
    batch = shapes.UNET_BATCH
    image = shapes.images(batch, _PAIR.shape)[0]

    def make(layout: torch.memory_format) -> Callable[[], object]:
        net, clean = network(_PAIR, layout), tensor(image, layout)
        params = list(net.parameters())
        average = [p.detach().clone() for p in params]
        optimizer = torch.optim.Adam(params, lr=1e-6, fused=True)
        scheduler = DDPMScheduler(num_train_timesteps=1000)

        def run() -> float:
            t, eps = torch.randint(0, 1000, (batch,)), torch.randn_like(clean)
            loss = torch.nn.functional.mse_loss(net(scheduler.add_noise(clean, eps, t), t).sample, eps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1e-3)
            return loss.item()

        return run

    return best_layout(make, batch, parameters=_PAIR.parameters)


def _steps(net: Any, scheduler: Any, x: torch.Tensor, times: Any) -> torch.Tensor:
    with torch.inference_mode():
        for t in times:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return x


def _ddim() -> Job:
    def make(piece: int, layout: torch.memory_format) -> Callable[[], object]:
        net, scheduler = network(_PAIR, layout).eval(), DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
        scheduler.set_timesteps(shapes.DDIM_STEPS)
        starts = _noise(shapes.SAMPLED, layout).split(piece)
        return lambda: [_steps(net, scheduler, start, scheduler.timesteps) for start in starts]

    return best_piece(_by_piece(make), (_FEW, shapes.SAMPLED), shapes.SAMPLED)


def _sweep() -> Job:
    """Level by level, as the reference of arXiv 2306.01363 goes about it, the draws of a level whole or in pieces."""

    def make(piece: int, layout: torch.memory_format) -> Callable[[], object]:
        net, scheduler = network(_PAIR, layout).eval(), DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
        scheduler.set_timesteps(shapes.SWEEP_STEPS)
        record = tensor(shapes.images(1, _PAIR.shape)[0], layout)

        def run() -> list[torch.Tensor]:
            found = []
            for level in shapes.SWEEP_LEVELS:
                times = scheduler.timesteps[-level:]
                clean = record.expand(shapes.SWEEP_DRAWS, -1, -1, -1)
                noisy = scheduler.add_noise(clean, torch.randn_like(clean), times[:1].expand(len(clean)))
                for start in noisy.contiguous(memory_format=layout).split(piece):
                    found.append(_steps(net, scheduler, start, times).flatten(1).mean(1))
            return found

        return run

    return best_piece(_by_piece(make), (_FEW, shapes.SWEEP_DRAWS), sum(shapes.SWEEP_LEVELS) * shapes.SWEEP_DRAWS)


JOBS: dict[str, Callable[[], Job]] = {"forward": _forward, "train": _train, "ddim": _ddim, "sweep": _sweep}
