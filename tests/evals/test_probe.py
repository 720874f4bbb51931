"""The probe: its scores, its recipe piece by piece, its training on cached and raw clips."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from etils import epath

from cavmae_sync_jax import convert, train
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import common, probe, tokens
from cavmae_sync_jax.evals.metrics import classification
from cavmae_sync_jax.evals.report import page as report_page
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.torch_compat import key_mapping
from cavmae_sync_jax.training import augmentation, finetune_step, probing
from cavmae_sync_jax.utils.errors import UserError
from configs import probe as recipes

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def recipe(**overrides):
    config = recipes.get_config("demo")
    small = {"batch_size": 8, "epochs": 4, "heads": 2, "log_every": 2}
    config.update(small | {"average_from": 3} | overrides)
    return config


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=2.0), workdir)
    return load(workdir)


def test_the_head_is_the_references():
    golden = np.load(GOLDEN / "probe_head.npz", allow_pickle=False)
    params = key_mapping.take_params({k[6:]: golden[k] for k in golden if k[:6] == "state/"})
    seen = probing.Features([golden[f"global_{m}"] for m in "av"])
    logits = probing.predict(ProbeHead(96, 2, 4, 4.0, 7), params, seen)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)


def test_every_clip_has_its_logits_whatever_the_batches():
    seen = probing.Features(list(np.random.default_rng(0).normal(size=(2, 7, 3, 4))))
    head = ProbeHead(8, 0, 1, 4.0, 2)
    params = jax.jit(head.init_params)(jax.random.key(0))
    whole, parts = (probing.predict(head, params, seen, batch) for batch in (7, 3))
    assert whole.shape == (7, 2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_balanced_order_draws_rare_labels_as_often():
    truth = np.zeros((1000, 2), bool)
    truth[:900, 0] = truth[900:, 1] = True
    places = probing.order(truth, recipe(balanced=True, epochs=3))
    assert places.shape == (3000,) and truth[places, 1].mean() == pytest.approx(0.5, abs=0.04)
    # A clip weighs the sum over its labels of 1000 / (count + 0.01).
    both = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], bool)
    drawn = probing.order(both, recipe(balanced=True, epochs=5000))
    weights = both @ (1000 / (np.array([3, 2]) + 0.01))
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), weights / weights.sum(), atol=0.015)


def test_plain_order_has_every_clip_once_an_epoch():
    places = probing.order(np.ones((7, 1), bool), recipe(epochs=2)).reshape(2, 7)
    assert (np.sort(places, axis=1) == np.arange(7)).all() and (places[0] != places[1]).any()


def test_targets_and_mixup_by_hand():
    truth = jnp.array([[1.0, 0, 0, 0]])
    np.testing.assert_allclose(
        finetune_step.targets(truth, 0.1), [[0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )
    x = jnp.arange(512.0)
    key = jax.random.key(0)
    half = jax.jit(lambda raw, truth: augmentation.mix(key, 0.5, raw, truth))
    mixed, soft = half({"x": x, "y": -x[:, None]}, jnp.eye(512))
    np.testing.assert_allclose(mixed["x"], soft @ x, rtol=1e-4)  # labels tell who is in it
    np.testing.assert_allclose(mixed["y"][:, 0], -mixed["x"])
    features = half({"features": x}, jnp.eye(512))[0]["features"]
    np.testing.assert_array_equal(features, mixed["x"])
    weights = soft.max(axis=1)
    untouched = float((weights == 1).mean())
    assert untouched == pytest.approx(0.5, abs=0.07)
    own = np.diagonal(np.asarray(soft))[np.asarray(weights) < 1]
    assert own.mean() == pytest.approx(0.5, abs=0.02)  # Beta(10, 10): 0.5 ± 0.109
    assert own.std() == pytest.approx(0.109, abs=0.02)


def test_mixed_log_mels_are_those_of_mixed_sounds():
    rng = np.random.default_rng(0)
    loudness = 0.1 + np.abs(np.sin(np.linspace(0, 9, 16_000)))
    noise = rng.normal(0, 0.05, (2, 16_000))
    sounds = [noise[0] * loudness, np.cumsum(noise[1]) * 0.1]
    mels = np.stack([audio.log_mel(sound.astype(np.float32), 16_000) for sound in sounds])
    mels = np.pad(mels, ((0, 0), (0, 6), (0, 0)))
    key = next(key for key in map(jax.random.key, range(99)) if is_mixed(key))
    raw = {name: jnp.asarray(mels) for name in ("audio", "x")}
    mixed, soft = augmentation.mix(key, 1.0, raw, jnp.eye(2))
    for row, shares, linear in zip(mixed["audio"], np.asarray(soft), mixed["x"], strict=True):
        wave = sum(share * sound for share, sound in zip(shares, sounds, strict=True))
        expected = audio.log_mel(wave.astype(np.float32), 16_000)
        errors = [np.sqrt(np.square(one[:-6] - expected).mean()) for one in (row, linear)]
        assert errors[0] < 0.6 * errors[1], errors
        np.testing.assert_array_equal(row[-6:], 0)  # padding stays what it is
    alone, _ = augmentation.mix(key, 0.0, raw, jnp.eye(2))
    np.testing.assert_array_equal(alone["audio"], mels)


def is_mixed(key):
    soft = augmentation.mix(key, 1.0, {}, jnp.eye(2))[1]
    return bool((soft < 1).all())


def test_a_missing_modality_tells_nothing():
    seen = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    both = probing.Features([seen[..., :2], seen[..., 2:]])
    sound = probing.only(both, "audio")[:]
    np.testing.assert_array_equal(sound[..., :2], seen[..., :2])
    np.testing.assert_allclose(
        sound[..., 2:], np.broadcast_to(seen[..., 2:].mean((0, 1)), (3, 2, 2))
    )
    np.testing.assert_array_equal(probing.only(both, "visual")[:][..., 2:], seen[..., 2:])


def planted(clips=48, classes=3, seed=0):
    """Features whose one direction in one frame tells the class, and their labels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=clips)
    seen = rng.normal(size=(clips, 4, 8)).astype(np.float32)
    seen[np.arange(clips), rng.integers(4, size=clips), label] += 6
    parts = probing.Features([seen[..., :3], seen[..., 3:]])
    return probing.Labelled(np.eye(classes, dtype=bool)[label], parts)


