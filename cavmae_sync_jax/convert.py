"""Converts PyTorch checkpoints into ours, and ours back; pushes to and pulls from the Hub.

Examples:
  python -m cavmae_sync_jax.convert cav_mae_sync.pth checkpoints/sync
  python -m cavmae_sync_jax.convert mae_pretrain_vit_base_full.pth checkpoints/mae
  python -m cavmae_sync_jax.convert runs/sync sync.safetensors
  python -m cavmae_sync_jax.convert runs/sync sync.onnx
  python -m cavmae_sync_jax.convert runs/sync hf://USER/REPO
  python -m cavmae_sync_jax.convert hf://USER/REPO checkpoints/theirs

A SOURCE file (.pth, .pt, .bin or .safetensors) holds CAV-MAE Sync, CAV-MAE (fine-tuned or not), a
MAE ViT with or without its decoder, or a probe's head; its names say which. The model's sizes are
read from the file's shapes. Evaluations and --config.init_from take DESTINATION like a workdir.

Settings that shapes do not show are those of configs/pretrain.py. --config.KEY=VALUE changes them,
such as --config.model.heads=4. It also sets another length of audio or size of image than the
file's: --config.model.audio_rows=1024. For a CAV-MAE, --config.model.global_token=True and
--config.model.registers=8 add the tokens of Sync.

--class_names=CSV names the classes of a fine-tuned CAV-MAE. --config.classifier.stream=audio says
that it was trained with sound alone, and --config.classifier.loss=ce that a clip has one class.

A SOURCE folder (a workdir or a conversion) is written as a file for the authors' classes. A
DESTINATION NAME.onnx becomes NAME.audio.onnx and NAME.visual.onnx, the encoders in float32. SOURCE
or DESTINATION may be a repository of the Hugging Face Hub. It gets the weights and the config only,
and a new one is private. Log in with `hf auth login` first.
"""

import argparse
import collections
import contextlib
import csv
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import hub, manager, pretrained
from cavmae_sync_jax.checkpoints.shape_diff import mismatch
from cavmae_sync_jax.inference import model as models
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.models import cavmae_sync, classifier, patches
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.models.classifier import Classifier
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.torch_compat import detect, key_mapping, mae, torch_io
from cavmae_sync_jax.torch_compat.torch_io import StateDict
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

ONNX = ".onnx"


def import_weights(
    source: str,
    destination: str,
    overrides: Sequence[str] = (),
    seed: int = 0,
    class_names: str | None = None,
) -> dict[str, int]:
    """Writes a PyTorch file's weights as a checkpoint of ours.

    Args:
      source: the file.
      destination: a folder that must not exist; it appears complete or not at all.
      overrides: `--config.KEY=VALUE` strings.
      seed: draws what is new to MAE, or to CAV-MAE if tokens are asked for.
      class_names: a CSV with the columns `index`, `mid` and `display_name`, for a fine-tuned model.

    Returns:
      `tensors`, how many the file has, `values`, how many numbers they hold, and `parameters`,
      how many numbers of them and of those drawn the model has.

    Raises:
      UserError: if the file can't be read, is none of the kinds known, or does not hold the model
        of its sizes, with all names that do not fit.
    """
    cli.refuse_existing(destination)
    if destination.endswith(ONNX):
        raise UserError(f"{destination} is made of a folder: convert {source} to a folder first")
    if epath.Path(destination).suffix in torch_io.SUFFIXES:
        raise UserError(f"{destination} would be a folder; give a name without that ending")
    state = torch_io.read(source)
    counts = {"tensors": len(state), "values": sum(array.size for array in state.values())}
    kind = detect.kind_of(state, source)
    is_mae = kind in (detect.MAE, detect.MAE_ENCODER)
    if is_mae:
        state = mae.rename(state)
    own = detect.infer(state, kind)
    if class_names is not None:
        own.classifier.names = _class_names(class_names, own, source)
    config = cli.override(own, overrides)
    if kind is not detect.HEAD and config.model.audio_bins != own.model.audio_bins:
        own.model = detect.infer(state, kind, config.model.audio_bins).model
        config = cli.override(own, overrides)
    _check(config, own, source)
    try:
        target = module = build(config)
        if isinstance(target, CavMaeSync):  # of the sizes that the file has
            rows = target.audio_rows if is_mae else own.model.audio_rows  # MAE's has no audio
            sizes = {"image_size": own.model.image_size, "audio_rows": rows}
            cavmae_sync.from_config({**config.model, **sizes})
            module = target.clone(**sizes)
    except UserError as error:
        raise UserError(f"{source} does not give a model of ours: {error}") from error
    shapes = jax.eval_shape(module.init_params, jax.random.key(seed))
    _compare(source, kind, module, shapes, state)
    leftovers = _take_leftovers(state, module, target)
    flat = flax.traverse_util.flatten_dict(key_mapping.take_params(state), sep="/")
    new = sorted(set(flax.traverse_util.flatten_dict(shapes, sep="/")) - set(flat))
    if new:
        flat |= _draw(module, tuple(new), seed)
        parts = {"/".join(name.split("/")[:2]) for name in new if "positions" not in name}
        console.log(f"not in {source}, drawn from seed {seed}: {', '.join(sorted(parts))}")
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    del flat
    if isinstance(target, CavMaeSync) and target.learned_positions:
        console.log("the positions are learned ones")
    if isinstance(target, CavMaeSync):
        params = pretrained.fit_positions(params, module, target)
    counts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(params))
    trees = {"params": params} | ({"leftovers": leftovers} if leftovers else {})
    manager.write(destination, trees, config)
    console.log(
        f"{source}: {kind.title}, {counts['tensors']} tensors, {counts['values'] / 1e6:.3f} M "
        f"values; written to {destination}: {counts['parameters'] / 1e6:.3f} M parameters"
    )
    return counts


