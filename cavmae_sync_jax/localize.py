"""Shows where and when in a video the source of a sound is visible.

Examples:
  python -m cavmae_sync_jax.localize video.mp4 --checkpoint=runs/sync --output=runs/where
  python -m cavmae_sync_jax.localize video.mp4 --sound=bark.wav --checkpoint=runs/sync
  python -m cavmae_sync_jax.localize dog.jpg --sound=bark.wav --checkpoint=runs/sync

For a video it writes four files. OUTPUT/localize.mp4 is the video with a heat map at every moment.
OUTPUT/timeline.png shows pictures, log-mel, match and segments. OUTPUT/localize.json has the match
of every pair, and OUTPUT/localize.npz all maps. The MP4 shows and plays what the model gets: the
central square, and the first channel at 16 kHz. All moments share one scale of colours. A moment is
silent if there is no sound in the window around it. Silent moments are not compared with others.

--sound takes another sound than the video's own. A video without sound and a still picture need
it. A sound of the video's length is compared moment by moment. Of any other sound, the mean of its
windows is compared with every moment. A still picture gives OUTPUT/localize.png.
"""

import argparse
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int16
from matplotlib import pyplot as plt
from PIL import Image

from cavmae_sync_jax.evals.metrics import temporal
from cavmae_sync_jax.inference import model as models
from cavmae_sync_jax.inference import overlay, reading, similarity, timeline
from cavmae_sync_jax.inference.model import Embedded, Model
from cavmae_sync_jax.inference.overlay import Moment, Scale
from cavmae_sync_jax.inference.reading import FileInfo, Span
from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError

SIZE = 448  # pixels of the pictures that are written
FPS = 25
BLOCK_SECONDS = 8.0
SEGMENTS = 4
MOST_CLUSTERED = 2000  # pairs; the time of clustering grows with their square
WRITTEN = ("localize.mp4", "localize.png", "localize.json", "localize.npz", "timeline.png")
COLUMNS, SHOWN = 2000, 10  # of the log-mel, and pictures, in the timeline
OTHERS = 200  # windows of the sound that a match's percentile is taken among
SOUNDLESS = {"picture": "a picture, which has no sound", "mute": "a video without sound"}
OTHER_MOMENTS, OWN_SOUNDS = "the sounds of other moments", "the video's own sounds"
QUIET = 0.01  # above the log-mel's floor
ALONG = 0.5  # seconds; a sound whose length differs by no more is heard along with the video

Told = dict[str, Any]
Mel = Float32[np.ndarray, "rows bins"]


class Query(NamedTuple):
    """Another sound than the video's own: its file and vectors, and that of each pair, or of all.

    The one of all is the mean, so that its product with a picture is their similarity. `silent`
    says of each vector whether nothing is heard; the one of all counts as heard.
    """

    file: str
    sound: Embedded
    vectors: Float32[np.ndarray, "pairs dim"]
    silent: Bool[np.ndarray, " pairs"]

    def of(self, begin: int, count: int) -> Float32[np.ndarray, "{count} dim"]:
        """The vectors of some pairs; the last one goes on."""
        return self.vectors[self._places(begin, count)]

    def silent_at(self, count: int) -> Bool[np.ndarray, "{count}"]:
        """Which of the first pairs are silent."""
        return self.silent[self._places(0, count)]

    def _places(self, begin: int, count: int) -> Int[np.ndarray, "{count}"]:
        return np.minimum(np.arange(begin, begin + count), len(self.vectors) - 1)


def run(
    model: Model,
    file: str,
    output: str | os.PathLike,
    *,
    sound: str | None = None,
    method: str = "evidence",
) -> Told:
    """Localises the sound in a video or a picture, and writes what the module says.

    Args:
      model: that is asked.
      file: a video or a picture.
      output: a folder.
      sound: another sound than the video's own; a picture or a mute video needs one.
      method: see `Model.maps`.

    Returns:
      What `localize.json` holds.

    Raises:
      UserError: if a file can't be read, or a picture comes without a sound.
    """
    info = reading.file_info(file, mute=True)
    if info.kind == "sound":
        raise UserError(f"{file} is a sound: name a video or a picture, and the sound by --sound")
    if info.kind in SOUNDLESS and sound is None:
        raise UserError(f"{file} is {SOUNDLESS[info.kind]}: name one by --sound")
    folder = pathlib.Path(cli.make_folder(output))
    for given, name in itertools.product(filter(None, (file, sound)), WRITTEN):
        if (folder / name).exists() and os.path.samefile(given, folder / name):
            raise UserError(f"{given} would be overwritten: name another --output than {output}")
    query = None if sound is None else _query(model, info, sound)
    told = {"file": os.path.abspath(file), "sound": sound and os.path.abspath(sound)}
    if info.kind == "picture":
        told |= _still(model, file, query, method, folder)
    else:
        told |= _video(model, info, query, method, folder)
    told |= {
        "method": method,
        "checkpoint": {"directory": model.directory, "step": model.step},
        "version": cli.version(),
    }
    (folder / "localize.json").write_text(json.dumps(told, indent=2) + "\n")
    return told


