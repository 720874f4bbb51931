"""Audio-visual retrieval (paper sections 3.5.1 and 8; Tables 1 and 11).

Examples:
  python -m cavmae_sync_jax.evals.retrieval --checkpoint=runs/sync --data=DATASET --output=runs/r
  python -m cavmae_sync_jax.evals.retrieval --checkpoint=runs/sync --data=DATASET --clips=LIST
  python -m cavmae_sync_jax.evals.retrieval --embeddings=other_system.npz --output=runs/other

Prints a table and writes OUTPUT/retrieval.json and OUTPUT/retrieval.png, where some queries are
shown with their best matches.

--clips=LIST scores only the clips of a published list. This is CAV-MAE's JSON ({"data":
[{"video_id": …}]}), a text file with an id per line, or a CSV with a header, such as AudioCaps'
test.csv. In a JSON without video_id, the name of the wav or video_path counts. An entry is a clip's
id, its file's name, YouTube's id, or the row of a published list. Clips that the dataset lacks are
reported and written to the JSON.

--embeddings=FILE.npz scores any system, without model or dataset, and without a picture. The file
holds float arrays `audio` and `visual` [clips, frames, dim], or [clips, dim] for one frame per
clip. Row i of both is the same clip. Their numbers of frames may differ if --strategies names only
mean and max.
"""

import argparse
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import baselines, clip_lists, common
from cavmae_sync_jax.evals.figures import retrieval as figure
from cavmae_sync_jax.evals.metrics import bootstrap, ranking
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.evals.report import published
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.inference.features import Arrays
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError

FITTED_ON = "train"  # the split that the linear baseline is fitted on
# What --embeddings does without.
MODELS_FLAGS = ("checkpoint", "data", "split", "cache", "clips", "baselines", "num_frames", "frame")
DIRECTIONS = ("visual_to_audio", "audio_to_visual")
Scores = dict[str, dict[str, float]]


