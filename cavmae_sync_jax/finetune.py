"""Fine-tunes a pre-trained model end to end to classify; started again, it resumes.

Example:
  python -m cavmae_sync_jax.finetune --config=configs/finetune.py:vggsound \\
      --config.init_from=runs/sync --config.data.dir=DATASET --workdir=runs/vggsound

It trains the encoders, the joint block and a head on the dataset's labels. The rows audio and
visual, as in vggsound,audio, train one modality. The row global gives the head global tokens.
Without --config.init_from it trains from scratch. At its end it prints the held-out clips' scores
with both modalities and with either one missing, and writes WORKDIR/evals/classify.json and .png.

The workdir is like that of `train`, whose --help says how a training stops and resumes.
`load(WORKDIR).classify(FILE)` then gives the classes of a video, a sound or a picture.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.data.records import FIELDS
from cavmae_sync_jax.distributed import hardware
from cavmae_sync_jax.evals import classify
from cavmae_sync_jax.models import classifier
from cavmae_sync_jax.models.classifier import Classifier
from cavmae_sync_jax.training import clip_task, finetune_step, loop, train_step
from cavmae_sync_jax.utils import console


class FineTuning(clip_task.ClipTask):
    """Classification by the whole network (CAV-MAE, section 4.2)."""

    name = "finetune"
    inputs = finetune_step.INPUTS
    sections, example = ("data", "model", "classifier"), "configs/finetune.py"
    module: Classifier
    predictions: classify.Predictions

    @property
    def fields(self) -> tuple[str, ...]:
        """The features of the dataset that it needs."""
        return (*FIELDS, "labels")

    def prepare(self) -> None:
        """Checks what is its own, and makes the module and the optimiser."""
        self.config = self.config.copy_and_resolve_references()
        with self.config.unlocked():
            self.config.classifier.names = tuple(labels.class_names(self.records))
        config = self.config
        self.module = classifier.from_config(config)
        finetune_step.check(config)
        if self.held_out is not None:
            labels.read(self.held_out)  # refused now rather than after the training
        self._truth: labels.Truth | None = None
        self.optimizer, self.rate = finetune_step.make_optimizer(
            self.module, config, self.steps, self.steps_per_epoch
        )

    def init(self) -> train_step.AveragedState:
        """Draws the state of a new run."""
        key = jax.random.key(self.config.seed)
        return finetune_step.init_state(self.module, self.optimizer, key)

    def initial_params(self) -> Any | None:
        """The weights of `init_from`, if it names any; labels that don't fit are refused here."""
        given = super().initial_params()
        self.sampling()
        if self._truth is None:
            labels.read(self.records)  # refuses clips without a label
        return given

    def sampling(self) -> Float[np.ndarray, " clips"] | None:
        """Balancing weights, if asked for; refuses labels that don't fit the loss."""
        config = self.config
        if self._truth is None and (config.balanced or config.classifier.loss == "ce"):
            self._truth = labels.read(self.records)
            if config.classifier.loss == "ce":
                labels.require_one_label(self.records, self._truth, "classifier.loss")
        return labels.balancing_weights(self._truth) if config.balanced else None

    def step_function(
        self, shardings: train_step.AveragedState
    ) -> Callable[[Any, Any, int], tuple[Any, Any]]:
        """The jitted train step."""
        moments = train_step.ends_of_epochs(
            self.config.average_from, self.steps, self.steps_per_epoch
        )
        step = finetune_step.make_step(self.module, self.optimizer, self.config, shardings, moments)
        return lambda state, batch, number: step(state, batch)

    def scores(self, model: Pretrained, records: loader.Records) -> dict[str, float]:
        """Those of every mode of the model, named MODE/SCORE."""
        self.predictions = classify.predict(model, records, self.mesh)
        return {
            f"{mode}/{name}": value
            for mode, scores in self.predictions.scores().items()
            for name, value in scores.items()
        }


def train_and_evaluate(
    config: ConfigDict, workdir: epath.PathLike, resume_step: int | None = None
) -> dict[str, float]:
    """Fine-tunes to the end of `config`, resuming if `workdir` holds checkpoints.

    Args:
      config: see configs/finetune.py.
      workdir: folder of the run; its `evals/` gets the scores of the held-out clips.
      resume_step: of the checkpoint to resume from; newer ones are set aside. None: the newest.

    Returns:
      The scores after the last step, named MODE/SCORE.

    Raises:
      UserError: for settings, data or a workdir that don't fit, a loss that is not finite, or a
        checkpoint that can't be written.
      Terminated: after SIGTERM or Ctrl-C; all steps are saved.
    """
    task = FineTuning(config)
    console.log(f"fine-tuning on {hardware.description()}, mesh {dict(task.mesh.shape)}")
    state, scores = loop.train(task, workdir, resume_step)
    if task.held_out is not None:
        model = Pretrained(task.module, state.best(), task.config, task.steps, str(workdir))
        output = epath.Path(workdir) / "evals"
        classify.report(task.predictions, model, task.held_out, output)
    console.log(task.closing_message(workdir, "classify"))
    return scores


def main() -> None:
    """Runs the command line."""
    clip_task.main(__doc__, train_and_evaluate)


if __name__ == "__main__":
    main()
