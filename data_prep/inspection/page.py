"""Draws clips of a dataset on a page: frames, the whole log-mel, audio windows and the truth.

A frame's left edge lies at its moment on the log-mel's time axis. Some frames have a coloured
border. A bar of the same colour spans the audio window that training pairs with the frame. If the
dataset says what sounds, its pixels are tinted, and a bar above the log-mel names it.
"""

import bisect
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import AutoLocator
from PIL import Image

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.errors import UserError

DPI, MOST_PIXELS = 150, 2**16  # of a picture's height, which matplotlib draws
TRUTH_COLOUR = "#2fd6c3"
WINDOW_COLOURS = ("#0072b2", "#d55e00", "#cc79a7")
_MASK_OPACITY = 0.35
_HAIR = 0.02  # of a frame's side: what is left white between neighbours
_CUT = "…"

# Inches.
_WIDTH, _MARGIN, _GUTTER = 7.0, 0.3, 0.45  # of a clip; around the page; between columns
_HEADER, _TITLE, _LOG_MEL, _AXIS = 0.62, 0.24, 0.85, 0.42
_LANE, _GAP = 0.13, 0.06  # height of a bar's lane; space between the parts of a clip
_STRIP = 8  # frames at most; their side is this part of the width
_SIDE = _WIDTH / _STRIP


class PageSettings(NamedTuple):
    """How training cuts the windows: `audio_rows` of a clip of nominally `clip_rows` rows."""

    audio_rows: int
    clip_rows: int


class TimeSpan(NamedTuple):
    """A bar: from `start` to `end` in seconds, in a lane (0 is the lowest)."""

    start: float
    end: float
    lane: int
    name: str


