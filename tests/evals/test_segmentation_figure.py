"""The figure of maps: a weak map looks weak beside a strong one."""

import numpy as np
import pytest
from etils import epath

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.figures import segmentation as figure
from cavmae_sync_jax.evals.metrics.segmentation import Items
from cavmae_sync_jax.utils.modalities import VISUAL


class Pictures(loader.Records):
    """Grey pictures in place of a dataset's."""

    def __init__(self):
        """Has no directory."""

    def pairs(self, index, pair_spec, frames):
        return [{VISUAL: np.full((8, 8, 3), 90, np.uint8)}]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws strong maps of the image's own sound, and weak ones of another; returns the axes."""
    saved = []
    monkeypatch.setattr(figure, "save", lambda drawing, path: saved.append(drawing))
    rng, ones = np.random.default_rng(0), np.ones(2, int)
    strong = rng.uniform(-1, 1, (2, 4, 4)).astype(np.float32)
    maps = {"cosine": {"own": strong, "another's": 0.05 * strong}, "evidence": {"own": 9 * strong}}
    masks = np.zeros((2, 8, 8), bool)
    masks[:, :4] = True
    items = Items(np.arange(2), 0 * ones, 0 * ones, masks, -1 * ones, np.zeros_like(masks))
    matches = {"own": np.array([0.8, 0.7]), "another's": np.array([0.1, 0.2])}
    spec, path = loader.PairSpec(4, 1024, 96, 128, 8), epath.Path(tmp_path / "a.png")
    figure.draw(Pictures(), spec, items, maps, matches, ["dog"], path)
    (drawing,) = saved
    overlays = [axis.images[1] for axis in drawing.axes if len(axis.images) == 2]
    return strong, [overlays[place : place + 2] for place in (0, 2, 4)]


def test_all_maps_of_a_kind_share_their_scale(drawn):
    strong, (own, another, evidence) = drawn
    assert len({image.get_clim() for image in (*own, *another)}) == 1
    (low, high), (least, most) = own[0].get_clim(), evidence[0].get_clim()
    assert (least, most) == pytest.approx(tuple(np.quantile(9 * strong, figure.EXTREMES)))
    # The weak map fills a small part of the colours, the strong one nearly all.
    spread = [np.ptp(image.get_array()) / (high - low) for image in (own[0], another[0])]
    assert spread[0] > 0.5 and spread[1] < 0.06


def test_each_map_says_how_well_its_image_matches(drawn):
    _, (own, another, _) = drawn
    titles = [image.axes.get_title() for image in (*own, *another)]
    assert [title.endswith(f"match {value}") for title, value in zip(
        titles, ("0.80", "0.70", "0.10", "0.20"), strict=True
    )] == [True] * 4  # fmt: skip
    assert titles[0].startswith("AP ") and not titles[2].startswith("AP ")
