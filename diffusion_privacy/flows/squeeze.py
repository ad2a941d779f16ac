"""2x2 squeezes: four neighbouring pixels become four channels, with volume kept."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from diffusion_privacy.flows.bijection import Shape, batch_shape, constant_logdet
from diffusion_privacy.types import Array, PyTree

PATTERNS = ("checkerboard", "haar")


@dataclasses.dataclass(frozen=True)
class Squeeze:
    """(h, w, c) -> (h/2, w/2, 4c), an orthonormal map: logdet = 0.

    Output channel k·c + j comes from input channel j. ``checkerboard``: k counts the pixels of the 2x2 block in reading
    order (Dinh et al., arXiv 1605.08803, section 3.6). ``haar``: k counts the sub-bands average, left−right,
    top−bottom, diagonal, each with weights ±1/2 (Ardizzone et al., arXiv 1907.02392, section 3.1).
    """

    shape: Shape
    pattern: str = "checkerboard"

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {PATTERNS}, got {self.pattern!r}")
        if len(self.shape) != 3 or self.shape[0] % 2 or self.shape[1] % 2:
            raise ValueError(f"a squeeze needs an even height and width, got {self.shape}")

    @property
    def out_shape(self) -> Shape:
        h, w, c = self.shape
        return h // 2, w // 2, 4 * c

    def init(self, key: Array) -> PyTree:
        del key
        return {}

    def forward(self, params: PyTree, x: Array, cond: Array | None) -> tuple[Array, Array]:
        h, w, c = self.shape
        lead = batch_shape(x, self.shape)
        blocks = x.reshape(*lead, h // 2, 2, w // 2, 2, c)
        pixels = [blocks[..., :, i, :, j, :] for i in (0, 1) for j in (0, 1)]
        bands = _haar(pixels) if self.pattern == "haar" else pixels
        return jnp.concatenate(bands, axis=-1), constant_logdet(x, self.shape)

    def inverse(self, params: PyTree, y: Array, cond: Array | None) -> tuple[Array, Array]:
        h, w, c = self.shape
        lead = batch_shape(y, self.out_shape)
        bands = jnp.split(y, 4, axis=-1)
        a, b, d, e = _haar(bands) if self.pattern == "haar" else bands
        rows = [jnp.stack([a, b], axis=-2), jnp.stack([d, e], axis=-2)]
        return jnp.stack(rows, axis=-4).reshape(*lead, h, w, c), constant_logdet(y, self.out_shape)


def _haar(p: list[Array]) -> list[Array]:
    """The 4x4 Hadamard matrix over 2: symmetric and orthonormal, hence its own inverse."""
    a, b, c, d = p
    return [(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
