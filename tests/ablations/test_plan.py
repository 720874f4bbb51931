"""Which trainings a table needs, how a table of one's own is read, and what its cells hold."""

import numpy as np
import pytest

from cavmae_sync_jax.ablations import paper, plan, rendering, scores, tables
from cavmae_sync_jax.ablations.scores import Values
from cavmae_sync_jax.evals import retrieval, temporal, tokens
from cavmae_sync_jax.evals.metrics import classification
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.evals.metrics import temporal as temporal_metrics
from cavmae_sync_jax.utils import cli, locks
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import MODALITIES

CONFIGS = ["configs/pretrain.py", "configs/demo.py"]


@pytest.mark.parametrize("file", CONFIGS)
def test_every_row_of_the_paper_is_a_row_of_the_config(file):
    config_of = cli.Rows(file, [])
    counts = {
        name: len(plan.make(table, config_of, 1).trainings) for name, table in paper.TABLES.items()
    }
    # Tables 5 and 11 train once per number of frames, and once.
    assert counts == {
        **{"4": 5, "5": 4, "6": 4, "7": 2, "figure4": 10, "11": 1, "12": 2},
        "8": 4,
    }


def test_tables_share_trainings_with_equal_settings():
    config_of = cli.Rows("configs/pretrain.py", [])

    def of(table):
        return set(plan.make(paper.TABLES[table], config_of, 2).trainings)

    recipe = {"unchanged-seed0", "unchanged-seed1"}
    assert recipe == of("11") and of("12") < of("6")
    assert all(recipe <= of(table) for table in paper.TABLES)
    assert "mask.ratios=0.6-seed0" in of("8")
    assert all(len(name) < 120 for table in paper.TABLES for name in of(table))
    assert len(set(map(str.lower, of("4")))) == len(of("4"))


def test_settings_that_differ_in_what_a_name_lacks_are_two_trainings(tmp_path):
    rows = {place: {"changes": {"init_from": place}} for place in ("runs/a", "runs:a", "runsa")}
    (tmp_path / "mine.py").write_text(f"ROWS = {rows}\nCOLUMNS = ['training/loss']")
    made = plan.make(tables.read(tmp_path / "mine.py"), cli.Rows("configs/demo.py", []), 1)
    assert len(made.trainings) == 3 and "init_from=runsa-seed0" in made.trainings


def test_each_row_is_asked_what_its_columns_need():
    config_of = cli.Rows("configs/pretrain.py", [])
    five = plan.make(paper.TABLES["5"], config_of, 1, ["train_4_eval_8", "train_4_eval_16"])
    (training,) = five.trainings.values()
    assert training.name == "data.num_frames=4-seed0" and len(training.rows) == 2
    assert {spec.folder for spec in training.evaluations} == {
        f"retrieval-{data}-frames_{n}" for data in ("audioset", "vggsound") for n in (8, 16)
    }
    four = plan.make(paper.TABLES["4"], config_of, 1, ["scale+"])
    (training,) = four.trainings.values()
    assert {(spec.num_frames, spec.frame) for spec in training.evaluations} == {(10, 5)}
    seven = plan.make(paper.TABLES["7"], config_of, 1)
    maps = {
        spec.settings for spec in seven.trainings["unchanged-seed0"].evaluations if spec.settings
    }
    assert maps == {(("maps", ("cosine",)),), (("maps", ("evidence",)),)}


def test_a_setting_that_a_row_makes_cant_be_overridden():
    config_of = cli.Rows("configs/pretrain.py", ["--config.model.registers=2", "--config.seed=7"])
    with pytest.raises(UserError, match=r"--config.model.registers=2: the row 'registers_0' sets"):
        plan.make(paper.TABLES["6"], config_of, 1)
    assert plan.make(paper.TABLES["8"], config_of, 2).seeds == (7, 8)


