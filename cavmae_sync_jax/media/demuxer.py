"""An open media file: its streams, packets and decoded frames, on one timeline.

All times are seconds on the file's own timeline, on which its earliest stream starts at 0. No file
is trusted: it may be irregular or endless, and its headers may be wrong.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, overload, runtime_checkable

import av
from av.stream import Disposition, Stream

from cavmae_sync_jax.media.errors import MediaError

Kind = Literal["video", "audio"]
BOTH: tuple[Kind, ...] = ("video", "audio")

# Formats that have their media in other files, or on the net.
_REFERRING = {
    *("concat", "dash", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp"),
    *("vobsub", "webm_dash_manifest"),
}
# Titles that are no UTF-8 are no reason to refuse a file. PyAV 19 takes them without being asked.
_TOLERANT: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
)
# How far one looks for a stream that begins late, in microseconds and bytes.
_PATIENCE = {"analyzeduration": str(120 * 10**6), "probesize": str(2**28)}
# Formats of transmissions, which lose packets: only decoding shows what is damaged.
_BROADCAST = ("mpeg", "mpegts")
# Formats that hold one sound without a gap, whose time stamps are counted by their reader.
_BARE = ("aac", "ac3", "aiff", "amr", "au", "eac3", "flac", "mp3", "tta", "w64", "wav")
# Formats whose writer notes the length beside the packets: a recorder may note it too early.
_NOTED = ("asf", "avi", "flv", "matroska,webm")
# Streams that may make a container last longer than its picture and its sound.
_LASTING = ("video", "audio", "subtitle", "data")
_FRAGMENTED = "mov,mp4,m4a,3gp,3g2,mj2"

# All in seconds.
# Decoding starts this much before the span, so that decoders and resampler have settled in it.
_RUN_UP = 1.0
# Beyond this, lest a lie become a clip for every part of it, both streams must be seen to go on
# to a promised end, give or take as much; and beyond the other no end is believed.
_LONG, _LONGEST = 24 * 3600.0, 1000 * 3600.0
# For both of them to be seen, one looks this much before the end.
_TAIL = 60.0
# Packets that follow a noted end by more than this do not go on from there.
_STEP = 1.0
# Containers round the end of a stream by less than this.
_ROUGH_END = 0.5


@contextlib.contextmanager
def errors_of(path: str | Path) -> Iterator[None]:
    """Turns what is raised while a file is read into a `MediaError` that names it."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError("unreadable", f"{path} can't be read: {why}.") from error


@functools.cache
def _trusted_formats() -> str:
    return ",".join(sorted(av.formats_available - _REFERRING))


class RemotePath(str):
    """The path of a file elsewhere, which `opener` opens to read it in parts."""

    opener: Callable[[], Any]

    def __new__(cls, path: str, opener: Callable[[], Any]) -> "RemotePath":
        """Takes both."""
        self = super().__new__(cls, path)
        self.opener = opener
        return self


def open_file(path: str | Path, *, patient: bool = False) -> av.container.InputContainer:
    """Opens a regular file, whatever its name looks like, and nothing that it refers to.

    Args:
      path: of the file.
      patient: whether to look far into a file whose headers don't list its streams.

    Raises:
      MediaError: it is a folder, a pipe or a device, which might never end.
      av.error.FFmpegError, OSError: it can't be opened.
    """
    if isinstance(path, RemotePath):
        file = path.opener()
    elif stat.S_ISREG(os.stat(path).st_mode):
        file = str(Path(path).absolute())
    else:
        raise MediaError("unreadable", f"{path} is not a regular file.")
    options = {"protocol_whitelist": "file", "format_whitelist": _trusted_formats()}
    return av.open(
        file,
        options=options | (_PATIENCE if patient else {}),
        **_TOLERANT,
    )


@overload
def best_stream(
    container: av.container.InputContainer, kind: Literal["video"]
) -> av.VideoStream | None: ...
@overload
def best_stream(
    container: av.container.InputContainer, kind: Literal["audio"]
) -> av.AudioStream | None: ...
def best_stream(
    container: av.container.InputContainer, kind: Kind
) -> av.VideoStream | av.AudioStream | None:
    """Returns the stream that a player takes, which is not a cover picture; None if there is none.

    Of a transmission with several programmes, the sound is that of the picture's programme. A
    stream of a codec that is not known counts only where there is no other.
    """
    streams: Any = container.streams
    related = best_stream(container, "video") if kind == "audio" else None
    best = streams.best(kind, related=related)
    found = [best, *getattr(streams, kind)] if best else []
    real = [one for one in found if not one.disposition & Disposition.attached_pic]
    return next((one for one in real if one.codec_context is not None), next(iter(real), None))


def demux(container: av.container.InputContainer, *streams: Stream) -> Iterator[av.Packet]:
    """Yields the packets of streams up to the empty ones that end them."""
    # PyAV looks for the end of streams, too, that have appeared on the way. It knows none of them.
    with contextlib.suppress(IndexError):
        yield from container.demux(*streams)


