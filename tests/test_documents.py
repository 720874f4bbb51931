"""The documents are true: links resolve, commands parse and are run by tests, examples run.

A program's command is parsed as the program itself would, with its own parser and config; nothing
is trained. `TESTED` says which test runs it, `NOT_RUN` why none does.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile
from typing import NamedTuple
from unittest import mock

import media_files
import numpy as np
import pytest
import soundfile
import tiny
import yaml
from PIL import Image

from cavmae_sync_jax.utils import cli
from configs import finetune, pretrain, probe

ROOT = pathlib.Path(__file__).parents[1]
LONGEST_README = 150
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/*.md"))),
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("results/*.md"))),
]
# The changelog also names what is no more.
CURRENT = [name for name in DOCUMENTS if name != "CHANGELOG.md"]

# Commands that no test runs, with the reason. A pattern is searched in the command's line.
NOT_RUN = {
    r"gs://|Dataflow|Flink|Spark": "needs a cloud or a cluster; test_executors parses the options",
    r"make (test|lint|format)": "runs the tests themselves",
    r"make claims": "takes many hours; tests run its programs at small sizes",
    r"make mutants": "takes minutes; a test runs its program on a stand-in for mutmut",
    r"make demo": "takes ten minutes; tests run each of its programs at small sizes",
}
# Which test runs the program: the whole command at small sizes, or the `run` that its `main` calls.
TESTED = {
    r"data_prep\.videos .*--labels_from": "data_prep/sources/test_folder_labels.py::"
    "test_the_program_labels_by_folders",
    r"data_prep\.videos .*--segments": "data_prep/sources/test_segments.py::"
    "test_the_program_prepares_published_lists",
    r"data_prep\.videos": "data_prep/test_videos.py::test_the_program_from_files_to_dataset",
    r"data_prep\.cavmae_json": "data_prep/test_cavmae_json.py::"
    "test_lists_become_a_dataset_and_nothing_is_lost",
    r"data_prep\.ade20k_sound": "data_prep/test_ade20k_sound.py::"
    "test_rows_become_examples_or_rejects_and_nothing_is_lost",
    r"data_prep\.localisation .*--layout=vggss": "data_prep/test_localisation.py::"
    "test_vggss_from_vggsounds_videos_takes_the_middle_frame",
    r"data_prep\.localisation .*--layout=avsbench": "data_prep/sources/test_avsbench.py::"
    "test_single_sources_have_classes",
    r"data_prep\.localisation .*--layout=flickr": "data_prep/test_localisation.py::"
    "test_flickr_with_the_consensus_of_its_annotators",
    r"data_prep\.scenes": "data_prep/test_scenes.py::test_the_program_makes_a_dataset_with_truth",
    r"data_prep\.inspect_dataset": "data_prep/inspection/test_inspect_dataset.py::"
    "test_a_page_is_drawn",
    r"\.train .*--config\.init_from": "torch_compat/test_mae.py::"
    "test_training_begins_with_mae_and_learns",
    r"cavmae_sync_jax\.ablate": "ablations/test_ablate.py::test_killed_shared_and_finished",
    r"benchmarks\.scores\.claims": "benchmarks/test_benchmarks.py::"
    "test_claims_are_written_from_the_tables",
    r"cavmae_sync_jax\.finetune": "test_finetune.py::test_a_run_leaves_a_classifier_and_its_scores",
    r"evals\.classify": "test_finetune.py::"
    "test_only_a_fine_tuned_model_of_the_same_classes_is_scored",
    r"\.convert audio_model": "torch_compat/test_finetuned.py::test_there_and_back_is_bit_exact",
    r"cavmae_sync_jax\.train": "test_programs.py::test_train_shows_progress_and_leaves_a_workdir",
    r"\.convert mae": "torch_compat/test_mae.py::test_mae_goes_where_the_paper_puts_it",
    r"cavmae_sync_jax\.convert": "test_programs.py::test_convert_and_evaluate_what_came_of_it",
    r"\.retrieval --embeddings": "evals/test_ranking.py::"
    "test_embeddings_are_scored_without_a_model",
    r"evals\.retrieval": "test_programs.py::test_retrieval_prints_and_writes",
    r"evals\.segmentation": "evals/test_segmentation.py::"
    "test_a_model_that_knows_the_answer_scores_1",
    r"evals\.probe": "evals/test_probe.py::test_run_trains_scores_and_draws",
    r"evals\.summary": "test_programs.py::test_retrieval_prints_and_writes",
    r"cavmae_sync_jax\.(embed|search|localize)": "test_use.py::test_embed_search_and_localize",
    r"cavmae_sync_jax\.app": "inference/test_app.py::"
    "test_a_video_gets_its_match_and_a_map_that_plays",
    r"benchmarks\.training\.train_step": "benchmarks/test_train_step_benchmark.py::"
    "test_the_program",
    r"benchmarks\.data\.input_pipeline": "benchmarks/test_speed_benchmarks.py::"
    "test_the_pipeline_is_timed_in_parts",
    r"benchmarks\.training\.startup": "benchmarks/test_speed_benchmarks.py::"
    "test_starts_make_a_table",
    r"benchmarks\.inference\.features": "benchmarks/test_speed_benchmarks.py::"
    "test_features_stage_and_loop_embed_the_same",
    r"benchmarks\.inference\.embedding": "benchmarks/test_speed_benchmarks.py::"
    "test_files_are_embedded_as_pytorch_embeds_what_was_decoded",
    r"benchmarks\.inference\.retrieval": "benchmarks/test_benchmarks.py::"
    "test_retrieval_times_every_aggregation",
    r"benchmarks\.inference\.exact_search": (
        "benchmarks/test_benchmarks.py::test_exact_search_is_timed_in_an_index_that_stays"
    ),
    r"benchmarks\.inference\.nearest": "benchmarks/test_benchmarks.py::"
    "test_nearest_measures_recall",
    r"benchmarks\.training\.growth": "benchmarks/test_growth_benchmarks.py::"
    "test_growth_counts_what_it_should",
    r"benchmarks\.data\.preparation": "benchmarks/test_growth_benchmarks.py::"
    "test_preparation_times_its_own_videos",
    r"benchmarks\.data\.many_clips": "benchmarks/test_growth_benchmarks.py::"
    "test_many_clips_are_planned_prepared_and_resumed",
    r"benchmarks\.scores\.demo_seeds": "benchmarks/test_benchmarks.py::test_demo_seeds_by_hand",
    r"benchmarks\.scores\.evidence_settings": "benchmarks/test_benchmarks.py::"
    "test_each_setting_of_evidence_is_scored_with_each_model",
    r"benchmarks\.training\.faults": "distributed/test_multihost.py::"
    "test_the_benchmark_of_faults_damages_and_tells",
    r"benchmarks\.testing\.mutants": "benchmarks/test_mutants.py::"
    "test_what_is_not_noticed_is_printed",
    r"benchmarks\.data\.streaming": "benchmarks/test_bucket_benchmarks.py::"
    "test_streaming_times_the_bucket_beside_the_disk",
    r"benchmarks\.data\.layouts": "benchmarks/test_bucket_benchmarks.py::"
    "test_layouts_read_the_parts_that_an_example_needs",
    r"benchmarks\.data\.bucket_faults": "benchmarks/test_bucket_benchmarks.py::"
    "test_faults_in_a_bucket_are_noticed",
    r"benchmarks\.training\.tpu_aot": "benchmarks/test_tpu_aot.py::"
    "test_a_small_model_compiles_for_a_pod",
    r"benchmarks\.training\.pod_hosts": "benchmarks/test_pod_hosts.py::test_needs_by_hand",
    r"benchmarks\.training\.precision": "benchmarks/test_precision.py::test_errors_by_hand",
    r"benchmarks\.training\.roofline": "benchmarks/test_roofline.py::test_this_cpu",
    r"benchmarks\.training\.device_session": "benchmarks/test_device_session.py::"
    "test_a_failure_does_not_stop_the_others_and_done_parts_stay",
    r"benchmarks\.inference\.convert": "benchmarks/test_benchmarks.py::"
    "test_convert_measures_every_kind_both_ways",
}
# Flags of others' programs that the text mentions.
FOREIGN = {"--version", "--gpus"}  # of gcloud and of Slurm


class Command(NamedTuple):
    document: str
    program: str  # a module, or "make"
    arguments: tuple[str, ...]

    @property
    def line(self):
        return " ".join((self.program, *self.arguments))


class Program(NamedTuple):
    parser: object
    config: bool
    overrides: bool


def text_of(name):
    return (ROOT / name).read_text()


def code_of(name):
    """Lines of code: those of fenced blocks, continued ones joined, and what is in backticks."""
    text = text_of(name)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in fenced:
        joined = re.sub(r",\\\n", ",", block)
        yield from re.sub(r"\s*\\\n\s*", " ", joined).splitlines()
    yield from re.findall(r"`([^`\n]+)`", rest)


def commands(names=CURRENT):
    found = []
    for name in names:
        for line in code_of(name):
            plain = re.sub(r"[\[\]]", "", line)
            for match in re.finditer(
                r"(?:python -m ([\w.]+)|(?:^|\s)(make)(?= [a-z]))([^\"|&;>#]*)", plain
            ):
                module, make, rest = match.groups()
                found.append(Command(name, module or make, tuple(shlex.split(rest))))
    return found


@functools.cache
def program_of(module):
    """What a program would parse with; None if it takes nothing from the command line."""
    captured = []

    def capture(parser, run, *, config=False, rows=False, overrides=False, within=None):
        captured.append(Program(parser, config, overrides))

    with (
        mock.patch.object(cli, "main", capture),
        mock.patch("sys.argv", [module]),
        mock.patch.dict(os.environ),  # benchmarks set what JAX reads
    ):
        imported = importlib.import_module(module)
        if re.search(r"\w\.main\(", pathlib.Path(imported.__file__).read_text()):
            imported.main()
    return captured[0] if captured else None


def parse(command):
    """Parses as the program does; a mistake raises SystemExit or UserError."""
    program = program_of(command.program)
    if program is None:
        assert not command.arguments
        return
    _, rest = cli._parse_known(program.parser, command.arguments, program.config)
    if program.config:
        cli._parse_config(program.parser, rest)()
    elif program.overrides:
        cli.override(pretrain.get_config(), cli._only(program.parser, rest, "--config."))
    else:
        cli._only(program.parser, rest)


def headings(path):
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_one_page():
    assert len(text_of("README.md").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_document_is_linked():
    linked = {
        ((ROOT / name).parent / link.partition("#")[0]).resolve()
        for name in DOCUMENTS
        for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name))
    }
    assert {name for name in DOCUMENTS if (ROOT / name).resolve() not in linked} == {"README.md"}


@pytest.mark.parametrize("name", CURRENT)
def test_files_that_are_named_exist(name):
    for code in re.findall(r"`([^`\n]+)`", text_of(name)):
        if re.fullmatch(r"(tests|configs|docs|results|benchmarks)/[\w/.]+", code):
            assert (ROOT / code).exists(), code


@pytest.mark.parametrize("name", CURRENT)
def test_commands_are_ones_that_the_programs_take(name):
    makefile = text_of("Makefile")
    for command in commands([name]):
        if command.program == "make":
            target, *variables = command.arguments
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command.line
            for variable in variables:
                setting = variable.partition("=")[0]
                assert re.search(rf"^{setting} \?=", makefile, re.MULTILINE), command.line
        elif command.program.split(".")[-1] != "NAME":
            if not command.arguments:
                assert importlib.util.find_spec(command.program), command.line
                continue
            try:
                parse(command)
            except (SystemExit, cli.UserError) as error:
                shown = isinstance(error, SystemExit) and error.code == 0  # --help_config
                assert shown, f"{name}: {command.line}: {error}"


def test_mistakes_would_be_found():
    for line in (
        "data_prep.videos VIDEOS --output=x --evalshare=1",
        "data_prep.videos VIDEOS",
        "cavmae_sync_jax.train --config=configs/pretrain.py --config.bach_size=1 --workdir=x",
        "cavmae_sync_jax.train --config=configs/pretrain.py:register_4 --workdir=x",
        "cavmae_sync_jax.convert a b --config.model.with=1",
        "benchmarks.inference.retrieval --strategies=best",
    ):
        program, *arguments = line.split()
        with pytest.raises((SystemExit, cli.UserError)), contextlib.redirect_stderr(None):
            parse(Command("here", program, tuple(arguments)))


def test_flags_in_the_text_exist():
    modules = {c.program for c in commands() if c.program != "make" and c.arguments}
    programs = [program_of(module) for module in modules]
    known = {flag for p in programs if p for flag in p.parser._option_string_actions}
    known.add(cli.HELP_CONFIG)
    keys = {key for recipe in (pretrain, probe, finetune) for key in cli.keys(recipe.get_config())}
    sections = {key.split(".")[0] for key in keys}
    unknown = []
    for name in CURRENT:
        for code in code_of(name):
            for flag in re.findall(r"^--[\w.]+", code):
                key = flag.removeprefix("--config.")
                fine = key in keys | sections | {"KEY"} if key != flag else flag in known | FOREIGN
                unknown += [] if fine else [(name, flag)]
    assert not unknown


def test_every_flag_says_what_it_is():
    """A help text is read alone, so it must not begin in the middle of a sentence."""
    modules = {c.program for c in commands() if c.program != "make" and c.arguments}
    modules = {module for module in modules if not module.endswith("NAME")}
    unclear = [
        (module, action.dest, action.help)
        for module in sorted(modules)
        if (program := program_of(module))
        for action in program.parser._actions
        if re.match(r"(of|per|in|to|for|with|before|after|None)\b", action.help or "None")
    ]
    assert unclear == []


def test_every_command_is_run_or_says_why_not():
    lines = {c.line for c in commands() if not c.program.endswith("NAME")}
    patterns = [*NOT_RUN, *TESTED]
    unmatched = {line for line in lines if not any(re.search(p, line) for p in patterns)}
    assert not unmatched
    stale = {p for p in patterns if not any(re.search(p, line) for line in lines)}
    assert not stale
    for test in TESTED.values():
        file, function = test.split("::")
        assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text(), test


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the examples name: a trained model in runs/mine, and a video."""
    with tarfile.open(ROOT / "tests/golden/version_0_1_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "runs").mkdir()
    (tmp_path / "workdir").rename(tmp_path / "runs" / "mine")
    tiny.write_video(tmp_path / "video.mp4", 50, 440)
    soundfile.write(tmp_path / "sound.wav", media_files.tone(300, 2, 16_000), 16_000)
    Image.effect_noise((60, 40), 90).convert("RGB").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)


