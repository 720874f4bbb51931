"""What is told of a dataset, damage that is found, and what is drawn, on real little datasets."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from inspected_datasets import PREPARATION, with_truth, write
from media_files import make_video
from PIL import Image

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.utils.errors import UserError
from data_prep import inspect_dataset
from data_prep.inspection import text as inspection_text
from data_prep.inspection import verify
from data_prep.inspection.dataset import RawRecords, find, open_dataset
from data_prep.pipeline import shards
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Failure, Workers

HEADS = ("split", "train", "eval ")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Shards of two clips: four to train on (three dogs, one cat, no owl), two to evaluate."""
    folder = tmp_path_factory.mktemp("inspect")
    video = str(make_video(folder / "a.mp4", seconds=4, fps=10))
    silent = str(make_video(folder / "s.mp4", seconds=1, waves=np.zeros((1, 16_000))))
    labels = [("dog",), ("dog", "cat"), (), ("dog",)]
    train = [VideoClip(f"t{i}", video, i * 0.5, labels=some) for i, some in enumerate(labels)]
    train += [VideoClip("s1", silent), VideoClip("s2", silent), VideoClip("late", video, 9.0)]
    held = [VideoClip(f"e{i}", video, i * 0.5, labels=("dog",)) for i in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "FEWEST_CLIPS", 2)
        write(folder / "out", {"train": train[:4], "eval": held})  # without the rejects
        write(folder / "rejecting", {"train": train, "eval": held})
    return folder


@pytest.fixture
def output(original, tmp_path):
    return shutil.copytree(original / "out", tmp_path / "out")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return with_truth(tmp_path_factory.mktemp("truth"))


def start(*arguments):
    inspect_dataset.run(inspect_dataset._parser().parse_args([*map(str, arguments), "--workers=1"]))


def folder_of(output):
    return output / "little" / "1.0.0"


def shard(output, split, index, count):
    return folder_of(output) / f"little-{split}.array_record-{index:05d}-of-{count:05d}"


def flip(path, position):
    """Flips a bit in a record."""
    data = bytearray(path.read_bytes())
    places = [match.start() for match in re.finditer(b"clip_id", data)]  # one a record
    data[places[position]] ^= 16
    path.write_bytes(data)


def test_what_is_told(original, capsys):
    start(original / "rejecting")
    told = capsys.readouterr().out
    assert told.startswith(f"little 1.0.0: {folder_of(original / 'rejecting')}\n")
    for field in ("source        little", "truth         no", "num_frames 4, image_size 32"):
        assert field in told
    head, train, held = (line.split() for line in told.splitlines() if line[:5] in HEADS)
    assert head[:3] == ["split", "clips", "shards"]
    assert (train[1], train[-3]) == ("4", "4") and (held[1:3], held[-3]) == (["2", "1"], "2")
    assert "3 classes, clips of each in the 6 clips read\n  dog 5, cat 1, owl 0\n" in told
    assert "rejects: 3 of 9 clips (33.3%), listed in" in told
    assert "\n  2 silent: the audio never changes its value\n  1 too_short: the span" in told
    assert told.endswith("statistics: none (--compute_stats stores them)\n")


def test_a_sample_adds_up(output):
    dataset = open_dataset(output / "little")
    sample = inspect_dataset.measure(dataset, "train", 1000)
    records = list(dataset.builder.as_data_source(split="train"))
    assert sample.clips == 4 and sample.class_counts == [3, 1, 0]
    assert sample.frames == sum(len(jpeg) for record in records for jpeg in record["frames"])
    assert sample.fbank == 4 * 198 * 128 * 2
    assert sample.size == dataset.splits["train"].num_bytes
    assert sample.frames + sample.fbank < sample.size < sample.frames + sample.fbank + 4 * 200
    assert inspect_dataset.measure(dataset, "train", 3).clips == 3
    size = sum(path.stat().st_size for path in folder_of(output).glob("*train.array*"))
    row = inspection_text.format_splits(dataset, {"train": sample}).splitlines()[1].split("  ")
    cells = [cell.strip() for cell in row if cell.strip()]
    assert cells[3:5] == [inspection_text.size_text(size), inspection_text.size_text(size / 4)]
    assert cells[5:7] == [f"{sample.frames / sample.size:.0%}", f"{sample.fbank / sample.size:.0%}"]


