"""cIoU, AUC, J and F on maps made by hand, and on datasets with boxes."""

import json

import benchmark_folders as folders
import numpy as np
import pytest
from planted_maps import one_device, plant
from sklearn.metrics import auc

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import segmentation, sound_maps
from cavmae_sync_jax.evals.metrics import localisation
from cavmae_sync_jax.evals.metrics.segmentation import Items
from data_prep import localisation as program


@pytest.fixture
def knowing(monkeypatch):
    return plant(monkeypatch)


RISING = np.arange(16, dtype=np.float32).reshape(4, 4)  # the two lower rows are the upper half
COLUMN = np.broadcast_to(np.arange(4), (4, 4))


def items_of(masks, records, consensus=None):
    zeros, none = np.zeros(len(masks), int), np.zeros_like(masks)
    return Items(np.array(records), zeros, zeros, masks, zeros - 1, none, consensus)


def test_consensus_iou_by_hand():
    agreed = np.zeros((4, 4), np.float32)
    agreed[3] = 1
    agreed[2, :2] = 0.5
    agreed[0, 0] = 1
    # 4 + 2 · 0.5 of all 6 are hit, and 2 pixels of the half are in no box.
    found = localisation.consensus_ious(RISING[None], agreed[None])
    assert found == pytest.approx([5 / (6 + 2)])
    whole = RISING[None] >= 8
    assert localisation.consensus_ious(RISING[None], whole) == 1
    assert localisation.consensus_ious(-RISING[None], whole) == 0
    # A constant map predicts everything; scale and shift don't matter.
    assert localisation.consensus_ious(0 * RISING[None], whole) == 0.5
    assert localisation.consensus_ious(3 * RISING[None] - 9, agreed[None]) == found


def test_auc_is_that_of_scikit_learn():
    ious = np.array([0.625, 0, 1, 0.05, 0.5, 0.49, 0.33])
    shares = [np.mean(ious >= 0.05 * i) for i in range(21)]
    expected = auc([0.05 * i for i in range(21)], shares)
    assert localisation.areas(ious).mean() == pytest.approx(expected)
    # From 0 to 0.6, then half a step.
    np.testing.assert_allclose(localisation.areas(ious[:3]), [0.625, 0.025, 1])


def test_f_and_j_by_hand():
    masks = np.stack([COLUMN < 2, COLUMN < 1])
    first = np.where(COLUMN < 3, 1, 0)
    second = np.where(COLUMN == 0, 0.3, COLUMN == 3)
    maps = np.stack([first, second]).astype(np.float32)
    np.testing.assert_allclose(localisation.frame_ious(maps, masks), [8 / 12, 0])
    curves = localisation.f_curves(maps, masks)

    def f(precision, recall):
        return 1.3 * precision * recall / (0.3 * precision + recall)

    assert curves[:, 0] == pytest.approx([f(1 / 2, 1), f(1 / 4, 1)])  # every pixel
    assert curves[:, 50] == pytest.approx([f(8 / 12, 1), f(1 / 2, 1)])  # from 0.2 on
    assert curves[:, 254] == pytest.approx([f(8 / 12, 1), 0])  # from 1 on
    items = items_of(masks, [0, 1])
    weights = np.array([[1, 1], [2, 0], [0, 3]], float)
    scores, resampled = localisation.scores(10 * maps - 4, items, weights)
    assert scores == pytest.approx({"J": 1 / 3, "F": (f(8 / 12, 1) + f(1 / 2, 1)) / 2})
    assert resampled["J"] == pytest.approx([1 / 3, 2 / 3, 0])
    assert resampled["F"] == pytest.approx([scores["F"], f(8 / 12, 1), f(1 / 2, 1)])
    swapped = localisation.scores(10 * maps - 4, items_of(masks, [1, 0]), weights)[1]
    assert swapped["F"] == pytest.approx([scores["F"], f(1 / 2, 1), f(8 / 12, 1)])
    flat = localisation.f_curves(np.full((1, 2, 2), 7, np.float32), masks[:1])[0]
    assert flat == pytest.approx([f(masks[0].mean(), 1), *np.zeros(len(flat) - 1)])
    everything = localisation.constant(items)
    assert everything == pytest.approx({"J": 3 / 8, "F": (f(1 / 2, 1) + f(1 / 4, 1)) / 2})