def _query(model: Model, info: FileInfo, sound: str) -> Query:
    heard = reading.file_info(sound)
    if heard.kind == "picture":
        raise UserError(f"--sound={sound} is a picture: name a sound, or a video that has one")
    # The sound of a video may end long before its picture.
    heard = reading.sound_of(heard) if heard.kind == "video" else heard
    along = info.kind != "picture" and abs(heard.seconds - info.seconds) <= ALONG
    heard = heard._replace(seconds=info.seconds) if along else heard  # for the same moments
    parts, silent = [], []
    for pairs in timeline.pairs_of_file(heard, model.pair_spec):
        parts.append(models.joined(model.embed_pairs([pairs])))
        silent.append(_silent(pairs))
    embedded = models.joined(parts)
    if not along:
        mean = embedded.audio.mean(axis=0, keepdims=True)
        return Query(sound, embedded, mean, np.zeros(1, bool))
    return Query(sound, embedded, embedded.audio, np.concatenate(silent))


def _still(model: Model, file: str, query: Query, method: str, folder: pathlib.Path) -> Told:
    (small,) = model.maps(model.picture(file)[None], query.of(0, 1), method)
    shown = images.decode_jpeg(reading.read_picture(file, SIZE))
    Image.fromarray(overlay.blend(shown, small, Scale.of(small))).save(folder / "localize.png")
    np.savez(folder / "localize.npz", maps=small[None])
    match = model.similarity(query.sound, model.embed_image(file))
    return {"match": [match], "peak": [_peak(small)]}


def _video(
    model: Model, info: FileInfo, query: Query | None, method: str, folder: pathlib.Path
) -> Told:
    embedded, maps, shown, silent = _maps(model, info, query, method)
    own, pictures = embedded.audio, embedded.visual
    asked = own if query is None else query.of(0, len(own))
    constant = query is not None and len(query.vectors) == 1
    match = np.vecdot(asked, pictures).astype(np.float64)
    scale, segments = Scale.of(maps), None
    if len(match) <= MOST_CLUSTERED:
        both = temporal.concatenated(asked, pictures)
        segments = temporal.segment(both, min(SEGMENTS, len(match))).labels
    np.savez(folder / "localize.npz", maps=maps, times=embedded.times)
    fps = max(1, min(FPS, round(info.fps or FPS)))
    mel: list[Mel] = []
    moments = _moments(info, embedded.times, maps, scale, fps, query, mel)
    overlay.write_video(folder / "localize.mp4", SIZE, fps, moments)
    others = own[~silent] if constant else None
    silent = silent if query is None else query.silent_at(len(own))
    told = {
        "times": embedded.times.tolist(),
        "match": match.tolist(),
        "silent": silent.tolist(),
        **_percentiles(match, pictures, asked, others, silent),
        "peak": [_peak(small) for small in maps],
        "segment": None if segments is None else segments.tolist(),
        "scale": scale._asdict(),
    }
    _draw(told, info.seconds, shown, np.concatenate(mel), folder / "timeline.png")
    return told


