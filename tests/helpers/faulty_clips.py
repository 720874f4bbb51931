"""Clips that harm the process that prepares them, as their ids say."""

import dataclasses
import errno
import os
import signal
import time

import numpy as np

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import Recording, VideoClip


@dataclasses.dataclass(frozen=True)
class FaultyClip(VideoClip):
    """Does to its process what its id says; any other id is noise."""

    def read(self, preparation):
        if self.clip_id.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.clip_id.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.clip_id.startswith("hang"):
            time.sleep(600)
        if self.clip_id.startswith("wait") and not os.path.exists(self.path):
            time.sleep(600)
        if self.clip_id.startswith("bug"):
            raise ZeroDivisionError("by design")
        if self.clip_id.startswith("nfs"):
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
        if self.clip_id.startswith("mistake"):
            raise UserError("mend the truth file")
        rng = np.random.default_rng(list(self.clip_id.encode()))
        size = preparation.image_size
        frames = rng.integers(0, 255, (preparation.num_frames, size, size, 3), np.uint8)
        return Recording(frames, rng.integers(-9000, 9000, 8000, np.int16), 1.0, {})


def faulty(*ids):
    return [FaultyClip(clip_id, f"{clip_id}.mp4") for clip_id in ids]
