"""Still pictures: limits of their size, resize and crop, JPEG encoding and decoding."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8
from PIL import Image

from cavmae_sync_jax.media import bicubic
from cavmae_sync_jax.media.errors import MediaError, check_file

MAX_PIXELS, MAX_ASPECT = 2**26, 100
# Pillow makes all of these RGB; of others, such as 16-bit grey, it would make white.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@contextlib.contextmanager
def opened(path: str | Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Opens a picture of one of Pillow's formats, whose pixels are not read yet.

    Raises:
      OSError, SyntaxError, ValueError, Image.DecompressionBombError: it is none.
    """
    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            # `check_size` refuses what Pillow warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = stack.enter_context(Image.open(path, formats=formats))
        yield picture


def check_size(path: str | Path, width: int, height: int) -> None:
    """Refuses pictures that would take too much memory, as they are or once they are scaled.

    Raises:
      MediaError: too_large.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError("too_large", f"{path} has a picture of {width} x {height} pixels.")


def check_mode(path: str | Path, mode: str, modes: tuple[str, ...] = MODES) -> None:
    """Refuses pictures that Pillow would make wrong colours of.

    Raises:
      MediaError: unreadable.
    """
    if mode not in modes:
        how = "save it as RGB with 8 bits per colour"
        raise MediaError("unreadable", f"{path} has the colours {mode}, not RGB: {how}.")


def resize_and_crop(
    image: UInt8[np.ndarray, "height width *channels"],
    size: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    *,
    pixel_aspect: float | int = 1,
) -> UInt8[np.ndarray, "{size} {size} *channels"]:
    """Scales the shorter side to `size` and cuts the central square, as torchvision does.

    Sides are measured as they are shown, where a pixel is `pixel_aspect` times as wide as high.
    Only the square is computed. Its edges are rounded to single precision, so that one value in a
    thousand may be one level off torchvision's. `resample` is bicubic or nearest.
    """
    shape = image.shape[0], image.shape[1] * pixel_aspect
    height, width = (int(size * side / min(shape) + 1e-9) for side in shape)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if resample == Image.Resampling.NEAREST:  # of which that rounding would make another pixel
        whole = Image.fromarray(image).resize((width, height), resample)
        return np.asarray(whole.crop((left, top, left + size, top + size)))
    across, down = image.shape[1] / width, image.shape[0] / height  # stored pixels per scaled one
    right, bottom = min(left + size, width) * across, min(top + size, height) * down
    box = (left * across, top * down, right, bottom)
    return bicubic.resize(image, size, box)


def stretch(
    image: UInt8[np.ndarray, "height width *channels"],
    size: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "{size} {size} *channels"]:
    """Scales the whole picture to a square, whatever its proportions are."""
    return np.asarray(Image.fromarray(image).resize((size, size), resample))


def with_square_pixels(
    image: UInt8[np.ndarray, "height width 3"], pixel_aspect: float
) -> UInt8[np.ndarray, "height shown_width 3"]:
    """Scales the width of a picture whose pixels are `pixel_aspect` times as wide as high."""
    width = max(1, round(image.shape[1] * pixel_aspect))
    scaled = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(scaled)


def displayed(
    image: UInt8[np.ndarray, "height width 3"], matrix: Int32[np.ndarray, "9"]
) -> tuple[UInt8[np.ndarray, "shown_height shown_width 3"], bool]:
    """Rotates and mirrors a picture as a file's display matrix says.

    Args:
      image: as it is stored.
      matrix: (a b u, c d v, x y w): a point goes from (x, y) to (a x + c y, b x + d y).

    Returns:
      The picture, and whether its width and height have changed places. Angles that are no
      multiple of 90° are rounded.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    turned = abs(a) < abs(b)
    image = image.swapaxes(0, 1) if turned else image
    left, up = (c < 0, b < 0) if turned else (a < 0, d < 0)
    return np.ascontiguousarray(image[:: -1 if up else 1, :: -1 if left else 1]), turned


def read_picture(
    path: str | Path, modes: tuple[str, ...] = MODES
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads a JPEG or PNG as RGB, whose colours must be of one of the given modes (of Pillow).

    Raises:
      MediaError: missing, too_large or unreadable.
    """
    check_file(path)
    try:
        with opened(path, ("JPEG", "PNG")) as picture:
            check_size(path, picture.width, picture.height)
            check_mode(path, picture.mode, modes)
            return np.asarray(picture.convert("RGB"))
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{path} claims too many pixels.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error


def encode_jpeg(image: UInt8[np.ndarray, "height width 3"], quality: int) -> bytes:
    """Returns an RGB image as a baseline JPEG with 4:2:0 chroma (Pillow's quality scale)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def decode_jpeg(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a stored frame.

    Raises:
      OSError: if the data are truncated, damaged or no JPEG.
    """
    try:
        return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        raise OSError(str(error)) from error
