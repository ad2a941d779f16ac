"""What a program's compiler is told on a platform whose defaults do not suit it."""

from __future__ import annotations

import jax

# XLA hands convolutions, products and sums on a CPU to libraries, each of which can be turned off. YNNPACK sums along
# leading axes, of norms and of biases' gradients, up to ten times as fast as XLA's own loops; its convolutions and
# their gradients are the slowest of all.
_SUMS: dict[str, str | bool | int] = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}

CONVOLUTIONS: dict[str, dict[str, str | bool | int]] = {
    # Eigen convolves: of what trains.
    "default": _SUMS,
    # At a core's speed between 32 channels or more, and each call costs more than a small layer takes. On x86 and from
    # jaxlib 0.11 on; elsewhere the same as the default. jaxlib 0.11 cannot store such a program: it warns where there
    # is a compilation cache, and the next process compiles again.
    "onednn": {**_SUMS, "xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True},
    # XLA's own choice, for all of it: of what is evaluated. Loops between the libraries' calls use whole registers
    # where a CPU has AVX-512, and not the halves that LLVM prefers for the sake of older ones.
    "ynnpack": {"xla_cpu_prefer_vector_width": 512},
}
"""By the library that convolves."""


def compiler_options(convolutions: str = "default") -> dict[str, str | bool | int] | None:
    """``compiler_options`` for `jax.jit`: those of `CONVOLUTIONS` on a CPU, None elsewhere."""
    return CONVOLUTIONS[convolutions] if jax.default_backend() == "cpu" else None