def _maps(
    model: Model, info: FileInfo, query: Query | None, method: str
) -> tuple[
    Embedded,
    Float32[np.ndarray, "pairs rows columns"],
    list[np.ndarray],
    Bool[np.ndarray, " pairs"],
]:
    """A video's pairs, embedded; the map of each; a few pictures, evenly chosen; which are silent.

    A pair is silent if its window holds nothing of the video's own sound.
    """
    spec, parts, maps, shown, silent = model.pair_spec, [], [], [], []
    step = min(info.seconds, timeline.clip_seconds(spec)) / spec.num_frames
    done = 0
    with console.progress("localize", round(info.seconds / step), "pair") as bar:
        for pairs in timeline.pairs_of_file(info, spec):
            part = models.joined(model.embed_pairs([pairs]))
            asked = part.audio if query is None else query.of(done, len(part.times))
            parts.append(part)
            silent.append(_silent(pairs))
            maps.append(model.maps(pairs.visual, asked, method))
            for time, picture in zip(part.times, pairs.visual, strict=True):
                if time >= len(shown) * info.seconds / SHOWN:
                    shown.append(picture)
            done += len(part.times)
            bar.update(len(part.times))
    return models.joined(parts), np.concatenate(maps), shown, np.concatenate(silent)


def _moments(
    info: FileInfo,
    times: Float[np.ndarray, " pairs"],
    maps: Float32[np.ndarray, "pairs rows columns"],
    scale: Scale,
    fps: int,
    query: Query | None,
    mel: list[Mel],
) -> Iterator[Moment]:
    """The content of the MP4, read in blocks; what is heard is added to `mel` as log-mel."""
    per_block = round(BLOCK_SECONDS * fps)
    count = max(1, int(info.seconds * fps + 1e-6))
    spans = [
        Span(info.path, info.kind, first / fps, min(first + per_block, count) / fps,
             min(per_block, count - first), SIZE, block=True)
        for first in range(0, count, per_block)
    ]  # fmt: skip
    pool = max(1, round(info.seconds * audio.ROWS_PER_SECOND / COLUMNS))
    rest = np.zeros((0, audio.BINS), np.float32)  # rows that fill no column yet
    with console.progress("draw", count, "picture") as bar:
        for span, content in zip(spans, reading.contents(spans), strict=True):
            waveform = content.waveform if query is None else _heard(query.file, span)
            length = round((span.end - span.start) * audio.SAMPLE_RATE)
            waveform = np.pad(waveform[:length], (0, max(0, length - len(waveform))))
            rows = audio.log_mel(waveform / np.float32(32768), audio.SAMPLE_RATE)
            rows = np.concatenate([rest, rows])
            whole = len(rows) // pool * pool
            mel.append(rows[:whole].reshape(-1, pool, rows.shape[1]).mean(axis=1))
            rest = rows[whole:]
            yield Moment(_overlaid(span, content.jpegs, times, maps, scale, fps), waveform)
            bar.update(span.pictures)


def _overlaid(
    span: Span,
    jpegs: list[bytes],
    times: Float[np.ndarray, " pairs"],
    maps: Float32[np.ndarray, "pairs rows columns"],
    scale: Scale,
    fps: int,
) -> Iterator[np.ndarray]:
    for number, jpeg in enumerate(jpegs):
        small = overlay.between(maps, times, span.start + number / fps)
        yield overlay.blend(images.decode_jpeg(jpeg), small, scale)


def _heard(file: str, span: Span) -> Int16[np.ndarray, " samples"]:
    """The part of another sound that is played along; nothing after its end."""
    return reading.read_sound(file, span.start, span.end)


def _silent(pairs: timeline.Pairs) -> Bool[np.ndarray, " pairs"]:
    """Whether nothing at all is heard in each window, as beyond the sound's end."""
    quiet = (pairs.audio <= np.log(audio.FLOOR) + QUIET).all(axis=2)
    rows = np.rint((1 - pairs.padded) * quiet.shape[1])[:, None]
    return (quiet | (np.arange(quiet.shape[1]) >= rows)).all(axis=1)


def _percentiles(
    match: Float[np.ndarray, " pairs"],
    pictures: Float32[np.ndarray, "pairs dim"],
    asked: Float32[np.ndarray, "pairs dim"],
    own: Float32[np.ndarray, "heard dim"] | None,
    silent: Bool[np.ndarray, " pairs"],
) -> dict[str, Any]:
    """Each match's place among those of its picture with other sounds, and which these are.

    A sound that goes along with the video is compared with its other moments. One that is the same
    at all moments is compared with the video's `own` that are heard, of which there may be none.
    Silent moments have no percentile, and are not among the others.
    """
    heard = np.flatnonzero(~silent)
    sounds, known = (asked, heard) if own is None else (own, np.arange(len(own)))
    if not len(known):
        return {"percentile": None, "percentile_among": None}
    chosen = known[np.unique(np.linspace(0, len(known) - 1, OTHERS).astype(int))]
    others = sounds[chosen]
    found: list[float | None] = [None] * len(match)
    for number, value, picture in zip(heard.tolist(), match[heard], pictures[heard], strict=True):
        theirs = (others @ picture).astype(np.float64)
        theirs = theirs[chosen != number] if own is None else theirs
        found[number] = similarity.percentile(float(value), theirs) if len(theirs) else 50.0
    return {"percentile": found, "percentile_among": OTHER_MOMENTS if own is None else OWN_SOUNDS}


