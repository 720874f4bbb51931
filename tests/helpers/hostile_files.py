"""Makes files that nobody wants to meet.

Most are Matroska, written here byte by byte: a grey JPEG every half second, and a tone.
"""

import functools
import io
import itertools
import os
import struct
import tempfile
import zlib
from pathlib import Path

import media_files
import numpy as np
from media_files import tone
from PIL import Image

GREYS = (20, 60, 100, 140)


def element(name, content):
    """Returns an element of Matroska: its name in hexadecimal, and what it holds."""
    if isinstance(content, int):
        content = content.to_bytes(max(1, (content.bit_length() + 7) // 8), "big")
    elif isinstance(content, float):
        content = struct.pack(">d", content)
    elif isinstance(content, str):
        content = content.encode()
    elif isinstance(content, list):
        content = b"".join(content)
    return bytes.fromhex(name) + (1 << 56 | len(content)).to_bytes(8, "big") + content


def picture_track(size=(16, 12), codec="V_MJPEG", more=()):
    shape = [element("B0", size[0]), element("BA", size[1])]
    return [element("83", 1), element("86", codec), element("E0", shape), *more]


def sound_track(rate=16_000, channels=1, codec="A_PCM/INT/LIT", bits=16, more=()):
    kind = [element("B5", float(rate)), element("9F", channels), element("6264", bits)]
    return [element("83", 2), element("86", codec), element("E1", kind), *more]


TEXT_TRACK = [element("83", 0x11), element("86", "S_TEXT/UTF8")]


def matroska(tracks, blocks, length=2000, more=()):
    """Returns a file of tracks and blocks (track from 1, milliseconds, content)."""
    about = [element("2AD7B1", 1_000_000)]
    about += [] if length is None else [element("4489", float(length))]
    entries = [
        element("AE", [element("D7", number), element("73C5", number), *track])
        for number, track in enumerate(tracks, 1)
    ]
    clusters = []
    for track, time, content in blocks:
        base = max(time, 0)
        head = bytes([0x80 | track]) + struct.pack(">h", time - base) + b"\x80"
        clusters.append(element("1F43B675", [element("E7", base), element("A3", head + content)]))
    kind = [element("4282", "matroska"), element("4287", 4), element("4285", 2)]
    parts = [element("1549A966", about), element("1654AE6B", entries), *more, *clusters]
    return element("1A45DFA3", kind) + element("18538067", parts)


def jpeg(grey, size=(16, 12)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(grey, size, claimed=None):
    """A PNG of any size, made without its pixels in memory; `claimed` is what its header says."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    packer = zlib.compressobj(1)
    row = b"\0" + bytes([grey]) * size[0]
    rows = [packer.compress(row * 100) for _ in range(size[1] // 100)]
    rows += [packer.compress(row * (size[1] % 100)), packer.flush()]
    head = struct.pack(">IIBBBBB", *(claimed or size), 8, 0, 0, 0, 0)
    ends = chunk(b"IDAT", b"".join(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + ends


def mkv_of(
    *,
    pictures=None,
    times=(0, 500, 1000, 1500),
    waves=None,
    kind="<i2",
    begin=0,
    tracks=None,
    rate=16_000,
    length=2000,
    more=(),
    other_tracks=(),
):
    """Returns a file with pictures (JPEGs of `GREYS`) and waves [channels, samples]."""
    waves = tone(440, 2, rate)[None] if waves is None else np.atleast_2d(waves)
    if tracks is None:
        tracks = [picture_track(), sound_track(rate, len(waves))]
    samples = waves if kind.startswith("<f") else np.round(waves * 32767)
    parts = np.array_split(samples, range(rate // 2, samples.shape[1], rate // 2), axis=1)
    shown = [jpeg(grey) for grey in GREYS] if pictures is None else pictures
    seen = [(1, time, one) for time, one in zip(times, shown, strict=False)]
    heard = [(2, begin + 500 * k, part.T.astype(kind).tobytes()) for k, part in enumerate(parts)]
    both = itertools.chain(*itertools.zip_longest(seen, heard))
    return matroska([*tracks, *other_tracks], filter(None, both), length, more)


def floats(waves, **settings):
    tracks = [picture_track(), sound_track(codec="A_PCM/FLOAT/IEEE", bits=32)]
    return mkv_of(waves=waves, kind="<f4", tracks=tracks, **settings)


def with_sample(value):
    waves = tone(440, 2, 16_000)
    waves[9000] = value
    return floats(waves)


def bitmap_track(size=(16, 12)):
    """A track of PNGs, which Matroska has only by the name that AVI knows them by."""
    about = struct.pack("<IiiHH4sIIIII", 40, *size, 1, 24, b"MPNG", 0, 0, 0, 0, 0)
    return picture_track(size, "V_MS/VFW/FOURCC", [element("63A2", about)])


def pngs(*pictures, size=(16, 12)):
    return mkv_of(pictures=pictures, tracks=[bitmap_track(size), sound_track()])


@functools.cache
def movie(name, **settings):
    """The bytes of a `media_files.make_video`; dicts are given as tuples of pairs."""
    keys = ("options", "container_options")
    settings = {k: dict(v) if k in keys else v for k, v in settings.items()}
    with tempfile.TemporaryDirectory() as folder:
        return media_files.make_video(Path(folder) / name, **settings).read_bytes()


def cut(data, share):
    return data[: int(len(data) * share)]


def flipped(data, begin, end, step):
    """Damages every `step`th byte between two shares of a file."""
    damaged = np.frombuffer(data, np.uint8).copy()
    damaged[int(begin * len(data)) : int(end * len(data)) : step] ^= 0x5A
    return damaged.tobytes()


def lying_sample_table(data):
    """Doubles the frames that an MP4 promises of its first stream."""
    at = data.index(b"stsz") + 12
    (count,) = struct.unpack_from(">I", data, at)
    data = data[:at] + struct.pack(">I", 2 * count) + data[at + 4 :]
    at = data.index(b"stts") + 12
    return data[:at] + struct.pack(">I", 2 * count) + data[at + 4 :]


def frame_a_lifetime(data):
    """Makes the first stream of an AVI, by its header, one of a frame in 68 years."""
    at = data.index(b"strh") + 28
    return data[:at] + struct.pack("<II", 2**31 - 1, 1) + data[at + 8 :]


def two_of_each():
    """Two tracks of pictures and of sounds, of which the second ones are meant to be used."""
    other, meant = [element("88", 0)], [element("88", 1)]
    tracks = [picture_track(more=other), picture_track(more=meant)]
    tracks += [sound_track(more=other), sound_track(more=meant)]
    blocks = []
    for number in range(4):
        wrong, right = (
            np.round(tone(hertz, 0.5, 16_000) * 32767).astype("<i2").tobytes()
            for hertz in (1000, 440)
        )
        contents = (jpeg(200), jpeg(GREYS[number]), wrong, right)
        blocks += [(track, 500 * number, one) for track, one in enumerate(contents, 1)]
    return matroska(tracks, blocks)


def recording(path, tracks):
    """Writes a file with a picture and tracks of sound, as screen recorders do."""
    kinds = [picture_track(), *(sound_track() for _ in tracks)]
    blocks = []
    for number in range(4):
        blocks.append((1, 500 * number, jpeg(GREYS[number])))
        for track, waves in enumerate(tracks, 2):
            part = waves[8000 * number : 8000 * (number + 1)]
            blocks.append((track, 500 * number, np.round(part * 32767).astype("<i2").tobytes()))
    path.write_bytes(matroska(kinds, blocks))
    return path


def cover_picture():
    """An attachment that Matroska's readers show as a stream of video."""
    names = [element("466E", "cover.jpg"), element("4660", "image/jpeg"), element("46AE", 7)]
    return element("1941A469", [element("61A7", [*names, element("465C", jpeg(250))])])


def special_files(folder):
    """Makes what only looks like a media file; returns the names of those that are no file.

    The others, pipe.mp4 and zeros.mp4, have no end.
    """
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "circle").symlink_to(folder)
    (folder / "dangling.mp4").symlink_to(folder / "gone.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zeros.mp4").symlink_to("/dev/zero")
    return ("folder.mp4", "loop.mp4", "dangling.mp4", "gone.mp4")
