"""What a scene is made of: objects that look and sound like their class, and backgrounds.

An object source makes new sprites and new sounds of a class at every call. Two sources exist: the
built-in one of this module, drawn and synthesised, and `photo_objects.AssetObjects` from real
photos and sounds. A background is a function of a size and a random generator.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from data_prep.synthetic import sounds, sprites

Sprite = UInt8[np.ndarray, "_height _width 4"]  # RGBA; sprites differ in size, hence "_"
Picture = UInt8[np.ndarray, "height width 3"]
Background = Callable[[int, np.random.Generator], Picture]


@runtime_checkable
class ObjectSource(Protocol):
    """Classes of sounding objects; `class_id` is an index into `class_names`."""

    class_names: tuple[str, ...]

    def sprite(self, class_id: int, extent: float, rng: np.random.Generator) -> Sprite:
        """Returns a new RGBA sprite whose height and width have the geometric mean `extent`."""
        ...

    def sound(
        self, class_id: int, seconds: float, rng: np.random.Generator
    ) -> Float[np.ndarray, " samples"]:
        """Returns a new sound of round(16,000 · seconds) samples, at any loudness but silence."""
        ...


class BuiltInObjects:
    """Twelve classes, each a silhouette of `sprites` with a family of `sounds`."""

    _families = tuple(zip(sprites.SHAPES, sounds.FAMILIES, strict=True))
    class_names = tuple(f"{shape}_{sound}" for shape, sound in _families)

    def sprite(self, class_id: int, extent: float, rng: np.random.Generator) -> Sprite:
        """See `ObjectSource`."""
        return sprites.draw_sprite(self._families[class_id][0], extent, rng)

    def sound(
        self, class_id: int, seconds: float, rng: np.random.Generator
    ) -> Float[np.ndarray, " samples"]:
        """See `ObjectSource`."""
        return sounds.play(self._families[class_id][1], seconds, rng)


def drawn_background(size: int, rng: np.random.Generator) -> Picture:
    """Returns smooth coloured noise with clutter and grain, [size, size, 3].

    The clutter has the colours of the objects, so that a bright colour alone is not an object.
    """
    cells = int(rng.integers(2, 6))
    coarse = np.stack([sprites.tone(rng) for _ in range(cells * cells)])
    grey = coarse.mean(axis=1, keepdims=True)
    coarse = (grey + 0.45 * (coarse - grey)) * rng.uniform(0.6, 1.0)
    coarse = (255 * coarse.reshape(cells, cells, 3)).astype(np.uint8)
    canvas = Image.fromarray(coarse).resize((2 * size, 2 * size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for _ in range(int(rng.integers(3, 9))):
        _clutter(pen, 2 * size, rng)
    picture = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)
    grain = rng.normal(0, 4, (size, size, 1))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _clutter(pen: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    """Draws a half-transparent line, disc or triangle at a random place."""
    colour = tuple(int(255 * value) for value in sprites.tone(rng))
    colour = (*colour, int(rng.integers(90, 180)))
    x, y, reach = *rng.uniform(0, size, 2), rng.uniform(0.03, 0.1) * size
    kind = rng.integers(3)
    if kind == 0:
        angle, length = rng.uniform(0, math.pi), 4 * reach
        end = (x + length * math.cos(angle), y + length * math.sin(angle))
        pen.line([(x, y), end], colour, width=max(1, round(0.3 * reach)))
    elif kind == 1:
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), colour)
    else:
        corners = rng.uniform(-1.3 * reach, 1.3 * reach, (3, 2)) + np.array([x, y])
        pen.polygon([tuple(corner) for corner in corners.tolist()], colour)
