"""The index on disk grows, survives a kill and refuses to mix; its search is exact."""

import errno
import json
import locale
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import tiny
from media_files import noise, noisy_video
from PIL import Image

import cavmae_sync_jax
from benchmarks.inference import nearest as made_up
from cavmae_sync_jax import embed, search
from cavmae_sync_jax.inference import similarity
from cavmae_sync_jax.inference.index import approximate, nearest
from cavmae_sync_jax.inference.index import store as indexes
from cavmae_sync_jax.inference.index.store import Index
from cavmae_sync_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def media(folder):
    """Three videos (one longer than a clip), a sound, a picture, and a text that is called mp4."""
    place = folder / "media"
    (place / "deeper").mkdir(parents=True)
    for number, seconds in enumerate((3, 12.5, 3)):
        noisy_video(place / f"{number}.mp4", seconds, seed=number)
    soundfile.write(place / "deeper" / "sound.wav", noise(4, seed=9), 16_000)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(place / "still.png")
    (place / "text.mp4").write_text("no video")
    (place / "notes.md").write_text("no media")
    return place


@pytest.fixture(scope="module")
def built(folder, model, media):
    counts = embed.run(model, [str(media)], folder / "index", workers=0)
    assert counts == (5, 0, 1, 16 + 20 + 16 + 16 + 1)
    return Index(folder / "index")


def test_an_index_holds_what_the_model_gives(built, model, media):
    side = built.vectors("visual")
    assert [os.path.basename(file) for file in side.files] == [
        *["0.mp4", "1.mp4", "2.mp4", "still.png"]
    ]
    whole = model.embed_video(media / "1.mp4")
    np.testing.assert_allclose(side.vectors[side.rows(1)], whole.visual, atol=1e-6)
    np.testing.assert_allclose(side.times[side.rows(1)], np.arange(20) * 0.625)
    assert len(built.vectors("audio").files) == 4
    assert built.vectors("audio", [side.files[2]]).vectors.shape == (16, 16)
    manifest = json.loads((built.directory / "index.json").read_text())
    assert manifest["model"]["fingerprint"] == model.fingerprint() and manifest["version"]


def test_it_grows_and_replaces_what_changed(model, media, tmp_path, capsys):
    place, output = tmp_path / "a.wav", tmp_path / "index"
    soundfile.write(place, noise(2, seed=1), 16_000)
    assert embed.run(model, [str(place)], output, workers=0)[:3] == (1, 0, 0)
    first = Index(output).vectors("audio").vectors
    still = str(media / "still.png")
    assert embed.run(model, [str(place), still], output, workers=0)[:3] == (1, 1, 0)
    soundfile.write(place, noise(3, seed=2), 16_000)
    assert embed.run(model, [str(place), still], output, workers=0)[:3] == (1, 1, 0)
    side = Index(output).vectors("audio")
    assert side.files == [str(place)] and len(side.vectors) == 16
    np.testing.assert_allclose(side.vectors, model.embed_sound(place).audio, atol=1e-6)
    assert np.abs(side.vectors - first).max() > 1e-3
    place.write_text("no sound any more")
    (tmp_path / "new.wav").write_text("never a sound")
    files = [str(place), str(tmp_path / "new.wav"), still]
    capsys.readouterr()
    assert embed.run(model, files, output, workers=0)[:3] == (0, 1, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if "refused" in line]
    kept = ["the index keeps the vectors of its earlier contents" in line for line in said]
    assert kept == [True, False] and Index(output).vectors("audio").files == [str(place)]


def test_a_name_that_is_no_text_is_refused(model, media, tmp_path, capsys):
    names = [
        os.fsdecode(b"\xff.png"),
        os.fsdecode("\u00e4".encode("latin-1") + b".png"),
        "\u00e4.png",
    ]
    for name in names:
        shutil.copy(media / "still.png", tmp_path / name)
    counts = embed.run(model, [str(tmp_path)], tmp_path / "index", workers=0)
    assert counts == (1, 0, 2, 1)
    assert Index(tmp_path / "index").vectors("visual").files == [str(tmp_path / names[2])]
    said = capsys.readouterr().err
    assert f"the name of {tmp_path}/\\xff.png is not UTF-8: rename it" in said


