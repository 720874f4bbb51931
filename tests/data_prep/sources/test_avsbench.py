"""AVSBench's two subsets, as they are published, to datasets with masks."""

import io

import benchmark_folders as folders
import numpy as np
import pytest
from calls import call_here
from localisation_datasets import mask_of, prepare, records_of, rejects_of
from PIL import Image

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.media.images import decode_jpeg
from data_prep.pipeline.clips import Preparation, prepare_clip
from data_prep.sources import avsbench


def test_single_sources_have_classes(tmp_path, capsys):
    rows = [
        ("-5MIwrQ2jA0", "dog_barking", "test"),
        ("b", "cat_meowing", "val"),
        ("c", "cat_meowing", "train"),
        ("d", "cat_meowing", "test"),
    ]
    folder = folders.write_avsbench(tmp_path / "Single-source", rows, single=True)
    (folder / "s4_data/gt_masks/test/cat_meowing/d/d_4.png").unlink()
    output = tmp_path / "data"
    prepare(folder, output, "--layout=avsbench")
    assert "1 clips of train were left out" in capsys.readouterr().out
    builder, records = records_of(output)
    assert builder.info.metadata["class_names"] == ["cat_meowing", "dog_barking"]
    assert set(builder.info.splits) == {"eval", "val"}
    assert rejects_of(output) == {"d": "missing"}
    record = records["-5MIwrQ2jA0"]
    assert record["frame_class"].tolist() == [-1, 1, 1, 1, 1, 1] and list(record["labels"]) == [1]
    frames = [decode_jpeg(frame) for frame in record["frames"]]
    levels = [int(np.asarray(frame)[-2:].mean()) for frame in frames]
    assert levels == pytest.approx([40, 40, 80, 120, 160, 200], abs=4)
    assert mask_of(record, 5)[:, :16].all() and not mask_of(record, 5)[:, 16:].any()
    assert not mask_of(record, 0).any()
    # Picture i is the last of second i: it meets the sound around i seconds.
    rows = len(record["fbank"])
    seconds = audio.stored_seconds(record)
    times = [audio.frame_time(i, 6, 96, sound_rows=rows, seconds=seconds) for i in range(6)]
    assert [time.moment for time in times] == list(range(6))
    assert [time.first_row for time in times] == [0, 52, 152, 252, 352, rows - 96]


def test_multiple_sources_have_one_class_and_frames_without_any(tmp_path):
    rows = [("a", "", "train"), ("b", "", "test")]
    folder = folders.write_avsbench(tmp_path / "Multi-sources", rows, single=False)
    found = avsbench.read(folder)
    assert found.class_names == ("sounding object",) and found.notes == ()
    assert {split: len(of) for split, of in found.splits.items()} == {"train": 1, "eval": 1}
    settings = Preparation(num_frames=6, image_size=32, clip_seconds=5)
    record = prepare_clip(found.splits["eval"][0], settings)
    assert record["frame_class"].tolist() == [-1, 0, 0, -1, 0, 0] and record["labels"] == []
    assert mask_of(record, 4)[:, :16].all() and not mask_of(record, 4)[:, 16:].any()
    assert Image.open(io.BytesIO(record["frame_mask"][3])).size == (32, 32)


def test_mistakes_are_one_sentence(tmp_path):
    for text, message in (
        (None, "neither s4_meta_data.csv nor ms3_meta_data.csv"),
        ("name,start,split\n", "the header lacks category"),
        ("name,category,split\na,b,test,c\n", "line 2: need 3 cells"),
        ("name,category,split\na,b,dev\n", "split must be one of"),
        ("name,category,split\na,,test\n", "the category is empty"),
        ("name,category,split\na,b,train\n", "no row of another split than train"),
        ("name,category,split\n../a,b,test\n", "is not a file in the folder"),
    ):
        if text is not None:
            (tmp_path / "s4_meta_data.csv").write_text(text)
        flags = (tmp_path, "--layout=avsbench", f"--output={tmp_path / 'x'}")
        status, _, said = call_here("data_prep.localisation", *flags)
        assert status == 2 and message in said and "Traceback" not in said, said
