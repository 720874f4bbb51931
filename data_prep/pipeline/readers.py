"""Reads the files of a clip: pictures and sounds, copied here first if they lie in a bucket."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Int16, UInt8

from cavmae_sync_jax.media import decoding, images, sound_files
from cavmae_sync_jax.media.demuxer import RemotePath
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.media.resampler import CHANNELS
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives
from data_prep.pipeline.bucket_ranges import BucketFile

_BUCKETS = ("gs://", "s3://")


@contextlib.contextmanager
def local(path: str) -> Iterator[str]:
    """Gives a path on this machine: itself, or a copy of what lies in an archive or in a bucket.

    Raises:
      MediaError: missing, if the file in the bucket or archive is not there; whatever is raised
        meanwhile names that file instead of the copy.
      UserError: the disk for copies is full.
    """
    if not path.startswith(_BUCKETS):
        member = archives.split(path)
        if member is None:
            yield path
            return
        with archives.extracted(*member) as copy, _named(copy, path):
            yield copy
        return
    with archives.temporary_folder() as folder:
        copy = str(Path(folder) / Path(path).name)
        try:
            epath.Path(path).copy(copy)
        except FileNotFoundError as error:
            raise MediaError("missing", f"There is no {path}.") from error
        except ImportError as error:
            raise UserError(f"{path} needs pip install '.[gcs]' ({error})") from error
        except OSError as error:
            if error.errno not in cli.FULL:
                raise
            raise archives.no_room(path) from error
        with _named(copy, path):
            yield copy


@contextlib.contextmanager
def media(path: str) -> Iterator[str]:
    """Gives a path that `media.decoding` reads; of a file in a bucket, it reads parts only.

    Raises:
      MediaError: missing, if the file is not there.
      OSError: a part of it did not come, so that nothing is known of it.
    """
    if not path.startswith(_BUCKETS):
        with local(path) as here:
            yield here
        return
    try:
        file = BucketFile(path)
    except FileNotFoundError as error:
        raise MediaError("missing", f"There is no {path}.") from error
    except ImportError as error:
        raise UserError(f"{path} needs pip install '.[gcs]' ({error})") from error
    try:
        yield RemotePath(path, file.open)
    finally:
        if file.fault:
            raise OSError(f"{path} could not be read from its bucket: {file.fault}")


@contextlib.contextmanager
def _named(copy: str, path: str) -> Iterator[None]:
    """Makes errors name the file that a copy is of."""
    try:
        yield
    except MediaError as error:
        raise MediaError(error.reason, error.detail.replace(copy, path)) from error


def read_picture(
    path: str, modes: tuple[str, ...] = images.MODES
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads a picture, see `images.read_picture`, that may lie in a bucket."""
    with local(path) as here:
        return images.read_picture(here, modes)


def read_sound(
    path: str, seconds: decoding.Seconds, channel: str = CHANNELS[0]
) -> Int16[np.ndarray, " samples"]:
    """Reads a sound, see `sound_files.read_sound`, that may lie in a bucket."""
    with local(path) as here:
        return sound_files.read_sound(here, seconds=seconds, channel=channel)
