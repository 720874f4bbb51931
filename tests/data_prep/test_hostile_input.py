"""Hostile input: every file of a table comes to what the table says, alone and in one folder."""

import csv
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hostile_files import jpeg, matroska, mkv_of, picture_track, sound_track, special_files
from hostile_table import EITHER, TABLE
from media_files import tone
from video_program import program, splits_of

from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.pipeline import shards
from data_prep.pipeline.clips import REASONS, Preparation, Reject, VideoClip, prepare_clip
from data_prep.pipeline.executors import Workers
from data_prep.sources import lengths, video_files
from data_prep.sources.video_files import Video

ROOT = Path(__file__).parents[2]
SMALL = Preparation(num_frames=2, image_size=32)
JOB = shards.Job(shards.Schema((), 2, False, "float16"), SMALL)
NAMES = sorted(TABLE)
# A pipe and a link to a device: whoever reads them reads for ever.
ENDLESS = ("pipe.mp4", "zeros.mp4")
# Links to nothing are no files, but somebody meant them to be.
LISTED = (*ENDLESS, "loop.mp4", "dangling.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All files of the table."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, row in TABLE.items():
        content = row.make()
        with (folder / name).open("wb") as file:
            file.truncate(2**40) if content is None else file.write(content)
    return folder


kept = []


@dataclasses.dataclass(frozen=True)
class Kept(VideoClip):
    """Keeps what was read, for a closer look than the example allows."""

    def read(self, preparation):
        kept[:] = [super().read(preparation)]
        return kept[0]


def look(row, recording):
    """Checks that a recording is what a row of the table says."""
    if row.greys is not None:
        means = recording.frames.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(means, row.greys, atol=3)
    waveform = recording.waveform / 32767
    assert abs(len(waveform) - row.samples) <= 1
    assert recording.seconds == pytest.approx(row.samples / 16_000, abs=0.002)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert spectrum.argmax() * 16_000 / len(waveform) == pytest.approx(440, abs=2)
    if row.level is not None:  # of the first channel alone: more would add to it
        assert waveform.std() == pytest.approx(0.3 * row.level / np.sqrt(2), rel=0.02)
    if row.check is not None:
        row.check(recording)


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name) for name in NAMES])
def test_every_file_comes_to_what_the_table_says(folder, name):
    row, path = TABLE[name], str(folder / name)
    whole = lengths.duration(path)
    assert len(videos.split_clips(Video(epath.Path(path), Path(name)), "a", (), whole, 10.0)) == 1
    result = shards.prepare_record(Kept("a", path, *row.span), JOB)
    if isinstance(result, Reject):
        assert row.reason in (result.reason, EITHER), result.detail
        assert result.reason in REASONS and path in result.detail and result.detail.endswith(".")
    else:
        assert row.reason in (None, EITHER)
        if row.reason is None:
            look(row, kept[0])


