"""Files that players show, and a plain reading gets wrong: mirrored, stretched, late, damaged."""

import contextlib
from fractions import Fraction

import av
import numpy as np
import pytest
from media_files import CLOCKWISE, make_video, number, tone
from packaging.version import Version

from cavmae_sync_jax.media import decoding, images, sound_files
from data_prep.pipeline.clips import Preparation, Reject, VideoClip, is_still, prepare_clip

ONE = 1 << 16
# Matrix, and where the red upper left corner comes to lie, as (lower, right).
MATRICES = {
    "as it is": ([ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30], (0, 0)),
    "mirrored": ([-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30], (0, 1)),
    "upside down and mirrored": ([ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30], (1, 0)),
    "turned by 180": ([-ONE, 0, 0, 0, -ONE, 0, 0, 0, 1 << 30], (1, 1)),
    "clockwise": (CLOCKWISE, (0, 1)),
    "counterclockwise": ([0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30], (1, 0)),
    "transposed": ([0, ONE, 0, ONE, 0, 0, 0, 0, 1 << 30], (0, 0)),
    "transposed over the other diagonal": ([0, -ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30], (1, 1)),
}


def red_corner(image):
    """The corner that is red, as (lower, right), and the red part of height and width."""
    red = image[:, :, 0].astype(int) - image[:, :, 1] > 100
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    lower, right = int(rows.mean() > len(red) / 2), int(columns.mean() > red.shape[1] / 2)
    return (lower, right), (len(rows) / len(red), len(columns) / red.shape[1])


@pytest.mark.parametrize("name", MATRICES)
def test_display_matrices(tmp_path, name):
    matrix, corner = MATRICES[name]
    path = make_video(tmp_path / "a.mov", size=(96, 48), matrix=matrix)
    image = decoding.read_clip(path, num_frames=1).frames[0]
    turned = name.startswith(("clock", "counter", "transposed"))
    assert image.shape == ((96, 48, 3) if turned else (48, 96, 3))
    assert red_corner(image)[0] == corner


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(("size", "aspect", "shown"), [
    ((64, 48), Fraction(2), (48, 128)), ((96, 48), Fraction(1, 2), (48, 48)),
    ((72, 48), Fraction(32, 27), (48, 85)),
])  # fmt: skip
def test_pixels_that_are_not_square(tmp_path, name, size, aspect, shown):
    path = make_video(tmp_path / name, size=size, pixel_aspect=aspect)
    image = decoding.read_clip(path, num_frames=1).frames[0]
    assert image.shape == (*shown, 3)
    assert red_corner(image)[1] == pytest.approx((1 / 3, 1 / 3), abs=0.04)
    square = decoding.read_clip(path, num_frames=1, image_size=32).frames[0]
    assert np.abs(square - images.resize_and_crop(image, 32).astype(int)).mean() < 3


def test_a_stretched_picture_that_is_turned(tmp_path):
    path = make_video(tmp_path / "a.mov", matrix=CLOCKWISE, pixel_aspect=Fraction(2))
    image = decoding.read_clip(path, num_frames=1).frames[0]
    assert image.shape == (128, 48, 3)
    assert red_corner(image)[0] == (0, 1)


LATE = {"a.ts": ("mpeg2video", "mp2"), "a.mpg": ("mpeg2video", "mp2"), "a.mkv": ("mpeg4", "aac")}


@pytest.mark.parametrize("name", LATE)
def test_sound_that_begins_late_in_a_file_is_found(tmp_path, name):
    waves = tone(440, 4, 48_000)[None]
    path = make_video(
        tmp_path / name, seconds=12, fps=25, codecs=LATE[name], rate=48_000, waves=waves,
        audio_start=8.0, options={"g": "12"}, interleave=True,
    )  # fmt: skip
    waveform = decoding.read_clip(path).waveform / 32768
    assert np.abs(waveform[: 78 * 1600]).max() < 0.01
    assert np.abs(waveform[82 * 1600 : 110 * 1600]).max() > 0.2
    alone = sound_files.read_sound(path) / 32768
    assert len(alone) > 11.5 * 16_000  # on the file's timeline, too
    assert np.abs(alone[: 78 * 1600]).max() < 0.01 < 0.2 < np.abs(alone[82 * 1600 :]).max()
    assert np.abs(sound_files.read_span(path, 9, 10) / 32768).max() > 0.2


