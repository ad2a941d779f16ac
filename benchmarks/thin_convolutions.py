"""A flow's subnet on a CPU: XLA's convolutions beside `flows.products`, in float32 and with operands in bfloat16.

    taskset -c 0 python -m benchmarks.thin_convolutions

One subnet of `flows.subnets.GlowNet` at 7x7, 8 to 128 to 128 to 16 channels with a condition of 10, batch 32: forward
pass and gradient of its parameters and its input. The best of five rounds of ten, so that other work on the machine
disturbs least.
"""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_privacy.flows.subnets import GlowNet
from diffusion_privacy.types import Array, PyTree

BATCH, SIDE, CHANNELS, CLASSES, WIDTH, OUTPUTS = 32, 7, 8, 10, 128, 16
FORMS = {
    "convolutions, float32": GlowNet(WIDTH),
    "matrix products, float32": GlowNet(WIDTH, matrix_products=True),
    "matrix products, bfloat16": GlowNet(WIDTH, "bfloat16", matrix_products=True),
}


def seconds(net: GlowNet) -> float:
    """Of one forward pass with its gradient."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = net.init(keys[0], (SIDE, SIDE, CHANNELS), CLASSES, OUTPUTS)
    x = jax.random.normal(keys[1], (BATCH, SIDE, SIDE, CHANNELS))
    cond = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)

    @jax.jit
    def gradient(params: PyTree, x: Array) -> Any:
        return jax.grad(lambda p, x: jnp.sum(jnp.square(net.apply(p, x, cond) + 1)), argnums=(0, 1))(params, x)

    jax.block_until_ready(gradient(params, x))
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            jax.block_until_ready(gradient(params, x))
        rounds.append((time.perf_counter() - start) / 10)
    return min(rounds)


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 1)
    rates = {name: BATCH / seconds(net) for name, net in FORMS.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} images/s")
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
