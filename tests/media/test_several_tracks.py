"""Files with several programmes or several sound tracks: the picture keeps its own sound."""

import itertools

import av
import numpy as np
import pytest
from hostile_files import (
    GREYS,
    TEXT_TRACK,
    element,
    jpeg,
    matroska,
    picture_track,
    recording,
    sound_track,
)
from media_files import make_video, tone

from cavmae_sync_jax.media import decoding, sound_files, span_sound
from data_prep.pipeline.clips import Preparation, VideoClip, prepare_clip

PREPARATION = Preparation(num_frames=2, image_size=32)
PACKET = 188


def checksum(section):
    """The CRC of a transport stream's tables."""
    rest = 0xFFFFFFFF
    for byte in section:
        rest ^= byte << 24
        for _ in range(8):
            rest = (rest << 1 ^ (0x04C11DB7 if rest & 0x80000000 else 0)) & 0xFFFFFFFF
    return rest.to_bytes(4, "big")


def programme_table(places):
    """The packet that says where each programme's own table is."""
    body = b"".join(n.to_bytes(2, "big") + (0xE000 | at).to_bytes(2, "big") for n, at in places)
    section = b"\0" + (0xB000 | len(body) + 9).to_bytes(2, "big") + b"\0\1\xc1\0\0" + body
    packet = b"\x47\x40\0\x10\0" + section + checksum(section)
    return packet.ljust(PACKET, b"\xff")


def packets_of(path):
    """A transport stream's packets without its list of programmes and its name."""
    data = path.read_bytes()
    packets = [data[at : at + PACKET] for at in range(0, len(data), PACKET)]
    return [one for one in packets if (one[1] & 0x1F) << 8 | one[2] not in (0, 0x11)]


def channel(path, number, hertz, layout, size):
    """A television channel: a file whose numbers no other one has."""
    names = {"start_pid": 0x100 * number, "pmt_start_pid": 0x1000 + number, "service_id": number}
    count = {"mono": 1, "stereo": 2}[layout]
    return make_video(
        path, seconds=4, fps=25, size=size, waves=np.stack([tone(hertz, 4, 48_000)] * count),
        rate=48_000, layout=layout, codecs=("mpeg2video", "ac3"), interleave=True,
        container_options={f"mpegts_{name}": str(value) for name, value in names.items()},
    )  # fmt: skip


def transmission(folder, layouts):
    """A file of two programmes with 440 Hz and 1000 Hz; the pictures have other shapes."""
    first = channel(folder / "first.ts", 1, 440, layouts[0], (64, 48))
    second = channel(folder / "second.ts", 2, 1000, layouts[1], (48, 96))
    both = itertools.zip_longest(packets_of(first), packets_of(second))
    packets = [programme_table([(1, 0x1001), (2, 0x1002)]), *itertools.chain(*both)]
    path = folder / "both.ts"
    path.write_bytes(b"".join(filter(None, packets)))
    return path


def pitch(waveform):
    return np.abs(np.fft.rfft(waveform[8000:24_000])).argmax()


@pytest.mark.parametrize("layouts", [("mono", "stereo"), ("stereo", "mono")])
def test_a_programmes_picture_meets_its_own_sound(tmp_path, layouts):
    path = transmission(tmp_path, layouts)
    content = decoding.read_clip(path, num_frames=1)
    hertz = {(48, 64): 440, (96, 48): 1000}[content.frames.shape[1:3]]
    assert pitch(content.waveform) == pytest.approx(hertz, abs=2)
    assert pitch(sound_files.read_sound(path)) == pytest.approx(hertz, abs=2)


SILENCE, SOUND = np.zeros(32_000), tone(440, 2, 16_000)
LATE = np.where(np.arange(32_000) < 16_000, 0, SOUND)


@pytest.mark.parametrize(
    ("tracks", "span", "sounding"),
    [
        ([SILENCE, SOUND], (0, 2), [2]),
        ([SILENCE, SILENCE, SOUND, SOUND], (0, 2), [3, 4]),
        ([SILENCE, LATE], (1, 2), [2]),
        ([SILENCE, LATE], (0, 1), []),
        ([SILENCE, SILENCE], (0, 2), []),
    ],
)
def test_the_other_tracks_that_sound_are_named(tmp_path, tracks, span, sounding):
    path = recording(tmp_path / "a.mkv", tracks)
    assert span_sound.sounding_tracks(path, *map(float, span)) == sounding
    reject = prepare_clip(VideoClip("a", str(path), *span), PREPARATION)
    assert reject.reason == "silent" and str(path) in reject.detail
    assert ("sounds in track" in reject.detail) == bool(sounding)
    if sounding:
        assert f"track {', '.join(map(str, sounding))}: make a copy" in reject.detail
        assert f"-map 0:a:{sounding[0] - 1}" in reject.detail


