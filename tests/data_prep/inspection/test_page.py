"""What a page of a dataset's clips shows."""

import matplotlib.colors
import numpy as np
import pytest
from inspected_datasets import with_truth
from matplotlib.backends import backend_agg
from matplotlib.patches import Rectangle
from PIL import Image

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.errors import UserError
from data_prep.inspection import page as inspection_page
from data_prep.inspection.dataset import RawRecords


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return with_truth(tmp_path_factory.mktemp("truth"))


def bars(axes, colour):
    """Where the bars of a colour begin and end, in seconds."""
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    ours = [p for p in patches if p.get_facecolor() == matplotlib.colors.to_rgba(colour)]
    return [(p.get_x(), p.get_x() + p.get_width(), p.get_y()) for p in ours]


def test_what_a_page_marks(truth):
    _, record = RawRecords(truth, "train")[0]
    pair_spec = inspection_page.PageSettings(audio_rows=60, clip_rows=1024)
    figure = inspection_page.compose([record], truth.class_names, pair_spec, "a title")
    frames, windows, events, log_mel = figure.axes
    assert np.allclose(frames.get_xlim(), (0, 2)) and log_mel.get_xlim() == (0, 2)

    # Four frames at their instants, each with its mask over it.
    pictures, tints = frames.images[::2], frames.images[1::2]
    assert [image.get_extent()[0] for image in pictures] == pytest.approx([0, 0.5, 1, 1.5])
    assert all(image.get_array().shape == (32, 32, 3) for image in pictures)
    opacity = np.array([tint.get_array()[..., 3] for tint in tints])
    assert (opacity[:2, :, 16:] > 0.2).all() and not opacity[:2, :, :16].any()
    assert not opacity[2:].any()
    borders = [(p.get_x(), p.get_edgecolor()) for p in frames.patches]
    assert [edge for _, edge in borders] == [
        matplotlib.colors.to_rgba(colour) for colour in inspection_page.WINDOW_COLOURS
    ]
    assert [x for x, _ in borders] == pytest.approx([0, 1, 1.5], abs=0.011)

    # The windows of frames 0, 2 and 3 of 2 s: around rows 0, 100 and 150.
    for colour, start in zip(inspection_page.WINDOW_COLOURS, (0.0, 0.7, 1.2), strict=True):
        ((left, right, _),) = bars(windows, colour)
        assert (left, right) == pytest.approx((start, start + 0.6))

    # The events overlap, so that they have a lane each.
    found = bars(events, inspection_page.TRUTH_COLOUR)
    assert np.allclose(found, [(0, 0.75, 0), (0.25, 1.5, 1)])
    assert [text.get_text() for text in events.texts] == ["cat", "dog"]
    edges = [line.get_xdata()[0] for line in log_mel.lines]
    assert edges == pytest.approx([0.75, 0.25, 1.5])

    (image,) = log_mel.images
    np.testing.assert_array_equal(image.get_array(), audio.dequantize(record["fbank"]).T)
    assert record["fbank"].dtype == np.uint8
    title, legend, clip_id, labels = (text.get_text() for text in figure.texts)
    assert (title, labels) == ("a title", "cat, dog")
    assert "60 rows" in legend and "what sounds" in legend
    assert clip_id.startswith("xxx") and "…" in clip_id and clip_id.endswith("xxx")


def test_more_clips_than_a_picture_holds_are_refused(truth, monkeypatch, tmp_path):
    _, record = RawRecords(truth, "train")[0]
    pair_spec = inspection_page.PageSettings(audio_rows=60, clip_rows=1024)

    def page(clips):
        return inspection_page.compose([record] * clips, truth.class_names, pair_spec, "a title")

    with pytest.raises(UserError, match=r"--clips=1000 is too many for one page: draw \d+ at most"):
        page(1000)
    monkeypatch.setattr(inspection_page, "MOST_PIXELS", 1100)
    with pytest.raises(UserError, match=r"--clips=9 is too many for one page: draw 4 at most"):
        page(9)
    inspection_page.save(page(4), tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.height < 1100


@pytest.mark.parametrize("clips", [1, 6])
def test_texts_are_measured_without_pictures_of_the_page(truth, monkeypatch, clips):
    """They stayed in the memory, one per text: of 40 clips they took 6 GB."""
    made = []

    class Recorded(backend_agg.RendererAgg):
        def __init__(self, width, height, dpi):
            made.append(width * height)
            super().__init__(width, height, dpi)

    monkeypatch.setattr(backend_agg, "RendererAgg", Recorded)
    _, record = RawRecords(truth, "train")[0]
    pair_spec = inspection_page.PageSettings(audio_rows=60, clip_rows=1024)
    figure = inspection_page.compose([record] * clips, truth.class_names, pair_spec, "a title")
    assert not made
    assert figure.axes[2].texts[1].get_text() == "dog"


def test_no_text_overlaps(truth):
    _, record = RawRecords(truth, "train")[0]
    names = ["a very long name of a class " * 5, "another one " * 9, "owl"]
    record["labels"] = [0, 1, 2]
    figure = inspection_page.compose(
        [record] * 3, names, inspection_page.PageSettings(416, 1024), "title " * 99
    )
    figure.draw_without_rendering()
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) == 2 + 3 * 2 + 3 * 2
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_a_still_has_a_page(truth):
    _, record = RawRecords(truth, "train")[0]
    still = record | {name: record[name][:1] for name in ("frames", "frame_mask")}
    empty = still | {"events": {"class": [], "start": [], "end": []}}
    pair_spec = inspection_page.PageSettings(416, 1024)
    figure = inspection_page.compose([empty], truth.class_names, pair_spec, "")
    frames, windows, _ = figure.axes  # no lanes without events
    assert len(frames.images) == 2 and len(windows.patches) == 1
    assert bars(windows, inspection_page.WINDOW_COLOURS[0])[0][:2] == (0, 4.16)
