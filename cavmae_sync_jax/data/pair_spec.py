"""How a clip becomes pairs: a frame, and the window of sound that belongs to it.

`media.audio.frame_time` and `window_start` are the rule for windows; this module applies it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.media.images import decode_jpeg
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

Batch = dict[str, Any]


class PairSpec(NamedTuple):
    """How a clip becomes pairs of a frame and its audio window; a config sets every field."""

    num_frames: int
    clip_rows: int
    audio_rows: int
    audio_bins: int
    image_size: int
    window_spread: str = audio.SPREADS[0]
    only_frame: int | None = None  # of those, in an evaluation of one frame per clip

    @classmethod
    def of(cls, config: Any) -> "PairSpec":
        """The settings of a training config; an evaluation may add `data.only_frame`."""
        data, model = config.data, config.model
        sizes = model.audio_rows, model.audio_bins, model.image_size
        only_frame = data.get("only_frame", None)
        return cls(data.num_frames, data.clip_rows, *sizes, data.window_spread, only_frame)

    @property
    def frames(self) -> range:
        """The frames of each clip that an evaluation takes: all `num_frames`, or one of them."""
        if self.only_frame is None:
            return range(self.num_frames)
        return range(self.only_frame, self.only_frame + 1)

    def check_rows(self, rows: int | None) -> None:
        """Refuses a dataset with clips of so many log-mel rows, if the frames of one can't fit.

        Raises:
          UserError: they are clearly more than `clip_rows`.
        """
        if rows is not None and rows > audio.LONGEST * self.clip_rows:
            raise UserError(
                f"config.data.clip_rows={self.clip_rows}, but the dataset holds clips of {rows} "
                f"rows, over which their frames are spread: set --config.data.clip_rows={rows}"
            )

    def pair(self, record: Mapping[str, Any], frame: int) -> Batch:
        """Frame `frame` of `num_frames` evenly chosen from those stored, and its window.

        Returns:
          `visual`: uint8 RGB `[size, size, 3]`; `audio`: raw log-mel `[audio_rows, bins]`.

        Raises:
          OSError: if the frame is not a readable JPEG.
          UserError: if the dataset has fewer frames, frames or log-mels of another size.
        """
        stored, (rows, bins) = len(record["frames"]), record["fbank"].shape
        if bins != self.audio_bins:
            raise UserError(
                f"config.model.audio_bins={self.audio_bins}, but the dataset has {bins}"
            )
        self.check_rows(rows)
        if self.num_frames > stored:
            raise UserError(
                f"config.data.num_frames={self.num_frames}, but the dataset holds {stored} frames "
                f"per clip: prepare it with --num_frames={self.num_frames}"
            )
        frame = frame * stored // self.num_frames
        image = decode_jpeg(record["frames"][frame])
        if image.shape[0] != self.image_size:
            raise UserError(
                f"config.model.image_size={self.image_size}, but the dataset's frames have "
                f"{image.shape[0]} pixels: prepare it with --image_size={self.image_size}"
            )
        window = audio.cut_window(
            record["fbank"],
            frame,
            stored,
            self.clip_rows,
            self.audio_rows,
            seconds=audio.stored_seconds(record),
            spread=self.window_spread,
        )
        return {AUDIO: window, VISUAL: image}
