"""gs:// for tests: whatever it stands for, its clients must forget what it stood for before."""

import contextlib

from etils.epath import backend


def forget() -> None:
    """Makes epath ask anew which file system a scheme has."""
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()


@contextlib.contextmanager
def pointed_at(emulator):
    """Makes gs:// an emulator."""
    forget()
    try:
        with emulator.pointed_at():
            yield emulator
    finally:
        forget()
