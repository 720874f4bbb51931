"""The benchmarks of preparation and of growth run; how fast is theirs to say."""

import numpy as np
import pytest
from benchmark_tables import FLAGS
from media_files import make_video

from benchmarks.data import extraction_baseline, many_clips, preparation
from benchmarks.training import growth

pytestmark = pytest.mark.release


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(preparation, "SIZES", ((64, 48),))
    monkeypatch.setattr(preparation, "SECONDS", 2)
    monkeypatch.setattr(preparation, "FRAME_RATE", 8)


def test_preparation_times_its_own_videos(short, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["preparation", "--count=2", "--repeats=1"])
    preparation.main()
    out = capsys.readouterr().out
    assert "| 64 × 48 | " in out
    sizes = [line.split("|")[2] for line in out.splitlines() if "int8" in line or "float16" in line]
    first, second = (float(size.split()[0]) for size in sizes)
    assert first > second  # a record with float16 log-mel weighs more than one with uint8
    assert "2 million clips like 64 × 48: " in out


def test_preparation_times_anyones_videos(tmp_path, monkeypatch, capsys):
    make_video(tmp_path / "a.mp4", seconds=2, fps=5)
    monkeypatch.setattr("sys.argv", ["preparation", f"--videos={tmp_path}", "--repeats=1"])
    preparation.main()
    assert f"| {tmp_path} | " in capsys.readouterr().out
    make_video(tmp_path / "a.mp4", codecs=("libx264", None))
    with pytest.raises(SystemExit) as ended:
        preparation.main()
    assert ended.value.code == 2


def test_many_clips_are_planned_prepared_and_resumed():
    told = many_clips.measure(2000)
    assert set(told["seconds"]) == set(many_clips.STEPS) and told["memory"] > 0
    assert told["files"]["in the end"] < 100


def test_the_peer_extracts_frames_and_sound(short, tmp_path):
    pytest.importorskip("cv2")
    pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a.mp4"
    preparation.write_video(path, (64, 48), np.random.default_rng(0))
    assert extraction_baseline.extract_all([str(path)], 4) > 0


def test_growth_counts_what_it_should(monkeypatch, capsys):
    flags = [*FLAGS, "--batch", "8", "--clips", "4", "8", "--time"]
    monkeypatch.setattr("sys.argv", ["growth", *flags])
    monkeypatch.setattr(growth, "AUDIO_ROWS", {2: 192})
    monkeypatch.setattr(growth, "WIDTHS", {})
    monkeypatch.setattr(growth, "REGISTERS", ())
    monkeypatch.setattr(growth, "DIM", 8)
    growth.main()
    out = capsys.readouterr().out
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in out.splitlines()]
    rows = {(cells[0], cells[1]): cells[2:] for cells in lines if len(cells) == 8}
    twice = float(rows["audio", "2 s"][0]) / float(rows["batch", "8"][0])
    assert 1.5 < twice < 2.5  # twice the rows of audio, and as many pixels as before
    assert "| 8 | " in out