def test_a_head_is_not_trained_on_with_features_of_something_else(trained, tmp_path):
    config, clips = recipe(), planted()
    head = probing.make_head(8, 3, config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])

    def train(origin):
        clips_of = clips._replace(learned_from={"origin": origin})
        return probing.train(head, clips_of, trained, config, mesh, tmp_path / "probe")

    first = train("one model")
    with pytest.raises(UserError, match="it learned from another encoder, other clips or other"):
        train("another model")
    jax.tree.map(np.testing.assert_array_equal, train("one model"), first)


def test_features_come_from_weights_settings_clips_and_frames(trained, dataset_dir):
    records = loader.Records(dataset_dir, "train")
    changed = jax.tree.map(lambda leaf: leaf, trained.params)
    changed["norms_both"]["scale"] = changed["norms_both"]["scale"].at[0].add(1e-6)
    origins = [
        features.origin(trained, records),
        features.origin(trained._replace(params=changed), records),
        features.origin(trained, loader.Records(dataset_dir, "eval")),
        features.origin(common.with_frames(trained, 2, None), records),
    ]
    assert len(set(origins)) == 4 and features.origin(trained, records) == origins[0]


@pytest.mark.release
@pytest.mark.parametrize(
    "overrides", [{"loss": "bce"}, {"depth": 0, "linear_learning_rate": 3e-2}], ids=str
)
def test_a_head_learns_what_is_planted_on_any_mesh(trained, overrides):
    config = recipe(epochs=40, learning_rate=3e-3, average_from=30, **overrides)
    clips, logits = planted(), []
    head = probing.make_head(8, 3, config)
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        params = probing.train(head, clips, trained, config, mesh, None)
        held_out = planted(seed=1)
        logits.append(probing.predict(head, jax.device_get(params), held_out.source))
    assert classification.scores_of(held_out.truth, logits[0])["mAP"] > 0.9
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-2)