def test_a_first_track_that_sounds_is_the_one_that_is_read(tmp_path):
    path = recording(tmp_path / "a.mkv", [SOUND, tone(1000, 2, 16_000)])
    assert pitch(decoding.read_clip(path).waveform) == 440
    assert prepare_clip(VideoClip("a", str(path)), PREPARATION)["notes"] == []


@pytest.mark.parametrize("unknown", ["picture", "sound"])
def test_a_track_of_an_unknown_codec_is_passed_over(tmp_path, unknown):
    # As phones write spatial sound beside the usual one.
    pictures = [picture_track(), picture_track()]
    sounds = [sound_track(), sound_track()]
    if unknown == "picture":
        pictures[0] = picture_track(codec="V_NOBODY")
    else:
        sounds[0] = sound_track(codec="A_NOBODY")
    pulses = np.round(SOUND * 32767).astype("<i2")
    blocks = []
    for number in range(4):
        part = pulses[8000 * number : 8000 * (number + 1)].tobytes()
        blocks += [(track, 500 * number, jpeg(GREYS[number])) for track in (1, 2)]
        blocks += [(track, 500 * number, part) for track in (3, 4)]
    path = tmp_path / "a.mkv"
    path.write_bytes(matroska([*pictures, *sounds], blocks))
    content = decoding.read_clip(path, num_frames=4)
    assert np.abs(content.frames.mean(axis=(1, 2, 3)) - GREYS).max() < 2
    assert pitch(content.waveform) == 440 and pitch(sound_files.read_sound(path)) == 440


def longer(name, *, pictures=True, broken_off=False):
    """A file whose picture and first sound end at 2 s, and whose other tracks go on up to 8 s."""
    pulses = np.round(SOUND * 32767).astype("<i2")
    part = [pulses[8000 * number : 8000 * (number + 1)].tobytes() for number in range(4)]
    aside = [element("88", 0)]  # not what a player takes of itself
    tracks = {
        "a second sound": sound_track(more=aside),
        "words": TEXT_TRACK,
        "a second picture": picture_track(more=aside),
    }
    content = {"a second sound": part[0], "words": b"hello", "a second picture": jpeg(90)}
    blocks = []
    for number in range(16):
        here = number < 4
        blocks += [(1, 500 * number, jpeg(GREYS[number]))] if here and pictures else []
        blocks += [(2, 500 * number, part[number])] if here else []
        blocks += [(3, 500 * number, content[name])] if number < (6 if broken_off else 16) else []
    first = picture_track() if pictures else TEXT_TRACK
    return matroska([first, sound_track(), tracks[name]], blocks, 8000)


@pytest.mark.parametrize("name", ["a second sound", "words", "a second picture"])
def test_a_track_that_nobody_reads_makes_no_file_longer(tmp_path, name):
    path = tmp_path / "a.mkv"
    path.write_bytes(longer(name))
    for mute in (False, True):
        assert decoding.probe(path, mute=mute).duration == pytest.approx(2, abs=0.6)
        content = decoding.read_clip(path, num_frames=4, mute=mute)
        assert np.abs(content.frames.mean(axis=(1, 2, 3)) - GREYS).max() < 2
    # What nothing goes on to is missing.
    path.write_bytes(longer(name, broken_off=True))
    with pytest.raises(decoding.MediaError, match=r"ends before the 8\.00 s it promises"):
        decoding.read_clip(path, num_frames=4)


@pytest.mark.parametrize("name", ["a second sound", "words"])
def test_a_track_that_nobody_hears_makes_no_sound_longer(tmp_path, name):
    path = tmp_path / "a.mka"
    path.write_bytes(longer(name, pictures=False))
    assert sound_files.seconds_of(path) == pytest.approx(2, abs=0.1)
    assert len(sound_files.read_span(path, 0, 7)) == pytest.approx(32_000, abs=800)


def test_a_long_recording_may_have_a_track_that_is_longer_by_far(tmp_path):
    path = make_video(
        tmp_path / "whole.mkv", seconds=130, fps=2, codecs=("mpeg4", "ac3"), rate=48_000
    )
    with av.open(str(path)) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        streams = [target.add_stream_from_template(one) for one in source.streams]
        more = target.add_stream_from_template(source.streams[1])
        for packet in source.demux():
            if packet.dts is None:
                continue
            copy = av.Packet(bytes(packet))
            copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            if packet.stream.index == 1:
                copy.stream = more
                target.mux(copy)
            time = packet.pts * packet.time_base
            if time < 20:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    assert decoding.probe(tmp_path / "a.mkv").duration == pytest.approx(20, abs=0.6)
