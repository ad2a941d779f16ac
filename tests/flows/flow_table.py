"""Every bijection of the package in one table, and random parameters for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_privacy.flows.actnorm import ActNorm, ClassGaussian
from diffusion_privacy.flows.bijection import Bijection
from diffusion_privacy.flows.chain import Chain, Flatten, Split, Stack
from diffusion_privacy.flows.cinn import FlowConfig, build
from diffusion_privacy.flows.coupling import Coupling, coupling
from diffusion_privacy.flows.mixing import Mixing, Permutation
from diffusion_privacy.flows.spline import Spline
from diffusion_privacy.flows.squeeze import Squeeze
from diffusion_privacy.flows.subnets import ConvNet, DenseNet, GlowNet

K = 3
IMAGE, VECTOR = (4, 2, 3), (5,)


def conv(kind: str) -> Coupling:
    return coupling(kind, IMAGE, ConvNet(4), K, 1.5, Spline(4, 3.0))


def dense(kind: str) -> Coupling:
    return coupling(kind, VECTOR, DenseNet(6), K, 1.5, Spline(4, 3.0))


def small_flow(**changes: object) -> Bijection:
    config = FlowConfig((4, 4, 1), K, depths=(1, 2), dense_depth=1, conv_width=4, dense_width=6)
    return build(dataclasses.replace(config, **changes))


TABLE: dict[str, Callable[[], Bijection]] = {
    "actnorm-image": lambda: ActNorm(IMAGE),
    "actnorm-vector": lambda: ActNorm(VECTOR),
    "class-gaussian": lambda: ClassGaussian(VECTOR, K),
    "checkerboard": lambda: Squeeze(IMAGE, "checkerboard"),
    "haar": lambda: Squeeze(IMAGE, "haar"),
    "flatten": lambda: Flatten(IMAGE),
    "permutation": lambda: Permutation(IMAGE, 7),
    "lu": lambda: Mixing(IMAGE, "lu"),
    "orthogonal": lambda: Mixing(VECTOR, "orthogonal"),
    "glow-conv": lambda: conv("glow"),
    "rnvp-conv": lambda: conv("rnvp"),
    "gin-conv": lambda: conv("gin"),
    "spline-conv": lambda: conv("spline"),
    "glow-conv-products": lambda: coupling("glow", IMAGE, GlowNet(4, matrix_products=True), K, 1.5, Spline(4, 3.0)),
    "mixture-conv": lambda: conv("mixture"),
    "mixture-conv-products": lambda: coupling(
        "mixture", IMAGE, GlowNet(4, matrix_products=True, last=1), K, 1.5, Spline(4, 3.0)
    ),
    "glow-dense": lambda: dense("glow"),
    "rnvp-dense": lambda: dense("rnvp"),
    "gin-dense": lambda: dense("gin"),
    "spline-dense": lambda: dense("spline"),
    "mixture-dense": lambda: dense("mixture"),
    "stack": lambda: Stack(dense("glow"), 3, 1),
    "stack-scan": lambda: Stack(dense("glow"), 3, 1, scan=True),
    "split": lambda: Split((2, 2, 4), Chain((Squeeze((2, 2, 3)), Flatten((1, 1, 12))))),
    "cinn": lambda: small_flow(),
    "cinn-everything": lambda: small_flow(
        splits=(True,), squeeze="haar", mixing="lu", actnorm=True, class_latents=True, scan=True
    ),
    "cinn-glow-net": lambda: small_flow(
        conv_net="glow", depths=(0, 2), mixing="lu", dense_mixing=False, actnorm=True, class_latents=True
    ),
    # Stretches by e^(2·clamp): with more than this the Jacobian itself is not known to 1e-4 in float32.
    "cinn-mixture": lambda: small_flow(
        conv_net="glow", conv_last=1, coupling="mixture", mixture_components=2, clamp=0.5, actnorm=True, dense_depth=0
    ),
    "cinn-spline-orthogonal": lambda: small_flow(coupling="spline", mixing="orthogonal", dense_depth=0),
}


def random_params(bijection: Bijection, seed: int = 0, scale: float = 0.3):
    """Parameters away from the identity start, drawn on the host: compiled draws would take most of the time here."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        # Kernels keep the size of their input; everything else is `scale`.
        fan_in = math.prod(leaf.shape[-4:-1]) if "kernel" in jax.tree_util.keystr(path) else scale**-2
        return jnp.asarray(generator.normal(size=leaf.shape) / math.sqrt(fan_in), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(bijection.init, jax.random.key(0)))


def fast_jit(fn):
    """Compiled without optimisation: these programs run once, and the compiler would take most of the time."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})
