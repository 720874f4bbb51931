"""Bicubic scaling: each value is Pillow's."""

import numpy as np
import pytest
from PIL import Image

from cavmae_sync_jax.media import bicubic


def of_pillow(picture, size, box):
    scaled = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box)
    return np.asarray(scaled)


def pictures(shape, rng):
    """Noise, and edges as sharp as can be, around which the filter leaves the grey levels."""
    noise = rng.integers(0, 256, (*shape, 3), np.uint8)
    return noise, np.where(noise > 127, 255, 0).astype(np.uint8)


USUAL = [(240, 320), (360, 640), (480, 854), (720, 1280), (1920, 1080), (224, 224), (112, 150)]


@pytest.mark.parametrize("shape", USUAL)
def test_squares_of_usual_sizes_are_pillow_s(shape):
    side, (height, width) = min(shape), shape
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    for picture in pictures(shape, np.random.default_rng(0)):
        found = bicubic.resize(picture, 224, box)
        np.testing.assert_array_equal(found, of_pillow(picture, 224, box))


@pytest.mark.parametrize("seed", range(40))
def test_any_part_of_any_picture_is_pillow_s(seed):
    rng = np.random.default_rng(seed)
    shape, size = rng.integers(1, 400, 2), int(rng.integers(8, 300))
    sides = shape * rng.uniform(0.1, 1, 2)
    top, left = rng.uniform(0, shape - sides)
    box = (left, top, left + sides[1], top + sides[0])
    for picture in pictures(shape, rng):
        found = bicubic.resize(picture, size, box)
        np.testing.assert_array_equal(found, of_pillow(picture, size, box))


def test_whole_pictures_of_few_pixels_are_pillow_s():
    for shape in ((1, 1), (1, 100), (2, 3), (300, 3)):
        box = (0, 0, shape[1], shape[0])
        for picture in pictures(shape, np.random.default_rng(0)):
            found = bicubic.resize(picture, 64, box)
            np.testing.assert_array_equal(found, of_pillow(picture, 64, box))


def test_views_and_other_channels():
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    mirrored = picture[::-1, ::-1].swapaxes(0, 1)
    expected = of_pillow(np.ascontiguousarray(mirrored), 32, (0, 0, 50, 60))
    np.testing.assert_array_equal(bicubic.resize(mirrored, 32, (0, 0, 50, 60)), expected)
    grey = bicubic.resize(mirrored[:, :, :1], 32, (0, 0, 50, 60))
    np.testing.assert_array_equal(grey[:, :, 0], expected[:, :, 0])
