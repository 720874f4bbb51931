"""Makes small media files whose content tells the frame number and the channel."""

from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition

LEVEL_STEP = 4
# Display matrix of a phone held upright: turn the picture 90° clockwise to look at it.
CLOCKWISE = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]


def tone(hertz, seconds, rate, amplitude=0.3):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def picture(number, size=(64, 48)):
    """Grey, brighter by LEVEL_STEP each frame, with a red upper left corner."""
    image = np.full((size[1], size[0], 3), 20 + LEVEL_STEP * number % 220, np.uint8)
    image[: size[1] // 3, : size[0] // 3] = (255, 0, 0)
    return image


def number(image):
    """Which frame a `picture` was, from its lower right quarter (0 to 54)."""
    height, width = image.shape[:2]
    return round((image[-height // 3 :, -width // 3 :].mean() - 20) / LEVEL_STEP)


def make_video(
    path,
    *,
    seconds=3,
    fps=10,
    size=(64, 48),
    waves=None,
    rate=16_000,
    layout="mono",
    codecs=("libx264", "aac"),
    times=None,
    matrix=None,
    audio_start=0.0,
    gap=None,
    cover=False,
    options=None,
    container_options=None,
    picture=picture,
    interleave=False,
    pixel_aspect=None,
    last_stands=None,
):
    """Writes a file. `waves` [channels, samples] defaults to a tone of 440 Hz a channel.

    `times` (in 1/1000 s) gives a variable frame rate; codecs may be None to leave a stream out.
    `gap` (begin, end) leaves out the audio packets between two times; `cover` calls the video a
    cover picture. With `interleave` packets come in the order of their times, as a recorder writes.
    A pixel is shown `pixel_aspect` times as wide as high, and the last picture for `last_stands`
    seconds.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        frames, blocks = [], []
        if codecs[0]:
            video = container.add_stream(codecs[0], rate=fps, options=options or {})
            video.width, video.height = size
            video.pix_fmt = "yuvj420p" if codecs[0] == "mjpeg" else "yuv420p"
            video.bit_rate = 2_000_000
            if pixel_aspect:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if cover:
                video.disposition = Disposition.attached_pic
            if matrix:
                video.set_display_matrix(matrix)
            if times is not None:
                video.codec_context.time_base = Fraction(1, 1000)
            for index in range(round(seconds * fps) if times is None else len(times)):
                frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
                frame.pts = index if times is None else times[index]
                frames.append(frame)
        if codecs[1]:
            audio = container.add_stream(codecs[1], rate=rate, layout=layout)
            if waves is None:
                channels = audio.layout.nb_channels
                waves = np.stack([tone(440, seconds, rate)] * channels)
            whole = av.AudioFrame.from_ndarray(waves.astype(np.float32), "fltp", layout)
            whole.rate, whole.pts = rate, round(audio_start * rate)
            cutter = av.AudioResampler(audio.format.name, layout, rate, frame_size=1024)
            blocks = cutter.resample(whole) + cutter.resample(None)
            blocks = [b for b in blocks if gap is None or not gap[0] <= b.pts / rate < gap[1]]
        packets = [packet for frame in frames for packet in video.encode(frame)]
        packets += video.encode() if frames else []
        if last_stands:
            last = max(packets, key=lambda packet: packet.pts)
            last.duration = round(last_stands / last.time_base)
        packets += [packet for block in blocks for packet in audio.encode(block)]
        packets += audio.encode() if blocks else []
        if interleave:
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)
    return path


def noise(seconds, seed=0, rate=16_000):
    """Noise whose loudness changes ten times a second, so that every window is another."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.01, 0.3, round(seconds * 10)), rate // 10)
    return loudness * rng.uniform(-1, 1, len(loudness))


def noisy_video(path, seconds, seed=0, **settings):
    """Writes coloured squares, others in every frame, with `noise`."""

    def squares(number, size):
        rng = np.random.default_rng((seed, number))
        return np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)

    waves = noise(seconds, seed)[None]
    settings = {"fps": 8, "picture": squares, "waves": waves} | settings
    return make_video(path, seconds=seconds, **settings)