def test_what_a_folder_and_a_list_name(tmp_path):
    names = ["a.wma", "b.M4B", "c.wmv", "d.mka", "e.avif", "with spaces.mp4"]
    for name in [*names, "notes.txt", "more.csv", "._f.mp4", ".trash/g.mp4"]:
        (tmp_path / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "media" / name).touch()
    (tmp_path / "media" / "again").symlink_to(tmp_path / "media")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "h.mp3").touch()
    (tmp_path / "media" / "link").symlink_to(tmp_path / "elsewhere")
    found = [os.path.relpath(file, tmp_path) for file in embed.find_files([str(tmp_path)])]
    expected = ["elsewhere/h.mp3", *(f"media/{name}" for name in names)]
    assert sorted(found) == sorted(expected)
    lines = '# mine\r\n"media/with spaces.mp4"\r\n\r\nmedia/a.wma\r\nmedia/none.mp4\r\n'
    for number, encoding in enumerate(("utf-8-sig", "utf-16")):
        place = tmp_path / f"{number}.txt"
        place.write_text(lines, encoding=encoding, newline="")
        listed = embed.find_files([str(place)])
        assert [os.path.relpath(file, tmp_path) for file in listed] == [
            *("media/with spaces.mp4", "media/a.wma", "media/none.mp4")
        ]
    (tmp_path / "latin.txt").write_bytes(b"\xe4.mp4\n")
    with pytest.raises(UserError, match=r"latin\.txt isn't a list of paths in UTF-8"):
        embed.find_files([str(tmp_path / "latin.txt")])


def test_a_large_file_gets_shards_as_it_comes(model, media, tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "MOST_VECTORS", 16)
    files = [str(media / name) for name in ("1.mp4", "0.mp4", "text.mp4")]
    counts = embed.run(model, files, tmp_path / "index", every=0.25, workers=0)
    assert counts[:3] == (2, 0, 1)
    side = Index(tmp_path / "index").vectors("visual")
    assert dict(zip(side.files, np.diff(side.offsets), strict=True)) == {files[0]: 50, files[1]: 12}
    whole = model.embed_video(files[0], every=0.25)
    np.testing.assert_allclose(side.vectors[side.rows(0)], whole.visual, atol=1e-6)


@pytest.mark.parametrize("limit", ["SECONDS", "MOST_VECTORS"])
def test_what_was_embedded_does_not_wait_for_a_long_file(tmp_path, monkeypatch, limit):
    index = made_up.synthetic_index(tmp_path / "index", 0, 8, np.eye(3, 8))
    rng, kept = np.random.default_rng(0), []
    short, *long = made_up.embedded(rng, np.eye(3, 8), 5)
    writer = indexes.Writer(index)
    writer.add("short.mp4", indexes.Stat(1, 1), "video", [short])
    assert not index.known()
    monkeypatch.setattr(indexes, limit, {"SECONDS": 0.0, "MOST_VECTORS": 48}[limit])

    def parts():
        for part in long:
            yield part
            kept.append(list(index.known()))

    writer.add("long.mp4", indexes.Stat(2, 2), "video", parts())
    writer.flush()
    assert kept[1:] == [["short.mp4"]] * 3 and list(index.known()) == ["short.mp4", "long.mp4"]
    vectors = np.concatenate([part.visual for part in long])
    side = index.vectors("visual", ["long.mp4"])
    np.testing.assert_array_equal(side.vectors, vectors)


