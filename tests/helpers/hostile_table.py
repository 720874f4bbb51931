"""What must come of every kind of hostile file."""

import os
from collections.abc import Callable
from typing import NamedTuple

import media_files
import numpy as np
from hostile_files import (
    GREYS,
    TEXT_TRACK,
    cover_picture,
    cut,
    flipped,
    floats,
    frame_a_lifetime,
    jpeg,
    lying_sample_table,
    matroska,
    mkv_of,
    movie,
    picture_track,
    png,
    pngs,
    sound_track,
    two_of_each,
    with_sample,
)
from media_files import tone

EITHER = "an example or unreadable"
HOURS = 5 * 3600 * 1000  # milliseconds
ON_ITS_SIDE = media_files.CLOCKWISE
UPSIDE_DOWN = [-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30]
ON_ITS_OTHER_SIDE = [0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30]


class Row(NamedTuple):
    """How a file is made and what must come of it, prepared as two frames of 32 x 32.

    `reason` is None for an example. Then `greys` are the means of its frames, and its sound is a
    tone of 440 Hz with `samples`, scaled by `level`; `check` gets the recording to look further.
    `span` is what to read of it, in seconds, and `clip_id` what it is called if not by its name.
    """

    make: Callable[[], bytes]
    reason: str | None = None
    greys: tuple[int, int] | None = (20, 100)
    samples: int = 32_000
    level: float | None = 1.0
    check: Callable | None = None
    span: tuple[float, float | None] = (0.0, None)
    clip_id: str | None = None


def loudest(recording):
    assert (recording.waveform.min(), recording.waveform.max()) == (-32768, 32767)


def quiet_from(begin, end):
    """A check that nothing is heard between two times, in seconds, but all is besides."""

    def check(recording):
        heard = recording.waveform.astype(float).reshape(-1, 800).std(axis=1) > 1000
        times = (np.arange(len(heard)) + 0.5) / 20
        np.testing.assert_array_equal(heard, (times < begin) | (times > end))

    return check


def red_corner(row, column):
    """A check of which corner of the square frame the red one of a `picture` is in."""

    def check(recording):
        frame = recording.frames[0].astype(int)
        red = frame[:, :, 0] - frame[:, :, 1] > 100
        corners = [[red[:8, :8].mean(), red[:8, -8:].mean()]]
        corners += [[red[-8:, :8].mean(), red[-8:, -8:].mean()]]
        assert np.argwhere(np.array(corners) > 0.5).tolist() == [[row, column]]

    return check


def numbered(first, second):
    """A check of which pictures of a `movie` were taken."""

    def check(recording):
        assert [media_files.number(frame) for frame in recording.frames] == [first, second]

    return check


def plain():
    return mkv_of()


def shown(check, span=(0.0, None), samples=48_000, **settings):
    """The row of a `movie`."""
    name = settings.pop("name", "a.mp4")
    settings = {"codecs": ("mpeg4", "aac")} | settings
    return Row(lambda: movie(name, **settings), None, None, samples, 1.0, check, span)


FRONT = {"codecs": ("mpeg4", "aac"), "container_options": (("movflags", "faststart"),)}
H264 = {"codecs": ("libx264", "aac"), "seconds": 5}
OPEN_GOP = (("x264-params", "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"),)

