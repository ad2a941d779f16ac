"""What a program's compiler is told on a platform whose defaults do not suit it."""

from __future__ import annotations

import jax

CONVOLUTIONS: dict[str, dict[str, str]] = {
    "default": {},
    # XLA hands convolutions of float32 on a CPU to one of two libraries. The default one is at its best in wide
    # networks at their first pass; at the gradients of narrow ones (a flow's subnets) the other is 2 to 4 times faster.
    "eigen": {"xla_cpu_experimental_ynn_fusion_type": ""},
}


def compiler_options(convolutions: str) -> dict[str, str] | None:
    """``compiler_options`` for `jax.jit`: those of `CONVOLUTIONS` on a CPU, None elsewhere or for the default."""
    options = CONVOLUTIONS[convolutions]
    return options if options and jax.default_backend() == "cpu" else None