def python_blocks(name):
    return re.findall(r"^```python\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE)


def test_python_is_where_it_is_run():
    assert {name for name in DOCUMENTS if python_blocks(name)} == {"README.md", "docs/inference.md"}


def test_the_readmes_example_runs(here):
    (example,) = python_blocks("README.md")
    assert len([line for line in example.splitlines() if line]) == 4
    names = {}
    exec(example, names)
    assert names["pairs"].audio.shape == names["pairs"].visual.shape
    assert -1 <= names["match"] <= 1


def test_the_examples_of_inference_run(here):
    names = {}
    for block in python_blocks("docs/inference.md"):
        exec(block, names)
    assert names["sound"].visual is None and names["picture"].audio is None
    size = names["model"].config.model.image_size
    assert names["heat"].shape == (size, size) and np.ptp(names["heat"]) > 0


def test_the_first_hour_is_written_down():
    readme = text_of("README.md")
    assert "\npip install -e ." in readme and "With `-e`, Python imports the clone" in readme
    checkpoints = text_of("docs/checkpoints.md")
    for home in ("edsonroteia/cav-mae-sync", "YuanGongND/cav-mae", "facebookresearch/mae"):
        assert f"https://github.com/{home}" in checkpoints


def test_the_manifest_for_kubernetes_starts_a_training_on_every_host():
    (block,) = re.findall(r"```yaml\n(.*?)```", text_of("docs/distributed.md"), re.DOTALL)
    job = yaml.safe_load(block)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,), topology = pod["containers"], pod["nodeSelector"]
    chips = container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]
    assert topology["cloud.google.com/gke-tpu-topology"] == "4x4" and chips == 16
    assert container["args"][0].startswith("exec ")  # else the shell would keep the signals
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"] and mount["mountPath"] == "/dev/shm"
    assert pod["terminationGracePeriodSeconds"] > 60


def commands_of(document, title):
    """The commands of the first block under a title, without the interpreter."""
    block = re.search(rf"^#+ {title}$.*?^```\n(.*?)^```", text_of(document), re.DOTALL | re.M)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines]


@pytest.mark.release
def test_the_recipe_for_a_few_videos_works_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "data_prep", "cavmae_sync_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "VIDEOS").mkdir()
    for seed in range(4):
        media_files.noisy_video(tmp_path / "VIDEOS" / f"{seed}.mp4", 10, seed=seed)
    prepare, train = commands_of("docs/training.md", "A few videos on a laptop")
    for command in (prepare, [*train, "--config.epochs=2"]):  # 100 take minutes
        # As on a laptop: the tests' eight devices are no business of the recipe.
        alone = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, timeout=600, env=alone
        )
        assert done.returncode == 0, done.stderr
    steps = (tmp_path / "runs/few/metrics.jsonl").read_text().splitlines()
    assert len(steps) > 0 and (tmp_path / "runs/few/checkpoints").is_dir()
