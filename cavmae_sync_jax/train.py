"""Pre-trains CAV-MAE Sync on a prepared dataset; started again on a workdir, it resumes.

Example:
  python -m cavmae_sync_jax.train --config=configs/pretrain.py:registers_4 \\
      --config.data.dir=DATASET --config.batch_size=256 --workdir=runs/registers_4

The workdir gets config.json, metrics.jsonl, TensorBoard files and checkpoints/. On several hosts
every process runs this command. SIGTERM makes it save and stop with status 143, and Ctrl-C with
status 130. A second Ctrl-C ends it at once. `--help_config` lists the keys of a config.
"""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import hardware
from cavmae_sync_jax.evals import in_training
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import clip_task, config_checks, loop, train_step
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.modalities import MODALITIES


class Pretraining(clip_task.ClipTask):
    """Masked reconstruction and contrast (paper section 3.2)."""

    name = "train"
    inputs = MODALITIES
    sections, example = ("data", "model", "mask", "loss"), "configs/pretrain.py"
    shown = ("loss", "nce_accuracy")

    def prepare(self) -> None:
        """Checks what is its own, and makes the module and the optimiser."""
        self.module = cavmae_sync.from_config(self.config.model)
        config_checks.check_pretraining(self.config, self.module)
        if self.held_out is not None:
            in_training.check(cli.value(self.config, "evaluations"), self.held_out)
        self.optimizer, self.rate = train_step.make_optimizer(
            self.config, self.steps, self.steps_per_epoch
        )

    def init(self) -> train_step.TrainState:
        """Draws the state of a new run."""
        key = jax.random.key(self.config.seed)
        return train_step.init_state(self.module, self.optimizer, key)

    def step_function(
        self, shardings: train_step.TrainState
    ) -> Callable[[Any, Any, int], tuple[Any, Any]]:
        """The train step with the mask ratio of each step, compiled for all ratios at the first.

        So no compilation interrupts the run later, where it would delay the answer to a signal.
        """
        step = train_step.make_train_step(self.module, self.optimizer, self.config, shardings)
        ratios, seed = tuple(self.config.mask.ratios), self.config.seed
        compiled: dict[float, jax.stages.Compiled] = {}

        def numbered(state: Any, batch: Any, number: int) -> tuple[Any, Any]:
            for ratio in ratios if not compiled else ():
                compiled[ratio] = step.lower(state, batch, ratio).compile()
            return compiled[train_step.batch_ratio(ratios, seed, number)](state, batch)

        return numbered

    def scores(self, model: Pretrained, records: loader.Records) -> dict[str, float]:
        """Those of the evaluations that the config names."""
        return in_training.run(self.config.evaluations, model, records, self.mesh)


def train_and_evaluate(
    config: ConfigDict, workdir: epath.PathLike, resume_step: int | None = None
) -> dict[str, float]:
    """Trains to the end of `config`, resuming if `workdir` holds checkpoints.

    Args:
      config: see configs/pretrain.py.
      workdir: folder of the run.
      resume_step: of the checkpoint to resume from; newer ones are set aside. None: the newest.

    Returns:
      The scores of the evaluation after the last step.

    Raises:
      UserError: for settings, data or a workdir that don't fit, a loss that is not finite, or a
        checkpoint that can't be written.
      Terminated: after SIGTERM or Ctrl-C; all steps are saved.
    """
    task = Pretraining(config)
    console.log(f"training on {hardware.description()}, mesh {dict(task.mesh.shape)}")
    _, scores = loop.train(task, workdir, resume_step)
    console.log(task.closing_message(workdir, "retrieval"))
    return scores


def main() -> None:
    """Runs the command line."""
    clip_task.main(__doc__, train_and_evaluate)


if __name__ == "__main__":
    main()