@pytest.mark.parametrize(
    "size, text",
    [
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_600, "1.00 MB"),
        (456e9, "456 GB"),
        (7.8e15, "7800 TB"),
    ],
)
def test_sizes(size, text):
    assert inspection_text.size_text(size) == text


def test_many_labels_show_both_ends():
    names = [f"c{i}" for i in range(12)]
    told = inspection_text.labels(names, [*range(11), 0], "train").splitlines()
    assert told[0] == "labels: 12 classes, clips of each in train"
    assert told[1] == "  most frequent   c10 10, c9 9, c8 8, c7 7, c6 6"
    assert told[2] == "  least frequent  c3 3, c2 2, c1 1, c0 0, c11 0"
    assert told[3] == "  without a clip  2 classes"
    assert inspection_text.labels(["a" * 40], [1], "x").endswith(f"\n  {'a' * 31}… 1")


def test_a_whole_dataset_is_verified(output, capsys):
    start(output, "--verify", "--read=0")
    told = capsys.readouterr().out
    assert "all 6 records are whole" in told
    assert "in all splits\n  dog 5, cat 1, owl 0\n" in told


def test_flipped_bits_are_found(output, capsys, monkeypatch):
    flip(shard(output, "train", 1, 2), 1)
    flip(shard(output, "eval", 0, 1), 0)
    monkeypatch.setattr(sys, "argv", ["inspect", str(output), "--verify", "--workers=1"])
    with pytest.raises(SystemExit) as stop:
        inspect_dataset.main()
    assert stop.value.code == 2
    told = capsys.readouterr()
    first, second = told.out.splitlines()[-2:]
    assert first.startswith("split train, record 3, little-train.array_record-00001-of-00002: ")
    assert second.startswith("split eval, record 0, little-eval.array_record-00000-of-00001: ")
    assert "hash mismatch" in first and "hash mismatch" in second
    message = told.err.splitlines()[-1]
    assert "2 of 6 records in" in message and "(the first: split train, record 3," in message
    with pytest.raises(UserError, match=r"split train, record 3 is damaged .*--verify"):
        start(output)


def test_files_that_are_cut_or_gone(output):
    path = shard(output, "train", 0, 2)
    path.write_bytes(path.read_bytes()[:-1])
    shard(output, "eval", 0, 1).unlink()
    verdict = verify.verify(open_dataset(output), 1)
    assert (verdict.damaged, verdict.clips) == (4, 6)
    cut, gone = verdict.damages
    assert str(cut).startswith("split train, records 0 to 1, little-train.array_record-00000-of-")
    assert "holds 0 readable records, not 2" in cut.why
    assert (gone.split, gone.record, gone.count) == ("eval", 0, 2) and "missing" in gone.why
    with pytest.raises(UserError, match=r"little-eval.array_record-00000-of-00001 .* are gone"):
        start(output)
    with pytest.raises(UserError, match="4 of 6 records"):
        start(output, "--verify")


def test_an_id_comes_once(output):
    shutil.copyfile(shard(output, "train", 0, 2), shard(output, "eval", 0, 1))
    verdict = verify.verify(open_dataset(output), 1)
    assert [(damage.split, damage.record) for damage in verdict.damages] == [
        ("eval", 0),
        ("eval", 1),
    ]
    assert "is that of record 0 of train, too" in verdict.damages[0].why


@pytest.mark.parametrize("fault", ["labels", "order", "damaged", "gone"])
def test_an_index_of_other_records_is_found(output, fault):
    folder = folder_of(output)
    index = dataset_dir.read_index(folder, "train", 4)
    labels, path = [row.tolist() for row in index.labels], dataset_dir.index_path(folder, "train")
    if fault == "labels":
        dataset_dir.write_index(folder, "train", index.ids, [*labels[:3], [2]])
    elif fault == "order":
        dataset_dir.write_index(folder, "train", index.ids[::-1], labels)
    elif fault == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    damages = verify.verify(open_dataset(output), 1).damages
    records = {"labels": 1, "order": 4, "damaged": 4}.get(fault)
    if records is None:
        assert not damages  # programs take ids and labels from the records
        return
    (damage,) = damages
    assert (damage.split, damage.record) == ("train", 3 if fault == "labels" else 0)
    assert damage.file == "clips-train.npz"
    assert damage.why.startswith(f"it has other ids or labels than {records} records: delete it")