def sentences(told: Told) -> list[str]:
    """What `run` found, in words."""
    match = np.array(told["match"])
    if "times" not in told:
        return [
            f"Match (mean cosine): {match[0]:.3f}. Without other sounds, this does not say whether "
            "sound and picture belong together.",
            "The colours compare places within this picture only.",
        ]
    silent = np.array(told["silent"])
    if silent.all():
        return ["There is no sound at any moment, so the matches say nothing."]
    best = int(np.where(silent, -np.inf, match).argmax())
    when = f"best {match[best]:.3f} at {told['times'][best]:.1f} s"
    found = [f"Match (cosine): mean {match[~silent].mean():.3f}, {when}."]
    if silent.any():
        found.append(f"Silent moments, which do not count: {silent.sum()} of {len(silent)}.")
    if told["percentile"] is not None:
        mean = np.mean([place for place in told["percentile"] if place is not None])
        found.append(
            f"On average, the sound matches a moment's picture better than {mean:.0f} % of "
            f"{told['percentile_among']} do; 50 % is chance."
        )
    return found


def _peak(small: Float32[np.ndarray, "rows columns"]) -> list[float]:
    """Where a map is highest: [x, y] as parts of the square's width and height."""
    row, column = np.unravel_index(int(small.argmax()), small.shape)
    return [(float(column) + 0.5) / small.shape[1], (float(row) + 0.5) / small.shape[0]]


def _draw(
    told: Told, seconds: float, pictures: list[np.ndarray], mel: Mel, path: pathlib.Path
) -> None:
    """Draws the timeline: pictures, log-mel, match and segments."""
    times, match = np.array(told["times"]), np.array(told["match"])
    figure, axes = plt.subplots(
        4, figsize=(13, 6.5), sharex=True, height_ratios=(0.9, 1, 1, 0.2), layout="constrained"
    )
    for number, picture in enumerate(pictures):
        begin = number * seconds / len(pictures)
        extent = (begin, begin + 0.98 * seconds / len(pictures), 0.0, 1.0)
        axes[0].imshow(picture, extent=extent, aspect="auto")
    axes[1].imshow(
        mel.T, origin="lower", extent=(0.0, seconds, 0, mel.shape[1]), aspect="auto", cmap="magma"
    )
    axes[2].plot(times, match, marker="." if len(times) < 100 else None)
    axes[2].grid(alpha=0.3)
    if told["segment"] is not None:
        edges = [*times, seconds]
        for begin, after, label in zip(edges, edges[1:], told["segment"], strict=False):
            axes[3].axvspan(begin, after, color=f"C{label}")
    labels = ("picture", "log-mel", "match\n(cosine)", "segments")
    for axis, label in zip(axes, labels, strict=True):
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    for axis in axes[[0, 1, 3]]:
        axis.set_yticks([])
    axes[0].set(xlim=(0, seconds), ylim=(0, 1))
    axes[3].set_xlabel("seconds; segments of one colour look and sound alike")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("video", metavar="VIDEO", help="video or picture")
    arguments.add_argument("--checkpoint", required=True, help="folder of a trained model")
    arguments.add_argument(
        "--sound", metavar="FILE", help="sound to find; without it, the video's own"
    )
    arguments.add_argument(
        "--map", choices=tuple(models.MAPS), default="evidence", help="kind of map"
    )
    arguments.add_argument("--output", default="runs/localize", help="folder of the results")

    def start(args: argparse.Namespace) -> None:
        model = models.load(args.checkpoint)
        told = run(model, args.video, args.output, sound=args.sound, method=args.map)
        for sentence in sentences(told):
            print(sentence)
        shown = "localize.mp4" if "times" in told else "localize.png"
        print(f"written: {os.path.join(args.output, shown)}, and more beside it")

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
