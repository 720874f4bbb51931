"""The benchmarks of speed run, and their two sides do the same work; how fast is theirs to say."""

import json
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import tiny
from benchmark_tables import FLAGS, SMALL, table

from benchmarks.data import input_pipeline
from benchmarks.inference import embedding, features
from benchmarks.training import startup
from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.media import images as media_images
from cavmae_sync_jax.models.cavmae_sync import IMAGE_MEAN, IMAGE_STD
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

pytestmark = pytest.mark.release

CLIPS = 4


@pytest.fixture(scope="module")
def config():
    return tiny.config(**{key.replace(".", "__"): value for key, value in SMALL.items()})


@pytest.fixture(scope="module")
def generated(config, tmp_path_factory):
    return input_pipeline.generate(tmp_path_factory.mktemp("data"), config, train=CLIPS)


def numbers(cells):
    return [float(cell.split()[0].strip("%")) for cell in cells if cell]


def test_both_sides_give_the_same_pairs(config, generated, tmp_path):
    baseline = pytest.importorskip("benchmarks.data.dataloader_baseline")
    records, pair_spec = input_pipeline.Records(generated, "train"), PairSpec.of(config)
    assert records.clips == CLIPS and len(records) == input_pipeline.CLIPS_AT_LEAST
    files, model = baseline.Files(tmp_path), config.model
    ids = input_pipeline.write_files(files, records, clip_seconds=10)
    peer = baseline.Clips(files, ids, pair_spec, model.audio_mean, model.audio_std)
    for place, clip_id in enumerate(ids):
        record = records[place + 3 * CLIPS]
        assert record["clip_id"].decode() == clip_id
        for frame in range(pair_spec.num_frames):
            ours = pair_spec.pair(record, frame)
            window, image = (tensor.numpy() for tensor in peer.pair(clip_id, frame))
            # Stored log-mel is rounded to float16, by half of 2^-7 at most for values under 16.
            fbank = (ours[AUDIO].astype(np.float32) - model.audio_mean) / model.audio_std
            np.testing.assert_allclose(window, fbank, rtol=0, atol=2**-8 / model.audio_std + 1e-5)
            pixels = (ours[VISUAL] / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)
            np.testing.assert_allclose(image, pixels.transpose(2, 0, 1), rtol=0, atol=1e-5)
    windows, images = next(baseline.batches(peer, 3, [2, 0, 1]))
    assert windows.shape == (3, 96, 128) and images.shape == (3, 3, 32, 32)
    assert 0.2 < windows.std() < 2


def test_generated_pictures_are_as_large_as_photos():
    rng = np.random.default_rng(0)
    sizes = [len(media_images.encode_jpeg(input_pipeline.picture(rng, 224), 95)) for _ in range(8)]
    assert 15_000 < np.mean(sizes) < 25_000
    fbank = audio.log_mel(input_pipeline.sound(rng, 160_000) / np.float32(32768), audio.SAMPLE_RATE)
    assert fbank.shape == (998, 128) and fbank.std() > 1


def test_the_pipeline_is_timed_in_parts(generated, monkeypatch, capsys):
    pytest.importorskip("benchmarks.data.dataloader_baseline")
    monkeypatch.setattr(input_pipeline, "generate", lambda *_, **__: generated)
    wanted = ["--examples=16", "--repeats=1", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["input_pipeline", *FLAGS, *wanted])
    input_pipeline.main()
    rows, header = table(capsys.readouterr().out)
    parts = [f"– {name}" for name in (*input_pipeline.STAGES, input_pipeline.REST)]
    several = "train_batches, workers=1"
    assert list(rows) == [input_pipeline.OURS, *parts, input_pipeline.THEIRS, several]
    assert header[-2:] == ["× DataLoader", "× in CPU time"]
    speed, cost, whole, faster, cheaper = numbers(rows[input_pipeline.OURS])
    theirs_speed, theirs_cost = numbers(rows[input_pipeline.THEIRS])
    assert whole == 100 and speed > 0
    assert faster == pytest.approx(speed / theirs_speed, abs=0.06 + 0.6 / theirs_speed * faster)
    assert cheaper == pytest.approx(theirs_cost / cost, abs=0.06 + 0.001 / cost * cheaper)
    spent = [numbers(rows[part]) for part in parts]
    assert sum(ms for ms, _ in spent) == pytest.approx(cost, abs=0.004)
    assert sum(share for _, share in spent) == pytest.approx(100, abs=3)


def test_own_data_need_no_dataloader(generated, monkeypatch, capsys):
    monkeypatch.delattr("benchmarks.data.dataloader_baseline", raising=False)
    monkeypatch.delitem(sys.modules, "benchmarks.data.dataloader_baseline", raising=False)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    flags = ["input_pipeline", *FLAGS, "--examples=8", "--repeats=1", "--workers"]
    monkeypatch.setattr("sys.argv", [*flags, f"--data={generated}"])
    input_pipeline.main()
    rows, header = table(capsys.readouterr().out)
    assert next(iter(rows)) == input_pipeline.OURS and input_pipeline.THEIRS not in rows
    assert header[-1] == "of the CPU time"
    monkeypatch.setattr("sys.argv", flags)
    with pytest.raises(SystemExit) as ended:
        input_pipeline.main()
    assert ended.value.code == 2
    assert "soundfile is missing: pip install '.[convert,test]'" in capsys.readouterr().err


