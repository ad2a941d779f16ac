"""Operations counted from a program against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from diffusion_privacy.stages import operations


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_products_and_convolutions():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert operations.count(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert operations.count(lambda a: jnp.einsum("bij,bjk->bik", a, a), jnp.zeros((2, 4, 4))) == 2 * 2 * 4**3
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 6))
    assert operations.count(_conv, x, kernel) == 2 * 2 * 64 * 9 * 3 * 6
    assert operations.count(lambda x, k: _conv(x, k, 2), x, kernel) == 2 * 2 * 16 * 9 * 3 * 6


def test_loops_and_calls():
    a = jnp.zeros((4, 4))
    one = 2 * 4**3

    def scanned(a):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, length=5)[0]

    assert operations.count(scanned, a) == 5 * one
    assert operations.count(lambda a: jax.vmap(lambda v: a @ v)(a), a) == one
    with pytest.raises(ValueError, match="while"):
        operations.count(lambda a: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ a, a), a)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_takes_twice_the_forward_pass(stride):
    """The product with respect to the input and the one with respect to the kernel; a stride leaves holes in one."""
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
    ahead = operations.count(lambda x, k: _conv(x, k, stride), x, kernel)

    def back(x, kernel, g):
        return jax.vjp(lambda x, k: _conv(x, k, stride), x, kernel)[1](g)

    g = jnp.zeros((2, 8 // stride, 8 // stride, 4))
    assert operations.count(back, x, kernel, g) - ahead == pytest.approx(2 * ahead)
