"""Floating-point operations of a JAX function, counted from its program and not measured.

Counted are products of matrices and convolutions, two operations a multiplication with its addition; everything else is
small beside them in the networks of this project. A convolution's window is counted whole, its padding included, as the
libraries compute it. The count needs no device and no compiler; of a score network's evaluation it is the
same on every platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from diffusion_privacy.training import convolutions


def count(fn: Callable[..., Any], *args: Any) -> float:
    """Operations of one call of ``fn(*args)``; arguments may be layouts (`jax.ShapeDtypeStruct`).

    Raises:
      ValueError: the program holds a loop whose length is not known before it runs.
    """
    # As on an accelerator: what a CPU does instead is the business of the platform and not the network's.
    with convolutions.for_training():
        return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr: Any) -> float:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> float:
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot(eqn)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name == "while":
        inner = sum(_of(part.jaxpr) for part in (eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]))
        if inner:
            raise ValueError("a while loop has no length before it runs; count what it repeats")
        return 0.0
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in eqn.params["branches"])
    times = eqn.params["length"] if name == "scan" else 1
    return times * sum(_of(inner) for inner in _inner(eqn.params))


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that an equation calls; of a custom derivative, the function alone."""
    for key in ("call_jaxpr", "fun_jaxpr", "jaxpr"):
        if key in params:
            return [getattr(params[key], "jaxpr", params[key])]
    return [getattr(v, "jaxpr", v) for v in params.values() if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(eqn: Any) -> float:
    kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
    # rhs_spec: output features, input features of a group, window; an input with holes is not computed on them.
    window = math.prod(kernel[i] for i in spec[1:])
    holes = math.prod(eqn.params["lhs_dilation"])
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * window / holes
