"""Prepares a dataset whose audio and frames are extracted already, in the layout of CAV-MAE.

SPLIT=JSON names a split, such as train or eval, and the list of its clips. A split that is given
twice gets the clips of both lists. A list is {"data": [{"video_id", "wav", "video_path", "labels"},
…]}. The wav is an audio file of any rate. Frame i is VIDEO_PATH/frame_i/VIDEO_ID.jpg. The labels
are mids, joined by commas, or "" for none. The class list is a CSV with the columns index, mid and
display_name. A clip's id is its video_id. The class names are the display names in the order of
the indices. A display name that occurs twice gets its mid appended.

Relative paths start at the folder of their JSON. Absolute paths are often those of another machine:
--replace=OLD=NEW replaces their beginning. It may be repeated.

The frames must be spread evenly over the first --clip_seconds of the audio, which is cut there.
If more than --num_frames are stored, those nearest to the wanted times are taken. Clips that can't
be used are listed with the reason in OUTPUT/rejects.csv.

Example:
  python -m data_prep.cavmae_json train=train.json eval=eval.json --output=data/audioset \\
    --classes=class_labels_indices.csv --replace=/data/sls/audioset=/mnt/audioset
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.media.decoding import MediaError
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import flags, readers
from data_prep.pipeline.clips import Clip, Preparation, Recording, clip_name
from data_prep.sources import csv_files
from data_prep.sources.csv_files import Classes

SOURCE = "cavmae_json"
KEYS = ("video_id", "wav", "video_path", "labels")
PUBLIC_FRAMES = 10  # of CAV-MAE's extraction script


@dataclass(frozen=True)
class Entry(Clip):
    """An entry of a JSON: `clip_id` is its video_id, `path` its audio file.

    Attributes:
      frames: the folder with the folders frame_0, frame_1, ….
      stored: how many of these there are.
    """

    frames: str = ""
    stored: int = 0

    def read(self, preparation: Preparation) -> Recording:
        """Reads the audio's first `clip_seconds` and the frames, each scaled and cropped."""
        waveform = readers.read_sound(
            self.path, preparation.clip_seconds, preparation.audio_channel
        )
        numbers = chosen_frames(self.stored, preparation.num_frames)
        frames = [self._frame(number, preparation) for number in numbers]
        return Recording(np.stack(frames), waveform, len(waveform) / audio.SAMPLE_RATE, {})

    def _frame(self, number: int, preparation: Preparation) -> UInt8[np.ndarray, "size size 3"]:
        path = f"{self.frames}/frame_{number}/{self.clip_id}.jpg"
        try:
            picture = readers.read_picture(path)
        except MediaError as error:
            if error.reason != "missing":
                raise
            wanted = f"--num_frames={preparation.num_frames} needs it"
            raise MediaError("frames_missing", f"There is no {path}, and {wanted}.") from error
        return images.resize_and_crop(picture, preparation.image_size)


def chosen_frames(stored: int, num_frames: int) -> list[int]:
    """Returns which of a clip's stored frames make it one of `num_frames`.

    Frame i of T belongs to i / T of the clip, so that these are the stored ones nearest to it.
    Where fewer are stored, it is frame_0 on, of which one will be missing.
    """
    return [round(i * max(stored, num_frames) / num_frames) for i in range(num_frames)]


class Places:
    """Where the files that JSONs name lie on this machine."""

    def __init__(self, root: str | None = None, replace: Sequence[str] = ()):
        """Takes where relative paths start (None: at their JSON's folder) and texts OLD=NEW.

        Raises:
          UserError: a text is not OLD=NEW.
        """
        self._root = root
        self._replacements: dict[str, str] = {}
        self._roots: dict[str, tuple[str, int]] = {}
        for text in replace:
            old, _, new = text.partition("=")
            if not old or not new or old.rstrip("/") in self._replacements:
                raise UserError(f"--replace={text} must be --replace=OLD=NEW, once for each OLD")
            self._replacements[old.rstrip("/")] = new
        self._unused = set(self._replacements)

    def find(self, path: str, folder: str) -> str:
        """Returns where a path of a JSON in `folder` lies here."""
        for old, new in self._replacements.items():
            if f"{path}/".startswith(f"{old}/"):
                self._unused.discard(old)
                return os.path.join(new, path[len(old) :].lstrip("/"))
        if "://" in path or os.path.isabs(path):
            return path
        return os.path.join(self._root or folder, path)

    def find_frames(self, video_path: str, folder: str) -> tuple[str, int]:
        """Returns where a video_path lies here and how many frame folders it has.

        Raises:
          UserError: its frame folders are not numbered from 0 without a gap.
        """
        root = self.find(video_path, folder).rstrip("/") or "/"
        if root not in self._roots:  # what every entry of a root shares is one object
            self._roots[root] = root, _count_frames(root)
        return self._roots[root]

    def check_used(self) -> None:
        """Refuses a replacement that no path called for.

        Raises:
          UserError: naming it.
        """
        for old in sorted(self._unused):
            raise UserError(
                f"--replace={old}={self._replacements[old]} is for no wav and no video_path: none "
                f"begins with {old}/, or an earlier --replace is for them"
            )


