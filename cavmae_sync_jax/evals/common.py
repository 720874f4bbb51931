"""What evaluations share: their flags, what a result says of itself, the untrained model."""

import argparse
import json
from typing import Any

import jax
from etils import epath

from cavmae_sync_jax.checkpoints.pretrained import Pretrained, load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils import cli

UNTRAINED_SEED = 1_000_003  # not the seed that a training is likely to have begun with


def parser(description: str, name: str, *, needs_model: bool = True) -> argparse.ArgumentParser:
    """The flags of an evaluation: `--checkpoint`, `--data`, `--split`, `--output`, `--cache`.

    `needs_model` is False for one that can do without the first two, which then sees to them.
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
    return arguments


def opened(args: argparse.Namespace) -> tuple[Pretrained, loader.Records]:
    """The model and the split that the flags name, and the output folder made.

    Raises:
      UserError: if one of them is not there.
    """
    model, records = load(args.checkpoint), loader.Records(args.data, args.split)
    cli.make_folder(args.output)
    return model, records


def untrained(model: Pretrained) -> Pretrained:
    """A model of the same shape with fresh parameters, to read a score against."""
    params = jax.jit(model.module.init_params)(jax.random.key(UNTRAINED_SEED))
    return model._replace(params=params)


def describe(model: Pretrained, records: loader.Records) -> dict[str, Any]:
    """What a result says of the model, the data and the code it comes from."""
    return {
        "checkpoint": {"directory": model.directory, "step": model.step},
        "data": {"identity": records.identity, "directory": str(records.directory)},
        "framing": loader.PairSpec.of(model.config)._asdict(),
        "version": cli.version(),
    }


def write(output: epath.PathLike, name: str, result: dict[str, Any], table: str) -> None:
    """Prints the table and writes `OUTPUT/NAME.json`, on process 0."""
    if jax.process_index() != 0:
        return
    path = cli.make_folder(output) / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{table}\nwritten: {path}")
