"""Scores of sound-prompted segmentation on maps made by hand, and against golden values."""

import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cavmae_sync_jax.evals.metrics import average_precision
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "segmentation.npz"
LEFT = np.arange(32) < np.full((32, 1), 16)
LEFT_MAP = np.array([[1, 0], [1, 0]], np.float32)


def test_golden_values():
    with np.load(GOLDEN, allow_pickle=False) as golden:
        cosine, masks = golden["cosine"], golden["mask"] > 0
        scaled = segmentation_metrics.scale(cosine)
        heat = np.stack([segmentation_metrics.upsample(small, 112, 112) for small in scaled])
        np.testing.assert_allclose(heat, golden["heatmap"], atol=1e-5)
        table = segmentation_metrics.by_class(cosine, masks, golden["class_id"])
        assert list(table) == golden["classes"].tolist()
        for name, expected in (("AP", golden["ap"]), ("IoU", golden["iou"])):
            np.testing.assert_allclose([row[name] for row in table.values()], expected, atol=1e-5)
        means = segmentation_metrics.means(table.values())
        assert means["mAP"] == pytest.approx(golden["mean_ap"], abs=1e-5)
        assert means["mIoU"] == pytest.approx(golden["mean_iou"], abs=1e-5)
        assert sum(row["items"] for row in table.values()) == len(masks)


# Few levels make ties, many make none.
CASES = st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**32 - 1))


@settings(deadline=None)
@given(CASES)
def test_scores_equal_their_definitions(case):
    pixels, levels, seed = case
    rng = np.random.default_rng(seed)
    values = (rng.integers(levels, size=pixels) / np.float32(7)).astype(np.float32)
    truth = rng.random(pixels) < rng.random()
    truth[0] = True
    expected = average_precision_score(truth, values)
    assert average_precision.average_precision(values, truth) == pytest.approx(expected, abs=1e-9)
    exact = values.astype(np.float64)
    predictions = [exact > at for at in np.linspace(exact.min(), exact.max(), 20)]
    ious = [(chosen & truth).sum() / (chosen | truth).sum() for chosen in predictions]
    assert segmentation_metrics.best_iou(values, truth) == pytest.approx(max(ious), abs=1e-9)


def test_scores_by_hand():
    truth = np.array([True, True, False, False])
    falling = np.array([3, 2, 1, 0], np.float32)
    assert (
        average_precision.average_precision(falling, truth)
        == segmentation_metrics.best_iou(falling, truth)
        == 1
    )
    # Recall of a half is gained at a precision of 1/3, the other at 2/4.
    assert average_precision.average_precision(-falling, truth) == pytest.approx(
        (1 / 3 + 2 / 4) / 2
    )
    # All but the lowest pixel, which is a true one.
    assert segmentation_metrics.best_iou(-falling, truth) == 1 / 4
    constant = np.ones(4, np.float32)
    assert average_precision.average_precision(constant, truth) == 1 / 2
    assert segmentation_metrics.best_iou(constant, truth) == 0
    everything = np.ones(4, bool)
    assert average_precision.average_precision(falling, everything) == 1
    assert segmentation_metrics.best_iou(falling, everything) == 3 / 4


@pytest.mark.parametrize(
    "score", [average_precision.average_precision, segmentation_metrics.best_iou]
)
def test_scores_refuse_what_has_none(score):
    with pytest.raises(ValueError, match="nothing is true"):
        score(np.zeros(3, np.float32), np.zeros(3, bool))
    with pytest.raises(ValueError, match="not a number"):
        score(np.array([0, np.nan], np.float32), np.ones(2, bool))


def test_upsampling_is_that_of_half_pixel_centres():
    small = np.random.default_rng(0).normal(size=(14, 14)).astype(np.float32)
    for height, width in ((224, 224), (112, 100)):
        expected = jax.image.resize(small, (height, width), "bilinear")
        np.testing.assert_allclose(
            segmentation_metrics.upsample(small, height, width), expected, atol=1e-5
        )


