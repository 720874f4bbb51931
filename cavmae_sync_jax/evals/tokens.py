"""What each kind of token knows: probes of register, patch and global tokens (paper Table 12).

Example:
  python -m cavmae_sync_jax.evals.tokens --config=configs/probe.py:as20k,cached \\
      --checkpoint=runs/sync --data=DATASET --output=runs/sync/evals

The tokens come from the encoders, before the joint block. Register tokens and patch tokens are each
averaged per frame. Each kind is probed twice: by a linear layer on the mean over the frames, and by
the config's own head. The program prints one table, and writes OUTPUT/tokens.json and
OUTPUT/tokens.png.
"""

import argparse
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.evals.figures import tokens as figure
from cavmae_sync_jax.evals.metrics import classification
from cavmae_sync_jax.evals.report import published
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.training import probing
from cavmae_sync_jax.training.probing import STREAMS, Features, Labelled
from cavmae_sync_jax.utils import cli

KINDS = ("registers", "patches", "global")


def run(
    model: Pretrained,
    records: loader.Records,
    config: ConfigDict,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    with_baselines: bool = False,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Probes every kind of token that the model has.

    Args:
      model: the encoder.
      records: the clips that are scored; their dataset has the training clips, too.
      config: the recipe, see configs/probe.py; `cached` must be set.
      output: a folder for the results; None writes and prints nothing.
      mesh: the devices; None means all.
      with_baselines: also probes an untrained model's tokens.
      cache: see `features.extract`.

    Returns:
      What `tokens.json` holds: `scores[HEAD][KIND]`, HEAD `linear` or `transformer`.

    Raises:
      UserError: if the dataset has no labels or the config does not fit.
    """
    mesh = mesh or sharding.make_mesh()
    probing.check(config, mesh.size)
    probing.require_cached(config)
    fitted = loader.Records(records.directory, config.train_split)
    truths = labels.read(fitted), labels.read(records)
    if config.loss == "ce":
        for split, truth in zip((fitted, records), truths, strict=True):
            labels.require_one_label(split, truth, "loss")
    result: dict[str, Any] = {"clips": len(records), "stream": config.stream}
    result["scores"] = _scores(model, fitted, records, truths, config, mesh, cache)
    if with_baselines:
        plain = common.untrained(model)
        result["untrained"] = _scores(plain, fitted, records, truths, config, mesh, cache)
    result |= {"config": config.to_dict(), **common.describe(model, records)}
    if output is not None:
        common.write(output, "tokens", result, format_table(result))
        if jax.process_index() == 0:
            figure.draw(result, epath.Path(output) / "tokens.png")
    return result


def _scores(
    model: Pretrained,
    fitted: loader.Records,
    records: loader.Records,
    truths: tuple[labels.Truth, labels.Truth],
    config: ConfigDict,
    mesh: Mesh,
    cache: epath.PathLike | None,
) -> dict[str, dict[str, dict[str, float]]]:
    splits = [
        features.extract(features.encoder_tokens, model, split, mesh, cache)
        for split in (fitted, records)
    ]
    scores: dict[str, dict[str, dict[str, float]]] = {"linear": {}, "transformer": {}}
    for kind in KINDS:
        names = [f"{modality}_{kind}" for modality in STREAMS[config.stream]]
        if names[0] not in splits[0]:
            continue
        seen, held_out = (Features([split[name] for name in names]) for split in splits)
        for title, of_head in scores.items():
            settings = config.copy_and_resolve_references()
            settings.depth = 0 if title == "linear" else config.depth
            head = probing.make_head(seen.width, truths[0].shape[1], settings)
            clips = Labelled(truths[0], seen)
            params = probing.train(head, clips, model, settings, mesh, None)
            logits = probing.predict(head, jax.device_get(params), held_out)
            of_head[kind] = classification.scores_of(truths[1], logits)
    return scores


def format_table(result: dict[str, Any]) -> str:
    """The mean average precisions of `run` as a text table, in percent."""
    title = f"tokens, {result['stream']}, {result['clips']} clips, mAP in %"
    lines = [f"{title:42}" + "".join(f"{kind:>11}" for kind in KINDS)]
    for name, scores in (("model", result["scores"]), ("untrained", result.get("untrained"))):
        for head, of_kind in (scores or {}).items():
            cells = [
                f"{100 * of_kind[k]['mAP']:11.1f}" if k in of_kind else f"{'-':>11}" for k in KINDS
            ]
            lines.append(f"{f'{name}, {head}':42}" + "".join(cells))
    theirs = published.text_lines("tokens") if result["stream"] == "both" else []
    return "\n".join([*lines, *theirs])


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "tokens", single_frame=True)
    arguments.add_argument(
        "--baselines", action="store_true", help="also probe an untrained model's tokens"
    )

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        model, records = common.opened(args)
        baselines, cache = args.baselines, args.cache
        run(model, records, config, args.output, with_baselines=baselines, cache=cache)

    cli.main(arguments, start, config=True, within=multihost.connected)


if __name__ == "__main__":
    main()