def export_weights(source: str, destination: str, module_prefix: bool = False) -> int:
    """Writes the newest checkpoint of a workdir as a file that the authors' class loads strictly.

    The file also has fixed positions, and the norms that the authors' class has and never uses.
    They are as they were, if the checkpoint was converted from a file; else they are as that class
    initialises them.

    Args:
      source: a training's workdir or a conversion's destination.
      destination: a file that must not exist; its suffix decides the format.
      module_prefix: whether the names begin with `module.`.

    Returns:
      The number of tensors.

    Raises:
      UserError: if there is no checkpoint, or the file exists or can't be written.
    """
    torch_io.check_suffix(destination)
    cli.refuse_existing(destination)
    with manager.opened(source) as stored:
        params, config = stored.weights(), stored.config
        leftovers = stored.arrays("leftovers").get("leftovers", {})
    state = complete(params, build(config)) | leftovers
    del params
    prefix = torch_io.PREFIX if module_prefix else ""
    torch_io.write(destination, {f"{prefix}{name}": state[name] for name in state})
    values = sum(array.size for array in state.values()) / 1e6
    console.log(f"written: {destination}, {len(state)} tensors, {values:.3f} M values")
    if flags := detect.unsaid(config, state):
        console.log(f"a file does not hold all settings: convert it back with {' '.join(flags)}")
    return len(state)


def copy_weights(source: str, destination: str) -> None:
    """Writes the newest checkpoint's weights and config, without the rest of a training's state.

    Args:
      source: a workdir, a conversion's destination or a `hf://` address.
      destination: a folder that must not exist, or a `hf://` address.

    Raises:
      UserError: if there is no checkpoint, or the destination exists or can't be written.
    """
    if not hub.is_address(destination):
        cli.refuse_existing(destination)
    with manager.opened(source) as stored:
        trees = {"params": stored.weights()} | stored.arrays("leftovers")
        config, step = stored.config, stored.step
    with _pushed(destination) as folder:
        manager.write(folder, trees, config)
    console.log(f"the weights of {source}, step {step}, are now in {destination}")


def export_onnx(source: str, destination: str) -> None:
    """Writes the two encoders of a checkpoint as ONNX files, see `inference.onnx_graph`.

    Raises:
      UserError: if onnx is not installed, there is no checkpoint, or a file exists.
    """
    try:
        from cavmae_sync_jax.inference import onnx_graph
    except ImportError as error:
        raise UserError(f"{destination} needs onnx: pip install -e '.[onnx]'") from error
    for place in onnx_graph.write(models.load(source), destination):
        console.log(f"written: {place}")


