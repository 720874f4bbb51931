"""What the authors' loader does for a training example, for `torch.utils.data.DataLoader`.

It decodes the whole clip's WAV, computes its whole fbank, pads that and cuts one window; it decodes
one of the clip's frames. Both come normalised as float32. The fbank is `audio.log_mel`, our own,
instead of torchaudio's. Left out: reading lists and labels, augmentation, replacing missing frames.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.models.cavmae_sync import IMAGE_MEAN, IMAGE_STD


class Files(NamedTuple):
    """Where a clip's files lie, as in CAV-MAE's datasets."""

    folder: Path

    def sound(self, clip_id: str) -> Path:
        """The clip's WAV, 16 kHz."""
        return self.folder / f"{clip_id}.wav"

    def frame(self, clip_id: str, frame: int) -> Path:
        """One of the clip's JPEGs."""
        return self.folder / f"frame_{frame}" / f"{clip_id}.jpg"


class Clips(Dataset):
    """One random frame of each clip with its window."""

    def __init__(
        self,
        files: Files,
        clip_ids: Sequence[str],
        pair_spec: PairSpec,
        audio_mean: float,
        audio_std: float,
    ) -> None:
        self._files, self._ids, self._framing = files, clip_ids, pair_spec
        self._audio_mean, self._audio_std = audio_mean, audio_std
        self._image_mean, self._image_std = (
            torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD)
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pair(self._ids[index], random.randrange(self._framing.num_frames))

    def pair(self, clip_id: str, frame: int) -> tuple[Tensor, Tensor]:
        """The window `[rows, bins]` and the image `[3, height, width]` of one frame."""
        return self._window(clip_id, frame), self._image(clip_id, frame)

    def _window(self, clip_id: str, frame: int) -> Tensor:
        pair_spec = self._framing
        waveform, rate = soundfile.read(self._files.sound(clip_id), dtype="float32")
        if rate != audio.SAMPLE_RATE:
            raise ValueError(f"{clip_id} has {rate} Hz")
        fbank = torch.from_numpy(audio.log_mel(waveform, audio.SAMPLE_RATE))
        # A negative padding cuts.
        fbank = torch.nn.functional.pad(fbank, (0, 0, 0, pair_spec.clip_rows - len(fbank)))
        rows = pair_spec.clip_rows, pair_spec.audio_rows
        start = audio.window_start(frame, pair_spec.num_frames, *rows)
        window = fbank[start : start + pair_spec.audio_rows]
        return (window - self._audio_mean) / self._audio_std

    def _image(self, clip_id: str, frame: int) -> Tensor:
        size = self._framing.image_size
        image = Image.open(self._files.frame(clip_id, frame)).convert("RGB")
        if image.size != (size, size):  # torchvision's resize and crop return such an image as is
            raise ValueError(f"{clip_id} has frames of {image.size}")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255).sub_(self._image_mean).div_(self._image_std)


def batches(clips: Clips, batch_size: int, order: Sequence[int]) -> Iterator[list[Tensor]]:
    """Batches of (window, image) in this process, collated by PyTorch's own function."""
    return iter(DataLoader(clips, batch_size, sampler=order, num_workers=0))
