"""What a worker process tells of itself."""

import os
import pathlib
import signal
import tempfile
import time

from cavmae_sync_jax.media import bicubic
from data_prep.pipeline import readers


def scalings_compiled(_):
    """How many forms of the scaling this process has compiled."""
    return len(bicubic._add_weighted.signatures)


def hold_copies(path):
    """Copies the file of an archive, ends or sleeps as its name says, and counts all copies."""
    with readers.local(path):
        if "dies.zip" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0 if "good.zip" in path else 600)
    return len(list(pathlib.Path(tempfile.gettempdir()).rglob("*.mp4")))
