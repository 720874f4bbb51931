"""Ranks at scale equal the dense definition's; others' embeddings are scored."""

import json
import pathlib

import jax
import numpy as np
import pytest

from cavmae_sync_jax.evals import retrieval
from cavmae_sync_jax.evals.metrics import ranking
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "retrieval.npz"


def dense(audio, visual, strategy):
    similarity = retrieval_metrics.STRATEGIES[strategy](audio, visual)
    return retrieval_metrics.ranks(similarity), retrieval_metrics.ranks(similarity.T)


def data(kind, clips=23, frames=3, dim=5):
    """Embeddings that make a comparison hard in one way each."""
    rng = np.random.default_rng(0)
    audio, visual = rng.normal(size=(2, clips, frames, dim)).astype(np.float32)
    if kind == "related":
        visual += audio
    elif kind == "ties":  # every cosine is a multiple of 1/2
        units = np.eye(dim, dtype=np.float32)
        audio, visual = units[rng.integers(2, size=(2, clips, frames))]
    elif kind == "duplicates":  # 3 different clips, among them by chance the own one
        audio, visual = audio[rng.integers(3, size=clips)], visual[rng.integers(3, size=clips)]
    elif kind == "collapsed":  # cosines differ by 1e-9, far below float32's resolution
        audio, visual = audio + np.float32(3000), visual + np.float32(3000)
    elif kind == "scales":  # lengths whose squares float32 can't hold, zeros, and other types
        audio = audio * np.float32(10) ** rng.integers(-42, 36, size=(clips, 1, 1))
        visual = visual.astype(np.float16)
        visual[3] = audio[5] = 0
    return audio, visual


KINDS = ("random", "related", "ties", "duplicates", "collapsed", "scales")