@runtime_checkable
class _Rational(Protocol):
    """What PyAV gives: a `Fraction`, and from 19.0.2 on a number of its own."""

    @property
    def numerator(self) -> int:
        """The upper part."""

    @property
    def denominator(self) -> int:
        """The lower part."""


class _Base(NamedTuple):
    """A rational number whose parts are at hand: PyAV makes a new one for each packet and frame."""

    numerator: int
    denominator: int

    @classmethod
    def of(cls, number: _Rational) -> "_Base":
        """The same number."""
        return cls(int(number.numerator), int(number.denominator))


# Of a stream that does not say what its timestamps count.
_UNKNOWN = Fraction(0, 1)


class Source:
    """An open file's best real video stream and best audio stream, on the file's timeline."""

    def __init__(self, path: str | Path, kinds: tuple[Kind, ...] = BOTH):
        """Takes a path; `with` opens it as `open_file` does, or raises no_video or no_audio.

        Only the streams of `kinds` are looked for.
        """
        self.path, self._kinds, self.has_audio = path, kinds, "audio" in kinds

    def __enter__(self) -> "Source":
        self._fresh = True  # nothing has been read
        self._bases: dict[int, _Base] = {}  # of the streams' packets
        self._frame_base: _Base | None = None  # of the frames of the one stream that is decoded
        self._container = open_file(self.path)
        try:
            self._choose()
        except MediaError:
            # A stream may begin after what was looked at, where no header lists the streams.
            self._container.close()
            self._container = open_file(self.path, patient=True)
            self._choose()
        self.is_broadcast = self._container.format.name in _BROADCAST
        self.is_bare = self._container.format.name in _BARE
        self._origin = (self._container.start_time or 0) / av.time_base
        return self

    def _choose(self) -> None:
        self._streams: list[av.VideoStream | av.AudioStream] = []
        if "video" in self._kinds:
            self.video: av.VideoStream = self._best("video")
            self._streams.append(self.video)
            # Clips are prepared in many processes at once: more threads would fight for the cores.
            self.video.thread_count = 1
            aspect = float(self.video.sample_aspect_ratio or 1)
            # How many times as wide as high a pixel is shown.
            self.pixel_aspect = aspect if aspect > 0 else 1.0
        if "audio" in self._kinds:
            self.audio: av.AudioStream = self._best("audio")
            self._streams.append(self.audio)

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def start_over(self) -> None:
        """Opens the file anew if anything of it has been read, for seeking back is not exact."""
        if not self._fresh:
            self._container.close()
            self.__enter__()

    @overload
    def _best(self, kind: Literal["video"]) -> av.VideoStream: ...
    @overload
    def _best(self, kind: Literal["audio"]) -> av.AudioStream: ...
    def _best(self, kind: Kind) -> av.VideoStream | av.AudioStream:
        if (stream := best_stream(self._container, kind)) is None:
            raise MediaError(f"no_{kind}", f"{self.path} has no {kind} stream.")
        if stream.codec_context is None:
            raise MediaError("unreadable", f"{self.path} has {kind} of an unknown codec.")
        return stream

    def seconds(self, timestamp: int, time_base: _Rational | None) -> float:
        """Returns a timestamp as a time on the file's timeline."""
        time_base = _UNKNOWN if time_base is None else time_base
        # Rounded once, as a fraction would be, and far faster.
        return timestamp * time_base.numerator / time_base.denominator - self._origin

    def packet_time(self, timestamp: int | None, packet: av.Packet) -> float | None:
        """Returns a packet's timestamp as a time on the file's timeline."""
        return None if timestamp is None else self.seconds(timestamp, self._base(packet))

    def packet_seconds(self, packet: av.Packet) -> float:
        """Returns how long a packet lasts, 0 if that is unknown."""
        duration = packet.duration
        if not duration:
            return 0.0
        base = self._base(packet)
        return duration * base.numerator / base.denominator

    def frame_time(self, frame: av.VideoFrame | av.AudioFrame) -> float | None:
        """Returns when a frame begins on the file's timeline."""
        if self._frame_base is None and frame.time_base and frame.time_base.numerator:
            self._frame_base = _Base.of(frame.time_base)
        if frame.pts is None or self._frame_base is None:
            return None  # a number that counts nothing known is not a time
        return self.seconds(frame.pts, self._frame_base)

    def _base(self, packet: av.Packet) -> "_Base":
        """What a packet's timestamps count; all of a stream count the same."""
        index = packet.stream_index
        if index not in self._bases:
            self._bases[index] = _Base.of(packet.time_base or _UNKNOWN)
        return self._bases[index]

    def duration(self) -> float:
        """Returns when the last of the streams ends, from the headers if they say.

        Raises:
          MediaError: unreadable, where that is beyond belief.
        """
        ends = [
            self.seconds((stream.start_time or 0) + stream.duration, stream.time_base)
            for stream in self._streams
            if stream.duration is not None
        ]
        whole = (self._container.duration or 0) / av.time_base
        known = len(ends) == len(self._streams)
        promised = max(ends) if known else whole
        # Fragments, as of a stream on the web, count from the first one's start or from 0.
        unsure = not known or self._container.format.name == _FRAGMENTED
        shifted = unsure and self._origin > _ROUGH_END
        if 0 < promised <= _LONG and not shifted:
            return self._continued(promised if known else self._without_others(promised))
        lasts = self._last_ends(promised - _TAIL, self._streams)
        if not all(lasts):
            lasts = self._last_ends_of_all()
        if promised <= 0:
            promised = max(lasts)
        elif shifted and max(lasts) <= promised - self._origin + _ROUGH_END:
            promised -= self._origin  # some count from 0 here, not from where they begin
        if promised > min(_LONGEST, min(lasts) + _LONG):
            end = f"at {min(lasts):.2f} s instead of {promised:.4g} s"
            raise MediaError("unreadable", f"{self.path} seems to end {end}.")
        return promised

    def _without_others(self, promised: float) -> float:
        """Returns a container's promised end, or that of our streams if only others reach it.

        Where none does, the file breaks off before it, and is not taken for a shorter one.
        """
        mine = [stream.index for stream in self._streams]
        others = [
            stream
            for stream in self._container.streams
            if stream.index not in mine and stream.type in _LASTING
        ]
        if not others:
            return promised
        lasts = self._last_ends(promised - _STEP, [*self._streams, *others])
        end = max(lasts[: len(mine)])
        if not max(lasts) >= promised - _ROUGH_END > end:
            return promised
        return end or max(self._last_ends_of_all()) or promised

    def _continued(self, promised: float) -> float:
        """Returns a promised end, or a later one up to which the packets go on without a jump."""
        if self._container.format.name not in _NOTED:
            return promised
        self._seek(promised)
        reached = promised
        for packet in demux(self._container, *self._streams):
            begin = self.packet_time(packet.pts, packet)
            if begin is not None and begin <= reached + _STEP:
                reached = max(reached, begin + min(self.packet_seconds(packet), _STEP))
        return reached if reached > promised + _ROUGH_END else promised

    def _last_ends(self, position: float, streams: Sequence[Stream]) -> list[float]:
        """Returns when the last packet of each stream ends, from `position` on; 0 for none."""
        self._seek(position)
        ends = {stream.index: 0.0 for stream in streams}
        for packet in demux(self._container, *streams):
            if packet.pts is not None:
                end = self.seconds(packet.pts + (packet.duration or 0), packet.time_base)
                ends[packet.stream_index] = max(ends[packet.stream_index], end)
        return [ends[stream.index] for stream in streams]

    def _last_ends_of_all(self) -> list[float]:
        """Returns when the last packet of each of our streams ends, in all of the file."""
        with Source(self.path, self._kinds) as again:
            return again._last_ends(0.0, again._streams)

    def _seek(self, position: float) -> None:
        self._fresh = False
        if position > 0:
            self._container.seek(min(round((self._origin + position) * av.time_base), 2**62))

    def packets(self, kinds: Iterable[Kind], position: float) -> Iterator[tuple[Kind, av.Packet]]:
        """Yields the packets of streams, each from its last keyframe before `position` on."""
        streams = [self.video if kind == "video" else self.audio for kind in kinds]
        kind_of = {stream.index: stream.type for stream in streams}
        waiting = set(kind_of) if position > 0 else set()
        packets = demux(self._container, *streams)
        self._seek(position)
        for packet in packets:
            index = packet.stream.index  # the last packet's own number is always 0
            if index in waiting:
                if not packet.is_keyframe:
                    continue
                waiting.remove(index)
            yield kind_of[index], packet


def packets(source: Source, wanted: set[Kind], start: float) -> Iterator[tuple[Kind, av.Packet]]:
    """Yields the packets of streams, each from a keyframe at or before `start` on.

    A file that breaks off ends there, with the empty packet that ends every stream.

    Args:
      source: of which a new pass begins.
      wanted: which streams; whoever has enough of one takes it out.
      start: in seconds.
    """
    for position in (max(0.0, start - _RUN_UP), 0.0):
        if not wanted:
            return
        source.start_over()
        begun, late = set[Kind](), set[Kind]()
        try:
            for kind, packet in source.packets(sorted(wanted), position):
                if kind not in begun and kind not in late:
                    time = source.packet_time(packet.pts, packet)
                    # Where seeking is not exact, the file is read from its beginning.
                    exact = position == 0 or (time is not None and time <= start)
                    (begun if exact else late).add(kind)
                if kind in begun and kind in wanted:
                    yield kind, packet
                if wanted <= late:
                    break
        except av.error.InvalidDataError:
            if not wanted <= begun | late:
                raise
            for kind in sorted(wanted & begun):
                last = av.Packet()
                last.stream = source.video if kind == "video" else source.audio
                yield kind, last
        wanted -= begun
