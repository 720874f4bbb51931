"""Hostile tables and what they name: pictures, sounds, segments and truth files."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from etils import epath
from extracted_clips import CLASSES, Extracted
from hostile_files import cut, jpeg, mkv_of, png
from media_files import tone
from PIL import Image

from cavmae_sync_jax.utils.errors import UserError
from data_prep import cavmae_json
from data_prep.pipeline.clips import Preparation, VideoClip, prepare_clip
from data_prep.sources import csv_files, segment_lists, segments, video_files
from data_prep.sources.video_files import Video

SMALL = Preparation(num_frames=2, image_size=32)


def wav(waves, rate=16_000, **settings):
    buffer = io.BytesIO()
    soundfile.write(buffer, waves, rate, format="WAV", **settings)
    return buffer.getvalue()


def wav_claiming(size):
    data = wav(tone(440, 2, 16_000))
    at = data.index(b"data") + 4
    return data[:at] + size.to_bytes(4, "little") + data[at + 4 :]


def flac_with_wrong_sums():
    """Every frame's last two bytes, which are the sum of the others, are wrong."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.round(tone(440, 2, 16_000), 4), 16_000, format="FLAC")
    data = bytearray(buffer.getvalue())
    ends = [at for at in range(100, len(data)) if data[at : at + 2] == b"\xff\xf8"]
    for end in (*ends, len(data)):
        data[end - 1] ^= 0xFF
    return bytes(data)


def claiming(width, height):
    """A JPEG whose header says another size."""
    data = jpeg(90)
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


