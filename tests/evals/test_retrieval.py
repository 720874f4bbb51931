"""Features, baselines and the retrieval evaluation on a tiny trained model."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from jax.sharding import Mesh

import cavmae_sync_jax
from cavmae_sync_jax import train
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import baselines, common, retrieval
from cavmae_sync_jax.evals.metrics import bootstrap
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.evals.report import page as report_page
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=2.0), workdir)
    return workdir


def embed(model, records, devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    return features.extract(features.embeddings, model, records, mesh)


@pytest.mark.release
def test_features_do_not_depend_on_the_devices(trained, dataset_dir, monkeypatch):
    model, records = load(trained), loader.Records(dataset_dir, "train")
    monkeypatch.setattr(features, "CLIPS_PER_DEVICE", 1)
    one, three, eight = (embed(model, records, devices) for devices in (1, 3, 8))
    for modality in ("audio", "visual"):
        assert one[modality].shape == (20, 4, 16) and one[modality].dtype == np.float32
        for other in (three, eight):
            np.testing.assert_allclose(one[modality], other[modality], atol=1e-5)


def test_encoder_tokens_are_those_before_the_joint_block(trained, dataset_dir):
    model, records = load(trained), loader.Records(dataset_dir, "eval")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    tokens = features.extract(features.encoder_tokens, model, records, mesh)
    assert set(tokens) == {
        f"{m}_{kind}" for m in ("audio", "visual") for kind in ("global", "patches", "registers")
    }
    image = loader.PairSpec.of(model.config).pair(records[3], 2)["visual"][None]

    def encode(module):
        return module.encode("visual", module.patchify("visual", jax.numpy.asarray(image)))

    direct = jax.jit(lambda: model.module.apply({"params": model.params}, method=encode))()
    np.testing.assert_allclose(
        tokens["visual_global"][3, 2], direct.global_token[0], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        tokens["visual_registers"][3, 2], direct.registers[0].mean(axis=0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        tokens["visual_patches"][3, 2], direct.patches[0].mean(axis=0), rtol=1e-4, atol=1e-5
    )


def test_features_are_kept_for_the_same_model_and_data_only(
    trained, dataset_dir, tmp_path, monkeypatch
):
    model, records = load(trained), loader.Records(dataset_dir, "eval")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    first = features.extract(features.embeddings, model, records, mesh, tmp_path)
    calls = []
    stream = features._stream
    monkeypatch.setattr(features, "_stream", lambda *a: calls.append(a) or stream(*a))
    again = features.extract(features.embeddings, model, records, mesh, tmp_path)
    np.testing.assert_array_equal(first["audio"], again["audio"])
    assert not calls and len(list(tmp_path.iterdir())) == 1
    other = model._replace(params=jax.tree.map(lambda leaf: leaf * 1.01, model.params))
    features.extract(features.embeddings, other, records, mesh, tmp_path)
    features.extract(
        features.embeddings, model, loader.Records(dataset_dir, "train"), mesh, tmp_path
    )
    features.extract(features.encoder_tokens, model, records, mesh, tmp_path)
    assert len(calls) == 3 and len(list(tmp_path.iterdir())) == 4
    exact = model._replace(module=model.module.clone(dtype="bfloat16"))
    features.extract(features.embeddings, exact, records, mesh, tmp_path)
    monkeypatch.setattr(features, "_code", lambda: "edited")
    features.extract(features.embeddings, model, records, mesh, tmp_path)
    assert len(calls) == 5 and len(list(tmp_path.iterdir())) == 6


def test_the_cache_gives_only_what_is_asked_and_reads_it_as_it_is_used(
    trained, dataset_dir, tmp_path, monkeypatch
):
    model, records = load(trained), loader.Records(dataset_dir, "eval")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])

    def extract(only=None):
        return features.extract(features.encoder_tokens, model, records, mesh, tmp_path, only=only)

    (one,) = extract(["audio_global"]).values()
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["audio_global.npy"]
    every = extract()  # of which one is there, but nobody knows whether it is all
    assert {path.stem for path in folder.iterdir()} == {*every, "names"} and len(every) == 6
    monkeypatch.setattr(features, "_stream", None)
    for name, values in extract().items():
        assert isinstance(values, np.memmap) and not values.flags.writeable
        np.testing.assert_array_equal(values, every[name])
    np.testing.assert_array_equal(extract(["audio_global"])["audio_global"], one)


def test_the_cache_tells_two_datasets_of_the_same_size_apart(trained, dataset_dir, tmp_path):
    model, mesh = load(trained), sharding.make_mesh(devices=jax.devices()[:1])
    again = tiny.prepared_again(dataset_dir, tmp_path / "again")
    both = [loader.Records(folder, "eval") for folder in (dataset_dir, again)]
    assert both[0].identity == both[1].identity
    for count, records in enumerate(both, start=1):
        features.extract(features.embeddings, model, records, mesh, tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == count
    copied = shutil.copytree(dataset_dir, tmp_path / "copied")
    features.extract(
        features.embeddings, model, loader.Records(copied, "eval"), mesh, tmp_path / "cache"
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_two_evaluations_may_fill_one_cache(trained, dataset_dir, tmp_path, monkeypatch):
    model, records = load(trained), loader.Records(dataset_dir, "eval")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stream, results = features._stream, []

    def extract():
        return features.extract(features.embeddings, model, records, mesh, tmp_path)

    def interrupted(*arguments):
        stream(*arguments)
        monkeypatch.setattr(features, "_stream", stream)
        results.append(extract())  # the other one ends first

    monkeypatch.setattr(features, "_stream", interrupted)
    results += [extract(), extract()]
    for one in results:
        np.testing.assert_array_equal(one["visual"], results[0]["visual"])
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(features, "_code", lambda: "edited")
    monkeypatch.setattr(features, "_compute", None)
    with pytest.raises(TypeError):
        extract()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_diverged_model_is_told(trained, dataset_dir):
    model = load(trained)
    broken = model._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    with pytest.raises(UserError, match=r"audio values of 5 clips are not finite .*clip2"):
        embed(broken, loader.Records(dataset_dir, "eval"), 1)


def test_rows_find_their_clips_whatever_the_order_of_the_devices(trained, dataset_dir, monkeypatch):
    model, records = load(trained), loader.Records(dataset_dir, "eval")
    monkeypatch.setattr(features, "CLIPS_PER_DEVICE", 1)
    expected = embed(model, records, 8)
    shuffled = np.array(jax.devices())[[3, 1, 0, 7, 5, 2, 6, 4]].reshape(4, 2)
    mesh = Mesh(shuffled, sharding.AXES)
    found = features.extract(features.embeddings, model, records, mesh)
    np.testing.assert_array_equal(found["audio"], expected["audio"])


def test_load_gives_the_embeddings_of_the_features_stage(trained, dataset_dir):
    records = loader.Records(dataset_dir, "eval")
    pretrained = cavmae_sync_jax.load(str(trained))
    whole = embed(pretrained, records, 1)
    pair_spec = loader.PairSpec.of(pretrained.config)
    pair = pair_spec.pair(records[2], 1)
    audio = pretrained.encode_audio(pair["audio"][None])
    image = pretrained.encode_image(pair["visual"][None])
    np.testing.assert_allclose(audio.global_token[0], whole["audio"][2, 1], atol=1e-5)
    np.testing.assert_allclose(image.global_token[0], whole["visual"][2, 1], atol=1e-5)
    assert image.patch_tokens.shape == (1, 4, 16) and audio.patch_tokens.shape == (1, 48, 16)
    as_float = pretrained.encode_image(pair["visual"][None].astype(np.float32))
    np.testing.assert_array_equal(as_float.global_token, image.global_token)


def test_load_refuses_what_is_not_there(trained, tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        cavmae_sync_jax.load(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        cavmae_sync_jax.load(str(tmp_path))
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[4, 5\]"):
        cavmae_sync_jax.load(str(trained), step=3)
    with pytest.raises(UserError, match=r"audio of shape \[96, 128\].*not \[95, 128\]"):
        cavmae_sync_jax.load(str(trained)).encode_audio(np.zeros((1, 95, 128), np.float32))


def test_a_checkpoint_of_another_shape_names_every_difference(trained):
    checkpoints = manager.Checkpoints(trained, keep=2)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wrong = {
        "params": {"norms_both": {"scale": (17,), "offset": (16,)}},
    }
    abstract = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32, sharding=device),
        wrong,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    with pytest.raises(UserError) as error:
        checkpoints.stored(checkpoints.latest).restore(abstract)
    _, missing, unexpected, shaped = str(error.value).splitlines()
    assert missing == "  missing: params/norms_both/offset"
    assert "params/norms_both/bias" in unexpected and "params/norms_visual/scale" in unexpected
    assert shaped == "  wrongly shaped: params/norms_both/scale [16] instead of [17]"
    checkpoints.close()


def test_retrieval_writes_what_it_promises(trained, dataset_dir, tmp_path, capsys):
    records = loader.Records(dataset_dir, "eval")
    result = retrieval.run(load(trained), records, tmp_path, with_baselines=True)
    assert json.loads((tmp_path / "retrieval.json").read_text()) == result
    assert (tmp_path / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert result["clips"] == 5 and set(result["scores"]) == set(retrieval_metrics.STRATEGIES)
    for strategy in result["scores"].values():
        for direction in ("audio_to_visual", "visual_to_audio"):
            assert set(strategy[direction]) == {"R1", "R5", "R10", "median_rank"}
            assert 0 <= strategy[direction]["R1"] <= strategy[direction]["R5"] == 1
    assert set(result["baselines"]) == {
        "chance",
        "untrained model",
        "linear (CCA of colours and mean log-mel)",
    }
    printed = capsys.readouterr().out
    assert "model, diagonal mean" in printed and "chance" in printed
    ours, published = printed.split("published (")
    assert "CAV-MAE Sync, AudioSet" in published and "CAV-MAE Sync" not in ours
    with np.load(tmp_path / "retrieval_resamples.npz") as resampled:
        assert len(resampled) == 4 * 2 * 3
        values = resampled["max/audio_to_visual/R1"]
    assert values.shape == (1000,)
    assert result["intervals"]["max"]["audio_to_visual"]["R1"] == bootstrap.interval(values)
    assert values.mean() == pytest.approx(
        result["scores"]["max"]["audio_to_visual"]["R1"], abs=0.03
    )


@pytest.mark.release
def test_other_frames_than_the_training_drew_from(trained, dataset_dir, tmp_path):
    model, records = load(trained), loader.Records(dataset_dir, "eval")
    whole = embed(model, records, 1)
    two = embed(common.with_frames(model, 2), records, 1)  # of the four that are stored
    last = embed(common.with_frames(model, 4, 3), records, 1)
    for modality, rows in whole.items():
        np.testing.assert_allclose(two[modality], rows[:, ::2], atol=1e-5)
        np.testing.assert_allclose(last[modality], rows[:, 3:], atol=1e-5)
    one = common.with_frames(model, 4, 3)
    result = retrieval.run(one, records, tmp_path, with_baselines=True)
    assert result["framing"]["num_frames"] == 4 and result["framing"]["only_frame"] == 3
    assert result["frames"] == {"audio": 1, "visual": 1}
    assert len({json.dumps(scores) for scores in result["scores"].values()}) == 1
    said = report_page.command(epath.Path(tmp_path), "retrieval", result)
    assert "--num_frames=4" in said and "--frame=3" in said
    with pytest.raises(UserError, match=r"--frame=4 must be from 0 to 3"):
        common.with_frames(model, None, 4)
    with pytest.raises(UserError, match=r"--num_frames=0 must be at least 1"):
        common.with_frames(model, 0)
    flags = ["--checkpoint", str(trained), "--data", str(dataset_dir), "--num_frames", "5"]
    args = common.parser("", "x", single_frame=True).parse_args([*flags, "--frame", "1"])
    with pytest.raises(UserError, match=r"--num_frames=5, but .* holds 4 frames per clip"):
        common.opened(args)


def test_baselines_of_a_dataset_without_train(trained, dataset_dir, capsys):
    records = loader.Records(dataset_dir, "eval")
    assert set(records.splits) == {"train", "eval"}
    records.splits = ("eval",)  # as of a dataset that was made to evaluate only
    result = retrieval.run(load(trained), records, with_baselines=True, strategies=["max"])
    assert set(result["baselines"]) == {"chance", "untrained model"}
    assert "no linear baseline: " in capsys.readouterr().err


@pytest.mark.parametrize("strategies", [["max"], ["mean", "max"], ["max", "diagonal_mean"]])
def test_baselines_are_aggregated_as_the_model_is(trained, dataset_dir, strategies, monkeypatch):
    rng = np.random.default_rng(1)  # each aggregation scores otherwise
    planted = {m: rng.normal(size=(5, 4, 3)).astype(np.float32) for m in ("audio", "visual")}
    monkeypatch.setattr(features, "extract", lambda *_, **__: planted)
    monkeypatch.setattr(baselines, "_statistics", lambda *_, **__: list(planted.values()))
    records = loader.Records(dataset_dir, "eval")
    result = retrieval.run(load(trained), records, with_baselines=True, strategies=strategies)
    main = "diagonal_mean" if "diagonal_mean" in strategies else strategies[0]
    assert result["baselines"]["untrained model"] == result["scores"][main]
    spec = loader.PairSpec(4, 1024, 96, 128, 32)
    linear = {s: baselines.linear(records, records, spec, s) for s in retrieval_metrics.STRATEGIES}
    assert result["baselines"]["linear (CCA of colours and mean log-mel)"] == linear[main]
    for scores in (retrieval.run(load(trained), records)["scores"], linear):
        assert sum(found == scores[main] for found in scores.values()) == 1


def test_chance_by_hand():
    expected = {"R1": 1 / 8, "R5": 5 / 8, "R10": 1.0, "median_rank": 4.5}
    assert baselines.chance(8)["audio_to_visual"] == expected
    rng = np.random.default_rng(0)
    drawn = [retrieval_metrics.recall(rng.normal(size=(8, 8))) for _ in range(500)]
    for name in ("R1", "R5", "R10"):
        assert np.mean([score[name] for score in drawn]) == pytest.approx(expected[name], abs=0.02)


def test_canonical_directions_find_what_is_shared():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2000, 1))
    x = np.concatenate([shared, 30 * rng.normal(size=(2000, 2))], axis=1)
    y = np.concatenate([10 * rng.normal(size=(2000, 2)), -shared], axis=1)
    left, right = baselines.canonical_directions(x, y)
    agreement = np.corrcoef((x @ left)[:, 0], (y @ right)[:, 0])[0, 1]
    assert agreement > 0.8
    noise = np.corrcoef((x @ left)[:, 1], (y @ right)[:, 1])[0, 1]
    assert abs(noise) < 0.1


def test_linear_baseline_solves_a_linear_task(dataset_dir):
    # The tiny videos' grey level and tone rise together from clip to clip.
    records = [loader.Records(dataset_dir, split) for split in ("train", "train")]
    score = baselines.linear(*records, loader.PairSpec(4, 1024, 96, 128, 32))
    assert score["audio_to_visual"]["R5"] > 0.5
