"""Temporal segmentation: clustering and scores by hand, and the evaluation of a tiny model."""

import json

import benchmark_folders
import jax
import localisation_datasets
import numpy as np
import pytest
import tiny
from etils import epath
from sklearn.cluster import AgglomerativeClustering

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import temporal
from cavmae_sync_jax.evals.figures import temporal as figure
from cavmae_sync_jax.evals.metrics import temporal as temporal_metrics
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.utils.errors import UserError

A, B, C = np.eye(3)
NEAR_A = np.array([1, 0.1, 0])


def labels_of(vectors, wanted):
    labels, by_threshold = temporal_metrics.segment(np.array(vectors), wanted)
    return labels.tolist(), by_threshold


def test_the_coarsest_cut_with_the_wanted_segments_is_taken():
    # Two clusters and three both make three segments: what comes back keeps its label.
    vectors = [B, B, A, A, B, NEAR_A]
    assert labels_of(vectors, 4) == ([0, 0, 1, 1, 0, 1], True)
    assert labels_of(vectors, 1) == ([0] * 6, True)
    assert labels_of([A, A, NEAR_A, B], 3) == ([0, 0, 1, 2], True)
    assert labels_of([A, A, NEAR_A, B], 2) == ([0, 0, 0, 1], True)


def test_only_the_direction_of_a_vector_counts():
    assert labels_of([A, 9 * A, 0.1 * B, 5 * B], 2) == ([0, 0, 1, 1], True)


def test_kmeans_helps_where_no_threshold_gives_the_wanted_segments():
    assert labels_of([A, B, A, B], 2) == ([0, 1, 0, 1], False)
    assert labels_of([A, B, A, C, B, A], 4) == ([0, 1, 0, 2, 1, 0], False)


@pytest.mark.parametrize("wanted", [1, 2, 9])
def test_what_cannot_be_told_apart_is_not_cut(wanted):
    rounding = 1e-7 * np.random.default_rng(0).normal(size=(6, 3))
    for vectors in ([A] * 6, [0 * A] * 6, A + rounding):
        assert labels_of(vectors, wanted) == ([0] * 6, wanted == 1)


def test_a_single_frame_and_more_segments_than_frames():
    assert labels_of([A], 1) == labels_of([A], 4) == ([0], True)
    assert labels_of([A, NEAR_A, B], 7) == ([0, 1, 2], True)
    with pytest.raises(ValueError, match="0 segments"):
        temporal_metrics.segment(np.array([A, B]), 0)


def test_the_tree_is_scikit_learns_and_the_result_is_the_same_each_time():
    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(20):
        vectors = np.repeat(rng.normal(size=(5, 8)), 3, axis=0) + rng.normal(size=(15, 8))
        labels, by_threshold = temporal_metrics.segment(vectors, 6)
        np.testing.assert_array_equal(labels, temporal_metrics.segment(vectors, 6).labels)
        if by_threshold:
            clusters = AgglomerativeClustering(
                labels.max() + 1, metric="cosine", linkage="complete"
            ).fit_predict(vectors)
            np.testing.assert_array_equal(labels, temporal_metrics.in_order(clusters))
            compared += 1
    assert 0 < compared < 20


def test_both_modalities_count_the_same_whatever_their_lengths():
    both = temporal_metrics.concatenated(np.array([[0.0, 5.0]]), np.array([[0.003, 0.004]]))
    np.testing.assert_allclose(both, [[0, 1, 0.6, 0.8]])


def test_boundaries_are_the_frames_that_begin_a_segment():
    assert temporal_metrics.boundaries(np.array([-1, -1, 2, 2, -1])).tolist() == [2, 4]
    assert temporal_metrics.boundaries(np.array([7])).tolist() == []


def f1(predicted, true, tolerance):
    return temporal_metrics.boundary_f1(np.array(predicted, int), np.array(true, int), tolerance)


def test_boundary_f1_by_hand():
    assert f1([3, 9], [3, 9], 0) == 1
    assert f1([4, 8], [3, 9], 0) == 0
    assert f1([4, 8], [3, 9], 1) == 1
    assert f1([4, 5], [5], 1) == pytest.approx(2 / 3)  # one true boundary pairs only once
    assert f1([3, 4], [4, 5], 1) == 1  # 4 with 4 would leave 3 and 5 alone
    assert f1([2, 7, 12], [2, 10], 2) == pytest.approx(0.8)
    assert f1([], [5], 3) == f1([5], [], 3) == 0
    assert f1([], [], 0) == 1


