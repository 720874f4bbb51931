"""Decoded frames of an open file, and what of it can't be decoded."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import av

from cavmae_sync_jax.media.demuxer import Kind, Source, packets

# Transfer functions of video with a high dynamic range: PQ and HLG.
_HDR = (16, 18)


class Decoded(NamedTuple):
    """A decoded frame, or None for a packet that can't be decoded.

    Attributes:
      source: where it comes from.
      time: when it begins, if that is known.
      frame: of picture or sound.
      seconds: that the packet lasts; 0 where nobody knows.
    """

    source: Source
    time: float | None
    frame: av.VideoFrame | av.AudioFrame | None
    seconds: float

    @property
    def damaged(self) -> bool:
        """Whether it is lost, or FFmpeg says that it is not whole."""
        return self.frame is None or bool(self.frame.is_corrupt)

    @property
    def hdr(self) -> bool:
        """Whether the picture has a high dynamic range."""
        return isinstance(self.frame, av.VideoFrame) and self.frame.color_trc in _HDR


def decoded(
    source: Source,
    kind: Kind,
    start: float,
    idle: Callable[[float], bool] | None = None,
) -> Iterator[Decoded]:
    """Yields frames in the order of presentation, beginning at or before `start`, and losses.

    Args:
      source: of which a new pass begins.
      kind: of the stream.
      start: in seconds.
      idle: says of the time of a frame that nobody looks at it. It may then be missing, if no other
        frame is decoded with its help.
    """
    skips = False
    for _, packet in packets(source, {kind}, start):
        if idle is not None:
            time = source.packet_time(packet.pts, packet)
            can_miss = time is not None and not source.is_broadcast and idle(time)
            if skips != (skips := can_miss):
                source.video.codec_context.skip_frame = "NONREF" if skips else "DEFAULT"
        yield from decode(source, packet, start)


def decode(source: Source, packet: av.Packet, start: float) -> Iterator[Decoded]:
    """Yields the frames that a packet brings, or that it is lost from `start` on."""
    seconds = source.packet_seconds(packet)
    try:
        frames = packet.decode()
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        time = source.packet_time(packet.pts, packet)
        # In the middle of a file, decoders stumble until they have found their feet. The empty
        # packet at the end only asks for what is left.
        if packet.size and (time is None or time >= start):
            yield Decoded(source, time, None, seconds)
        return
    for frame in frames:
        yield Decoded(source, source.frame_time(frame), frame, seconds)
