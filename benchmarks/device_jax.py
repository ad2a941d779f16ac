"""This project's side of `benchmarks.device_unet`; started by it."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pairs
from benchmarks.device_items import FULL, SMALL, Item, Sizes, run_items, timed
from benchmarks.device_kernels import kernel_times
from benchmarks.update import Update
from diffusion_privacy.diffusion.samplers import Sampler, sample
from diffusion_privacy.diffusion.sde import DDPM
from diffusion_privacy.stages import operations
from diffusion_privacy.tasks import ScoreTask
from diffusion_privacy.training import sharding
from diffusion_privacy.training.convolutions import plain
from diffusion_privacy.training.state import TrainConfig
from diffusion_privacy.types import Array

_SDE = DDPM()


def pair(sizes: Sizes) -> pairs.UNetPair:
    """The network."""
    return pairs.TINY if sizes.small else pairs.PAPER


def device(sizes: Sizes) -> dict[str, Any]:
    """What computes."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "jax": jax.__version__,
        "network": pair(sizes).name,
        "parameters": pairs.count(pairs.random_params(pair(sizes).network(), pair(sizes).shape)),
    }


def peak(dtype: str, precision: str | None) -> Item:
    """Operations a second of a product of two square matrices of random numbers."""

    def item(sizes: Sizes) -> dict[str, Any]:
        n = sizes.matrix
        a, b = (jax.random.normal(jax.random.key(i), (n * n,), dtype).reshape(n, n) for i in range(2))
        product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
        times = timed(lambda: product(a, b), jax.block_until_ready, sizes)
        return {"side_length": n, "flops_per_s": 2.0 * n**3 / times["seconds"], "time": times}

    return item


def compiled(fn: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
    """The compiled program of a jitted function, with the seconds it took and what XLA says of it."""
    start = time.perf_counter()
    lowered = fn.lower(*args)
    traced = time.perf_counter()
    program = lowered.compile()
    facts: dict[str, Any] = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    facts["xla_flops"] = (cost or {}).get("flops")
    memory = program.memory_analysis()
    if memory is not None:
        facts["temporary_bytes"] = memory.temp_size_in_bytes
    return program, facts


def forward_flops(sizes: Sizes, dtype: str = "bfloat16") -> float:
    """Of one image."""
    chosen = pair(sizes)
    net = chosen.network(dtype)
    layout = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *chosen.shape)), jnp.ones(1))
    return operations.count(net.apply, layout, jnp.zeros((1, *chosen.shape)), jnp.ones(1))


