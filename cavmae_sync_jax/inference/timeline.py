"""A file of any length to pairs: pictures and the windows of sound that belong to them.

A file that is not longer than a clip gives the same pairs as preparation and `evals.retrieval`: the
same pictures (JPEGs of quality 95) and the same windows of the same log-mel (float16). A longer
file has a pair every `every` seconds. Its windows are centred on their pictures. At the two ends
of the file they are moved inside it.

Long files are read in blocks, so memory does not grow with their length. All times are seconds.
"""

import math
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Float32, Int16, UInt8

from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.inference import reading
from cavmae_sync_jax.inference.reading import FileInfo, Seconds, Span
from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

# How much is read at once. A file is opened for each block, and a long one opens slowly: files of
# hours have longer blocks.
BLOCK_SECONDS, LONGEST_BLOCK, BLOCKS = 60.0, 240.0, 100
STORED_FRAMES = 16  # as data_prep stores, if nobody asks for another number
# The reference spreads a clip's 10 s over 1024 rows, although they have 998.
_ROWS_PER_SECOND = 102.4
_RAGGED = 1.05  # a file up to this many clips long is one clip, as in preparation
_HOP = audio.SAMPLE_RATE // audio.ROWS_PER_SECOND  # samples from row to row


class Pairs(NamedTuple):
    """Pairs of a file, in their order.

    `times` are the moments of the pictures, in seconds from the file's start. `audio` is raw
    log-mel. `visual` is RGB, or None for a sound alone. `padded` is the share of each window that
    lies beyond the sound's end.
    """

    times: Float[np.ndarray, " pairs"]
    audio: Float[np.ndarray, "pairs rows bins"]
    visual: UInt8[np.ndarray, "pairs size size 3"] | None
    padded: Float32[np.ndarray, " pairs"]


def clip_seconds(spec: PairSpec) -> float:
    """The length of the clips that a model was trained on: 10 s for the paper's 1024 rows."""
    return spec.clip_rows / _ROWS_PER_SECOND


def pairs_of_file(
    info: FileInfo,
    spec: PairSpec,
    start: Seconds | None = None,
    end: Seconds | None = None,
    every: Seconds | None = None,
) -> Iterator[Pairs]:
    """Yields the pairs of a video or a sound, some at a time.

    Args:
      info: the file.
      spec: the model's sizes.
      start: where to begin; None is the file's start.
      end: where to end; None, or anything later, is the file's end.
      every: seconds between pairs; None is a clip's length divided by its number of frames, and
        makes of a file that is no longer than a clip what `evals.retrieval` does.

    Raises:
      UserError: if the file can't be read, has no picture or no sound, or nothing lies in the span.
    """
    begin = 0.0 if start is None else float(start)
    until = info.seconds if end is None else min(float(end), info.seconds)
    if begin < 0 or not begin < until:
        raise UserError(f"{info.path} has {info.seconds:.2f} s, and nothing in the span asked for")
    whole = clip_seconds(spec)
    if every is None and until - begin <= _RAGGED * whole:
        span = Span(
            info.path,
            info.kind,
            begin,
            min(until, begin + whole),
            max(STORED_FRAMES, spec.num_frames),
            spec.image_size,
        )
        (content,) = reading.contents([span])
        yield clip_pairs(content, spec, begin, info.path)
        return
    step = whole / spec.num_frames if every is None else float(every)
    if not 0 < step < math.inf:
        raise UserError(f"every must be above 0 seconds, not {every:g}")
    spans = _spans(info, spec, begin, until, step)
    yield from _streamed(reading.contents(spans), spans, spec, step, info)


def pairs_of_waveform(
    waveform: Int16[np.ndarray, " samples"], spec: PairSpec, every: Seconds | None = None
) -> Iterator[Pairs]:
    """Yields the windows of a 16 kHz waveform, as if it were a file; else as `pairs_of_file`.

    Raises:
      UserError: if it is shorter than 25 ms.
    """
    seconds, whole = len(waveform) / audio.SAMPLE_RATE, clip_seconds(spec)
    info = FileInfo("the sound", "sound", seconds)
    if every is None and seconds <= _RAGGED * whole:
        cut = waveform[: round(whole * audio.SAMPLE_RATE)]
        length = len(cut) / audio.SAMPLE_RATE
        yield clip_pairs(reading.Content([], cut, length), spec, 0.0, info.path)
        return
    step = whole / spec.num_frames if every is None else float(every)
    if not 0 < step < math.inf:
        raise UserError(f"every must be above 0 seconds, not {every:g}")
    spans = _spans(info, spec, 0.0, seconds, step)
    parts = (
        reading.Content(
            [], waveform[_sample(span.start) : _sample(span.end)], span.end - span.start
        )
        for span in spans
    )
    yield from _streamed(parts, spans, spec, step, info)


