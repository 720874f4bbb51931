"""A small untrained model, and one that knows which half of a picture sounds."""

import functools

import jax
import jax.numpy as jnp
import tiny

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import sound_maps
from cavmae_sync_jax.inference import heatmaps
from cavmae_sync_jax.models import cavmae_sync


@functools.cache
def pretrained():
    config = tiny.config()
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(0))
    return Pretrained(module, params, config, 0, "nowhere")


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def heard(module, params, batch):
    """The vector of a window is whether it is low, and its opposite."""
    audio = batch["audio"].mean(axis=2)
    is_low = audio[..., :32].mean(axis=-1) > audio[..., 96:].mean(axis=-1)
    vectors = jnp.stack([is_low, ~is_low], axis=-1).astype(jnp.float32)
    return {"audio": vectors, "distinct": jnp.ones(is_low.shape, bool)}


def planted(module, params, images, sounds, *args, tokens=None, against=(), **settings):
    """Knows that what is low is red and what is high is blue."""
    cells = images.astype(jnp.float32).reshape(len(images), 2, 16, 2, 16, 3).mean(axis=(2, 4))
    red, _, blue = jnp.moveaxis(cells[:, None], -1, 0)
    is_low = (sounds[..., 0] > sounds[..., 1])[..., None, None]
    found = jnp.where(is_low, red > blue, blue > red).astype(jnp.float32)
    return {name: found for name in against} if against else found


def plant(monkeypatch):
    """A model of 16 frames that has the answer, by either map, until the test ends."""
    monkeypatch.setattr(sound_maps, "window_tokens", heard)
    monkeypatch.setattr(heatmaps, "cosine", planted)
    monkeypatch.setattr(heatmaps, "evidence", planted)
    monkeypatch.setattr(heatmaps, "match", lambda module, params, images, sounds: sounds[..., 0])
    return pretrained()._replace(config=tiny.config(data__num_frames=16))
