"""VGGSounder: from its published list to scores of the labels that are heard, seen, or both."""

import media_files
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.evals import probe
from data_prep import inspect_dataset, videos

LIST = """\
video_id,label,modality,background_music,static_image,voice_over
aaaaaaaaaaa_000000,dog barking,AV,False,False,True
aaaaaaaaaaa_000000,"child speech, kid speaking",A,False,False,True
bbbbbbbbbbb_000012,dog barking,V,False,False,False
bbbbbbbbbbb_000012,engine,AV,False,False,False
ccccccccccc_000030,engine,A,False,False,False
ddddddddddd_000030,engine,A,False,False,False
"""
CLASSES = """\
index,mid,display_name
0,vgg_0,child speech_ kid speaking
1,vgg_1,dog barking
2,vgg_2,engine
3,vgg_3,thunder
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vggsounder")
    (folder / "vggsounder.csv").write_text(LIST)
    (folder / "classes.csv").write_text(CLASSES)
    for name in ("aaaaaaaaaaa_000000", "bbbbbbbbbbb_000012", "ccccccccccc_000030"):
        media_files.make_video(folder / f"{name}.mp4", seconds=2, fps=4)
    flags = [str(folder), f"--segments={folder / 'vggsounder.csv'}", "--num_frames=2"]
    flags += [f"--classes={folder / 'classes.csv'}", f"--output={folder / 'data'}"]
    videos.run(videos._parser().parse_args([*flags, "--image_size=32", "--workers=1"]))
    return folder / "data"


def test_each_modality_is_scored_by_its_own_labels(prepared):
    records = loader.Records(prepared, "eval")
    assert records.features["labels"].feature.names[0] == "child speech_ kid speaking"
    truth = labels.read(records)
    rows = dict(zip(records.ids(list(range(len(records)))), truth.tolist(), strict=True))
    assert rows["aaaaaaaaaaa_000000"] == [True, True, False, False]
    by_id = {
        "aaaaaaaaaaa_000000": [3.0, 1, 0, 2],  # best: speech, which is only heard
        "bbbbbbbbbbb_000012": [0.0, 3, 2, 1],  # best: dog, which is only seen
        "ccccccccccc_000030": [0.0, 2, 1, 3],  # best: thunder
    }
    logits = np.array([by_id[name] for name in rows], np.float32)
    result = probe.by_modality(records, truth, {"audio": logits})
    assert "modality_confusion" not in result  # of a model with one modality
    found = result["by_modality"]
    clips = {name: row["clips"] for name, row in found.items()}
    assert clips == {
        "heard (A, AV)": 3,
        "seen (V, AV)": 2,
        "both (AV)": 2,
        "heard only (A)": 2,
        "seen only (V)": 1,
    }
    assert {row["input"] for row in found.values()} == {"audio"}
    rates = {name: row["hit_rate@1"] for name, row in found.items()}
    assert rates["heard (A, AV)"] == 1 / 3 and rates["seen (V, AV)"] == 1 / 2
    assert rates["both (AV)"] == 0 and rates["seen only (V)"] == 1
    # Heard: speech and dog in the first, engine in the two others. The best three classes hold all
    # of them: 4 right of 9 predicted and 4 true ones.
    assert found["heard (A, AV)"]["F1@3"] == pytest.approx(2 * 4 / (9 + 4))
    assert found["heard (A, AV)"]["hit_rate@3"] == 1
    assert found["seen only (V)"]["F1@3"] == pytest.approx(2 * 1 / (3 + 1))
    assert "F1@5" not in found["heard (A, AV)"]  # of four classes
    a, b, c = (by_id[name] for name in sorted(by_id))
    heard = [([1, 0, 0], 0), ([1, 0, 0], 1), ([0, 1, 1], 2)]
    expected = [average_precision_score(t, [a[k], b[k], c[k]]) for t, k in heard]
    assert found["heard (A, AV)"]["mAP"] == pytest.approx(np.mean(expected))


def test_each_modality_is_scored_with_its_own_input(prepared):
    records = loader.Records(prepared, "eval")
    truth = labels.read(records)
    right, wrong = truth.astype(np.float32), 1 - truth.astype(np.float32)
    half = np.where([[True], [False], [True]], right, wrong)
    found = probe.by_modality(
        records, truth, {"both": wrong, "audio_alone": right, "visual_alone": half}
    )
    rows = found["by_modality"]
    inputs = {name: row["input"] for name, row in rows.items()}
    assert inputs == {
        "heard (A, AV)": "audio_alone",
        "seen (V, AV)": "visual_alone",
        "both (AV)": "both",
        "heard only (A)": "audio_alone",
        "seen only (V)": "visual_alone",
    }
    assert rows["heard (A, AV)"]["hit_rate@3"] == 1 and rows["both (AV)"]["hit_rate@1"] == 0
    confusion = found["modality_confusion"]
    assert confusion == {"audio": 1.0, "visual": pytest.approx(2 / 3), "both": pytest.approx(2 / 3)}
    result = {"stream": "both", "clips": 3, "scores": {"mAP": 0.5}, "baselines": {}}
    table = probe.format_table({**result, **found})
    (row,) = [line for line in table.splitlines() if "seen only (V)" in line]
    assert "heard only (A)" in table and row.split()[-3:] == ["1", "picture", "alone"]
    assert "66.7 % of the clips: right with the picture alone, not with both" in table


def test_the_dataset_is_verified_with_its_tags(prepared, capsys):
    inspect_dataset.run(inspect_dataset._parser().parse_args([str(prepared), "--verify"]))
    assert "verified: all 3 records are whole" in capsys.readouterr().out