class BreakingPool(Workers):
    """Calls functions here, and fails wherever the second record of a file is among the items."""

    def __init__(self):
        pass

    def results(self, function, items, *arguments):
        for item in items:
            if item.start <= 1 < item.start + item.count:
                yield item, Failure("crashed", "ended by SIGSEGV")
            else:
                yield item, function(item, *arguments)


def test_a_record_that_kills_a_process_is_named(output):
    dataset = open_dataset(output)
    files = list(verify._files(dataset, "train"))
    found = list(verify._checked(BreakingPool(), files, str(dataset.directory)))
    by_record = {span.first: checked.flaw for span, checked in found}
    assert by_record == {0: None, 1: "ended by SIGSEGV", 2: None, 3: "ended by SIGSEGV"}


def test_flaws_that_a_checksum_does_not_see(truth):
    _, record = RawRecords(truth, "train")[0]
    assert verify.flaw(record, truth) is None
    jpegs, masks, fbank = record["frames"], record["frame_mask"], record["fbank"]
    events = record["events"]
    infinite = np.full((5, 128), np.inf, np.float16)
    flaws = {
        "clip id is empty": {"clip_id": b""},
        "label 3 is none of the 3": {"labels": [0, 3]},
        "3 frames, not 4": {"frames": jpegs[:3]},
        "frame 1 is not a readable JPEG": {"frames": [jpegs[0], jpegs[1][:-200], *jpegs[2:]]},
        "frame 0 is not a readable JPEG": {"frames": masks},
        "log-mel is float16 (5, 128), not uint8": {"fbank": infinite},
        "log-mel is uint8 (0, 128)": {"fbank": fbank[:0]},
        "spread over nan seconds": {"seconds": np.float32(np.nan)},
        "spread over 0.0 seconds": {"seconds": np.float32(0)},
        "class of frame_class": {"frame_class": np.array([0, 1, 2, 3])},
        "class of an event": {"events": events | {"class": [0, -1]}},
        "no start before its end": {"events": events | {"end": [np.float32(0.7), np.float32(0.1)]}},
        "different lengths": {"events": events | {"end": events["end"][:1]}},
        "5 masks, not 4": {"frame_mask": [*masks, masks[0]]},
    }
    for expected, change in flaws.items():
        found = verify.flaw({**record, **change}, truth)
        assert found is not None and expected in found
    larger = truth._replace(preparation=Preparation(num_frames=4, image_size=48, clip_seconds=2))
    assert verify.flaw(record, larger) == "frame 0 has 32 x 32 pixels, not 48 x 48"


def test_notes_are_counted(tmp_path):
    grey = dict.fromkeys(range(20), np.full((48, 64, 3), 90, np.uint8))
    still = make_video(tmp_path / "still.mp4", seconds=2, picture=lambda i, _: grey[i])
    moving = make_video(tmp_path / "a.mp4", seconds=2, fps=10)
    clips = [VideoClip(path.stem, str(path)) for path in (still, moving)]
    write(tmp_path / "out", {"train": clips})
    sample = inspect_dataset.measure(open_dataset(tmp_path / "out"), "train", 2)
    assert inspection_text.notes([sample, sample]).splitlines() == [
        "notes, of the 4 clips read:",
        "  2 still: all frames show the same picture",
    ]
    assert inspection_text.notes([sample._replace(notes={})]) == "notes: none"


def test_numbers_that_are_not_finite(output):
    dataset = open_dataset(output)
    _, record = RawRecords(dataset, "eval")[0]
    record["fbank"] = np.where(np.eye(198, 128) > 0, np.nan, record["fbank"]).astype(np.float16)
    assert "finite" in verify.flaw(record, dataset)


def test_statistics_of_a_dataset_that_has_none(output, capsys):
    start(output, "--compute_stats", "--read=0")
    stored = json.loads((folder_of(output) / "statistics.json").read_text())
    source = tfds.builder_from_directory(folder_of(output)).as_data_source(split="train")
    values = np.concatenate([record["fbank"] for record in source]).astype(np.float64)
    assert stored["fbank_mean"] == pytest.approx(values.mean(), abs=1e-9)
    assert stored["fbank_std"] == pytest.approx(values.std(), abs=1e-9)
    assert stored["class_counts"] == {"dog": 3, "cat": 1, "owl": 0}
    told = capsys.readouterr().out
    assert "clips of each in train\n  dog 3, cat 1, owl 0\n" in told
    mean = f"log-mel mean {values.mean():.4f}, standard deviation {values.std():.4f}, of 4 clips"
    assert mean in told
    start(output, "--read=0")
    assert mean in capsys.readouterr().out


