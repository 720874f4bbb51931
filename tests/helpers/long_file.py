"""A video of hours whose packets are those of some seconds, over and over."""

import av
from media_files import make_video, noise


def write_long_video(path, seconds, codecs=("libx264", "aac")):
    """Writes a video of some hours in seconds of time: 16 s of it, repeated without decoding."""
    piece = 16  # whole packets of sound
    short = path.with_name(f"piece_{path.name}")
    make_video(
        short, seconds=piece, fps=1, rate=8000, waves=noise(piece, rate=8000)[None], codecs=codecs,
        options={"g": "4", "bf": "0"}, interleave=True,
    )  # fmt: skip
    with av.open(str(short)) as source, av.open(str(path), "w") as target:
        streams = {one.index: target.add_stream_from_template(one) for one in source.streams}
        packets = [
            packet
            for packet in source.demux()
            if packet.size and 0 <= packet.pts * packet.time_base < piece
        ]
        for turn in range(round(seconds / piece)):
            for one in packets:
                packet, later = av.Packet(bytes(one)), turn * round(piece / one.time_base)
                packet.pts, packet.dts, packet.duration = (
                    one.pts + later,
                    one.dts + later,
                    one.duration,
                )
                packet.time_base, packet.is_keyframe = one.time_base, one.is_keyframe
                packet.stream = streams[one.stream_index]
                target.mux(packet)
    short.unlink()
    return path
