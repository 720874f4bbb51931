"""Decodes a media file to frames and one channel of 16 kHz audio (PyAV; needs no ffmpeg program).

All times are seconds on the file's own timeline, on which its earliest stream starts at 0.
"""

import itertools
import math
from collections.abc import Callable
from numbers import Rational
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import Int16, UInt8

from cavmae_sync_jax.media.demuxer import BOTH, Kind, Source, errors_of, packets
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.media.frames import Decoded, decode, decoded
from cavmae_sync_jax.media.images import (
    check_size,
    displayed,
    resize_and_crop,
    with_square_pixels,
)
from cavmae_sync_jax.media.resampler import CHANNELS
from cavmae_sync_jax.media.span_sound import RAGGED_END, RESTART, SpanReader

REASONS = {
    "unreadable": "the file can't be opened or decoded",
    "no_video": "there is no video, or none in the span",
    "no_audio": "there is no audio, or none in the span",
    "silent": "the audio never changes its value",
    "too_short": "the span is shorter than asked for, or starts after the file's end",
    "too_large": "a picture has over MAX_PIXELS pixels or is MAX_ASPECT times as long as wide",
}

# What is worth counting of spans that can be used.
NOTES = {
    "damaged": "some packets were damaged or lost; what FFmpeg made of them is kept",
    "restarts": "the time stamps begin again within the span; the part that repeats is left out",
    "gap": "over 1 % of the sound is missing in a gap, at the beginning or at the end",
    "hdr": "the picture has a high dynamic range, which is not tone-mapped: it looks washed out",
}

Seconds = float | int  # for checked annotations, an int is not a float

# What `SpanReader.finish` returns, of a span whose sound is not read.
_NO_SOUND: tuple[np.ndarray, float, frozenset[str]] = (np.zeros(0, np.int16), 0.0, frozenset())
# All in seconds. Timestamps are whole milliseconds in some containers.
_ROUNDING = 1e-3
# Containers delay video by up to this for the decoder's sake; more is meant.
_LATE = 0.1


class MediaInfo(NamedTuple):
    """A file's own words: seconds, average frames per second, pixels before any rotation.

    Without a sound that is looked for, `audio_channels` is 0.
    """

    duration: float
    fps: float
    width: int
    height: int
    audio_channels: int