def test_a_page_is_drawn(output, tmp_path, capsys):
    page = tmp_path / "new" / "page.png"
    start(output, f"--page={page}", "--split=train", "--clips=3", "--read=0")
    assert f"{page} shows 3 clips of the split train" in capsys.readouterr().out
    with Image.open(page) as image:
        # Two columns of 7 inches, two lines without events, at 150 dpi.
        line = 0.24 + 7 / 8 + 0.06 + 3 * 0.13 + 0.06 + 0.85 + 0.42
        expected = (2 * 0.3 + 2 * 7 + 0.45) * 150, (0.62 + 2 * line) * 150
        assert np.allclose(image.size, expected, atol=1)
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--split=test"], "no split 'test'; it has train, eval"),
        (["--page=page.jpg"], "must end in .png"),
        (["--clips=0"], "--clips must be at least 1, not 0"),
        (["--read=-1"], "--read must be at least 0"),
        (["--page=p.png", "--clip_rows=100"], "of 198 rows .* --clip_rows=198"),
    ],
)
def test_flags_that_make_no_sense(output, flags, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        start(output, "--read=0", *flags)
    assert not list(tmp_path.glob("*.png"))


def test_a_dataset_without_training_clips_has_no_statistics(output):
    info = folder_of(output) / "dataset_info.json"
    info.write_text(info.read_text().replace('"train"', '"val"'))
    with pytest.raises(UserError, match="--compute_stats is of the split 'train'"):
        start(output, "--compute_stats")


def test_where_a_dataset_may_lie(output, tmp_path):
    for place in (output, output / "little", folder_of(output)):
        assert str(find(place)) == str(folder_of(output))
    for place in ("", tmp_path / "none"):
        with pytest.raises(UserError, match="no dataset folder"):
            find(place)
    with pytest.raises(UserError, match=r"it further below: give one of .*1\.0\.0"):
        find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it holds none"):
        find(tmp_path / "empty")
    shutil.copytree(folder_of(output), output / "little" / "2.0.0")
    with pytest.raises(UserError, match=r"one prepared dataset.*1\.0\.0, .*2\.0\.0"):
        find(output)


def test_an_interrupted_preparation(output, capsys):
    work = output / ".incomplete" / "shards"
    work.mkdir(parents=True)
    for name in ("train-00000.json", "train-00001.json", "train-00001.array_record", "x.clips"):
        (work / name).touch()
    start(output, "--read=0")  # it is to replace what is there
    assert "isn't finished (shards that are: 2); this dataset was there" in capsys.readouterr().out
    (output / "little").rename(output / ".incomplete" / "little")
    with pytest.raises(UserError, match=r"isn't finished \(shards that are: 2\): start"):
        find(output)


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("dataset_info.json", "{", "["),
        ("dataset_info.json", '"2"', '"0"'),
        ("features.json", "clip_id", "clip"),
        ("metadata.json", '"code_version"', '"other"'),
        ("metadata.json", '"owl"', '"owl", "rat"'),
        ("metadata.json", '"num_frames": 4', '"num_frames": 0'),
        ("metadata.json", "}", ""),
    ],
)
def test_damaged_metadata(output, file, old, new):
    path = folder_of(output) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"the metadata in .* are damaged"):
        open_dataset(output)


def test_a_dataset_of_an_earlier_release_opens(output):
    path = folder_of(output) / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["preparation"]["fbank_dtype"]
    path.write_text(json.dumps(metadata))
    assert open_dataset(output).preparation == PREPARATION


@pytest.mark.parametrize(
    "text, told",
    [
        ("a,b\n1,2\n", "no column 'reason'"),
        ('reason\n"' + "x" * 200_000, "line 1 is not valid CSV"),
    ],
)
def test_a_list_of_rejects_that_is_none(output, text, told):
    (output / "rejects.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        start(output, "--read=0")


def test_rejects_that_are_not_known(output):
    dataset, path = open_dataset(output), output / "rejects.csv"
    assert inspection_text.rejects(dataset) == "rejects: none"
    path.write_bytes(b"clip_id,path,reason,detail\na,\xff,odd,x\n")
    told = inspection_text.rejects(dataset)
    assert "1 of 7 clips (14.3%)" in told and "1 odd: a reason that this version" in told
    path.unlink()
    assert inspection_text.rejects(dataset).startswith("rejects: not known")