def test_one_level_of_f_is_chosen_for_all_images():
    # The first map is best below 0.3, the second one above 0.6, and no level suits both.
    rows = np.array([[1, 0.3, 0, 0], [1, 0.6, 0.6, 0]], np.float32)
    maps = np.stack([np.broadcast_to(row, (4, 4)) for row in rows])
    masks = np.stack([COLUMN < 2, COLUMN < 1])
    scores, resampled = localisation.scores(maps, items_of(masks, [0, 1]), np.eye(2))
    half_found = 1.3 * 0.5 / (0.3 + 0.5)  # precision 1, recall 1/2
    assert scores["F"] == pytest.approx((half_found + 1) / 2)
    assert resampled["F"] == pytest.approx([1, 1])


def test_pixels_of_half_the_height_are_not_predicted():
    level = np.broadcast_to(np.array([1, 0.5, 0, 0], np.float32), (1, 4, 4))
    assert localisation.frame_ious(level, (COLUMN < 1)[None]) == 1


def test_scores_of_boxes_and_their_resamples():
    agreed = np.stack([RISING >= 8, RISING < 8, RISING >= 12]).astype(np.float32)
    items = items_of(agreed > 0, [0, 0, 1], agreed)
    weights = np.array([[1, 1], [0, 2]], float)
    scores, resampled = localisation.scores(np.stack([RISING] * 3), items, weights)
    # The third one's IoU is 4 / 8: a half is enough. Areas are 1, 0.025 and 0.525.
    assert scores == pytest.approx({"cIoU": 2 / 3, "AUC": (1 + 0.025 + 0.525) / 3})
    assert resampled["cIoU"] == pytest.approx([2 / 3, 1])
    assert resampled["AUC"] == pytest.approx([scores["AUC"], 0.525])
    assert localisation.constant(items)["cIoU"] == pytest.approx(2 / 3)  # 1/2, 1/2, 1/4


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    """Flickr-SoundNet's layout: what sounds low is red, what sounds high is blue."""
    left, right, wide = (0, 0, 128, 256), (128, 0, 256, 256), (0, 0, 192, 256)
    texts = {
        "1": folders.annotation([left], [left], [wide]),
        "2": folders.annotation([right], [right]),
        "3": folders.annotation([right], [right], [left]),
    }
    folder = folders.write_flickr(tmp_path_factory.mktemp("flickr") / "published", texts)
    for name, hertz in (("1", 200), ("2", 6000), ("3", 6000)):
        folders.write_sound(folder / "audio" / f"{name}.wav", hertz=hertz)
    output = folder.parent / "data"
    flags = [str(folder), "--layout=flickr", f"--output={output}", "--image_size=32"]
    program.run(program._parser().parse_args([*flags, "--workers=1"]))
    return output


def test_a_dataset_of_boxes_is_scored_beside_its_controls(boxed, knowing, tmp_path, capsys):
    records = loader.Records(boxed, "eval")
    items = sound_maps.find_items(records, 1)
    assert items.consensus.dtype == np.float16
    by_name = dict(zip(records.ids(items.records.tolist()), items.consensus, strict=True))
    assert set(np.unique(by_name["1"])) == {0, 0.5, 1} and by_name["1"][0, :16].min() == 1
    mesh = one_device()
    result = segmentation.run(knowing, records, tmp_path, mesh=mesh)
    assert json.loads((tmp_path / "segmentation.json").read_text()) == result
    row = result["maps"]["cosine"]
    assert list(row["scores"]) == ["mAP", "mIoU", "pointing", "cIoU", "AUC"]
    # The halves are found. IoU: 16 / (16 + 8 · 0.5), all, and 16 / (16 + 16 · 0.5) columns.
    assert row["scores"]["cIoU"] == 1
    area = (0.8 + 1 + 0.65 + 0.025) / 3
    assert row["scores"]["AUC"] == pytest.approx(area, abs=0.01)
    # Nothing says what sounds, so any other clip's sound is the control: one of two is the same.
    assert 0 <= row["another clip's sound"]["scores"]["cIoU"] < 1
    assert row["intervals"]["cIoU"] == [1, 1]
    assert set(result["baselines"]["blob in the middle"]) == set(row["scores"])
    assert set(result["baselines"]["constant map (every pixel)"]) == set(row["scores"])
    assert "cIoU" in capsys.readouterr().out.splitlines()[0]