@contextlib.contextmanager
def _pushed(destination: str) -> Iterator[str]:
    """A folder to write; what it holds at the end is pushed, if the destination is on the Hub."""
    if not hub.is_address(destination):
        yield destination
        return
    hub.repository_of(destination)
    with tempfile.TemporaryDirectory() as scratch:
        yield f"{scratch}/model"
        console.log(f"pushed: {hub.push(f'{scratch}/model', destination)}")


def build(config: ConfigDict) -> CavMaeSync | ProbeHead:
    """The module of a checkpoint's config."""
    if "head" in config:
        return ProbeHead(**config.head)
    if "classifier" in config:
        return classifier.from_config(config)
    return cavmae_sync.from_config(config.model)


def complete(params: Any, module: CavMaeSync | ProbeHead) -> StateDict:
    """Everything that the authors' class holds: parameters, fixed positions, its unused norms."""
    state = key_mapping.state_dict(params)
    if isinstance(module, CavMaeSync) and not module.learned_positions:
        for short, modality in (("a", AUDIO), ("v", VISUAL)):
            grid = module.grids[modality]
            widths = {"": module.width, "decoder_": module.decoder_width}
            if isinstance(module, Classifier):
                del widths["decoder_"]
            for prefix, width in widths.items():
                positions = patches.sincos_positions(grid, width)[None]
                state[f"{prefix}pos_embed_{short}"] = positions
    return state | key_mapping.unused_norms(state)


def _class_names(path: str, own: ConfigDict, source: str) -> tuple[str, ...]:
    """The names in a list of classes as AudioSet and VGGSound publish it, by their indices.

    They are those that `data_prep` gives: a name that comes twice has its mid behind it.
    """
    if "classifier" not in own:
        raise UserError(f"--class_names is for a fine-tuned model, which {source} is not")
    classes = len(own.classifier.names)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = {int(row["index"]): row for row in csv.DictReader(file)}
        often = collections.Counter(row["display_name"] for row in rows.values())
        names = {
            index: f"{name} ({row['mid']})" if often[name := row["display_name"]] > 1 else name
            for index, row in rows.items()
        }
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(
            f"--class_names={path} must be a CSV with the columns index, mid and display_name "
            f"({type(error).__name__}: {error})"
        ) from error
    if sorted(names) != list(range(classes)):
        raise UserError(
            f"--class_names={path} has {len(names)} classes, but {source} has {classes}: their "
            f"indices must be 0 to {classes - 1}"
        )
    return tuple(names[index] for index in range(classes))


def _check(config: ConfigDict, own: ConfigDict, source: str) -> None:
    """Refuses settings that the weights can't follow."""
    flat = {key: cli.value(config, key) for key in cli.keys(config)}
    unknown = [f"--config.{key}=N" for key in flat if key.endswith("heads") and not flat[key]]
    if unknown:
        raise UserError(
            f"the shapes in {source} do not show how many heads there are: "
            f"give {', '.join(unknown)}"
        )
    for key, least in (("num_frames", 1), ("clip_rows", 1), ("workers", 0), ("prefetch", 1)):
        if flat.get(f"data.{key}", least) < least:
            raise UserError(f"config.data.{key}={config.data[key]} must be at least {least}")
    if (spread := flat.get("data.window_spread", audio.SPREADS[0])) not in audio.SPREADS:
        known = ", ".join(audio.SPREADS)
        raise UserError(f"config.data.window_spread={spread!r} must be one of {known}")
    if "model" in own and own.model.learned_positions > config.model.learned_positions:
        raise UserError(
            f"the positions in {source} are learned, which --config.model.learned_positions=False "
            "would drop; leave it out"
        )