def test_a_file_without_sound_stays_without(tmp_path):
    path = make_video(tmp_path / "a.ts", codecs=("mpeg2video", None), fps=25)
    with pytest.raises(decoding.MediaError) as error:
        decoding.read_clip(path)
    assert error.value.reason == "no_audio"


def packets_of(path, kind):
    with av.open(str(path)) as container:
        streams = {"video": container.streams.video, "audio": container.streams.audio}
        found = container.demux(streams[kind][0])
        return [(packet.pos, packet.size) for packet in found if packet.size]


def damage(path, kind, numbers):
    """Overwrites packets whole, so that they can't be decoded."""
    data = bytearray(path.read_bytes())
    places = packets_of(path, kind)
    for index in numbers:
        position, size = places[index]
        data[position + 8 : position + size] = b"\xff" * (size - 8)
    path.write_bytes(data)


def mkv(folder):
    return make_video(
        folder / "a.mkv", seconds=10, fps=10, codecs=("mpeg4", "ac3"), rate=48_000,
        options={"g": "5"},
    )  # fmt: skip


def reject(path, **settings):
    found = prepare_clip(
        VideoClip("a", str(path)), Preparation(image_size=32, **{"num_frames": 4} | settings)
    )
    assert isinstance(found, Reject)
    return found.reason, found.detail


def test_damage_to_frames_that_are_not_needed_is_kept_and_noted(tmp_path):
    path = mkv(tmp_path)
    whole = decoding.read_clip(path, num_frames=4)
    assert whole.notes == frozenset()
    damage(path, "video", [4, 13, 14])  # the frames needed are 0, 25, 50 and 75
    read = decoding.read_clip(path, num_frames=4)
    assert read.notes == {"damaged"}
    np.testing.assert_array_equal(read.frames, whole.frames)
    example = prepare_clip(VideoClip("a", str(path)), Preparation(num_frames=4, image_size=32))
    assert example["notes"] == ["damaged"]


def test_damage_to_frames_that_are_needed_is_told(tmp_path):
    path = mkv(tmp_path)
    damage(path, "video", [25, 26])
    reason, detail = reject(path)
    assert reason == "unreadable"
    assert "1 of the 4 frames that are needed are damaged" in detail


def test_a_little_damaged_sound_is_kept_and_more_is_told(tmp_path):
    path = mkv(tmp_path)
    whole = decoding.read_clip(path, num_frames=4)
    damage(path, "audio", [40, 150])  # each is 32 ms of 10 s
    read = decoding.read_clip(path, num_frames=4)
    assert read.notes == {"damaged"}
    assert [number(frame) for frame in read.frames] == [0, 25, 50, 75 % 55]
    spectrum = np.abs(np.fft.rfft(read.waveform[100_000:116_000]))
    assert spectrum.argmax() == 440
    # What follows a loss stays in its place.
    np.testing.assert_allclose(read.waveform[30_000:60_000], whole.waveform[30_000:60_000], atol=99)
    damage(path, "audio", range(60, 70))
    reason, detail = reject(path)
    assert reason == "unreadable"
    assert "3.8% of its sound is damaged" in detail


def test_a_file_whose_tail_is_cut_by_little(tmp_path):
    path = make_video(
        tmp_path / "a.mp4", seconds=10, fps=10, codecs=("mpeg4", "aac"),
        container_options={"movflags": "faststart"},
    )  # fmt: skip
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 300])
    read = decoding.read_clip(path, num_frames=4)
    assert [number(frame) for frame in read.frames] == [0, 25, 50, 75 % 55]
    assert len(read.waveform) > 9.5 * 16_000


