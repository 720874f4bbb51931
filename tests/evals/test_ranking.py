"""Ranks at scale equal the dense definition's; published lists of clips; others' embeddings."""

import json
import pathlib

import jax
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import clip_lists, retrieval
from cavmae_sync_jax.evals.metrics import ranking
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.models import cavmae_sync
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
    with pytest.raises(UserError, match=r"audio has 3 a clip and visual 1; only .*mean,max"):
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


@pytest.fixture(scope="module")
def model(dataset_dir):
    config = tiny.config(dataset_dir)
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(0))
    return Pretrained(module, params, config, 0, "untrained")


def write_json(path, entries):
    path.write_text(json.dumps({"data": entries}))
    return path


def test_lists_are_read(tmp_path):
    entries = [
        {"video_id": "a.b", "wav": "<PATH>/x.wav", "labels": "vgg_1"},
        {"wav": "<PATH>/audio/c_000030.wav", "video_path": "<PATH>/frames/"},
        {"video_path": "clips/d.e.mp4"},
    ]
    assert clip_lists.read(write_json(tmp_path / "l.json", entries)) == ["a.b", "c_000030", "d.e"]
    (tmp_path / "l.txt").write_text("\ufeff-ab \n\n_c d\r\n", encoding="utf-8")
    assert clip_lists.read(tmp_path / "l.txt") == ["-ab", "_c d"]
    (tmp_path / "l.txt").write_text("video_id\nx\ny\nx\n")
    assert clip_lists.read(tmp_path / "l.txt") == ["x", "y"]
    assert clip_lists.read(write_json(tmp_path / "l.json", ["x", "y"])) == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '{"data": [', "is no JSON"),
        ("a.txt", '{"data": [', "is no JSON"),
        ("a.json", '["x", 3]', "entry 2, has no video_id"),
        ("a.json", '{"data": {}}', "must be"),
        ("a.json", '{"data": [{"video_id": "x"}, {"video_id": 3}]}', "entry 2, has no video_id"),
        ("a.json", '{"data": [{"video_path": "frames/"}]}', "entry 1, has no video_id"),
        ("a.json", '{"data": [""]}', "entry 1, has no video_id"),
        ("a.json", '{"data": []}', "names no clip"),
        ("a.txt", " \n", "names no clip"),
        ("a.txt", b"\xff\xff", "neither JSON nor text"),
        ("a.json", '[{"video_id": "x", "start": "now"}]', "or a start that is no number"),
        ("a.csv", "youtube_id,start_frame\nx,750\n", "call it start"),
        ("a.csv", "youtube_id,start_time\nx,now\n", "row 1 under the header: need a clip"),
        ("a.csv", "caption,youtube_id\nx\n", "row 1 under the header: need a clip"),
        ("a.csv", "youtube_id,start_time\n", "names no clip"),
        ("a.txt", None, "can't be read"),
    ],
)
def test_bad_lists_are_one_sentence(name, text, expected, tmp_path):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=expected) as error:
        clip_lists.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_only_the_listed_clips_are_embedded(model, dataset_dir, tmp_path, monkeypatch, capsys):
    records = loader.Records(dataset_dir, "train")
    ids = records.ids(list(range(20)))
    wanted = [ids[7], "absent1", ids[2], ids[11], "absent2"]
    path = write_json(tmp_path / "list.json", [{"video_id": clip} for clip in wanted])
    whole = retrieval.run(model, records, cache=tmp_path / "cache")
    read = []
    pair = loader.PairSpec.pair
    monkeypatch.setattr(
        loader.PairSpec, "pair", lambda *a: read.append(a[1]["clip_id"].decode()) or pair(*a)
    )
    result = retrieval.run(model, records, tmp_path, clips=path, cache=tmp_path / "cache")
    assert set(read) == {ids[2], ids[7], ids[11]}
    assert whole["clips"] == 20 and "clips_missing" not in whole
    assert result["clips"] == 3 and result["clips_missing"] == ["absent1", "absent2"]
    assert result["clips_list"] == {"file": str(path), "clips": 5}
    message = capsys.readouterr().err
    assert "2 of the 5 clips of" in message and "(absent1, absent2)" in message
    assert json.loads((tmp_path / "retrieval.json").read_text()) == result
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert result["data"]["identity"].startswith(whole["data"]["identity"])
    # The scores are those of the three rows of the whole.
    kept = [
        {name: np.load(folder / f"{name}.npy") for name in ("audio", "visual")}
        for folder in (tmp_path / "cache").iterdir()
    ]
    few, many = sorted(kept, key=lambda stored: len(stored["audio"]))
    np.testing.assert_allclose(few["audio"], many["audio"][[2, 7, 11]], atol=1e-5)
    assert result["scores"]["max"] == retrieval_metrics.retrieval(
        few["audio"], few["visual"], "max"
    )


class Ids(loader.Records):
    """A split of which only the ids are asked."""

    directory, split, splits, identity = "data/x", "eval", ("eval",), "x"
    features, longest_rows, in_bucket, shards = {}, None, False, None

    def __init__(self, *ids):
        self._names = ids

    def __len__(self):
        return len(self._names)

    def ids(self, indices):
        return [self._names[index] for index in indices]


YOUTUBE = (
    "--4gqARaEJE_000030",
    "---g-f_I2yQ_000001",
    "abc_1234567_000007",
    "x",
    "abc_1234567_000009",
)


