"""The page, in a real browser: each tab with real files, players, and hostile uploads."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import browser
import numpy as np
import pytest
import soundfile
import tiny
from media_files import noise, noisy_video
from PIL import Image

from cavmae_sync_jax import app, embed, localize, search
from cavmae_sync_jax.inference.index.store import Index

pytestmark = pytest.mark.release

CURRENT_TIMES = (
    "return [...document.querySelectorAll(arguments[0])].map(v => v.readyState > 0 && v.videoWidth"
    " ? [v.currentTime, parseFloat(v.src.split('#t=')[1])] : null)"
)
PLAY = "const v = document.querySelector(arguments[0]); v.muted = true; v.play()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, workdir, model):
    """Files that visitors have, an index of two of them, and a workdir with curves and scores."""
    place = tmp_path_factory.mktemp("app")
    (place / "media").mkdir()
    for seed, seconds in enumerate((3, 11)):
        noisy_video(place / "media" / f"{seed}.mp4", seconds, seed=seed)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(place / "still.png")
    soundfile.write(place / "sound.wav", noise(2, seed=7), 16_000)
    soundfile.write(place / "short.wav", noise(1, seed=7)[:320], 16_000)
    (place / "text <b>.mp4").write_text("no video")
    (place / "large.wav").write_bytes(bytes(1 << 21))
    embed.run(model, [str(place / "media")], place / "index", workers=0)
    lines = [{"step": step, "split": "train", "loss": 9 - step} for step in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (workdir / "evals").mkdir()
    ranks = {"R1": 0.25, "R5": 0.5, "R10": 0.75, "median_rank": 3.0}
    scores = {way: ranks for way in ("audio_to_visual", "visual_to_audio")}
    checkpoint = {"directory": str(workdir), "step": 0}
    result = {"scores": {"diagonal_mean": scores}, "checkpoint": checkpoint}
    (workdir / "evals" / "retrieval.json").write_text(json.dumps(result))
    return place


@pytest.fixture(scope="module")
def driver():
    started = browser.start()
    yield started
    started.quit()


@pytest.fixture(scope="module")
def address(driver, folder, workdir):
    """Where the program serves; after the tests, Ctrl-C ends it and deletes what it kept."""
    command = [sys.executable, "-m", "cavmae_sync_jax.app", f"--checkpoint={workdir}", "--port=0"]
    (folder / "scratch").mkdir()
    process = subprocess.Popen(
        [*command, f"--index={folder}/index", "--largest=1"],
        cwd=tiny.ROOT,
        env={**os.environ, "TMPDIR": str(folder / "scratch")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    said = process.stdout.readline()
    assert said.startswith("open http://127.0.0.1:"), process.communicate()[1]
    yield said.split()[1]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert not list((folder / "scratch").glob("cavmae_sync_app_*"))


@pytest.fixture
def page(driver, address):
    """The page as a visitor finds it; nothing that it asks for is elsewhere."""
    browser.requested(driver)
    driver.get(address)
    yield driver
    elsewhere = (a for a in browser.requested(driver) if a.startswith(("http", "ws")))
    assert {a for a in elsewhere if not a.startswith(address)} == set()


def told(page, place, before=()):
    """The sentences that a component shows, when they are others than `before`."""
    selector = f"{place} .prose > p, {place} p[class]"

    def shown():
        found = browser.texts(page, selector)
        return found if found and found != list(before) else None

    return browser.until(shown)


def playing(page, selector):
    """Plays a video until it has moved on; returns its width."""
    browser.until(lambda: page.find_elements("css selector", selector))
    page.execute_script(PLAY, selector)
    state = "const v = document.querySelector(arguments[0]); return [v.currentTime, v.videoWidth]"
    browser.until(lambda: page.execute_script(state, selector)[0] > 0.3)
    return page.execute_script(state, selector)[1]


def seeked(page, selector):
    """The seconds at which players stand, and those that their addresses name."""

    def standing():
        found = page.execute_script(CURRENT_TIMES, selector)
        return found if found and None not in found and all(at or not to for at, to in found) else 0

    return np.array(browser.until(standing)).T


def test_a_video_gets_its_match_and_a_map_that_plays(page, folder, model):
    video = folder / "media" / "0.mp4"
    browser.upload(page, "#seen", video)
    browser.until(lambda: "0.mp4" in "".join(browser.texts(page, "#seen")).replace("\n", ""))
    browser.click(page, "Show where it sounds")
    embedded = model.embed_video(video)
    match = np.vecdot(embedded.audio, embedded.visual)
    expected = f"Match (cosine): mean {match.mean():.3f}, best {match.max():.3f} at "
    assert told(page, "#matched")[0].startswith(expected)
    assert playing(page, "#film video") == 448
    width = "return document.querySelector('#timeline img')?.naturalWidth"
    assert browser.until(lambda: page.execute_script(width)) > 1000


def test_a_picture_and_a_sound(page, folder, model):
    browser.upload(page, "#seen", folder / "still.png")
    browser.until(lambda: "still" in "".join(browser.texts(page, "#seen")))
    browser.click(page, "Show where it sounds")
    sentence = told(page, "#matched")
    assert sentence == ["this file has no sound of its own: give a sound, too"]
    browser.upload(page, "#heard", folder / "sound.wav")
    browser.until(
        lambda: page.find_elements("css selector", "#heard .waveform-container, #heard audio")
    )
    browser.click(page, "Show where it sounds")
    picture, sound = (
        model.embed_image(folder / "still.png"),
        model.embed_sound(folder / "sound.wav"),
    )
    expected = localize.sentences({"match": [model.similarity(sound, picture)]})
    assert expected[0].startswith("Match (mean cosine): ") and len(expected) == 2
    assert told(page, "#matched", sentence) == expected
    width = "return document.querySelector('#still img')?.naturalWidth"
    assert browser.until(lambda: page.execute_script(width)) == 448


def test_search_plays_what_it_finds_at_its_moment(page, folder, model, address):
    browser.click(page, "Search")
    browser.upload(page, "#query", folder / "sound.wav")
    browser.until(lambda: "sound" in "".join(browser.texts(page, "#query")))
    browser.click(page, "Search")
    assert told(page, "#asked") == ["Nearest to the sound, best first.", search.ABOUT]
    found = search.find(model, Index(folder / "index"), "sound", str(folder / "sound.wav"), 9)
    shown = browser.until(lambda: browser.texts(page, "#hits li"))
    for hit, text in zip([*found.clips, *found.moments], shown, strict=True):
        assert f"similarity {hit.similarity:.3f}" in text and os.path.basename(hit.file) in text
    stands, named = seeked(page, "#hits video")
    np.testing.assert_allclose(stands, named, atol=0.01)
    half = search.window_of(model) / 2
    expected = [max(0, hit.time - half) for hit in (*found.clips, *found.moments)]
    np.testing.assert_allclose(named, expected, atol=0.006)
    assert playing(page, "#hits video") == 64
    # Nothing but what was found is served, and parts of it are.
    part = urllib.request.Request(f"{address}/media/0", headers={"Range": "bytes=4-7"})
    with urllib.request.urlopen(part) as answer:
        assert (answer.status, answer.read()) == (206, b"ftyp")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/media/99")


def test_what_the_model_knows(page, workdir):
    browser.click(page, "About the model")
    browser.until(lambda: page.find_elements("css selector", "#known dl"))
    shown = "\n".join(browser.texts(page, "#known"))
    assert str(workdir) in shown and "Retrieval" in shown and "25.0" in shown
    assert "loss 6 3" in shown  # the metric, its last value, its step
    sizes = "return [...document.querySelectorAll('#known img')].map(i => i.naturalWidth)"
    assert page.execute_script(sizes) == [600]


@pytest.mark.parametrize("name", ["checkpoints/mine", "checkpoints/7", "checkpoints", "mine"])
def test_curves_are_of_the_model_whatever_its_folder_is_called(model, tmp_path, monkeypatch, name):
    workdir, asked = tmp_path / name, []
    (workdir / "checkpoints" / "4").mkdir(parents=True)
    monkeypatch.setattr(app.overview, "training", asked.append)
    for place in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "4"):
        app.Handlers(model._replace(directory=str(place)), None, None).known()
    assert asked == [workdir] * 3


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("text <b>.mp4", "text b.mp4 can't be read"),  # Gradio takes the signs off the name
        ("short.wav", "short.wav is a sound: name a video or a picture"),
    ],
)
def test_a_hostile_file_is_a_sentence(page, folder, file, sentence):
    browser.upload(page, "#seen", folder / file)
    browser.until(lambda: file[:5] in "".join(browser.texts(page, "#seen")))
    browser.click(page, "Show where it sounds")
    assert told(page, "#matched")[0].startswith(sentence)


def test_a_sound_of_20_ms_and_one_that_is_too_large(page, folder):
    browser.click(page, "Search")
    browser.upload(page, "#query", folder / "short.wav")
    browser.until(lambda: "short" in "".join(browser.texts(page, "#query")))
    browser.click(page, "Search")
    assert told(page, "#asked")[0].startswith("short.wav has 20 ms of sound: 25 ms are")
    page.refresh()
    browser.click(page, "Search")
    browser.upload(page, "#query", folder / "large.wav")
    browser.until(lambda: "maximum" in page.find_element("tag name", "body").text)


def test_another_sites_name_for_this_machine_is_refused(address):
    asked = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(asked)


def test_the_page_that_search_writes(driver, folder, model):
    result = search.run(
        model, Index(folder / "index"), "sound", str(folder / "sound.wav"), folder / "found"
    )
    driver.get(pathlib.Path(folder / "found" / "search.html").as_uri())
    stands, named = seeked(driver, "li video")
    assert len(stands) == len(result["clips"]) + len(result["moments"])
    np.testing.assert_allclose(stands, named, atol=0.01)
    assert playing(driver, "li video") == 64


def test_a_hit_that_no_browser_plays_says_so(driver, model, folder, tmp_path):
    for name in ("old.avi", "gone.mp4"):
        noisy_video(tmp_path / name, 2, codecs=("mpeg4", "mp3"))
    embed.run(model, [str(tmp_path)], tmp_path / "index", workers=0)
    (tmp_path / "gone.mp4").unlink()
    sound = str(folder / "sound.wav")
    result = search.run(model, Index(tmp_path / "index"), "sound", sound, tmp_path / "found")
    driver.get((tmp_path / "found" / "search.html").as_uri())
    hits = len(result["clips"]) + len(result["moments"])
    browser.until(lambda: len(browser.texts(driver, "li")) == hits)
    said = "This browser can\u2019t show the file."
    browser.until(lambda: all(said in text for text in browser.texts(driver, "li")))
    links = {one.get_attribute("href") for one in driver.find_elements("css selector", "li a")}
    assert links == {(tmp_path / name).as_uri() for name in ("old.avi", "gone.mp4")}
    assert not driver.find_elements("css selector", "li video")
    table = search.format_table(result)
    assert table.count("no such file any more") == 1 and "gone.mp4  (there" in table


def run(monkeypatch, capsys, *flags):
    """The program's last line on stderr, after a mistake."""
    monkeypatch.setattr(sys, "argv", ["app", *flags])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_long_file_and_a_mistake_of_the_program(folder, model, monkeypatch, capsys):
    handlers = app.Handlers(model, None, None)
    monkeypatch.setattr(app, "LONGEST", 6.0)
    said, *rest = handlers.guarded(
        handlers.localize, 5, str(folder / "media" / "1.mp4"), None, "cosine"
    )
    assert ">1.mp4 is longer than" in said and rest == [None] * 4
    said, _ = handlers.guarded(handlers.search, 2, str(folder / "sound.wav"), None)
    assert ">no index was given" in said

    def broken(file):
        raise ZeroDivisionError

    assert "the program made a mistake" in handlers.guarded(broken, 2, "a")[0]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_mistakes_are_one_sentence(workdir, model, folder, monkeypatch, capsys):
    checkpoint = f"--checkpoint={workdir}"
    monkeypatch.setattr(app.models, "load", lambda directory: model)
    with app.loopback.listening(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        said = run(monkeypatch, capsys, checkpoint, f"--port={port}")
        assert f"--port={port} can't be used (Address already in use)" in said
    assert "is not an index" in run(monkeypatch, capsys, checkpoint, f"--index={folder}")
    assert "--largest must be" in run(monkeypatch, capsys, checkpoint, "--largest=0")
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = run(monkeypatch, capsys, checkpoint)
    assert "the page needs gradio: pip install -e '.[app]'" in said
