"""A media file to frames and first-channel 16 kHz audio (PyAV; no ffmpeg program needed).

All times are seconds on the file's own timeline, on which its earliest stream starts at 0.
"""

import contextlib
import io
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import Int16, UInt8
from PIL import Image

from cavmae_sync_jax.audio import SAMPLE_RATE

REASONS = {
    "unreadable": "the file can't be opened or decoded",
    "no_video": "there is no video, or none in the span",
    "no_audio": "there is no audio, or none in the span",
    "silent": "the audio never changes its value",
    "too_short": "the span is shorter than asked for, or starts after the file's end",
    "too_large": "a frame has more than MAX_PIXELS pixels",
}
MAX_PIXELS = 2**26

Seconds = float | int  # for checked annotations, an int is no float
_Kind = Literal["video", "audio"]

# All in seconds. A stream that ends this much before the span's end counts as covering it.
_RAGGED_END = 0.5
# Decoding starts this much before the span, so that decoders and resampler have settled in it.
_RUN_UP = 1.0
# Audio is decoded this much past the span, so that its end isn't the resampler's end.
_RUN_OUT = 0.1
# Timestamps this much off what the samples before them add up to are a gap, not rounding.
_GAP = 0.05
# Timestamps are whole milliseconds in some containers.
_ROUNDING = 1e-3
# Containers delay video by up to this for the decoder's sake; more is meant.
_LATE = 0.1


