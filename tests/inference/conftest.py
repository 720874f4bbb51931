"""The untrained model that the tests of `inference` share."""

import pathlib

import pytest


@pytest.fixture(scope="session")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A workdir whose model takes clips of 16 frames, with 4 × 4 patches."""
    import tiny

    folder = tmp_path_factory.mktemp("model") / "workdir"
    return tiny.write_model(folder, data__num_frames=16, model__image_patch=8)


@pytest.fixture(scope="session")
def model(workdir):
    """Its model."""
    import cavmae_sync_jax

    return cavmae_sync_jax.load(str(workdir))