def run(
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    strategies: Sequence[str] = tuple(retrieval_metrics.STRATEGIES),
    with_baselines: bool = False,
    clips: epath.PathLike | None = None,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Scores a model's retrieval within a split of clips.

    Args:
      model: whose global embeddings are compared.
      records: the clips that are queries and targets.
      output: a folder for `retrieval.json` and `retrieval.png`; None writes and prints nothing.
      mesh: the devices; None means all.
      strategies: of `similarity.STRATEGIES`.
      with_baselines: also scores chance and an untrained model of the same shape; a linear
        baseline, where the dataset has a split "train" to fit it on; and an oracle, where the
        dataset knows the truth and the whole split is scored. Their aggregation is
        `diagonal_mean`, or if that is not asked for, the first of `strategies`.
      clips: a file that lists the ids of the clips that count, see `clip_lists.read`; None: all.
      cache: see `features.extract`.

    Returns:
      What `retrieval.json` holds.

    Raises:
      UserError: if `clips` is no such list, or `records` has none of its clips.
    """
    mesh = mesh or sharding.make_mesh()
    chosen: dict[str, Any] = {}
    if clips is not None:
        wanted = clip_lists.read(clips)
        records, missing = clip_lists.select(records, wanted, str(clips))
        chosen = {
            "clips_list": {"file": str(clips), "clips": len(wanted)},
            "clips_missing": missing,
        }
    embedded = features.extract(features.embeddings, model, records, mesh, cache)
    scored, resampled = _scored(embedded, strategies)
    result = {"clips": len(records), **chosen, **scored}
    if with_baselines:
        main = retrieval_metrics.main_of(strategies)
        result["baselines"] = _baselines(model, records, mesh, main)
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, "retrieval", result, format_table(result))
        common.write_resamples(output, "retrieval", resampled)
        if jax.process_index() == 0:
            pair_spec = loader.PairSpec.of(model.config)
            figure.draw(records, pair_spec, embedded, epath.Path(output) / "retrieval.png")
    return result


def run_embeddings(
    file: epath.PathLike,
    output: epath.PathLike | None = None,
    *,
    strategies: Sequence[str] = tuple(retrieval_metrics.STRATEGIES),
) -> dict[str, Any]:
    """Scores the embeddings of any system, see `read_embeddings`; returns what the JSON holds.

    Raises:
      UserError: if the file is not what it should be, or `strategies` can't compare its frames.
    """
    embedded = read_embeddings(file)
    clips = len(embedded["audio"])
    try:
        scored, resampled = _scored(embedded, strategies)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    about = {n: {"shape": list(x.shape), "dtype": str(x.dtype)} for n, x in embedded.items()}
    result = {
        "clips": clips,
        **scored,
        "baselines": {"chance": baselines.chance(clips)},
        "embeddings": {"file": str(file), **about},
        "version": cli.version(),
    }
    if output is not None:
        common.write(output, "retrieval", result, format_table(result))
        common.write_resamples(output, "retrieval", resampled)
    return result


def _scored(
    embedded: Arrays, strategies: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bootstrap.Resampled]]:
    """Scores with their intervals, and the recalls of resamples: `STRATEGY/DIRECTION/R1`."""
    frames = {name: rows.shape[1] for name, rows in embedded.items()}
    if _one_frame(frames):
        ranks = dict.fromkeys(strategies, ranking.ranks(**embedded)._asdict())
    else:
        ranks = {name: ranking.ranks(**embedded, strategy=name)._asdict() for name in strategies}
    scores = {
        strategy: {d: retrieval_metrics.summary(rank) for d, rank in of_strategy.items()}
        for strategy, of_strategy in ranks.items()
    }
    places = [(s, d, k) for s in strategies for d in DIRECTIONS for k in published.RECALLS]
    hits = np.stack([ranks[s][d] <= int(k.removeprefix("R")) for s, d, k in places])
    resampled = bootstrap.shares(hits)
    intervals: dict[str, Any] = {s: {d: {} for d in DIRECTIONS} for s in strategies}
    for (strategy, direction, recall), values in zip(places, resampled, strict=True):
        intervals[strategy][direction][recall] = bootstrap.interval(values)
    named = {"/".join(place): values for place, values in zip(places, resampled, strict=True)}
    return {"frames": frames, "scores": scores, "intervals": intervals}, named


def _one_frame(frames: dict[str, int]) -> bool:
    """Whether all aggregations are the same."""
    return set(frames.values()) == {1}


def _baselines(
    model: Pretrained, records: loader.Records, mesh: Mesh, strategy: str
) -> dict[str, Scores]:
    pair_spec = loader.PairSpec.of(model.config)
    embedded = features.extract(features.embeddings, common.untrained(model), records, mesh)
    result = {
        "chance": baselines.chance(len(records)),
        "untrained model": ranking.retrieval(**embedded, strategy=strategy),
    }
    if FITTED_ON in records.splits:
        train = loader.Records(records.directory, FITTED_ON)
        linear = baselines.linear(train, records, pair_spec, strategy)
        result["linear (CCA of colours and mean log-mel)"] = linear
    else:
        console.log(f"no linear baseline: {records.directory} has no split {FITTED_ON!r} to fit it")
    # The oracle knows whole splits only.
    if "frame_class" in records.features and not isinstance(records, clip_lists.Selected):
        oracle = baselines.oracle(records, pair_spec, strategy)
        result["oracle (true class of each frame)"] = oracle
    return result


def read_embeddings(
    path: epath.PathLike,
) -> dict[str, Float[np.ndarray, "clips frames dim"]]:
    """The arrays `audio` and `visual` of an npz; one without frames gets one.

    Raises:
      UserError: if one is not there, broken, empty or not float, or the two don't go together.
    """
    names = ("audio", "visual")
    try:
        with epath.Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path} is not an npz file, or is cut short")
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                held = list(stored)
                arrays = {name: _native(stored[name]) for name in names if name in held}
    except UserError:
        raise
    except Exception as error:  # the file system, zipfile, zlib and NumPy have their own
        raise UserError(f"the npz file {path} can't be read: {error}") from error
    missing = [name for name in names if name not in arrays]
    if missing:
        raise UserError(
            f"{path} holds no array {' and no array '.join(missing)}; "
            f"it has {', '.join(held) or 'none'}"
        )
    for name, array in arrays.items():
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise UserError(
                f"{path}: {name} is {array.dtype}, but embeddings are float16, float32 or float64"
            )
        if array.ndim not in (2, 3) or not array.size:
            raise UserError(
                f"{path}: {name} has the shape {list(array.shape)}; it must be "
                "[clips, frames, dim] or [clips, dim], none of them 0"
            )
    audio, visual = (x if x.ndim == 3 else x[:, None] for x in arrays.values())
    for what, axis in (("clips", 0), ("dimensions", 2)):
        if audio.shape[axis] != visual.shape[axis]:
            raise UserError(
                f"{path}: audio has {audio.shape[axis]} {what} and visual {visual.shape[axis]}; "
                "they must be as many"
            )
    return {"audio": audio, "visual": visual}


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def format_table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table, in percent."""
    title = f"retrieval, {result['clips']} clips, %"
    header = f"{title:42}" + "".join(f"  {d.replace('_to_', ' → '):^26}" for d in DIRECTIONS)
    columns = f"{'':42}" + f"  {'R@1':>5} {'R@5':>5} {'R@10':>5} {'median':>8}" * 2
    whose = "embeddings" if "embeddings" in result else "model"
    if _one_frame(result["frames"]):
        first = next(iter(result["scores"].values()))
        rows = [(f"{whose}, all aggregations (one frame)", first)]
    else:
        named = result["scores"].items()
        rows = [(f"{whose}, {name.replace('_', ' ')}", score) for name, score in named]
    rows += list(result.get("baselines", {}).items())
    lines = [header, columns]
    for name, score in rows:
        cells = [
            "  "
            + " ".join(f"{100 * score[direction][k]:5.1f}" for k in ("R1", "R5", "R10"))
            + f" {score[direction]['median_rank']:8.1f}"
            for direction in DIRECTIONS
        ]
        lines.append(f"{name:42}" + "".join(cells))
    lines.append(published.heading())
    for system in published.RETRIEVAL:
        cells = [
            "  "
            + " ".join(f"{system.scores[f'{d}/{k}']:5.1f}" for k in published.RECALLS)
            + " " * 9
            for d in DIRECTIONS
        ]
        lines.append(f"{f'{system.name}, {system.data}':42.42}" + "".join(cells).rstrip())
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "retrieval", needs_model=False, single_frame=True)
    arguments.add_argument(
        "--baselines",
        action="store_true",
        help="also score chance, an untrained model, and, where they can be had, a linear baseline "
        "and an oracle",
    )
    arguments.add_argument("--clips", metavar="LIST", help="score only the clips of this list")
    arguments.add_argument(
        "--embeddings", metavar="FILE", help="npz file to score instead of a model's embeddings"
    )
    arguments.add_argument(
        "--strategies",
        type=_strategies,
        default=",".join(retrieval_metrics.STRATEGIES),
        help="aggregations of frames to score, with commas between",
    )

    def start(args: argparse.Namespace) -> None:
        if args.embeddings is not None:
            for name in MODELS_FLAGS:
                if getattr(args, name) != arguments.get_default(name):
                    raise UserError(f"--embeddings is scored by itself: leave out --{name}")
            cli.make_folder(args.output)
            run_embeddings(args.embeddings, args.output, strategies=args.strategies)
            return
        if args.checkpoint is None or args.data is None:
            raise UserError("give --checkpoint and --data, or --embeddings alone")
        model, records = common.opened(args)
        run(
            model,
            records,
            args.output,
            strategies=args.strategies,
            with_baselines=args.baselines,
            clips=args.clips,
            cache=args.cache,
        )

    cli.main(arguments, start, within=multihost.connected)


def _strategies(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in retrieval_metrics.STRATEGIES]
    if unknown:
        known = ", ".join(retrieval_metrics.STRATEGIES)
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are {known}")
    return names


if __name__ == "__main__":
    main()