def test_kill_loses_nothing_that_was_written(workdir, model, media, tmp_path):
    files = [tmp_path / f"{n}.wav" for n in range(40)]
    for n, file in enumerate(files):
        soundfile.write(file, noise(2, seed=n), 16_000)
    code = (
        "import cavmae_sync_jax as c; from cavmae_sync_jax import embed;"
        "from cavmae_sync_jax.inference.index import store; store.SECONDS = 0;"
        f"embed.run(c.load({str(workdir)!r}), [{str(tmp_path)!r}], "
        f"{str(tmp_path / 'index')!r}, workers=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tiny.ROOT, stderr=subprocess.PIPE)
    shards = tmp_path / "index" / "shards"
    for _ in range(1200):
        if len(list(shards.glob("*.parquet"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (shards / ".000099.partial").write_bytes(b"half a shard")
    before = len(Index(tmp_path / "index").known())
    assert before >= 2
    counts = embed.run(model, [str(tmp_path)], tmp_path / "index", workers=0)
    assert counts[:2] == (40 - before, before)
    side = Index(tmp_path / "index").vectors("audio")
    assert sorted(side.files) == sorted(map(str, files))
    place = side.files.index(str(files[0]))
    np.testing.assert_allclose(
        side.vectors[side.rows(place)], model.embed_sound(files[0]).audio, atol=1e-6
    )
    assert not list(shards.glob(".*"))


def test_models_and_settings_are_not_mixed(built, folder, media):
    other = cavmae_sync_jax.load(
        str(tiny.write_model(folder / "other", seed=1, data__num_frames=16, model__image_patch=8))
    )
    with pytest.raises(UserError, match="vectors of different models can't be compared"):
        embed.run(other, [str(media)], built.directory)
    with pytest.raises(UserError, match="vectors of different models can't be compared"):
        search.run(other, built, "image", str(media / "still.png"), folder / "out")


def test_other_settings_are_refused_and_named(built, model, media, tmp_path):
    with pytest.raises(UserError, match=r"was made with every=None, not every=2.0: use the same"):
        embed.run(model, [str(media)], built.directory, every=2.0)
    config = model.config.copy_and_resolve_references()
    config.data.window_spread = "padded"
    other, said = model._replace(config=config), "window_spread=clip, not window_spread=padded"
    with pytest.raises(UserError, match=said):
        embed.run(other, [str(media)], built.directory)
    with pytest.raises(UserError, match=said):  # it would cut the query in another way
        search.run(other, built, "image", str(media / "still.png"), tmp_path)
    for every in (float("inf"), float("nan"), 0.0):
        with pytest.raises(UserError, match="--every must be above 0 seconds"):
            embed.run(model, [str(media)], tmp_path / "new", every=every)
        with pytest.raises(UserError, match="every must be above 0 seconds"):
            model.embed_sound(np.zeros(32_000, np.int16), 16_000, every=every)
    assert not (tmp_path / "new").exists()


def test_an_index_that_was_interrupted_at_its_beginning_is_begun_again(model, media, tmp_path):
    for name in ("left", "others"):
        (tmp_path / name / "shards").mkdir(parents=True)
        (tmp_path / name / ".lock").touch()
        (tmp_path / name / ".lock.partial").touch()
    (tmp_path / "others" / "shards" / "mine.txt").touch()
    still = [str(media / "still.png")]
    assert embed.run(model, still, tmp_path / "left", workers=0)[:3] == (1, 0, 0)
    with pytest.raises(UserError, match="is a folder with other things: name a new one"):
        embed.run(model, still, tmp_path / "others", workers=0)


def by_hand(query, target):
    """The mean of both directions, as far as there are both."""
    found = []
    if query.audio is not None:
        found.append(similarity.of_pair(query.audio, target.visual, "diagonal_mean"))
    if query.visual is not None:
        found.append(similarity.of_pair(query.visual, target.audio, "diagonal_mean"))
    return np.mean(found)


@pytest.mark.parametrize("kind", ["sound", "image", "video"])
def test_search_is_exact(built, model, media, kind):
    query = {
        "sound": lambda: model.embed_sound(media / "deeper" / "sound.wav"),
        "image": lambda: model.embed_image(media / "still.png"),
        "video": lambda: model.embed_video(media / "2.mp4"),
    }[kind]()
    videos = {str(media / f"{n}.mp4"): model.embed_video(media / f"{n}.mp4") for n in range(3)}
    targets = dict(videos)
    if kind == "sound":
        targets[str(media / "still.png")] = model.embed_image(media / "still.png")
    if kind == "image":
        sound = media / "deeper" / "sound.wav"
        targets[str(sound)] = model.embed_sound(sound)
    expected = {name: by_hand(query, target) for name, target in targets.items()}
    found = nearest.search(built, query, 10, apart=1.0)
    assert [hit.file for hit in found.clips] == sorted(expected, key=lambda name: -expected[name])
    for hit in found.clips:
        assert hit.similarity == pytest.approx(expected[hit.file], abs=1e-6)
    best = found.moments[0]
    moments = []
    for name, target in targets.items():
        rows = []
        if query.audio is not None:
            rows.append(target.visual @ query.audio.mean(axis=0))
        if query.visual is not None:
            rows.append(target.audio @ query.visual.mean(axis=0))
        row = np.mean(rows, axis=0)
        moments.append((row.max(), name, target.times[row.argmax()]))
    value, name, when = max(moments)
    assert (best.file, best.time) == (name, when)
    assert best.similarity == pytest.approx(value, abs=1e-6)
    for one in found.moments:
        for two in found.moments:
            assert one is two or one.file != two.file or abs(one.time - two.time) >= 1


def test_a_percentile_is_the_place_among_other_clips(built, model, media):
    query = model.embed_sound(media / "deeper" / "sound.wav")
    hit = nearest.search(built, query, 1, apart=1.0).clips[0]
    sounds = built.vectors("audio")
    target = built.vectors("visual")
    vectors = target.vectors[target.rows(target.files.index(hit.file))]
    others = [
        similarity.of_pair(sounds.vectors[sounds.rows(i)], vectors, "diagonal_mean")
        for i, name in enumerate(sounds.files)
        if name != hit.file and name in target.files
    ]
    assert len(others) in (2, 3)
    assert hit.percentile == pytest.approx(similarity.percentile(hit.similarity, np.array(others)))


def test_percentiles_are_among_videos_where_most_files_are_pictures(tmp_path):
    """A picture has asked for nothing, so that it is no other clip."""
    rng = np.random.default_rng(0)
    index = made_up.synthetic_index(tmp_path / "index", 6, 8, rng.standard_normal((3, 8)))
    writer = indexes.Writer(index)
    for number in range(900):
        vector = rng.standard_normal((1, 8)).astype(np.float32)
        vector /= np.linalg.norm(vector)
        alone = made_up.Embedded(np.zeros(1), None, vector, np.zeros(1, np.float32))
        writer.add(f"{number}.png", indexes.Stat(1, number), "picture", [alone])
    writer.flush()
    sounds, pictures = index.vectors("audio"), index.vectors("visual")
    query = sounds.vectors[sounds.rows(2)]
    asked = made_up.Embedded(np.arange(len(query)), query, None, np.zeros(len(query), np.float32))
    for hit in nearest.search(index, asked, 900, 1.0).clips:
        target = pictures.vectors[pictures.rows(pictures.files.index(hit.file))]
        others = [
            similarity.of_pair(sounds.vectors[sounds.rows(i)], target, "diagonal_mean")
            for i, name in enumerate(sounds.files)
            if name != hit.file
        ]
        assert len(others) >= 5
        place = similarity.percentile(hit.similarity, np.array(others))
        assert hit.percentile == pytest.approx(place)
    # The query's own file is no other clip.
    own = sounds.files[2]
    for hit in nearest.search(index, asked, 900, 1.0, own=own).clips:
        target = pictures.vectors[pictures.rows(pictures.files.index(hit.file))]
        others = [
            similarity.of_pair(sounds.vectors[sounds.rows(i)], target, "diagonal_mean")
            for i, name in enumerate(sounds.files)
            if name not in (hit.file, own)
        ]
        place = similarity.percentile(hit.similarity, np.array(others))
        assert hit.percentile == pytest.approx(place)


@pytest.mark.parametrize("name", ["link.mp4", "folder/0000002.mp4", "hard.mp4"])
def test_the_querys_file_by_another_name_is_no_other_clip(tmp_path, monkeypatch, name):
    rng = np.random.default_rng(0)
    index = made_up.synthetic_index(tmp_path / "index", 6, 8, rng.standard_normal((3, 8)))
    monkeypatch.chdir(tmp_path)
    sounds = index.vectors("audio")
    for file in sounds.files:
        (tmp_path / file).touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / sounds.files[2])
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / sounds.files[2])
    query = sounds.vectors[sounds.rows(2)]
    asked = made_up.Embedded(np.arange(len(query)), query, None, np.zeros(len(query), np.float32))
    with_it, without, linked = (
        nearest.search(index, asked, 6, 1.0, own=own).clips
        for own in (None, sounds.files[2], str(tmp_path / name))
    )
    assert linked == without != with_it


@pytest.mark.parametrize("kind", ["sound", "video"])
def test_an_approximate_search_compares_its_shortlist_exactly(built, model, media, kind):
    sound, video = media / "deeper" / "sound.wav", media / "2.mp4"
    query = model.embed_sound(sound) if kind == "sound" else model.embed_video(video)
    exact = nearest.search(built, query, 3, apart=1.0)
    names = approximate.shortlist(built, query, 3)
    assert nearest.search(built, query, 3, apart=1.0, among=names).clips == exact.clips
    found = search.find(model, built, kind, str(sound if kind == "sound" else video), 3)
    assert [hit.file for hit in found.clips] == [hit.file for hit in exact.clips]


def test_a_shortlist_is_short_and_follows_the_index(built, model, media, tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "WIDTH", 1)
    index = Index(shutil.copytree(built.directory, tmp_path / "index"))
    soundfile.write(tmp_path / "new.wav", noise(2, seed=77), 16_000)
    query = model.embed_image(media / "still.png")
    (before,) = approximate.shortlist(index, query, 1)
    assert before == nearest.search(index, query, 1, apart=1.0).moments[0].file
    graph = index.directory / "approximate" / "audio.faiss"
    written = graph.stat().st_mtime_ns
    assert approximate.shortlist(index, query, 1) == [before]
    assert graph.stat().st_mtime_ns == written
    embed.run(model, [str(tmp_path / "new.wav")], index.directory, workers=0)
    own = model.embed_sound(tmp_path / "new.wav").audio[:1]
    asked = query._replace(visual=own)
    assert approximate.shortlist(index, asked, 1) == [str(tmp_path / "new.wav")]
    assert not list(index.directory.glob(".approximate*"))
    graph.write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"audio.faiss is damaged: delete"):
        approximate.shortlist(index, query, 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="--approximate needs FAISS"):
        approximate.shortlist(index, query, 1)


def test_a_shortlist_is_not_of_a_shard_that_was_replaced_by_one_of_its_size(tmp_path):
    def clip(seed):
        rng = np.random.default_rng(seed)
        sides = rng.normal(size=(2, 16, 8)).astype(np.float32)
        audio, visual = sides / np.linalg.norm(sides, axis=2, keepdims=True)
        return made_up.Embedded(np.arange(16.0), audio, visual, np.zeros(16, np.float32))

    def add(name, modified, part):
        writer = indexes.Writer(index)
        writer.add(name, indexes.Stat(100, modified), "video", [part])
        writer.flush()

    index = made_up.synthetic_index(tmp_path / "index", 2, 8, np.eye(3, 8))
    add("x.mp4", 1, clip(1))
    add("y.mp4", 1, clip(2))
    asked = clip(3)._replace(visual=None, audio=clip(3).visual)
    sizes = [shard.stat().st_size for shard in index.shards]
    approximate.shortlist(index, asked, 1)
    index.shards[-1].unlink()
    add("y.mp4", 2, clip(3))
    assert [shard.stat().st_size for shard in index.shards] == sizes
    graph = index.directory / "approximate" / "visual.faiss"
    before = graph.read_bytes()
    assert "y.mp4" in approximate.shortlist(index, asked, 1)
    assert graph.read_bytes() != before


@pytest.mark.parametrize("around", [0.01, 0.8])  # of a still picture, and of one that changes
@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_long_files_do_not_fill_the_shortlist(tmp_path, modality, around):
    """Lectures of five minutes have more vectors near a query than are looked for at first."""
    rng = np.random.default_rng(0)
    centres = similarity.unit(rng.standard_normal((30, 64)))
    index = made_up.synthetic_index(tmp_path / "index", 300, 64, centres)
    writer, nothing = indexes.Writer(index), np.zeros(500, np.float32)

    def near(count, noise):
        rows = centres[0] + noise / 8 * rng.standard_normal((count, 64))
        return similarity.unit(rows).astype(np.float32)

    for name in ("lecture.mp4", "another.mp4"):
        sides = near(500, around), near(500, around)
        lecture = made_up.Embedded(0.625 * np.arange(500), *sides, nothing)
        writer.add(name, indexes.Stat(1, 1), "video", [lecture])
    writer.flush()
    sides = {"audio": None, "visual": None, modality: near(16, 0.05)}
    query = made_up.Embedded(0.625 * np.arange(16), **sides, padded=nothing[:16])
    for top in (1, 10):
        names = approximate.shortlist(index, query, top)
        found = nearest.search(index, query, top, 1.0, among=names).clips
        exact = nearest.search(index, query, top, 1.0).clips
        assert len(found) == top and found[0].file == exact[0].file


def test_the_page_plays_the_moments(built, model, media, tmp_path):
    odd = tmp_path / "a <b> & 'c'.wav"
    soundfile.write(odd, noise(2, seed=5), 16_000)
    result = search.run(model, built, "sound", str(odd), tmp_path / "out", top=3)
    page = (tmp_path / "out" / "search.html").read_text()
    assert page.count("<li>") == len(result["clips"]) + len(result["moments"])
    assert "&lt;b&gt;" in page and "<b>" not in page
    for hit in result["moments"]:
        if hit["kind"] == "video":
            address = os.path.relpath(hit["file"], tmp_path / "out")
            assert f'src="{address}#t={max(0, hit["time"] - 0.48):.2f},' in page
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == result
    assert "percentile" in search.format_table(result).splitlines()[0]
    result["clips"][0] |= {"time": 59.97}
    assert "  1:00.0  " in search.format_table(result).splitlines()[1]


def test_the_page_is_utf_8_in_any_locale(built, model, media, tmp_path):
    """A locale such as en_US of ISO 8859-1 lacks some of the page's signs."""
    named = tmp_path / "h\u00f6rt \u266a.wav"
    shutil.copy(media / "deeper" / "sound.wav", named)
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        search.run(model, built, "sound", str(named), tmp_path / "out", top=3)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    page = (tmp_path / "out" / "search.html").read_bytes().decode("utf-8")
    assert '<meta charset="utf-8">' in page and "<h1>Nearest to h\u00f6rt \u266a.wav</h1>" in page


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_export_has_all_vectors(built, tmp_path, suffix):
    path = tmp_path / f"all{suffix}"
    indexes.export(built, path)
    side = built.vectors("audio")
    if suffix == ".npz":
        with np.load(path) as stored:
            np.testing.assert_array_equal(stored["audio"], side.vectors)
            assert stored["visual_file"][0] == side.files[0]
    else:
        table = pq.read_table(path).to_pylist()
        found = np.array([row["vector"] for row in table if row["modality"] == "audio"])
        np.testing.assert_array_equal(found.astype(np.float32), side.vectors)


def test_searches_by_the_files_of_an_index_hold_no_more_vectors_each_time(tmp_path, monkeypatch):
    """Each query's own file is left out of the others, so each has other ones."""
    centres = np.random.default_rng(0).standard_normal((3, 8))
    index = made_up.synthetic_index(tmp_path / "index", 12, 8, centres)
    whole, read = index.vectors_in_memory("audio"), index._reader.read
    held: list[weakref.ref] = []

    def kept_track_of(*given):
        side = read(*given)
        held.append(weakref.ref(side.vectors))
        return side

    monkeypatch.setattr(index._reader, "read", kept_track_of)
    for place, own in enumerate(whole.files):
        asked = made_up.Embedded(
            whole.times[whole.rows(place)], whole.vectors[whole.rows(place)], None, whole.padded
        )
        assert nearest.search(index, asked, 3, 1.0, own=own).clips[0].percentile is not None
    # All pictures, and the sounds of the last query's others.
    assert sum(ref() is not None for ref in held) == 2 < len(held)
    del held[:]
    for name in whole.files:
        assert index.vectors_in_memory("visual", [name]).files == [name]
    assert sum(ref() is not None for ref in held) == 1
    assert index.vectors_in_memory("audio") is whole


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".npz.parquet", ".parquet.npz"])
def test_export_says_what_each_vector_is(tmp_path, suffix):
    index = made_up.synthetic_index(tmp_path / "index", 2, 8, np.eye(3, 8))
    writer = indexes.Writer(index)
    times, padded = np.array([0.5, 1.5]), np.array([0.25, 0.75], np.float32)
    heard = made_up.Embedded(times, np.eye(2, 8, dtype=np.float32), None, padded)
    writer.add("short.wav", indexes.Stat(1, 1), "sound", [heard])
    writer.flush()
    path = tmp_path / f"all{suffix}"
    indexes.export(index, path)
    if path.suffix == ".npz":
        with np.load(path) as stored:
            rows = {name: stored[f"audio_{name}"].tolist() for name in indexes.COLUMNS}
    else:
        table = pq.read_table(path).to_pylist()
        sounds = [row for row in table if row["modality"] == "audio"]
        rows = {name: [row[name] for row in sounds] for name in indexes.COLUMNS}
    assert rows["file"][-2:] == ["short.wav"] * 2 and rows["kind"][-2:] == ["sound"] * 2
    assert rows["time"][-2:] == [0.5, 1.5] and rows["padded"][-2:] == [0.25, 0.75]
    assert set(rows["kind"][:-2]) == {"video"} and not any(rows["padded"][:-2])


