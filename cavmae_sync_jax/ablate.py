"""Makes a table of ablations: trains each row, scores what its columns ask for, writes the table.

Examples:
  python -m cavmae_sync_jax.ablate --table=6 --config=configs/pretrain.py \\
      --config.data.dir=DATASET --workdir=runs/ablations --seeds=3
  python -m cavmae_sync_jax.ablate --table=mine.py --config=configs/demo.py \\
      --config.data.dir=runs/demo/data --probe=configs/probe.py:demo --workdir=runs/mine

--table is one of the paper's (4, 5, 6, 7, 8, figure4, 11, 12) or a Python file of your own. Repeat
the command to go on, also on other machines that share the workdir. A process takes a training that
no running process works on, and resumes it exactly. Rows with equal settings are trained once.

WORKDIR gets table_TABLE.md, .json, .png and .html, and trainings/. --dry_run only lists the
trainings, what is finished, and the device-hours that are left. The paper's datasets are named
audioset, vggsound, ade20k and as20k. If --data does not name one, the training's own is used;
without vggsound, its columns are left out. The exit status is 3 while other processes still train.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax import train
from cavmae_sync_jax.ablations import checks, page, paper, plan, rendering, scores, tables
from cavmae_sync_jax.ablations import datasets as ablation_datasets
from cavmae_sync_jax.ablations.datasets import Datasets
from cavmae_sync_jax.ablations.folders import Folder
from cavmae_sync_jax.ablations.plan import EvaluationSpec, Plan, Training
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.distributed import hardware, multihost
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.training import config_checks
from cavmae_sync_jax.utils import atomic, cli, console, locks
from cavmae_sync_jax.utils.errors import Unsatisfied, UserError

PROBED = ("probe", "tokens")  # evaluations with a recipe of their own
WITHOUT_BASELINES = ("segmentation", "temporal", "reconstruction")


class Ablation:
    """A plan of trainings and evaluations, with its datasets and its workdir."""

    def __init__(self, todo: Plan, datasets: Datasets, workdir: epath.PathLike, probe: ConfigDict):
        self.plan, self.datasets, self.probe = todo, datasets, probe
        self.workdir = epath.Path(workdir)
        self.failed: dict[str, str] = {}
        self.missing: list[str] = []  # when the table was last written

    def check(self) -> dict[str, int]:
        """Refuses what no training or evaluation would take; returns the steps of each training.

        Raises:
          UserError: before anything is written.
        """
        steps: dict[str, int] = {}
        for name, training in self.plan.trainings.items():
            alike = name.rpartition("-seed")[0]
            if alike not in steps:  # another seed has as many steps
                steps[alike] = train.Pretraining(training.config).steps
                for spec in training.evaluations:
                    self._check(training, spec)
            self.is_trained(training)
        return {name: steps[name.rpartition("-seed")[0]] for name in self.plan.trainings}

    def _check(self, training: Training, spec: EvaluationSpec) -> None:
        records = self.datasets.records(spec.dataset, spec.evaluation)
        asked = [
            row.name
            for row in self.plan.table.rows
            if row.name in training.rows
            and any(self.plan.evaluation_of(row, c) == spec for c in self.plan.table.columns)
        ]
        checks.frames(training, spec, records, asked)
        if spec.evaluation not in PROBED:
            checks.settings(spec, inspect.signature(_evaluation(spec)).parameters)
            return
        checks.settings(spec, cli.keys(self.probe))
        recipe = self._recipe(spec)
        fitted = self.datasets.of_probe(spec.dataset, recipe)
        checks.recipe(training, spec, recipe, fitted, records, jax.device_count())

    def folder(self, name: str) -> Folder:
        """The folder of a training."""
        return Folder(self.workdir, name)

    def is_trained(self, training: Training) -> bool:
        """Whether a training is finished, with the config and the data of now.

        Raises:
          UserError: if it was made with others.
        """
        clips = self.datasets.of_training(training.config)
        return self.folder(training.name).is_trained(training.config, clips)

    def about(self, name: str, spec: EvaluationSpec) -> dict[str, Any]:
        """Everything that an evaluation's scores depend on."""
        trained = self.folder(name).trained()
        records = self.datasets.records(spec.dataset, spec.evaluation)
        probe: dict[str, Any] = {"recipe": None}
        if spec.evaluation in PROBED:
            recipe = self._recipe(spec)
            clips = self.datasets.of_probe(spec.dataset, recipe)
            learned_from = {"data": clips.identity, "contents": clips.contents}
            probe = {"recipe": recipe.to_dict(), "learned_from": learned_from}
        return {
            **spec._asdict(),
            "settings": dict(spec.settings),
            "step": trained and trained["step"],
            "data": records.identity,
            "contents": records.contents,
            **probe,
        }

    def finished(self, training: Training) -> bool:
        """Whether it is trained and all evaluations of it are done."""
        return all(self.counts(training, spec) for spec in (None, *training.evaluations))

    def counts(self, training: Training, spec: EvaluationSpec | None) -> bool:
        """Whether it is trained, and this evaluation of it is done, with the settings of now."""
        if not self.is_trained(training):
            return False
        asked = spec is not None and spec.evaluation != "training"
        return not asked or self.folder(training.name).has(spec, self.about(training.name, spec))

    @property
    def sources(self) -> scores.Sources:
        """What the table is made of."""
        return scores.Sources(self.plan, self.workdir, self.counts)

    def work(self) -> list[str]:
        """Does the work that no other process does; returns the trainings that others work on.

        A training that fails does not stop the others: `failed` has its message.
        """
        while True:
            with self._taken() as taken:
                if taken is None:
                    break
                try:
                    self._do(self.plan.trainings[taken])
                except UserError as error:
                    console.log(
                        f"{taken} failed: {error}. A row's settings stay as they are: to change "
                        "them, change the table or its flags, in another --workdir"
                    )
                    self.failed[taken] = str(error)
            jax.clear_caches()  # the next training has other programs
        return [
            name
            for name, training in self.plan.trainings.items()
            if name not in self.failed and not self.finished(training)
        ]

    @contextlib.contextmanager
    def _taken(self) -> Iterator[str | None]:
        """Holds the lock of a training that is not finished; None if there is none to be had.

        Process 0 chooses and locks for all processes of this run.
        """
        names = list(self.plan.trainings)
        with contextlib.ExitStack() as stack:
            chosen = -1
            for number, name in enumerate(names if jax.process_index() == 0 else ()):
                if name in self.failed or self.finished(self.plan.trainings[name]):
                    continue
                cli.make_folder(self.folder(name).path)
                with contextlib.ExitStack() as attempt:
                    try:
                        attempt.enter_context(locks.held(self.folder(name).lock))
                    except locks.Busy:
                        continue
                    if self.finished(self.plan.trainings[name]):  # by another process meanwhile
                        continue
                    stack.enter_context(attempt.pop_all())
                    chosen = number
                    break
            chosen = multihost.broadcast_from_first(chosen)
            yield None if chosen < 0 else names[chosen]

    def _do(self, training: Training) -> None:
        folder = self.folder(training.name)
        if not multihost.broadcast_from_first(self.is_trained(training)):
            console.log(f"training {training.name}, for the rows {', '.join(training.rows)}")
            train.train_and_evaluate(training.config, folder.train)
            if jax.process_index() == 0:
                step = folder.newest_step()
                clips = self.datasets.of_training(training.config)
                devices = hardware.description(), jax.device_count()
                folder.note_trained(training.config, clips, step, *devices)
        multihost.barrier("a training is noted")
        for spec in training.evaluations:
            about = self.about(training.name, spec)
            if multihost.broadcast_from_first(folder.has(spec, about)):
                continue
            console.log(f"evaluating {training.name}: {spec.folder}")
            if jax.process_index() == 0:
                folder.begin(spec, about)
            multihost.barrier("an evaluation's folder is there")
            self._evaluate(folder, spec)
            if jax.process_index() == 0:
                folder.end(spec, about)
        for row in self.plan.table.rows if jax.process_index() == 0 else ():
            for column in self.plan.table.columns if row.name in training.rows else ():
                if scores.lacks(self.sources, row, column, training.config.seed):
                    console.log(f"{column.name} is not among the scores of {training.name}")

    def _evaluate(self, folder: Folder, spec: EvaluationSpec) -> None:
        model = common.with_frames(load(folder.train), spec.num_frames, spec.frame)
        records = self.datasets.records(spec.dataset, spec.evaluation)
        output, settings = folder.output(spec), dict(spec.settings)
        if spec.evaluation in PROBED:
            _evaluation(spec)(model, records, self._recipe(spec), output)
            return
        if spec.evaluation in WITHOUT_BASELINES:
            settings["with_baselines"] = False
        _evaluation(spec)(model, records, output, **settings)

    def _recipe(self, spec: EvaluationSpec) -> ConfigDict:
        """The probe's recipe with a table's settings for it."""
        recipe = self.probe.copy_and_resolve_references()
        try:
            recipe.update(dict(spec.settings))
        except TypeError as error:
            raise UserError(f"SETTINGS of {spec.evaluation}: {error}") from error
        return recipe

    def write(self, left_out: dict[str, str]) -> str:
        """Writes the table as it is now, on process 0; returns it as text."""
        identities = self.datasets.identities(self.plan.table.columns)
        named = self.datasets.others
        result = scores.collect(self.sources, identities, left_out, named)
        self.missing = result["missing"]
        result |= {"failed": self.failed, "version": cli.version()}
        text, picture = rendering.markdown(result), rendering.picture(result)
        command = f"python -m cavmae_sync_jax.ablate {shlex.join(sys.argv[1:])}"
        html = page.page(self.sources, result, picture, command)
        stem = f"table_{result['table']}"
        atomic.write(self.workdir / f"{stem}.json", json.dumps(result, indent=2) + "\n")
        atomic.write(self.workdir / f"{stem}.md", text)
        atomic.write(self.workdir / f"{stem}.html", html)
        if picture is not None:
            atomic.write(self.workdir / f"{stem}.png", picture)
        return f"{text}\nwritten: {self.workdir / stem}.md, .json, .png, .html"

    def listed(self, steps: dict[str, int]) -> str:
        """What `--dry_run` prints."""
        per_step = {name: self._device_hours_per_step(name) for name in steps}
        measured = next((cost for cost in per_step.values() if cost is not None), None)
        lines = [f"{'training':60} {'steps':>9} {'done':>9} {'device-hours':>14}  rows"]
        left = 0.0
        for name, training in self.plan.trainings.items():
            folder = self.folder(name)
            finished = self.is_trained(training)
            done = steps[name] if finished else folder.newest_step()
            cost = per_step[name] if per_step[name] is not None else measured
            shown = "–"
            if cost is not None:
                shown = f"{'~' * (per_step[name] is None)}{cost * steps[name]:.2f}"
                left += cost * max(0, steps[name] - done)
            scored = sum(folder.has(spec, self.about(name, spec)) for spec in training.evaluations)
            lines.append(
                f"{name:60} {steps[name]:9} {done:9} {shown:>14}  {', '.join(training.rows)}; "
                f"{scored} of {len(training.evaluations)} evaluations are done"
            )
        if measured is None:
            lines.append("Device-hours are known once a training has run for a while.")
        else:
            lines.append(
                f"About {left:.2f} device-hours of training are left. ~ marks what is taken from "
                "the first measured training, per step."
            )
        return "\n".join(lines)

    def _device_hours_per_step(self, name: str) -> float | None:
        folder = self.folder(name)
        rate, noted = folder.examples_per_second(), folder.trained()
        if not rate:
            return None
        devices = noted["device_count"] if noted else jax.device_count()
        return self.plan.trainings[name].config.batch_size / rate * devices / 3600