def moving(index, size):
    """Noise that moves and grows brighter, so that every packet has much to say."""
    noise = np.random.default_rng(0).integers(0, 120, (size[1], size[0], 3), np.uint8)
    return np.roll(noise, index, axis=1) + np.uint8(index)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_flipped_byte_in_a_slice_costs_no_clip(tmp_path, codec):
    path = make_video(tmp_path / "a.mp4", seconds=10, fps=10, codecs=(codec, "aac"), picture=moving)
    whole = decoding.read_clip(path, num_frames=4)
    data = bytearray(path.read_bytes())
    position, size = packets_of(path, "video")[33]
    data[position + size // 2] ^= 0x55
    path.write_bytes(data)
    read = decoding.read_clip(path, num_frames=4)
    np.testing.assert_array_equal(read.frames[:2], whole.frames[:2])
    assert np.abs(read.frames.astype(int) - whole.frames).mean() < 30
    np.testing.assert_array_equal(read.waveform, whole.waveform)


def test_lost_packets_of_a_transport_stream(tmp_path):
    path = make_video(
        tmp_path / "a.ts", seconds=10, fps=25, codecs=("libx264", "aac"), picture=moving,
        rate=48_000, interleave=True,
    )  # fmt: skip
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    sound = [i for i, one in enumerate(packets) if (one[1] & 0x1F) << 8 | one[2] == 0x101]
    pictures = [i for i, one in enumerate(packets) if (one[1] & 0x1F) << 8 | one[2] == 0x100]

    def without(lost):
        path.write_bytes(b"".join(one for i, one in enumerate(packets) if i not in lost))
        return VideoClip("a", str(path))

    preparation = Preparation(num_frames=4, image_size=32)
    few = {pictures[len(pictures) // 3], pictures[len(pictures) * 2 // 3]}
    assert prepare_clip(without(few), preparation)["notes"] == ["damaged"]
    many = prepare_clip(without(set(sound[5::10])), preparation)
    assert many.reason == "unreadable"
    assert "% of its sound is damaged" in many.detail


def test_hdr_is_noted(tmp_path):
    for transfer, notes in (("smpte2084", {"hdr"}), ("arib-std-b67", {"hdr"}), ("bt709", set())):
        path = make_video(tmp_path / f"{transfer}.mp4", options={"color_trc": transfer})
        assert decoding.read_clip(path, num_frames=2).notes == notes


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_stills_are_noted(tmp_path, codec):
    def still(_, size):
        noise = np.random.default_rng(0).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
        return noise.repeat(8, axis=0).repeat(8, axis=1)

    preparation = Preparation(num_frames=4, image_size=32)
    path = make_video(tmp_path / "still.mp4", picture=still, codecs=(codec, "aac"))
    assert prepare_clip(VideoClip("a", str(path)), preparation)["notes"] == ["still"]
    path = make_video(tmp_path / "moving.mp4", codecs=(codec, "aac"))
    assert prepare_clip(VideoClip("a", str(path)), preparation)["notes"] == []


def test_one_frame_is_no_still():
    assert not is_still(np.zeros((1, 8, 8, 3), np.uint8))
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert is_still(frames)
    frames[1] = 9
    assert not is_still(frames)


@pytest.mark.parametrize("order", [(0.3, 0.1), (0.1, 0.3)])
def test_sound_of_a_second_timeline_does_not_replace_the_first(tmp_path, order):
    # As where two recordings are put into one file byte by byte.
    joined = b""
    for number_, amplitude in enumerate(order):
        waves = tone(440, 5, 48_000, amplitude)[None]
        path = make_video(
            tmp_path / f"{number_}.ts", seconds=5, fps=25, codecs=("mpeg2video", "mp2"),
            rate=48_000, waves=waves, interleave=True,
        )  # fmt: skip
        joined += path.read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(joined)
    content = decoding.read_clip(path, num_frames=5)
    assert content.seconds == pytest.approx(5, abs=0.1)
    loud = np.abs(content.waveform[8_000:72_000].reshape(-1, 1600) / 32768).max(axis=1)
    assert loud == pytest.approx(np.full(40, order[0]), abs=0.02)
    assert [number(frame) for frame in content.frames] == [0, 25, 50, 20, 45]
    assert "restarts" in content.notes
    assert "restarts" not in decoding.read_clip(tmp_path / "0.ts", num_frames=5).notes


def test_one_time_stamp_that_is_too_large_costs_no_sound(tmp_path):
    path = make_video(
        tmp_path / "a.mkv", seconds=6, fps=10, codecs=("mpeg4", "ac3"), rate=48_000, interleave=True
    )
    late = tmp_path / "late.mkv"
    with av.open(str(path)) as source, av.open(str(late), "w") as target:
        streams = [target.add_stream_from_template(stream) for stream in source.streams]
        count = 0
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                count += 1
                if count == 40:  # of 32 ms
                    packet.pts += 2000
            packet.stream = streams[packet.stream_index]
            target.mux(packet)
    loud = np.abs(decoding.read_clip(late, num_frames=4).waveform / 32768)
    assert (loud[8_000:88_000].reshape(-1, 800).max(axis=1) > 0.2).mean() > 0.98


def noise(_, size):
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)


def caption(milliseconds):
    """A tag of an FLV that makes a stream of subtitles."""
    entry = b"\x08\x00\x00\x00\x01\x00\x04text\x02\x00\x02hi\x00\x00\x09"
    body = b"\x02\x00\x0aonTextData" + entry
    head = b"\x12" + len(body).to_bytes(3, "big") + milliseconds.to_bytes(3, "big") + bytes(4)
    tag = head + body
    return tag + len(tag).to_bytes(4, "big")


def with_late_captions(folder):
    path = make_video(
        folder / "a.flv", seconds=5, codecs=("flv", "mp3"), rate=44_100, interleave=True,
        size=(320, 240), picture=noise, options={"g": "1", "qmin": "1", "qmax": "2"},
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + caption(4900))
    return path


def with_late_sounds(folder):
    """As where a recorder of a programme stream gets further tracks later."""
    path = make_video(
        folder / "a.mpg", seconds=5, fps=25, codecs=("mpeg2video", "mp2"), rate=44_100,
        interleave=True, size=(320, 240), picture=noise, options={"g": "1", "qmax": "2"},
    )  # fmt: skip
    data, sound, pack = path.read_bytes(), b"\x00\x00\x01\xc0", b"\x00\x00\x01\xba"
    place = data.index(pack, len(data) * 3 // 4)  # neither the beginning nor the end is looked at
    begin = data.rindex(sound, 0, place)
    track = sound[:3] + b"\xc1" + data[begin + 4 : data.index(pack, begin)]
    path.write_bytes(data[:place] + track + data[place:])
    return path


@pytest.mark.parametrize("write", [with_late_captions, with_late_sounds])
def test_a_stream_that_appears_on_the_way_costs_nothing(tmp_path, write):
    path = write(tmp_path)
    with av.open(str(path)) as container:
        known = len(container.streams)
        later = Version(av.__version__) >= Version("19.0.2")  # which leaves such packets out
        with contextlib.nullcontext() if later else pytest.raises(IndexError):
            list(container.demux(video=0))
    assert known == 2
    content = decoding.read_clip(path, num_frames=4, image_size=32)
    assert content.seconds == pytest.approx(5, abs=0.2)
    assert len(sound_files.read_span(path, 0.0, None)) == pytest.approx(80_000, abs=2_000)
