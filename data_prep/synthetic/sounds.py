"""Synthesised sounds of twelve families; every instance differs.

A family is a pattern in time and frequency. Pitch, tempo and timbre are drawn from the same
distributions for all families, and loudness is set later. So none of them alone identifies a
family.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import signal

from cavmae_sync_jax.media.audio import SAMPLE_RATE

Wave = Float[np.ndarray, " samples"]
Partials = Float[np.ndarray, " partials"]


class Traits(NamedTuple):
    """What varies between the instances of every family."""

    pitch: float  # Hz: the tone's, or the geometric middle of what it sweeps over
    tempo: float  # strokes, sweeps or steps per second
    harmonics: Partials  # amplitudes of the partials 1, 2, 3, ... times the pitch


def draw_traits(rng: np.random.Generator) -> Traits:
    """Draws pitch (220 to 880 Hz), tempo (1.6 to 3.6 per second) and timbre."""
    pitch = 220 * 4 ** rng.random()
    tempo = 1.6 * 2.25 ** rng.random()
    number = np.arange(1, 9)
    harmonics = number ** -rng.uniform(0.6, 2.0) * rng.uniform(0.3, 1.0, 8)
    harmonics[0] = 1.0
    return Traits(pitch, tempo, harmonics)


def play(family: str, seconds: float, rng: np.random.Generator) -> Wave:
    """Returns a new instance of a family, float64 at 16 kHz, its loudness not yet set."""
    traits = draw_traits(rng)
    samples = max(1, round(seconds * SAMPLE_RATE))
    wave = FAMILIES[family](np.arange(samples) / SAMPLE_RATE, traits, rng)
    return wave * rng.choice([-1.0, 1.0])


def _tone(frequency: Wave, harmonics: Partials) -> Wave:
    """A harmonic tone with the instantaneous `frequency`; partials over 7.5 kHz are left out."""
    phase = 2 * math.pi * np.cumsum(frequency) / SAMPLE_RATE
    wave = np.zeros_like(phase)
    for number, amplitude in enumerate(harmonics, 1):
        wave += amplitude * np.where(number * frequency < 7500, np.sin(number * phase), 0)
    return wave


def _strokes(
    time: Wave, tempo: float, rng: np.random.Generator, unevenness: float = 0.0
) -> list[tuple[int, int]]:
    """The (first, last) samples of consecutive strokes; the first may already be under way."""
    period = SAMPLE_RATE / tempo
    starts = [-rng.random() * period]
    while starts[-1] < len(time):
        starts.append(starts[-1] + period * (1 + rng.uniform(-unevenness, unevenness)))
    return [(round(a), round(b)) for a, b in itertools.pairwise(starts)]


def _struck(
    time: Wave,
    strokes: list[tuple[int, int]],
    sound: Callable[[Wave], Wave],
) -> Wave:
    """Adds up `sound` (of the seconds since the stroke) from each stroke to the end of the next."""
    wave = np.zeros_like(time)
    for start, end in strokes:
        since = np.arange(2 * (end - start)) / SAMPLE_RATE
        note = sound(since)
        first, last = max(start, 0), min(start + len(note), len(time))
        if first < last:
            wave[first:last] += note[first - start : last - start]
    return wave


def _gate(time: Wave, strokes: list[tuple[int, int]], duty: float) -> Wave:
    """1 during the first `duty` of each stroke, else 0, with edges of 8 ms."""
    gate = np.zeros_like(time)
    for start, end in strokes:
        gate[max(start, 0) : max(start + round(duty * (end - start)), 0)] = 1
    edge = np.hanning(129)
    return signal.oaconvolve(gate, edge / edge.sum(), mode="same")


def _sweep(time: Wave, strokes: list[tuple[int, int]], traits: Traits, octaves: float) -> Wave:
    frequency = np.full_like(time, traits.pitch)
    for start, end in strokes:
        first, last = max(start, 0), min(end, len(time))
        position = np.arange(first - start, last - start) / (end - start)
        frequency[first:last] = traits.pitch * 2 ** (octaves * (position / 0.8 - 0.5))
    return _tone(frequency, traits.harmonics) * _gate(time, strokes, 0.8)


def _band(time: Wave, low: float, high: float, rng: np.random.Generator) -> Wave:
    sections = signal.butter(2, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos")
    return signal.sosfilt(sections, rng.standard_normal(len(time)))


def _beeps(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    frequency = np.full_like(time, traits.pitch)
    gate = _gate(time, _strokes(time, traits.tempo, rng), rng.uniform(0.4, 0.6))
    return _tone(frequency, traits.harmonics) * gate


def _rising(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    return _sweep(time, _strokes(time, traits.tempo, rng), traits, rng.uniform(1.2, 1.8))


def _falling(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    return _sweep(time, _strokes(time, traits.tempo, rng), traits, -rng.uniform(1.2, 1.8))


def _bursts(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    width = rng.uniform(1.6, 3.0)
    noise = _band(time, traits.pitch / width, traits.pitch * width, rng)
    return noise * _gate(time, _strokes(time, traits.tempo, rng), rng.uniform(0.35, 0.55))


def _bell(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    ratios = np.array([1.0, 1.52, 2.34, 3.18, 4.45, 6.1]) * rng.uniform(0.98, 1.02, 6)
    levels, decay = traits.harmonics[:6] ** 0.5, rng.uniform(2.0, 4.0)

    def note(since: Wave) -> Wave:
        partials = np.exp(-decay * ratios[:, None] ** 0.5 * since) * np.sin(
            2 * math.pi * traits.pitch * ratios[:, None] * since
        )
        return levels @ partials * np.minimum(since / 0.002, 1)

    return _struck(time, _strokes(time, traits.tempo * 0.7, rng), note)


def _siren(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    swing = np.sin(2 * math.pi * (traits.tempo * 0.6 * time + rng.random()))
    return _tone(traits.pitch * 2 ** (rng.uniform(0.6, 0.9) * swing), traits.harmonics)


def _clicks(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    decay = rng.uniform(150, 300)
    colour = rng.standard_normal(2 * SAMPLE_RATE) * 0.3

    def click(since: Wave) -> Wave:
        body = np.sin(2 * math.pi * traits.pitch * since) + colour[: len(since)]
        return np.exp(-decay * since) * body

    return _struck(time, _strokes(time, traits.tempo * 4, rng, unevenness=0.1), click)


def _buzz(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    # Partials of a quarter of the pitch, strongest around the pitch, as in a rough voice.
    octaves = np.log2(np.arange(1, 17) / 4)
    partials = np.exp(-((octaves / rng.uniform(0.7, 1.2)) ** 2))
    wave = _tone(np.full_like(time, traits.pitch / 4), partials)
    depth, phase = rng.uniform(0.5, 0.9), 2 * math.pi * rng.random()
    return wave * (1 + depth * np.sin(2 * math.pi * traits.tempo * 5 * time + phase))


def _trill(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    switch = np.sin(2 * math.pi * (traits.tempo * 2.2 * time + rng.random())) > 0
    octaves = np.where(switch, 0.5, -0.5) * rng.uniform(0.45, 0.75)
    return _tone(traits.pitch * 2**octaves, traits.harmonics)


def _pluck(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    # Karplus-Strong: a burst of noise in a delay line that loses its high partials first.
    wave = np.zeros_like(time)
    for start, end in _strokes(time, traits.tempo, rng):
        period = round(SAMPLE_RATE / (traits.pitch * rng.choice([0.75, 1.0, 4 / 3])))
        burst = np.zeros(end - start)
        burst[:period] = rng.uniform(-1, 1, min(period, len(burst)))
        burst[:period] -= burst[:period].mean()
        loop = np.zeros(period + 2)
        loop[0], loop[period:] = 1, -0.4975
        note = signal.lfilter([1.0], loop, burst)
        first, last = max(start, 0), min(end, len(time))
        wave[first:last] = note[first - start : last - start]
    return wave


def _bubbles(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    wave = np.zeros_like(time)
    for _ in range(max(3, round(traits.tempo * 4 * len(time) / SAMPLE_RATE))):
        since = np.arange(round(rng.uniform(0.03, 0.07) * SAMPLE_RATE)) / SAMPLE_RATE
        low = traits.pitch * 2 ** rng.uniform(-1.2, 0.2)
        frequency = low * 2 ** (since / since[-1])
        blip = np.sin(2 * math.pi * np.cumsum(frequency) / SAMPLE_RATE) * np.hanning(len(since))
        start = rng.integers(max(1, len(time) - len(since)))
        wave[start : start + len(since)] += blip[: len(time) - start] * rng.uniform(0.5, 1.0)
    return wave


def _drum(time: Wave, traits: Traits, rng: np.random.Generator) -> Wave:
    decay, drop = rng.uniform(9, 14), rng.uniform(18, 30)
    skin = rng.standard_normal(2 * SAMPLE_RATE) * rng.uniform(0.2, 0.4)

    def thump(since: Wave) -> Wave:
        frequency = traits.pitch * (0.6 + 1.4 * np.exp(-drop * since))
        body = np.sin(2 * math.pi * np.cumsum(frequency) / SAMPLE_RATE)
        return np.exp(-decay * since) * body + np.exp(-60 * since) * skin[: len(since)]

    return _struck(time, _strokes(time, traits.tempo, rng, unevenness=0.25), thump)


FAMILIES: dict[str, Callable[[Wave, Traits, np.random.Generator], Wave]] = {
    "beeps": _beeps,
    "rising": _rising,
    "falling": _falling,
    "bursts": _bursts,
    "bell": _bell,
    "siren": _siren,
    "clicks": _clicks,
    "buzz": _buzz,
    "trill": _trill,
    "pluck": _pluck,
    "bubbles": _bubbles,
    "drum": _drum,
}
