"""Every config and every variant builds, and a change of a recipe shows in a diff."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync, classifier, masking
from cavmae_sync_jax.training import finetune_step, probing, train_step
from cavmae_sync_jax.utils import cli
from configs import demo, finetune, pretrain, probe

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = pathlib.Path(__file__).parent / "golden"


def test_every_config_file_is_tested():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert files == {"demo", "finetune", "pretrain", "probe"}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("pretrain", pretrain.get_config()),
        ("demo", demo.get_config()),
        ("probe", probe.get_config()),
        ("finetune", finetune.get_config()),
    ],
)
def test_recipes_are_as_committed(name, config):
    golden = GOLDEN / f"{name}.json"
    assert config.to_json(indent=2, sort_keys=True) + "\n" == golden.read_text(), (
        f"the recipe changed: if you mean it, write the new text to {golden}"
    )


def test_both_configs_have_the_same_keys():
    def keys(config, prefix=""):
        for key, value in config.items():
            yield from keys(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key]

    assert set(keys(pretrain.get_config())) == set(keys(demo.get_config()))


def test_every_key_that_a_message_or_a_document_names_is_there():
    known = set()
    for recipe in (pretrain, demo, finetune, probe):
        for key in cli.keys(recipe.get_config()):
            parts = key.split(".")
            known |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    places = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")]
    for folder in ("cavmae_sync_jax", "data_prep", "benchmarks", "configs", "examples"):
        places += (ROOT / folder).rglob("*.py")
    named = [
        (place.name, key)
        for place in places
        for key in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", place.read_text())
    ]
    assert len(named) > 100
    assert [(place, key) for place, key in named if key not in known] == []


@pytest.fixture(scope="module")
def shape_of_step():
    """Runs a whole train step by shapes alone."""

    def trace(config):
        module = cavmae_sync.from_config(config.model)
        optimizer, _ = train_step.make_optimizer(config, 1000, 100.0)
        state = jax.eval_shape(
            lambda k: train_step.init_state(module, optimizer, k), jax.random.key(0)
        )
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        shardings = sharding.state_shardings(state, mesh)
        batch = {
            "audio": jax.ShapeDtypeStruct((8, *module.raw_shape("audio")), jnp.float16),
            "visual": jax.ShapeDtypeStruct((8, *module.raw_shape("visual")), jnp.uint8),
        }
        step_fn = train_step.make_train_step(module, optimizer, config, shardings)
        return (
            module,
            state,
            [
                jax.eval_shape(lambda s, b, r=r: step_fn(s, b, r), state, batch)
                for r in config.mask.ratios
            ],
        )

    return trace


@pytest.mark.release
@pytest.mark.parametrize(
    ("recipe", "variant"),
    [(recipe, variant) for recipe in (pretrain, demo) for variant in recipe.VARIANTS],
)
def test_every_variant_has_a_train_step(recipe, variant, shape_of_step):
    config = recipe.get_config(variant)
    config.loss.contrast_groups = min(config.loss.contrast_groups, 4)
    module, state, results = shape_of_step(config)
    for new_state, scalars in results:
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        assert set(scalars) >= {"loss", "contrast", "nce_accuracy", "grad_norm"}
    flat = {
        k: v for section in config.values() if hasattr(section, "items") for k, v in section.items()
    }
    for key, value in recipe.VARIANTS[variant].items():
        name = key.split(".")[-1]
        assert flat.get(name, config.get(name)) == value
    assert all(
        masking.kept_patches(g.patches, r)
        for g in module.grids.values()
        for r in config.mask.ratios
    )


def test_the_paper_sizes(shape_of_step):
    module, state, _ = shape_of_step(pretrain.get_config())
    assert module.grids == {"audio": (8, 26), "visual": (14, 14)}
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    # 190.661 M in the released file, less its fixed positions and the norms that no pass uses.
    positions = (208 + 196) * (768 + 512)
    unused = (2 * 11 * 4 * 2 * 768) + (8 * 4 * 2 * 512)
    assert count + positions + unused == pytest.approx(190.661e6, abs=500)


def test_variants_combine_and_unknown_ones_are_told():
    config = pretrain.get_config("scale+,mask_0.9")
    assert (config.batch_size, config.mask.ratios) == (128, (0.9,))
    # CAV-MAE's negatives came from a fourth of the batch, which its rows leave to the reader.
    assert pretrain.get_config("scale+").loss.contrast_groups == 1
    assert pretrain.get_config("scale+,contrast_groups_4").loss.contrast_groups == 4
    with pytest.raises(ValueError, match="did you mean 'registers_4'"):
        pretrain.get_config("register_4")
    with pytest.raises((KeyError, AttributeError)):
        config.batchsize = 3


@pytest.mark.parametrize("variant", probe.VARIANTS)
def test_every_probe_has_a_head(variant):
    config = probe.get_config(variant)
    probing.check(config, 8)
    width = 192 if variant == "demo" else 768 * len(probing.STREAMS[config.stream])
    head = probing.make_head(width, 527, config)
    shapes = jax.eval_shape(head.init_params, jax.random.key(0))
    assert shapes["classifier"]["kernel"].shape == (width, 527)
    assert shapes["stack"]["blocks"]["mlp"]["hidden"]["kernel"].shape == (2, width, 4 * width)
    with pytest.raises(ValueError, match="did you mean 'vggsound'"):
        probe.get_config("vggsounds")


def test_headers_state_the_command():
    for path in (ROOT / "configs").glob("*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert re.search(rf"--config=configs/{path.stem}\.py", module.__doc__)
        assert module.__file__ and "cavmae_sync_jax" not in path.read_text().split('"""')[2]


@pytest.mark.parametrize("variant", finetune.VARIANTS)
def test_every_fine_tuning_has_a_classifier(variant):
    config = finetune.get_config(variant)
    with config.unlocked():
        config.classifier.names = ("a", "b")
    finetune_step.check(config)
    assert classifier.from_config(config).classes == 2
    with pytest.raises(ValueError, match="did you mean 'vggsound'"):
        finetune.get_config("vggsounds")
