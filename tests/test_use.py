"""The ways to use a model, as a user runs them: embed, search, localize, and the examples."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tiny
from media_files import noise, noisy_video, tone
from PIL import Image

import cavmae_sync_jax
from cavmae_sync_jax import embed, localize, search

ROOT = pathlib.Path(__file__).parent.parent


def call(*command):
    arguments = [sys.executable, *map(str, command)]
    paths = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **paths}
    )


def output_of(*command):
    done = call(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, two videos and a picture in a folder of their own, and sounds of two classes."""
    folder = tmp_path_factory.mktemp("use")
    tiny.write_model(folder / "model", data__num_frames=16, model__image_patch=8)
    (folder / "media").mkdir()
    for seed in range(2):
        noisy_video(folder / "media" / f"{seed}.mp4", 3 + seed, seed=seed)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "media" / "still.png")
    for name in ("tone", "noise"):
        (folder / "sounds" / name).mkdir(parents=True)
        for n in range(4):
            wave = tone(300 + 50 * n, 1, 16_000) if name == "tone" else noise(1, seed=n)
            soundfile.write(folder / "sounds" / name / f"{n}.wav", wave, 16_000)
    return folder


def test_embed_search_and_localize(files, tmp_path):
    checkpoint, sound = f"--checkpoint={files}/model", files / "sounds" / "noise" / "0.wav"
    embedding = ["-m", "cavmae_sync_jax.embed", files / "media", checkpoint]
    index = tmp_path / "index"
    said = output_of(*embedding, f"--output={index}", f"--export={tmp_path}/all.npz")
    assert "3 files embedded (33 pairs), 0 were in the index, 0 refused" in said
    assert "0 files embedded (0 pairs), 3 were in" in output_of(*embedding, f"--output={index}")
    said = output_of(
        *("-m", "cavmae_sync_jax.search", index, "--approximate"),
        *(f"--sound={sound}", f"--output={tmp_path}/found"),
    )
    rows = re.findall(r"^ +\d+ +(-?[\d.]+) .*\.(?:mp4|png)$", said, re.MULTILINE)
    found = json.loads((tmp_path / "found" / "search.json").read_text())["clips"]
    assert rows == [f"{hit['similarity']:.3f}" for hit in found] and len(rows) == 3
    still = files / "media" / "still.png", checkpoint, f"--output={tmp_path}/where"
    said = output_of("-m", "cavmae_sync_jax.localize", *still, f"--sound={sound}")
    assert "Match (mean cosine): " in said and (tmp_path / "where" / "localize.png").exists()


def test_mistakes_are_one_sentence(files, tmp_path, monkeypatch, capsys):
    checkpoint, sound = f"--checkpoint={files}/model", f"--sound={files}/sounds/noise/0.wav"
    for program, arguments, sentence in (
        (search, [files, sound], "is not an index"),
        (localize, [files / "media" / "still.png", checkpoint], "name one by --sound"),
        (localize, [files / "none.mp4", checkpoint], "there is no file"),
        (embed, [files / "media", checkpoint, f"--output={files}/media"], "with other things"),
        (embed, [files, checkpoint, "--output=x", "--export=x.csv"], "must end in .npz or"),
        (embed, [files, checkpoint, "--output=x", "--every=0"], "--every must be above 0"),
    ):
        given = [*map(str, arguments)]
        if program is localize:
            given.append(f"--output={tmp_path}/where")
        monkeypatch.setattr(sys, "argv", [program.__name__, *given])
        with pytest.raises(SystemExit) as left:
            program.main()
        assert left.value.code == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]


def arguments_of(name, files, tmp_path):
    model, media, sounds = files / "model", files / "media", files / "sounds"
    sound = sounds / "tone" / "0.wav"
    return {
        "embed_video": [model, media / "0.mp4"],
        "compare_pair": [model, media / "0.mp4", *sorted(sounds.glob("*/*.wav"))],
        "search_index": [model, media, sound, tmp_path / "index"],
        "show_heatmap": [model, media / "still.png", sound, tmp_path / "heat.png"],
        "classify_with_sklearn": [model, sounds],
        "vector_database": [model, tmp_path / "index", sound, tmp_path / "database"],
    }[name]


SAID = {
    "embed_video": r"(?s)^   0\.00 s  cosine -?0\.\d+\n.*   2\.81 s  cosine",
    "compare_pair": r"^similarity -?0\.\d+, above \d+ % of the other sounds$",
    "search_index": r"^-?0\.\d+ +\d+\.\d+ s  .*(mp4|png)",
    "show_heatmap": r"^$",
    "vector_database": r"^-?0\.\d+ +\d+\.\d+ s  .*still\.png",
    "classify_with_sklearn": r"^accuracy (0\.[5-9]\d|1\.00) on 8 sounds of 2 classes$",
}


@pytest.mark.parametrize("script", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.stem)
def test_an_example_without_arguments_says_which_it_takes(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit, match=f"python examples/{script.name} CHECKPOINT"):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.stem)
def test_the_examples_run(script, files, tmp_path):
    if script.stem == "vector_database":
        model = cavmae_sync_jax.load(str(files / "model"))
        embed.run(model, [str(files / "media" / "still.png")], tmp_path / "index", workers=0)
    said = output_of(script, *arguments_of(script.stem, files, tmp_path))
    assert re.search(SAID[script.stem], said), said
    assert script.stem != "show_heatmap" or (tmp_path / "heat.png").stat().st_size > 1000