def test_features_stage_and_loop_embed_the_same(monkeypatch, capsys):
    results = {}

    def kept(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            results[name] = function(*args, **kwargs)
            return results[name]

        monkeypatch.setattr(owner, name, call)

    kept(features, "frame_by_frame")
    kept(features.features, "extract")
    kept(features, "maps_of_evidence")
    flags = [f"--clips={CLIPS}", "--looped=2", "--repeats=1", "--maps=2"]
    monkeypatch.setattr("sys.argv", ["features", *FLAGS, *flags])
    features.main()
    maps = results["maps_of_evidence"]
    assert maps.shape == (2, 1, 2, 2) and np.isfinite(maps).all() and np.ptp(maps) > 0
    looped, whole = results["frame_by_frame"], results["extract"]
    for modality in MODALITIES:
        assert looped[modality].shape == (2, 4, 16) and whole[modality].shape == (CLIPS, 4, 16)
        np.testing.assert_allclose(looped[modality], whole[modality][:2], rtol=1e-4, atol=1e-5)
        assert np.ptp(looped[modality], axis=(0, 1)).min() > 1e-3
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(" maps/s")
    rows, header = table(printed)
    assert tuple(rows) == (features.STAGE, features.LOOP) and tuple(header) == features.COLUMNS
    for cells in rows.values():
        clips, frames, *_ = numbers(cells)
        assert frames == pytest.approx(4 * clips, abs=0.03)


def test_files_are_embedded_as_pytorch_embeds_what_was_decoded(monkeypatch, capsys):
    flags = [*FLAGS, "--files=2", "--repeats=1", "--peers=eager"]
    monkeypatch.setattr("sys.argv", ["embedding", *flags])
    embedding.main()
    rows, header = table(capsys.readouterr().out)
    names = embedding.WHOLE, embedding.DECODING, embedding.OURS, "PyTorch eager"
    assert tuple(rows) == names and tuple(header) == embedding.COLUMNS
    for cells in rows.values():
        files, real, *_ = numbers(cells)
        assert real == pytest.approx(10 * files, abs=1)
    # Other weights are told before anything is timed.
    right = embedding.Peer.embed_decoded
    monkeypatch.setattr(embedding.Peer, "embed_decoded", lambda *given: -right(*given))
    with pytest.raises(SystemExit):
        embedding.main()
    assert "PyTorch eager: the vectors differ by" in capsys.readouterr().err


def test_a_start_is_observed(config, tmp_path):
    data = input_pipeline.generate(tmp_path / "data", config, train=config.batch_size)
    flags = [*FLAGS, f"--config.data.dir={data}", "--config.data.eval_split="]
    cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    start = startup.begin(
        startup.OBSERVED, [*flags, "--config.log_every=1"], tmp_path / "start", cache
    )
    lines = (tmp_path / "start/run/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["step"] == 1
    assert set(start.parts) == {*startup.PARTS, *startup.EVENTS.values()}
    parts = [start.parts[name] for name in startup.PARTS]
    assert min(parts) >= 0 and sum(parts) <= start.seconds
    assert parts[0] > 0.1 and sum(parts) > 0.5 * start.seconds
    assert all(0 < start.parts[event] < start.seconds for event in startup.EVENTS.values())
    assert start.cpu_seconds > 0.1


@pytest.mark.parametrize(("status", "error"), [(2, UserError), (1, RuntimeError)])
def test_a_start_that_fails_says_why(tmp_path, status, error):
    program = (
        f"import sys; print('train: error: not like this', file=sys.stderr); sys.exit({status})"
    )
    with pytest.raises(error, match="not like this"):
        startup.begin(("-c", program), [], tmp_path / "start", tmp_path)


def test_starts_make_a_table(monkeypatch, capsys):
    calls = []

    def begin(code, flags, folder, cache):
        calls.append(types.SimpleNamespace(code=code, flags=flags, folder=folder, cache=cache))
        parts = dict.fromkeys((*startup.PARTS, *startup.EVENTS.values()), 1.0)
        return startup.Start(10.0 * len(calls), 5.0, parts if code == startup.OBSERVED else {})

    monkeypatch.setattr(startup, "begin", begin)
    monkeypatch.setattr(input_pipeline, "generate", lambda folder, *_, **__: folder)
    monkeypatch.setattr("sys.argv", ["startup", *FLAGS, "--repeats=2"])
    startup.main()
    assert [call.code for call in calls] == [startup.PROGRAM] * 4 + [startup.OBSERVED] * 2
    # A cold start has an empty cache, and leaves it to the cached one.
    assert [call.cache.name for call in calls] == [f"cache{i // 2}" for i in range(6)]
    assert len({call.folder for call in calls}) == 6
    assert calls[0].flags[: len(FLAGS)] == FLAGS and "--config.log_every=1" in calls[0].flags
    rows, header = table(capsys.readouterr().out)
    assert header == ["", *startup.KINDS]
    assert rows["first step after"] == ["20.0 (10.0–30.0) s", "30.0 (20.0–40.0) s"]
    assert rows["observed once"] == ["50.0 s", "60.0 s"]
    assert rows["– Python and imports"] == ["1.0 s", "1.0 s"]


def test_time_that_two_events_share_counts_once():
    assert startup.covered([(1, 3), (0, 2), (5, 6), (5.5, 5.75)]) == 4
    assert startup.covered([]) == 0