class Media(NamedTuple):
    """What a span of a file holds.

    Attributes:
      frames: upright RGB pictures.
      waveform: one channel at 16 kHz.
      seconds: length of the span.
      picture_seconds: that the frames are spread over, for `audio.frame_time`: frame i of T is on
        screen `i * picture_seconds / T` after the span's start. It is less than `seconds` where
        the picture ends up to half a second before the sound.
      notes: keys of `NOTES`.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    waveform: Int16[np.ndarray, " samples"]
    seconds: float
    picture_seconds: float
    notes: frozenset[str]


def probe(path: str | Path, *, mute: bool = False) -> MediaInfo:
    """Reads a file's headers (all packets where the headers lack the duration).

    With `mute`, only the picture counts.

    Raises:
      MediaError: unreadable, no_video, no_audio, too_short (no duration at all) or too_large.
    """
    with errors_of(path), Source(path, _kinds(mute)) as source:
        return _info(source)


def _kinds(mute: bool) -> tuple[Kind, ...]:
    return ("video",) if mute else BOTH


def _info(source: Source) -> MediaInfo:
    path, video = source.path, source.video
    check_size(path, video.width, video.height)
    fps = float(video.average_rate or video.guessed_rate or 0)
    duration = source.duration()
    if duration <= 0:
        raise MediaError("too_short", f"{path} has no duration.")
    channels = source.audio.channels if source.has_audio else 0
    return MediaInfo(duration, fps, video.width, video.height, channels)


def read_clip(
    path: str | Path,
    *,
    start: Seconds = 0.0,
    end: Seconds | None = None,
    num_frames: int = 16,
    image_size: int | None = None,
    audio_channel: str = CHANNELS[0],
    gaps: bool = False,
    mute: bool = False,
) -> Media:
    """Reads `num_frames` frames spread over the span [start, end), and the audio of all of it.

    `end` is cut to the file's duration, and is that duration where it is None. With `image_size`
    every frame goes through `resize_and_crop` as soon as it is decoded. Memory doesn't grow with
    the file's length, and nothing far outside of the span is decoded.

    Frames: at a constant rate r per second, frame i of T is number int(i * min(n, int(r * d)) / T)
    of the n frames in the span's d seconds; for start = 0 and d = 10 this is the reference's rule.
    At a variable rate, and where the span begins amid a long frame, it is the frame on screen
    i * d / T seconds after `start`. Frames repeat if
    there are fewer than T. Where video begins over 0.1 s late or ends over 0.5 s early, its
    first or last frame stands still, to keep in step with audio. Pictures are as a player shows
    them: rotated, mirrored and with square pixels, as the file says.

    Damage: what FFmpeg makes of damaged packets is kept where the frames that are needed can be
    decoded, and all but 1 % of the audio.

    Audio: decoded samples are resampled as 16-bit integers in the file's own channel layout, of
    which `audio_channel` is taken, one of `resampler.CHANNELS`: the first channel (no downmix), the
    mean of all, or the one with the most energy in the span. Samples are put where their timestamps
    say, with silence in gaps. Audio that ends up to half a second early stays as short as it is;
    after audio that ends earlier there is silence up to the end.

    With `gaps`, the span is a part of a longer one: it may have no audio, which is then silent, or
    no video, and then the frame before or after it stands still. One of both must be there.

    With `mute`, only the picture is read, and there are no samples.

    Raises:
      MediaError: any of `REASONS`; "silent" only where a channel sounds that isn't chosen.
      ValueError: the span or `num_frames` makes no sense.
    """
    if start < 0 or num_frames < 1 or (end is not None and end <= start):
        raise ValueError(f"nothing to read: {num_frames} frames from {start} to {end} s")
    with errors_of(path), Source(path, _kinds(mute)) as source:
        duration = _info(source).duration
        start, end = float(start), duration if end is None else min(float(end), duration)
        if end <= start:
            end_of_it = f"{path} ends at {duration:.2f} s"
            raise MediaError("too_short", f"{end_of_it}, not after {start:.2f} s.")
        gaps = gaps and end - start < duration
        sound, stamps = _read_sound(source, start, end, audio_channel, gaps)
        waveform, audio_end, audio_notes = sound.finish() if sound else _NO_SOUND
        times, begins, video_end, spread = stamps.choose(num_frames, gaps)
        if max(audio_end, video_end) < end - RAGGED_END:
            raise MediaError("unreadable", f"{path} ends before the {duration:.2f} s it promises.")
        frames, notes = _read_frames(source, start, times, begins, image_size)
    if len({frame.shape for frame in frames}) > 1:
        raise MediaError("unreadable", f"{path} changes its picture size within the span.")
    return Media(np.stack(frames), waveform, end - start, spread, audio_notes | notes)


def _read_sound(
    source: Source, start: float, end: float, channel: str, gaps: bool
) -> tuple[SpanReader | None, "_TimeStamps"]:
    """Reads the sound of a span, if any, and in the same pass when its pictures are shown."""
    sound = SpanReader(source.path, start, end, channel, gaps) if source.has_audio else None
    stamps = _TimeStamps(source, start, end)
    wanted = set(_kinds(mute=sound is None))
    for kind, packet in packets(source, wanted, start):
        if kind == "video":
            enough = stamps.take(packet)
        elif sound:
            enough = any(map(sound.take, decode(source, packet, start)))
        wanted -= {kind} if enough else set()
    return sound, stamps


class _TimeStamps:
    """When the pictures of a span are shown, by the packets' timestamps; it decodes nothing."""

    def __init__(self, source: Source, start: float, end: float):
        self._source, self._start, self._end = source, start, end
        self._times: set[float] = set()
        self._before, self._goes_on, self._latest = False, False, -math.inf
        self._shown = -math.inf  # until when a picture that begins before the end is shown

    def take(self, packet: av.Packet) -> bool:
        """Takes the next packet; returns whether no more are needed."""
        time = self._source.packet_time(packet.dts, packet)
        if time is not None:
            if time > self._end:
                self._goes_on = True
                return True
            if time < self._latest - RESTART:
                return False
            self._latest = max(self._latest, time)
        time = self._source.packet_time(packet.pts, packet)
        if time is not None and not packet.is_discard:
            self._before |= time < self._start
            self._goes_on |= time >= self._end
            if self._start <= time < self._end:
                self._times.add(time)
            if time < self._end:
                self._shown = max(self._shown, time + self._source.packet_seconds(packet))
        return False

    def choose(self, num_frames: int, gaps: bool) -> tuple[list[float], list[float], float, float]:
        """Returns which frames to take, when video ends, and `picture_seconds`.

        The first list says by when each frame must begin, the second when it begins. The latter is
        empty where nobody knows.

        Raises:
          MediaError: no_video, unless there may be `gaps`.
        """
        start, end, within = self._start, self._end, sorted(self._times)
        # The last picture has no other after it: how long it stands, its packet says.
        shown = end if self._goes_on else min(self._shown, end)
        stands = self._before and (self._goes_on or shown > start + _LATE)
        if not within and (gaps or stands):
            return [start] * num_frames, [], max(start, shown), end - start
        if not within:
            path = self._source.path
            raise MediaError("no_video", f"{path} has no video from {start:.2f} to {end:.2f} s.")
        video = self._source.video
        rate = _constant_rate(within, video.average_rate or video.guessed_rate)
        whole = end - start
        # At a low rate, an earlier frame may be on screen for much of the span.
        if rate is None or (self._before and within[0] > start + _LATE):
            wanted = [start + i * whole / num_frames + _ROUNDING for i in range(num_frames)]
            begins = _beginnings(within, wanted)
            last = within[-1] + (1 / rate if rate else 0.0)
            return wanted, begins, max(last, shown), whole
        first = within[0] if within[0] <= start + _LATE else start
        last = within[-1] + 1 / rate
        seconds = whole if last < end - RAGGED_END else min(whole, last - first)
        steps = int(rate * seconds + _ROUNDING)
        wanted = [first + (i * steps // num_frames + 0.5) / rate for i in range(num_frames)]
        begins = _beginnings(within, wanted)
        return wanted, begins, max(last, shown), max(1, steps) / rate


def _beginnings(within: list[float], wanted: list[float]) -> list[float]:
    """Returns for each wanted time when the frame begins that is then shown, if all are known."""
    places = np.searchsorted(within, wanted, side="right") - 1
    return [within[place] for place in places] if places.min() >= 0 else []


def _constant_rate(times: list[float], nominal: Rational | None) -> float | None:
    """Returns the frames per second that explain all sorted times, if any do.

    Each must be explained to half a frame. At a low rate that is long, so to `_LATE` as well.
    """
    seconds = times[-1] - times[0]
    measured = (len(times) - 1) / seconds if seconds else 0
    for rate in (float(nominal or 0), measured):
        steps = np.subtract(times, times[0]) * rate
        off = np.abs(steps - np.arange(len(times))).max()
        if rate and off < 0.5 and off / rate <= _LATE:
            return rate
    return None


def _read_frames(
    source: Source,
    start: float,
    times: list[float],
    begins: list[float],
    image_size: int | None,
) -> tuple[list[np.ndarray], frozenset[str]]:
    """Returns for each of the sorted `times` the last frame that begins by then, and notes.

    Where `begins` says when these frames begin, frames between them that no other needs are not
    decoded, but for transmissions, whose damage is counted. If then anything is damaged, or not as
    `begins` says, all is decoded after all.
    """
    if begins:
        needed, first = set(begins), begins[0]
        found = _take_frames(
            source, start, times, image_size, lambda time: time > first and time not in needed
        )
        if found is not None and found.begins == begins:
            return found.pictures, found.notes
    found = _take_frames(source, start, times, image_size)
    assert found is not None
    return found.pictures, found.notes


class _Taken(NamedTuple):
    """Pictures, when their frames begin, and notes."""

    pictures: list[np.ndarray]
    begins: list[float | None]
    notes: frozenset[str]


def _take_frames(
    source: Source,
    start: float,
    times: list[float],
    image_size: int | None,
    idle: Callable[[float], bool] | None = None,
) -> _Taken | None:
    """Does the work of `_read_frames`; None where something is damaged and some are `idle`."""
    pictures: list[np.ndarray] = []
    begins: list[float | None] = []
    lost: list[float] = []  # when frames would begin that can't be decoded
    notes: set[str] = set()
    shown, latest, damaged = None, -math.inf, 0
    for one in itertools.chain(decoded(source, "video", start, idle), [None]):
        time = math.inf if one is None else one.time
        if one is not None and one.damaged and (time is None or time >= start):
            if idle is not None:
                return None
            notes.add("damaged")
            lost += [start if time is None else time] if one.frame is None else []
        if time is None or time < latest or (one is not None and one.frame is None):
            continue
        due = [moment for moment in times[len(pictures) :] if moment < time]
        if due:
            chosen = shown or one
            if chosen is None and idle is not None:
                return None
            if chosen is None:
                raise MediaError("unreadable", f"{source.path} has no frame that can be decoded.")
            pictures += [_picture(chosen, image_size)] * len(due)
            begins += [chosen.time] * len(due)
            notes |= {"hdr"} if chosen.hdr else set()
            held = [any(latest < gone <= moment for gone in lost) for moment in due]
            damaged += len(due) if chosen.damaged else sum(held)
        if len(pictures) == len(times):
            break
        shown, latest = one, time
    if damaged:
        which = f"{damaged} of the {len(times)} frames that are needed"
        raise MediaError("unreadable", f"{source.path}: {which} are damaged.")
    return _Taken(pictures, begins, frozenset(notes))


def _picture(shown: Decoded, image_size: int | None) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a decoded frame as a player shows it, as RGB."""
    frame, path, aspect = shown.frame, shown.source.path, shown.source.pixel_aspect
    assert isinstance(frame, av.VideoFrame)
    check_size(path, frame.width, frame.height)
    check_size(path, max(1, round(frame.width * aspect)), frame.height)
    image = frame.to_ndarray(format="rgb24", threads=1)
    if image_size is None and aspect != 1:
        image, aspect = with_square_pixels(image, aspect), 1
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        image, turned = displayed(image, np.frombuffer(matrix, np.int32))
        aspect = 1 / aspect if turned else aspect
    return image if image_size is None else resize_and_crop(image, image_size, pixel_aspect=aspect)