def clip_pairs(content: reading.Content, spec: PairSpec, start: float, name: str) -> Pairs:
    """The pairs of one clip, by the loader's own rule on the example that preparation would make.

    Raises:
      UserError: if the sound is shorter than 25 ms.
    """
    fbank = _fbank(content.waveform, name)
    stored, seconds = max(STORED_FRAMES, spec.num_frames), content.seconds
    record = {"frames": content.jpegs, "fbank": fbank, "seconds": seconds}
    chosen = [frame * stored // spec.num_frames for frame in range(spec.num_frames)]
    if content.jpegs:
        pairs = [spec.pair(record, frame) for frame in range(spec.num_frames)]
        windows = np.stack([pair[AUDIO] for pair in pairs])
        visual = np.stack([pair[VISUAL] for pair in pairs])
    else:
        sizes = stored, spec.clip_rows, spec.audio_rows
        spread = {"seconds": seconds, "spread": spec.window_spread}
        cut = [audio.cut_window(fbank, frame, *sizes, **spread) for frame in chosen]
        windows, visual = np.stack(cut), None
    when = [
        audio.frame_time(
            frame,
            stored,
            spec.audio_rows,
            sound_rows=len(fbank),
            seconds=seconds,
            start=start,
            clip_rows=spec.clip_rows,
            spread=spec.window_spread,
        )
        for frame in chosen
    ]
    return Pairs(_moments(when), windows, visual, _padded(when))


def _moments(when: list[audio.FrameTime]) -> Float[np.ndarray, " pairs"]:
    return np.array([time.moment for time in when])


def _padded(when: list[audio.FrameTime]) -> Float32[np.ndarray, " pairs"]:
    return np.array([time.padded_share for time in when], np.float32)


def _fbank(waveform: Int16[np.ndarray, " samples"], name: str) -> Float16[np.ndarray, "rows bins"]:
    if len(waveform) < audio.FEWEST_SAMPLES:
        raise UserError(
            f"{name} has {1000 * len(waveform) / audio.SAMPLE_RATE:.0f} ms of sound: "
            "25 ms are the shortest"
        )
    return audio.log_mel(waveform / np.float32(32768), audio.SAMPLE_RATE).astype(np.float16)


def _sample(seconds: float) -> int:
    return round(seconds * audio.SAMPLE_RATE)


def _spans(info: FileInfo, spec: PairSpec, begin: float, until: float, step: float) -> list[Span]:
    """Blocks of whole steps; a rest of the file that is shorter than a step has no pair."""
    count = max(1, int((until - begin) / step + 1e-6))
    seconds = max(BLOCK_SECONDS, min((until - begin) / BLOCKS, LONGEST_BLOCK))
    a_block = max(1, round(seconds / step))
    spans = []
    for first in range(0, count, a_block):
        pictures = min(a_block, count - first)
        start, end = begin + first * step, min(begin + (first + pictures) * step, until)
        spans.append(Span(info.path, info.kind, start, end, pictures, spec.image_size, block=True))
    return spans


def _streamed(
    contents: Iterable[reading.Content],
    spans: list[Span],
    spec: PairSpec,
    step: float,
    info: FileInfo,
) -> Iterator[Pairs]:
    """Cuts windows as soon as their sound is there, and forgets what none needs any more."""
    begin, count = spans[0].start, sum(span.pictures for span in spans)
    total = _rows(_sample(spans[-1].end) - _sample(begin))

    def window(number: int) -> audio.FrameTime:
        return audio.frame_time(
            number,
            count,
            spec.audio_rows,
            sound_rows=total,
            seconds=count * step,
            start=begin,
            clip_rows=None,
        )

    waveform = np.zeros(0, np.int16)  # what comes after the rows of `fbank`
    fbank, first = np.zeros((0, spec.audio_bins), np.float16), 0  # and the number of its first row
    jpegs: list[bytes] = []
    done = pending = 0  # pairs
    refused, sounds = "", False
    for span, content in zip(spans, contents, strict=True):
        last = span is spans[-1]
        refused, sounds = refused or content.refused, sounds or bool(content.waveform.any())
        if last and refused and not sounds:
            raise UserError(refused)
        length = _sample(span.end) - _sample(span.start)
        # Sound that ends a little early would put all later blocks out of step.
        missing = 0 if last else max(0, length - len(content.waveform))
        waveform = np.concatenate([waveform, np.pad(content.waveform[:length], (0, missing))])
        if ready := _rows(len(waveform)):
            fbank = np.concatenate([fbank, _fbank(waveform, info.path)])
            waveform = waveform[ready * _HOP :]
        elif last and not first and not len(fbank):
            _fbank(waveform, info.path)  # says that it is too short
        held = first + len(fbank)
        total = held if last else total
        jpegs += content.jpegs
        pending += span.pictures
        when = [window(number) for number in range(done, pending)]
        if not last:
            when = [time for time in when if time.first_row + spec.audio_rows <= held]
        if not when:
            continue
        windows = np.stack([_cut(fbank, time.first_row - first, spec.audio_rows) for time in when])
        shown, jpegs = jpegs[: len(when)], jpegs[len(when) :]
        visual = np.stack([images.decode_jpeg(jpeg) for jpeg in shown]) if shown else None
        yield Pairs(_moments(when), windows, visual, _padded(when))
        done += len(when)
        if not last:
            # Sound that ends earlier than its file moves the last windows back.
            needed = max(0, min(window(done).first_row, held - spec.audio_rows))
            fbank, first = fbank[max(0, needed - first) :], max(first, needed)


def _rows(samples: int) -> int:
    return max(0, (samples - audio.FEWEST_SAMPLES) // _HOP + 1)


def _cut(
    fbank: Float16[np.ndarray, "rows bins"], start: int, length: int
) -> Float16[np.ndarray, "{length} bins"]:
    rows = fbank[start : start + length]
    return np.pad(rows, ((0, length - len(rows)), (0, 0)))


def picture(source: str | os.PathLike | np.ndarray, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A still picture in a model's size, coded as a dataset stores it.

    Args:
      source: a file, or RGB `[height, width, 3]` as uint8.
      size: height and width in pixels.

    Raises:
      UserError: if it is not a picture.
    """
    if not isinstance(source, np.ndarray):
        return images.decode_jpeg(reading.read_picture(source, size))
    if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
        raise UserError(
            "a picture is uint8 [height, width, 3], "
            f"not {source.dtype} of shape {list(source.shape)}"
        )
    return images.decode_jpeg(reading.as_stored(source, size))