def compose(
    records: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    settings: PageSettings,
    title: str,
) -> Figure:
    """Returns the page, in two columns for more than one clip.

    Args:
      records: parsed records of one dataset.
      class_names: of the dataset.
      settings: see `PageSettings`; no clip has more rows than `clip_rows`, except for a ragged end.
      title: the page's first line.

    Raises:
      UserError: if the page would be higher than a picture can be.
    """
    columns = min(2, len(records))
    events = [_events(record, class_names) for record in records]
    lanes = max((span.lane + 1 for spans in events for span in spans), default=0)
    bars = min(len(WINDOW_COLOURS), len(_shown(records[0])))
    line = _TITLE + _SIDE + _GAP + (bars + lanes) * _LANE + _GAP + _LOG_MEL + _AXIS
    width = 2 * _MARGIN + columns * (_WIDTH + _GUTTER) - _GUTTER
    height = _HEADER + -(-len(records) // columns) * line
    if height * DPI >= MOST_PIXELS:
        most = columns * int((MOST_PIXELS / DPI - _HEADER) / line)
        raise UserError(f"--clips={len(records)} is too many for one page: draw {most} at most")
    figure = Figure(figsize=(width, height), dpi=DPI)
    _draw_header(figure, title, settings, "frame_class" in records[0])
    fbanks = [_log_mel(record) for record in records]
    limits = float(min(map(np.min, fbanks))), float(max(map(np.max, fbanks)))
    for number, (record, spans) in enumerate(zip(records, events, strict=True)):
        left = _MARGIN + number % columns * (_WIDTH + _GUTTER)
        top = height - _HEADER - number // columns * line
        seconds = _seconds(record)
        _draw_title(figure, left, top - _TITLE + 0.07, record, class_names)
        top -= _TITLE
        _draw_frames(_axes(figure, left, top, _SIDE, seconds), record, settings)
        top -= _SIDE + _GAP
        _draw_windows(_axes(figure, left, top, bars * _LANE, seconds), record, settings)
        top -= bars * _LANE + _GAP
        if lanes:
            _draw_events(_axes(figure, left, top, lanes * _LANE, seconds), spans, lanes)
            top -= lanes * _LANE
        _draw_log_mel(_axes(figure, left, top, _LOG_MEL, seconds), record, spans, limits)
    return figure


def _axes(figure: Figure, left: float, top: float, height: float, seconds: float) -> Axes:
    """Returns axes of a clip's width at a place in inches, whose x are the clip's seconds."""
    size = figure.get_size_inches()
    box = left / size[0], (top - height) / size[1], _WIDTH / size[0], height / size[1]
    axes = figure.add_axes(box)
    axes.set(xlim=(0, seconds), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a page as a PNG."""
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=DPI, format="png")


def windows(record: Mapping[str, Any], settings: PageSettings) -> dict[int, TimeSpan]:
    """Returns the audio windows, in seconds, of a few of the frames shown, by frame."""
    shown = _shown(record)
    count = min(len(WINDOW_COLOURS), len(shown))
    spans = {}
    for number in range(count):
        frame = shown[(2 * number + 1) * len(shown) // (2 * count)]
        time = _time(record, settings, frame)
        lane = count - 1 - number
        spans[frame] = TimeSpan(time.begin, time.end, lane, name=f"frame {frame}")
    return spans


def _shown(record: Mapping[str, Any]) -> list[int]:
    """Evenly spaced frames, so few that they don't touch."""
    frames = len(record["frames"])
    return list(range(0, frames, -(-frames // _STRIP)))


def _time(record: Mapping[str, Any], settings: PageSettings, frame: int) -> audio.FrameTime:
    return audio.frame_time(
        frame,
        len(record["frames"]),
        settings.audio_rows,
        sound_rows=len(record["fbank"]),
        seconds=audio.stored_seconds(record),
        clip_rows=settings.clip_rows,
    )


def _seconds(record: Mapping[str, Any]) -> float:
    """Returns how much time a clip takes on the page."""
    return max(len(record["fbank"]) / audio.ROWS_PER_SECOND, audio.stored_seconds(record) or 0.0)


def _log_mel(record: Mapping[str, Any]) -> Float[np.ndarray, "rows bins"]:
    return audio.dequantize(record["fbank"]).astype(np.float32)


def _events(record: Mapping[str, Any], class_names: Sequence[str]) -> list[TimeSpan]:
    """The events, in as few lanes as keep those apart that overlap."""
    if "events" not in record:
        return []
    events = record["events"]
    rows = zip(events["start"], events["end"], events["class"], strict=True)
    spans: list[TimeSpan] = []
    ends: list[float] = []
    for start, end, index in sorted((float(s), float(e), int(c)) for s, e, c in rows):
        lane = next((lane for lane, last in enumerate(ends) if last <= start), len(ends))
        ends[lane : lane + 1] = [end]
        spans.append(TimeSpan(start, end, lane, class_names[index]))
    return spans


def _draw_header(figure: Figure, title: str, settings: PageSettings, has_truth: bool) -> None:
    width, height = figure.get_size_inches()
    legend = f"bars: {settings.audio_rows} rows of audio, the window of the frame so bordered"
    if has_truth:
        legend += "; turquoise: what sounds"
    room = width - 2 * _MARGIN
    for text, below, size, colour in ((title, 0.26, 11, "black"), (legend, 0.46, 8, "dimgrey")):
        written = figure.text(
            _MARGIN / width, 1 - below / height, "", size=size, color=colour, parse_math=False
        )
        _fit(written, text, room)


def _draw_title(
    figure: Figure, left: float, bottom: float, record: Mapping[str, Any], names: Sequence[str]
) -> None:
    width, height = figure.get_size_inches()
    style = {"y": bottom / height, "s": "", "size": 8, "parse_math": False}
    clip_id = figure.text(x=left / width, **style, weight="bold")
    labels = figure.text(x=(left + _WIDTH) / width, **style, ha="right")
    _fit(clip_id, record["clip_id"].decode(errors="replace"), 0.48 * _WIDTH, tail=True)
    _fit(labels, ", ".join(names[index] for index in record["labels"]), 0.48 * _WIDTH)


def _draw_frames(axes: Axes, record: Mapping[str, Any], settings: PageSettings) -> None:
    side = _SIDE / _WIDTH * axes.get_xlim()[1]
    colours = dict(zip(windows(record, settings), WINDOW_COLOURS, strict=False))
    for frame in _shown(record):
        left = _time(record, settings, frame).moment
        extent = (left, left + (1 - _HAIR) * side, 0.0, 1.0)
        place = {"extent": extent, "aspect": "auto"}
        axes.imshow(_decode(record["frames"][frame], "JPEG"), **place)
        if "frame_mask" in record:
            _draw_mask(axes, _decode(record["frame_mask"][frame], "PNG") > 0, place)
        if frame in colours:
            border = {"facecolor": "none", "edgecolor": colours[frame], "linewidth": 2.5}
            corner = left + _HAIR * side, _HAIR
            axes.add_patch(Rectangle(corner, (1 - 3 * _HAIR) * side, 1 - 2 * _HAIR, **border))
    axes.set(xlim=(0, side * _STRIP), ylim=(0, 1))


def _draw_mask(axes: Axes, mask: Bool[np.ndarray, "height width"], place: dict[str, Any]) -> None:
    tint = np.empty((*mask.shape, 4))
    tint[:] = (*to_rgb(TRUTH_COLOUR), _MASK_OPACITY)
    tint[..., 3] *= mask
    axes.imshow(tint, **place, interpolation="nearest")
    if mask.any() and not mask.all():
        outline = {"colors": TRUTH_COLOUR, "linewidths": 1.0, "origin": "upper"}
        axes.contour(mask, [0.5], extent=place["extent"], **outline)


def _draw_windows(axes: Axes, record: Mapping[str, Any], settings: PageSettings) -> None:
    spans = windows(record, settings)
    axes.set(ylim=(0, len(spans)))
    for colour, (frame, span) in zip(WINDOW_COLOURS, spans.items(), strict=False):
        corner, length = (span.start, span.lane + 0.25), span.end - span.start
        axes.add_patch(Rectangle(corner, length, 0.5, facecolor=colour, edgecolor="none"))
        instant = _time(record, settings, frame).moment
        axes.plot(instant, span.lane + 0.5, "o", color="white", markersize=2.5)


def _draw_events(axes: Axes, spans: Sequence[TimeSpan], lanes: int) -> None:
    seconds = axes.get_xlim()[1]
    axes.set(ylim=(0, lanes))
    for span in spans:
        corner, length = (span.start, span.lane), span.end - span.start
        look = {"facecolor": TRUTH_COLOUR, "edgecolor": "white", "linewidth": 0.8}
        axes.add_patch(Rectangle(corner, length, 1, **look))
        end = min(span.end, seconds)
        middle = (span.start + end) / 2, span.lane + 0.45
        style = {"size": 6.5, "ha": "center", "va": "center", "parse_math": False}
        room = (end - span.start) / seconds * _WIDTH
        _fit(axes.text(*middle, "", **style), span.name, room - 0.06)


def _draw_log_mel(
    axes: Axes, record: Mapping[str, Any], spans: Sequence[TimeSpan], limits: tuple[float, float]
) -> None:
    fbank, (_, seconds) = _log_mel(record), axes.get_xlim()
    extent = (0, len(fbank) / audio.ROWS_PER_SECOND, 0, 1)
    look = {"cmap": "magma", "vmin": limits[0], "vmax": limits[1]}
    axes.imshow(fbank.T, origin="lower", aspect="auto", extent=extent, **look)
    for edge in (edge for span in spans for edge in (span.start, span.end) if 0 < edge < seconds):
        axes.axvline(edge, color=TRUTH_COLOUR, linewidth=0.8)
    axes.set(xlim=(0, seconds), ylim=(0, 1))
    axes.xaxis.set_major_locator(AutoLocator())
    axes.xaxis.set_major_formatter(lambda second, _: f"{second:g} s")
    axes.tick_params(labelsize=7, length=2, pad=2, width=0.5)


def _decode(data: bytes, kind: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data), formats=[kind]))


@functools.cache
def _renderer(dpi: float) -> RendererAgg:
    """What measures texts. Without one, each text gets one of the page's size, which stays."""
    return RendererAgg(1, 1, dpi)


def _fit(written: Text, text: str, inches: float, *, tail: bool = False) -> None:
    """Writes text on one line; what is too wide loses its end, or with `tail` its middle."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    dpi = written.get_figure(root=True).dpi

    def width(kept: int) -> float:
        head = (kept + 1) // 2 if tail else kept
        cut = "" if kept == len(text) else _CUT
        written.set_text(text[:head] + cut + text[len(text) - kept + head :])
        return written.get_window_extent(_renderer(float(dpi))).width / dpi

    if width(len(text)) > inches:
        most = bisect.bisect_right(range(len(text)), inches, key=width) - 1
        if most < 1:
            written.set_text("")
        else:
            width(most)
