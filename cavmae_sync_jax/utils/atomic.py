"""Writes files that are complete or absent, never half."""

import uuid

from etils import epath

from cavmae_sync_jax.utils.buckets import in_bucket


def write(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file at once, so that no reader and no killed process leaves half of one.

    Several processes may do it at the same time: one of their contents stays.
    """
    data = content.encode() if isinstance(content, str) else content
    path = epath.Path(path)
    if in_bucket(path):  # where a file appears when it is whole
        path.write_bytes(data)
        return
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