def test_maps_are_scaled_together_and_pixels_pooled_by_class():
    maps = np.stack([LEFT_MAP, 4 * LEFT_MAP])
    np.testing.assert_array_equal(segmentation_metrics.scale(maps).max(axis=(1, 2)), [0.25, 1])
    np.testing.assert_array_equal(segmentation_metrics.scale(np.full((2, 2, 2), 7, np.float32)), 0)
    # Alone, each finds its half. Together, the first has nothing above most of the second's.
    masks = np.stack([LEFT, LEFT])
    table = segmentation_metrics.by_class(maps, masks, np.array([3, 8]))
    assert [row["AP"] for row in table.values()] == [1, 1] and list(table) == [3, 8]
    together = segmentation_metrics.by_class(maps, masks, np.array([3, 3]))[3]
    values = np.concatenate([segmentation_metrics.upsample(one, 32, 32).ravel() for one in maps])
    assert together["AP"] == pytest.approx(average_precision_score(masks.ravel(), values))
    assert together["AP"] < 1 and together["items"] == 2 and together["share"] == 0.5
    inverted = segmentation_metrics.by_class(-maps, masks, np.array([3, 8]))
    # Columns fall from both ends to the middle: 8 of the true half lie at the very bottom.
    assert all(row["AP"] < 0.4 and row["IoU"] == 8 / 32 for row in inverted.values())


def test_baselines_by_hand():
    blob = segmentation_metrics.blob()
    assert blob.shape == (32, 32) and blob.dtype == np.float32
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    # From the middle to the left edge: 1/64 and 31/64 of a side from the centre.
    falls = np.exp(-0.5 * ((31 / 64) ** 2 - (1 / 64) ** 2) / 0.25**2)
    assert blob[16, 0] / blob[16, 16] == pytest.approx(falls)
    middle = blob[None] > 0.5
    found = segmentation_metrics.by_class(blob[None], middle, np.array([0]))[0]
    assert found["AP"] == 1 and found["IoU"] > 0.9 and found["share"] == middle.mean()
    missed = segmentation_metrics.by_class(blob[None], ~middle, np.array([0]))[0]
    assert missed["AP"] < missed["share"]
    shares = segmentation_metrics.constant([{"share": 0.5}, {"share": 0.1}])
    assert shares == {"mAP": 0.3, "mIoU": 0.3}


def test_pointing_by_hand():
    corners = np.zeros((4, 4), bool)
    corners[0, 0] = corners[3, 0] = True
    maps = np.stack([LEFT_MAP, np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32)])
    # 4 × 4 pixels: all of the left column are highest; two corners; all.
    found = segmentation_metrics.pointing(maps, np.stack([corners] * 3))
    np.testing.assert_allclose(found, [2 / 4, 1 / 2, 2 / 16])
    exact = segmentation_metrics.pointing(-maps[:1], np.stack([LEFT[:4, -4:]]))
    assert exact == [0]


def test_silent_objects_that_are_beaten_by_hand():
    left = np.zeros((3, 4, 4), bool)
    left[:, :, :2] = True
    maps = np.stack([LEFT_MAP, 1 - LEFT_MAP, np.ones((2, 2), np.float32)])
    np.testing.assert_array_equal(
        segmentation_metrics.beats_silent_object(maps, left, ~left), [1, 0, 0.5]
    )
    np.testing.assert_array_equal(
        segmentation_metrics.beats_silent_object(-maps, left, ~left), [0, 1, 0.5]
    )
    unseen = left & (np.arange(3) != 1)[:, None, None]
    found = segmentation_metrics.beats_silent_object(maps, unseen, ~left)
    np.testing.assert_array_equal(found, [1, np.nan, 0.5])