class MediaError(ValueError):
    """A file, or a span of it, that can't be used.

    `reason` is a key of `REASONS`; `detail` is a sentence that names the file.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class MediaInfo(NamedTuple):
    """What a file says of itself: seconds, average frames a second, pixels before any rotation."""

    duration: float
    fps: float
    width: int
    height: int
    audio_channels: int


class Media(NamedTuple):
    """Upright RGB frames of a span, its audio (first channel, 16 kHz), and its length."""

    frames: UInt8[np.ndarray, "frames height width 3"]
    waveform: Int16[np.ndarray, " samples"]
    seconds: float


def probe(path: str | Path) -> MediaInfo:
    """Reads a file's headers (all packets where the headers don't tell the duration).

    Raises:
      MediaError: unreadable, no_video, no_audio, too_short (no duration at all) or too_large.
    """
    with _errors_of(path), _Source(path) as source:
        video, width, height = source.video, source.video.width, source.video.height
        if width * height > MAX_PIXELS:
            raise MediaError("too_large", f"{path} has frames of {width} x {height} pixels.")
        fps = float(video.average_rate or video.guessed_rate or 0)
        duration = source.duration()
        if duration <= 0:
            raise MediaError("too_short", f"{path} has no duration.")
        return MediaInfo(duration, fps, width, height, source.audio.channels)


def read_clip(
    path: str | Path,
    *,
    start: Seconds = 0.0,
    end: Seconds | None = None,
    num_frames: int = 16,
    image_size: int | None = None,
) -> Media:
    """Reads `num_frames` frames spread over the span [start, end), and the audio of all of it.

    `end` is cut to the file's duration, and is that duration where it is None. With `image_size`
    every frame goes through `resize_and_crop` as soon as it is decoded. Memory doesn't grow with
    the file's length, and nothing far outside of the span is decoded.

    Frames: at a constant r frames a second, frame i of T is number int(i * min(n, int(r * d)) / T)
    of the n frames in the span's d seconds; for start = 0 and d = 10 this is the reference's rule.
    At a variable rate it is the frame on screen i * d / T seconds after `start`. Frames repeat if
    there are fewer than T. Where video begins over 0.1 s late or ends over 0.5 s early, its
    first or last frame stands still, to keep in step with audio. Stored rotation is applied.

    Audio: decoded samples are resampled as 16-bit integers in the file's own channel layout, of
    which the first channel is taken (not a downmix). Samples are put where their timestamps say,
    with silence in gaps. Audio that ends up to half a second early stays as short as it is; after
    audio that ends earlier there is silence up to the end.

    Raises:
      MediaError: any of `REASONS` but "silent".
      ValueError: the span or `num_frames` makes no sense.
    """
    if start < 0 or num_frames < 1 or (end is not None and end <= start):
        raise ValueError(f"nothing to read: {num_frames} frames from {start} to {end} s")
    duration = probe(path).duration
    start, end = float(start), duration if end is None else min(float(end), duration)
    if end <= start:
        raise MediaError("too_short", f"{path} ends at {duration:.2f} s, not after {start:.2f} s.")
    with _errors_of(path):
        waveform, audio_end = _read_waveform(path, start, end)
        times, video_end = _choose_times(path, start, end, num_frames)
        if max(audio_end, video_end) < end - _RAGGED_END:
            raise MediaError("unreadable", f"{path} ends before the {duration:.2f} s it promises.")
        frames = _read_frames(path, times, image_size)
    if len({frame.shape for frame in frames}) > 1:
        raise MediaError("unreadable", f"{path} changes its picture size within the span.")
    return Media(np.stack(frames), waveform, end - start)


def resize_and_crop(
    image: UInt8[np.ndarray, "height width *channels"],
    size: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "{size} {size} *channels"]:
    """Scales the shorter side to `size` and cuts the central square, as torchvision does."""
    short = min(image.shape[:2])
    height, width = (size * side // short for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), resample)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def encode_jpeg(image: UInt8[np.ndarray, "height width 3"], quality: int) -> bytes:
    """Returns an RGB image as a baseline JPEG with 4:2:0 chroma (Pillow's quality scale)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


@contextlib.contextmanager
def _errors_of(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError("unreadable", f"{path} can't be read: {why}.") from error


class _Source:
    """An open file's first real video stream and first audio stream, on the file's timeline."""

    def __init__(self, path: str | Path):
        self._path = path

    def __enter__(self) -> "_Source":
        # A playlist that calls itself a video must not open connections.
        self._container = av.open(
            str(Path(self._path).absolute()),
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
        self.video = self._best("video")
        self.audio = self._best("audio")
        # Clips are prepared in many processes at once: more threads would fight for the cores.
        self.video.thread_count = 1
        self._origin = (self._container.start_time or 0) / av.time_base
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._container.close()

    def _best(self, kind: _Kind) -> av.stream.Stream:
        stream = self._container.streams.best(kind)
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise MediaError(f"no_{kind}", f"{self._path} has no {kind} stream.")
        if stream.codec_context is None:
            raise MediaError("unreadable", f"{self._path} has {kind} of an unknown codec.")
        return stream

    def seconds(self, timestamp: int | None, time_base: Fraction) -> float | None:
        """Returns a timestamp as a time on the file's timeline."""
        return None if timestamp is None else float(timestamp * time_base) - self._origin

    def duration(self) -> float:
        """Returns when the later of the two streams ends, from the headers if they tell."""
        ends = [
            self.seconds((stream.start_time or 0) + stream.duration, stream.time_base)
            for stream in (self.video, self.audio)
            if stream.duration is not None
        ]
        if len(ends) == 2:
            return max(ends)
        if self._container.duration is not None:
            return self._container.duration / av.time_base
        packets = self._container.demux(self.video, self.audio)
        timed = (packet for packet in packets if packet.pts is not None)
        ends = (self.seconds(p.pts + (p.duration or 0), p.time_base) for p in timed)
        return max(ends, default=0.0)

    def packets(self, kind: _Kind, position: float) -> Iterator[av.Packet]:
        """Yields the packets of a stream from the last keyframe before `position` on."""
        packets = self._container.demux(getattr(self, kind))
        if position <= 0:
            return packets
        self._container.seek(round((self._origin + position) * av.time_base))
        return itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)


def _packets(path: str | Path, kind: _Kind, start: float) -> Iterator[tuple[_Source, av.Packet]]:
    """Yields a stream's packets from a keyframe at or before `start` on."""
    for position in (max(0.0, start - _RUN_UP), 0.0):
        with _Source(path) as source:
            packets = source.packets(kind, position)
            if (first := next(packets, None)) is None:
                continue
            time = source.seconds(first.pts, first.time_base)
            # Files without an index can't be sought exactly; they are read from the beginning.
            if position == 0 or (time is not None and time <= start):
                yield source, first
                yield from ((source, packet) for packet in packets)
                return


def _decoded(
    path: str | Path, kind: _Kind, start: float
) -> Iterator[tuple[float | None, av.VideoFrame | av.AudioFrame]]:
    """Yields (time, frame) in the order of presentation, beginning at or before `start`."""
    for source, packet in _packets(path, kind, start):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            time = source.seconds(packet.pts, packet.time_base)
            # In the middle of a file, decoders stumble until they have found their feet.
            if time is None or time >= start:
                raise
            continue
        for frame in frames:
            yield source.seconds(frame.pts, frame.time_base), frame


class _Run:
    """Decoded audio without a gap or change of format, on its way to 16 kHz."""

    def __init__(self, begin: float, frame: av.AudioFrame):
        self.begin = begin
        self._like = frame
        self._taken = 0
        self._resampler = av.AudioResampler("s16p", frame.layout, SAMPLE_RATE)
        self._blocks = []

    def next_time(self) -> float:
        return self.begin + self._taken / self._like.rate

    def continues_with(self, time: float, frame: av.AudioFrame) -> bool:
        kinds = {(one.format.name, one.layout.name, one.rate) for one in (frame, self._like)}
        return len(kinds) == 1 and abs(time - self.next_time()) <= _GAP

    def add(self, frame: av.AudioFrame | None) -> None:
        self._taken += 0 if frame is None else frame.samples
        self._blocks += [block.to_ndarray()[0] for block in self._resampler.resample(frame)]

    def finish(self) -> Int16[np.ndarray, " samples"]:
        self.add(None)
        return np.concatenate(self._blocks or [np.zeros(0, np.int16)])


def _runs(path: str | Path, start: float, end: float) -> Iterator[_Run]:
    run = None
    for time, frame in _decoded(path, "audio", start):
        if time is None:
            time = 0.0 if run is None else run.next_time()
        if time > end + _RUN_OUT:
            break
        if run is not None and not run.continues_with(time, frame):
            yield run
            run = None
        run = run or _Run(time, frame)
        run.add(frame)
    if run is not None:
        yield run


def _read_waveform(path: str | Path, start: float, end: float) -> tuple[np.ndarray, float]:
    """Returns the audio of the span (int16), and when it ends."""
    waveform = np.zeros(round((end - start) * SAMPLE_RATE), np.int16)
    filled = 0
    for run in _runs(path, start, end):
        samples = run.finish()
        begin = round((run.begin - start) * SAMPLE_RATE)
        low, high = max(begin, 0), min(begin + len(samples), len(waveform))
        if low < high:
            waveform[low:high] = samples[low - begin : high - begin]
            filled = max(filled, high)
    if filled == 0:
        raise MediaError("no_audio", f"{path} has no audio from {start:.2f} to {end:.2f} s.")
    audio_end = start + filled / SAMPLE_RATE
    return waveform[:filled] if audio_end >= end - _RAGGED_END else waveform, audio_end


def _choose_times(
    path: str | Path, start: float, end: float, num_frames: int
) -> tuple[list[float], float]:
    """Returns the last moment at which each chosen frame may begin, and when the video ends.

    Looks at the packets' timestamps only, so it costs no decoding.
    """
    times: set[float] = set()
    nominal, goes_on = None, False
    for source, packet in _packets(path, "video", start):
        nominal = source.video.average_rate or source.video.guessed_rate
        decode_time = source.seconds(packet.dts, packet.time_base)
        if decode_time is not None and decode_time > end:
            goes_on = True
            break
        time = source.seconds(packet.pts, packet.time_base)
        if time is not None and not packet.is_discard:
            times.add(time)
    goes_on = goes_on or any(time >= end for time in times)
    before = any(time < start for time in times)
    within = sorted(time for time in times if start <= time < end)
    if not within and before and goes_on:
        return [start] * num_frames, end
    if not within:
        raise MediaError("no_video", f"{path} has no video from {start:.2f} to {end:.2f} s.")
    rate = _constant_rate(within, nominal)
    whole = end - start
    if rate is None:
        wanted = [start + i * whole / num_frames + _ROUNDING for i in range(num_frames)]
        return wanted, end if goes_on else within[-1]
    first = within[0] if within[0] <= start + _LATE else start
    last = within[-1] + 1 / rate
    seconds = whole if last < end - _RAGGED_END else min(whole, last - first)
    steps = int(rate * seconds + _ROUNDING)
    wanted = [first + (i * steps // num_frames + 0.5) / rate for i in range(num_frames)]
    return wanted, end if goes_on else last


def _constant_rate(times: list[float], nominal: Fraction | None) -> float | None:
    """Returns the frames a second that explain all sorted times to half a frame, if any do."""
    seconds = times[-1] - times[0]
    measured = (len(times) - 1) / seconds if seconds else 0
    for rate in (float(nominal or 0), measured):
        steps = np.subtract(times, times[0]) * rate
        if rate and np.abs(steps - np.arange(len(times))).max() < 0.5:
            return rate
    return None


def _read_frames(path: str | Path, times: list[float], image_size: int | None) -> list[np.ndarray]:
    """Returns for each of the sorted `times` the last frame that begins by then."""
    pictures: list[np.ndarray] = []
    shown = None
    for time, frame in itertools.chain(_decoded(path, "video", times[0]), [(math.inf, None)]):
        if time is None:
            continue
        due = sum(moment < time for moment in times[len(pictures) :])
        if due:
            pictures += [_picture(path, frame if shown is None else shown, image_size)] * due
        if len(pictures) == len(times):
            break
        shown = frame
    return pictures


def _picture(
    path: str | Path, frame: av.VideoFrame | None, image_size: int | None
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a decoded frame upright, as RGB."""
    if frame is None or frame.is_corrupt:
        raise MediaError("unreadable", f"{path} has a damaged frame.")
    image = frame.to_ndarray(format="rgb24", threads=1)
    # The stored angle is counterclockwise, like rot90's.
    image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
    return image if image_size is None else resize_and_crop(image, image_size)
