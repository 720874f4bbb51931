"""What the loop of all trainings writes and refuses, seen on a task that only counts its steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.training import loop, train_step
from cavmae_sync_jax.utils import locks
from cavmae_sync_jax.utils.errors import UserError


class Counting(loop.Task):
    """Each step adds 1 to its one parameter, which is its score, too."""

    name, split, dataset, batch_size = "counting", "train", "", 8
    log_every, checkpoint_every, eval_every, keep_checkpoints = 1, 2, 2, 5
    steps_per_epoch = 2.0

    def __init__(self, steps, eval_split="eval"):
        self.steps, self.eval_split, self.rate = steps, eval_split, lambda _: 1.0
        self.config, self.mesh = ConfigDict(), sharding.make_mesh(devices=jax.devices()[:1])

    def init(self):
        return train_step.TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(())}, {})

    def changed(self, stored):
        return []

    def batches(self, examples):
        while True:
            yield jax.device_put(np.float32(1), sharding.replicated(self.mesh))

    def step_function(self, shardings):
        def step(state, batch):
            params = {"w": state.params["w"] + batch}
            return state.replace(step=state.step + 1, params=params), {"loss": batch}

        compiled = jax.jit(step, out_shardings=(shardings, sharding.replicated(self.mesh)))
        return lambda state, batch, number: compiled(state, batch)

    def evaluate(self, state, step, workdir):
        return {"R1": float(state.params["w"])}


def scores(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["split"], row["R1"]) for row in rows if "R1" in row]


@pytest.mark.parametrize(("split", "name"), [("eval", "eval"), ("train", "train_scores")])
def test_scores_are_written_once_whatever_their_split(tmp_path, split, name):
    loop.train(Counting(5, split), tmp_path)
    expected = [(2, name, 2), (4, name, 4), (5, name, 5)]
    assert scores(tmp_path) == expected
    written = (tmp_path / "metrics.jsonl").read_text()
    assert loop.train(Counting(5, split), tmp_path)[1] == {"R1": 5}
    assert (tmp_path / "metrics.jsonl").read_text() == written
    # Stopped between a save and its evaluation, the run makes up for it.
    kept = [line for line in written.splitlines(keepends=True) if '"R1": 4' not in line]
    assert len(kept) == len(written.splitlines()) - 1
    (tmp_path / "metrics.jsonl").write_text("".join(kept))
    loop.train(Counting(5, split), tmp_path, resume_step=4)
    assert scores(tmp_path) == expected


def test_a_run_beyond_its_new_end_is_refused(tmp_path):
    loop.train(Counting(6), tmp_path)
    written = (tmp_path / "metrics.jsonl").read_text()
    for steps, advice in ((5, "resume .* by --resume_step=4, or use"), (1, "or use another")):
        message = f"is at step 6, but .* end at step {steps}: raise --config.epochs, {advice}"
        with pytest.raises(UserError, match=message):
            loop.train(Counting(steps), tmp_path)
        assert (tmp_path / "metrics.jsonl").read_text() == written
    loop.train(Counting(5), tmp_path, resume_step=4)
    assert scores(tmp_path)[-1] == (5, "eval", 5)


def test_only_one_program_trains_on_a_workdir(tmp_path):
    loop.train(Counting(2), tmp_path)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with locks.held(tmp_path / "lock"):
        with pytest.raises(UserError, match=f"another program trains on {tmp_path}: wait"):
            loop.train(Counting(4), tmp_path)
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    assert loop.train(Counting(4), tmp_path)[1] == {"R1": 4}
    with pytest.raises(UserError, match="--workdir is empty: name a folder"):
        loop.train(Counting(4), "")


@pytest.mark.parametrize("step", [None, 3], ids=["other settings", "no such step"])
def test_a_refused_start_keeps_nothing(tmp_path, step):
    loop.train(Counting(2), tmp_path)
    other = Counting(4)
    other.changed = lambda stored: [] if step else ["the seed was 0 and is now 1"]
    with pytest.raises(UserError, match=r"can't be resumed|no checkpoint of step") as kept:
        loop.train(other, tmp_path, step)
    # A notebook keeps the error, and with it all that the training held.
    assert loop.train(Counting(4), tmp_path)[1] == {"R1": 4} and kept.tb is not None
