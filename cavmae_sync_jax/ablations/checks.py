"""Refuses before the trainings what a table's evaluations would refuse after them."""

from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from cavmae_sync_jax.ablations.plan import EvaluationSpec, Training
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.training import probing
from cavmae_sync_jax.utils.errors import UserError

ONE_FRAME = ("retrieval", "probe", "tokens")  # evaluations that make sense with one frame per clip


def settings(spec: EvaluationSpec, known: Collection[str]) -> None:
    """Refuses settings that an evaluation does not have.

    Raises:
      UserError: naming the first one.
    """
    if unknown := [key for key, _ in spec.settings if key not in known]:
        raise UserError(
            f"SETTINGS: {spec.evaluation} has no setting {unknown[0]!r}; it has {', '.join(known)}"
        )


def frames(
    training: Training, spec: EvaluationSpec, records: loader.Records, asked: Sequence[str]
) -> None:
    """Refuses frames that the rows of a training can't be evaluated with.

    Args:
      training: of the model.
      spec: of the evaluation.
      records: the clips that are scored.
      asked: the names of the rows that ask for it.

    Raises:
      UserError: if the clips have no such frames, or frames of another size.
    """
    rows = f"the rows {', '.join(asked)} evaluate"
    stored, wanted = len(records[0]["frames"]), training.config.data.num_frames
    if spec.num_frames is not None:
        wanted = spec.num_frames
    elif spec.evaluation == "segmentation":
        wanted = min(stored, wanted)  # it takes what there is
    if wanted < 1:
        raise UserError(f"{rows} {wanted} frames per clip: num_frames must be at least 1")
    if spec.frame is not None and spec.evaluation not in ONE_FRAME:
        raise UserError(
            f"{rows} a single frame, which {spec.evaluation} can't: leave out `frame` or the column"
        )
    if spec.frame is not None and not 0 <= spec.frame < wanted:
        raise UserError(
            f"{rows} frame {spec.frame} of {wanted}, which are counted from 0: "
            f"frame must be from 0 to {wanted - 1}"
        )
    if spec.evaluation == "segmentation" and stored == 1:
        wanted = 1  # the sound of a single image has any number of windows
    if wanted > stored:
        raise UserError(
            f"{rows} {wanted} frames per clip, but {records.directory} holds {stored}: "
            "choose other rows by --rows"
        )
    pair_spec = loader.PairSpec.of(training.config)._replace(num_frames=wanted)
    try:
        records.pairs(0, pair_spec, [0])
    except UserError as error:
        raise UserError(f"{rows} {records.directory}: {error}") from error


def recipe(
    training: Training,
    spec: EvaluationSpec,
    config: ConfigDict,
    fitted: loader.Records,
    records: loader.Records,
    devices: int,
) -> None:
    """Refuses the recipe of a probe or a token analysis that its data or its model do not fit.

    Args:
      training: of the model.
      spec: of the evaluation.
      config: the recipe with the table's settings.
      fitted: the clips that a head learns from.
      records: the clips that are scored.
      devices: how many share a batch.

    Raises:
      UserError: naming the evaluation and the setting.
    """
    try:
        probing.check(config, devices)
        if spec.evaluation == "tokens":
            probing.require_cached(config)
        probing.steps_per_epoch(config, len(fitted))
        streams = probing.STREAMS[config.stream]
        probing.make_head(len(streams) * training.config.model.width, 1, config)
        for split in (fitted, records):
            truth = labels.read(split)
            if config.loss == "ce":
                labels.require_one_label(split, truth, "loss")
    except UserError as error:
        name = spec.evaluation
        raise UserError(f"{name}, by --probe and SETTINGS[{name!r}]: {error}") from error