def test_what_is_scored_is_the_mean_of_the_last_epochs(trained, tmp_path):
    config = recipe(epochs=3, average_from=2)
    head = probing.make_head(8, 3, config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    scored = probing.train(head, planted(), trained, config, mesh, tmp_path)
    checkpoints = manager.Checkpoints(tmp_path, keep=2)
    second, third = (checkpoints.stored(step).arrays("params", "averaged") for step in (12, 18))
    checkpoints.close()
    assert (int(second["averaged"]), int(third["averaged"])) == (1, 2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, second["params"], third["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), scored, mean)


def test_a_killed_probe_resumes_exactly(trained, tmp_path, monkeypatch):
    config, clips = recipe(epochs=4), planted()
    head = probing.make_head(8, 3, config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    whole = probing.train(head, clips, trained, config, mesh, tmp_path / "whole")
    batches = probing.Probing.batches

    def three_epochs(self, examples):
        for number, batch in enumerate(batches(self, examples)):
            if number == 18:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(probing.Probing, "batches", three_epochs)
    with pytest.raises(KeyboardInterrupt):
        probing.train(head, clips, trained, config, mesh, tmp_path / "parts")
    monkeypatch.undo()
    parts = probing.train(head, clips, trained, config, mesh, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole), jax.device_get(parts))
    with pytest.raises(UserError, match=r"can't be resumed: probe\.mixup was 0\.5"):
        probing.train(head, clips, trained, recipe(mixup=0.0), mesh, tmp_path / "parts")


@pytest.mark.release
def test_run_trains_scores_and_draws(trained, dataset_dir, tmp_path, capsys, monkeypatch):
    records = loader.Records(dataset_dir, "eval")
    config = recipe(loss="ce")
    result = probe.run(
        trained, records, config, tmp_path, with_baselines=True, cache=tmp_path / "cache"
    )
    assert json.loads((tmp_path / "probe.json").read_text()) == result
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert {"mAP", "AUC", "accuracy"} <= set(result["scores"])
    assert set(result["missing"]) == {"audio_alone", "visual_alone"}
    assert all({"mAP", "AUC", "accuracy"} <= set(row) for row in result["missing"].values())
    assert set(result["baselines"]) == {"class frequencies", "untrained model"}
    assert {name: one["clips"] for name, one in result["classes"].items()} == {"even": 3, "odd": 2}
    printed = capsys.readouterr().out
    assert "untrained model" in printed and "accuracy" in printed and "sound alone" in printed
    # The head it left scores the same, without training, also by way of a PyTorch file.
    convert.export_weights(str(tmp_path / "probe"), str(tmp_path / "head.pth"))
    convert.import_weights(
        str(tmp_path / "head.pth"), str(tmp_path / "back"), ["--config.head.heads=2"]
    )
    for head in ("probe", "back"):
        again = probe.run(trained, records, config, head=tmp_path / head)
        assert again["scores"] == result["scores"]
    assert again["head"] == {"directory": str(tmp_path / "back")} and "head" not in result
    assert f"--head={tmp_path / 'back'}" in report_page.command(
        epath.Path(tmp_path), "probe", again
    )
    with pytest.raises(UserError, match=r"learned from the stream 'both', not 'audio': score it"):
        probe.run(trained, records, recipe(stream="audio", loss="ce"), head=tmp_path / "probe")
    other = trained._replace(params=common.untrained(trained).params)
    with pytest.raises(UserError, match="probe learned from another model's features than those"):
        probe.run(other, records, config, head=tmp_path / "probe")
    with monkeypatch.context() as patch:
        patch.setattr(labels, "class_names", lambda _: ["odd", "even"])
        with pytest.raises(
            UserError, match=r"not the same \(such as the same ones in another order"
        ):
            probe.run(trained, records, config, head=tmp_path / "probe")
        patch.setattr(labels, "class_names", lambda _: ["even", "prime"])
        with pytest.raises(UserError, match=r"not the same \(such as odd, prime\): prepare the"):
            probe.run(trained, records, config, head=tmp_path / "probe")
    heads = []
    for head in ("probe", "back"):
        with manager.opened(tmp_path / head) as stored:
            heads.append(stored.weights())
            last = stored.arrays("params")["params"]
    jax.tree.map(np.testing.assert_array_equal, *heads)
    jax.tree.map(np.testing.assert_array_equal, heads[1], last)
    with manager.opened(tmp_path / "probe") as stored:
        last = stored.arrays("params")["params"]["classifier"]["kernel"]
    assert not np.array_equal(last, heads[0]["classifier"]["kernel"])  # it is the average


@pytest.mark.release
def test_raw_clips_are_shifted_and_mixed_before_the_encoder(trained, dataset_dir, tmp_path):
    records = loader.Records(dataset_dir, "eval")
    config = recipe(cached=False, time_shift=True, epochs=2, average_from=2, stream="audio")
    result = probe.run(trained, records, config, tmp_path)
    assert result["stream"] == "audio" and (tmp_path / "probe_audio.json").exists()
    assert not (tmp_path / "probe.json").exists()


@pytest.mark.release
def test_raw_and_cached_clips_train_the_same_head(trained, dataset_dir):
    records = loader.Records(dataset_dir, "train")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    truth = labels.read(records)
    names = probing.token_names(True, "both")
    tokens = features.extract(features.encoder_tokens, trained, records, mesh, only=names)
    assert set(tokens) == {"audio_global", "visual_global"}
    seen = probing.Features(list(tokens.values()))
    heads = []
    for cached, source in ((True, seen), (False, records)):
        config = recipe(cached=cached, time_shift=False, mixup=0.0, epochs=2, average_from=2)
        head = probing.make_head(seen.width, 2, config)
        clips = probing.Labelled(truth, source)
        encode = features.encoder_tokens
        heads.append(probing.train(head, clips, trained, config, mesh, None, encode))
    # Their logits agree, not all their weights: those of a gradient of 0, such as biases of keys,
    # go where rounding sends them.
    logits = [probing.predict(head, params, seen, 8) for params in heads]
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert np.ptp(logits[0]) > 0.1


@pytest.mark.release
def test_tokens_are_probed_apart(trained, dataset_dir, tmp_path, capsys):
    records = loader.Records(dataset_dir, "eval")
    result = tokens.run(
        trained, records, recipe(epochs=2, average_from=2), tmp_path, with_baselines=True
    )
    assert json.loads((tmp_path / "tokens.json").read_text()) == result
    for part in (result["scores"], result["untrained"]):
        assert set(part) == {"linear", "transformer"}
        assert all(set(kinds) == {"registers", "patches", "global"} for kinds in part.values())
    assert (tmp_path / "tokens.png").exists()
    assert "untrained, linear" in capsys.readouterr().out
    with pytest.raises(UserError, match="use the row `cached`"):
        tokens.run(trained, records, recipes.get_config("as20k"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stream": "video"}, "config.stream='video' must be one of both, audio, visual"),
        ({"loss": "mse"}, "config.loss='mse' must be one of bce, ce"),
        ({"time_shift": True}, "set --config.time_shift=False"),
        ({"mixup": 1.5}, "config.mixup=1.5 must be from 0 to 1"),
        ({"batch_size": 12}, "config.batch_size=12 must be a multiple of 8"),
        ({"batch_size": 64}, "config.batch_size=64 is more than the 20 clips"),
        ({"average_from": 5}, "config.average_from=5 must be from 1 to config.epochs=4"),
        ({"average_from": 0}, "config.average_from=0 must be from 1 to config.epochs=4"),
        ({"heads": 5}, "config.heads=5 must divide the features' width of 32"),
        ({"train_split": "test"}, "no split 'test'"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_told(trained, dataset_dir, overrides, message):
    with pytest.raises(UserError, match=message):
        probe.run(trained, loader.Records(dataset_dir, "eval"), recipe(**overrides))


def test_labels_that_a_probe_needs(trained, dataset_dir, tmp_path, monkeypatch):
    records = loader.Records(dataset_dir, "eval")
    several = np.ones((5, 2), bool)
    monkeypatch.setattr(labels, "read", lambda _: several)
    with pytest.raises(UserError, match="needs one label per clip, but 5 clips"):
        probe.run(trained, records, recipe(loss="ce"))
    with pytest.raises(UserError, match="needs one label per clip, but 5 clips"):
        tokens.run(trained, records, recipe(loss="ce"))
    monkeypatch.undo()
    monkeypatch.setattr(loader.Records, "labels", lambda _: [np.array([], int)] * 5)
    with pytest.raises(UserError, match=r"5 clips have no label \(the first: clip2"):
        probe.run(trained, records, recipe())
    monkeypatch.undo()
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=1.0), tmp_path / "run")
    with pytest.raises(UserError, match="holds no probe's head"):
        probe.run(trained, records, recipe(), head=tmp_path / "run")


def test_untrained_is_another_model_of_the_same_shape(trained):
    plain = common.untrained(trained)
    shapes = [jax.tree.map(jnp.shape, model.params) for model in (plain, trained)]
    assert shapes[0] == shapes[1] and plain.config == trained.config
    kernels = [m.params["norms_both"]["scale"] for m in (plain, trained)]
    assert not np.array_equal(*kernels)
