"""Real objects for scenes: photo cut-outs and sounds in the layout of Tux Paint's stamps.

A folder, searched with its subfolders, holds `NAME.png`, a photo with a transparent background, and
`NAME.ogg` or `NAME.wav`, what it sounds like. NAME is the class. Every instance is flipped, turned,
recoloured a little, and played at another speed, so that no two are the same.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, Float32
from PIL import Image
from scipy import signal

from cavmae_sync_jax.media.audio import SAMPLE_RATE
from cavmae_sync_jax.utils import listing
from cavmae_sync_jax.utils.errors import UserError
from data_prep.synthetic import sprites
from data_prep.synthetic.objects import Picture, Sprite

MAX_PIXELS = 2**24
MAX_SECONDS = 60
SMALLEST = 64  # pixels of a photo's longer side; smaller ones are icons that would be blurred
_KEPT_PIXELS = 512  # longer side that a photo is kept at in memory
_PICTURES = (".jpeg", ".jpg", ".png", ".webp")
_SOUNDS = (".ogg", ".wav")
_AUDIBLE = 0.01  # share of the peak; quieter ends are cut off
_SILENCE = 1e-4  # of full scale; what never gets louder is silent
_SPEED = 0.18  # natural log of the largest change of speed, and with it of pitch


@dataclass(frozen=True)
class AssetObjects:
    """An object source with one class for each pair of a photo and a sound."""

    class_names: tuple[str, ...]
    photos: tuple[Sprite, ...]
    sounds: tuple[Float32[np.ndarray, " _samples"], ...]

    def sprite(self, class_id: int, extent: float, rng: np.random.Generator) -> Sprite:
        """See `ObjectSource`."""
        image = Image.fromarray(self.photos[class_id])
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
        image = _cropped(image)
        aspect = math.exp(rng.uniform(-0.16, 0.16))
        image = image.resize(sprites.fitted(image.size, extent, aspect))
        hue, saturation, value = np.moveaxis(
            np.asarray(image.convert("RGB").convert("HSV"), np.int32), 2, 0
        )
        hue = (hue + rng.integers(-12, 13)) % 256
        saturation = np.clip(saturation * rng.uniform(0.7, 1.3), 0, 255)
        value = np.clip(value * rng.uniform(0.75, 1.25), 0, 255)
        hsv = np.stack([hue, saturation, value], axis=2).astype(np.uint8)
        colour = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
        return np.dstack([colour, np.asarray(image)[:, :, 3]])

    def sound(
        self, class_id: int, seconds: float, rng: np.random.Generator
    ) -> Float[np.ndarray, " samples"]:
        """See `ObjectSource`; a short sound is repeated with pauses, a long one cut."""
        speed = math.exp(rng.uniform(-_SPEED, _SPEED))
        once = signal.resample_poly(self.sounds[class_id], 100, round(100 * speed))
        samples = round(seconds * SAMPLE_RATE)
        parts, length = [], 0
        while length < samples:
            pause = np.zeros(round(rng.uniform(0.1, 0.4) * SAMPLE_RATE))
            parts += [once, pause]
            length += len(once) + len(pause)
        first = int(rng.integers(max(0, len(once) - samples) + 1))
        return np.concatenate(parts)[first : first + samples]


def find_assets(folder: str | Path) -> AssetObjects:
    """Reads all pairs of a folder.

    Photos without a sound, with a silent one, or under SMALLEST pixels are left out. Of pairs with
    the same name or the very same sound, which nobody could tell apart, only the first by path
    stays.

    Raises:
      UserError: there are fewer than two pairs, or a file is unreadable, too large, opaque
        or empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--assets={folder} is not a folder")
    names, photos, sounds, heard = [], [], [], set()
    for path in _visible(folder, "*.png"):
        sound = next((p for p in map(path.with_suffix, _SOUNDS) if p.is_file()), None)
        if sound is None or path.stem in names:
            continue
        photo = _read_photo(path)
        wave = _read_sound(sound)
        digest = hashlib.sha256(wave.tobytes()).digest()
        if len(wave) and digest not in heard and max(photo.shape[:2]) >= SMALLEST:
            heard.add(digest)
            names.append(path.stem)
            photos.append(photo)
            sounds.append(wave)
    if len(names) < 2:
        raise UserError(
            f"--assets={folder} has {len(names)} usable pairs and needs two or more: photos "
            f"NAME.png of at least {SMALLEST} pixels with a transparent background, each beside "
            "its sound NAME.ogg or NAME.wav"
        )
    return AssetObjects(tuple(names), tuple(photos), tuple(sounds))


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Returns what matches a pattern in a folder and its subfolders and is not hidden, in order."""
    found = ((path, path.relative_to(folder).parts) for path in folder.rglob(pattern))
    return sorted(path for path, parts in found if not any(map(listing.is_hidden, parts)))


def _open(path: Path) -> Image.Image:
    """Opens a picture without decoding it."""
    try:
        image = Image.open(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} can't be read as a picture") from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are allowed"
        )
    return image


def _decoded(path: Path, mode: str) -> Image.Image:
    try:
        return _open(path).convert(mode)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {error}") from error


def _read_photo(path: Path) -> Sprite:
    image = _decoded(path, "RGBA")
    alpha = np.asarray(image)[:, :, 3]
    if alpha.min() > 127:
        raise UserError(f"{path} has no transparent background; cut the object out")
    if alpha.max() == 0:
        raise UserError(f"{path} is transparent everywhere")
    # A pane of glass is an object too: what is most opaque counts as opaque.
    image.putalpha(Image.fromarray((alpha * (255 / alpha.max())).astype(np.uint8)))
    image.thumbnail((_KEPT_PIXELS, _KEPT_PIXELS))
    return np.asarray(_cropped(image))


def _cropped(image: Image.Image) -> Image.Image:
    """Cuts an RGBA picture to the pixels that `sprites.opaque` counts as the object."""
    opaque = sprites.opaque(np.asarray(image))
    return image.crop(Image.fromarray(opaque).getbbox())


def _read_sound(path: Path) -> Float32[np.ndarray, " samples"]:
    """Returns a sound at 16 kHz, one channel, without silent ends; of a silent file, nothing."""
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
    blocks, length = [], 0
    try:
        with av.open(str(path.absolute()), options={"protocol_whitelist": "file"}) as container:
            for frame in container.decode(audio=0):
                blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
                length += frame.samples
                if length > MAX_SECONDS * frame.sample_rate:
                    raise UserError(f"{path} is longer than {MAX_SECONDS} s")
            blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path} can't be read as a sound") from error
    wave = np.concatenate(blocks or [np.zeros(0, np.float32)])
    wave = wave - wave.mean() if len(wave) else wave
    peak = float(np.abs(wave).max(initial=0))
    audible = np.flatnonzero(np.abs(wave) > max(_AUDIBLE * peak, _SILENCE))
    return wave[audible[0] : audible[-1] + 1] if len(audible) else wave[:0]


@dataclass(frozen=True)
class PictureBackgrounds:
    """Backgrounds cut from pictures, at a random place and scale."""

    paths: tuple[Path, ...]

    def __call__(self, size: int, rng: np.random.Generator) -> Picture:
        """Returns a background of size × size pixels."""
        image = _decoded(self.paths[rng.integers(len(self.paths))], "RGB")
        scale = size * rng.uniform(1.0, 1.5) / min(image.size)
        shape = [max(size, round(side * scale)) for side in image.size]
        left, top = (int(rng.integers(side - size + 1)) for side in shape)
        image = image.resize(shape).crop((left, top, left + size, top + size))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        brightness = rng.uniform(0.7, 1.2)
        return np.clip(np.asarray(image) * brightness, 0, 255).astype(np.uint8)


def find_backgrounds(folder: str | Path) -> PictureBackgrounds:
    """Finds all pictures of a folder and its subfolders.

    Raises:
      UserError: there is none, or one has no readable header or is too large.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--backgrounds={folder} is not a folder")
    found = _visible(folder, "*")
    paths = [path for path in found if path.suffix.lower() in _PICTURES and path.is_file()]
    if not paths:
        raise UserError(f"--backgrounds={folder} has no pictures ({' '.join(_PICTURES)})")
    for path in paths:
        _open(path).close()
    return PictureBackgrounds(tuple(paths))