def test_a_resample_scores_as_the_clips_that_it_holds():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(12, 4, 4)).astype(np.float32)
    masks = np.stack([segmentation_metrics.upsample(small, 16, 16) > 0.5 for small in maps])
    masks[:, 0, :4] = True
    maps += generator.normal(size=maps.shape).astype(np.float32)
    records, classes = np.repeat(np.arange(4), 3), np.tile([0, 1, 1, 0], 3)
    empty = np.zeros_like(masks)
    items = segmentation_metrics.Items(records, classes, classes, masks, classes, empty)
    # Clip 3 thrice and clip 0 twice; then all once; then clip 1, and so on.
    weights = np.array([[2, 0, 0, 3], [1, 1, 1, 1], [0, 4, 0, 0]], float)
    found = segmentation_metrics.resampled_means(maps, items, weights)
    scaled = segmentation_metrics.scale(maps)
    for row, times in enumerate(weights.astype(int)):
        chosen = np.repeat(np.arange(12), times[records])
        scores = {"mAP": [], "mIoU": []}
        for class_id in (0, 1):
            members = chosen[classes[chosen] == class_id]
            heat = [segmentation_metrics.upsample(scaled[i], 16, 16).ravel() for i in members]
            values, truth = np.concatenate(heat), masks[members].ravel()
            scores["mAP"].append(average_precision_score(truth, values))
            scores["mIoU"].append(segmentation_metrics.best_iou(values, truth))
        for name, of_classes in scores.items():
            assert found[name][row] == pytest.approx(np.mean(of_classes), abs=0.01)
    # Clip 2 alone has both classes; a class that is not there does not count.
    only = items._replace(classes=np.where(records == 0, 0, 1))
    alone = segmentation_metrics.resampled_means(maps, only, np.array([[3.0, 0, 0, 0]]))
    table = segmentation_metrics.by_class(maps, masks, only.classes)
    assert alone["mAP"][0] == pytest.approx(table[0]["AP"], abs=0.01)


@pytest.mark.parametrize(("side", "noise"), [(2, 0.0), (2, 0.3), (3, 0.3), (12, 0.0), (12, 1.0)])
def test_intervals_hold_the_scores_of_small_objects(side, noise):
    generator = np.random.default_rng(side)
    masks = np.zeros((20, 56, 56), bool)  # objects of 0.1 %, 0.3 % and 5 % of the pixels
    for mask, (row, column) in zip(masks, generator.integers(56 - side, size=(20, 2)), strict=True):
        mask[row : row + side, column : column + side] = True
    maps = (masks + noise * generator.normal(size=masks.shape)).astype(np.float32)
    classes, clips = np.arange(20) % 2, np.arange(20)
    empty = np.zeros_like(masks)
    items = segmentation_metrics.Items(clips, classes, classes, masks, classes, empty)
    exact = segmentation_metrics.means(segmentation_metrics.by_class(maps, masks, classes).values())
    whole = segmentation_metrics.resampled_means(maps, items, np.ones((1, 20)))
    assert whole["mIoU"][0] == pytest.approx(exact["mIoU"])
    assert whole["mAP"][0] == pytest.approx(exact["mAP"], abs=0.003)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_counts_of_levels_score_as_the_pixels_that_they_count(bins, seed):
    rng = np.random.default_rng(seed)
    levels = np.arange(bins, dtype=np.float64)
    # Many levels are empty, the lowest and the highest too; a level often has one pixel.
    true, false = rng.integers(3, size=(2, 4, bins)) * (rng.random((2, 4, bins)) < 0.5)
    true[np.arange(4), rng.integers(bins, size=4)] += 1
    counted = segmentation_metrics._of_counts(levels, true.astype(float), false.astype(float))
    for row, (precision, iou) in enumerate(zip(*counted, strict=True)):
        values = np.repeat(
            np.tile(levels.astype(np.float32), 2), np.concatenate([true[row], false[row]])
        )
        truth = np.arange(len(values)) < true[row].sum()
        assert precision == pytest.approx(average_precision.average_precision(values, truth))
        assert iou == pytest.approx(segmentation_metrics.best_iou(values, truth))
