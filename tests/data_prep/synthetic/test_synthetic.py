import numpy as np
import pytest
from PIL import Image

from cavmae_sync_jax.media.audio import SAMPLE_RATE
from data_prep.synthetic import composer, objects, sounds, sprites
from data_prep.synthetic.composer import SceneSegment

OBJECTS = objects.BuiltInObjects()
CLASSES = len(OBJECTS.class_names)


def solo(class_id, rng, seconds=3.0, size=64):
    alone = [SceneSegment(0.0, seconds, ((class_id, True),))]
    return composer.stage(OBJECTS, objects.drawn_background, size, alone, rng)


def rms(wave):
    return np.sqrt(np.mean(np.square(wave)))


def neighbours_accuracy(values, classes, count=9):
    """Leave-one-out accuracy of the vote of the nearest neighbours on one number."""
    distance = np.abs(values[:, None] - values[None]).astype(float)
    np.fill_diagonal(distance, np.inf)
    nearest = classes[np.argsort(distance, axis=1, kind="stable")[:, :count]]
    votes = (nearest[:, :, None] == np.arange(CLASSES)).sum(axis=1).argmax(axis=1)
    return (votes == classes).mean()


def test_no_single_property_tells_the_class_but_the_shape_does():
    rows, silhouettes, classes = [], [], []
    for class_id in range(CLASSES):
        for instance in range(25):
            whole = solo(class_id, np.random.default_rng([class_id, instance]))
            layer = whole.layers[0]
            sprite = layer.sprites[-1]
            opaque = sprites.opaque(sprite)
            hsv = np.asarray(Image.fromarray(sprite[:, :, :3]).convert("HSV"))[opaque]
            wave = whole.waveform
            spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
            rows.append(
                {
                    "hue": np.angle(np.exp(2j * np.pi * hsv[:, 0] / 256).mean()),
                    "size": np.sqrt(opaque.size),
                    "row": layer.centre[0],
                    "column": layer.centre[1],
                    "loudness": np.log(rms(wave)),
                    "pitch": np.log(np.argmax(spectrum) / len(wave) * SAMPLE_RATE),
                }
            )
            alpha = Image.fromarray(sprite[:, :, 3]).resize((12, 12))
            silhouettes.append(np.asarray(alpha, np.float32).ravel())
            classes.append(class_id)
    classes = np.array(classes)
    for name in rows[0]:
        accuracy = neighbours_accuracy(np.array([row[name] for row in rows]), classes)
        assert accuracy < 0.16, name  # chance is 0.083, its standard error 0.016
    silhouettes = np.stack(silhouettes)
    distance = np.linalg.norm(silhouettes[:, None] - silhouettes[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (classes[distance.argmin(axis=1)] == classes).mean() > 0.9


@pytest.mark.parametrize("family", sounds.FAMILIES)
def test_a_sound_has_its_length_and_is_never_the_same(family):
    for seconds in (0.8, 2.0, 10.0):
        wave = sounds.play(family, seconds, np.random.default_rng(1))
        assert wave.shape == (round(seconds * SAMPLE_RATE),)
        assert np.isfinite(wave).all() and rms(wave) > 1e-3
    one, other = (sounds.play(family, 2.0, np.random.default_rng(k)) for k in (1, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@pytest.mark.parametrize("shape", sprites.SHAPES)
def test_a_sprite_has_its_size_and_covers_what_it_should(shape):
    rng = np.random.default_rng(0)
    for extent in (20.0, 60.0):
        sprite = sprites.draw_sprite(shape, extent, rng)
        assert np.sqrt(sprite.shape[0] * sprite.shape[1]) == pytest.approx(extent, rel=0.05)
        share = sprites.opaque(sprite).mean()
        assert 0.1 < share < 0.8
        for edge in (sprite[0], sprite[-1], sprite[:, 0], sprite[:, -1]):
            assert edge[:, 3].any()
