"""VGG-SS and Flickr-SoundNet, as they are published, to datasets with boxes and masks."""

import io
import json

import benchmark_folders as folders
import media_files
import numpy as np
import pytest
from calls import call_here
from etils import epath
from localisation_datasets import LEFT_HALF, SMALL, mask_of, prepare, records_of, rejects_of
from PIL import Image

from cavmae_sync_jax.media import boxes as media_boxes
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import shards
from data_prep.pipeline.clips import REASONS, Reject, prepare_clip
from data_prep.sources import avsbench, benchmarks, boxes, segments


def test_consensus_by_hand():
    first, second = (0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)
    agreed = media_boxes.consensus([first, second], [0.5, 0.5], 8)
    row = [0.5] * 2 + [1] * 2 + [0.5] * 2 + [0] * 2
    np.testing.assert_array_equal(agreed, np.tile(row, (8, 1)))
    # Three agree no more than fully; a weight of 1 needs no second.
    assert media_boxes.consensus([first] * 3, [0.5] * 3, 8).max() == 1
    assert media_boxes.consensus([first], [1.0], 8)[:, :4].all()
    # Rounded down; cut off outside; a box turned round holds nothing (vggss.json has such).
    cut = media_boxes.consensus([(0.2, -3.0, 0.49, 0.3)], [1.0], 8)
    assert cut[:2, 1:3].all() and cut.sum() == 4
    assert not media_boxes.consensus([(0.4, 0.66, -2.9e16, 0.98)], [1.0], 8).any()


def test_vggss_from_pictures_and_sounds(tmp_path):
    entries = [
        ("zpWuikVorYg_000032", "elk bugling", [LEFT_HALF]),
        ("gEvCUcZ6w88_000030", "female speech, woman speaking", [[0.5, 0, 1, 0.5], LEFT_HALF]),
        ("MKC9LvRivTM_000030", "elk bugling", [[0.39, 0.66, -2.8823037615171176e16, 0.98]]),
        ("UKgZCUgOSfo_000062", "warbler chirping", [LEFT_HALF]),
    ]
    folder = folders.write_vggss(tmp_path / "vggss", entries)
    (folder / "audio" / "UKgZCUgOSfo_000062.wav").unlink()
    found = boxes.read_vggss(folder, None, None, trimmed=False)
    names = ("elk bugling", "female speech, woman speaking", "warbler chirping")
    assert found.class_names == names and found.num_frames == 1
    elk, speech, *others = (prepare_clip(clip, SMALL) for clip in found.splits["eval"])
    assert [other.reason for other in others] == ["no_mask", "missing"]
    # The whole picture is stored, 80 x 40 pixels as a square: the red half stays a half.
    assert mask_of(elk)[:, :16].all() and not mask_of(elk)[:, 16:].any()
    frame = np.asarray(Image.open(io.BytesIO(elk["frames"][0]))).astype(int)
    assert (frame[:, :15, 0] > frame[:, :15, 2]).all()
    assert (frame[:, 17:, 0] < frame[:, 17:, 2]).all()
    assert speech["frame_class"].tolist() == [1] and speech["labels"] == [names[1]]
    np.testing.assert_allclose(speech["boxes"]["left"], [0.5, 0])
    np.testing.assert_allclose(speech["boxes"]["bottom"], [0.5, 1])
    assert speech["boxes"]["weight"].tolist() == [1, 1]
    assert mask_of(speech).mean() == 0.75
    assert abs(elk["seconds"] - 3) < 0.01


@pytest.mark.parametrize("name", ["audio/{}.mp3", "frames/{}.png"])
def test_two_files_of_one_name_are_a_reject_that_names_both(tmp_path, name):
    entries = [(f"zpWuikVorYg_0000{start}", "dog", [LEFT_HALF]) for start in (32, 42)]
    folder = folders.write_vggss(tmp_path / "vggss", entries)
    (folder / name.format(entries[0][0])).write_bytes(b"another")
    first, second = boxes.read_vggss(folder, None, None, trimmed=False).splits["eval"]
    assert first.refusal[0] == "ambiguous" and second.refusal is None
    assert name.format(entries[0][0]) in first.refusal[1] and " or " in first.refusal[1]


