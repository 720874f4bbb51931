"""Fine-tuning on real (tiny) videos: it resumes exactly, and is scored in all modes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax import finetune
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import initial_params, load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.data.records import FIELDS, TRUTH
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import classify, common, reconstruction
from cavmae_sync_jax.models import classifier
from cavmae_sync_jax.training import augmentation, finetune_step, train_step
from cavmae_sync_jax.utils.errors import UserError
from configs import finetune as recipes


def lines(workdir, split):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="module")
def finished(dataset_dir, pretrained, tmp_path_factory):
    """An uninterrupted run of 10 steps."""
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny.finetuning(dataset_dir, init_from=str(pretrained))
    return config, workdir, finetune.train_and_evaluate(config, workdir)


@pytest.mark.release
def test_a_run_leaves_a_classifier_and_its_scores(finished):
    _, workdir, scores = finished
    (final,) = lines(workdir, "eval")
    result = json.loads((workdir / "evals" / "classify.json").read_text())
    assert set(result["scores"]) == {"both", "audio_alone", "visual_alone"}
    for mode, of_mode in result["scores"].items():
        assert {"mAP", "AUC", "accuracy"} <= set(of_mode)
        for name, value in of_mode.items():
            assert final[f"{mode}/{name}"] == scores[f"{mode}/{name}"] == value
            low, high = result["intervals"][mode][name]
            assert low <= high
    assert set(result["classes"]) == {"even", "odd"}
    assert (workdir / "evals" / "classify.png").read_bytes().startswith(b"\x89PNG")
    assert load(workdir).config.classifier.names == ["even", "odd"]


def test_what_is_loaded_is_the_average_of_the_last_epochs(finished):
    _, workdir, _ = finished
    with manager.opened(workdir) as stored:
        trees = stored.arrays("params", "average", "averaged")
    assert int(trees["averaged"]) == 3  # after the steps 5, 8 (7.5) and 10
    loaded = jax.device_get(load(workdir).params)
    jax.tree.map(np.testing.assert_array_equal, loaded, trees["average"])
    assert not np.array_equal(
        trees["params"]["head"]["classifier"]["kernel"], loaded["head"]["classifier"]["kernel"]
    )


def test_interrupted_and_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch):
    config, workdir, _ = finished
    real = finetune.FineTuning.batches

    def some(self, examples):
        for number, batch in enumerate(real(self, examples)):
            if number == 7:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune.FineTuning, "batches", some)
        finetune.train_and_evaluate(config, tmp_path)
    assert max(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == 6
    finetune.train_and_evaluate(config, tmp_path)
    for split in ("train", "eval"):
        rows = (lines(path, split) for path in (tmp_path, workdir))
        for mine, other in zip(*rows, strict=True):
            assert mine | {"examples_per_second": 0, "data_wait": 0} == other | {
                "examples_per_second": 0,
                "data_wait": 0,
            }
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.device_get(load(p).params) for p in (tmp_path, workdir)),
    )
    with pytest.raises(UserError, match=r"config.mixup was 0.5 and is now 0.0"):
        finetune.train_and_evaluate(tiny.finetuning(config.data.dir, mixup=0.0), tmp_path)


def test_a_run_beyond_its_new_end_is_refused(finished):
    config, workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    shorter = config.copy_and_resolve_references()
    shorter.epochs = 2.0
    with pytest.raises(UserError, match="is at step 10, but these settings end at step 5: raise"):
        finetune.train_and_evaluate(shorter, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_held_out_clips_without_labels_are_refused_before_it_begins(dataset_dir, monkeypatch):
    config = tiny.finetuning(dataset_dir)
    monkeypatch.setattr(loader.Records, "labels", lambda self: [np.array([], int)] * len(self))
    with pytest.raises(UserError, match="split eval: 5 clips have no label"):
        finetune.FineTuning(config)  # a run that resumes begins so, too
    config.data.eval_split = ""
    assert finetune.FineTuning(config).held_out is None


def test_it_begins_with_the_pretrained_weights(pretrained):
    config = tiny.finetuning()
    with config.unlocked():
        config.classifier.names = ("a", "b")
    module = classifier.from_config(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params, source = initial_params(pretrained, module, mesh), load(pretrained).params
    assert "decoder" not in params and params["head"]["classifier"]["kernel"].shape == (16, 2)
    for name in ("joint", "norms_both"):
        jax.tree.map(np.testing.assert_array_equal, params[name], source[name])
    assert params["encoders_audio"]["positions"].shape == (1, 48, 16)  # learned from here on
    with pytest.raises(UserError, match=r"registers.*instead of"):
        wider = module.clone(registers=4)
        initial_params(pretrained, wider, mesh)


@pytest.fixture(scope="module")
def gradients():
    """The loss and the gradients of a batch by an overridden recipe, on one device or several."""
    rng = np.random.default_rng(0)
    shapes = {"audio": (8, 96, 128), "visual": (8, 32, 32, 3)}
    batch = {
        "audio": rng.normal(-5, 4, shapes["audio"]).astype(np.float32),
        "visual": rng.integers(0, 256, shapes["visual"], np.uint8),
        TRUTH: np.eye(2, dtype=bool)[rng.integers(2, size=8)],
    }

    def compute(data=1, fsdp=1, **overrides):
        config = tiny.finetuning(**overrides)
        with config.unlocked():
            config.classifier.names = ("a", "b")
        module = classifier.from_config(config)
        params = jax.jit(module.init_params)(jax.random.key(0))
        mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        params = jax.device_put(params, sharding.state_shardings(params, mesh))
        arrays = jax.device_put(batch, sharding.batch_sharding(mesh))

        def step(params, arrays):
            return finetune_step.loss_and_grads(module, config, params, arrays, jnp.int32(3))

        with jax.set_mesh(mesh):
            return jax.device_get(jax.jit(step)(params, arrays))

    return compute


@pytest.mark.parametrize("setting", [{"microbatches": 4}, {"data": 2, "fsdp": 2}], ids=str)
def test_parts_and_devices_change_nothing(gradients, setting):
    loss, grads = gradients()
    again, others = gradients(**setting)
    assert again["loss"] == pytest.approx(loss["loss"], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, others)


def test_sounds_are_mixed_by_their_energies():
    rng = np.random.default_rng(0)
    sounds = rng.normal(-5, 2, (64, 6, 3)).astype(np.float32)
    sounds[:32, 4:] = 0  # padding
    raw = {"audio": jnp.asarray(sounds)}
    mixed, soft = augmentation.mix(jax.random.key(0), 1.0, raw, jnp.eye(64))
    soft = np.asarray(soft)
    for row, mixture in zip(soft, np.asarray(mixed["audio"]), strict=True):
        energy, there = np.zeros((6, 3)), np.zeros((6, 1), bool)
        for clip in np.flatnonzero(row):
            known = (sounds[clip] != 0).any(axis=1, keepdims=True)
            energy += np.where(known, row[clip] ** 2 * np.exp(sounds[clip]), 0)
            there |= known
        if np.count_nonzero(row) == 2:  # one clip of its own would be mixed with itself
            expected = np.where(there, np.log(np.where(there, energy, 1)), 0)
            np.testing.assert_allclose(mixture, expected, atol=1e-4)
    untouched, _ = augmentation.mix(jax.random.key(0), 0.0, raw, jnp.eye(64))
    np.testing.assert_allclose(untouched["audio"], sounds, atol=1e-6)


def test_spans_of_time_and_frequency_are_hidden():
    sounds = jnp.ones((64, 40, 20))
    masked = np.asarray(augmentation.mask_audio(jax.random.key(0), sounds, 10, 6))
    hidden = masked == 0
    rows, bins = hidden.all(axis=2).sum(axis=1), hidden.all(axis=1).sum(axis=1)
    assert rows.max() == 9 and rows.min() == 0 and bins.max() == 5 and bins.min() == 0
    for sample, length in zip(hidden, rows, strict=True):
        whole = np.flatnonzero(sample.all(axis=1))
        assert len(whole) == length and (np.diff(whole) == 1).all()
    assert hidden[:, 0].any() and hidden[:, -1].any()
    assert not (np.asarray(augmentation.mask_audio(jax.random.key(0), sounds, 0, 0)) == 0).any()


def test_rare_classes_are_drawn_as_often_and_resumed(dataset_dir):
    records = loader.Records(dataset_dir, "train", (*FIELDS, "labels"))
    weights = np.zeros(20)
    weights[[3, 11]] = 0.75, 0.25
    drawn = np.array(loader.order(20, 0, 0, 2000, weights))
    assert set(drawn) == {3, 11} and (drawn == 3).mean() == pytest.approx(0.75, abs=0.03)
    assert loader.order(20, 0, 990, 10, weights) == drawn[990:1000].tolist()
    spec = loader.PairSpec.of(tiny.finetuning())
    batch = next(loader.train_batches(records, spec, 8, 0, 16, 0, 1, weights))
    assert batch["clip"].tolist() == drawn[16:24].tolist()
    assert batch[TRUTH].shape == (8, 2) and batch[TRUTH].sum(axis=1).tolist() == [1] * 8


def test_averages_end_with_their_epochs():
    assert train_step.ends_of_epochs(2, 10, 2.5) == (5, 8, 10)
    assert train_step.ends_of_epochs(1, 12, 6.0) == (6, 12)


@pytest.mark.parametrize("variant", ["as20k", "as2m", "vggsound,global", "as20k,cav_mae,audio"])
def test_a_step_of_each_recipe_at_full_size_has_its_shapes(variant):
    config = recipes.get_config(variant)
    with config.unlocked():
        config.classifier.names = tuple(map(str, range(527)))
    finetune_step.check(config)
    module = classifier.from_config(config)
    optimizer, _ = finetune_step.make_optimizer(module, config, 1000, 100.0)
    state = jax.eval_shape(
        lambda k: finetune_step.init_state(module, optimizer, k), jax.random.key(0)
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step = finetune_step.make_step(
        module, optimizer, config, sharding.state_shardings(state, mesh), (1000,)
    )
    batch = train_step.abstract_batch(module, 4, mesh)
    batch[TRUTH] = jax.ShapeDtypeStruct((4, 527), bool)
    after, scalars = jax.eval_shape(step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert set(scalars) == {"loss", "grad_norm", "update_norm"}
    values = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert values == pytest.approx(164.6e6, rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"classifier__stream": "video"}, "classifier.stream='video' must be one of both, audio"),
        ({"classifier__loss": "mse"}, "classifier.loss='mse' must be one of bce, ce"),
        ({"average_from": 9}, "average_from=9 must be from 1 to config.epochs=4"),
        ({"epochs": np.inf}, "config.epochs=inf must be a finite number"),
        ({"epochs": 0.5}, "config.epochs=0.5 must be at least 1: the weights after whole epochs"),
        ({"adam_b2": 1.0}, "adam_b2=1.0 must be from 0 to below 1"),
        ({"mixup": 1.5}, "config.mixup=1.5 must be from 0 to 1"),
        ({"head_rate_factor": 0.0}, "head_rate_factor=0.0 must be above 0"),
        ({"halving_every": 0}, "halving_every=0 must be at least 1"),
        ({"batch_size": 12}, "batch_size=12 must be a multiple of 8 devices"),
        ({"batch_size": 24}, "batch_size=24 is more than the 20 clips"),
        ({"data__eval_split": "test"}, "no split 'test'"),
    ],
    ids=str,
)
def test_settings_are_refused_before_anything_is_written(dataset_dir, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        finetune.train_and_evaluate(tiny.finetuning(dataset_dir, **overrides), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_clips_without_a_label_are_refused(dataset_dir, tmp_path, monkeypatch, loss):
    config = tiny.finetuning(dataset_dir, classifier__loss=loss, data__eval_split="")
    with_labels = loader.Records.labels

    def one_without(records):
        return [np.array([], int), *with_labels(records)[1:]]

    monkeypatch.setattr(loader.Records, "labels", one_without)
    with pytest.raises(UserError, match=r"split train: 1 clips have no label \(the first: clip"):
        finetune.train_and_evaluate(config, tmp_path / "x")


def test_only_a_fine_tuned_model_of_the_same_classes_is_scored(finished, pretrained, tmp_path):
    config, workdir, _ = finished
    records = loader.Records(config.data.dir, "eval")
    with pytest.raises(UserError, match="is not a fine-tuned model"):
        classify.run(load(pretrained), records)
    model = load(workdir)
    other = model.config.copy_and_resolve_references()
    other.classifier.names = ("cat", "dog")
    with pytest.raises(UserError, match=r"knows 2 classes and .* has 2, which are not the same"):
        classify.run(model._replace(config=other), records)
    # Only what began without pre-training counts as that, and both see the same frames.
    with pytest.raises(UserError, match=r"--from_scratch=.* began with the weights of .*: name a"):
        classify.run(model, records, scratch=model)
    fresh = model.config.copy_and_resolve_references()
    fresh.init_from = ""
    one_frame = common.with_frames(model, num_frames=1)
    scratch = model._replace(config=fresh)
    result = classify.run(one_frame, records, tmp_path, scratch=scratch)
    assert result["baselines"][classify.SCRATCH] == result["scores"]["both"]
    assert classify._comparable(scratch, one_frame).config.data.num_frames == 1
    assert scratch.config.data.num_frames == 4
    fresh.classifier.stream = "audio"
    with pytest.raises(UserError, match=r"was trained with the stream .audio., and .* with .both."):
        classify.run(model, records, scratch=model._replace(config=fresh))
    copied = shutil.copytree(workdir, tmp_path / "copy")
    assert load(copied).encode_image(np.zeros((1, 32, 32, 3), np.uint8)).global_token.shape == (
        1,
        16,
    )


def test_a_model_without_a_decoder_reconstructs_nothing(finished):
    config, workdir, _ = finished
    with pytest.raises(UserError, match="is a fine-tuned model and has no decoder"):
        reconstruction.run(load(workdir), loader.Records(config.data.dir, "eval"))
