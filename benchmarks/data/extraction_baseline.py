"""How CAV-MAE's scripts extract what they train on, written anew from their description.

For each clip and step they start a process. `ffmpeg` writes the sound at 16 kHz as a WAV file, and
a second one keeps its first channel. OpenCV seeks each frame, which is scaled, cropped and written
as a JPEG. The log-mel is not part of this: their training computes it in every epoch.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SIZE, SECONDS, QUALITY = 224, 10, 95


def extract(path: str, frames: int) -> None:
    """Extracts a clip's sound and frames into files, which are then thrown away.

    Args:
      path: of the video.
      frames: how many are taken of its first 10 s.
    """
    import imageio_ffmpeg  # for this benchmark only: it brings the program

    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-threads", "1", "-y"]
    with tempfile.TemporaryDirectory() as folder:
        every, first = f"{folder}/every.wav", f"{folder}/first.wav"
        for step in (
            [*ffmpeg, "-i", path, "-vn", "-ar", "16000", every],
            [*ffmpeg, "-i", every, "-af", "pan=mono|c0=c0", first],
            [sys.executable, __file__, path, folder, str(frames)],
        ):
            subprocess.run(step, check=True)
        assert len(list(Path(folder).iterdir())) == frames + 2


def extract_all(paths: Sequence[str], frames: int) -> float:
    """Returns the seconds of the processor that `extract` takes per clip, starts included."""
    began = _children()
    for path in paths:
        extract(path, frames)
    return (_children() - began) / len(paths)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write_frames(path: str, folder: str, frames: int) -> None:
    """Writes frames that are evenly spread over a video's first 10 s."""
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    rate, count = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    last = min(count, int(rate * SECONDS))
    for number in range(frames):
        video.set(cv2.CAP_PROP_POS_FRAMES, number * last // frames)
        there, picture = video.read()
        if not there:
            raise SystemExit(f"{path} has no frame {number * last // frames}")
        image = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        width, height = (SIZE * side // min(image.size) for side in image.size)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        square = scaled.crop((left, top, left + SIZE, top + SIZE))
        square.save(f"{folder}/{number}.jpg", quality=QUALITY)


if __name__ == "__main__":
    write_frames(sys.argv[1], sys.argv[2], int(sys.argv[3]))
