"""Trainings on the clips of a prepared dataset, as the programs' configs describe them."""

import abc
import argparse
import contextlib
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import optax
from etils import epath
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints.pretrained import Pretrained, initial_params
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.data.records import FIELDS
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.training import config_checks, loop
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError


class ClipTask(loop.Task):
    """A training of one model on one split, scored on another."""

    module: CavMaeSync
    optimizer: optax.GradientTransformation
    inputs: tuple[str, ...]  # the arrays of a batch that a step takes
    sections: tuple[str, ...]  # of the config
    example: str  # a config that has them

    def __init__(self, config: ConfigDict):
        """Opens the data and refuses what can't work, before anything is written.

        Args:
          config: see configs/pretrain.py and configs/finetune.py.

        Raises:
          UserError: for settings or data that don't fit.
        """
        config_checks.check_kind(config, self.sections, self.example)
        self.config = config = config_checks.with_statistics(config)
        self.mesh = sharding.make_mesh(**config.mesh)
        config_checks.check(config, self.mesh.size)
        data = config.data
        self.records = loader.Records(data.dir, data.train_split, self.fields, data.requests)
        self.held_out: loader.Records | None = None
        if data.eval_split:
            self.held_out = loader.Records(data.dir, data.eval_split, self.fields, data.requests)
        self.batch_size = config.batch_size
        self.steps_per_epoch = len(self.records) / config.batch_size
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.prepare()
        self.pair_spec = loader.PairSpec.of(self.config)
        for split in filter(None, (self.records, self.held_out)):
            split.pairs(0, self.pair_spec, [0])  # refuses sizes that don't fit
        self.log_every, self.checkpoint_every = config.log_every, config.checkpoint_every
        self.keep_checkpoints, self.profile_step = config.keep_checkpoints, config.profile_step
        self.eval_every = self.steps
        if config.eval_every:
            self.eval_every = max(1, round(config.eval_every * self.steps_per_epoch))
        self.split, self.eval_split = config.data.train_split, config.data.eval_split
        self.dataset, self.contents = self.records.identity, self.records.contents

    @property
    def fields(self) -> tuple[str, ...]:
        """The features of the dataset that it needs."""
        return FIELDS

    @abc.abstractmethod
    def prepare(self) -> None:
        """Checks what is its own, and makes `module`, `optimizer` and `rate`."""

    @abc.abstractmethod
    def scores(self, model: Pretrained, records: loader.Records) -> dict[str, float]:
        """What a model scores on held-out clips, to log."""

    def initial_params(self) -> Any | None:
        """The weights of `init_from`, if it names any."""
        size, clips = self.batch_size, len(self.records)
        if size > clips:
            raise UserError(
                f"config.batch_size={size} is more than the {clips} clips of split "
                f"{self.split!r}: a batch would hold copies of a clip; "
                f"set --config.batch_size={clips} or less"
            )
        if not self.config.init_from:
            return None
        return initial_params(self.config.init_from, self.module, self.mesh, self.config.seed)

    def changed(self, stored: ConfigDict) -> list[str]:
        """See `config_checks.changed`."""
        return config_checks.changed(stored, self.config)

    def sampling(self) -> Float[np.ndarray, " clips"] | None:
        """How likely each clip is drawn; None takes each once per epoch."""
        return None

    def batches(self, examples: int) -> Generator[dict[str, Array], None, None]:
        """The global batches from a position on; close it to end the workers."""
        data = self.config.data
        stream = loader.to_device(
            loader.train_batches(
                self.records,
                self.pair_spec,
                self.batch_size,
                self.config.seed,
                examples,
                data.workers,
                data.prefetch,
                self.sampling(),
            ),
            self.mesh,
        )
        with contextlib.closing(stream):
            for arrays, _ in stream:
                yield {name: arrays[name] for name in self.inputs}

    def evaluate(self, state: Any, step: int, workdir: str) -> dict[str, float]:
        """The scores of the held-out clips; nothing without held-out clips."""
        if self.held_out is None:
            return {}
        model = Pretrained(self.module, state.best(), self.config, step, workdir)
        return self.scores(model, self.held_out)

    def clips(self, examples: int, count: int) -> list[str]:
        """The names of `count` clips from a position on."""
        length, seed = len(self.records), self.config.seed
        return self.records.ids(loader.order(length, seed, examples, count, self.sampling()))

    def closing_message(self, workdir: epath.PathLike, evaluation: str) -> str:
        """What to say at the end of a training: where it is, and how to evaluate it."""
        data, split = self.config.data.dir, self.eval_split or self.split
        return (
            f"trained to step {self.steps}: {workdir}\n"
            f"evaluate it: python -m cavmae_sync_jax.evals.{evaluation} --checkpoint={workdir} "
            f"--data={data} --split={split} --output={epath.Path(workdir) / 'evals'}"
        )


def main(description: str, train_and_evaluate: Callable[..., Any]) -> None:
    """Runs the command line of a training program.

    Args:
      description: the help.
      train_and_evaluate: takes the config, the workdir and the step to resume from.
    """
    arguments = cli.parser(description)
    cli.add_workdir(arguments)

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        train_and_evaluate(config, args.workdir, args.resume_step)

    cli.main(arguments, start, config=True, within=multihost.connected)
