"""Every bijection of the package held to one contract: inverse and logdet, at the data and at release noise."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_table import IMAGE, TABLE, K, fast_jit, random_params

from diffusion_privacy import flows
from diffusion_privacy.flows.actnorm import ActNorm
from diffusion_privacy.flows.bijection import Bijection, bind, size
from diffusion_privacy.flows.coupling import COUPLINGS, Coupling
from diffusion_privacy.flows.mixing import PARAMETERISATIONS, Mixing
from diffusion_privacy.flows.squeeze import PATTERNS, Squeeze
from diffusion_privacy.flows.subnets import DenseNet

# Compositions of rows that are checked by themselves; compiling them takes seconds.
SLOW = (
    "cinn",
    "cinn-glow-net",
    "cinn-mixture",
    "mixture-conv",
    "cinn-spline-orthogonal",
    "spline-conv",
    "rnvp-conv",
    "rnvp-dense",
    "gin-conv",
    "stack",
)
ROWS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in TABLE]
# The one large row that is fast in float64, where a wrong formula shows, is slow in the other precision.
ROWS32 = [pytest.param(r.values[0], marks=pytest.mark.slow) if r.values[0] == "cinn-everything" else r for r in ROWS]


def measure(bijection: Bijection, seed: int = 0) -> dict[str, float]:
    """Largest violations of the contract at one record, at the data and after release noise of 3 prior deviations."""
    d = size(bijection.shape)
    x = jax.random.normal(jax.random.key(seed + 2), bijection.shape)
    noise = 3.0 * jax.random.normal(jax.random.key(seed + 3), bijection.out_shape)
    cond = jnp.asarray([0.2, -1.0, 0.7], x.dtype)
    flow = bind(bijection, random_params(bijection, seed))
    inverse = fast_jit(lambda z: flow.inverse(z, cond))

    @fast_jit
    def forward(x):
        jacobian, (z, logdet) = jax.jacrev(lambda v: (flow.forward(v, cond)[0], flow.forward(v, cond)), has_aux=True)(x)
        return z, logdet, jacobian.reshape(d, d)

    def errors(x, z, logdet, jacobian, suffix):
        back, inverse_logdet = inverse(z)
        again, *_ = forward(back)
        return {
            f"round trip{suffix}": np.max(np.abs(back - x)) / (1 + np.max(np.abs(x))),
            f"round trip back{suffix}": np.max(np.abs(again - z)) / (1 + np.max(np.abs(z))),
            f"logdet{suffix}": abs(logdet - np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]),
            f"inverse logdet{suffix}": abs(logdet + inverse_logdet),
        }

    z, *rest = forward(x)
    far, _ = inverse(z + noise)
    return errors(x, z, *rest, "") | errors(far, *forward(far), " at release noise")


def check(bijection: Bijection, tolerance: float) -> None:
    for name, error in measure(bijection).items():
        assert error < tolerance, f"{name}: {error:.2g}"


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("name", ROWS)
def test_inverse_and_logdet_float64(name):
    with jax.enable_x64(True):
        check(TABLE[name](), 1e-9)


@pytest.mark.parametrize("name", ROWS32)
def test_inverse_and_logdet_float32(name):
    check(TABLE[name](), 1e-4)


def parts(value):
    """Types of all dataclasses inside ``value``, itself included."""
    if isinstance(value, tuple):
        return set().union(*(parts(v) for v in value)) if value else set()
    if not dataclasses.is_dataclass(value):
        return set()
    return {type(value)}.union(*(parts(getattr(value, f.name)) for f in dataclasses.fields(value)))


def test_the_table_holds_every_bijection_and_every_kind_of_it():
    built = [make() for make in TABLE.values()]
    found = set().union(*(parts(bijection) for bijection in built))
    rooms = [importlib.import_module(f"{flows.__name__}.{m.name}") for m in pkgutil.iter_modules(flows.__path__)]
    declared = {
        kind
        for room in rooms
        for kind in vars(room).values()
        if dataclasses.is_dataclass(kind) and {"init", "forward", "inverse", "out_shape"} <= set(dir(kind))
    }
    assert {kind.__name__ for kind in declared - found} == set()
    assert len(declared) >= 9
    assert {f"{kind}-{net}" for kind in COUPLINGS for net in ("conv", "dense")} <= set(TABLE)
    assert {b.pattern for b in built if isinstance(b, Squeeze)} == set(PATTERNS)
    assert {b.parameterisation for b in built if isinstance(b, Mixing)} == set(PARAMETERISATIONS)


def test_the_check_rejects_a_logdet_that_counts_one_position():
    class Faulty(ActNorm):
        def _logdet(self, params, x):
            return jnp.sum(params["log_scale"])

    with pytest.raises(AssertionError, match="logdet"):
        check(Faulty(IMAGE), 1e-4)


def test_the_check_rejects_an_inverse_with_the_halves_in_the_wrong_order():
    class Faulty(Coupling):
        def inverse(self, params, y, cond):
            return super().inverse({"first": params["second"], "second": params["first"]}, y, cond)

    with pytest.raises(AssertionError, match="round trip"):
        check(Faulty((4,), DenseNet(6), K), 1e-4)
