"""The folder of one training of an ablation: what is finished in it, and with which scores.

WORKDIR/trainings/NAME/
  lock           held by the process that works on it
  trained.json   written when the training is finished: its config, data, steps and devices
  train/         the training's workdir
  evals/NAME/    an evaluation's output, and asked.json, which says what was evaluated and how
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.ablations.plan import EvaluationSpec
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.report import curves
from cavmae_sync_jax.training import config_checks, probing
from cavmae_sync_jax.utils import atomic, cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import BOTH

# With another schedule, a training would be half of one row and half of another.
SCHEDULE = {"epochs", "learning_rate"}
# What a training may differ in and still be the same row.
IRRELEVANT = config_checks.CHANGEABLE_ON_RESUME - SCHEDULE


class Folder:
    """One training's folder; it is made when something is written to it."""

    def __init__(self, workdir: epath.PathLike, name: str):
        self.path = epath.Path(workdir) / "trainings" / name
        self.train = self.path / "train"
        self.lock = self.path / "lock"

    def trained(self) -> dict[str, Any] | None:
        """What was noted when the training was finished; None if it is not."""
        return _read(self.path / "trained.json")

    def is_trained(self, config: ConfigDict, clips: loader.Records) -> bool:
        """Whether a training with this config on these clips is finished.

        Raises:
          UserError: if the training in the folder, finished or begun, has another config or other
            clips.
        """
        noted, now = self.trained(), ConfigDict(json.loads(config.to_json()))
        asked, begun = set(cli.keys(now)) - IRRELEVANT, noted
        if noted is None:
            if not self.newest_step():
                return False
            # `train` refuses all other changes itself.
            asked, begun = SCHEDULE, {"config": _read(self.train / "config.json") or {}}
        stored = ConfigDict(begun["config"])
        changed = {
            key: (cli.value(stored, key), cli.value(now, key))
            for key in sorted(asked & set(cli.keys(stored)))
            if cli.value(stored, key) != cli.value(now, key)
        }
        others = [f"config.{k} was {a} and is now {b}" for k, (a, b) in changed.items()]
        other_data = config_checks.changed_data(begun, clips.identity, clips.contents)
        if other_data or changed:
            raise UserError(
                f"{self.path} holds another training: {'; '.join(others + other_data)}: "
                "use the old settings or another --workdir"
            )
        return noted is not None

    def note_trained(
        self, config: ConfigDict, clips: loader.Records, step: int, devices: str, count: int
    ) -> None:
        """Notes that the training is finished."""
        noted = {
            "config": json.loads(config.to_json()),
            "dataset": clips.identity,
            "contents": clips.contents,
            "step": step,
            "devices": devices,
            "device_count": count,
            "version": cli.version(),
        }
        atomic.write(self.path / "trained.json", json.dumps(noted, indent=2) + "\n")

    def newest_step(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        place = self.train / "checkpoints"
        steps = [int(p.name) for p in place.iterdir() if p.name.isdigit()] if place.exists() else []
        return max(steps, default=0)

    def series(self) -> curves.Series:
        """The training's curves up to now."""
        path = self.train / "metrics.jsonl"
        return curves.read(path) if path.exists() else {}

    def examples_per_second(self) -> float | None:
        """The median of the values in the training's metrics."""
        noted = self.series().get("examples_per_second")
        return None if noted is None else float(np.median(noted[1]))

    def output(self, spec: EvaluationSpec) -> epath.Path:
        """The folder of an evaluation's output."""
        return self.path / "evals" / spec.folder

    def has(self, spec: EvaluationSpec, about: Mapping[str, Any]) -> bool:
        """Whether this very evaluation is finished."""
        noted, asked = self._noted(spec), _asked(about, True)
        return bool(noted) and asked | noted == asked  # older ones lack some keys

    def begin(self, spec: EvaluationSpec, about: Mapping[str, Any]) -> epath.Path:
        """Makes the folder of an evaluation; empties it if it is of another one."""
        place = self.output(spec)
        if self._noted(spec) != _asked(about, False):
            place.rmtree(missing_ok=True)
        cli.make_folder(place)
        atomic.write(place / "asked.json", json.dumps(_asked(about, False)))
        return place

    def end(self, spec: EvaluationSpec, about: Mapping[str, Any]) -> None:
        """Notes that an evaluation is finished."""
        atomic.write(self.output(spec) / "asked.json", json.dumps(_asked(about, True)))

    def result(self, spec: EvaluationSpec) -> dict[str, Any] | None:
        """The scores of a finished evaluation; for `training`, the end of each curve."""
        if spec.evaluation == "training":
            found = {name: values[-1] for name, (_, values) in self.series().items()}
            rate = self.examples_per_second()
            return found | ({} if rate is None else {"examples_per_second": rate})
        if not self._noted(spec).get("finished"):
            return None
        return _read(self.output(spec) / f"{self.stem(spec)}.json")

    def stem(self, spec: EvaluationSpec) -> str:
        """The name of an evaluation's files, without what follows the dot."""
        if spec.evaluation != "probe":
            return spec.evaluation
        return probing.name_of((self._noted(spec).get("recipe") or {}).get("stream", BOTH))

    def _noted(self, spec: EvaluationSpec) -> dict[str, Any]:
        return _read(self.output(spec) / "asked.json") or {}

    def resampled(self, spec: EvaluationSpec) -> dict[str, np.ndarray]:
        """The scores of resamples of the clips by name, if the evaluation has them."""
        path = self.output(spec) / f"{spec.evaluation}_resamples.npz"
        if not path.exists():
            return {}
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return dict(stored)


def _asked(about: Mapping[str, Any], finished: bool) -> dict[str, Any]:
    return json.loads(json.dumps({**about, "finished": finished}, default=str))


def _read(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it to do that part again") from error
