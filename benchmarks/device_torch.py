"""The peer of `benchmarks.device_unet`: diffusers' `UNet2DModel` under `torch.compile`; started by it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.device_items import FULL, SMALL, Item, Sizes, run_items, timed

MISSING = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(_: Any) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _settings() -> None:
    """The fast settings of PyTorch: as JAX's defaults, float32 products may use the matrix units' short form."""
    import torch

    # Compiled programs of another item's network must not count against the limit of recompilations.
    torch._dynamo.reset()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def _unet(sizes: Sizes) -> Any:
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    from benchmarks import pairs

    chosen = pairs.TINY if sizes.small else pairs.PAPER
    net = UNet2DModel(**chosen.diffusers_fields()).to(_device())
    return net.to(memory_format=torch.channels_last), chosen


def device(sizes: Sizes) -> dict[str, Any]:
    """What computes."""
    import diffusers
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    net, chosen = _unet(sizes)
    counted = sum(p.numel() for p in net.parameters())
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"kind": name, "network": chosen.name, "parameters": counted, **versions}


def peak(sizes: Sizes) -> dict[str, Any]:
    """Operations a second of a product of two square matrices of random numbers, in bfloat16."""
    import torch

    n = sizes.matrix
    a, b = (torch.randn(n, n, device=_device(), dtype=torch.bfloat16) for _ in range(2))
    times = timed(lambda: a @ b, _wait, sizes)
    return {"side_length": n, "flops_per_s": 2.0 * n**3 / times["seconds"], "time": times}


def _autocast(dtype: str) -> Any:
    import torch

    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(_device().type, dtype=torch.bfloat16)


def _clean(sizes: Sizes, batch: int, shape: tuple[int, int, int]) -> Any:
    import torch

    x = torch.randn(batch, shape[2], *shape[:2], device=_device())
    return x.contiguous(memory_format=torch.channels_last)


def _first(run: Callable[[], Any]) -> float:
    """Seconds of the first call, which compiles."""
    start = time.perf_counter()
    _wait(run())
    return time.perf_counter() - start


def train(dtype: str, *, large: bool = False, whole: bool = False, mode: str | None = None) -> Item:
    """Images a second of a training step with the parts of ours: loss, gradient, clipping, Adam (fused), average.

    Args:
      dtype: of the arithmetic, by autocast.
      large: the larger batch.
      whole: parameters, gradients and moments in bfloat16 too: less work than ours, for the peer at its fastest.
      mode: of `torch.compile`.
    """

    def item(sizes: Sizes) -> dict[str, Any]:
        import torch

        _settings()
        batch = sizes.large_batch if large else sizes.batch
        net, chosen = _unet(sizes)
        if whole:
            net = net.to(torch.bfloat16)
        params = list(net.parameters())
        average = [p.detach().clone() for p in params]
        optimizer = torch.optim.Adam(params, lr=1e-5, fused=True)
        model = torch.compile(net, mode=mode)
        clean = _clean(sizes, batch, chosen.shape)
        betas = torch.linspace(1e-4, 0.02, 1000, device=_device())
        alpha = torch.cumprod(1 - betas, 0)

        def run() -> Any:
            t = torch.randint(0, 1000, (batch,), device=_device())
            eps = torch.randn_like(clean)
            a = alpha[t][:, None, None, None]
            x = (a.sqrt() * clean + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
            with contextlib.nullcontext() if whole else _autocast(dtype):
                out = model(x.to(net.dtype), t).sample
            loss = torch.nn.functional.mse_loss(out.float(), eps)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1e-4)
            return loss

        compile_s = _first(run)
        times = timed(run, _wait, sizes)
        if not torch.isfinite(run()).item():
            raise FloatingPointError("the loss is not finite")
        rate = batch / times["seconds"]
        found = {"batch": batch, "dtype": dtype, "images_per_s": rate, "first_call_s": compile_s, "time": times}
        if torch.cuda.is_available():
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
        return found

    return item


def forward(dtype: str) -> Item:
    """Images a second of one pass; in bfloat16 the parameters are too, which is the fastest."""

    def item(sizes: Sizes) -> dict[str, Any]:
        import torch

        _settings()
        net, chosen = _unet(sizes)
        net = net.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).eval().requires_grad_(False)
        model = torch.compile(net)
        x = _clean(sizes, sizes.sampled, chosen.shape).to(net.dtype)
        t = torch.randint(0, 1000, (sizes.sampled,), device=_device())

        def run() -> Any:
            with torch.inference_mode():
                return model(x, t).sample

        compile_s = _first(run)
        times = timed(run, _wait, sizes)
        rate = sizes.sampled / times["seconds"]
        return {
            "batch": sizes.sampled, "dtype": dtype, "images_per_s": rate, "first_call_s": compile_s, "time": times
        }  # fmt: skip

    return item


def sampling(sizes: Sizes) -> dict[str, Any]:
    """Images a second of DDIM with diffusers' scheduler, in bfloat16."""
    import torch
    from diffusers import DDIMScheduler

    _settings()
    net, chosen = _unet(sizes)
    net = net.to(torch.bfloat16).eval().requires_grad_(False)
    model = torch.compile(net)
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    scheduler.set_timesteps(sizes.steps)
    start = _clean(sizes, sizes.sampled, chosen.shape)

    def run() -> Any:
        with torch.inference_mode():
            x = start
            for t in scheduler.timesteps:
                rows = torch.full((sizes.sampled,), int(t), device=_device())
                out = model(x.to(net.dtype), rows).sample
                x = scheduler.step(out.float(), t, x).prev_sample
            return x

    compile_s = _first(run)
    times = timed(run, _wait, sizes)
    rate = sizes.sampled / times["seconds"]
    found = {"batch": sizes.sampled, "steps": sizes.steps, "images_per_s": rate, "first_call_s": compile_s}
    return {**found, "time": times}


ITEMS: dict[str, Item] = {
    "device": device,
    "peak bfloat16": peak,
    "train bfloat16": train("bfloat16"),
    "train bfloat16, large batch": train("bfloat16", large=True),
    "train bfloat16 parameters": train("bfloat16", whole=True),
    "train bfloat16, max-autotune": train("bfloat16", mode="max-autotune-no-cudagraphs"),
    "train float32": train("float32"),
    "forward bfloat16": forward("bfloat16"),
    "forward float32": forward("float32"),
    "sample bfloat16": sampling,
}


def _not_installed(sizes: Sizes) -> dict[str, Any]:
    return {"status": "skipped", "reason": f"not installed: {', '.join(MISSING)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--items", nargs="+", required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    # The networks are described in a module that imports JAX; it must not take this process a part of the device.
    os.environ["JAX_PLATFORMS"] = "cpu"
    items = dict.fromkeys(ITEMS, _not_installed) if MISSING else ITEMS
    sizes = SMALL if options.small else FULL
    run_items(items, options.items, options.lines, options.deadline, "peer", sizes)


if __name__ == "__main__":
    main()
