import media_files
import numpy as np
import pytest
import soundfile
from PIL import Image

from cavmae_sync_jax.media.audio import SAMPLE_RATE
from cavmae_sync_jax.utils.errors import UserError
from data_prep import scene_preview
from data_prep.synthetic import composer, photo_objects
from data_prep.synthetic import objects as scene_objects
from data_prep.synthetic import sprites as scene_sprites


def save_photo(path, colour, size=(90, 70), margin=10):
    picture = np.zeros((size[1], size[0], 4), np.uint8)
    picture[margin:-margin, margin:-margin] = (*colour, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def save_sound(path, hertz, seconds=0.4, rate=44_100):
    soundfile.write(path, media_files.tone(hertz, seconds, rate), rate)


@pytest.fixture
def stamps(tmp_path):
    folder = tmp_path / "stamps"
    save_photo(folder / "animals" / "dog.png", (200, 40, 40))
    save_sound(folder / "animals" / "dog.ogg", 500)
    save_photo(folder / "cat.png", (40, 40, 200))
    save_sound(folder / "cat.wav", 1500, rate=22_050)
    return folder


def test_hidden_files_are_neither_assets_nor_backgrounds(stamps):
    for name in ("._cat.png", "._cat.wav", "animals/._dog.png", "animals/._dog.ogg"):
        (stamps / name).write_bytes(b"\0\5\x16\7")  # as Macs write them beside each file
    assert photo_objects.find_assets(stamps).class_names == ("dog", "cat")
    paths = photo_objects.find_backgrounds(stamps).paths
    assert paths == (stamps / "animals" / "dog.png", stamps / "cat.png")


def test_assets_are_pairs_of_a_photo_and_a_sound(stamps):
    save_photo(stamps / "dumb.png", (9, 9, 9))
    save_photo(stamps / "icon.png", (9, 9, 9), size=(40, 40))
    save_sound(stamps / "icon.ogg", 700)
    save_photo(stamps / "dog_mirror.png", (9, 9, 9))
    (stamps / "dog_mirror.ogg").write_bytes((stamps / "animals" / "dog.ogg").read_bytes())
    save_photo(stamps / "still.png", (9, 9, 9))
    soundfile.write(stamps / "still.wav", np.zeros(8000), 16_000)
    save_photo(stamps / "zoo" / "cat.png", (9, 9, 9))
    save_sound(stamps / "zoo" / "cat.ogg", 900)
    objects = photo_objects.find_assets(stamps)
    assert objects.class_names == ("dog", "cat")
    assert objects.photos[0].shape == (50, 70, 4)
    rng = np.random.default_rng(0)
    sprites = [objects.sprite(0, 40.0, rng) for _ in range(8)]
    assert len({sprite.tobytes() for sprite in sprites}) == 8
    for sprite in sprites:
        assert np.sqrt(sprite.shape[0] * sprite.shape[1]) == pytest.approx(40, rel=0.05)
        red, _, blue = sprite[scene_sprites.opaque(sprite)][:, :3].mean(axis=0)
        assert red > blue + 50
    pitches = []
    for _ in range(8):
        wave = objects.sound(1, 2.0, rng)
        assert len(wave) == 2 * SAMPLE_RATE
        spectrum = np.abs(np.fft.rfft(wave))
        pitches.append(np.argmax(spectrum) / 2)
        assert (np.abs(wave) < 1e-3).mean() > 0.15  # the sound is repeated with pauses
    assert 1500 / 1.25 < min(pitches) < max(pitches) < 1500 * 1.25
    assert np.std(pitches) > 30


def test_real_objects_make_scenes_with_true_masks(stamps, tmp_path):
    objects = photo_objects.find_assets(stamps)
    Image.new("RGB", (60, 90), (0, 200, 0)).save(tmp_path / "lawn.jpg")
    background = photo_objects.find_backgrounds(tmp_path)
    rng = np.random.default_rng(0)
    whole = composer.compose(objects, background, 64, 10.0, rng)
    truth = composer.truth(whole, 16)
    video = composer.render(whole)[::10].astype(int)
    assert len({(event.class_id, event.start) for event in whole.events}) == len(whole.events)
    for class_id, (strong, weak) in {0: (0, 2), 1: (2, 0)}.items():
        pixels = video[truth.frame_mask & (truth.frame_class == class_id)[:, None, None]]
        assert (pixels[:, strong] > pixels[:, weak]).mean() > 0.97 if len(pixels) else True
    assert set(truth.frame_class) & {0, 1}
    lawn = whole.background.reshape(-1, 3)
    assert (lawn[:, 1] > 120).all() and (lawn[:, [0, 2]] < 60).all()


def test_assets_that_cannot_be_used_are_named(stamps, tmp_path):
    def refuses(*names):
        with pytest.raises(UserError) as refusal:
            photo_objects.find_assets(stamps)
        assert all(name in str(refusal.value) for name in names)

    with pytest.raises(UserError, match="is not a folder"):
        photo_objects.find_assets(tmp_path / "nowhere")
    photo, sound = stamps / "cow.png", stamps / "cow.ogg"
    save_sound(sound, 300)
    photo.write_bytes(b"no picture")
    refuses("cow.png")
    save_photo(photo, (9, 9, 9), margin=1)
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    refuses("cow.png", "damaged")
    Image.new("RGBA", (80, 80), (9, 9, 9, 255)).save(photo)
    refuses("cow.png", "no transparent background")
    Image.new("RGBA", (80, 80)).save(photo)
    refuses("cow.png", "transparent everywhere")
    Image.new("1", (5000, 5000)).save(photo)
    refuses("cow.png", "5000 x 5000")
    save_photo(photo, (9, 9, 9))
    sound.write_bytes(b"no sound")
    refuses("cow.ogg")
    save_sound(sound, 300, seconds=70, rate=8000)
    refuses("cow.ogg", "60 s")
    for path in (photo, sound, stamps / "cat.wav"):
        path.unlink()
    refuses(str(stamps), "NAME.png", "NAME.ogg")


def test_backgrounds_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        photo_objects.find_backgrounds(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no pictures"):
        photo_objects.find_backgrounds(tmp_path)
    (tmp_path / "lawn.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"lawn\.jpg"):
        photo_objects.find_backgrounds(tmp_path)


def test_the_contact_sheet_has_a_row_for_each_class(stamps, tmp_path):
    objects = photo_objects.find_assets(stamps)
    sheet = scene_preview.contact_sheet(objects, scene_objects.drawn_background, 2, seed=0)
    assert sheet.height == 2 * 128
    cells = np.asarray(sheet)[:, 150:]
    assert cells[:128].std() > 10 and (cells[:128] != cells[128:]).any()
    arguments = scene_preview._parser().parse_args([str(tmp_path / "sheet.jpg")])
    with pytest.raises(UserError, match=r"must end in \.png"):
        scene_preview.run(arguments)
