"""Fingerprints: where they go, what they change, and the Poisson solver against its equation and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_privacy.anonymity.fingerprints import (
    FINGERPRINTS,
    Disc,
    Fingerprint,
    Glyph,
    Params,
    Patch,
    cut_patch,
    disc_radius,
    fingerprint,
    glyph_bitmap,
    plant,
    plant_batch,
    plant_several,
    poisson_blend,
)
from diffusion_privacy.errors import InputError
from diffusion_privacy.types import Array


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape).astype(np.float32)


MARKS: dict[str, Fingerprint] = {
    "disc": Disc(value=-1.0),
    "patch": Patch(noise(1, 5, 6, 1)),
    "glyph": Glyph("L", value=0.95),
}
KEYS = jax.random.split(jax.random.key(0), 200)
# Compiled once a kind and shape: run eagerly, the same tests take five times as long.
plant_all = jax.jit(plant_batch, static_argnums=0)
blend = jax.jit(poisson_blend)


@pytest.mark.parametrize(("size", "radius"), [(8, 1), (28, 3), (64, 9), (128, 18), (4, 1), (448, 63)])
def test_disc_radius_is_the_papers(size: int, radius: int) -> None:
    assert disc_radius(size) == radius
    if size in (8, 28, 64, 128):  # where the floating-point formula is exact
        assert radius == int(9 * 2 ** (np.log2(size) - 6))


@pytest.mark.parametrize("size", [8, 28, 64])
def test_disc_is_the_set_of_pixels_within_the_radius(size: int) -> None:
    planted = plant(Disc(), jnp.full((size, size, 1), -1.0), jax.random.key(3))
    row, col, radius = (int(planted.params[k]) for k in ("row", "col", "radius"))
    y, x = np.mgrid[:size, :size]
    np.testing.assert_array_equal(planted.mask, np.hypot(y - row, x - col) <= radius)
    assert radius == disc_radius(size)


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 9, 3), (9, 31, 4)])
def test_mask_is_exactly_the_changed_pixels_and_lies_inside(name: str, shape: tuple[int, int, int]) -> None:
    images = noise(2, len(KEYS), *shape)
    planted = plant_all(MARKS[name], jnp.asarray(images), KEYS)
    changed = np.any(np.asarray(planted.image) != images, axis=-1)
    np.testing.assert_array_equal(planted.mask, changed)
    sizes = np.asarray(planted.mask).sum(axis=(1, 2))
    assert sizes.min() == sizes.max() > 0, "a fingerprint was cut off by the edge"
    assert np.abs(planted.image).max() <= 1


@pytest.mark.parametrize("name", MARKS)
def test_position_depends_on_the_key_alone(name: str) -> None:
    first = plant_all(MARKS[name], jnp.asarray(noise(3, 200, 8, 8, 1)), KEYS)
    other = plant_all(MARKS[name], jnp.asarray(noise(4, 200, 8, 8, 1)), KEYS)
    for field in first.params:
        np.testing.assert_array_equal(first.params[field], other.params[field])
    np.testing.assert_array_equal(first.mask, other.mask)
    # Neither the batch nor the compiler changes it, and another key does.
    alone = jax.jit(lambda image, key: plant(MARKS[name], image, key))(first.image[7], KEYS[7])
    np.testing.assert_array_equal(alone.mask, first.mask[7])
    assert len(np.unique(np.stack([first.params["row"], first.params["col"]]), axis=1).T) > 10


class BrightestPixel(Disc):
    """Planted fault: the disc goes to where the image is brightest."""

    def draw(self, image: Array, params: Params) -> tuple[Array, Array]:
        row, col = jnp.unravel_index(jnp.argmax(image[1:-1, 1:-1, 0]), (image.shape[0] - 2, image.shape[1] - 2))
        return super().draw(image, {**params, "row": row + 1, "col": col + 1})


def test_a_position_that_looks_at_the_image_is_rejected() -> None:
    masks = [plant_all(BrightestPixel(), jnp.asarray(noise(s, 200, 8, 8, 1)), KEYS).mask for s in (3, 4)]
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(*masks)


def test_every_position_is_equally_likely() -> None:
    """36 places of a radius-1 disc on 8x8; chi-square with 35 degrees of freedom, false alarm rate 1e-4."""
    keys = jax.random.split(jax.random.key(5), 3600)
    params = jax.jit(jax.vmap(lambda k: Disc().place(k, (8, 8, 1))))(keys)
    counts = np.bincount((np.asarray(params["row"]) - 1) * 6 + np.asarray(params["col"]) - 1, minlength=36)
    assert len(counts) == 36
    assert ((counts - 100.0) ** 2 / 100).sum() < 76.4


def test_none_changes_nothing() -> None:
    image = jnp.asarray(noise(6, 8, 8, 3))
    planted = plant(fingerprint("none"), image, KEYS[0])
    np.testing.assert_array_equal(planted.image, image)
    assert not planted.mask.any()
    assert planted.params == {}


def interior(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Five-point Laplacian of ``image[h, w]`` at the masked pixels."""
    lap = image[2:, 1:-1] + image[:-2, 1:-1] + image[1:-1, 2:] + image[1:-1, :-2] - 4 * image[1:-1, 1:-1]
    return lap[mask[1:-1, 1:-1]]