def _compare(
    source: str, kind: detect.Kind, module: CavMaeSync | ProbeHead, shapes: Any, state: StateDict
) -> None:
    """Refuses a state dict that does not hold all of `module`, nothing else, in its shapes."""
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    expected = {name: array.shape for name, array in complete(zeros, module).items()}
    expected = {
        name: shape for name, shape in expected.items() if name in state or not kind.lacks(name)
    }
    found = {name: array.shape for name, array in state.items()}

    def name_in_file(name: str) -> str:
        is_mae = kind in (detect.MAE, detect.MAE_ENCODER) and name in expected
        return mae.original(name, module.depth) if is_mae else name

    def shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name_in_file(name) == name or "pos_embed" not in name or len(shape) != 3:
            return shape
        return shape[0], shape[1] + 1, shape[2]  # MAE's have one for its CLS token

    wrong = {name for name in expected if found.get(name) != expected[name]}
    differences = mismatch(
        {name_in_file(n): shape(n, expected[n]) for n in expected if n in wrong},
        {name_in_file(n): shape(n, found[n]) for n in found if n in wrong or n not in expected},
    )
    if differences:
        raise UserError(f"{source} does not hold {kind.title} of its sizes:{differences}")


def _take_leftovers(
    state: StateDict, module: CavMaeSync | ProbeHead, target: CavMaeSync | ProbeHead
) -> StateDict:
    """Removes from `state` what has no place in our model; keeps what `target` can still use."""
    resized: set[str] = set()
    fixed = isinstance(module, CavMaeSync) and not module.learned_positions
    if fixed:
        for short, modality in (("a", AUDIO), ("v", VISUAL)):
            if module.grids[modality] != target.grids[modality]:
                resized |= {f"pos_embed_{short}", f"decoder_pos_embed_{short}"}
    taken = {
        name: state.pop(name)
        for name in list(state)
        if key_mapping.UNUSED_NORMS.fullmatch(name)
        or (fixed and key_mapping.POSITIONS.fullmatch(name))
    }
    return {name: array for name, array in taken.items() if name not in resized}


def _draw(module: CavMaeSync | ProbeHead, new: tuple[str, ...], seed: int) -> StateDict:
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        drawn = flax.traverse_util.flatten_dict(module.init_params(key), sep="/")
        return {name: drawn[name] for name in new}

    return jax.device_get(jax.jit(draw)(jax.random.key(seed)))


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("source", help="PyTorch weights, a folder of checkpoints, or hf://")
    arguments.add_argument("destination", help="a new folder, a new file of weights, or hf://")
    arguments.add_argument(
        "--seed",
        type=int,
        help="seed of the weights that a MAE or CAV-MAE lacks: tokens, codes of modalities …",
    )
    arguments.add_argument(
        "--class_names",
        metavar="CSV",
        help="names of a fine-tuned model's classes: columns index, mid, display_name",
    )
    arguments.add_argument(
        "--module_prefix",
        action="store_true",
        help="begin the file's names with `module.`, as the authors' scripts expect them",
    )

    def run(args: argparse.Namespace, overrides: Sequence[str]) -> None:
        source, destination = args.source, args.destination
        from_hub, to_hub = hub.is_address(source), hub.is_address(destination)
        from_folder = from_hub or epath.Path(source).is_dir()
        suffix = epath.Path(destination).suffix
        if args.module_prefix and (to_hub or not from_folder or suffix not in torch_io.SUFFIXES):
            raise UserError("--module_prefix is for writing a file of PyTorch; leave it out")
        if from_folder:
            flags = {"--seed": args.seed, "--class_names": args.class_names}
            given = [*(flag for flag, value in flags.items() if value is not None), *overrides]
            if given:
                raise UserError(f"{given[0]} can't change a checkpoint's weights; leave it out")
            if to_hub or (from_hub and suffix not in (ONNX, *torch_io.SUFFIXES)):
                copy_weights(source, destination)
            elif suffix == ONNX:
                export_onnx(source, destination)
            else:
                export_weights(source, destination, args.module_prefix)
            return
        if not epath.Path(source).exists():
            raise UserError(f"there is no file or folder {source}")
        if not 0 <= (args.seed or 0) < 2**32:
            raise UserError(f"--seed={args.seed} must be from 0 to 2^32 - 1")
        with _pushed(destination) as folder:
            import_weights(source, folder, overrides, args.seed or 0, args.class_names)

    cli.main(arguments, run, overrides=True)


if __name__ == "__main__":
    main()
