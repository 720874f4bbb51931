"""Test settings: 8 virtual CPU devices, no silent rank promotion, annotations checked."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute: level 0 halves the compiler's time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/cavmae_sync_jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from jaxtyping import install_import_hook

install_import_hook(["cavmae_sync_jax", "data_prep"], "beartype.beartype")

import pytest

# What takes longest begins first, so that none of it is left alone at the end.
LONGEST = ("multihost", "convert", "programs", "train", "sharding", "probe")


def pytest_collection_modifyitems(items):
    """Orders the files."""

    def place(item):
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
    """An emulator of Google Cloud Storage in a process of its own; `pointed_at` makes it gs://."""
    from benchmarks.data import bucket_emulator

    with bucket_emulator.running(tmp_path_factory.mktemp("bucket")) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    """A prepared dataset of real little videos: 20 clips to train on, 5 to evaluate."""
    import tiny

    from data_prep.pipeline.clips import Preparation, VideoClip
    from data_prep.pipeline.executors import Engine
    from data_prep.pipeline.tfds_writer import write_dataset

    folder = tmp_path_factory.mktemp("dataset")
    clips = []
    for index in range(25):
        path = folder / f"clip{index}.mp4"
        tiny.write_video(path, 10 * (index % 20), 200 + 60 * index)
        clips.append(VideoClip(path.stem, str(path), labels=("even" if index % 2 == 0 else "odd",)))
    write_dataset(
        folder / "prepared",
        {"train": clips[:20], "eval": clips[20:]},
        Preparation(num_frames=4, image_size=32, clip_seconds=4),
        class_names=["even", "odd"],
        source="videos",
        engine=Engine(workers=1),
    )
    return folder / "prepared"
