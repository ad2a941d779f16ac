"""Another library for convolutions gives the same numbers; a misspelt one is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.errors import InputError
from diffusion_privacy.flows import convolutions
from diffusion_privacy.training.platform import CONVOLUTIONS, compiler_options
from diffusion_privacy.training.state import TrainConfig


@pytest.mark.parametrize("conv", [convolutions.plain, convolutions.explicit])
def test_libraries_agree_on_a_convolution_and_its_gradients(conv):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 5))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 5, 4))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel)))

    found = [
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), compiler_options=compiler_options(name))(x, kernel)
        for name in CONVOLUTIONS
    ]
    for a, b in zip(*(jax.tree.leaves(f) for f in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_an_unknown_library_is_named():
    with pytest.raises(InputError, match=r"training\.convolutions must be one of default, eigen"):
        TrainConfig(steps=1, batch_size=1, convolutions="fast")