@pytest.mark.parametrize(
    ("table", "row", "override"),
    [
        ("6", "registers_8", "--config.model.registers=2"),
        ("8", "mask_0.75", "--config.mask.ratios=(0.5,)"),
        ("figure4", "audio_4s", "--config.model.audio_rows=96"),
    ],
)
def test_a_row_of_the_defaults_value_cant_be_overridden(table, row, override):
    config_of = cli.Rows("configs/pretrain.py", [override])
    with pytest.raises(UserError) as refused:
        plan.make(paper.TABLES[table], config_of, 1, [row])
    assert str(refused.value) == f"{override}: the row {row!r} sets this key, so leave it out"
    assert "unchanged-seed0" in plan.make(paper.TABLES["11"], config_of, 1).trainings
    config_of = cli.Rows(f"configs/pretrain.py:{row}", [override])  # chosen by the user
    assert config_of().to_json() == cli.Rows("configs/pretrain.py", [override])().to_json()


def test_of_several_rows_each_one_sets_its_keys():
    config_of = cli.Rows("configs/demo.py", ["--config.model.registers=2"])
    with pytest.raises(UserError, match="the row 'no_global,registers_4' sets this key"):
        config_of("no_global,registers_4")
    assert config_of("no_global").model.registers == 2


def test_unknown_rows_and_no_seed():
    config_of = cli.Rows("configs/pretrain.py", [])
    with pytest.raises(UserError, match=r"table 6 has no row 'registers_5'"):
        plan.make(paper.TABLES["6"], config_of, 1, ["registers_5"])
    with pytest.raises(UserError, match=r"--seeds=0 must be at least 1"):
        plan.make(paper.TABLES["6"], config_of, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ROWS = {'a': {}}", "must set COLUMNS"),
        ("ROWS = {}\nCOLUMNS = ['probe/mAP']", "must set ROWS"),
        ("ROWS = {'a': {}}\nCOLUMNS = ['prob/mAP']", "the column 'prob/mAP' must be"),
        ("ROWS = {'a': {'chnges': {}}}\nCOLUMNS = ['probe/mAP']", "the row 'a' must be a dict"),
        ("ROWS = {'a': {}}\nCOLUMNS = ['probe/mAP']\nBASELINE = 'b'", "BASELINE='b' is none"),
        ("ROWS = {'a': {}}\nCOLUMNS = ['probe/mAP']\nTITEL = 'b'", "sets TITEL; it may set"),
        (
            "ROWS = {'a': {}}\nCOLUMNS = ['retrieval@vggsound/visual_to_audio/R@5']",
            r"the column 'retrieval@vggsound/visual_to_audio/R@5' names no score: it must be "
            r"retrieval@vggsound/{visual_to_audio, audio_to_visual}/{R1, R5, R10, median_rank}$",
        ),
        ("ROWS = {'a': {}}\nCOLUMNS = ['temporal/both']", "it must be temporal/{audio, visual, b"),
        (
            "ROWS = {'a': {'strategy': 'diagonal-mean'}}\nCOLUMNS = ['probe/mAP']",
            r"mine.py: the row 'a' has the strategy 'diagonal-mean'; it must be one of "
            r"diagonal_mean, diagonal_max, mean, max$",
        ),
        ("import nothing_of_that_name", "can't be run: ModuleNotFoundError"),
        (
            "ROWS = {'a': {'changes': {'seed': 5}}}\nCOLUMNS = ['probe/mAP']",
            "the row 'a' changes the seed, which --seeds chooses",
        ),
        ("ROWS = {4: {}}\nCOLUMNS = ['probe/mAP']", "the row 4 must have a text as its name"),
        (
            "ROWS = {'a': {'num_frames': '4'}}\nCOLUMNS = ['probe/mAP']",
            "the row 'a' needs num_frames as int",
        ),
        (
            "ROWS = {'a': {}}\nCOLUMNS = ['probe/mAP']\nSETTINGS = {'probes': {}}",
            "SETTINGS must be a dict with a dict for some of .*, and it has 'probes'",
        ),
    ],
)
def test_mistakes_in_a_table_of_ones_own(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        tables.read(tmp_path / "mine.py")
    with pytest.raises(UserError, match=r"there is no table .*none\.py"):
        tables.read(tmp_path / "none.py")
    (tmp_path / "11.py").write_text("ROWS = {'a': {}}\nCOLUMNS = ['probe/mAP']")
    with pytest.raises(UserError, match=r"11.py has the name of a table of the paper"):
        tables.read(tmp_path / "11.py")


def test_mistakes_in_changes(tmp_path):
    (tmp_path / "mine.py").write_text(
        "ROWS = {'a': {'changes': {'model.witdh': 3}}, 'b': {'changes': {'epochs': 'many'}}}\n"
        "COLUMNS = ['probe/mAP']\n"
    )
    table, config_of = tables.read(tmp_path / "mine.py"), cli.Rows("configs/demo.py", [])
    with pytest.raises(UserError, match=r"row 'a': the config has no key 'model.witdh'"):
        plan.make(table, config_of, 1, ["a"])
    with pytest.raises(UserError, match=r"row 'b': .*"):
        plan.make(table, config_of, 1, ["b"])


def test_columns_find_their_values():
    row = tables.Row("x", "x", strategy="max")
    result = {"scores": {"max": {"audio_to_visual": {"R1": 0.25}}}}
    column = tables.column("retrieval@vggsound/audio_to_visual/R1")
    assert column.value(result, row) == 0.25 and column.value({}, row) is None
    assert column.resampled_key(row) == "max/audio_to_visual/R1"
    assert column.title == "vggsound audio → visual R@1" and column.is_share
    maps = tables.column("segmentation/evidence/mIoU")
    assert maps.value({"maps": {"evidence": {"scores": {"mIoU": 0.5}}}}, row) == 0.5
    # A map's control has scores of its own.
    control = tables.column("segmentation/evidence/another clip's sound/mIoU")
    found = {"evidence": {"another clip's sound": {"scores": {"mIoU": 0.2}}}}
    assert control.value({"maps": found}, row) == 0.2
    assert control.resampled_key(row) == "evidence/another clip's sound/mIoU"
    tokens = tables.column("tokens/linear/global")
    assert tokens.value({"scores": {"linear": {"global": {"mAP": 0.1}}}}, row) == 0.1
    assert not tables.column("training/examples_per_second").is_share
    # The scores that a training had at its end.
    ends = tables.column("training/audio_to_visual/R5")
    assert ends.value({"audio_to_visual/R5": 0.5}, row) == 0.5 and ends.is_share
    assert ends.title == "training audio → visual R@5"
    assert tables.column("training/loss").title == "loss"


def test_the_names_of_scores_are_those_of_the_evaluations():
    rng = np.random.default_rng(0)
    truth = np.eye(3, dtype=bool)[np.arange(9) % 3]
    labels = np.array([0, 0, 1, 1])
    assert {name: list(map(list, levels)) for name, levels in tables.NAMES.items()} == {
        "retrieval": [[*retrieval.DIRECTIONS], [*retrieval_metrics.summary(np.ones(3))]],
        "probe": [[*classification.scores_of(truth, rng.normal(size=(9, 3)))]],
        "tokens": [["linear", "transformer"], [*tokens.KINDS]],
        "temporal": [[*temporal.KINDS], [*temporal_metrics.scores(labels, labels, 1)]],
        "reconstruction": [[*MODALITIES]],
    }


def test_a_claim_without_a_verdict_says_why():
    claim = {"text": "x", "column": "probe/mAP", "verdict": None, "difference": None}
    result = {"columns": {"probe/mAP": "probe mAP"}, "claims": [claim]}
    assert rendering.claims(result)[0][2:] == ["–", "none without a score of both rows"]
    claim["difference"] = {"mean": 0.1, "interval": None}
    assert rendering.claims(result)[0][2:] == ["+10.0", "none before 3 seeds"]


def test_intervals_by_hand():
    # Two seeds: the mean of two draws is one of three values.
    low, high = scores.interval(Values({0: 0.0, 1: 1.0}, {}))
    assert (low, high) == (0.0, 1.0)
    assert scores.interval(Values({0: 0.3}, {})) is None and scores.interval(Values({}, {})) is None
    # One seed: only the clips vary.
    clips = np.linspace(0, 1, 1000)
    low, high = scores.interval(Values({0: 0.5}, {0: clips}))
    assert low == pytest.approx(0.025, abs=0.01) and high == pytest.approx(0.975, abs=0.01)


def test_differences_are_paired():
    noise = np.random.default_rng(0).normal(size=(2, 1000))
    base = Values({0: 0.2, 1: 0.7}, {0: 0.2 + noise[0], 1: 0.7 + noise[1]})
    better = Values(
        {0: 0.3, 1: 0.8, 2: 9.0}, {0: 0.3 + noise[0], 1: 0.8 + noise[1], 2: np.full(1000, 9.0)}
    )
    difference = better.minus(base)
    assert set(difference.seeds) == {0, 1}
    np.testing.assert_allclose(scores.interval(difference), [0.1, 0.1], atol=1e-12)
    assert scores.cell(difference)["mean"] == pytest.approx(0.1)
    low, high = scores.interval(base)
    assert high - low > 1


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([0.01, 0.1], "seen"),
        ([-0.1, -0.01], "the other way round"),
        ([-0.1, 0.1], "not seen"),
        ([0.0, 0.1], "not seen"),
        (None, None),
    ],
)
def test_verdicts_need_an_interval_and_three_seeds(bounds, expected):
    seeds = {"0": 0.0, "1": 0.0, "5": 0.0}
    difference = {"mean": 0.0, "interval": bounds}
    assert scores.verdict(difference | {"seeds": seeds}) == expected
    del seeds["1"]
    assert scores.verdict(difference | {"seeds": seeds}) is None
    assert scores.verdict(None) is None


