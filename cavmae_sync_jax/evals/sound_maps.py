"""Maps for the frames of a split: chooses the frames and their sounds, and computes the maps."""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float16, Float32, Int
from PIL import Image

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import dataset_dir, loader
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.evals.metrics.segmentation import Items
from cavmae_sync_jax.inference import features, heatmaps
from cavmae_sync_jax.media import audio, boxes
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

Query = Literal["frame", "clip"]
Map = Literal["cosine", "evidence"]
OWN, OTHER, SILENCE = "own sound", "another clip's sound", "silence"
BANK = 128  # sounds
FRAMES_PER_DEVICE = 8
TRUTH = ("frame_class", "frame_mask")
SILENT_TRUTH = ("frame_silent_class", "frame_silent_mask")
# The maps that each choice of `Map` gives, by the names of their rows.
ROWS: dict[Map, dict[str, heatmaps.Against]] = {
    "cosine": {"cosine": "nothing"},
    "evidence": {"evidence": "nothing", "evidence minus the bank's mean": "bank_mean"},
}

Maps = Float32[np.ndarray, "items rows columns"]


class Queries(NamedTuple):
    """The sounds that each item is searched for, and the bank that they are compared with.

    `names` says what the sounds are: `OWN`, then `OTHER` and `SILENCE`, if the split has any.
    """

    names: tuple[str, ...]
    sounds: Float32[np.ndarray, "items sounds dim"]
    bank: Float32[np.ndarray, "bank dim"]


class RepeatedImages(loader.Records):
    """Records of one image each, repeated so that its sound gets as many windows as a clip.

    So a model of 16 frames per clip hears an image's sound in 16 windows, spread as in any clip.
    """

    def __init__(self, records: loader.Records, windows: int):
        super().__init__(records.directory, records.split, requests=records.requests)
        self.identity = f"{records.identity}, {windows} times each"
        self._windows = windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        return {**record, "frames": list(record["frames"]) * self._windows}


class ItemFrames(loader.Records):
    """The frames of `Items`, one record each."""

    def __init__(self, records: loader.Records, items: Items, frames: int):
        super().__init__(records.directory, records.split, requests=records.requests)
        self.identity = f"{records.identity}, {len(items.records)} of {frames} frames per clip"
        self._items, self._frames = items, frames

    def __len__(self) -> int:
        return len(self._items.records)

    def place(self, index: int) -> int:
        """Which record of the split a frame is of."""
        return int(self._items.records[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        # A single image has one frame, whatever the number of windows of its sound.
        place = int(self._items.frames[index]) * len(record["frames"]) // self._frames
        return {**record, "frames": [record["frames"][place]]}

    def ids(self, indices: Sequence[int]) -> list[str]:
        """The ids of the clips that some frames are of."""
        return super().ids([int(self._items.records[index]) for index in indices])


def find_items(truth: loader.Records, frames: int) -> Items:
    """The frames in which something sounds and is seen, of `frames` evenly chosen of each clip.

    Raises:
      UserError: if there is none.
    """
    found, agreed = [], []
    with console.progress("truth", len(truth), "clip") as bar:
        for index in truth.ahead(range(len(truth))):
            record = truth[index]
            classes, masks = (record[name] for name in TRUTH)
            silent_classes, silent_masks = (record.get(name, ()) for name in SILENT_TRUTH)
            for frame in range(frames):
                place = frame * len(classes) // frames
                if classes[place] < 0 or not (mask := _mask(masks[place])).any():
                    continue
                silent = (-1, np.zeros_like(mask))
                if len(silent_classes):
                    silent = (int(silent_classes[place]), _mask(silent_masks[place]))
                found.append((index, frame, int(classes[place]), mask, *silent))
                if "boxes" in record:
                    agreed.append(_consensus(record["boxes"], place, mask))
            bar.update()
    if not found:
        raise UserError(
            f"{truth.directory}, split {truth.split} has no frame with a class and a true pixel"
        )
    items = Items(*map(np.array, zip(*found, strict=True)))
    return items._replace(consensus=np.stack(agreed)) if agreed else items


def _consensus(
    stored: Mapping[str, Sequence[Any]], frame: int, mask: Bool[np.ndarray, "height width"]
) -> Float16[np.ndarray, "height width"] | Bool[np.ndarray, "height width"]:
    """How far the annotators agree on each pixel of a frame; of one annotator it is the mask."""
    names = ("frame", "left", "top", "right", "bottom", "weight")
    rows = [[float(value) for value in row] for row in zip(*map(stored.get, names), strict=True)]
    four = [tuple(row[1:5]) for row in rows if row[0] == frame]
    weights = [row[5] for row in rows if row[0] == frame]
    if set(weights) == {1.0}:
        return mask
    return boxes.consensus(four, weights, len(mask)).astype(np.float16)


def _mask(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)).convert("1"))