def _evaluation(spec: EvaluationSpec) -> Any:
    return importlib.import_module(f"cavmae_sync_jax.evals.{spec.evaluation}").run


def start(args: argparse.Namespace, config_of: cli.Rows) -> None:
    """Runs the program.

    Raises:
      UserError: for a mistake, or if a training failed.
      Unsatisfied: if trainings are left to other processes.
    """
    table = paper.TABLES.get(args.table) or tables.read(args.table)
    config = config_of()
    config_checks.check_kind(config, train.Pretraining.sections, train.Pretraining.example)
    probed = any(column.evaluation in PROBED for column in table.columns)
    probe = cli.config_of(args.probe) if probed else ConfigDict()
    datasets = Datasets(
        config.data.dir,
        args.split or config.data.eval_split,
        probe.train_split if probed else "",
        ablation_datasets.pairs("data", args.data),
        ablation_datasets.pairs("clips", args.clips),
    )
    if not datasets.split:
        raise UserError(
            "config.data.eval_split is empty: name the clips that are scored by --split"
        )
    table, left_out = plan.left_out(table, datasets.why_not)
    for reason in left_out.values():
        console.log(reason)
    # The same flags may serve several of the paper's tables.
    datasets.check_names([*table.columns, *(c for t in paper.TABLES.values() for c in t.columns)])
    todo = plan.make(table, config_of, args.seeds, args.rows)
    ablation = Ablation(todo, datasets, args.workdir, probe)
    steps = ablation.check()
    if args.dry_run:
        print(ablation.listed(steps))
        return
    cli.make_folder(args.workdir)
    others = ablation.work()
    if jax.process_index() == 0:
        text = ablation.write(dict(left_out))
        # Another process may have written a newer table while this one was at it.
        while (missing := scores.missing(ablation.sources)) != ablation.missing:
            console.log(f"another process has finished more; {len(missing)} trainings are missing")
            text = ablation.write(dict(left_out))
        print(text)
    if ablation.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in ablation.failed.items())
        raise UserError(f"the table lacks what failed ({reasons})")
    if others:
        raise Unsatisfied(
            f"the table lacks what other processes work on ({', '.join(others)}): the last of "
            "them writes it whole, and this command does when they are done"
        )


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--table",
        required=True,
        metavar="TABLE",
        help=f"one of {', '.join(paper.TABLES)}, or a Python file with ROWS and COLUMNS",
    )
    arguments.add_argument("--workdir", required=True, help="folder of all trainings and tables")
    arguments.add_argument("--seeds", type=int, default=1, help="trainings per row")
    arguments.add_argument(
        "--rows",
        type=lambda text: text.split(","),
        help="train only these rows, with commas between",
    )
    arguments.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a dataset that columns name, such as vggsound=DIR; may be repeated",
    )
    arguments.add_argument(
        "--clips",
        action="append",
        default=[],
        metavar="NAME=LIST",
        help="score retrieval on a dataset's clips of this list only; may be repeated",
    )
    arguments.add_argument(
        "--split", help="which clips are scored; without it, config.data.eval_split"
    )
    arguments.add_argument(
        "--probe",
        default="configs/probe.py:as20k,cached",
        metavar="FILE:ROWS",
        help="recipe of the columns that need a probe",
    )
    arguments.add_argument(
        "--dry_run", action="store_true", help="only list the trainings and the time that they need"
    )
    cli.main(arguments, start, config=True, rows=True, within=multihost.connected)


if __name__ == "__main__":
    main()