def _count_frames(root: str) -> int:
    try:
        names = [path.name for path in epath.Path(root).iterdir()]
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is no part of a path
        return 0
    except (OSError, ImportError, KeyError) as error:  # the latter two: of a bucket's kind
        raise UserError(f"the folder of frames {root} can't be read: {error}") from error
    matches = (re.fullmatch("frame_(0|[1-9][0-9]*)", name) for name in names)
    numbers = {int(match[1]) for match in matches if match}
    gaps = set(range(len(numbers))) - numbers
    if gaps:
        raise UserError(
            f"{root} has the folder frame_{max(numbers)}, but not frame_{min(gaps)}: without it "
            "the times of the others are unknown"
        )
    return len(numbers)


def read_list(path: epath.PathLike, classes: Classes, places: Places) -> list[Entry]:
    """Returns the clips of a JSON, without looking at the files of each.

    Args:
      path: the JSON.
      classes: of `csv_files.read_classes`.
      places: where the files lie.

    Raises:
      UserError: the JSON is missing or malformed, an entry lacks a key, has a value of another
        type or an unknown label.
    """
    path = epath.Path(path)
    listed = _read_json(path)
    if not listed:
        raise UserError(f"{path} has no entry")
    name, folder, entries = str(path), str(path.parent), []
    for number, values in enumerate(tqdm(listed, f"reading {name}", unit="entry", delay=1), 1):
        where = f"{name}, entry {number}"
        if not isinstance(values, tuple):
            raise UserError(f"{where}, {_fault(values)}")
        video_id, wav, video_path, mids = values
        if not video_id.strip():
            raise UserError(f"{where}, has an empty video_id")
        names = []
        for mid in filter(None, (mid.strip() for mid in mids.split(","))):
            names.append(classes.named(mid, f"{where}, video_id {video_id!r}"))
        labels, clip_id = tuple(dict.fromkeys(names)), clip_name(video_id)
        refusal = None
        if clip_id != video_id or video_id in (".", ".."):
            refusal = "outside", f"{where}: the video_id {video_id!r} is not a name of a file"
        elif not wav.strip():
            refusal = "missing", f"{where}, video_id {video_id!r}: the wav is empty"
        if refusal is not None:
            entries.append(Entry(clip_id, where, labels=labels, refusal=refusal))
            continue
        frames, stored = places.find_frames(video_path, folder)
        sound = places.find(wav, folder)
        entries.append(Entry(clip_id, sound, labels=labels, frames=frames, stored=stored))
    return entries


def _read_json(path: epath.Path) -> list[Any]:
    """Returns the list: the values of `KEYS` as a tuple for each right entry, others as read."""
    try:
        # Millions of dicts would take far more memory than all that is kept of them.
        whole = json.loads(path.read_bytes(), object_hook=_condense)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}, {place}, is not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}") from error
    listed = whole.get("data") if isinstance(whole, dict) else None
    if not isinstance(listed, list):
        keys = ", ".join(f'"{key}": "…"' for key in KEYS)
        raise UserError(f'{path} must be {{"data": [{{{keys}}}, …]}}')
    return listed


def _condense(found: dict[str, Any]) -> dict[str, Any] | tuple[str, ...]:
    values = tuple(map(found.get, KEYS))
    if not all(isinstance(value, str) for value in values):
        return found
    video_id, wav, video_path, labels = values
    return video_id, wav, sys.intern(video_path), labels


