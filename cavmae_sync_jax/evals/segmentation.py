"""Sound-prompted segmentation (paper section 3.5.3; Table 3, Figure 5) of a trained model.

Where in an image does a sound come from? Two kinds of maps answer. The paper's is the cosine of the
sound's global token with the image's patch tokens. The other is evidence: how much better the image
matches the sound when a patch is visible, see `inference.heatmaps`. Any dataset whose frames have a
class and a mask can be scored, such as those of data_prep.ade20k_sound, data_prep.scenes and
data_prep.localisation. Frames in which nothing sounds are left out. With boxes it also scores cIoU
at 0.5 and its AUC. With masks it also scores AVSBench's J (mean IoU of the frames) and F.

Example:
  python -m cavmae_sync_jax.evals.segmentation --checkpoint=runs/sync --data=DATASET

Prints a table and writes OUTPUT/segmentation.json, with the scores of every class, and
OUTPUT/segmentation.png, where some images are shown with their maps. Videos without such truth
can't be scored. data_prep.scenes makes videos with it.
"""

import argparse
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common, sound_maps
from cavmae_sync_jax.evals.figures import segmentation as figure
from cavmae_sync_jax.evals.metrics import bootstrap, localisation
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.evals.metrics.segmentation import Items
from cavmae_sync_jax.evals.report import published
from cavmae_sync_jax.evals.sound_maps import OTHER, OWN, SILENCE, Map, Maps, Query
from cavmae_sync_jax.inference import heatmaps
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

NAME = "segmentation"
UNTRAINED = "untrained model"
TITLES = {"cosine": "cosine (the paper's)"}
SCORED = (OWN, OTHER)


