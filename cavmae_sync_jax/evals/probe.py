"""Probes a frozen encoder: classification from its frames' features (paper Tables 2 and 10).

Example:
  python -m cavmae_sync_jax.evals.probe --config=configs/probe.py:as20k \\
      --checkpoint=runs/sync --data=DATASET --output=runs/sync/evals

A small transformer is trained on the split `config.train_split` and scored on --split. The scores
are mean average precision, mean area under the ROC curve, d', and accuracy if each clip has one
label. A probe of both streams is also scored with either modality missing.

Prints a table and writes OUTPUT/probe.json with every class, and OUTPUT/probe.png, which shows the
classes that are confused. A probe of one stream is called probe_audio or probe_visual. The head's
checkpoints are in OUTPUT/probe/, where the training resumes. --head=DIR scores a head of another
run or of a conversion instead of training one.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.data.labels import Truth
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.evals.figures import probe as figure
from cavmae_sync_jax.evals.metrics import classification
from cavmae_sync_jax.evals.report import published, results_table
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models.classifier import ALONE
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.training import probing
from cavmae_sync_jax.training.probing import Features, Labelled
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import BOTH


def run(
    model: Pretrained,
    records: loader.Records,
    config: ConfigDict,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    head: epath.PathLike | None = None,
    with_baselines: bool = False,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Trains a head on one split and scores it on another.

    Args:
      model: the encoder, which stays as it is.
      records: the clips that are scored; their dataset has the training clips, too.
      config: the recipe, see configs/probe.py.
      output: a folder for the results and the head's checkpoints; None writes and prints nothing.
      mesh: the devices; None means all.
      head: a trained head's folder; nothing is trained then.
      with_baselines: also probes an untrained model of the same shape, by the same recipe.
      cache: see `features.extract`.

    Returns:
      What `probe.json` holds.

    Raises:
      UserError: if the dataset has no labels, or the settings, the head or the data do not fit.
    """
    mesh = mesh or sharding.make_mesh()
    probing.check(config, mesh.size)
    name = probing.name_of(config.stream)
    truth, classes = labels.read(records), labels.class_names(records)
    if config.loss == "ce" and head is None:
        labels.require_one_label(records, truth, "loss")
    train = None
    if head is None or with_baselines:
        fitted = loader.Records(records.directory, config.train_split)
        train = labels.read(fitted), fitted
        if config.loss == "ce":
            labels.require_one_label(fitted, train[0], "loss")
    workdir = None if output is None else epath.Path(output) / name
    score = {"head": head, "train": train, "config": config, "mesh": mesh, "cache": cache}
    logits, missing = _logits(model, records, classes, workdir=workdir, **score)
    result = {
        "clips": len(records),
        "stream": config.stream,
        "scores": classification.scores_of(truth, logits),
    }
    if missing:
        result["missing"] = {
            name: classification.scores_of(truth, alone) for name, alone in missing.items()
        }
    result["baselines"] = {"class frequencies": _frequencies(truth, train)}
    result |= by_modality(records, truth, {config.stream: logits, **missing})
    if with_baselines:
        score |= {"head": None}
        plain, _ = _logits(common.untrained(model), records, classes, workdir=None, **score)
        result["baselines"]["untrained model"] = classification.scores_of(truth, plain)
    precisions = classification.class_precisions(truth, logits)
    result["classes"] = {
        label: {"AP": None if np.isnan(ap) else float(ap), "clips": int(count)}
        for label, ap, count in zip(classes, precisions, truth.sum(axis=0), strict=True)
    }
    if head is not None:
        result["head"] = {"directory": os.fspath(head)}
    result |= {"config": config.to_dict(), **common.describe(model, records)}
    if output is not None:
        common.write(output, name, result, format_table(result))
        if jax.process_index() == 0:
            figure.draw(truth, logits, classes, epath.Path(output) / f"{name}.png")
    return result


def by_modality(
    records: loader.Records,
    truth: Truth,
    by_mode: Mapping[str, Float[np.ndarray, "clips classes"]],
) -> dict[str, Any]:
    """VGGSounder's scores, if the dataset says how each label is perceived (Zverev et al. 2025).

    Args:
      records: the clips.
      truth: their labels.
      by_mode: what the model says in each of its modes, that of its training first.

    Returns:
      Nothing without such labels. Else `by_modality` has a row for each of
      `classification.PERCEIVED`. A row counts only its labels, in the clips that have one of them:
      `mAP`, `classification.top_k`, the number of `clips`, and the mode as `input`. Labels that
      are heard are scored with the sound alone, labels that are seen with the picture alone, and
      labels that are both with both. A model that can't do that is scored in its one mode.
      `modality_confusion` is there for models of both modalities.
    """
    if "label_modalities" not in records.features:
        return {}
    tags = np.full(truth.shape, "", object)
    for index in records.ahead(range(len(records))):
        record = records[index]
        tags[index, record["labels"]] = [tag.decode() for tag in record["label_modalities"]]
    found, main = {}, next(iter(by_mode))
    for name, wanted in classification.PERCEIVED.items():
        alone = {"A": "audio_alone", "V": "visual_alone"}.get(wanted[0], main)
        mode = alone if alone in by_mode else main
        counted = np.isin(tags, wanted)
        clips = counted.any(axis=1)
        if clips.any():
            chosen = counted[clips], by_mode[mode][clips]
            found[name] = {
                "mAP": float(np.nanmean(classification.class_precisions(*chosen))),
                **classification.top_k(*chosen),
                "clips": int(clips.sum()),
                "input": mode,
            }
    result = {"by_modality": found}
    if all(mode in by_mode for mode in ALONE):
        three = (by_mode[mode] for mode in (main, *ALONE))
        result["modality_confusion"] = classification.modality_confusion(truth, *three)
    return result