def test_claims_name_rows_and_columns_that_are_there(tmp_path):
    text = "ROWS = {'a': {}, 'b': {}}\nCOLUMNS = ['probe/mAP']\nCLAIMS = [%r]\n"
    claim = {"text": "x", "row": "a", "than": "b", "column": "probe/mAP"}
    (tmp_path / "mine.py").write_text(text % claim)
    assert tables.read(tmp_path / "mine.py").claims == (tables.Claim("x", "a", "b", "probe/mAP"),)
    for wrong, message in (
        ({**claim, "than": "c"}, "names 'c', which is not there"),
        ({"text": "x"}, "a claim must be a dict with text, row, than, column"),
    ):
        (tmp_path / "mine.py").write_text(text % wrong)
        with pytest.raises(UserError, match=message):
            tables.read(tmp_path / "mine.py")


def test_numbers_as_printed():
    found = {"mean": 0.1234, "interval": [0.1, 0.2]}
    assert rendering.cell("probe/mAP", found, 0.308) == "12.3 [10.0, 20.0] (paper: 30.8)"
    assert rendering.cell("probe/mAP", None) == "–"
    assert rendering.cell("training/loss", {"mean": 2.5, "interval": None}) == "2.5"
    rank = {"mean": 12.0, "interval": [11.0, 13.0]}
    name = "retrieval/visual_to_audio/median_rank"
    assert rendering.cell(name, rank).startswith("12") and "1200" not in rendering.cell(name, rank)
    assert rendering.cell("probe/d_prime", {"mean": 2.31, "interval": None}) == "2.31"


def test_a_lock_is_held_by_one_and_let_go(tmp_path):
    with locks.held(tmp_path / "lock"):
        with pytest.raises(locks.Busy), locks.held(tmp_path / "lock"):
            pass
        with locks.held(tmp_path / "other"):
            pass
    with locks.held(tmp_path / "lock"):
        pass