TABLE = {
    # Cut, empty, something else.
    "cut, index first.mp4": Row(lambda: cut(movie("a.mp4", **FRONT), 0.6), "unreadable"),
    "cut, no index.mp4": Row(
        lambda: cut(movie("a.mp4", codecs=("mpeg4", "aac")), 0.6), "unreadable"
    ),
    "cut.mkv": Row(lambda: cut(plain(), 0.4), "unreadable"),
    "nothing.mp4": Row(lambda: b"", "unreadable"),
    "text.mp4": Row(lambda: b"no video\n" * 100, "unreadable"),
    "noise.mp4": Row(lambda: np.random.default_rng(0).bytes(50_000), "unreadable"),
    "a terabyte of zeros.mp4": Row(lambda: None, "unreadable"),
    "picture.mp4": Row(lambda: png(90, (16, 12)), "no_audio"),
    "sound.mp4": Row(lambda: movie("a.mp4", codecs=(None, "aac")), "no_video"),
    "mute.mp4": Row(lambda: movie("a.mp4", codecs=("mpeg4", None)), "no_audio"),
    "song.mp4": Row(
        lambda: movie("a.mp4", codecs=("mjpeg", "aac"), times=(0,), cover=True), "no_video"
    ),
    "mkv_of with a cover.mkv": Row(lambda: mkv_of(more=[cover_picture()])),
    "subtitles.mkv": Row(lambda: matroska([TEXT_TRACK] * 2, [(1, 0, b"Hello")]), "no_video"),
    "mp4 by another name.webm": shown(numbered(0, 15)),
    "mp4 by a third name.avi": shown(numbered(0, 15)),
    # Lists that refer to other files.
    "concat.mp4": Row(lambda: b"ffconcat version 1.0\nfile plain.mkv\n", "unreadable"),
    "m3u8.mp4": Row(
        lambda: (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\nplain.mkv\n#EXTINF:2.0,\n"
            b"http://127.0.0.1:9/a.mp4\n#EXT-X-ENDLIST\n"
        ),
        "unreadable",
    ),
    # Names. All hold the same.
    "plain.mkv": Row(plain),
    " a b\t.mp4": Row(plain),
    'it\'s "quoted", twice.mp4': Row(plain),
    "two\nlines\r.mp4": Row(plain),
    "--output=elsewhere.mp4": Row(plain),
    "Ελλάς 日本 \U0001f600.mp4": Row(plain),
    os.fsdecode(b"bad \xff.mp4"): Row(plain, clip_id="bad __udcff"),
    os.fsdecode(b"bad \xfe.mp4"): Row(plain, clip_id="bad __udcfe"),
    "%03d.mp4": Row(plain),
    "frame%d*?[a].mp4": Row(plain),
    "concat:plain.mkv|plain.mkv.mp4": Row(plain),
    "http:x.mp4": Row(plain),
    "data:video;base64,AAAA.mp4": Row(plain),
    "back\\slash.mp4": Row(plain, clip_id="back__slash"),
    "=1+1.mp4": Row(plain),
    f"{'long' * 62}.mp4": Row(plain),
    "plain_000010.mkv": Row(plain, clip_id="plain_000010.mkv"),
    # Times and lengths.
    "no length.mkv": Row(lambda: mkv_of(length=None)),
    "length zero.mkv": Row(lambda: mkv_of(length=0)),
    "length below zero.mkv": Row(lambda: mkv_of(length=-5000)),
    "length no number.mkv": Row(lambda: mkv_of(length=float("nan"))),
    "30 thousand years.mkv": Row(lambda: mkv_of(length=1e15), "unreadable"),
    "a frame in 68 years.avi": Row(
        lambda: frame_a_lifetime(movie("a.avi", codecs=("mpeg4", "mp3"))), "unreadable"
    ),
    "more than it holds.mkv": Row(lambda: mkv_of(length=9000), "unreadable"),
    "no packets.mkv": Row(
        lambda: matroska([picture_track(), sound_track()], [], length=None), "unreadable"
    ),
    "half a second.mkv": Row(
        lambda: mkv_of(times=(0,), waves=tone(440, 0.5, 16_000), length=500), "too_short"
    ),
    "begins after hours.mkv": Row(
        lambda: mkv_of(times=(*range(HOURS, HOURS + 2000, 500),), begin=HOURS, length=HOURS + 2000)
    ),
    "begins before 0.mkv": Row(
        # Its reader takes no time below 0 for a picture, so that the first is none.
        lambda: mkv_of(times=(-300, 200, 700, 1200), begin=-300),
        greys=(60, 100),
    ),
    "out of order.mkv": Row(
        lambda: mkv_of(times=(0, 1000, 500, 1500), pictures=[jpeg(GREYS[k]) for k in (0, 2, 1, 3)])
    ),
    "a jump of months.mkv": Row(lambda: mkv_of(times=(0, 500, 1000, 10**10)), greys=(20, 60)),
    "a jump of months, no length.mkv": Row(
        lambda: mkv_of(times=(0, 500, 1000, 10**10), length=None), "unreadable"
    ),
    "variable rate.mkv": Row(lambda: mkv_of(times=(0, 100, 300, 900)), greys=(20, 140)),
    "one picture.mkv": Row(lambda: mkv_of(times=(0,)), greys=(20, 20)),
    "late sound.mkv": Row(
        lambda: mkv_of(begin=500, waves=tone(440, 1.5, 16_000)),
        level=None,
        check=quiet_from(0, 0.5),
    ),
    "short sound.mkv": Row(
        lambda: mkv_of(waves=tone(440, 1, 16_000)), level=None, check=quiet_from(1, 2)
    ),
    # Pictures.
    "1 x 1.mkv": Row(
        lambda: mkv_of(
            pictures=[jpeg(grey, (1, 1)) for grey in GREYS],
            tracks=[picture_track((1, 1)), sound_track()],
        )
    ),
    "1 x 8000.mkv": Row(
        lambda: mkv_of(
            pictures=[jpeg(90, (1, 8000))], tracks=[picture_track((1, 8000)), sound_track()]
        ),
        "too_large",
    ),
    "8000 x 8000.mkv": Row(
        lambda: pngs(png(100, (8000, 8000)), size=(8000, 8000)), greys=(100, 100)
    ),
    "9000 x 9000, said to be small.mkv": Row(
        lambda: pngs(png(20, (16, 12)), png(60, (16, 12)), png(0, (9000, 9000)), png(0, (16, 12))),
        "too_large",
    ),
    "16000 x 16000 claimed.mkv": Row(
        lambda: pngs(*[png(0, (1, 1), (16_000, 16_000))] * 4, size=(16_000, 16_000)), "too_large"
    ),
    "60000 x 60000 claimed.mkv": Row(
        lambda: pngs(*[png(0, (1, 1), (60_000, 60_000))] * 4, size=(60_000, 60_000)), "unreadable"
    ),
    "size changes.mkv": Row(
        lambda: mkv_of(pictures=[jpeg(grey, (16 + grey, 12)) for grey in GREYS])
    ),
    "turned right.mov": shown(red_corner(0, 1), name="a.mov", matrix=tuple(ON_ITS_SIDE)),
    "turned left.mov": shown(red_corner(1, 0), name="a.mov", matrix=tuple(ON_ITS_OTHER_SIDE)),
    "upside down.mov": shown(red_corner(1, 1), name="a.mov", matrix=tuple(UPSIDE_DOWN)),
    "b-frames.mp4": shown(
        numbered(33, 41), (3.3, 4.9), 25_600, **H264, options=(("bf", "3"), ("g", "12"))
    ),
    "open gop.mp4": shown(numbered(33, 41), (3.3, 4.9), 25_600, **H264, options=OPEN_GOP),
    "open gop, as a stream.ts": shown(
        numbered(33, 41), (3.3, 4.9), 25_600, **H264, options=OPEN_GOP, name="a.ts"
    ),
    # Sound.
    **{
        f"{rate} hz.mkv": Row(lambda rate=rate: mkv_of(waves=tone(440, 2, rate), rate=rate))
        for rate in (8000, 11_025, 44_100, 96_000, 192_000)
    },
    **{
        f"{count} channels.mkv": Row(
            lambda count=count: mkv_of(waves=[tone(440 + 333 * k, 2, 16_000) for k in range(count)])
        )
        for count in (2, 3, 4, 5, 6, 7, 8, 9, 64)
    },
    "1 hz.mkv": Row(lambda: mkv_of(tracks=[picture_track(), sound_track(1)]), "unreadable"),
    "1 ghz.mkv": Row(lambda: mkv_of(tracks=[picture_track(), sound_track(10**9)]), "unreadable"),
    "0 channels.mkv": Row(
        lambda: mkv_of(tracks=[picture_track(), sound_track(channels=0)]), "no_audio"
    ),
    "floats.mkv": Row(lambda: floats(tone(440, 2, 16_000))),
    "no number.mkv": Row(lambda: with_sample(np.nan), "unreadable"),
    "infinite.mkv": Row(lambda: with_sample(np.inf), "unreadable"),
    "beyond integers.mkv": Row(lambda: with_sample(-1e30), "unreadable"),
    "too loud.mkv": Row(lambda: floats(tone(440, 2, 16_000, 3.0)), level=None, check=loudest),
    "silence.mkv": Row(lambda: mkv_of(waves=np.zeros(32_000)), "silent"),
    "direct current.mkv": Row(lambda: mkv_of(waves=np.full(32_000, 0.2)), "silent"),
    "direct current, resampled.mkv": Row(
        lambda: mkv_of(waves=np.full(88_200, 0.2), rate=44_100), "silent"
    ),
    # Streams and damage.
    "two of each.mkv": Row(two_of_each),
    "hundred subtitles.mkv": Row(lambda: mkv_of(other_tracks=[TEXT_TRACK] * 100)),
    "unknown video.mkv": Row(
        lambda: mkv_of(tracks=[picture_track(codec="V_NOBODY"), sound_track()]), "unreadable"
    ),
    "unknown audio.mkv": Row(
        lambda: mkv_of(tracks=[picture_track(), sound_track(codec="A_NOBODY")]), "unreadable"
    ),
    "half a picture.mkv": Row(
        lambda: mkv_of(pictures=[cut(jpeg(20), 0.3), *map(jpeg, GREYS[1:])]), "unreadable"
    ),
    "damaged.mp4": Row(lambda: flipped(movie("a.mp4", **FRONT), 0.4, 0.9, 40), EITHER),
    "damaged mkv_of.mkv": Row(lambda: flipped(plain(), 0.1, 0.9, 200), EITHER),
    "damaged stream.ts": Row(lambda: flipped(movie("a.ts", **H264), 0.1, 0.9, 150), EITHER),
    "more frames than there are.mp4": Row(
        lambda: lying_sample_table(movie("a.mp4", **FRONT)), EITHER
    ),
}
