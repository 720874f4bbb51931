"""Checkpoints on the Hugging Face Hub: `hf://USER/REPO` or `hf://USER/REPO@REVISION`."""

import os

from etils import epath

from cavmae_sync_jax.utils.errors import UserError

SCHEME = "hf://"


def local(directory: epath.PathLike) -> epath.PathLike:
    """Downloads what a `hf://` address names, into the Hub's own cache; other paths stay.

    The repository holds a workdir: `checkpoints/STEP/`. Only what changed is downloaded again.

    Raises:
      UserError: if huggingface_hub is not installed, there is no such repository, or no network.
    """
    name = os.fspath(directory)
    if not name.startswith(SCHEME):
        return directory
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"{name} needs huggingface_hub: pip install 'cavmae_sync_jax[hub]'"
        ) from error
    repository, _, revision = name.removeprefix(SCHEME).partition("@")
    if repository.count("/") != 1:
        raise UserError(f"{name} must be hf://USER/REPO or hf://USER/REPO@REVISION")
    try:
        return huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=["checkpoints/*"]
        )
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"there is no {name}, or it is not yours to see") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no such revision") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} can't be downloaded: {reason}") from error