def _logits(
    model: Pretrained,
    records: loader.Records,
    classes: Sequence[str],
    *,
    head: epath.PathLike | None,
    train: tuple[Truth, loader.Records] | None,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.PathLike | None,
    cache: epath.PathLike | None,
) -> tuple[Float[np.ndarray, "clips classes"], dict[str, Float[np.ndarray, "clips classes"]]]:
    """The logits of a given head, or of one trained here, and those with a modality missing."""

    def seen(split: loader.Records) -> Features:
        names = probing.token_names(model.module.global_token, config.stream)
        tokens = features.extract(features.encoder_tokens, model, split, mesh, cache, only=names)
        return Features([tokens[name] for name in names])

    held_out = seen(records)
    width = held_out.width
    if head is not None:
        module, params = _load_head(head, model, width, classes, config.stream)
    else:
        truth, fitted = train
        module = probing.make_head(width, len(classes), config)
        source = seen(fitted) if config.cached else fitted
        learned_from = {
            "origin": features.origin(model, fitted),
            "contents": fitted.contents,
            "encoder": features.encoder(model),
            "class_names": tuple(classes),
        }
        clips = Labelled(truth, source, learned_from)
        encode = features.encoder_tokens
        params = probing.train(module, clips, model, config, mesh, workdir, encode)
    params = jax.device_get(params)
    logits, missing = probing.predict(module, params, held_out), {}
    if config.stream == BOTH:
        for name, modality in ALONE.items():
            alone = probing.only(held_out, modality)
            missing[name] = probing.predict(module, params, alone)
    return logits, missing


def _load_head(
    directory: epath.PathLike, model: Pretrained, width: int, classes: Sequence[str], stream: str
) -> tuple[ProbeHead, Any]:
    with manager.opened(directory) as stored:
        if "head" not in stored.config:
            raise UserError(f"--head={directory} holds no probe's head: name an OUTPUT/probe")
        # Heads of version 0.1.0 and conversions do not say all of what they learned.
        learned = stored.config.get("probe", {}).get("stream", stream)
        if learned != stream:
            raise UserError(
                f"--head={directory} learned from the stream {learned!r}, not {stream!r}: score it "
                f"with --config.stream={learned}"
            )
        module = ProbeHead(**stored.config.head)
        if (module.width, module.classes) != (width, len(classes)):
            raise UserError(
                f"--head={directory} takes features of width {module.width} and knows "
                f"{module.classes} classes, but model and dataset have {width} and {len(classes)}"
            )
        known = list(stored.config.get("class_names", classes))
        if known != list(classes):
            new = sorted(set(known) ^ set(classes))[:3] or ["the same ones in another order"]
            raise UserError(
                f"--head={directory} and the dataset have {len(classes)} classes each, which are "
                f"not the same (such as {', '.join(new)}): prepare the dataset with the head's "
                "--classes, or leave out --head to train one"
            )
        encoder = features.encoder(model)
        if stored.config.get("encoder", encoder) != encoder:
            raise UserError(
                f"--head={directory} learned from another model's features than those of "
                f"{model.directory}: name its own model by --checkpoint, or leave out --head to "
                "train one"
            )
        return module, stored.weights()


def _frequencies(truth: Truth, train: tuple[Truth, Any] | None) -> dict[str, float]:
    """The scores of a constant prediction: the frequencies of the classes in the training clips."""
    known = truth if train is None else train[0]
    return classification.scores_of(truth, np.broadcast_to(known.mean(axis=0), truth.shape))


def format_table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table, in percent."""
    rows = [("model", result["scores"])]
    rows += [
        (results_table.MISSING[name], scores) for name, scores in result.get("missing", {}).items()
    ]
    rows += result["baselines"].items()
    names = list(result["scores"])
    title = f"probe, {result['stream']}, {result['clips']} clips, %"
    lines = [f"{title:42}" + "".join(f"{name:>10}" for name in names)]
    for title, scores in rows:
        cells = (
            results_table.format_value(name, scores[name]) if name in scores else "–"
            for name in names
        )
        lines.append(f"{title:42}" + "".join(f"{cell:>10}" for cell in cells))
    theirs = published.text_lines("probe") if result["stream"] == "both" else []
    return "\n".join([*lines, *modality_lines(result), *theirs])


def modality_lines(result: dict[str, Any]) -> list[str]:
    """The rows of a table for `by_modality`, if a result has it."""
    if not (tagged := result.get("by_modality")):
        return []
    shown = ("mAP", "F1@1", "hit_rate@1")
    heads = "".join(f"{name:>12}" for name in shown)
    lines = [f"{'model, by how labels are perceived':42}{heads}{'clips':>8}  input"]
    for name, row in tagged.items():
        cells = "".join(f"{100 * row[score]:12.1f}" for score in shown)
        given = results_table.MISSING.get(row["input"], row["input"])
        lines.append(f"{'  ' + name:42}{cells}{row['clips']:8}  {given}")
    for name, share in result.get("modality_confusion", {}).items():
        alone = {"audio": "the sound alone", "visual": "the picture alone", "both": "each alone"}
        lines.append(f"  {100 * share:.1f} % of the clips: right with {alone[name]}, not with both")
    return lines


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "probe", single_frame=True)
    arguments.add_argument("--head", default=None, help="folder of a trained head to score")
    arguments.add_argument("--baselines", action="store_true", help="also probe an untrained model")

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        model, records = common.opened(args)
        run(
            model,
            records,
            config,
            args.output,
            head=args.head,
            with_baselines=args.baselines,
            cache=args.cache,
        )

    cli.main(arguments, start, config=True, within=multihost.connected)


if __name__ == "__main__":
    main()
