"""Whatever a user names gets one sentence from every way to use a model, and costs nothing else."""

import io
import struct
import subprocess
import sys
import warnings

import media_files
import numpy as np
import pytest
import soundfile
import tiny
from long_file import write_long_video
from media_files import noise, noisy_video
from PIL import ExifTags, Image, ImageOps

from cavmae_sync_jax import embed, localize, search
from cavmae_sync_jax.inference import reading
from cavmae_sync_jax.inference.index.store import Index
from cavmae_sync_jax.utils.errors import UserError

# What is said of a file where its sound, and where its picture, is asked for; None: it is taken.
SAID = {
    "nothing.mp4": ("there is no file", "there is no file"),
    "folder.mp4": ("is a folder: give a file", "is a folder: give a file"),
    "text.mp4": ("can't be read", "can't be read"),
    "text.wav": ("can't be read", "can't be read"),
    "empty.wav": ("can't be read", "can't be read"),
    "mute.mp4": ("has no audio stream: a video needs one", "has no audio stream"),
    "broken.mp4": ("can't be read: Input/output error", "can't be read: Input/output error"),
    "phone.heic": ("is a HEIF picture: save it as a JPEG", "is a HEIF picture: save it as a JPEG"),
    "phone.jpg": ("is a HEIF picture: save it as a JPEG", "is a HEIF picture: save it as a JPEG"),
    "blind.mp4": (None, "is a sound"),
    "40ms.wav": (None, "is a sound"),
    "15ms.wav": ("has 15 ms of sound: 25 ms are the shortest", "is a sound"),
    "nan.wav": ("has samples that are no sound", "is a sound"),
    "nan.mov": ("has samples that are no sound", "is a video"),
    "left.mov": ("silent in its first channel, which is the one that counts", "is a video"),
    "left.wav": ("silent in its first channel, which is the one that counts", "is a sound"),
    "huge.png": ("is a picture", "pixels"),
    "wide.png": ("is a picture", "has a picture of 30000 x 4000"),
    "strip.png": ("is a picture", "has a picture of 3000 x 20"),
    "cut.png": ("is a picture", "cut.png"),
    "deep.png": ("is a picture", "has the colours I;16, not RGB: save it as RGB with 8 bits"),
    "real.tif": ("is a picture", "has the colours F, not RGB: save it as RGB with 8 bits"),
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder with the files of `SAID`, and a good one of each kind beside it."""
    folder = tmp_path_factory.mktemp("bad") / "bad"
    folder.mkdir()
    (folder / "folder.mp4").mkdir()
    for name in ("text.mp4", "text.wav"):
        (folder / name).write_text("nothing to see or to hear\n" * 50)
    (folder / "empty.wav").write_bytes(b"")
    media_files.make_video(folder / "mute.mp4", codecs=("libx264", None))
    media_files.make_video(folder / "blind.mp4", codecs=(None, "aac"))
    for milliseconds in (40, 15):
        soundfile.write(folder / f"{milliseconds}ms.wav", noise(1)[: 16 * milliseconds], 16_000)
    wave = noise(2)
    wave[5000:5100] = np.nan
    soundfile.write(folder / "nan.wav", wave, 16_000, subtype="FLOAT")
    media_files.make_video(
        folder / "nan.mov", seconds=2, waves=wave[None], codecs=("mpeg4", "pcm_f32le")
    )
    right = np.stack([np.zeros(32_000), noise(2)])
    soundfile.write(folder / "left.wav", right.T, 16_000)
    media_files.make_video(
        folder / "left.mov", seconds=2, waves=right, layout="stereo", codecs=("mpeg4", "pcm_s16le")
    )
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    Image.new("RGB", (3000, 20)).save(folder / "strip.png")
    (folder / "broken.mp4").symlink_to("/proc/self/mem")  # its first byte can't be read
    # A phone's pictures begin so, whatever they are called later.
    (folder / "phone.heic").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic")
    (folder / "phone.jpg").write_bytes(b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic")
    Image.new("1", (30_000, 4000)).save(folder / "wide.png")
    (folder / "cut.png").write_bytes((folder / "strip.png").read_bytes()[:60])
    Image.fromarray(np.full((20, 30), 30_000, np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((20, 30), 0.5, np.float32)).save(folder / "real.tif")
    noisy_video(folder.parent / "good.mp4", 3)
    soundfile.write(folder.parent / "good.wav", noise(2), 16_000)
    Image.new("RGB", (40, 40), (200, 30, 30)).save(folder.parent / "good.png")
    return folder


@pytest.fixture(scope="module")
def index(bad, model):
    folder = bad.parent
    files = [str(folder / f"good.{suffix}") for suffix in ("mp4", "wav", "png")]
    embed.run(model, files, folder / "index", workers=0)
    return Index(folder / "index")


def sentence_of(call, *arguments, **settings):
    with pytest.raises(UserError) as raised:
        call(*arguments, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", SAID)
def test_every_way_says_one_sentence(bad, index, model, tmp_path, name):
    file, output = str(bad / name), tmp_path / "out"
    sound, picture = SAID[name]
    if sound is not None:
        said = [
            sentence_of(model.embed_sound, file),
            sentence_of(search.run, model, index, "sound", file, output),
            sentence_of(localize.run, model, str(bad.parent / "good.png"), output, sound=file),
        ]
        assert all(sound in one and name in one for one in said), said
    else:
        assert model.embed_sound(file).audio.shape[0] == 16
    said = [
        sentence_of(model.embed_image, file),
        sentence_of(search.run, model, index, "image", file, output),
    ]
    assert all(picture in one and name in one for one in said), said
    said = [
        sentence_of(model.embed_video, file),
        sentence_of(search.run, model, index, "video", file, output),
        sentence_of(localize.run, model, file, output),
    ]
    assert all(name in one for one in said), said
    assert not output.exists() or not list(output.iterdir())


@pytest.mark.parametrize("name", ["huge.png", "wide.png"])
def test_pillow_says_nothing_of_its_own(bad, name):
    code = "import sys; from cavmae_sync_jax.inference import reading; "
    code += "print(reading.file_info(sys.argv[1]).kind); reading.read_picture(sys.argv[1], 32)"
    command = [sys.executable, "-c", code, str(bad / name)]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.stdout == "picture\n" and "UserError" in done.stderr
    assert "Warning" not in done.stderr, done.stderr


def damaged(data, fails):
    """The first copy of a file with one byte changed that `fails`."""
    for place in range(len(data)):
        for value in (0, 255):
            copy = data[:place] + bytes([value]) + data[place + 1 :]
            if fails(copy):
                return copy
    raise AssertionError("no damage does it")


def fails_with(error, function):
    def fails(data):
        try:
            with warnings.catch_warnings(action="ignore"):
                function(Image.open(io.BytesIO(data)))
        except error:
            return True
        except Exception:
            return False
        return False

    return fails


def stored(picture, kind, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def test_a_decoders_error_of_any_class_is_a_sentence(model, tmp_path):
    data = stored(Image.new("RGB", (48, 32), "red"), "AVIF")
    (tmp_path / "a.avif").write_bytes(damaged(data, fails_with(RuntimeError, Image.Image.load)))
    with pytest.raises(UserError, match=r"a.avif is no readable picture: save it as JPEG"):
        model.embed_image(tmp_path / "a.avif")


def test_a_picture_with_damaged_exif_is_read_upright(model, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "maker", 6
    picture = Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint8).reshape(32, 48, 3))
    data = stored(picture, "JPEG", exif=exif)

    def transposed(image):
        image.load()
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        ImageOps.exif_transpose(image)

    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "damaged.jpg").write_bytes(damaged(data, fails_with(struct.error, transposed)))
    with warnings.catch_warnings(action="ignore"):
        whole, read = (
            reading._decode_picture(str(tmp_path / f"{n}.jpg")) for n in ("whole", "damaged")
        )
    assert whole.shape == (48, 32, 3)
    np.testing.assert_array_equal(read, whole)


def test_the_good_files_among_bad_ones_are_embedded(bad, model, tmp_path, capsys):
    counts = embed.run(model, [str(bad), str(bad.parent / "good.mp4")], tmp_path / "index")
    taken = sorted(name for name, said in SAID.items() if said[0] is None)
    refused = len(SAID) - len(taken) - len(["nothing.mp4", "folder.mp4"])
    assert counts[:3] == (1 + len(taken), 0, refused)
    known = Index(tmp_path / "index").known()
    assert set(known) == {str(bad.parent / "good.mp4"), *(str(bad / name) for name in taken)}
    said = capsys.readouterr().err
    assert said.count("refused: ") == refused


EMBEDDING = """
import resource, sys
import cavmae_sync_jax
from cavmae_sync_jax import embed
model = cavmae_sync_jax.load(sys.argv[1])
for number, file in enumerate(sys.argv[2:]):
    embed.run(model, [file], f"{file}.index", workers=0)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.release
def test_two_hours_need_no_more_memory_than_ten_minutes(tmp_path, workdir):
    files = [str(write_long_video(tmp_path / f"{seconds}.mp4", seconds)) for seconds in (608, 7200)]
    command = [sys.executable, "-c", EMBEDDING, str(workdir), *files]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    short, long = map(float, done.stdout.split())
    assert long - short < 100, (
        done.stdout
    )  # MB; its log-mel alone would be 180 MB, its windows 280 MB
    assert len(Index(f"{files[1]}.index").vectors("visual").times) == 11_520