def test_export_makes_its_folder_and_leaves_nothing_behind(built, tmp_path, monkeypatch):
    indexes.export(built, tmp_path / "new" / "all.npz")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["all.npz"]
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match=r"folder.npz is a folder: name a file"):
        indexes.export(built, tmp_path / "folder.npz")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no room"):
        indexes.export(built, tmp_path / "new" / "more.npz")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["all.npz"]


def test_mistakes_are_one_sentence(built, model, media, tmp_path):
    sound = str(media / "deeper" / "sound.wav")
    for kind, file, sentence in (
        ("sound", str(media / "text.mp4"), "text.mp4 can't be read"),
        ("image", sound, "is a sound: name it by --sound, not --image"),
        ("video", str(tmp_path), "is a folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            search.run(model, built, kind, file, tmp_path / "out")
    latin = shutil.copy(media / "still.png", tmp_path / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(UserError, match=r"caf\\xe9.png is not UTF-8: rename it"):
        search.run(model, built, "image", str(latin), tmp_path / "out")
    with pytest.raises(UserError, match="is not an index"):
        Index(media)
    with indexes.writing(tmp_path / "empty", model, None):
        pass
    for approximately in (False, True):
        with pytest.raises(UserError, match="empty holds no pictures, which sounds are"):
            search.run(
                model,
                Index(tmp_path / "empty"),
                "sound",
                sound,
                tmp_path / "out",
                approximate=approximately,
            )
    with pytest.raises(UserError, match="is a folder with other things"):
        embed.run(model, [sound], media)
    with pytest.raises(UserError, match="there is no file or folder"):
        embed.run(model, [str(tmp_path / "nothing")], tmp_path / "index")
    with pytest.raises(UserError, match="none of the 1 files could be embedded"):
        embed.run(model, [str(media / "text.mp4")], tmp_path / "index", workers=0)
    with pytest.raises(UserError, match="holds no pictures, which sounds are compared with"):
        search.run(model, Index(tmp_path / "index"), "sound", sound, tmp_path / "out")
    (tmp_path / "index" / "shards" / "000000.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"000000.parquet is damaged"):
        search.run(model, Index(tmp_path / "index"), "sound", sound, tmp_path / "out")


def test_a_file_of_an_index_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """After a power cut no name may stand for a file that the disk never got."""
    partial, place = tmp_path / "rows.partial", tmp_path / "rows"
    partial.write_bytes(b"rows")
    data, synced, fsync = partial.stat().st_ino, [], os.fsync

    def recorded(descriptor):
        synced.append((os.fstat(descriptor).st_ino, place.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    indexes._replace(partial, place)
    assert synced == [(data, False), (tmp_path.stat().st_ino, True)]
    assert place.read_bytes() == b"rows" and not partial.exists()