def test_blending_solves_poissons_equation() -> None:
    """Laplacian of the source inside, the target on and beyond the boundary; any channels, any mask."""
    rng = np.random.default_rng(7)
    source, target = noise(8, 12, 15, 3), noise(9, 12, 15, 3)
    mask = np.pad(rng.random((10, 13)) < 0.7, 1)
    blended = np.asarray(blend(source, target, mask))
    np.testing.assert_array_equal(blended[~mask], target[~mask])
    for c in range(3):
        np.testing.assert_allclose(interior(mask, blended[..., c]), interior(mask, source[..., c]), atol=2e-5)


def test_blending_closed_forms() -> None:
    y, x = np.mgrid[:14, :14].astype(np.float32)
    mask = jnp.asarray(np.pad(np.ones((12, 12), bool), 1))
    # A harmonic difference is continued exactly: the source vanishes without a seam.
    source = noise(10, 14, 14, 1)
    for harmonic in (0 * x + 0.3, 0.02 * x - 0.05 * y, 0.003 * (x**2 - y**2), 0.002 * x * y):
        target = source + harmonic[..., None]
        np.testing.assert_allclose(blend(source, target, mask), target, atol=2e-5)
    # Both linear: nothing but the target remains, whatever the source's slope.
    linear = (0.03 * x - 0.01 * y)[..., None]
    np.testing.assert_allclose(blend(linear, -0.5 * linear + 0.1, mask), -0.5 * linear + 0.1, atol=2e-5)
    # A bump on a constant target: the gradient survives, the level does not.
    bump = (np.sin(np.pi * x / 13) * np.sin(np.pi * y / 13))[..., None].astype(np.float32)
    np.testing.assert_allclose(blend(bump + 0.4, 0 * bump - 0.2, mask), bump - 0.2, atol=2e-5)


def test_plain_pasting_would_fail_the_equation() -> None:
    """Planted fault: copy the pixels without solving."""
    source, target = noise(8, 9, 9, 1)[..., 0], noise(9, 9, 9, 1)[..., 0]
    mask = np.pad(np.ones((7, 7), bool), 1)
    pasted = np.where(mask, source, target)
    assert np.abs(interior(mask, pasted) - interior(mask, source)).max() > 0.1


def test_patch_stays_in_range_and_is_cut_as_a_disc() -> None:
    image = noise(11, 16, 16, 1)
    patch = cut_patch(image, 6, 8, 3)
    assert patch.source.shape == (9, 9, 1)
    np.testing.assert_array_equal(patch.source[4, 4], image[6, 8])
    assert patch.mask is not None
    assert patch.mask.sum() == 29  # lattice points within distance 3
    steep = Patch(np.sign(noise(12, 9, 9, 1)))
    planted = plant_all(steep, np.sign(noise(13, 2, 16, 16, 1)), KEYS[:2])
    assert np.abs(planted.image).max() <= 1.0


