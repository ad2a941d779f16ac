"""Fingerprints that are planted in a private record, so that its return in a generated image can be recognised.

Dombrowski & Kainz (arXiv 2306.01363) call them synthetic anatomic fingerprints. Their code offers a mid-grey circle
with its centre drawn from one generator that runs through the whole data set, so that a position depends on how many
images came before it and the circle may be cut off by the edge; a source image blended in by an FFT Poisson solver at a
fixed place; and no change at all. Here a position is a function of one key (and of the sizes), the mark lies fully
inside, and the pixels that it covers come back as a mask.

A fingerprint has two pure parts: `place` draws where it goes and never sees the image; `draw` puts it there. Both work
for one image and are vmapped by `plant_batch`; both may be jitted. A new kind needs these two methods and a line in
`FINGERPRINTS`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array

Params = dict[str, Array]
Shape = tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Planted:
    """A marked image. A pytree: a batch of them has a leading axis on every array.

    Attributes:
      image: float32[H, W, C] in [-1, 1].
      mask: bool[H, W], the pixels that the fingerprint covers.
      params: where it was put, int32 scalars: ``row`` and ``col`` (centre of a disc, upper left corner of a patch or
        glyph), ``radius`` of a disc; empty without a fingerprint.
    """

    image: Array
    mask: Array
    params: Params


class Fingerprint(Protocol):
    """What can be planted in one image."""

    def place(self, key: Array, shape: Shape) -> Params:
        """Position for an image of shape ``(H, W, C)``, from the key alone; InputError when it cannot fit."""
        ...

    def draw(self, image: Array, params: Params) -> tuple[Array, Array]:
        """``(image[H, W, C], mask[H, W])`` with the fingerprint at ``params``."""
        ...


def _corner(key: Array, shape: Shape, height: int, width: int, name: str) -> Params:
    """Upper left corner of a height x width window, uniform over the places where it lies fully inside."""
    if height > shape[0] or width > shape[1]:
        raise InputError(
            f"fingerprint: a {name} of {height}x{width} expected a larger image, got {shape[0]}x{shape[1]}"
        )
    rows, cols = jax.random.split(key)
    return {
        "row": jax.random.randint(rows, (), 0, shape[0] - height + 1, jnp.int32),
        "col": jax.random.randint(cols, (), 0, shape[1] - width + 1, jnp.int32),
    }


def _grey(value: float, name: str) -> None:
    if not -1.0 <= value <= 1.0:
        raise InputError(f"fingerprint.{name}.value: expected a grey value in [-1, 1], got {value}")


def _pixels(value: int, least: int, field: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"fingerprint.{field}: expected a whole number of at least {least} pixels, got {value!r}")


def disc_radius(size: int) -> int:
    """Radius in pixels for images of side ``size``: ``int(9 * 2^(log2(size) - 6))``, at least 1.

    The paper's rule (9 at 64 pixels, 3 at 28), in integers so that no rounding of the logarithm can lose a pixel.
    """
    return max(1, 9 * size // 64)


@dataclasses.dataclass(frozen=True)
class Disc:
    """A filled grey circle: the pixels whose centre is at most ``radius`` away from the circle's.

    Attributes:
      value: grey value in [-1, 1], the same in every channel; 0 is the paper's mid-grey.
      radius: pixels; None takes `disc_radius` of the image's shorter side.
    """

    value: float = 0.0
    radius: int | None = None

    def __post_init__(self) -> None:
        _grey(self.value, "disc")
        if self.radius is not None:
            _pixels(self.radius, 0, "disc.radius")

    def place(self, key: Array, shape: Shape) -> Params:
        radius = disc_radius(min(shape[:2])) if self.radius is None else self.radius
        corner = _corner(key, shape, 2 * radius + 1, 2 * radius + 1, "disc")
        return {"row": corner["row"] + radius, "col": corner["col"] + radius, "radius": jnp.int32(radius)}

    def draw(self, image: Array, params: Params) -> tuple[Array, Array]:
        rows = jnp.arange(image.shape[0])[:, None] - params["row"]
        cols = jnp.arange(image.shape[1])[None, :] - params["col"]
        mask = rows**2 + cols**2 <= params["radius"] ** 2
        return jnp.where(mask[..., None], jnp.asarray(self.value, image.dtype), image), mask


def _neighbours(x: Array) -> Array:
    """Sum over the four neighbours of each pixel of ``x[h, w, C]``, zero outside."""
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]


def poisson_blend(source: Array, target: Array, mask: Array, tolerance: float = 1e-6) -> Array:
    """Seamless cloning of ``source`` into ``target`` where ``mask`` is set.

    Perez, Gangnet & Blake, "Poisson Image Editing" (2003), eq. 7 to 9: inside the mask the result has the discrete
    Laplacian of the source, outside it is the target. Solved as source + u, where u is harmonic and equals
    target − source around the mask, by conjugate gradients on the five-point Laplacian of the masked pixels.

    Args:
      source, target: float32[h, w, C].
      mask: bool[h, w]; must be False on the outermost pixels, which carry the boundary condition.
      tolerance: relative residual of the solver.

    Returns:
      float32[h, w, C], not clipped.
    """
    inside = mask[..., None].astype(target.dtype)
    boundary = inside * _neighbours((1 - inside) * (target - source))

    def laplacian(u: Array) -> Array:
        # The identity outside the mask keeps the operator positive definite; u stays 0 there.
        return jnp.where(mask[..., None], 4 * u - _neighbours(inside * u), u)

    u, _ = cg(laplacian, boundary, tol=tolerance, maxiter=4 * mask.shape[0] * mask.shape[1])
    return jnp.where(mask[..., None], source + u, target)


# Compared by identity: arrays have no hash, and a fingerprint should be usable as a static argument.
@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
    """A piece of another image, pasted by `poisson_blend` and clipped to [-1, 1].

    Attributes:
      source: float32[h, w, C] in [-1, 1], h and w at least 3; one channel is repeated to as many as the image has.
      mask: bool[h, w], the pixels to paste, False on the outermost; None pastes all but the outermost.
    """

    source: np.ndarray
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        source = np.asarray(self.source, np.float32)
        if source.ndim != 3 or min(source.shape[:2]) < 3:
            raise InputError(f"fingerprint.patch.source: expected [h, w, C] with h, w >= 3, got {source.shape}")
        if not np.all(np.abs(source) <= 1):
            raise InputError("fingerprint.patch.source: expected finite values in [-1, 1]")
        mask = np.pad(np.ones((source.shape[0] - 2, source.shape[1] - 2), bool), 1)
        if self.mask is not None:
            mask, inner = np.asarray(self.mask, bool), mask
            if mask.shape != inner.shape or np.any(mask & ~inner) or not mask.any():
                raise InputError(
                    f"fingerprint.patch.mask: expected {inner.shape}, some pixel set and none of the outermost, "
                    f"got {mask.shape}"
                )
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "mask", mask)

    def place(self, key: Array, shape: Shape) -> Params:
        height, width, channels = self.source.shape
        if channels not in (1, shape[2]):
            raise InputError(f"fingerprint.patch.source: expected 1 or {shape[2]} channels, got {channels}")
        return _corner(key, shape, height, width, "patch")

    def draw(self, image: Array, params: Params) -> tuple[Array, Array]:
        height, width = self.source.shape[:2]
        corner = (params["row"], params["col"])
        target = jax.lax.dynamic_slice(image, (*corner, 0), (height, width, image.shape[2]))
        source = jnp.broadcast_to(jnp.asarray(self.source, image.dtype), target.shape)
        mask = jnp.asarray(self.mask)
        blended = poisson_blend(source, target, mask)
        window = jnp.where(mask[..., None], jnp.clip(blended, -1.0, 1.0), target)
        whole = jax.lax.dynamic_update_slice(jnp.zeros(image.shape[:2], bool), mask, corner)
        return jax.lax.dynamic_update_slice(image, window, (*corner, 0)), whole


def cut_patch(image: np.ndarray, row: int, col: int, radius: int) -> Patch:
    """The disc of ``radius`` around (row, col) of ``image[H, W, C]`` as a `Patch`, as the reference cuts its source.

    Raises:
      InputError: the disc and the ring of pixels around it do not lie inside the image.
    """
    reach = radius + 1
    top, left = row - reach, col - reach
    if radius < 0 or min(top, left) < 0 or row + reach >= image.shape[0] or col + reach >= image.shape[1]:
        raise InputError(
            f"fingerprint.patch: expected a disc with one pixel around it inside {image.shape[0]}x{image.shape[1]}, "
            f"got radius {radius} at ({row}, {col})"
        )
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return Patch(image[top : row + reach + 1, left : col + reach + 1], y**2 + x**2 <= radius**2)


_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ+- "
# Five rows of three pixels to a character, each row one octal digit.
_ROWS = (
    "7555726227717477171755711747177475771122757577571725755656563444365556746477464434553557557222711152"
    "55655444475775565555255526564425563656553421672222555575555255775552555522271247027200070000000"
)
_FONT = {c: _ROWS[5 * i : 5 * i + 5] for i, c in enumerate(_CHARACTERS)}


def glyph_bitmap(text: str) -> np.ndarray:
    """bool[5, 4 len - 1] of ``text`` in the built-in 3x5 font (capitals, digits, ``+``, ``-``, blank).

    Raises:
      InputError: an empty or blank text, or a character that the font lacks.
    """
    missing = sorted(set(text) - set(_FONT))
    if missing or not text.strip():
        raise InputError(f"fingerprint.glyph.text: expected characters of {''.join(sorted(_FONT))!r}, got {text!r}")
    letters = [[[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in _FONT[c]] for c in text]
    gap = np.zeros((5, 1), bool)
    columns = [part for letter in letters for part in (np.array(letter, bool), gap)]
    return np.concatenate(columns[:-1], axis=1)


@dataclasses.dataclass(frozen=True)
class Glyph:
    """Text in a small bitmap font, like the side marker burnt into a radiograph.

    Attributes:
      text: capitals, digits, ``+``, ``-``, blank; each character is 3x5 font pixels, one apart.
      value: grey value in [-1, 1] of the ink, the same in every channel.
      scale: image pixels per font pixel; None takes ``max(1, shorter side // 20)``, about the height of the disc.
    """

    text: str = "L"
    value: float = 1.0
    scale: int | None = None

    def __post_init__(self) -> None:
        _grey(self.value, "glyph")
        glyph_bitmap(self.text)
        if self.scale is not None:
            _pixels(self.scale, 1, "glyph.scale")

    def _ink(self, shape: Shape) -> np.ndarray:
        scale = max(1, min(shape[:2]) // 20) if self.scale is None else self.scale
        return np.kron(glyph_bitmap(self.text), np.ones((scale, scale), bool))

    def place(self, key: Array, shape: Shape) -> Params:
        height, width = self._ink(shape).shape
        return _corner(key, shape, height, width, "glyph")

    def draw(self, image: Array, params: Params) -> tuple[Array, Array]:
        corner = (params["row"], params["col"])
        mask = jax.lax.dynamic_update_slice(jnp.zeros(image.shape[:2], bool), self._ink(image.shape), corner)
        return jnp.where(mask[..., None], jnp.asarray(self.value, image.dtype), image), mask


@dataclasses.dataclass(frozen=True)
class NoFingerprint:
    """Nothing is planted: the record's own feature serves, and its detector is trained on labelled images."""

    def place(self, key: Array, shape: Shape) -> Params:
        del key, shape
        return {}

    def draw(self, image: Array, params: Params) -> tuple[Array, Array]:
        del params
        return image, jnp.zeros(image.shape[:2], bool)


FINGERPRINTS: dict[str, Callable[..., Fingerprint]] = {
    "disc": Disc,
    "patch": Patch,
    "glyph": Glyph,
    "none": NoFingerprint,
}
"""Constructors by the name that a config gives."""


def fingerprint(kind: str, **params: object) -> Fingerprint:
    """``FINGERPRINTS[kind](**params)``.

    Raises:
      InputError: an unknown kind, an unknown or missing field, or a field's value out of range.
    """
    if kind not in FINGERPRINTS:
        raise InputError(f"fingerprint.name: expected one of {', '.join(FINGERPRINTS)}, got {kind!r}")
    try:
        inspect.signature(FINGERPRINTS[kind]).bind(**params)
        return FINGERPRINTS[kind](**params)
    except TypeError as error:
        fields = ", ".join(inspect.signature(FINGERPRINTS[kind]).parameters) or "none"
        raise InputError(f"fingerprint.{kind}: {error}; expected fields: {fields}") from error


def plant(mark: Fingerprint, image: Array, key: Array) -> Planted:
    """One fingerprint in ``image[H, W, C]`` (in [-1, 1]); its position depends on ``key`` and the sizes alone.

    Raises:
      InputError: the fingerprint does not fit the image or its channels, or it draws another shape.
    """
    params = mark.place(key, image.shape)
    marked, mask = mark.draw(image, params)
    if marked.shape != image.shape or mask.shape != image.shape[:2]:
        raise InputError(
            f"fingerprint: expected draw to return an image {image.shape} and a mask {image.shape[:2]}, got "
            f"{marked.shape} and {mask.shape}"
        )
    return Planted(image=marked, mask=mask, params=params)


def plant_batch(mark: Fingerprint, images: Array, keys: Array) -> Planted:
    """`plant` for ``images[B, H, W, C]`` with one key each (``keys[B]``); every array gains a leading axis B."""
    return jax.vmap(lambda image, key: plant(mark, image, key))(images, keys)


def plant_several(mark: Fingerprint, image: Array, key: Array, count: Array, most: int) -> Array:
    """``image[H, W, C]`` with ``count`` fingerprints (a traced int, 0 <= count <= most) at independent positions."""

    def one(index: Array, marked: Array) -> Array:
        planted = plant(mark, marked, jax.random.fold_in(key, index))
        return jnp.where(index < count, planted.image, marked)

    return jax.lax.fori_loop(0, most, one, image)