def test_the_program_loses_none_of_them(folder, tmp_path):
    special_files(folder)
    (folder / "folder.mp4" / "inside.mkv").write_bytes(mkv_of())
    expected = {name: row.reason for name, row in TABLE.items()}
    expected |= {"folder.mp4/inside.mkv": None, **dict.fromkeys(LISTED, "unreadable")}
    output = tmp_path / "out"
    flags = ["--eval_share=0", "--num_frames=2", "--image_size=32", "--workers=2"]
    flags += ["--time_limit=60", "--max_reject_share=1", f"--output={output}"]
    done = program(folder, *flags)
    assert done.returncode == 0, done.stderr
    with (output / "rejects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rejects = {row["path"]: row for row in rows}
    assert len(rejects) == len(rows)
    examples = splits_of(output)["train"]
    ids = set()
    for name, reason in expected.items():
        path = os.path.join(folder, name)
        written = path.encode("utf-8", "backslashreplace").decode()
        row = TABLE.get(name)
        clip_id = (row and row.clip_id) or Path(name).stem
        ids.add(clip_id)
        if written in rejects:
            reject = rejects.pop(written)
            assert reason in (reject["reason"], EITHER), (name, reject)
            assert reject["clip_id"] == clip_id and written in reject["detail"]
            assert clip_id not in examples
        else:
            assert reason in (None, EITHER), name
            assert len(examples[clip_id]["frames"]) == 2
            assert len(examples[clip_id]["fbank"]) >= 98
    assert not rejects and set(examples) <= ids and len(ids) == len(expected)
    assert f"has {len(examples)} examples: {len(examples)} in train." in done.stdout
    assert f"{len(expected) - len(examples)} clips were rejected (" in done.stdout


def test_what_only_looks_like_a_file_is_not_waited_for(tmp_path):
    (tmp_path / "a.mp4").write_bytes(mkv_of())
    names = [*special_files(tmp_path), *ENDLESS]
    found = video_files.find_videos([str(tmp_path)])
    assert [video.name.name for video in found] == ["a.mp4", *sorted(LISTED)]
    for name in ("loop.mp4", "dangling.mp4"):
        with pytest.raises(UserError, match="there is no file or folder"):
            video_files.find_videos([str(tmp_path / name)])
    paths = [str(tmp_path / name) for name in names]
    with Workers(1, 20) as workers:
        clips = [VideoClip("a", path) for path in paths]
        for clip, result in workers.results(shards.prepare_record, clips, JOB):
            assert result.reason == "unreadable" and clip.path in result.detail
        for path, whole in workers.results(lengths.duration, paths):
            assert whole.reason == "unreadable" and path in whole.detail


def test_days_are_believed_where_both_streams_go_on(tmp_path):
    end = 30 * 3600 * 1000
    sound = np.round(32767 * tone(440, 0.5, 16_000)).astype("<i2").tobytes()
    blocks = [(k, time, one) for time in (0, end) for k, one in ((1, jpeg(90)), (2, sound))]
    tracks, path = [picture_track(), sound_track()], tmp_path / "a.mkv"
    path.write_bytes(matroska(tracks, blocks, end + 500))
    assert lengths.duration(str(path)) == 108_000.5
    path.write_bytes(matroska(tracks, [*blocks, (1, end + 100_000, jpeg(90))], end + 100_500))
    assert lengths.duration(str(path)) == 108_100.5  # the sound ends long before the end
    for fewer in (blocks[:-1], blocks[:-2] + blocks[-1:], blocks[:2]):
        path.write_bytes(matroska(tracks, fewer, end + 500))
        assert lengths.duration(str(path)).reason == "unreadable"
        assert prepare_clip(VideoClip("a", str(path)), SMALL).reason == "unreadable"


AS_NOBODY = """
import os, sys
from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources import lengths, video_files
from data_prep.pipeline.clips import Preparation, VideoClip, prepare_clip
file, folder = sys.argv[1:]
if os.getuid() == 0:
    os.setuid(65534)
reject = prepare_clip(VideoClip("a", file), Preparation())
assert reject.reason == "unreadable" and "Permission denied" in reject.detail, reject
try:
    video_files.find_videos([folder])
except UserError as error:
    print(error)
"""


def script(text, *arguments):
    """Runs a program; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_may_not_be_read_is_told():
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "locked").mkdir()
        for path in (folder / "a.mp4", folder / "b.mp4"):
            path.write_bytes(mkv_of())
        (folder / "a.mp4").chmod(0)
        (folder / "locked").chmod(0)
        said = script(AS_NOBODY, folder / "a.mp4", folder)
        (folder / "locked").chmod(0o755)
    assert said.strip() == f"{folder / 'locked'} can't be read: Permission denied"


def test_a_list_of_paths_may_hold_anything(tmp_path):
    for name in ("a\u2028b.mp4", "\x0bc.mp4", "%d.mp4"):
        (tmp_path / name).write_bytes(b"")
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffa\u2028b.mp4\r\n./\x0bc.mp4\n%d.mp4\n".encode())
    found = video_files.find_videos([str(listed)])
    assert [video.name.name for video in found] == ["a\u2028b.mp4", "\x0bc.mp4", "%d.mp4"]
    for line in ("a\0.mp4", "x" * 5000 + ".mp4", "../gone.mp4", "-", "http://a/b.mp4", "."):
        listed.write_text(f"%d.mp4\n{line}\n# a remark\n")
        absent = []
        (found,) = video_files.find_videos([str(listed)], absent=absent)
        assert found.name.name == "%d.mp4" and absent == [line]
        listed.write_text(f"{line}\n")
        with pytest.raises(UserError, match=r"list\.txt names no file that is there, such as"):
            video_files.find_videos([str(listed)])


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("x/a.mp4", "y/a.mp4", "x__a.mp4.mkv"), None),
        (("x/a.mp4", "x__a.mp4", "y/a.mp4", "y/x__a.mp4"), None),
        (("a.mp4", "a_000010.mp4"), ["a", "a_000010.mp4"]),
        (("a_000010.mp4", "b_000010.mp4"), ["a_000010", "b_000010"]),
        (("\udcff.mp4", "\udcfe.mp4", "__udcff.mp4"), None),
    ],
)
def test_no_two_files_share_an_id(names, ids):
    files = [Video(epath.Path("/v") / name, Path(name)) for name in names]
    made = video_files.clip_ids(files)
    assert len(set(made)) == len(files)
    assert ids is None or made == ids


LONG = """
import resource, sys
from pathlib import Path
from etils import epath
from data_prep import videos
from data_prep.pipeline.clips import Preparation, VideoClip, prepare_clip
from data_prep.sources import lengths
from data_prep.sources.video_files import Video
long, one_keyframe, large = sys.argv[1:]
small = Preparation(num_frames=2, image_size=32)

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

prepare_clip(VideoClip("a", long, 0.0, 10.0), small)
before = used()
whole = lengths.duration(long)
clips = videos.split_clips(Video(epath.Path(long), Path("a.mkv")), "a", (), whole, 10.0)
reasons = [getattr(prepare_clip(c, small), "reason", None) for c in clips[::500]]
last = clips[-1].read(small)
deep = VideoClip("a", one_keyframe, 1790.0, 1800.0).read(small)
growth = used() - before
picture = VideoClip("a", large).read(small)
print(len(clips), clips[-1].start, reasons, *last.frames.mean(axis=(1, 2, 3)).round())
print(last.waveform.max(), deep.waveform.max(), growth, used() - before)
"""


def test_memory_is_that_of_the_clip_not_of_the_file(tmp_path, folder):
    paths = [tmp_path / "long.mkv", tmp_path / "one_keyframe.mkv"]
    one = (("preset", "ultrafast"), ("g", "10000"), ("sc_threshold", "0"))
    paths[0].write_bytes(slides(3 * 3600, "mpeg4", ()))
    paths[1].write_bytes(slides(1800, "libx264", one))
    first, second = script(LONG, *paths, folder / "8000 x 8000.mkv").splitlines()
    assert first == "1080 10790.0 ['silent', 'silent', 'silent'] 179.0 179.0"
    loudest, deep, growth, with_large = map(float, second.split())
    assert loudest == deep == pytest.approx(9830, abs=2)
    assert growth < 40
    assert with_large < 1500


def slides(seconds, codec, options):
    """A picture a second, brighter every minute, and silence with a tone in the last 10 s."""
    import av

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.mkv"
        with av.open(str(path), "w") as container:
            video = container.add_stream(codec, rate=1, options=dict(options))
            video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
            audio = container.add_stream("flac", rate=8000, layout="mono")
            waves = np.zeros((seconds, 8000), np.int16)
            waves[-10:] = np.round(32767 * tone(440, 10, 8000)).reshape(10, 8000)
            for second in range(seconds):
                grey = np.full((16, 16, 3), second // 60, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts = second
                container.mux(video.encode(frame))
                if second % 10 == 9:
                    block = waves[second - 9 : second + 1].reshape(1, -1)
                    sound = av.AudioFrame.from_ndarray(block, "s16", "mono")
                    sound.rate, sound.pts = 8000, (second - 9) * 8000
                    container.mux(audio.encode(sound))
            container.mux(video.encode())
            container.mux([packet for packet in audio.encode() if packet.size])
        return path.read_bytes()
