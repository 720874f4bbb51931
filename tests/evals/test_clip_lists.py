"""Lists of clips: what may be in one, which clip an entry means, and that only those are scored."""

import json

import jax
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import clip_lists, retrieval
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.utils.errors import UserError


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
    (tmp_path / "l.jsonl").write_text('{"video_id": "x"}\n"y"\n\n')
    assert clip_lists.read(tmp_path / "l.jsonl") == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '{"data": [', "is not valid JSON"),
        ("a.txt", '{"data": [', "is not valid JSON"),
        ("a.json", '["x", 3]', "entry 2, has no video_id"),
        ("a.json", '{"data": {}}', "must be"),
        ("a.json", '{"data": [{"video_id": "x"}, {"video_id": 3}]}', "entry 2, has no video_id"),
        ("a.json", '{"data": [{"video_path": "frames/"}]}', "entry 1, has no video_id"),
        ("a.json", '{"data": [""]}', "entry 1, has no video_id"),
        ("a.json", '{"data": []}', "names no clip"),
        ("a.txt", " \n", "names no clip"),
        ("a.txt", b"\xff\xff", "neither JSON nor text"),
        ("a.json", '[{"video_id": "x", "start": "now"}]', "or its start is not a number"),
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

    directory, split, splits, identity, contents = "data/x", "eval", ("eval",), "x", "y"
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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_row_has_its_lists_delimiter(tmp_path, delimiter):
    label = '"railroad car, train wagon"' if delimiter == "," else "railroad car, train wagon"
    start = "30.5" if delimiter == "," else "30,5"  # as Excel writes it in many countries
    rows = [["--4gqARaEJE", start, "dog"], ["--BfvyPmVMo", "0", label]]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8-sig"))
    ids = ("--BfvyPmVMo_000000", "--4gqARaEJE_000030.500", "--4gqARaEJE_000031")
    entries = clip_lists.read(tmp_path / "list.csv")
    selected, missing = clip_lists.select(Ids(*ids), entries, "list")
    assert (selected._indices, missing) == ([0, 1], [])


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