def grey_16_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16), 30_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {
    "jpeg of 60000 x 60000": (lambda: claiming(60_000, 60_000), "too_large"),
    "jpeg of 9000 x 9000": (lambda: claiming(9000, 9000), "too_large"),
    "png of 60000 x 60000": (lambda: png(0, (1, 1), (60_000, 60_000)), "too_large"),
    "png of 2 billion": (lambda: png(0, (1, 1), (2**31 - 1, 2**31 - 1)), "too_large"),
    "line": (lambda: png(0, (1, 60_000)), "too_large"),
    "no pixel": (lambda: png(0, (0, 0)), "unreadable"),
    "16 bits": (grey_16_bits, "unreadable"),
    "video": (mkv_of, "unreadable"),
    "png": (lambda: png(90, (16, 12)), None),
}
NOT_A_NUMBER = np.where(np.arange(32_000) == 9000, np.nan, tone(440, 2, 16_000))
EIGHT = np.stack([tone(440 + 333 * k, 2, 16_000) for k in range(8)], axis=1)
SOUNDS = {
    "cut": (lambda: cut(wav(tone(440, 10, 16_000)), 0.5), "unreadable"),
    "promises more": (lambda: wav_claiming(200_000), "unreadable"),
    "promises less": (lambda: wav_claiming(1000), "too_short"),
    "length not known": (lambda: wav_claiming(2**32 - 1), None),
    "length zero": (lambda: wav_claiming(0), None),
    "1 hz": (lambda: wav(tone(440, 2, 16_000), 1), "unreadable"),
    "no number": (lambda: wav(NOT_A_NUMBER, subtype="FLOAT"), "unreadable"),
    "too loud": (lambda: wav(10 * tone(440, 2, 16_000), subtype="FLOAT"), None),
    "8 channels": (lambda: wav(EIGHT), None),
    "192 khz": (lambda: wav(tone(440, 2, 192_000), 192_000), None),
    "wrong sums": (flac_with_wrong_sums, None),
    "list of files": (lambda: b"ffconcat version 1.0\nfile b.wav\n", "unreadable"),
    "picture": (lambda: png(90, (16, 12)), "no_audio"),
    "pipe": (None, "missing"),
    "zeros": ("/dev/zero", "missing"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_the_layout_of_cav_mae(tmp_path, kind):
    make, reason = PICTURES[kind]
    extracted = Extracted(tmp_path)
    extracted.clip("a")
    (tmp_path / "frames" / "frame_0" / "a.jpg").write_bytes(make())
    (entry,) = extracted.read()
    result = prepare_clip(entry, SMALL)
    assert getattr(result, "reason", None) == reason
    if reason:
        assert str(tmp_path / "frames" / "frame_0" / "a.jpg") in result.detail


@pytest.mark.parametrize("kind", SOUNDS)
def test_sounds_of_the_layout_of_cav_mae(tmp_path, kind):
    make, reason = SOUNDS[kind]
    extracted = Extracted(tmp_path)
    extracted.clip("a")
    extracted.clip("b")
    path = tmp_path / "audio" / "a.wav"
    path.unlink()
    if make is None:
        os.mkfifo(path)
    elif isinstance(make, str):
        path.symlink_to(make)
    else:
        path.write_bytes(make())
    entry, _ = extracted.read()
    result = prepare_clip(entry, SMALL)
    assert getattr(result, "reason", None) == reason
    if reason:
        assert str(path) in result.detail
        return
    waveform = entry.read(SMALL).waveform
    assert len(waveform) == 32_000
    assert np.abs(np.fft.rfft(waveform)).argmax() == 880


HEAD = "video,start,end,label,split\n"
VIDEOS = [Video(epath.Path("/v/a.mp4"), Path("a.mp4"))]


def read_table(kind, path):
    """Reads a table as the programs do, up to what becomes of its rows."""
    if kind == "labels":
        return csv_files.read_labels(path, video_files.Names(VIDEOS).called)
    if kind == "classes":
        return csv_files.read_classes(path)
    if kind == "json":
        return cavmae_json.read_list(path, CLASSES, cavmae_json.Places())
    found = segment_lists.read_segments(path, None)
    return segments.segment_clips(
        VIDEOS, found, CLASSES, trimmed=False, seconds=10.0, eval_share=0.0
    )


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("labels", 'video,label\n"a.mp4,dog\n', "unexpected end of data"),
        ("labels", "video,label\na\0.mp4,dog\n", r"no row of .* such as 'a\\x00\.mp4'"),
        ("labels", "video,label\n../v/a.mp4,dog\n", r"no row of .* such as '../v/a\.mp4'"),
        ("labels", "video,label\na.mp4,dog,cat\n", "line 2: need 2 cells"),
        ("labels", f"video,label\na.mp4,{'x' * 200_000}\n", "field larger than"),
        ("labels", "video,label\na.mp4,dog\n\n\na.mp4\n", "line 5: need 2 cells"),
        (
            "labels",
            b"video,label\na.mp4,\xff\n",
            "can't be read as a CSV file: .*save it as CSV in UTF-8",
        ),
        ("segments", HEAD + '"a.mp4,0,1,dog,\n', "unexpected end of data"),
        ("segments", HEAD + "a.mp4,0\n", "line 2: need 5 cells, not 2"),
        ("segments", HEAD + "a.mp4,0,1,Purr,\n", "line 2: 'Purr' is not in the list of classes"),
        ("segments", HEAD + "a.mp4,0,inf,Dog,\n", "line 2: 'inf' is not a time"),
        ("segments", HEAD + "a.mp4,1e400,,Dog,\n", "line 2: '1e400' is not a time"),
        ("classes", "index,mid,display_name\n0,/m/1,Dog\n7,/m/2,Cat\n", "line 3: .* 0 to 1"),
        ("classes", 'index,mid,display_name\n0,/m/1,"Dog\n', "unexpected end of data"),
        ("json", '{"data": [{"video_id": "a"\n "wav": 1}]}', "line 2, column 2, is not valid JSON"),
        ("json", '{"data": [{"video_id": "a"', "line 1, column 27, is not valid JSON"),
        ("json", "[" * 100_000, "can't be read as JSON"),
        ("json", b'{"data": "\xff"}', "can't be read as JSON"),
    ],
)
def test_a_malformed_table_is_told_with_its_line(tmp_path, kind, text, message):
    path = tmp_path / "table.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        read_table(kind, path)
    assert str(path) in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "a\0.mp4", "file:a.mp4", "x" * 5000]
)
def test_a_segment_reads_no_file_but_those_found(tmp_path, name):
    path = tmp_path / "segments.csv"
    path.write_text(f"{HEAD}{name},0,1,Dog,\n")
    ((clip,),) = read_table("segments", path).splits.values()
    assert clip.refusal[0] == "missing" and not {"/", "\\"} & set(clip.clip_id)
    result = prepare_clip(clip, SMALL)
    assert result.reason == "missing" and f"{path}, line 2" in result.detail


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


class Trap:
    """Unpickled, it would leave a mark."""

    def __reduce__(self):
        return (os.mkdir, ("sprung",))


TRUTHS = {
    "pickled object": lambda: packed(frame_class=np.array([Trap()], object)),
    "outside": lambda: zipped("../../../frame_class.npy", b"x"),
    "text": lambda: b"hello",
    "another array": lambda: packed(frame_class=np.zeros(2, int)),
}


@pytest.mark.parametrize("kind", TRUTHS)
def test_a_truth_file_that_is_none_is_told(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mkv").write_bytes(mkv_of())
    (tmp_path / "a.npz").write_bytes(TRUTHS[kind]())
    clip = VideoClip("a", str(tmp_path / "a.mkv"), truth=str(tmp_path / "a.npz"))
    with pytest.raises(UserError, match=r"a\.npz isn't a readable truth file"):
        prepare_clip(clip, SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "a.npz"]
