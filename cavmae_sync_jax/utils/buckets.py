"""Paths that lie in a bucket, such as `gs://BUCKET/data`, and how fsspec calls them."""

import os

import fsspec
from etils import epath

_FILE_SYSTEMS = {"gs": "gcs"}  # what fsspec calls the scheme of a path


def in_bucket(path: epath.PathLike) -> bool:
    """Returns whether a path has a scheme, such as gs://."""
    return "://" in os.fspath(path)


def bucket_files(path: epath.PathLike) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns a bucket's file system, and its own form of a path with a scheme."""
    text = os.fspath(path)
    scheme = text.partition("://")[0]
    files = fsspec.filesystem(_FILE_SYSTEMS.get(scheme, scheme))
    return files, files._strip_protocol(text)
