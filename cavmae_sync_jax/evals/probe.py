"""Probes a frozen encoder: classification from its frames' features (paper Tables 2 and 10).

Example:
  python -m cavmae_sync_jax.evals.probe --config=configs/probe.py:as20k \\
      --checkpoint=runs/sync --data=DATASET --output=runs/sync/evals

A small transformer is trained on the split `config.train_split` and scored on --split: mean average
precision over the classes, and accuracy where each clip has one label. Prints a table and writes
OUTPUT/probe.json with every class and OUTPUT/probe.png, who is taken for whom (probe_audio and
probe_visual for one stream). The head's checkpoints are in OUTPUT/probe/, where it resumes.
--head=DIR scores a head of another run or of a conversion instead of training one.
"""

import argparse
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common, probe_training
from cavmae_sync_jax.evals.figures import probe as figure
from cavmae_sync_jax.evals.metrics import classification
from cavmae_sync_jax.evals.probe_training import Features, Labelled
from cavmae_sync_jax.evals.report import published
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

Truth = Bool[np.ndarray, "_ classes"]  # of one split or the other


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
    probe_training.check(config, mesh.size)
    name = "probe" if config.stream == "both" else f"probe_{config.stream}"
    truth, classes = labels(records), class_names(records)
    if config.loss == "ce" and head is None:
        _one_label(records, truth)
    train = None
    if head is None or with_baselines:
        fitted = loader.Records(records.directory, config.train_split)
        train = labels(fitted), fitted
        if config.loss == "ce":
            _one_label(fitted, train[0])
    workdir = None if output is None else epath.Path(output) / name
    score = {"head": head, "train": train, "config": config, "mesh": mesh, "cache": cache}
    logits = _logits(model, records, len(classes), workdir=workdir, **score)
    result = {"clips": len(records), "stream": config.stream, "scores": scores_of(truth, logits)}
    result["baselines"] = {"class frequencies": _frequencies(truth, train)}
    if "label_modalities" in records.features:
        result["by_modality"] = by_modality(records, truth, logits)
    if with_baselines:
        score |= {"head": None}
        plain = _logits(common.untrained(model), records, len(classes), workdir=None, **score)
        result["baselines"]["untrained model"] = scores_of(truth, plain)
    precisions = classification.class_precisions(truth, logits)
    result["classes"] = {
        label: {"AP": None if np.isnan(ap) else float(ap), "clips": int(count)}
        for label, ap, count in zip(classes, precisions, truth.sum(axis=0), strict=True)
    }
    result |= {"config": config.to_dict(), **common.describe(model, records)}
    if output is not None:
        common.write(output, name, result, format_table(result))
        if jax.process_index() == 0:
            figure.draw(truth, logits, classes, epath.Path(output) / f"{name}.png")
    return result


def class_names(records: loader.Records) -> list[str]:
    """The names of a dataset's classes, in the order of its labels.

    Raises:
      UserError: if it has none.
    """
    names = list(records.features["labels"].feature.names)
    if not names:
        raise UserError(
            f"{records.directory} has no labels, which a probe learns from: "
            "prepare it with labels, such as data_prep.videos --labels=CSV"
        )
    return names


def labels(records: loader.Records) -> Truth:
    """Which classes each clip has.

    Raises:
      UserError: if the dataset has no labels, or a clip of the split has none.
    """
    truth = np.zeros((len(records), len(class_names(records))), bool)
    for clip, indices in zip(truth, records.labels(), strict=True):
        clip[indices] = True
    without = np.flatnonzero(~truth.any(axis=1))
    if without.size:
        raise UserError(
            f"{records.directory}, split {records.split}: {without.size} clips have no label "
            f"(the first: {records.ids([int(without[0])])[0]}), so that nothing can be learned "
            "from them or said of them"
        )
    return truth


