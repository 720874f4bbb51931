"""Maps of a picture: a hand-made model whose answer is known, and a tiny real one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.inference import heatmaps
from cavmae_sync_jax.models import cavmae_sync, patches
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync, Embedding, Tokens
from cavmae_sync_jax.models.patches import Grid

RED, BLUE = (255, 0, 0), (0, 0, 255)
# What the hand-made model hears: vectors of normalised colours.
SOUNDS = {RED: (1.0, -0.9, -0.8), BLUE: (-0.8, -0.8, 1.0)}


class Colours(CavMaeSync):
    """A model whose global token is the mean colour of the patches that it sees."""

    def encode(self, modality, patches_of, keep=None):
        if keep is not None:
            patches_of = patches.gather(patches_of, keep)
        colours = patches_of.reshape(*patches_of.shape[:2], -1, 3).mean(axis=2)
        return Tokens(None, colours, colours[:, :0])

    def join(self, modality, tokens):
        return Embedding(tokens.patches.mean(axis=1), tokens.patches)


@functools.cache
def colours():
    return Colours(**tiny.config(model__image_size=64, model__image_patch=16).model)


def picture(**places):
    """64 × 64 pixels of ImageNet's mean, which the model sees as nothing, and coloured patches."""
    image = np.tile(np.array(cavmae_sync.IMAGE_MEAN) * 255, (64, 64, 1))
    for colour, (row, column) in places.items():
        span = np.s_[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        image[span] = {"red": RED, "blue": BLUE}[colour]
    return image.astype(np.float32)


def highest(one_map):
    return tuple(int(place) for place in np.unravel_index(np.argmax(one_map), one_map.shape))


@pytest.mark.parametrize(
    ("red", "blue"), [((1, 2), (3, 0)), ((0, 0), (2, 3)), ((3, 3), (3, 2)), ((2, 1), (0, 1))]
)
@pytest.mark.parametrize("against", ["nothing", "bank", "bank_mean"])
def test_evidence_finds_the_planted_patch(red, blue, against):
    sounds = jnp.array([[SOUNDS[RED], SOUNDS[BLUE]]])
    maps = heatmaps.evidence(
        colours(),
        {},
        jnp.asarray(picture(red=red, blue=blue)[None]),
        sounds,
        sounds[0],
        against=(against,),
        sets=128,
        share=0.25,
        smoothing=0.3,
        temperature=1.0,
    )[against]
    assert maps.shape == (1, 2, 4, 4) and maps.dtype == jnp.float32
    assert [highest(one) for one in maps[0]] == [red, blue]
    # What sounds otherwise speaks against the sound.
    assert maps[0, 0][blue] < 0 and maps[0, 1][red] < 0


def test_what_is_there_speaks_against_another_sound():
    sounds = jnp.array([[SOUNDS[RED], SOUNDS[BLUE]]])
    images = jnp.asarray(picture(red=(1, 1))[None])
    kinds = ("bank", "nothing", "bank_mean")
    maps = heatmaps.evidence(colours(), {}, images, sounds, sounds[0], against=kinds, share=0.25)
    for of_kind in maps.values():
        assert highest(of_kind[0, 0]) == highest(-of_kind[0, 1]) == (1, 1)
    # Of a bank that has no other sound, nothing is left.
    alone = heatmaps.evidence(
        colours(), {}, images, sounds[:, :1], sounds[0, :1], against=("bank_mean",), share=0.25
    )
    np.testing.assert_allclose(alone["bank_mean"], 0, atol=1e-5)


def test_the_cosine_of_every_patch():
    images = jnp.asarray(picture(red=(1, 2), blue=(3, 0))[None])
    sounds = jnp.array([[SOUNDS[RED], SOUNDS[BLUE], (0.0, -2.0, 0.0)]])
    maps = np.asarray(heatmaps.cosine(colours(), {}, images, sounds))
    normalised = (np.array(RED) / 255 - cavmae_sync.IMAGE_MEAN) / cavmae_sync.IMAGE_STD
    expected = normalised @ np.array([1.0, -0.9, -0.8])
    expected /= np.linalg.norm(normalised) * np.linalg.norm([1.0, -0.9, -0.8])
    assert maps[0, 0, 1, 2] == pytest.approx(expected, abs=1e-5)
    normalised = (np.array(BLUE) / 255 - cavmae_sync.IMAGE_MEAN) / cavmae_sync.IMAGE_STD
    assert maps[0, 2, 3, 0] == pytest.approx(-normalised[1] / np.linalg.norm(normalised), abs=1e-5)


def test_the_match_of_the_whole_picture():
    images = jnp.asarray(np.stack([picture(red=(1, 2)), picture(blue=(0, 0))]))
    sounds = jnp.tile(jnp.array([SOUNDS[RED], SOUNDS[BLUE]]), (2, 1, 1))
    found = np.asarray(heatmaps.match(colours(), {}, images, sounds))
    for row, colour in enumerate((RED, BLUE)):
        normalised = (np.array(colour) / 255 - cavmae_sync.IMAGE_MEAN) / cavmae_sync.IMAGE_STD
        for column, sound in enumerate(SOUNDS.values()):
            expected = normalised @ sound / np.linalg.norm(normalised) / np.linalg.norm(sound)
            assert found[row, column] == pytest.approx(expected, abs=1e-5)
    assert found[0, 0] > 0.9 > 0 > found[0, 1]


@pytest.mark.parametrize(("sets", "share"), [(64, 0.125), (30, 0.25), (7, 0.4)])
@pytest.mark.parametrize("count", [16, 36])
def test_every_patch_is_kept_equally_often(sets, share, count):
    keep = heatmaps.kept_sets(count, sets, share, seed=3)
    assert keep.shape == (sets, round(count * share))
    assert all(len(set(row)) == len(row) for row in keep.tolist())
    counts = np.bincount(keep.ravel(), minlength=count)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(keep, heatmaps.kept_sets(count, sets, share, seed=3))
    assert heatmaps.kept_sets(count, sets, 0.001, seed=3).shape == (sets, 1)
    assert (keep != heatmaps.kept_sets(count, sets, share, seed=4)).any()


def test_the_estimator_undoes_a_sum_over_the_kept_patches():
    grid = Grid(4, 4)
    keep = heatmaps.kept_sets(16, 200, 0.25, seed=0)
    adds = np.random.default_rng(1).normal(size=16)
    scores = adds[keep].sum(axis=1) + 5
    found = heatmaps.estimator(keep, grid, smoothing=0.0, noise=1e-6) @ scores
    # Sets of equal sizes can't tell what every patch adds alike.
    np.testing.assert_allclose(found, adds - adds.mean(), atol=1e-3)
    smooth = heatmaps.estimator(keep, grid, smoothing=1.0, noise=30.0)
    np.testing.assert_allclose(smooth @ np.ones(200), 0, atol=1e-5)


def test_with_much_noise_the_estimator_is_a_difference_of_means():
    keep = heatmaps.kept_sets(9, 90, 1 / 3, seed=0)
    scores = np.random.default_rng(1).normal(size=90)
    kept = np.array([[patch in row for row in keep] for patch in range(9)])
    means = np.array([scores[row].mean() - scores[~row].mean() for row in kept])
    found = heatmaps.estimator(keep, Grid(3, 3), smoothing=0.0, noise=1e6) @ scores
    # The difference has a share of 30 kept and 60 hidden sets, which is 20 in units of the noise.
    np.testing.assert_allclose(found * 1e6, 20 * means, rtol=1e-3)
    smoothed = heatmaps.estimator(keep, Grid(3, 3), smoothing=0.7, noise=1e6) @ scores * 1e6
    nearest = np.exp(-1 / (4 * 0.7**2))
    weights = [nearest ** (abs(row - 1) ** 2 + abs(col - 1) ** 2) for row, col in np.ndindex(3, 3)]
    assert smoothed[4] == pytest.approx(20 * np.dot(weights, means), rel=1e-3)


@functools.cache
def real(global_token=True):
    config = tiny.config(model__image_size=64, model__global_token=global_token)
    module = cavmae_sync.from_config(config.model)
    return module, jax.jit(module.init_params)(jax.random.key(0))


@functools.cache
def given():
    generator = np.random.default_rng(0)
    images = generator.integers(256, size=(8, 64, 64, 3)).astype(np.uint8)
    sounds, bank = (
        generator.normal(size=shape).astype(np.float32) for shape in ((8, 2, 16), (5, 16))
    )
    return images, sounds, bank


def real_maps(images, sounds, bank, mesh=None, **settings):
    module, params = real()
    settings = {"sets": 24, "share": 0.25, "against": ("bank", "bank_mean")} | settings
    if mesh is None:
        found = heatmaps.evidence(module, params, images, sounds, bank, **settings)
    else:
        layout = sharding.batch_sharding(mesh)
        images, sounds = (jax.device_put(rows, layout) for rows in (images, sounds))
        with jax.set_mesh(mesh):
            params = jax.device_put(params, sharding.replicated(mesh))
            bank = jax.device_put(bank, sharding.replicated(mesh))
            found = heatmaps.evidence(module, params, images, sounds, bank, **settings)
        assert len(found["bank"].sharding.device_set) == mesh.size
    return jax.device_get(found)


def test_the_same_maps_on_one_and_on_eight_devices():
    one = real_maps(*given(), mesh=sharding.make_mesh(devices=jax.devices()[:1]))
    eight = real_maps(*given(), mesh=sharding.make_mesh())
    for name, maps in one.items():
        np.testing.assert_allclose(eight[name], maps, atol=1e-5)
        assert np.ptp(maps) > 1e-3


@pytest.mark.release
def test_a_map_depends_on_its_picture_alone():
    images, sounds, bank = given()
    whole = real_maps(images, sounds, bank)["bank"]
    # With a rest, and one set at a time.
    for chunk in (7, 1):
        chunked = real_maps(images, sounds, bank, chunk=chunk)["bank"]
        np.testing.assert_allclose(chunked, whole, atol=1e-5)
    part = real_maps(images[3:5], sounds[3:5, 1:], bank)["bank"]
    np.testing.assert_allclose(part, whole[3:5, 1:], atol=1e-5)
    assert np.abs(real_maps(images, sounds, bank, seed=1)["bank"] - whole).max() > 1e-3
    # The length of a sound's vector says nothing.
    np.testing.assert_allclose(real_maps(images, 3 * sounds, bank)["bank"], whole, atol=1e-5)


def test_evidence_by_hand():
    module, params = real()
    images, sounds, bank = given()
    keep = heatmaps.kept_sets(16, 24, 0.25, seed=0)

    def embed(model, raw, kept):
        encoded = model.encode("visual", model.patchify("visual", raw), kept)
        return model.join("visual", encoded).global_token

    first = jnp.asarray(images[:1])
    run = jax.jit(lambda kept: module.apply({"params": params}, first, kept, method=embed))
    seen = np.concatenate([np.asarray(run(row[None])) for row in keep])
    seen, heard, others = (
        x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (seen, sounds[0, 0], bank)
    )
    own, of_bank = seen @ heard / 0.05, seen @ others.T / 0.05
    scores = {
        "bank": own - np.log(np.exp(of_bank).mean(axis=1)),
        "bank_mean": own - of_bank.mean(axis=1),
    }
    weights = heatmaps.estimator(keep, Grid(4, 4), heatmaps.SMOOTHING, heatmaps.NOISE)
    found = real_maps(*given())
    for name, of_sets in scores.items():
        np.testing.assert_allclose(found[name][0, 0].ravel(), weights @ of_sets, atol=1e-4)


def test_a_model_without_a_global_token_has_maps():
    module, params = real(global_token=False)
    images, sounds, _ = given()
    maps = heatmaps.evidence(module, params, images, sounds, sets=24, share=0.25)["nothing"]
    assert maps.shape == (8, 2, 4, 4) and np.ptp(maps) > 1e-3
    assert heatmaps.cosine(module, params, images, sounds).shape == (8, 2, 4, 4)


def test_what_makes_no_map():
    images, sounds, bank = given()
    with pytest.raises(ValueError, match="needs a bank"):
        real_maps(images, sounds, None)
    for settings in ({"sets": 1}, {"share": 0.98}, {"share": 1.0}):
        with pytest.raises(ValueError, match=r"must be at least 2, and a set .* must hide some"):
            real_maps(images, sounds, bank, **settings)
