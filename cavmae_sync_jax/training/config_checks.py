"""Checks of a training's settings, and which of them a resumed run may change."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.models import masking
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.training import losses, optim
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

# What may change when a run is resumed; a longer run keeps its past and gets a new schedule.
CHANGEABLE_ON_RESUME = {
    *(
        "epochs",
        "log_every",
        "eval_every",
        "evaluations",
        "checkpoint_every",
        "keep_checkpoints",
        "profile_step",
        "microbatches",
    ),
    *("mesh.data", "mesh.fsdp", "data.dir", "data.eval_split", "data.workers", "data.prefetch"),
    "data.requests",
    *("model.dtype", "model.residual_dtype", "model.unroll", "model.remat"),
    "learning_rate",  # a run that diverged goes on with a lower one
}


def check_kind(config: ConfigDict, sections: Iterable[str], example: str) -> None:
    """Refuses the config of another program.

    Raises:
      UserError: if it lacks one of the sections, naming a config that has them.
    """
    if lacking := [name for name in sections if name not in config]:
        raise UserError(
            f"this config is of another program, as it has no {lacking[0]!r}: take one like "
            f"--config={example}"
        )


def check(config: ConfigDict, devices: int) -> None:
    """Refuses settings that no later stage would understand, of what all trainings share.

    Raises:
      UserError: naming the key and what it takes, or one that is missing.
    """
    for key in ("init_from", "data.augment_audio"):
        cli.value(config, key)  # of any value, but there
    require_one_of(config, "schedule", optim.SCHEDULES)
    require_one_of(config, "data.window_spread", audio.SPREADS)
    for least, keys in (
        (0, "seed data.workers eval_every profile_step l2"),
        (1, "batch_size log_every checkpoint_every keep_checkpoints"),
        (1, "data.num_frames data.clip_rows data.prefetch data.requests microbatches"),
    ):
        for key in keys.split():
            require_at_least(config, key, least)
    for key in ("epochs", "learning_rate"):
        require_above_0(config, key)
    for key in ("warmup_share", "learning_rate_floor"):
        require_share(config, key)
    check_adam(config)
    chunks = config.microbatches
    name = f"{devices} devices" + f" x {chunks} microbatches" * (chunks > 1)
    require_multiple(config, devices * chunks, name)


def check_adam(config: ConfigDict) -> None:
    """Refuses means of gradients that never move.

    Raises:
      UserError: naming the key and what it takes.
    """
    for key in ("adam_b1", "adam_b2"):
        if not 0 <= cli.value(config, key) < 1:
            raise UserError(f"config.{key}={cli.value(config, key)} must be from 0 to below 1")


def check_pretraining(config: ConfigDict, module: CavMaeSync) -> None:
    """Refuses settings of masks and losses that make no sense.

    Raises:
      UserError: naming the key and what it takes.
    """
    require_one_of(config, "mask.audio_structure", masking.STRUCTURES)
    require_one_of(config, "loss.contrast_direction", losses.DIRECTIONS)
    for least, key in (
        (0, "contrast_weight"),
        (0, "reconstruction_weight"),
        (1, "contrast_groups"),
    ):
        require_at_least(config, f"loss.{key}", least)
    require_above_0(config, "loss.temperature")
    groups = config.loss.contrast_groups
    require_multiple(config, groups, f"config.loss.contrast_groups={groups}")
    if config.loss.contrast_weight and config.batch_size == groups:
        raise UserError(
            f"config.loss.contrast_groups={groups} leaves one clip per group, which has nothing to "
            f"be told from: raise config.batch_size={config.batch_size}"
        )
    fewest = min(grid.patches for grid in module.grids.values())
    ratios = cli.value(config, "mask.ratios")
    if not ratios or not all(
        isinstance(ratio, float) and 0 < ratio < 1 and masking.kept_patches(fewest, ratio)
        for ratio in ratios
    ):
        raise UserError(
            f"config.mask.ratios={ratios} must be ratios between 0 and 1 "
            f"that keep some of {fewest} patches"
        )


def require_one_of(config: ConfigDict, key: str, allowed: Iterable[str]) -> None:
    """Refuses a value that is not `allowed`."""
    if cli.value(config, key) not in allowed:
        raise UserError(
            f"config.{key}={cli.value(config, key)!r} must be one of {', '.join(allowed)}"
        )


def require_at_least(config: ConfigDict, key: str, least: int) -> None:
    """Refuses a value below `least`, or one that is not finite."""
    _require_finite(config, key)
    if cli.value(config, key) < least:
        raise UserError(f"config.{key}={cli.value(config, key)} must be at least {least}")


def require_above_0(config: ConfigDict, key: str) -> None:
    """Refuses a value that is not above 0, or not finite."""
    _require_finite(config, key)
    if not cli.value(config, key) > 0:
        raise UserError(f"config.{key}={cli.value(config, key)} must be above 0")


def _require_finite(config: ConfigDict, key: str) -> None:
    if not math.isfinite(cli.value(config, key)):
        raise UserError(f"config.{key}={cli.value(config, key)} must be a finite number")


def require_share(config: ConfigDict, key: str) -> None:
    """Refuses a value that is not from 0 to 1."""
    if not 0 <= cli.value(config, key) <= 1:
        raise UserError(f"config.{key}={cli.value(config, key)} must be from 0 to 1")


def require_multiple(config: ConfigDict, divisor: int, name: str) -> None:
    """Refuses a batch that can't be cut into equal parts; `name` says which."""
    if config.batch_size % divisor:
        raise UserError(f"config.batch_size={config.batch_size} must be a multiple of {name}")


def with_statistics(config: ConfigDict) -> ConfigDict:
    """The config with the dataset's mean and deviation for the recipe's, where it asks for them.

    Raises:
      UserError: the dataset has no statistics.
    """
    if not cli.value(config, "data.own_statistics"):
        return config
    config = config.copy_and_resolve_references()
    found = dataset_dir.read_statistics(dataset_dir.find(config.data.dir))
    config.model.audio_mean, config.model.audio_std = found["fbank_mean"], found["fbank_std"]
    return config


def changed(stored: ConfigDict, config: ConfigDict) -> list[str]:
    """Lists how a run differs from the one it resumes, but for `CHANGEABLE_ON_RESUME`."""
    asked = [key for key in cli.keys(config) if key not in CHANGEABLE_ON_RESUME]
    known = cli.keys(stored)
    if missing := [key for key in asked if key not in known]:
        return [f"it holds another kind of training (without config.{missing[0]})"]
    return [
        f"config.{key} was {cli.value(stored, key)!r} and is now {cli.value(config, key)!r}"
        for key in asked
        if _plain(cli.value(stored, key)) != _plain(cli.value(config, key))
    ]


def changed_data(noted: Mapping[str, Any], dataset: str, contents: str) -> list[str]:
    """Lists how a training's data differ from those that a checkpoint or a table noted.

    Args:
      noted: `dataset` and `contents`, as far as they are known.
      dataset: what the data are now; empty if that is unknown.
      contents: a hash of what is in them.
    """
    before = noted.get("dataset", "")
    if before and dataset and before != dataset:
        return [f"the dataset was {before} and is now {dataset}"]
    # Checkpoints of version 0.1.0 don't tell the contents.
    if noted.get("contents", contents) != contents:
        return ["the dataset was prepared again, with other settings or from other files"]
    return []


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # as JSON stores it