@pytest.mark.parametrize(
    ("ids", "entry", "index"),
    [
        (YOUTUBE, "--4gqARaEJE", 0),
        (YOUTUBE, "--4gqARaEJE_000030.mp4,dog barking", 0),
        (YOUTUBE, '---g-f_I2yQ_000001.mp4,"railroad car, train wagon"', 1),
        (YOUTUBE, "---g-f_I2yQ,1,dog,test", 1),
        (YOUTUBE, '--4gqARaEJE, 30.000, 40.000, "/m/1,/m/2"', 0),
        (YOUTUBE, "--4gqARaEJE_30000_40000.flac", 0),
        (YOUTUBE, "Y--4gqARaEJE_30.0-40.0", 0),
        (YOUTUBE, "audio/--4gqARaEJE.wav", 0),
        (YOUTUBE, "--4gqARaEJE_000300", None),
        (YOUTUBE, "--4gqARaEJE,300,dog,test", None),
        (YOUTUBE, "abc_1234567", None),  # of two clips
        (YOUTUBE, "abc_1234567,7,a,test", 2),
        (("--4gqARaEJE", "b"), "--4gqARaEJE_000030", 0),
        (("--4gqARaEJE", "b"), "--4gqARaEJE,30,a,test", 0),
        (("rain, snow_000010", "rain"), "rain, snow_000010", 0),
        (("film_000010", "film_000020"), "film", None),
        (("film_000010", "other_000020"), "film.mov", 0),
        (YOUTUBE, "https://www.youtube.com/watch?v=--4gqARaEJE", 0),
        (YOUTUBE, "https://youtu.be/--4gqARaEJE,31", None),
        (YOUTUBE, "Y--4gqARaEJE.wav", 0),
        (YOUTUBE, "--4gqARaEJE,nan", 0),
        (YOUTUBE, r"C:\clips\--4gqARaEJE_000030.mp4", 0),
        (("film", "b"), "film.mov,0", 0),
        (("film", "b"), "film.mov,30", None),  # that clip is the film's beginning
    ],
)
def test_entries_mean_a_clip_where_it_is_the_only_one(ids, entry, index):
    records = Ids(*ids, "sure")
    selected, missing = clip_lists.select(records, [entry, "sure"], "list")
    assert missing == ([entry] if index is None else [])
    assert selected._indices == ([] if index is None else [index]) + [len(ids)]


def test_lists_may_have_a_header_and_comments(tmp_path):
    (tmp_path / "l.csv").write_text("# made today\nvideo_id,label\na_000001.mp4,dog\n")
    assert clip_lists.read(tmp_path / "l.csv") == ["a_000001.mp4"]


def test_lists_with_a_row_per_caption_name_each_clip_once(tmp_path):
    (tmp_path / "audiocaps.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n"
        "103549,---g-f_I2yQ,1,Constant rattling noise\n"
        '103550,---g-f_I2yQ,1,"Rustling occurs, ducks quack"\n'
        "103541,--4gqARaEJE,30,Humming\n103542,--4gqARaEJE,130,Humming\n"
    )
    entries = clip_lists.read(tmp_path / "audiocaps.csv")
    assert entries == ["---g-f_I2yQ,1", "--4gqARaEJE,30", "--4gqARaEJE,130"]
    selected, missing = clip_lists.select(Ids(*YOUTUBE), entries, "list")
    assert selected._indices == [0, 1] and missing == ["--4gqARaEJE,130"]
    (tmp_path / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split\ntickling,--4gqARaEJE,30,40,test\n"
    )
    assert clip_lists.read(tmp_path / "k.csv") == ["--4gqARaEJE,30"]


@pytest.mark.parametrize(
    "text",
    [
        "video_id\tstart\tlabel\n--4gqARaEJE\t30\tdog\n--4gqARaEJE\t31\tdog\n",
        "YTID;start_seconds\r\n--4gqARaEJE;30.0\r\n--4gqARaEJE;31.0\r\n",
        "YouTube ID,start_ms\n--4gqARaEJE,30000\n--4gqARaEJE,31000\n",
        '"start","video"\n"30","--4gqARaEJE"\n"31","--4gqARaEJE"\n',
        '[{"video_id": "--4gqARaEJE", "start": 30}, {"video_id": "--4gqARaEJE", "start": 31}]',
        '[{"video_id": "--4gqARaEJE", "start_ms": 30e3}, {"id": "x", "video_id": "--4gqARaEJE", '
        '"start_ms": "31000"}]',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_start_under_any_header_means_no_other_clip_of_its_video(tmp_path, text, encoding):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding=encoding)
    entries = clip_lists.read(path)
    selected, missing = clip_lists.select(Ids(*YOUTUBE), entries, "list")
    assert selected._indices == [0]
    assert missing == ["--4gqARaEJE,31"]


def test_selections_are_told_apart_and_keep_their_records(dataset_dir):
    records = loader.Records(dataset_dir, "train")
    ids = records.ids(list(range(20)))
    first, missing = clip_lists.select(records, [ids[4], ids[1]], "list")
    second, _ = clip_lists.select(records, [ids[4], ids[2]], "list")
    assert not missing and len(first) == 2 and first.ids([0, 1]) == [ids[1], ids[4]]
    assert len({records.identity, first.identity, second.identity}) == 3
    pair_spec = loader.PairSpec(4, 1024, 96, 128, 32)
    (mine,), (theirs,) = first.pairs(1, pair_spec, [2]), records.pairs(4, pair_spec, [2])
    np.testing.assert_array_equal(mine["visual"], theirs["visual"])
    with pytest.raises(UserError, match=r"none of the 1 clips of list: .* 'nothing', the data"):
        clip_lists.select(records, ["nothing"], "list")


# Others' embeddings.


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
    assert "is no npz file" in sentence()


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
