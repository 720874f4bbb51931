"""Drawn sprites of twelve silhouettes; every instance differs.

Only the silhouette identifies the family. Hue, tones, texture, outline, size, aspect and rotation
are drawn from the same distributions for all of them.
"""

import colorsys
import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

Number = float | int  # for checked annotations, an int is not a float
Point = tuple[Number, Number]

CANVAS = 320  # pixels of the square a silhouette is drawn on; several times a sprite's final size
_UNIT = 0.31 * CANVAS  # one unit of a silhouette's coordinates; leaves room to rotate


class Pen:
    """Draws a silhouette in coordinates from -1 to 1 (x to the right, y down)."""

    def __init__(self) -> None:
        self.image = Image.new("L", (CANVAS, CANVAS))
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Iterable[Point], fill: int = 255) -> None:
        """Fills the polygon through `points`."""
        self._draw.polygon([_pixel(x, y) for x, y in points], fill=fill)

    def disc(self, x: Number, y: Number, radius: Number, fill: int = 255) -> None:
        """Fills a disc."""
        self._draw.ellipse((*_pixel(x - radius, y - radius), *_pixel(x + radius, y + radius)), fill)

    def bar(self, start: Point, end: Point, width: Number) -> None:
        """Fills a straight bar with square ends."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        nx, ny = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon(
            [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]
        )


def _pixel(x: Number, y: Number) -> Point:
    return CANVAS / 2 + x * _UNIT, CANVAS / 2 + y * _UNIT


def _polar(radius: Number, angle: Number) -> Point:
    return radius * math.sin(angle), -radius * math.cos(angle)


def _star(pen: Pen, rng: np.random.Generator) -> None:
    inner = rng.uniform(0.38, 0.48)
    pen.polygon(_polar(inner if k % 2 else 1.0, k * math.pi / 5) for k in range(10))


def _ring(pen: Pen, rng: np.random.Generator) -> None:
    pen.disc(0, 0, 1)
    pen.disc(0, 0, rng.uniform(0.5, 0.66), fill=0)


def _cross(pen: Pen, rng: np.random.Generator) -> None:
    width = rng.uniform(0.5, 0.74)
    pen.bar((-1, 0), (1, 0), width)
    pen.bar((0, -1), (0, 1), width)


def _crescent(pen: Pen, rng: np.random.Generator) -> None:
    pen.disc(0, 0, 1)
    pen.disc(rng.uniform(0.42, 0.6), 0, rng.uniform(0.8, 0.9), fill=0)


def _arrow(pen: Pen, rng: np.random.Generator) -> None:
    neck = rng.uniform(-0.1, 0.25)
    pen.bar((-1, 0), (neck + 0.05, 0), rng.uniform(0.42, 0.6))
    pen.polygon([(neck, -0.85), (1, 0), (neck, 0.85)])


def _hourglass(pen: Pen, rng: np.random.Generator) -> None:
    waist, cap = rng.uniform(0.06, 0.16), rng.uniform(0.14, 0.22)
    pen.polygon([(-0.8, -1), (0.8, -1), (waist, 0), (0.8, 1), (-0.8, 1), (-waist, 0)])
    pen.bar((-0.95, -1 + cap / 2), (0.95, -1 + cap / 2), cap)
    pen.bar((-0.95, 1 - cap / 2), (0.95, 1 - cap / 2), cap)


def _flower(pen: Pen, rng: np.random.Generator) -> None:
    turn = rng.uniform(0, 2 * math.pi)
    for k in range(6):
        x, y = _polar(0.68, turn + k * math.pi / 3)
        pen.disc(x, y, 0.31)
        pen.bar((0, 0), (x, y), 0.16)
    pen.disc(0, 0, rng.uniform(0.2, 0.27))


def _ladder(pen: Pen, rng: np.random.Generator) -> None:
    rail, width = rng.uniform(0.18, 0.26), rng.uniform(0.55, 0.7)
    for side in (-width, width):
        pen.bar((side, -1), (side, 1), rail)
    for y in (-0.72, -0.24, 0.24, 0.72):
        pen.bar((-width, y), (width, y), rail * 0.8)


def _checker(pen: Pen, rng: np.random.Generator) -> None:
    half = rng.uniform(0.3, 0.35)  # a little under a third leaves gaps, a little over joins corners
    for row in range(3):
        for column in range(3):
            if (row + column) % 2 == 0:
                x, y = (column - 1) * 0.66, (row - 1) * 0.66
                pen.bar((x - half, y), (x + half, y), 2 * half)


def _spiral(pen: Pen, rng: np.random.Generator) -> None:
    turns, width, start = rng.uniform(1.9, 2.3), rng.uniform(0.2, 0.27), rng.uniform(0, 2 * math.pi)
    for step in np.linspace(0, 1, 240):
        radius = 0.06 + (0.94 - width / 2) * step
        pen.disc(*_polar(radius, start + 2 * math.pi * turns * step), width / 2)


def _fishbone(pen: Pen, rng: np.random.Generator) -> None:
    spine, slant = rng.uniform(0.13, 0.2), rng.uniform(0.28, 0.45)
    pen.bar((-1, 0), (0.9, 0), spine)
    for x in (-0.62, -0.2, 0.22):
        for side in (-0.8, 0.8):
            pen.bar((x, 0), (x - slant, side), spine)
    pen.polygon([(0.5, -0.42), (1.05, 0), (0.5, 0.42)])


def _bolt(pen: Pen, rng: np.random.Generator) -> None:
    jut = rng.uniform(0.0, 0.16)
    pen.polygon(
        [(0.3, -1), (-0.7, 0.18), (-0.06, 0.18 - jut), (-0.36, 1), (0.7, -0.22), (0.08, -0.2 + jut)]
    )


SHAPES: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "arrow": _arrow,
    "hourglass": _hourglass,
    "flower": _flower,
    "ladder": _ladder,
    "checker": _checker,
    "spiral": _spiral,
    "fishbone": _fishbone,
    "bolt": _bolt,
}


def draw_sprite(
    shape: str, extent: Number, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 4"]:
    """Returns a new instance of a family as an RGBA picture cropped to what is opaque.

    `extent` is the geometric mean of its height and width in pixels.
    """
    pen = Pen()
    SHAPES[shape](pen, rng)
    silhouette = pen.image
    if rng.random() < 0.5:
        silhouette = silhouette.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    silhouette = silhouette.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    silhouette = silhouette.crop(silhouette.getbbox())
    width, height = fitted(silhouette.size, extent, aspect=math.exp(rng.uniform(-0.16, 0.16)))
    # The outline lies inside the silhouette, so that an object keeps an edge on a background of its
    # own colour and the mask does not depend on it.
    reach = rng.uniform(0.025, 0.04) * math.sqrt(silhouette.width * silhouette.height)
    core = ndimage.minimum_filter(np.asarray(silhouette), 2 * round(reach) + 1, mode="constant")
    alpha = np.asarray(silhouette.resize((width, height), Image.Resampling.BOX))
    core = Image.fromarray(core).resize((width, height), Image.Resampling.BOX)
    inside = np.asarray(core, np.float32) / 255
    outline = np.full(3, rng.choice([0.06, 0.97]), np.float32)
    colour = two_tone(height, width, rng)
    colour = outline + (colour - outline) * inside[:, :, None]
    return np.dstack([(colour * 255).round().astype(np.uint8), alpha])


def fitted(size: tuple[int, int], extent: Number, aspect: Number = 1.0) -> tuple[int, int]:
    """Returns (width, height) with geometric mean `extent` and the shape of `size` times `aspect`.

    A long thin picture is kept within 1.6 extents, so that it fits where the others fit.
    """
    ratio = min(max(size[0] / size[1] * aspect, 1.6**-2), 1.6**2)
    return max(1, round(extent * math.sqrt(ratio))), max(1, round(extent / math.sqrt(ratio)))


def two_tone(
    height: int, width: int, rng: np.random.Generator
) -> Float[np.ndarray, "height width 3"]:
    """Returns a random two-tone texture, 0 to 1: stripes, dots or a gradient in two random hues."""
    first, second = tone(rng), tone(rng)
    angle, kind = rng.uniform(0, 2 * math.pi), rng.integers(3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / math.sqrt(height * width)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(0.22, 0.42)
    if kind == 0:
        share = (np.sin(2 * math.pi * u / period) > 0).astype(np.float32)
    elif kind == 1:
        away = np.hypot(u % period - period / 2, v % period - period / 2)
        share = (away < 0.3 * period).astype(np.float32)
    else:
        share = (u - u.min()) / max(float(np.ptp(u)), 1e-6)
    return first + (second - first) * share[:, :, None]


def tone(rng: np.random.Generator) -> Float[np.ndarray, " 3"]:
    """Returns a random RGB colour, 0 to 1, of any hue."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.45, 1.0))
    return np.array(rgb, np.float32)


def opaque(sprite: UInt8[np.ndarray, "height width 4"]) -> Bool[np.ndarray, "height width"]:
    """Returns which pixels belong to the object: those at least half opaque."""
    return sprite[:, :, 3] > 127