def run(
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    maps: tuple[Map, ...] = get_args(Map),
    query: Query | None = None,
    tokens: heatmaps.Tokens = "joint",
    sets: int = heatmaps.SETS,
    with_baselines: bool = True,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Scores a model's maps of where a sound comes from.

    Clips are taken with as many frames as they have, at most as many as the model was trained with;
    a single image's sound is heard in as many windows as a clip's, see `sound_maps.RepeatedImages`.

    Args:
      model: whose maps are scored. Without a global token, the patches' mean takes its place.
      records: clips with `frame_class` and `frame_mask`. With `frame_silent_mask`, it is also
        scored how often a map prefers the object that sounds to a silent one.
      output: a folder for `segmentation.json` and `segmentation.png`; None writes and prints
        nothing.
      mesh: the devices; None means all.
      maps: which maps.
      query: the sound's vector: `frame`, the global token of the frame's own window, or `clip`,
        the mean of the unit global tokens of all windows. None takes `frame` for clips, in which
        sounds come and go, and `clip` for single images, whose sound has no moment of its own.
      tokens: for cosines, the image's vectors: patch tokens after their `joint` pass and its norm
        (the paper's), or straight from the `encoder`.
      sets: for evidence, how many sets of kept patches; the time grows with it.
      with_baselines: also scores a constant map, a blob in the middle, and an untrained model of
        the same shape.
      cache: see `features.extract`.

    Returns:
      What `segmentation.json` holds. `scores` and `classes` are those of the first map.

    Raises:
      UserError: if the data have no truth, or only silence, or one image and the query `frame`, or
        there are too few sets.
    """
    if sets < 2:
        raise UserError(f"--sets={sets} must be at least 2: one set has no other to differ from")
    mesh = mesh or sharding.make_mesh()
    model, sounds, items, query, names, clips = _split(model, records, query)
    settings = {"mesh": mesh, "cache": cache, "tokens": tokens, "sets": sets}
    mapper = sound_maps.Mapper(model, sounds, items, query, **settings)
    found, matches = mapper.maps(model, maps), mapper.matches(model)
    weights = bootstrap.draw_weights(clips)
    scored = {
        row: {sound: _score(of_row[sound], items, weights) for sound in SCORED if sound in of_row}
        for row, of_row in found.items()
    }
    rows = {
        row: _score_row(scored[row], of_row, items, weights, names) for row, of_row in found.items()
    }
    first = next(iter(rows.values()))
    result: dict[str, Any] = {
        "items": len(items.records),
        "query": query,
        "tokens": tokens,
        "map": maps[0] if len(maps) == 1 else None,
        "sets": sets,
        "scores": first["scores"],
        "classes": first["classes"],
        "maps": rows,
        "match_tells_own_sound_from": _detections(matches, items, weights),
    }
    if with_baselines:
        for row, of_row in mapper.maps(common.untrained(model), maps).items():
            rows[row][UNTRAINED] = _score(of_row[OWN], items, weights).with_intervals
        result["baselines"] = {**_trivial(items, weights), UNTRAINED: first[UNTRAINED]["scores"]}
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, NAME, result, format_table(result))
        resampled = {
            "/".join((row, *(() if sound == OWN else (sound,)), score)): values
            for row, of_row in scored.items()
            for sound, of_sound in of_row.items()
            for score, values in of_sound.resampled.items()
        }
        common.write_resamples(output, NAME, resampled)
        if jax.process_index() == 0:
            path = epath.Path(output) / f"{NAME}.png"
            pair_spec = loader.PairSpec.of(model.config)
            drawn = {row: of_row for row, of_row in found.items() if row in get_args(Map)}
            figure.draw(sounds, pair_spec, items, drawn, matches, names, path)
    return result


class _Split(NamedTuple):
    """The frames of a split that are scored, with their sounds and the model for these frames."""

    model: Pretrained
    sounds: loader.Records
    items: Items
    query: Query
    names: list[str]  # of the classes
    clips: int


def _split(model: Pretrained, records: loader.Records, query: Query | None) -> _Split:
    if not set(sound_maps.TRUTH) <= set(records.features):
        raise UserError(
            f"{records.directory} does not say where things are (frame_class, frame_mask), so maps "
            "can't be scored: to see those of your own videos use cavmae_sync_jax.localize"
        )
    truth = loader.Records(records.directory, records.split, sound_maps.TRUTH, records.requests)
    (stored,) = truth.features["frame_class"].shape
    names = truth.features["labels"].feature.names
    if stored > 1:
        model = common.with_frames(model, min(stored, model.config.data.num_frames))
        items = sound_maps.find_items(truth, model.config.data.num_frames)
        return _Split(model, records, items, query or "frame", names, len(truth))
    if query == "frame":
        raise UserError(
            f"--query=frame: {records.directory} has one image per sound, which has no window "
            "of its own; use --query=clip"
        )
    sounds = sound_maps.RepeatedImages(records, model.config.data.num_frames)
    return _Split(model, sounds, sound_maps.find_items(truth, 1), "clip", names, len(truth))


class _Scored(NamedTuple):
    """`by_class`, the means with `pointing`, and the same of every resample of the clips."""

    classes: dict[int, segmentation_metrics.Score]
    scores: dict[str, float]
    resampled: dict[str, bootstrap.Resampled]

    @property
    def with_intervals(self) -> dict[str, Any]:
        """The scores and their intervals, by the same names."""
        intervals = {name: bootstrap.interval(row) for name, row in self.resampled.items()}
        return {"scores": self.scores, "intervals": intervals}


def _score(maps: Maps, items: Items, weights: bootstrap.Weights) -> _Scored:
    table = segmentation_metrics.by_class(maps, items.masks, items.classes)
    hits = segmentation_metrics.pointing(maps, items.masks)
    resampled = segmentation_metrics.resampled_means(maps, items, weights)
    found, resampled_found = localisation.scores(maps, items, weights)
    means = segmentation_metrics.means(table.values())
    return _Scored(
        table,
        {**means, "pointing": float(hits.mean()), **found},
        {
            **resampled,
            "pointing": bootstrap.means(weights, items.records, hits),
            **resampled_found,
        },
    )


def _score_row(
    scored: dict[str, _Scored],
    maps: dict[str, Maps],
    items: Items,
    weights: bootstrap.Weights,
    names: list[str],
) -> dict[str, Any]:
    """All that is said of one kind of map; `scored` has its scores by sound."""
    own = scored[OWN]
    row: dict[str, Any] = own.with_intervals
    row["classes"] = {names[class_id]: score for class_id, score in own.classes.items()}
    if OTHER in scored:
        row[OTHER] = scored[OTHER].with_intervals
        row["own_minus_another"] = {
            name: bootstrap.interval(values - scored[OTHER].resampled[name])
            for name, values in own.resampled.items()
        }
    shares = {sound: _beats_silent_object(maps[sound], items, weights) for sound in scored}
    if shares[OWN] is not None:
        row["beats_silent_object"] = shares
    highest = {sound: of_sound.max(axis=(1, 2)) for sound, of_sound in maps.items()}
    row["tells_own_sound_from"] = _detections(highest, items, weights)
    return row


def _beats_silent_object(
    maps: Maps, items: Items, weights: bootstrap.Weights
) -> dict[str, Any] | None:
    """The share of frames with a silent object in which the sounding one has the higher mean."""
    won = segmentation_metrics.beats_silent_object(maps, items.masks, items.silent_masks)
    known = np.isfinite(won)
    if not known.any():
        return None
    resampled = bootstrap.means(weights, items.records[known], won[known])
    return {
        "share": float(won[known].mean()),
        "interval": bootstrap.interval(resampled),
        "frames": int(known.sum()),
    }


def _detections(
    values: dict[str, Float[np.ndarray, " items"]], items: Items, weights: bootstrap.Weights
) -> dict[str, Any]:
    """How well a value per item separates the own sound from each that is not on screen."""
    clips, once = np.tile(items.records, 2), np.ones((1, weights.shape[1]))
    positive = np.arange(len(clips)) < len(items.records)
    found = {}
    for sound in (OTHER, SILENCE):
        if sound in values:
            both = np.concatenate([values[OWN], values[sound]])
            areas = [
                bootstrap.areas_under_roc(of_clips, clips, both, positive)
                for of_clips in (once, weights)
            ]
            found[sound] = {"roc_auc": float(areas[0][0]), "interval": bootstrap.interval(areas[1])}
    return found


def _trivial(items: Items, weights: bootstrap.Weights) -> dict[str, dict[str, float]]:
    """The scores of maps that know nothing; a constant one points to a pixel at random."""
    small = segmentation_metrics.blob()
    blobs = np.broadcast_to(small, (len(items.records), *small.shape))
    table = segmentation_metrics.by_class(blobs, items.masks, items.classes)
    share = float(items.masks.mean())
    return {
        "constant map (every pixel)": {
            **segmentation_metrics.constant(table.values()),
            "pointing": share,
            **localisation.constant(items),
        },
        "blob in the middle": _score(blobs, items, weights).scores,
    }


def format_table(result: dict[str, Any]) -> str:
    """What `run` found as text, in percent, with the bounds of the 95 % intervals in brackets."""
    title = f"segmentation, {result['items']} images of {len(result['classes'])} classes, %"
    columns = tuple(result["scores"])
    lines = [f"{title:48}" + "".join(f"{name:>20}" for name in columns)]

    def cells(scores: dict[str, float], intervals: dict[str, list[float]]) -> str:
        texts = []
        for name in columns:
            bounds = f" [{_percent(*intervals[name])}]" if name in intervals else ""
            texts.append(f"{_percent(scores[name]):>6}{bounds:14}")
        return "".join(texts)

    notes = []
    for name, row in result["maps"].items():
        title = TITLES.get(name, name)
        lines.append(f"{title:48}{cells(row['scores'], row['intervals'])}")
        for control in (OTHER, UNTRAINED):
            if control in row:
                scored = row[control]
                lines.append(f"{'  ' + control:48}{cells(scored['scores'], scored['intervals'])}")
        for sound, beaten in row.get("beats_silent_object", {}).items():
            bounds = f"{_percent(beaten['share'])} [{_percent(*beaten['interval'])}]"
            notes.append(
                f"{title}, {sound}: higher on the sounding object than on the silent one in "
                f"{bounds} of {beaten['frames']} frames, 50 by chance"
            )
        notes += _detection_lines(f"{title}, highest value", row["tells_own_sound_from"])
    notes += _detection_lines("match of the whole picture", result["match_tells_own_sound_from"])
    for name, scores in result.get("baselines", {}).items():
        if name != UNTRAINED:
            lines.append(f"{name:48}{cells(scores, {})}")
    return "\n".join(line.rstrip() for line in [*lines, *notes, *published.text_lines(NAME)])


def _detection_lines(title: str, areas: dict[str, Any]) -> list[str]:
    return [
        f"{title}: tells the own sound from {sound}, ROC AUC {_percent(found['roc_auc'])} "
        f"[{_percent(*found['interval'])}], 50 by chance"
        for sound, found in areas.items()
    ]


def _percent(*shares: float) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, NAME)
    arguments.add_argument(
        "--map",
        choices=get_args(Map),
        help="kind of map; without it, both, the paper's cosine first",
    )
    arguments.add_argument(
        "--query",
        choices=get_args(Query),
        help="sound's vector: of the frame's own window, or the mean of all the clip's windows; "
        "without it, frame for clips and clip for single images",
    )
    arguments.add_argument(
        "--tokens",
        choices=get_args(heatmaps.Tokens),
        default="joint",
        help="image's vectors of the cosines: patches after the joint block, or of the encoder",
    )
    arguments.add_argument(
        "--sets",
        type=int,
        default=heatmaps.SETS,
        help="sets of kept patches per image, for evidence; more is better and slower",
    )

    def start(args: argparse.Namespace) -> None:
        model, records = common.opened(args)
        chosen = {"maps": (args.map,)} if args.map else {}
        chosen |= {"query": args.query, "tokens": args.tokens, "sets": args.sets}
        run(model, records, args.output, cache=args.cache, **chosen)

    cli.main(arguments, start, within=multihost.connected)


if __name__ == "__main__":
    main()