def by_modality(
    records: loader.Records, truth: Truth, logits: Float[np.ndarray, "clips classes"]
) -> dict[str, dict[str, float]]:
    """The scores of the labels that are heard, seen, or both, as VGGSounder has them.

    Each of `classification.PERCEIVED` counts only its labels, in the clips that have one of them:
    `mAP`, `hit_rate` (the share of clips whose best class is one of them) and how many `clips`
    (Zverev et al., ICCV 2025).
    """
    tags = np.full(truth.shape, "", object)
    for index in records.ahead(range(len(records))):
        record = records[index]
        tags[index, record["labels"]] = [tag.decode() for tag in record["label_modalities"]]
    found = {}
    for name, wanted in classification.PERCEIVED.items():
        counted = np.isin(tags, wanted)
        clips = counted.any(axis=1)
        if clips.any():
            chosen = counted[clips], logits[clips]
            found[name] = {
                "mAP": float(np.nanmean(classification.class_precisions(*chosen))),
                "hit_rate": classification.accuracy(*chosen),
                "clips": int(clips.sum()),
            }
    return found


def _one_label(records: loader.Records, truth: Truth) -> None:
    several = np.flatnonzero(truth.sum(axis=1) > 1)
    if several.size:
        raise UserError(
            f"config.loss='ce' needs one label per clip, but {several.size} clips of the split "
            f"{records.split} have more (the first: {records.ids([int(several[0])])[0]}): "
            "use --config.loss=bce"
        )


def _logits(
    model: Pretrained,
    records: loader.Records,
    classes: int,
    *,
    head: epath.PathLike | None,
    train: tuple[Truth, loader.Records] | None,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.PathLike | None,
    cache: epath.PathLike | None,
) -> Float[np.ndarray, "clips classes"]:
    """The logits of a given head, or of one trained here."""

    def seen(split: loader.Records) -> Features:
        names = probe_training.token_names(model.module.global_token, config.stream)
        tokens = features.extract(features.encoder_tokens, model, split, mesh, cache, only=names)
        return Features([tokens[name] for name in names])

    held_out = seen(records)
    width = held_out.width
    if head is not None:
        module, params = _load_head(head, width, classes)
    else:
        truth, fitted = train
        module = probe_training.make_head(width, classes, config)
        clips = Labelled(truth, seen(fitted) if config.cached else fitted)
        params = probe_training.train(module, clips, model, config, mesh, workdir)
    return probe_training.predict(module, jax.device_get(params), held_out)


def _load_head(directory: epath.PathLike, width: int, classes: int) -> tuple[ProbeHead, Any]:
    with manager.opened(directory) as stored:
        if "head" not in stored.config:
            raise UserError(f"{directory} holds no probe's head")
        module = ProbeHead(**stored.config.head)
        if (module.width, module.classes) != (width, classes):
            raise UserError(
                f"the head in {directory} takes features of width {module.width} and knows "
                f"{module.classes} classes, but here are {width} and {classes}"
            )
        return module, stored.weights()


def scores_of(truth: Truth, logits: Float[np.ndarray, "clips classes"]) -> dict[str, float]:
    """`mAP` over the classes that have clips; `accuracy` where every clip has one label."""
    scores = {"mAP": float(np.nanmean(classification.class_precisions(truth, logits)))}
    if (truth.sum(axis=1) == 1).all():
        scores["accuracy"] = classification.accuracy(truth, logits)
    return scores


def _frequencies(truth: Truth, train: tuple[Truth, Any] | None) -> dict[str, float]:
    """What a constant scores: how often each class comes in the training clips."""
    known = truth if train is None else train[0]
    return scores_of(truth, np.broadcast_to(known.mean(axis=0), truth.shape))


def format_table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table, in percent."""
    rows = [("model", result["scores"]), *result["baselines"].items()]
    names = list(result["scores"])
    title = f"probe, {result['stream']}, {result['clips']} clips, %"
    lines = [f"{title:42}" + "".join(f"{name:>10}" for name in names)]
    for title, scores in rows:
        lines.append(f"{title:42}" + "".join(f"{100 * scores[name]:10.1f}" for name in names))
    if tagged := result.get("by_modality"):
        lines.append(
            f"{'model, by how labels are perceived':42}{'mAP':>10}{'hit@1':>10}{'clips':>10}"
        )
    for name, row in (tagged or {}).items():
        cells = f"{100 * row['mAP']:10.1f}{100 * row['hit_rate']:10.1f}{row['clips']:10}"
        lines.append(f"{'  ' + name:42}{cells}")
    told = published.told("probe") if result["stream"] == "both" else []
    return "\n".join([*lines, *told])


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
