"""What evaluations share: flags, the settings that a result states, the untrained model."""

import argparse
import io
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from cavmae_sync_jax.checkpoints.pretrained import Pretrained, load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.metrics import bootstrap
from cavmae_sync_jax.utils import atomic, cli
from cavmae_sync_jax.utils.errors import UserError

UNTRAINED_SEED = 1_000_003  # not the seed that a training is likely to have begun with


def parser(
    description: str, name: str, *, needs_model: bool = True, single_frame: bool = False
) -> argparse.ArgumentParser:
    """The flags of an evaluation.

    They are `--checkpoint`, `--data`, `--split`, `--output`, `--cache` and `--num_frames`.

    Args:
      description: the help.
      name: of the evaluation.
      needs_model: False for one that can do without the first two, which then sees to them.
      single_frame: whether it makes sense with one frame per clip, by `--frame`.
    """
    arguments = cli.parser(description)
    arguments.add_argument(
        "--checkpoint", required=needs_model, help="workdir of a training, or a conversion's folder"
    )
    arguments.add_argument("--data", required=needs_model, help="prepared dataset")
    arguments.add_argument("--split", default="eval", help="which clips are scored")
    arguments.add_argument("--output", default=f"runs/{name}", help="folder of the results")
    arguments.add_argument(
        "--cache", default=None, help="folder where features are kept for the next evaluation"
    )
    arguments.add_argument(
        "--num_frames",
        type=int,
        help="frames per clip, evenly chosen; without it, as many as the training drew from",
    )
    if single_frame:
        arguments.add_argument(
            "--frame",
            type=int,
            help="take only this one of them, counted from 0 (CAV-MAE's protocol: --num_frames=10 "
            "--frame=5)",
        )
    return arguments


def opened(args: argparse.Namespace) -> tuple[Pretrained, loader.Records]:
    """The model and the split that the flags name, and the output folder made.

    Raises:
      UserError: if one of them is not there, or the clips have too few frames.
    """
    model, records = load(args.checkpoint), loader.Records(args.data, args.split)
    model = with_frames(model, args.num_frames, getattr(args, "frame", None))
    if args.num_frames is not None:
        stored = len(records[0]["frames"])
        if 1 < stored < args.num_frames:  # a single image's sound has any number of windows
            raise UserError(
                f"--num_frames={args.num_frames}, but {records.directory} holds {stored} frames "
                f"per clip: take at most {stored}"
            )
    cli.make_folder(args.output)
    return model, records


def with_frames(
    model: Pretrained, num_frames: int | None = None, frame: int | None = None
) -> Pretrained:
    """The same model, for other frames of each clip than the training drew from.

    Args:
      model: it is left as it is.
      num_frames: how many per clip, evenly chosen of those stored; None keeps the number.
      frame: which of them to take alone, counted from 0; None takes all.

    Raises:
      UserError: if there is no such frame.
    """
    config = model.config.copy_and_resolve_references()
    if num_frames is not None:
        if num_frames < 1:
            raise UserError(f"--num_frames={num_frames} must be at least 1")
        config.data.num_frames = num_frames
    if frame is not None:
        if not 0 <= frame < config.data.num_frames:
            raise UserError(
                f"--frame={frame} must be from 0 to {config.data.num_frames - 1}: "
                f"{config.data.num_frames} frames per clip are counted from 0"
            )
        with config.unlocked():
            config.data.only_frame = frame
    return model._replace(config=config)


def untrained(model: Pretrained) -> Pretrained:
    """A model of the same shape with random parameters, to compare scores with."""
    params = jax.jit(model.module.init_params)(jax.random.key(UNTRAINED_SEED))
    return model._replace(params=params)


def describe(model: Pretrained, records: loader.Records) -> dict[str, Any]:
    """The part of a result that identifies the model, the data and the code."""
    return {
        "checkpoint": {"directory": model.directory, "step": model.step},
        "data": {
            "identity": records.identity,
            "contents": records.contents,
            "directory": str(records.directory),
        },
        "framing": loader.PairSpec.of(model.config)._asdict(),
        "version": cli.version(),
    }


def write(output: epath.PathLike, name: str, result: dict[str, Any], table: str) -> None:
    """Prints the table and writes `OUTPUT/NAME.json`, on process 0."""
    if jax.process_index() != 0:
        return
    path = cli.make_folder(output) / f"{name}.json"
    atomic.write(path, json.dumps(result, indent=2) + "\n")
    print(f"{table}\nwritten: {path}")


def write_resamples(
    output: epath.PathLike, name: str, resampled: Mapping[str, bootstrap.Resampled]
) -> None:
    """Writes `OUTPUT/NAME_resamples.npz` on process 0: scores of resamples of the clips, by name.

    Every model that is scored on as many clips has the same resamples, so that the difference of
    two models' values has the interval of their difference.
    """
    if jax.process_index() == 0:
        buffer = io.BytesIO()
        np.savez(buffer, **resampled)
        atomic.write(cli.make_folder(output) / f"{name}_resamples.npz", buffer.getvalue())
