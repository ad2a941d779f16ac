"""The same flow in FrEIA (github.com/vislearn/FrEIA) on PyTorch: as many parameters, the same couplings."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import FrEIA.framework as ff
import FrEIA.modules as fm
import torch
from torch import nn

from benchmarks.job import Job
from benchmarks.peers.common import best_layout, best_piece, tensor
from benchmarks.shapes import FLOW_BATCH, FLOW_IMAGES, images


def _conv(inputs: int, outputs: int) -> nn.Module:
    layers = [nn.Conv2d(inputs, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(128, outputs, 3, padding=1))


def _dense(inputs: int, outputs: int) -> nn.Module:
    layers = [nn.Linear(inputs, 392), nn.ReLU(), nn.Linear(392, 392), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(392, outputs))


def network() -> Any:
    """Two stages of four couplings at 14x14 and 7x7, two dense couplings."""
    torch.manual_seed(0)
    nodes: list[Any] = [ff.InputNode(1, 28, 28)]
    conditions = [ff.ConditionNode(10, 14, 14), ff.ConditionNode(10, 7, 7), ff.ConditionNode(10)]

    def couplings(subnet: Callable[[int, int], nn.Module], depth: int, condition: Any) -> None:
        for k in range(depth):
            fields = {"subnet_constructor": subnet, "clamp": 1.5}
            nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, fields, conditions=condition))
            nodes.append(ff.Node(nodes[-1], fm.PermuteRandom, {"seed": k}))

    for condition in conditions[:2]:
        nodes.append(ff.Node(nodes[-1], fm.IRevNetDownsampling, {}))
        couplings(_conv, 4, condition)
    nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
    couplings(_dense, 2, conditions[2])
    nodes.append(ff.OutputNode(nodes[-1]))
    net = ff.GraphINN([*nodes, *conditions])
    for name, value in net.named_parameters():
        if name.endswith("4.weight"):
            value.data *= 0.05
    return net


def _condition(label: Any) -> torch.Tensor:
    return nn.functional.one_hot(torch.from_numpy(label), 10).float()


def _spread(cond: torch.Tensor) -> list[torch.Tensor]:
    grid = cond[:, :, None, None]
    return [grid.expand(-1, -1, 14, 14), grid.expand(-1, -1, 7, 7), cond]


def _logp(z: torch.Tensor, logdet: torch.Tensor) -> torch.Tensor:
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi) + logdet


_SCALE = math.sqrt(12.0)


def _dequantised(x: torch.Tensor) -> torch.Tensor:
    levels = (x + 1) * 127.5 + torch.rand_like(x)
    return (levels / 256 - 0.5) * _SCALE


def _quantised(y: torch.Tensor) -> torch.Tensor:
    return (2 * ((y / _SCALE + 0.5) * 256).floor().clamp(0, 255) / 255 - 1).clamp(-1, 1)


def _train(batch: int) -> Job:
    image, label = images(batch)

    def make(layout: torch.memory_format) -> Callable[[], object]:
        net = network().to(memory_format=layout)
        params = [p for p in net.parameters() if p.requires_grad]
        average = [p.detach().clone() for p in params]
        optimizer = torch.optim.Adam(params, lr=1e-6, fused=True)
        x, cond = tensor(image, layout), _spread(_condition(label))

        def run() -> float:
            z, logdet = net(_dequantised(x), cond)
            loss = -_logp(z, logdet).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1e-3)
            return loss.item()

        return run

    return best_layout(make, batch, parameters=sum(p.numel() for p in network().parameters() if p.requires_grad))


def _encode_with(net: Any, x: torch.Tensor, cond: torch.Tensor, chunk: int) -> torch.Tensor:
    parts = []
    for i in range(0, len(x), chunk):
        z, logdet = net(_dequantised(x[i : i + chunk]), _spread(cond[i : i + chunk]))
        _logp(z, logdet)
        parts.append(z)
    return torch.cat(parts)


def _decode_with(net: Any, z: torch.Tensor, cond: torch.Tensor, chunk: int) -> torch.Tensor:
    parts = [
        _quantised(net(z[i : i + chunk], _spread(cond[i : i + chunk]), rev=True)[0]) for i in range(0, len(z), chunk)
    ]
    return torch.cat(parts)


def _clipped(z: torch.Tensor, radius: float) -> torch.Tensor:
    return z * (radius / z.norm(dim=1, keepdim=True)).clamp(max=1.0)


def _inference(what: str, chunk: int) -> Callable[[torch.memory_format], Callable[[], object]]:
    image, label = images(FLOW_IMAGES)

    def make(layout: torch.memory_format) -> Callable[[], object]:
        net = network().to(memory_format=layout).eval()
        x, cond = tensor(image, layout), _condition(label)
        z = torch.randn(FLOW_IMAGES, 784)

        def run() -> torch.Tensor:
            with torch.inference_mode():
                if what == "encode":
                    return _encode_with(net, x, cond, chunk)
                if what == "decode":
                    return _decode_with(net, z, cond, chunk)
                latent = _clipped(_encode_with(net, x, cond, chunk), 28.0)
                return _decode_with(net, (latent + torch.randn_like(latent)) / 1.4, cond, chunk)

        return run

    return make


def _infer(what: str) -> Job:
    """By 64 or by all images at once, whichever is faster."""
    return best_piece(functools.partial(_inference, what), (64, FLOW_IMAGES), FLOW_IMAGES)


JOBS: dict[str, Callable[[], Job]] = {
    "train_64": functools.partial(_train, FLOW_BATCH),
    "train_512": functools.partial(_train, 512),
    "encode": functools.partial(_infer, "encode"),
    "decode": functools.partial(_infer, "decode"),
    "privatise": functools.partial(_infer, "privatise"),
}