def test_adjusted_rand_by_hand():
    def rand(predicted, true):
        return temporal_metrics.adjusted_rand(np.array(predicted), np.array(true))

    assert rand([5, 5, 2, 2], [0, 0, 1, 1]) == 1
    # Pairs together: 1 in both, 2 and 1 in each of 6; (1 - 1/3) / (3/2 - 1/3).
    assert rand([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(4 / 7)
    assert rand([0, 0, 0, 0], [0, 0, 1, 1]) == 0
    assert rand([0, 1, 0], [3, -1, 3]) == 1
    assert rand([0, 1, 2], [3, -1, 3]) < 1  # a class that comes back is the same cluster


def test_equally_long_segments():
    assert temporal_metrics.uniform(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert temporal_metrics.uniform(5, 2).tolist() == [0, 0, 0, 1, 1]
    assert temporal_metrics.uniform(3, 8).tolist() == [0, 1, 2]


def test_names_follow_the_reference():
    reference = np.array([0, 0, 0, 1, 1, 2])
    for labels, expected in {
        (1, 1, 1, 0, 0, 2): [0, 0, 0, 1, 1, 2],
        (0, 0, 0, 0, 0, 0): [0, 0, 0, 0, 0, 0],
        (0, 0, 1, 2, 2, 2): [0, 0, 2, 1, 1, 1],
        (0, 0, 1, 3, 3, 2): [0, 0, 3, 1, 1, 2],
    }.items():
        named = temporal_metrics.named_like(np.array(labels), reference)
        assert named.tolist() == expected


@pytest.fixture(scope="module")
def model():
    config = tiny.config()
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(0))
    return Pretrained(module, params, config, 0, "nowhere")


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory):
    return tiny.write_scenes(tmp_path_factory.mktemp("scenes") / "data", eval=6)


def test_clips_without_truth_are_cut_and_shown(model, dataset_dir, tmp_path, capsys):
    records = loader.Records(dataset_dir, "eval")
    result = temporal.run(model, records, tmp_path, segments=2)
    assert json.loads((tmp_path / "temporal.json").read_text()) == result
    assert (tmp_path / "temporal.png").read_bytes().startswith(b"\x89PNG")
    assert result["segments"] == 2 and result["clips"] == 5
    assert "scores" not in result and "no truth" in capsys.readouterr().out
    mesh = sharding.make_mesh()
    embedded = features.extract(features.embeddings, model, records, mesh)
    with np.load(tmp_path / "temporal.npz") as stored:
        assert stored["clip_id"].tolist() == records.ids(list(range(5)))
        assert set(stored) == {"clip_id", "audio", "visual", "both"}
        for modality in ("audio", "visual"):
            expected = temporal_metrics.segment(embedded[modality][3], 2).labels
            np.testing.assert_array_equal(stored[modality][3], expected)
        assert stored["both"].shape == (5, 4)
    for wrong in ({"segments": 0}, {"tolerance": -1}):
        with pytest.raises(UserError, match="--segments"):
            temporal.run(model, records, **wrong)


def test_pictures_that_are_marked_one_by_one_tell_no_times(scenes_dir, tmp_path, capsys):
    # The first of AVSBench's frames has no class, although its sound may be heard.
    folder = tmp_path / "Single-source"
    folder = benchmark_folders.write_avsbench(folder, [("a", "dog", "test")], single=True)
    localisation_datasets.prepare(folder, tmp_path / "data", "--layout=avsbench")
    marked = loader.Records(tmp_path / "data", "eval")
    assert {"frame_class", "events"} <= set(marked.features)
    assert temporal._truth(marked, 6) is None
    assert temporal._truth(loader.Records(scenes_dir, "eval"), 4).shape == (6, 4)


def test_cuts_are_scored_against_the_truth(model, scenes_dir, tmp_path, capsys):
    records = loader.Records(scenes_dir, "eval")
    result = temporal.run(model, records, tmp_path, tolerance=0)
    assert (tmp_path / "temporal.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["scores"]) == {"audio", "visual", "both"}
    # The model sees every fourth of the stored frames.
    truth = np.stack([records[i]["frame_class"][::4] for i in range(6)])
    clips = [row for row in truth if len(set(row)) > 1]
    assert result["clips_scored"] == len(clips) > 2
    expected = [
        temporal_metrics.scores(
            temporal_metrics.uniform(4, len(temporal_metrics.boundaries(row)) + 1), row, 0
        )
        for row in clips
    ]
    for name in ("boundary_f1", "adjusted_rand"):
        mean = np.mean([score[name] for score in expected])
        assert result["baselines"]["equally long segments"][name] == pytest.approx(mean)
    assert result["baselines"]["one segment"] == {"boundary_f1": 0, "adjusted_rand": 0}
    assert 0 <= result["baselines"]["untrained model, both"]["boundary_f1"] <= 1
    printed = capsys.readouterr().out
    assert "model, both" in printed and "untrained model, audio" in printed


def test_features_that_know_the_truth_score_one(model, scenes_dir, monkeypatch, capsys):
    records = loader.Records(scenes_dir, "eval")
    truth = np.stack([records[i]["frame_class"][::4] for i in range(6)])
    known = np.eye(truth.max() + 2, dtype=np.float32)[truth]
    other = np.zeros_like(known) + 1

    def extract(function, of, *_):
        mine = of.params is model.params
        return {"audio": known if mine else other, "visual": other}

    monkeypatch.setattr(features, "extract", extract)
    result = temporal.run(model, records)
    perfect, nothing = ({"boundary_f1": x, "adjusted_rand": x} for x in (1, 0))
    assert result["scores"] == {"audio": perfect, "visual": nothing, "both": perfect}
    assert result["baselines"]["untrained model, audio"] == nothing
    assert result["by_kmeans"]["audio"] == 0 and result["by_kmeans"]["visual"] > 0.5
    assert capsys.readouterr().out == ""


def test_the_picture_survives_names_with_markup(model, scenes_dir, tmp_path, monkeypatch):
    records = loader.Records(scenes_dir, "eval")
    whole = loader.Records.__getitem__
    monkeypatch.setattr(
        loader.Records,
        "__getitem__",
        lambda self, index: {**whole(self, index), "clip_id": rb"a$\b_{$"},
    )
    labels = {kind: np.zeros((6, 4), int) for kind in temporal.KINDS}
    pair_spec = loader.PairSpec.of(model.config)
    path = epath.Path(tmp_path) / "t.png"
    figure.draw(records, pair_spec, labels, None, np.arange(6), path, clips=1)
    assert path.exists()