@pytest.mark.parametrize("strategy", retrieval_metrics.STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_the_dense_definition(kind, strategy, monkeypatch):
    monkeypatch.setattr(ranking, "ROWS", 12)  # 8 devices make 16 of it: 23 clips fill no block
    monkeypatch.setattr(ranking, "COLUMNS", 9)
    monkeypatch.setattr(ranking, "SETTLED", 4)
    audio, visual = data(kind)
    found = ranking.ranks(audio, visual, strategy)
    for ranks, expected in zip(found, dense(audio, visual, strategy), strict=True):
        np.testing.assert_array_equal(ranks, expected)
    summaries = ranking.retrieval(audio, visual, strategy)
    assert summaries == retrieval_metrics.retrieval(audio, visual, strategy)


@pytest.mark.parametrize("crowded", [0.0, 1.0])
def test_both_ways_of_settling_agree(crowded, monkeypatch):
    monkeypatch.setattr(ranking, "CROWDED", crowded)
    for strategy in retrieval_metrics.STRATEGIES:
        audio, visual = data("collapsed")
        found = ranking.ranks(audio, visual, strategy)
        np.testing.assert_array_equal(found, dense(audio, visual, strategy))


def test_long_sums_stay_within_the_margin():
    # Equal terms make a float32 sum's roundings add up instead of cancelling.
    for dim, frames in ((768, 16), (300, 2)):
        vectors = np.ones((2, 3, frames, dim), np.float32) / 3
        for strategy in retrieval_metrics.STRATEGIES:
            found = ranking.ranks(*vectors, strategy)
            assert np.array_equal(found, np.full((2, 3), 2.0)), (strategy, dim)
    rng = np.random.default_rng(0)
    raw = np.abs(rng.normal(size=(2, 40, 4, 768))).astype(np.float32)
    lengths = np.sqrt(np.vecdot(raw, raw, dtype=np.float64)).astype(np.float32)
    units = [ranking._unit(x, n) for x, n in zip(raw, lengths, strict=True)]
    for strategy, similarity in ranking.SIMILARITIES.items():
        errors = np.abs(jax.jit(similarity)(*units) - retrieval_metrics.STRATEGIES[strategy](*raw))
        assert 0 < errors.max() < ranking.margin(4, 768) < 2e-5


def test_the_device_decides_all_but_the_near_comparisons(monkeypatch):
    asked = []
    settle = ranking._paired

    def paired(audio, visual, pairs, strategy):
        asked.append(pairs)
        return settle(audio, visual, pairs, strategy)

    monkeypatch.setattr(ranking, "_paired", paired)
    ranking.ranks(*data("related", clips=60, dim=64))
    own, *near = asked
    np.testing.assert_array_equal(own[0], own[1])
    assert len(own[0]) == 60 and sum(len(rows) for rows, _ in near) < 10


def test_one_frame_makes_all_aggregations_equal():
    found = [
        ranking.ranks(*data("random", frames=1), name) for name in retrieval_metrics.STRATEGIES
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_other_numbers_of_frames():
    audio, visual = data("related", frames=3)
    for strategy in ("mean", "max"):
        found = ranking.ranks(audio, visual[:, :1], strategy)
        np.testing.assert_array_equal(found, dense(audio, visual[:, :1], strategy))
    with pytest.raises(UserError, match=r"audio has 3 per clip and visual 1; only .*mean,max"):
        ranking.ranks(audio, visual[:, :1], "diagonal_max")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value):
    audio, visual = data("random")
    visual[[4, 7], 1, 2] = value
    with pytest.raises(UserError, match=r"visual embeddings of 2 clips .*first: clip 4\)"):
        ranking.ranks(audio, visual)


def test_the_mean_over_equal_frames_is_the_default():
    audio, visual = data("related")
    expected = ranking.ranks(audio, visual, "diagonal_mean")
    np.testing.assert_array_equal(ranking.ranks(audio, visual), expected)
    assert ranking.retrieval(audio, visual) == ranking.retrieval(audio, visual, "diagonal_mean")


def test_the_golden_scores():
    golden = np.load(GOLDEN, allow_pickle=False)
    for strategy in retrieval_metrics.STRATEGIES:
        for direction, score in ranking.retrieval(
            golden["audio"], golden["visual"], strategy
        ).items():
            expected = [
                float(golden[f"{strategy}/{direction}/{k}"]) for k in ("R1", "R5", "R10", "MR")
            ]
            assert list(score.values()) == pytest.approx(expected)


# Lists of clips.


def program(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["retrieval", *map(str, arguments)])
    retrieval.main()


def test_embeddings_are_scored_without_a_model(tmp_path, monkeypatch, capsys):
    audio, visual = data("related")
    np.savez(tmp_path / "e.npz", audio=audio, visual=visual, more=np.zeros(2))
    program(monkeypatch, f"--embeddings={tmp_path}/e.npz", f"--output={tmp_path}/out")
    printed = capsys.readouterr().out
    for row in ("diagonal mean", "diagonal max", "mean", "max"):
        assert f"embeddings, {row} " in printed
    assert "chance" in printed
    result = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    for strategy, score in result["scores"].items():
        assert score == retrieval_metrics.retrieval(audio, visual, strategy)
    assert result["clips"] == 23 and result["frames"] == {"audio": 3, "visual": 3}
    assert result["baselines"]["chance"]["audio_to_visual"]["R1"] == pytest.approx(1 / 23)
    assert result["embeddings"]["audio"] == {"shape": [23, 3, 5], "dtype": "float32"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"retrieval.json", "retrieval_resamples.npz"}


def test_one_vector_a_clip_is_one_frame(tmp_path, monkeypatch, capsys):
    audio, visual = (x[:, 0] for x in data("related"))
    np.savez_compressed(tmp_path / "e.npz", audio=audio, visual=visual.astype(">f8"))
    program(monkeypatch, f"--embeddings={tmp_path}/e.npz", f"--output={tmp_path}")
    assert "embeddings, all aggregations (one frame)" in capsys.readouterr().out
    found = json.loads((tmp_path / "retrieval.json").read_text())["scores"]
    assert list(found) == list(retrieval_metrics.STRATEGIES)
    expected = retrieval_metrics.retrieval(audio[:, None], visual[:, None])
    assert all(score == expected for score in found.values())


def test_fewer_frames_on_one_side_need_mean_or_max(tmp_path, monkeypatch, capsys):
    audio, visual = data("related")
    np.savez(tmp_path / "e.npz", audio=audio, visual=visual[:, 0])
    arguments = [f"--embeddings={tmp_path}/e.npz", f"--output={tmp_path}"]
    with pytest.raises(SystemExit, match="2"):
        program(monkeypatch, *arguments)
    assert "e.npz: diagonal_mean compares equal frames" in capsys.readouterr().err
    program(monkeypatch, *arguments, "--strategies=max,mean")
    found = json.loads((tmp_path / "retrieval.json").read_text())["scores"]
    assert list(found) == ["max", "mean"]
    assert found["max"] == retrieval_metrics.retrieval(audio, visual[:, :1], "max")


def test_bad_embeddings_are_one_sentence(tmp_path):
    audio, visual = data("random")
    path = tmp_path / "e.npz"

    def sentence(**arrays):
        if arrays:
            np.savez(path, **arrays)
        with pytest.raises(UserError) as error:
            retrieval.run_embeddings(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    assert "No such file" in sentence()
    assert "no array visual; it has audio" in sentence(audio=audio)
    assert "23 clips and visual 22" in sentence(audio=audio, visual=visual[:-1])
    assert "5 dimensions and visual 4" in sentence(audio=audio, visual=visual[..., :4])
    assert "visual is int64" in sentence(audio=audio, visual=visual.astype(np.int64))
    assert "shape [23]" in sentence(audio=audio[:, 0, 0], visual=visual)
    assert "shape [0, 3, 5]" in sentence(audio=audio[:0], visual=visual[:0])
    assert "first: clip 9" in sentence(audio=audio, visual=np.where(visual == visual[9], np.nan, 1))
    assert "can't be read" in sentence(audio=audio, visual=np.array([None]))
    np.savez(path, audio=audio, visual=visual)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert "cut short" in sentence()
    path.write_bytes(whole[:200] + bytes(100) + whole[300:])
    assert "can't be read" in sentence()
    with path.open("wb") as file:
        np.save(file, audio)
    assert "is not an npz file" in sentence()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give --checkpoint and --data, or --embeddings"),
        (["--checkpoint=x"], "give --checkpoint and --data, or --embeddings"),
        (["--embeddings=e.npz", "--checkpoint=x"], "leave out --checkpoint"),
        (["--embeddings=e.npz", "--data=x"], "leave out --data"),
        (["--embeddings=e.npz", "--clips=x"], "leave out --clips"),
        (["--embeddings=e.npz", "--split=val"], "leave out --split"),
        (["--embeddings=e.npz", "--baselines"], "leave out --baselines"),
        (["--strategies=mean,least"], "there is no 'least'; there are diagonal_mean"),
    ],
)
def test_mistakes_at_the_flags_are_one_sentence(arguments, expected, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        program(monkeypatch, *arguments)
    assert expected in capsys.readouterr().err.splitlines()[-1]
