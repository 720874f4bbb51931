"""Composes a scene: who sounds where and when, the frames, the sound, and the exact truth.

A clip is a sequence of segments: one to three events with pauses between some of them. During an
event one object sounds and is on screen. A silent object may also be on screen, during events and
pauses. It moves to a sound that is not heard. So neither presence nor motion shows which object
sounds.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from cavmae_sync_jax.media.audio import SAMPLE_RATE
from data_prep.synthetic import sprites as scene_sprites
from data_prep.synthetic.objects import Background, ObjectSource, Picture, Sprite

FRAME_RATE = 16  # video frames per second
EVENT_COUNTS = (0.2, 0.4, 0.4)  # chance of one, two, three events
PAUSE_CHANCE = 0.3  # before, between and after the events
SILENT_OBJECT_CHANCE = 0.6  # per segment
SHORTEST = {True: 2.0, False: 0.8}  # seconds of an event, of a pause
EXTENT = (0.3, 0.5)  # geometric mean of an object's height and width, in picture heights
CENTRE = (0.18, 0.82)  # range of an object's centre, in picture heights
APART = 0.42  # least distance of two centres, in picture heights
REACH = 0.06  # displacement at full loudness, in picture heights
SCALES = (0.9, 0.95, 1.0, 1.05, 1.1)  # of the extent, from silence to full loudness
LEVEL = (-28.0, -18.0)  # dBFS (RMS) of a sounding object
NOISE = (-56.0, -44.0)  # dBFS (RMS) of the background noise
FADE = 0.02  # seconds, at both ends of an event


class Event(NamedTuple):
    """A class sounds from `start` to `end` (seconds; the end is excluded)."""

    class_id: int
    start: float
    end: float


@dataclass(frozen=True)
class Layer:
    """A sprite on screen during the frames `first` to `last - 1`."""

    class_id: int
    sounds: bool
    sprites: tuple[Sprite, ...]  # one for each of SCALES
    centre: tuple[float, float]  # (y, x) in pixels, when it is silent
    push: tuple[float, float]  # displacement (y, x) in pixels at full loudness
    first: int
    loudness: Float[np.ndarray, " shown"]  # 0 to 1, for each frame it is shown

    @property
    def last(self) -> int:
        """The frame after the last one it is shown in."""
        return self.first + len(self.loudness)


@dataclass(frozen=True)
class Scene:
    """All that is needed to render a clip; the layers are ordered from back to front."""

    background: Picture
    layers: tuple[Layer, ...]
    events: tuple[Event, ...]
    waveform: Float[np.ndarray, " samples"]  # 16 kHz, within -1 to 1
    frames: int


class Truth(NamedTuple):
    """What sounds in chosen frames, and what is silent on screen; -1 and an empty mask if nothing.

    The masks hold visible pixels only: what covers an object is not in its mask.
    """

    frame_class: Int[np.ndarray, " frames"]
    frame_mask: Bool[np.ndarray, "frames height width"]
    frame_silent_class: Int[np.ndarray, " frames"]
    frame_silent_mask: Bool[np.ndarray, "frames height width"]


class SceneSegment(NamedTuple):
    """What is on screen from `start` to `end` (seconds): classes, and whether each sounds."""

    start: float
    end: float
    casts: tuple[tuple[int, bool], ...]


def compose(
    objects: ObjectSource,
    background: Background,
    size: int,
    seconds: float,
    rng: np.random.Generator,
) -> Scene:
    """Draws a scene of size × size pixels; the same generator state gives the same scene."""
    segments: list[SceneSegment] = []
    heard = -1
    for start, end, sounds in _timeline(seconds, rng):
        casts = []
        if sounds:
            heard = _other_class(objects, heard, rng)
            casts.append((heard, True))
        if rng.random() < SILENT_OBJECT_CHANCE:
            casts.append((_other_class(objects, heard if sounds else -1, rng), False))
        segments.append(SceneSegment(start, end, tuple(casts)))
    return stage(objects, background, size, segments, rng)


def stage(
    objects: ObjectSource,
    background: Background,
    size: int,
    segments: list[SceneSegment],
    rng: np.random.Generator,
) -> Scene:
    """Draws a scene with given classes at given times; the segments follow each other from 0 s."""
    layers: list[Layer] = []
    events: list[Event] = []
    seconds = segments[-1].end
    picture = background(size, rng)
    waveform = _noise(round(seconds * SAMPLE_RATE), rng)
    for start, end, casts in segments:
        shown = []
        for (class_id, sounds), centre in zip(casts, _centres(len(casts), rng), strict=True):
            sound = _levelled(objects.sound(class_id, end - start, rng), rng)
            if sounds:
                events.append(Event(class_id, start, end))
                first = round(start * SAMPLE_RATE)
                waveform[first : first + len(sound)] += sound[: len(waveform) - first]
            layer = _layer(objects, class_id, sounds, sound, (start, end), centre, size, rng)
            shown.append(layer)
        layers += [shown[i] for i in rng.permutation(len(shown))]
    return Scene(
        background=picture,
        layers=tuple(layers),
        events=tuple(events),
        waveform=np.clip(waveform, -1, 1),
        frames=round(seconds * FRAME_RATE),
    )


def _timeline(seconds: float, rng: np.random.Generator) -> list[tuple[float, float, bool]]:
    """Cuts the clip into segments (start, end, is it an event)."""
    kinds: list[bool] = []
    for _ in range(int(rng.choice([1, 2, 3], p=EVENT_COUNTS))):
        kinds += [False] * int(rng.random() < PAUSE_CHANCE) + [True]
    kinds += [False] * int(rng.random() < PAUSE_CHANCE)
    shortest = np.array([SHORTEST[kind] for kind in kinds])
    spare = rng.dirichlet([2.0 if kind else 0.6 for kind in kinds])
    lengths = shortest + spare * (seconds - shortest.sum())
    bounds = [0.0, *np.cumsum(lengths)[:-1].tolist(), seconds]
    return list(zip(bounds[:-1], bounds[1:], kinds, strict=True))


def _other_class(objects: ObjectSource, excluded: int, rng: np.random.Generator) -> int:
    """Draws a class that is not `excluded` (-1 excludes none)."""
    return int(rng.choice([k for k in range(len(objects.class_names)) if k != excluded]))


def _centres(count: int, rng: np.random.Generator) -> Float[np.ndarray, "objects 2"]:
    """Draws centres in picture heights, exchangeable between the objects, APART from each other."""
    while True:
        centres = rng.uniform(*CENTRE, (count, 2))
        if count < 2 or math.dist(*centres) >= APART:
            return centres


def _layer(
    objects: ObjectSource,
    class_id: int,
    sounds: bool,
    sound: Float[np.ndarray, " samples"],
    span: tuple[float, float],
    centre: Float[np.ndarray, " 2"],
    size: int,
    rng: np.random.Generator,
) -> Layer:
    extent = rng.uniform(*EXTENT) * size
    largest = Image.fromarray(objects.sprite(class_id, extent * SCALES[-1], rng))
    sprites = []
    for scale in SCALES:
        shape = [max(1, round(side * scale / SCALES[-1])) for side in largest.size]
        sprites.append(np.asarray(largest.resize(shape, Image.Resampling.BICUBIC)))
    angle = rng.uniform(0, 2 * math.pi)
    push = (REACH * size * math.sin(angle), REACH * size * math.cos(angle))
    first, last = (math.ceil(bound * FRAME_RATE) for bound in span)
    loudness = _loudness(sound, [frame / FRAME_RATE - span[0] for frame in range(first, last)])
    place = (float(centre[0]) * size, float(centre[1]) * size)
    return Layer(class_id, sounds, tuple(sprites), place, push, first, loudness)


def _loudness(
    sound: Float[np.ndarray, " samples"], times: list[float]
) -> Float[np.ndarray, " shown"]:
    """RMS of the video frame that begins at each of `times` (seconds), over its largest value."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(sound))])
    first = np.round(np.array(times) * SAMPLE_RATE).astype(int)
    last = np.minimum(first + SAMPLE_RATE // FRAME_RATE, len(sound))
    rms = np.sqrt(np.maximum(energy[last] - energy[first], 0) / np.maximum(last - first, 1))
    return rms / max(float(rms.max()), 1e-9)


def _levelled(
    sound: Float[np.ndarray, " samples"], rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """Sets a sound to a random RMS and fades its ends; peaks over five times the RMS are bent."""
    sound = sound / np.sqrt(np.mean(np.square(sound)))
    sound = 5 * np.tanh(sound / 5)
    fade = np.minimum(np.arange(1, len(sound) + 1) / (FADE * SAMPLE_RATE), 1)
    sound = sound * fade * fade[::-1]
    return sound * _amplitude(LEVEL, rng) / np.sqrt(np.mean(np.square(sound)))


def _noise(samples: int, rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """Noise whose spectrum falls with a random slope, white to pink."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -rng.uniform(0, 0.5)
    noise = np.fft.irfft(spectrum, samples)
    return noise * _amplitude(NOISE, rng) / np.sqrt(np.mean(np.square(noise)))


def _amplitude(decibels: tuple[float, float], rng: np.random.Generator) -> float:
    return 10 ** (rng.uniform(*decibels) / 20)


def render(scene: Scene) -> UInt8[np.ndarray, "frames height width 3"]:
    """Paints all frames of a scene."""
    video = np.repeat(scene.background[None], scene.frames, axis=0)
    for layer in scene.layers:
        for frame in range(layer.first, layer.last):
            sprite, rows, columns = _placed(layer, frame, video.shape[1:3])
            under = video[frame, rows, columns].astype(np.int32)
            alpha = sprite[:, :, 3:].astype(np.int32)
            video[frame, rows, columns] = under + (sprite[:, :, :3] - under) * alpha // 255
    return video


def truth(scene: Scene, num_frames: int) -> Truth:
    """Returns classes and visible masks in the frames that `decoding.read_clip` picks."""
    height, width = scene.background.shape[:2]
    frames = [index * scene.frames // num_frames for index in range(num_frames)]
    classes = {sounds: np.full(len(frames), -1, np.int64) for sounds in (True, False)}
    masks = {sounds: np.zeros((len(frames), height, width), bool) for sounds in (True, False)}
    for row, frame in enumerate(frames):
        for layer in scene.layers:
            if layer.first <= frame < layer.last:
                sprite, rows, columns = _placed(layer, frame, (height, width))
                classes[layer.sounds][row] = layer.class_id
                opaque = scene_sprites.opaque(sprite)
                masks[not layer.sounds][row, rows, columns] &= ~opaque
                masks[layer.sounds][row, rows, columns] |= opaque
    return Truth(classes[True], masks[True], classes[False], masks[False])


def _placed(layer: Layer, frame: int, shape: tuple[int, ...]) -> tuple[Sprite, slice, slice]:
    """Returns the part of the sprite inside the picture, and the rows and columns it covers."""
    loudness = float(layer.loudness[frame - layer.first])
    sprite = layer.sprites[round(loudness * (len(SCALES) - 1))]
    spans, cuts = [], []
    for axis in range(2):
        centre = layer.centre[axis] + loudness * layer.push[axis]
        begin = round(centre - sprite.shape[axis] / 2)
        first, last = max(begin, 0), min(begin + sprite.shape[axis], shape[axis])
        spans.append(slice(first, last))
        cuts.append(slice(first - begin, last - begin))
    return sprite[cuts[0], cuts[1]], spans[0], spans[1]
