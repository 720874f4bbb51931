"""A tiny model's config and tiny real videos, for tests that need the whole way."""

import json
import pathlib
import shutil

import jax
import media_files
import numpy as np
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.models import cavmae_sync
from configs import demo, finetune
from data_prep import scenes

ROOT = pathlib.Path(__file__).parents[2]


def config(data_dir="", **overrides) -> ConfigDict:
    """The demo's recipe at the smallest sizes; overrides are dotted keys with __ for the dot."""
    tiny = demo.get_config()
    tiny.update_from_flattened_dict(
        {
            "batch_size": 8,
            "epochs": 6.0,
            "warmup_share": 0.0,
            "log_every": 2,
            "checkpoint_every": 4,
            "data.dir": str(data_dir),
            "data.num_frames": 4,
            "model.image_size": 32,
            "model.image_patch": 16,
            "model.audio_rows": 96,
            "model.width": 16,
            "model.depth": 2,
            "model.heads": 2,
            "model.decoder_width": 8,
            "model.decoder_heads": 2,
            "model.registers": 2,
        }
        | {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return tiny


def write_model(folder: pathlib.Path, seed: int = 0, **overrides) -> pathlib.Path:
    """Writes a workdir with an untrained model of `config`."""
    settings = config(**overrides)
    module = cavmae_sync.from_config(settings.model)
    params = jax.jit(module.init_params)(jax.random.key(seed))
    manager.write(folder, {"params": params}, settings)
    return folder


def write_scenes(folder: pathlib.Path, **splits: int) -> pathlib.Path:
    """Renders and prepares a few small scenes; splits are numbers of clips by name."""
    sizes = [f"--{name}={splits.get(name, 0)}" for name in ("train", "val", "eval")]
    flags = [f"--output={folder}", *sizes, "--size=48", "--image_size=32", "--workers=1"]
    scenes.run(scenes._parser().parse_args(flags))
    return folder


def prepared_again(dataset: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A copy of a dataset that says of itself that it has other records of the same lengths."""
    shutil.copytree(dataset, folder)
    (path,) = folder.rglob("metadata.json")
    metadata = json.loads(path.read_text())
    metadata["contents"] = dict.fromkeys(metadata["contents"], "others")
    path.write_text(json.dumps(metadata))
    return folder


def write_video(path: pathlib.Path, level: int, hertz: float) -> None:
    """Writes 4 s of one grey level, growing brighter, with a tone."""

    def picture(number: int, size: tuple[int, int]) -> np.ndarray:
        return np.full((size[1], size[0], 3), level + number, np.uint8)

    waves = np.stack([media_files.tone(hertz, 4, 16_000)])
    media_files.make_video(path, seconds=4, fps=4, picture=picture, waves=waves)


def finetuning(data_dir="", variant="demo", **overrides) -> ConfigDict:
    """The demo's recipe of fine-tuning at the sizes of `config`, with the papers' augmentation."""
    tiny = finetune.get_config(variant)
    model = config().model
    tiny.update_from_flattened_dict(
        {f"model.{key}": value for key, value in model.items() if key != "learned_positions"}
        | {
            "batch_size": 8,
            "epochs": 4.0,
            "average_from": 2,
            "log_every": 2,
            "checkpoint_every": 3,
            "data.dir": str(data_dir),
            "data.num_frames": 4,
            "mixup": 0.5,
            "mask_rows": 18,
            "mask_bins": 48,
            "data.augment_audio": True,
        }
        | {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return tiny
