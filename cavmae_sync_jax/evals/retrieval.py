"""Audio-visual retrieval (paper sections 3.5.1 and 8; Tables 1 and 11) of a trained model.

Example:
  python -m cavmae_sync_jax.evals.retrieval --checkpoint=runs/sync --data=DATASET --output=runs/r

Prints a table and writes OUTPUT/retrieval.json and OUTPUT/retrieval.png, where some queries are
shown with their best matches.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8

from cavmae_sync_jax import cli, dataset, features, sharding
from cavmae_sync_jax.evals import baselines, common, scores
from cavmae_sync_jax.features import Arrays
from cavmae_sync_jax.model import VISUAL
from cavmae_sync_jax.pretrained import Pretrained

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DIRECTIONS = ("visual_to_audio", "audio_to_visual")


def run(
    model: Pretrained,
    records: dataset.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    strategies: Sequence[str] = tuple(scores.STRATEGIES),
    with_baselines: bool = False,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Scores a model's retrieval within a split of clips.

    Args:
      model: whose global embeddings are compared.
      records: the clips that are queries and targets.
      output: a folder for `retrieval.json` and `retrieval.png`; None writes and prints nothing.
      mesh: the devices; None means all.
      strategies: of `scores.STRATEGIES`.
      with_baselines: also scores chance, an untrained model of the same shape, a linear baseline
        fitted on the split "train" and, where the dataset knows the truth, an oracle.
      cache: see `features.extract`.

    Returns:
      What `retrieval.json` holds.
    """
    mesh = mesh or sharding.make_mesh()
    fitted = dataset.Records(records.directory, "train") if with_baselines else None
    embedded = features.extract(features.embeddings, model, records, mesh, cache)
    result: dict[str, Any] = {
        "clips": len(records),
        "scores": {name: scores.retrieval(**embedded, strategy=name) for name in strategies},
    }
    if fitted is not None:
        result["baselines"] = _baselines(model, fitted, records, mesh)
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, "retrieval", result, table(result))
        if jax.process_index() == 0:
            framing = dataset.Framing.of(model.config)
            draw_matches(records, framing, embedded, epath.Path(output) / "retrieval.png")
    return result


def _baselines(
    model: Pretrained, train: dataset.Records, records: dataset.Records, mesh: Mesh
) -> dict[str, dict[str, dict[str, float]]]:
    framing = dataset.Framing.of(model.config)
    embedded = features.extract(features.embeddings, common.untrained(model), records, mesh)
    result = {
        "chance": baselines.chance(len(records)),
        "untrained model": scores.retrieval(**embedded),
        "linear (CCA of colours and mean log-mel)": baselines.linear(train, records, framing),
    }
    if "frame_class" in records.features:
        result["oracle (true class of each frame)"] = baselines.oracle(records, framing)
    return result


def table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table, in percent."""
    title = f"retrieval, {result['clips']} clips, %"
    header = f"{title:42}" + "".join(f"  {d.replace('_to_', ' → '):^26}" for d in DIRECTIONS)
    columns = f"{'':42}" + f"  {'R@1':>5} {'R@5':>5} {'R@10':>5} {'median':>8}" * 2
    rows = [(f"model, {name.replace('_', ' ')}", score) for name, score in result["scores"].items()]
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
    return "\n".join(lines)


def draw_matches(
    records: dataset.Records,
    framing: dataset.Framing,
    embedded: Arrays,
    path: epath.Path,
    queries: int = 6,
    matches: int = 5,
) -> None:
    """Draws evenly chosen queries by sound, with their own clip and the best matches by picture.

    A sound is the whole clip's log-mel, a clip four of its frames in reading order; the true match
    has a green frame.
    """
    similarity = scores.diagonal_mean(embedded["audio"], embedded["visual"])
    rank = scores.ranks(similarity)
    chosen = np.linspace(0, len(records) - 1, min(queries, len(records))).astype(int)
    columns = 2 + min(matches, len(records))
    figure, axes = plt.subplots(
        len(chosen), columns, figsize=(1.9 * columns, 2.1 * len(chosen)), squeeze=False
    )
    for row, query in zip(axes, chosen, strict=True):
        fbank = records[int(query)]["fbank"].astype(np.float32)
        row[0].imshow(fbank.T, origin="lower", aspect="auto", cmap="magma")
        row[0].set_title(f"query: sound of clip {query}", fontsize=8)
        row[1].imshow(_mosaic(records, framing, int(query)))
        row[1].set_title(f"its frames (rank {rank[query]:g})", fontsize=8)
        for place, target in enumerate(np.argsort(-similarity[query])[: columns - 2], 1):
            axis = row[place + 1]
            axis.imshow(_mosaic(records, framing, int(target)))
            axis.set_title(f"{place}. clip {target}: {similarity[query, target]:.2f}", fontsize=8)
            if target == query:
                for spine in axis.spines.values():
                    spine.set(edgecolor="limegreen", linewidth=4)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    with path.open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _mosaic(
    records: dataset.Records, framing: dataset.Framing, clip: int
) -> UInt8[np.ndarray, "height width 3"]:
    quarters = [i * framing.num_frames // 4 for i in range(4)]
    frames = [pair[VISUAL] for pair in records.pairs(clip, framing, quarters)]
    return np.concatenate([np.concatenate(frames[i : i + 2], axis=1) for i in (0, 2)])


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "retrieval")
    arguments.add_argument(
        "--baselines",
        action="store_true",
        help="also score chance, an untrained model, a linear baseline and an oracle",
    )

    def start(args: argparse.Namespace) -> None:
        model, records = common.opened(args)
        run(model, records, args.output, with_baselines=args.baselines, cache=args.cache)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
