"""Random changes of a batch, on the device: noise, shifts, masks and mixtures."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cavmae_sync_jax.utils.modalities import AUDIO

MIXUP_CONCENTRATION = 10.0  # of the Beta distribution that λ comes from


def augment_audio(
    key: jax.Array, fbank: Float[Array, "batch rows bins"], std: float
) -> Float[Array, "batch rows bins"]:
    """CAV-MAE's augmentation: uniform noise and a circular time shift, drawn for each sample.

    Args:
      key: the batch's random key.
      fbank: raw log-mel windows.
      std: of the normalisation; the noise's amplitude of up to 0.1 is meant after it.
    """

    def one(key: jax.Array, window: Float[Array, "rows bins"]) -> Float[Array, "rows bins"]:
        noise_key, amplitude_key, shift_key = jax.random.split(key, 3)
        amplitude = jax.random.uniform(amplitude_key) * std / 10
        shift = jax.random.randint(shift_key, (), 0, window.shape[0])
        noise = jax.random.uniform(noise_key, window.shape) * amplitude
        return jnp.roll(window + noise, shift, axis=0)

    return jax.vmap(one)(jax.random.split(key, fbank.shape[0]), fbank)


def mask_audio(
    key: jax.Array, fbank: Float[Array, "batch rows bins"], rows: int, bins: int
) -> Float[Array, "batch rows bins"]:
    """SpecAugment (Park et al. 2019): one span of rows and one of bins of each sample become 0.

    A span's length is uniform up to the given one, and its place uniform among those that fit.

    Args:
      key: the batch's random key.
      fbank: raw log-mel windows.
      rows: the longest span in time; 0 masks none.
      bins: the widest span in frequency; 0 masks none.
    """

    def span(key: jax.Array, size: int, longest: int) -> Array:
        length_key, place_key = jax.random.split(key)
        length = jax.random.uniform(length_key) * min(longest, size)
        first = (jax.random.uniform(place_key) * (size - length)).astype(jnp.int32)
        places = jnp.arange(size)
        return (places >= first) & (places < first + length.astype(jnp.int32))

    def one(key: jax.Array, window: Float[Array, "rows bins"]) -> Float[Array, "rows bins"]:
        row_key, bin_key = jax.random.split(key)
        hidden = span(row_key, window.shape[0], rows)[:, None]
        hidden = hidden | span(bin_key, window.shape[1], bins)[None]
        return jnp.where(hidden, 0, window)

    return jax.vmap(one)(jax.random.split(key, fbank.shape[0]), fbank)


def mix(
    key: jax.Array, share: float, raw: Mapping[str, Array], truth: Float[Array, "batch classes"]
) -> tuple[dict[str, Array], Float[Array, "batch classes"]]:
    """Mixup: a share of the clips becomes λ of itself and 1 - λ of another of the batch.

    CAV-MAE mixes waveforms, so that energies add up as λ² and (1 - λ)², but for what the two sounds
    have in common. So do the log-mels here.

    Args:
      key: of the batch.
      share: how many, on average.
      raw: arrays whose first axis is the batch. `audio` is raw log-mel, of which rows of zeros are
        padding; all others are mixed linearly.
      truth: labels, mixed linearly.
    """
    chosen_key, other_key, weight_key = jax.random.split(key, 3)
    batch = truth.shape[0]
    other = jax.random.permutation(other_key, batch)
    weight = jax.random.beta(weight_key, MIXUP_CONCENTRATION, MIXUP_CONCENTRATION, (batch,))
    weight = jnp.where(jax.random.uniform(chosen_key, (batch,)) < share, weight, 1)

    def blend(x: Array, of_sound: bool = False) -> Array:
        w = weight.reshape(-1, *[1] * (x.ndim - 1))
        return _mix_sounds(w, x, x[other]) if of_sound else w * x + (1 - w) * x[other]

    mixed = {name: blend(x.astype(jnp.float32), name == AUDIO) for name, x in raw.items()}
    return mixed, blend(truth)


def _mix_sounds(weight: Array, first: Array, second: Array) -> Array:
    """Log-mels of `weight` · first + (1 - `weight`) · second, by their energies."""

    def energy(share: Array, log_mel: Array) -> Array:
        silent = (log_mel == 0).all(axis=-1, keepdims=True)
        return jnp.where(silent, -jnp.inf, log_mel + 2 * jnp.log(share))

    parts = energy(weight, first), energy(1 - weight, second)
    nothing = jnp.isneginf(parts[0]) & jnp.isneginf(parts[1])
    mixed = jnp.logaddexp(*(jnp.where(nothing, 0, part) for part in parts))
    return jnp.where(nothing, 0, mixed)