def _fault(found: Any) -> str:
    """Returns what is wrong with an entry that `_condense` has left."""
    if not isinstance(found, dict):
        return f"must be an object with {', '.join(KEYS)}"
    missing = [key for key in KEYS if key not in found]
    if missing:
        return f"lacks {', '.join(missing)}"
    key = next(key for key in KEYS if not isinstance(found[key], str))
    return f"{key} must be text, not {json.dumps(found[key], default=str)[:40]}"


def read_splits(
    lists: Iterable[str], classes: Classes, places: Places, num_frames: int
) -> dict[str, list[Entry]]:
    """Returns the clips of all splits.

    Args:
      lists: texts SPLIT=JSON.
      classes: of `csv_files.read_classes`.
      places: where the files lie.
      num_frames: frames that each clip needs.

    Raises:
      UserError: as `read_list` does; a text is not SPLIT=JSON; a clip comes twice; a replacement
        is for nothing; no clip of a split has its audio, or a folder for each frame.
    """
    splits: dict[str, list[Entry]] = {}
    read = []
    for text in lists:
        split, _, path = text.partition("=")
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", split) or split == "all" or not path:
            raise UserError(
                f"{text!r} must be SPLIT=JSON, such as train=train.json; a split's name has "
                'letters, digits and "_", and is not "all"'
            )
        read.append((path, read_list(path, classes, places)))
        splits.setdefault(split, []).extend(read[-1][1])
    places.check_used()
    _check_ids(read)
    for split, entries in splits.items():
        _check_files(split, entries, num_frames)
    return splits


def _check_ids(read: Sequence[tuple[str, list[Entry]]]) -> None:
    seen: set[str] = set()
    for _, entries in read:
        for entry in entries:
            if entry.clip_id in seen:
                first, second, *_ = (
                    f"{path}, entry {number}"
                    for path, listed in read
                    for number, other in enumerate(listed, 1)
                    if other.clip_id == entry.clip_id
                )
                raise UserError(f"the clip {entry.clip_id!r} comes twice: {first}, and {second}")
            seen.add(entry.clip_id)


def _check_files(split: str, entries: Sequence[Entry], num_frames: int) -> None:
    """Refuses a split of which no clip can be used because of how its files lie."""
    usable = [entry for entry in entries if entry.refusal is None]
    if not usable:
        return  # whoever prepares them tells why
    best = max(usable, key=lambda entry: entry.stored)
    hint = "where the list has another machine's paths, give --replace=OLD=NEW"
    if not best.stored:
        what = "has no folder frame_0" if epath.Path(best.frames).exists() else "does not exist"
        raise UserError(f"the split {split!r}: the folder of frames {best.frames} {what}; {hint}")
    if best.stored < num_frames:
        public = best.stored == PUBLIC_FRAMES
        why = ", as many as CAV-MAE's public extraction script makes" if public else ""
        raise UserError(
            f"the split {split!r}: {best.frames} has {best.stored} frame_* folders{why}, but "
            f"--num_frames={num_frames} needs frame_{num_frames - 1}: extract {num_frames} "
            f"frames per clip, or accept these with --num_frames={best.stored}"
        )
    # The first is there, or there is an error to tell: this is no look at millions of files.
    if not any("://" in entry.path or os.path.exists(entry.path) for entry in usable):
        first = usable[0].path
        raise UserError(f"the split {split!r}: no audio file is there, such as {first}; {hint}")


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the command line asks for and prints a summary."""
    preparation = flags.preparation(arguments)
    classes = csv_files.read_classes(arguments.classes)
    places = Places(arguments.root, arguments.replace)
    splits = read_splits(arguments.lists, classes, places, preparation.num_frames)
    summary = flags.write(arguments, splits, preparation, class_names=classes.names, source=SOURCE)
    flags.finish(arguments, summary)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "lists", nargs="+", metavar="SPLIT=JSON", help="a split and its list, SPLIT=JSON"
    )
    parser.add_argument("--classes", required=True, help="CSV: index,mid,display_name")
    parser.add_argument("--root", help="where relative paths start instead of the JSON's folder")
    parser.add_argument(
        "--replace",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="put NEW in place of OLD where a path of a list begins with it; can be repeated",
    )
    flags.add_flags(parser)
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