def _training(sizes: Sizes, dtype: str, batch: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """(one update that keeps its state, facts of its compilation)."""
    chosen = pair(sizes)
    task = ScoreTask(chosen.network(dtype), _SDE, batch)
    config = TrainConfig(steps=1_000_000, batch_size=batch, learning_rate=1e-5, ema_decay=0.9999)
    params = pairs.random_params(chosen.network(dtype), chosen.shape)
    images = np.random.default_rng(1).standard_normal((batch, *chosen.shape), np.float32)
    rows = {"image": images, "position": np.arange(batch, dtype=np.int32)}
    run = Update(task, config, params, rows, mesh=sharding.data_mesh(jax.devices()[:1]))
    run.program, facts = compiled(run.program, *run.arguments)
    return run.start, facts


def train(dtype: str, *, large: bool = False) -> Item:
    """Images a second of the training step."""

    def item(sizes: Sizes) -> dict[str, Any]:
        batch = sizes.large_batch if large else sizes.batch
        run, facts = _training(sizes, dtype, batch)
        times = timed(run, jax.block_until_ready, sizes)
        totals, signals = run()
        if np.asarray(signals)[1]:
            raise FloatingPointError("the loss or the gradient is not finite")
        rate = batch / times["seconds"]
        return {
            "batch": batch,
            "dtype": dtype,
            "images_per_s": rate,
            "flops_per_image": 3 * forward_flops(sizes, dtype),
            "flops_per_s": 3 * forward_flops(sizes, dtype) * rate,
            "loss_sum": float(totals["loss"]),
            "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
            "time": times,
            **facts,
        }

    return item


def kernels(sizes: Sizes) -> dict[str, Any]:
    """Where the time of the bfloat16 step goes: the device's kernels of three steps, by name."""
    run, _ = _training(sizes, "bfloat16", sizes.batch)
    jax.block_until_ready(run())
    return {"batch": sizes.batch, "steps": 3, **kernel_times(lambda: [run() for _ in range(3)][-1])}


def forward(dtype: str) -> Item:
    """Images a second of one pass through the network."""

    def item(sizes: Sizes) -> dict[str, Any]:
        chosen, batch = pair(sizes), sizes.sampled
        net = chosen.network(dtype)
        params = jax.device_put(pairs.random_params(net, chosen.shape))
        x = jax.device_put(np.random.default_rng(1).standard_normal((batch, *chosen.shape), np.float32))
        t = jnp.linspace(0.1, 0.9, batch)
        program, facts = compiled(jax.jit(net.apply), params, x, t)
        times = timed(lambda: program(params, x, t), jax.block_until_ready, sizes)
        cost = forward_flops(sizes, dtype)
        rate = batch / times["seconds"]
        found = {"batch": batch, "dtype": dtype, "images_per_s": rate, "flops_per_image": cost, "time": times}
        return {**found, "flops_per_s": cost * rate, **facts}

    return item


def sampling(sizes: Sizes) -> dict[str, Any]:
    """Images a second of DDIM, in bfloat16."""
    chosen, batch = pair(sizes), sizes.sampled
    task = ScoreTask(chosen.network("bfloat16"), _SDE, batch)
    params = jax.device_put(pairs.random_params(chosen.network(), chosen.shape))
    method = Sampler(name="ddim", steps=sizes.steps)

    def draw(params: Any, keys: Array) -> Array:
        return sample(task.score(params), _SDE, method, keys, chosen.shape)

    keys = jax.random.split(jax.random.key(0), batch)
    program, facts = compiled(jax.jit(draw), params, keys)
    times = timed(lambda: program(params, keys), jax.block_until_ready, sizes)
    rate = batch / times["seconds"]
    cost = forward_flops(sizes) * sizes.steps
    return {
        "batch": batch, "steps": sizes.steps, "images_per_s": rate, "flops_per_image": cost,
        "flops_per_s": cost * rate, "time": times, **facts,
    }  # fmt: skip


_CONV = jax.jit(plain)
_CONV_BACK = jax.jit(lambda x, kernel, y: jax.vjp(plain, x, kernel)[1](y))


def convolutions(sizes: Sizes) -> dict[str, Any]:
    """Operations a second of the network's convolutions in bfloat16: forward pass, and both gradients together."""
    rows = []
    for side, inputs, outputs in ((64, 128, 128), (32, 256, 256), (16, 256, 256), (8, 512, 512), (64, 256, 128)):
        side, batch = (8, 2) if sizes.small else (side, sizes.batch)
        x = jax.random.normal(jax.random.key(0), (batch * side * side * inputs,), jnp.bfloat16)
        x = x.reshape(batch, side, side, inputs)
        kernel = jax.random.normal(jax.random.key(1), (9 * inputs * outputs,), jnp.bfloat16)
        kernel = kernel.reshape(3, 3, inputs, outputs)

        y = _CONV(x, kernel)
        work = 2.0 * 9 * inputs * outputs * batch * side * side
        ahead = timed(functools.partial(_CONV, x, kernel), jax.block_until_ready, sizes)
        back = timed(functools.partial(_CONV_BACK, x, kernel, y), jax.block_until_ready, sizes)
        rates = {"forward_flops_per_s": work / ahead["seconds"], "backward_flops_per_s": 2 * work / back["seconds"]}
        rows.append({"side": side, "inputs": inputs, "outputs": outputs, **rates})
    return {"batch": sizes.batch, "rows": rows}


def attention(sizes: Sizes) -> dict[str, Any]:
    """Seconds of attention with its gradient in bfloat16, as the U-Net writes it and by `jax.nn`'s implementations."""
    rows = []
    for tokens, heads, width in ((16, 64, 8), (256, 8, 64), (1024, 4, 64), (4096, 4, 64)):
        batch = 2 if sizes.small else max(1, min(sizes.batch, 2**19 // tokens // heads))
        tokens = min(tokens, 64) if sizes.small else tokens
        draw = jax.random.normal(jax.random.key(0), (3 * batch * tokens * heads * width,), jnp.bfloat16)
        qkv = tuple(draw.reshape(3, batch, tokens, heads, width))
        for form in ("plain", "xla", "cudnn"):
            row = {"tokens": tokens, "heads": heads, "width": width, "batch": batch, "form": form}
            try:
                gradient = jax.jit(jax.grad(_attention(form), argnums=(0, 1, 2)))
                times = timed(functools.partial(gradient, *qkv), jax.block_until_ready, sizes)
                rows.append({**row, "seconds": times["seconds"]})
            except Exception as error:
                # A form that this device or shape does not have is a result.
                rows.append({**row, "error": repr(error)[:300]})
    return {"rows": rows}


def _attention(form: str) -> Callable[..., Array]:
    def plain(q: Array, k: Array, v: Array) -> Array:
        logits = jnp.einsum("bqhc,bkhc->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits, axis=-1).astype(q.dtype), v)

    def square(q: Array, k: Array, v: Array) -> Array:
        out = plain(q, k, v) if form == "plain" else jax.nn.dot_product_attention(q, k, v, implementation=form)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    return square


ITEMS: dict[str, Item] = {
    "device": device,
    "peak bfloat16": peak("bfloat16", None),
    "peak float32": peak("float32", None),
    "peak float32 highest": peak("float32", "highest"),
    "train bfloat16": train("bfloat16"),
    "train bfloat16, large batch": train("bfloat16", large=True),
    "train float32": train("float32"),
    "forward bfloat16": forward("bfloat16"),
    "forward float32": forward("float32"),
    "sample bfloat16": sampling,
    "kernels of train bfloat16": kernels,
    "convolutions": convolutions,
    "attention": attention,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--items", nargs="+", required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    sizes = SMALL if options.small else FULL
    run_items(ITEMS, options.items, options.lines, options.deadline, "ours", sizes)


if __name__ == "__main__":
    main()