def test_glyph_draws_the_letter_at_scale() -> None:
    np.testing.assert_array_equal(glyph_bitmap("L"), [[1, 0, 0]] * 4 + [[1, 1, 1]])
    assert glyph_bitmap("A1").shape == (5, 7)
    planted = plant(Glyph("L", scale=2), jnp.full((16, 16, 3), -1.0), KEYS[1])
    row, col = int(planted.params["row"]), int(planted.params["col"])
    expected = np.kron(glyph_bitmap("L"), np.ones((2, 2)))
    np.testing.assert_array_equal(planted.image[row : row + 10, col : col + 6, 1] == 1.0, expected)
    assert plant(Glyph(), jnp.zeros((64, 64, 1)), KEYS[1]).mask.sum() == 7 * 9


def test_several_are_planted_up_to_the_count() -> None:
    image = jnp.full((28, 28, 1), -1.0)
    images = jax.jit(jax.vmap(lambda n: plant_several(Disc(), image, KEYS[0], n, 4)))(jnp.arange(5))
    covered = np.asarray((images == 0.0).sum(axis=(1, 2, 3)))
    assert covered[0] == 0
    assert covered[1] == 29
    assert np.all(np.diff(covered) >= 0)
    assert covered[4] > covered[1]


def test_registry_builds_every_kind() -> None:
    assert set(FINGERPRINTS) == {"disc", "patch", "glyph", "none"}
    assert fingerprint("disc", value=0.5) == Disc(0.5)
    assert isinstance(fingerprint("patch", source=noise(1, 5, 5, 1)), Patch)


@pytest.mark.parametrize(
    ("kind", "params", "field"),
    [
        ("disk", {}, "fingerprint.name"),
        ("disc", {"size": 3}, "fingerprint.disc"),
        ("disc", {"value": 1.5}, "fingerprint.disc.value"),
        ("disc", {"radius": -1}, "fingerprint.disc.radius"),
        ("patch", {}, "fingerprint.patch"),
        ("patch", {"source": np.zeros((2, 5, 1))}, "fingerprint.patch.source"),
        ("patch", {"source": np.full((5, 5, 1), np.nan)}, "fingerprint.patch.source"),
        ("patch", {"source": np.zeros((5, 5, 1)), "mask": np.ones((5, 5))}, "fingerprint.patch.mask"),
        ("glyph", {"text": "L?"}, "fingerprint.glyph.text"),
        ("glyph", {"text": " "}, "fingerprint.glyph.text"),
        ("glyph", {"scale": 0}, "fingerprint.glyph.scale"),
        ("glyph", {"scale": 1.5}, "fingerprint.glyph.scale"),
        ("disc", {"radius": 2.5}, "fingerprint.disc.radius"),
        ("disc", {"value": "grey"}, "fingerprint.disc"),
    ],
)
def test_bad_input_is_named_in_one_line(kind: str, params: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as caught:
        fingerprint(kind, **params)
    assert str(caught.value).startswith(field)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


class Spread:
    """A fingerprint of one's own that makes colours of a grey image."""

    def place(self, key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        return {}

    def draw(self, image: Array, params: dict[str, Array]) -> tuple[Array, Array]:
        return jnp.repeat(image, 3, axis=2), jnp.ones(image.shape[:2], bool)


def test_what_does_not_fit_is_refused() -> None:
    grey = Spread()
    with pytest.raises(InputError, match=r"draw to return an image \(6, 9, 1\) and a mask \(6, 9\), got \(6, 9, 3\)"):
        plant(grey, jnp.zeros((6, 9, 1)), KEYS[0])
    with pytest.raises(InputError, match="disc of 7x7 expected a larger image, got 6x9"):
        plant(Disc(radius=3), jnp.zeros((6, 9, 1)), KEYS[0])
    with pytest.raises(InputError, match="expected 1 or 1 channels, got 3"):
        plant(Patch(noise(1, 5, 5, 3)), jnp.zeros((9, 9, 1)), KEYS[0])
    with pytest.raises(InputError, match="got radius 3 at \\(3, 8\\)"):
        cut_patch(noise(1, 16, 16, 1), 3, 8, 3)
