"""The flags that every source's program shares, and how it ends."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from cavmae_sync_jax.media.resampler import CHANNELS
from cavmae_sync_jax.utils.errors import Unsatisfied, UserError
from data_prep.pipeline import summary as summaries
from data_prep.pipeline import tfds_writer
from data_prep.pipeline.clips import FBANK_DTYPES, Clip, Preparation
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.summary import Findings, Summary

_PREPARATION = {
    "num_frames": "frames stored per clip",
    "image_size": "pixels of a stored frame's side",
    "clip_seconds": "seconds of a clip",
    "min_seconds": "seconds below which a clip is rejected",
    "jpeg_quality": "quality of the stored frames",
    "fbank_dtype": "number type of the stored log-mel; uint8 takes half the space",
    "audio_channel": "the first of several channels (as the reference), their mean, or the loudest",
}


def add_flags(
    parser: argparse.ArgumentParser, *, without: Sequence[str] = (), **defaults: Any
) -> None:
    """Adds the flags of what is stored, of the engine and of the output.

    Args:
      parser: the source's own.
      without: fields of `Preparation` that this source sets itself.
      **defaults: fields of `Preparation` that this source has other defaults for.
    """
    parser.add_argument("--output", required=True, help="folder to write the dataset to")
    usual = Preparation(**defaults)
    for name, meaning in _PREPARATION.items():
        if name not in without:
            value = getattr(usual, name)
            choices = {"fbank_dtype": tuple(FBANK_DTYPES), "audio_channel": CHANNELS}.get(name)
            parser.add_argument(
                f"--{name}", type=type(value), default=value, choices=choices, help=meaning
            )
    engine = Engine()
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that prepare clips"
    )
    parser.add_argument(
        "--time_limit", type=float, default=engine.time_limit, help="seconds that a clip may take"
    )
    parser.add_argument(
        "--runner",
        default=engine.runner,
        help="runner of Apache Beam that prepares clips instead of --workers processes",
    )
    parser.add_argument(
        "--beam_pipeline_options", default="", help="options of the runner: KEY=VALUE,KEY=VALUE …"
    )
    parser.add_argument(
        "--max_reject_share",
        type=float,
        default=0.5,
        help="share of rejected clips above which the exit status is 3",
    )
    parser.add_argument(
        "--compute_stats",
        action="store_true",
        help="store mean and deviation of the training clips' log-mel, class counts and weights",
    )
    parser.add_argument("--dry_run", action="store_true", help="only say what would be prepared")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that OUTPUT holds already"
    )


def preparation(arguments: argparse.Namespace, **fixed: Any) -> Preparation:
    """Returns the flags' choices of what is stored, with the fields that a source sets itself."""
    flags = {name: getattr(arguments, name) for name in _PREPARATION if name not in fixed}
    flags = {name: value for name, value in flags.items() if value is not None}
    if not 0 <= arguments.max_reject_share <= 1:
        raise UserError(f"--max_reject_share must be 0 to 1, not {arguments.max_reject_share:g}")
    return Preparation(**flags, **fixed)


def engine(arguments: argparse.Namespace) -> Engine:
    """Returns the flags' choice of the engine that does the work."""
    options = tuple(arguments.beam_pipeline_options.split(","))
    chosen = Engine(
        arguments.workers,
        arguments.time_limit,
        arguments.runner,
        tuple(option.strip() for option in options if option.strip()),
    )
    chosen.check()
    return chosen


def write(
    arguments: argparse.Namespace,
    splits: Mapping[str, Sequence[Clip]],
    preparation: Preparation,
    *,
    class_names: Sequence[str],
    source: str,
    findings: Findings | None = None,
) -> Summary | None:
    """Prepares a dataset as the flags say; prints what it will prepare, and a summary.

    Returns:
      None after a dry run.

    Raises:
      UserError: see `tfds_writer.write_dataset`.
    """
    findings = findings or Findings()
    lines = [summaries.plan_report(splits, findings), summaries.alike_report(class_names)]
    print("\n".join(filter(None, lines)), flush=True)
    if arguments.dry_run:
        return None
    summary = tfds_writer.write_dataset(
        arguments.output,
        splits,
        preparation,
        class_names=class_names,
        source=source,
        engine=engine(arguments),
        overwrite=arguments.overwrite,
        compute_stats=arguments.compute_stats,
        findings=findings,
    )
    print(summary.report())
    return summary


def finish(arguments: argparse.Namespace, summary: Summary | None) -> None:
    """Ends a program whose dataset is written, or was not meant to be.

    Raises:
      Unsatisfied: more clips were rejected than the flags allow.
    """
    if summary is not None and summary.reject_share > arguments.max_reject_share:
        raise Unsatisfied(
            f"{summary.reject_share:.1%} of the clips were rejected, more than "
            f"--max_reject_share={arguments.max_reject_share:g}; the dataset is complete without"
        )
