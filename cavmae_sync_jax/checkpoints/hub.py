"""Checkpoints on the Hugging Face Hub: `hf://USER/REPO` or `hf://USER/REPO@REVISION`."""

import contextlib
import os
import string
from collections.abc import Iterator
from typing import Any

from etils import epath

from cavmae_sync_jax.utils.errors import UserError

SCHEME = "hf://"
CONTENTS = "checkpoints/*"
_CARD = string.Template("""---
library_name: cavmae_sync_jax
tags:
- audio-visual
- jax
---

# $name

A CAV-MAE Sync model for `cavmae_sync_jax`:

```python
import cavmae_sync_jax

model = cavmae_sync_jax.load("hf://$name")
```
""")


def is_address(name: epath.PathLike) -> bool:
    """Whether a name is meant for the Hub."""
    return os.fspath(name).startswith(SCHEME)


def repository_of(name: str) -> tuple[str, str | None]:
    """USER/REPO of an address, and its revision, if it has one.

    Raises:
      UserError: if it has another form.
    """
    repository, _, revision = name.removeprefix(SCHEME).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"{name} must be hf://USER/REPO or hf://USER/REPO@REVISION")
    return repository, revision or None


def local(directory: epath.PathLike) -> epath.PathLike:
    """Downloads what a `hf://` address names, into the Hub's own cache; other paths stay.

    The repository holds a workdir: `checkpoints/STEP/`. Only what changed is downloaded again.

    Raises:
      UserError: if huggingface_hub is not installed, there is no such repository, or no network.
    """
    name = os.fspath(directory)
    if not is_address(name):
        return directory
    with _library(name, "downloaded") as library:
        repository, revision = repository_of(name)
        return library.snapshot_download(repository, revision=revision, allow_patterns=[CONTENTS])


def push(folder: epath.PathLike, address: str) -> str:
    """Uploads a workdir's checkpoints in one commit, and says where they are.

    They replace those that are there, which stay in the repository's history. A new repository is
    private, and gets a short model card. The user's login is that of the Hub's own program.

    Args:
      folder: holds `checkpoints/STEP/`.
      address: `hf://USER/REPO`, or `hf://USER/REPO@BRANCH` with a branch that is there.

    Raises:
      UserError: if huggingface_hub is not installed, the login does not allow it, or no network.
    """
    with _library(address, "written") as library:
        repository, branch = repository_of(address)
        api = library.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        if not api.file_exists(repository, "README.md", revision=branch):
            (epath.Path(folder) / "README.md").write_text(_CARD.substitute(name=repository))
        api.upload_folder(
            repo_id=repository,
            folder_path=os.fspath(folder),
            revision=branch,
            commit_message="Upload a checkpoint of cavmae_sync_jax",
            allow_patterns=[CONTENTS, "README.md"],
            delete_patterns=[CONTENTS],
        )
        return f"{api.endpoint}/{repository}"


@contextlib.contextmanager
def _library(name: str, done: str) -> Iterator[Any]:
    """The Hub's library, whose errors become the user's: `name` can't be `done`."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(f"{name} needs huggingface_hub: pip install -e '.[hub]'") from error
    try:
        yield huggingface_hub
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no {name}, or your login may not read it: run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no such revision: name a branch, tag or commit") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{name} can't be {done} with your login: run `hf auth login` with another token"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} can't be {done}: {reason}") from error
