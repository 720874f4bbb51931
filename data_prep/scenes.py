"""Composes videos with exactly known truth (what sounds, where and when), and prepares them.

A scene is a clip of 10 s with one to three sounding objects, one after the other. An object is on
screen while it sounds, and moves with its loudness. Often a silent object is on screen as well. By
default the objects are drawn and synthesised. There are twelve classes, each a silhouette with a
kind of sound, of any hue, size, place, pitch and loudness. With --assets the objects are real
photos and sounds: a folder with NAME.png (transparent background) beside NAME.ogg or NAME.wav, such
as Tux Paint's stamps.

OUTPUT/videos/SPLIT gets each clip as .mp4 and its truth as .npz. The dataset to train and evaluate
on lies beside it. The splits share classes but no instances. Choose settings on val, not on eval.
The same flags give the same scenes again. Another number of clips in a split does not change the
first ones.

Examples:
  python -m data_prep.scenes --output=data/scenes
  python -m data_prep.scenes --output=data/stamps --assets=/usr/share/tuxpaint/stamps
"""

import argparse
import collections
import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.buckets import in_bucket
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import flags
from data_prep.pipeline import output as output_folder
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.synthetic import objects, photo_objects, render
from data_prep.synthetic.objects import Background, ObjectSource
from data_prep.synthetic.render import SPLITS, SceneRenderer

SOURCE = "scenes"
VIDEOS = "videos"
SETTINGS = "scenes.json"  # in the folder of the videos; marks it as ours
# Of `Preparation`: the truth is of these frames.
FIXED = {name: getattr(Preparation(), name) for name in ("num_frames", "clip_seconds")}


def render_clips(
    folder: Path,
    renderer: SceneRenderer,
    counts: Mapping[str, int],
    *,
    found: Mapping[str, str | None],
    workers: int,
    overwrite: bool,
) -> dict[str, list[VideoClip]]:
    """Writes the videos and truths of all splits to `folder`, which is complete or absent.

    What an interrupted call with the same arguments has rendered is not rendered again.

    Args:
      folder: where the videos go.
      renderer: what they show.
      counts: clips of each split.
      found: where the renderer's photos and sounds come from.
      workers: processes.
      overwrite: whether other scenes in `folder` may be replaced.

    Raises:
      UserError: `folder` holds other scenes and `overwrite` is off, or it holds other things.
    """
    if folder.exists() and not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} is in the way and has no scenes; give another --output")
    settings = {
        "seed": renderer.seed,
        "size": renderer.size,
        "splits": dict(counts),
        "class_names": list(renderer.objects.class_names),
        **found,
    }
    wanted = [(split, number) for split, count in counts.items() for number in range(count)]
    if overwrite or not folder.exists():
        _render_all(folder, renderer, wanted, settings, workers)
    elif _settings(folder) != settings:
        raise UserError(f"{folder} has other scenes already; replace them with --overwrite")
    clips: dict[str, list[VideoClip]] = {split: [] for split in counts}
    for split, number in wanted:
        path = _path(folder, split, number)
        labels, truth = render.sounding(renderer, path), str(path.with_suffix(".npz"))
        clips[split].append(VideoClip(path.stem, str(path), labels=labels, truth=truth))
    return clips


def _render_all(
    folder: Path,
    renderer: SceneRenderer,
    wanted: Sequence[tuple[str, int]],
    settings: dict[str, Any],
    workers: int,
) -> None:
    work = folder.with_name(f".{folder.name}.incomplete")
    new = work / "new"
    if _settings(new) != settings:
        shutil.rmtree(work, ignore_errors=True)
    for split in settings["splits"]:
        _make_folder(new / split)
    (new / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _render_in_workers(renderer, wanted, new, workers)
    if folder.exists():
        os.replace(folder, work / "old")
    os.replace(new, folder)
    shutil.rmtree(work)


def _settings(folder: Path) -> dict[str, Any] | None:
    """Returns the settings of the scenes in a folder, None if they can't be read."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} can't be made: {error.strerror}") from error


def _path(folder: Path, split: str, number: int) -> Path:
    return folder / split / f"{split}_{number:05d}.mp4"


def _render_in_workers(
    renderer: SceneRenderer, wanted: Sequence[tuple[str, int]], folder: Path, workers: int
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.pipeline.clips", "data_prep.synthetic.render"])
    pool = ProcessPoolExecutor(workers, context, render.start_worker, (renderer,))
    paths = [_path(folder, split, number) for split, number in wanted]
    try:
        rendered = pool.map(render.render_in_worker, *zip(*wanted, strict=True), paths, chunksize=4)
        collections.deque(
            tqdm(rendered, total=len(wanted), unit="clip", desc="rendering scenes"), 0
        )
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably by lack of memory: try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def run(arguments: argparse.Namespace) -> None:
    """Renders and prepares the scenes that the command line asks for and prints a summary."""
    counts = {split: getattr(arguments, split) for split in SPLITS}
    if min(counts.values()) < 0 or not any(counts.values()):
        raise UserError("--train, --val and --eval must be numbers of clips, not all of them 0")
    if arguments.seed < 0:
        raise UserError(f"--seed must be at least 0, not {arguments.seed}")
    engine = flags.engine(arguments)
    if arguments.size % 2 or not 32 <= arguments.size <= 1024:
        raise UserError(f"--size must be even and from 32 to 1024, not {arguments.size}")
    if in_bucket(arguments.output):
        raise UserError(
            f"--output={arguments.output} is in a bucket, and scenes are rendered to a disk: give "
            "a folder, and copy it to the bucket"
        )
    counts = {split: count for split, count in counts.items() if count}
    if arguments.dry_run:
        print(*(f"{split}: {count:,} clips." for split, count in counts.items()), sep="\n")
        return
    preparation = flags.preparation(arguments, **FIXED)
    renderer = SceneRenderer(
        objects=find_objects(arguments),
        background=find_background(arguments),
        size=arguments.size,
        seconds=preparation.clip_seconds,
        num_frames=preparation.num_frames,
        seed=arguments.seed,
    )
    output = Path(arguments.output)
    output_folder.check_output(output, SOURCE, arguments.overwrite)  # before minutes of rendering
    clips = render_clips(
        output / VIDEOS,
        renderer,
        counts,
        found={"assets": arguments.assets, "backgrounds": arguments.backgrounds},
        workers=engine.workers,
        overwrite=arguments.overwrite,
    )
    names = renderer.objects.class_names
    print(f"{output / VIDEOS} has the videos, of {len(names)} classes, and beside each its truth.")
    summary = flags.write(arguments, clips, preparation, class_names=names, source=SOURCE)
    flags.finish(arguments, summary)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `find_objects` and `find_background` read."""
    parser.add_argument("--assets", help="folder of photo cut-outs and their sounds")
    parser.add_argument("--backgrounds", help="folder of pictures to put behind the objects")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes")


def find_objects(arguments: argparse.Namespace) -> ObjectSource:
    """Returns the objects of --assets, or the built-in ones."""
    if arguments.assets is None:
        return objects.BuiltInObjects()
    return photo_objects.find_assets(arguments.assets)


def find_background(arguments: argparse.Namespace) -> Background:
    """Returns the pictures of --backgrounds, or drawn ones."""
    if arguments.backgrounds is None:
        return objects.drawn_background
    return photo_objects.find_backgrounds(arguments.backgrounds)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    for split, count in zip(SPLITS, (1500, 128, 128), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"clips of {split}")
    add_sources(parser)
    parser.add_argument("--size", type=int, default=128, help="pixels of a video's side")
    flags.add_flags(parser, without=tuple(FIXED), image_size=64)
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
