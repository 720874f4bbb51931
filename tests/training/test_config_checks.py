"""How a run may differ from the one that it would resume."""

import json

import pytest
import tiny
from ml_collections import ConfigDict

from cavmae_sync_jax.training import config_checks
from cavmae_sync_jax.utils.errors import UserError
from configs import probe


def stored(config):
    """The config as a checkpoint holds it."""
    return ConfigDict(json.loads(config.to_json()))


PRETRAINING, FINETUNING = tiny.config(), tiny.finetuning()
PROBE = ConfigDict({"head": {"width": 8}, "probe": probe.get_config()})


def test_what_may_change_and_what_may_not():
    assert config_checks.changed(stored(PRETRAINING), PRETRAINING) == []
    other = tiny.config(epochs=9.0, data__workers=3, seed=4, mask__ratios=(0.6,))
    assert config_checks.changed(stored(PRETRAINING), other) == [
        "config.mask.ratios was [0.5] and is now (0.6,)",
        "config.seed was 0 and is now 4",
    ]


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        (PRETRAINING, FINETUNING, "config.average_from"),
        (FINETUNING, PRETRAINING, "config.loss."),
        (PROBE, PRETRAINING, "config."),
        (PROBE, FINETUNING, "config."),
    ],
    ids=["pre-training", "fine-tuning", "probe", "probe of a fine-tuning"],
)
def test_another_kind_of_training_is_told_in_a_sentence(before, now, key):
    (told,) = config_checks.changed(stored(before), now)
    assert told.startswith(f"it holds another kind of training (without {key}")


@pytest.mark.parametrize("key", ["data.own_statistics", "microbatches", "data.requests", "l2"])
def test_a_key_that_a_config_file_lacks_is_told(key):
    config = tiny.config()
    section, _, name = key.rpartition(".")
    with config.unlocked():
        del (config[section] if section else config)[name]
    with pytest.raises(UserError, match=f"the config has no key '{key}': add it to its file"):
        config_checks.check(config_checks.with_statistics(config), devices=1)