def test_vggss_from_vggsounds_videos_takes_the_middle_frame(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    # 10 s at 2 frames per second: number 10 is shown at 5 s.
    media_files.make_video(videos / "zpWuikVorYg_000032.mp4", seconds=10, fps=2)
    media_files.make_video(videos / "anything else.mp4", seconds=1)
    entries = [
        ("zpWuikVorYg_000032", "elk bugling", [LEFT_HALF]),
        ("gEvCUcZ6w88_000030", "speech", [LEFT_HALF]),
    ]
    listed = folders.write_vggss(tmp_path / "list", entries, extracted=False) / "vggss.json"
    output = tmp_path / "data"
    prepare(videos, output, "--layout=vggss", f"--boxes={listed}")
    assert "Files that no list names: 1, such as 'anything else.mp4'" in capsys.readouterr().out
    _, records = records_of(output)
    (record,) = records.values()
    assert abs(record["seconds"] - 10) < 0.1
    frame = np.asarray(Image.open(io.BytesIO(record["frames"][0])))
    assert media_files.number(frame) == 10
    assert rejects_of(output) == {"gEvCUcZ6w88_000030": "missing"}


def test_flickr_with_the_consensus_of_its_annotators(tmp_path, capsys):
    left, right = (0, 0, 128, 256), (64, 0, 192, 256)
    annotations = {
        "10000130166": folders.annotation([left], [right], [left]),
        "10007936344": folders.annotation([left]),
        "10008553263": folders.annotation([]),
        "10009662863": "<annotation><a><bbox><i>0</i><x>1</x></bbox></a></annotation>",
        "10013411946": "no XML",
        "10016382545": folders.annotation([right]),
    }
    folder = folders.write_flickr(tmp_path / "flickr", annotations)
    listed = folder / "flickr_test.csv"
    names = list(annotations)[:-1]
    listed.write_text("".join(f"{name},0\n" for name in [*names, "99"]))
    output = tmp_path / "data"
    flags = ("--layout=flickr", f"--list={listed}", "--max_reject_share=0.6")
    prepare(folder, output, *flags)
    said = capsys.readouterr().out
    assert "1 of 6 are not in --list. 1 names in --list are not here." in said
    builder, records = records_of(output)
    assert builder.info.metadata["class_names"] == ["sounding object"]
    assert set(rejects_of(output).values()) == {"bad_boxes"} and len(records) == 2
    record = records["10000130166"]
    assert record["boxes"]["weight"] == [0.5] * 3 and not len(record["labels"])
    np.testing.assert_allclose(record["boxes"]["right"], [0.5, 0.75, 0.5])
    assert mask_of(record)[:, :24].all() and not mask_of(record)[:, 24:].any()
    # In the layout in which it is downloaded, each pair has a folder.
    published = folders.write_flickr(tmp_path / "raw", annotations, published=True)
    for name in ("._frame.jpg", "._sound.wav"):  # as Macs write them beside each file
        (published / "Data/pair_10000130166" / name).write_bytes(b"\0\5\x16\7")
    first, *_ = boxes.read_flickr(published, None).splits["eval"]
    assert first.path.endswith("Data/pair_10000130166/frame.jpg")
    assert prepare_clip(first, SMALL)["frames"] == record["frames"]


def test_clips_travel_to_other_machines_whole(tmp_path):
    made = (
        boxes.BoxedClip("a", "a.jpg", labels=("elk",), sides=(0.0, 0.0, 0.5, 1.0), sound="a.wav"),
        avsbench.MaskedClip("b", "b.wav", pictures=("1.png", "2.png"), masks=("3.png", "4.png")),
        segments.TaggedClip("c", "c.mp4", 1.0, 11.0, labels=("elk", "cow"), modalities=("A", "")),
    )
    for clip in made:
        shard = shards.Shard("eval", 0, (clip,))
        (path,) = shards.store([shard], epath.Path(tmp_path))
        assert shards.load(path, type(clip)) == shard


@pytest.mark.parametrize(
    "text",
    [
        folders.annotation([]),
        folders.annotation([("1" + "0" * 400, 0, 1, 1)]),
        "<?xml version='1.0' encoding='nonsense'?><a/>",
        "<a>" + " " * 2**20 + "</a>",
    ],
)
def test_what_is_no_annotation_is_a_reject(tmp_path, text):
    folder = folders.write_flickr(tmp_path / "x", {"1": text})
    (clip,) = boxes.read_flickr(folder, None).splits["eval"]
    result = prepare_clip(clip, SMALL)
    assert isinstance(result, Reject) and result.reason == "bad_boxes" and result.reason in REASONS
    assert "1.xml" in result.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("{}", "entry 1, is none of VGG-SS"),
        ("[]", "has no entry"),
        ('[{"file": "a", "class": "b"}]', "entry 1, is none of VGG-SS: no file, class and bbox"),
        ('[{"file": "a", "class": "b", "bbox": [[1, 2, 3]]}]', "a box is"),
        ('[{"file": "a", "class": "b", "bbox": [[1, 2, 3, NaN]]}]', "a box is"),
        ('[{"file": "a", "class": "", "bbox": []}]', "must be text"),
        ('[{"file": "a", "class": "b", "bbox": [[1, 2, 3, 1' + "0" * 400 + "]]}]", "4 numbers"),
        ("[" * 100_000, "is not valid JSON"),
        (
            json.dumps([{"file": "a", "class": "b", "bbox": []}] * 2),
            "entry 2, is none of VGG-SS: the file 'a' comes a second time",
        ),
    ],
)
def test_malformed_boxes_are_told_in_a_sentence(tmp_path, text, message):
    (tmp_path / "vggss.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        boxes.read_vggss(tmp_path, None, None, trimmed=False)
    assert str(tmp_path) in str(error.value)


def test_mistakes_are_one_sentence(tmp_path):
    folder = folders.write_vggss(tmp_path / "v", [("zpWuikVorYg_000032", "elk", [LEFT_HALF])])
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "other.csv").write_text("nothing_000000\n")
    for flags, message in (
        (("--layout=flickr",), "Annotations can't be read"),
        (("--layout=vggss", "--boxes=none.json"), "give vggss.json by --boxes"),
        (("--layout=flickr", "--boxes=none.json"), "--boxes is for --layout=vggss alone"),
        (("--layout=vggss", f"--list={tmp_path / 'empty.csv'}"), "names nothing"),
        (("--layout=vggss", f"--list={tmp_path / 'other.csv'}"), "has none of the names in --list"),
    ):
        flags = (folder, f"--output={tmp_path / 'x'}", *flags)
        status, _, said = call_here("data_prep.localisation", *flags)
        assert status == 2 and message in said and "Traceback" not in said, said
    assert not (tmp_path / "x").exists()
    assert benchmarks.read_list(None) is None