def windows_of_silence(
    truth: loader.Records, pair_spec: loader.PairSpec
) -> Int[np.ndarray, "windows record_and_frame"]:
    """The frames of `pair_spec` whose windows meet no frame in which a thing sounds.

    Each is the number of the record, and that of the frame among `num_frames` of each clip.
    """
    found = []
    for index in truth.ahead(range(len(truth))):
        record = truth[index]
        classes, rows = record["frame_class"], len(record["fbank"])
        seconds = audio.stored_seconds(record)
        per_second = len(classes) / (seconds or rows / audio.ROWS_PER_SECOND)
        for frame in range(pair_spec.num_frames):
            window = audio.frame_time(
                frame,
                pair_spec.num_frames,
                pair_spec.audio_rows,
                sound_rows=rows,
                seconds=seconds,
                clip_rows=pair_spec.clip_rows,
                spread=pair_spec.window_spread,
            )
            # A frame more on each side, for its class is that of one moment.
            begin = min(math.floor(window.begin * per_second) - 1, len(classes) - 1)
            end = math.ceil(window.end * per_second) + 1
            if (classes[max(0, begin) : end] < 0).all():
                found.append((index, frame))
    return np.array(found, np.int64).reshape(-1, 2)


def window_tokens(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """The global token of every window of sound, `audio` `[batch, frames, dim]`.

    `distinct` `[batch, frames]` tells which windows differ from the one before: at the edges of a
    clip several frames have the same one.
    """

    def embed(raw: Array) -> Array:
        return module.apply({"params": params}, AUDIO, raw, method="embed").global_token

    windows = batch[AUDIO]
    differs = (windows[:, 1:] != windows[:, :-1]).any(axis=(2, 3))
    distinct = jnp.concatenate([jnp.ones((len(windows), 1), bool), differs], axis=1)
    return {AUDIO: features.each_frame(embed, windows), "distinct": distinct}


def queries(
    windows: Float[np.ndarray, "clips frames dim"],
    items: Items,
    query: Query,
    silence: Int[np.ndarray, "windows record_and_frame"],
    *,
    named: bool = True,
    seed: int = 0,
    distinct: Bool[np.ndarray, "clips frames"] | None = None,
) -> Queries:
    """The sounds that each item is searched for.

    Another clip's sound is that of another item, drawn at random. Its class differs from the one
    that sounds in the item and from its silent object's, so nothing on screen makes such a sound.
    For `clip`, so do the classes of all frames of its clip, which are heard in its sound, too. It
    is left out if an item has no such partner. In a dataset that doesn't name what sounds it is
    any other clip's, which may be on screen, too. The bank has at most `BANK` of all windows,
    evenly chosen.

    Args:
      windows: the global token of every window.
      items: the frames.
      query: a frame's own window, or the mean of the unit vectors of the clip's distinct windows.
      silence: windows in which nothing sounds, as (record, frame). Only `frame` uses them.
      named: whether the classes say what sounds.
      seed: of the draws.
      distinct: the windows that count in a clip's mean, so that its edges do not count several
        times; None means all.
    """
    heard = np.asarray(heatmaps.unit(jnp.asarray(windows)))
    if query == "clip":
        weights = np.ones(heard.shape[:2], np.float32) if distinct is None else distinct
        weights = weights / weights.sum(axis=1, keepdims=True)
        heard = np.einsum("cfd,cf->cd", heard, weights)[:, None].astype(heard.dtype)
    frames = items.frames if query == "frame" else np.zeros_like(items.frames)
    own = heard[items.records, frames]
    flat = heard.reshape(-1, heard.shape[-1])
    bank = flat[np.linspace(0, len(flat) - 1, min(BANK, len(flat))).astype(int)]
    names, sounds, generator = [OWN], [own], np.random.default_rng(seed)
    partners = _partners(items, generator, named, whole_clips=query == "clip")
    if partners is not None:
        names.append(OTHER)
        sounds.append(own[partners])
    if query == "frame" and len(silence):
        chosen = silence[generator.integers(len(silence), size=len(own))]
        names.append(SILENCE)
        sounds.append(heard[chosen[:, 0], chosen[:, 1]])
    return Queries(tuple(names), np.stack(sounds, axis=1), bank)


def _partners(
    items: Items, generator: np.random.Generator, named: bool, *, whole_clips: bool
) -> Int[np.ndarray, " items"] | None:
    """An item of another clip for each, with nothing in its sound that is on screen in the item."""
    chosen = []
    for item in range(len(items.records)):
        fits = items.records != items.records[item]
        if named:
            on_screen = (items.classes[item], items.silent_classes[item])
            hits = np.isin(items.classes, on_screen)
            fits &= ~(np.isin(items.records, items.records[hits]) if whole_clips else hits)
        candidates = np.flatnonzero(fits)
        if not candidates.size:
            return None
        chosen.append(generator.choice(candidates))
    return np.array(chosen)


def cosine_maps(
    module: CavMaeSync, params: Any, batch: dict[str, Array], *, tokens: heatmaps.Tokens
) -> dict[str, Array]:
    """The paper's map of one frame per clip for each of its `sounds`, for `features.extract`."""
    maps = heatmaps.cosine(module, params, batch[VISUAL][:, 0], batch["sounds"], tokens=tokens)
    return {"cosine": maps}


def matches(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """How well one whole frame per clip matches each of its `sounds`, `[batch, sounds]`."""
    return {"match": heatmaps.match(module, params, batch[VISUAL][:, 0], batch["sounds"])}


def evidence_maps(
    module: CavMaeSync, params: Any, batch: dict[str, Array], *, sets: int, temperature: float
) -> dict[str, Array]:
    """The evidence of one frame per clip for each of its `sounds`, against the `bank`."""
    rows = ROWS["evidence"]
    images = batch[VISUAL][:, 0]
    maps = heatmaps.evidence(
        module,
        params,
        images,
        batch["sounds"],
        batch["bank"],
        against=tuple(rows.values()),
        sets=sets,
        temperature=temperature,
    )
    return {name: maps[against] for name, against in rows.items()}


class Mapper:
    """Makes the maps of one split's items, by any model of one shape."""

    def __init__(
        self,
        model: Pretrained,
        records: loader.Records,
        items: Items,
        query: Query,
        *,
        mesh: Mesh,
        cache: epath.PathLike | None,
        tokens: heatmaps.Tokens,
        sets: int,
    ):
        """Finds the windows of silence; see `segmentation.run` for the arguments.

        `records` give the sounds in as many windows as `model` has frames per clip.
        """
        frames = model.config.data.num_frames
        self._records, self._items, self._query = records, items, query
        self._images = ItemFrames(records, items, frames)
        self._extract = functools.partial(features.extract, mesh=mesh, cache=cache)
        truth = loader.Records(records.directory, records.split, TRUTH[:1], records.requests)
        self._named = truth.features["labels"].feature.names != [dataset_dir.SOUNDING]
        # Where nothing is marked, something may sound off screen: only names tell of silence.
        silent = windows_of_silence(truth, loader.PairSpec.of(model.config))
        self._silence = silent if self._named else silent[:0]
        # A conversion's config has no loss; the temperature is then the published models'.
        trained_with = model.config.get("loss", {"temperature": heatmaps.TEMPERATURE})
        temperature = float(trained_with["temperature"])
        # The same object for every model, so that each map is compiled once.
        self._functions: dict[Map, features.Function] = {
            "cosine": functools.partial(cosine_maps, tokens=tokens),
            "evidence": functools.partial(evidence_maps, sets=sets, temperature=temperature),
        }

    def maps(self, model: Pretrained, kinds: tuple[Map, ...]) -> dict[str, dict[str, Maps]]:
        """The maps of every item, `[row][sound]`: rows of `ROWS`, sounds of `Queries.names`."""
        return self._by_sound(model, [self._functions[kind] for kind in kinds])

    def matches(self, model: Pretrained) -> dict[str, Float32[np.ndarray, " items"]]:
        """How well every whole frame matches each sound of `Queries.names`."""
        return self._by_sound(model, [matches])["match"]

    def _by_sound(
        self, model: Pretrained, functions: list[features.Function]
    ) -> dict[str, dict[str, np.ndarray]]:
        heard = self._extract(window_tokens, model, self._records)
        asked = queries(
            heard[AUDIO],
            self._items,
            self._query,
            self._silence,
            named=self._named,
            distinct=heard["distinct"],
        )
        found: features.Arrays = {}
        for function in functions:
            found |= self._extract(
                function,
                common.with_frames(model, 1),
                self._images,
                beside={"sounds": asked.sounds},
                shared={"bank": asked.bank},
                clips_per_device=FRAMES_PER_DEVICE,
            )
        return {
            row: {name: values[:, place] for place, name in enumerate(asked.names)}
            for row, values in found.items()
        }
