"""A trained model with methods for files: embed, compare, classify, and make heat maps."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Float32, UInt8
from numpy.typing import ArrayLike
from PIL import Image

from cavmae_sync_jax.checkpoints import pretrained
from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.inference import classes, heatmaps, prefetch, reading, similarity, timeline
from cavmae_sync_jax.inference import workers as decoding
from cavmae_sync_jax.inference.reading import Seconds
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

BATCH, MAPPED = 64, 8  # pairs that are embedded at once, and mapped
File = str | os.PathLike | bytes


class Embedded(NamedTuple):
    """Unit vectors of a file's pairs, float32.

    `times` are the moments of the pairs, in seconds from the file's start. `audio` is None for a
    picture, `visual` for a sound. `padded` is the share of each window of sound that lies beyond
    the sound's end; it is 0 for a picture.
    """

    times: Float[np.ndarray, " pairs"]
    audio: Float32[np.ndarray, "pairs dim"] | None
    visual: Float32[np.ndarray, "pairs dim"] | None
    padded: Float32[np.ndarray, " pairs"]


class Model(Pretrained):
    """A trained model, see `cavmae_sync_jax.load`."""

    @property
    def pair_spec(self) -> PairSpec:
        """The sizes of pictures and windows, and how a clip is cut into pairs."""
        return PairSpec.of(self.config)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ for other weights or another architecture."""
        digest = hashlib.sha256(self.config.model.to_json().encode())
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.ascontiguousarray(jax.device_get(leaf)))
        return digest.hexdigest()[:16]

    def embed_video(
        self,
        video: File,
        start: Seconds | None = None,
        end: Seconds | None = None,
        every: Seconds | None = None,
    ) -> Embedded:
        """Embeds the pairs of a video of any length.

        By default a pair comes every 10/16 s: a clip's length divided by its number of frames. A
        file that is no longer than a clip (10 s) gets all of a clip's pairs, spread over it. They
        equal those that `evals.retrieval` computes for the prepared clip. So pictures are coded as
        JPEGs of quality 95, and log-mels as float16, as preparation stores them.

        Args:
          video: a file's path, or its bytes.
          start: where to begin, in seconds; None is the file's start.
          end: where to end, in seconds; None is the file's end.
          every: seconds between pairs.

        Raises:
          UserError: if it can't be read, has no sound or no picture, or has nothing in the span.
        """
        with _on_disk(video) as path:
            info = reading.file_info(path)
            if info.kind != "video":
                raise UserError(f"{path} is a {info.kind}: use embed_{_METHODS[info.kind]}")
            pairs = timeline.pairs_of_file(info, self.pair_spec, start, end, every)
            return joined(self.embed_pairs(pairs))

    def embed_sound(
        self,
        sound: File | ArrayLike,
        sample_rate: int | None = None,
        every: Seconds | None = None,
    ) -> Embedded:
        """Embeds the windows of a sound of any length, cut as if it had pictures.

        Args:
          sound: a file's path or bytes, or samples `[samples]` or `[channels, samples]`. Float
            samples are 1 at full scale. The first channel counts. Of a video, its sound is taken.
          sample_rate: of the samples, in hertz; None for a file.
          every: seconds between windows, see `embed_video`.

        Raises:
          UserError: if it can't be read, is shorter than 25 ms, or has samples that are no numbers.
        """
        if isinstance(sound, str | os.PathLike | bytes):
            if sample_rate is not None:
                raise UserError("a file says its own sample_rate: leave it out")
            with _on_disk(sound) as path:
                info = reading.file_info(path)
                if info.kind == "picture":
                    raise UserError(f"{path} is a picture: use embed_image")
                if info.kind == "video":
                    info = reading.sound_of(info)
                pairs = timeline.pairs_of_file(info, self.pair_spec, every=every)
                return joined(self.embed_pairs(pairs))
        samples = np.asarray(sound)
        if samples.dtype == object:
            raise UserError(f"give a sound's path, bytes or samples, not {type(sound).__name__}")
        if sample_rate is None:
            raise UserError("samples need their sample_rate, in hertz")
        waveform = reading.as_waveform(samples, sample_rate)
        return joined(self.embed_pairs(timeline.pairs_of_waveform(waveform, self.pair_spec, every)))

    def embed_image(self, image: File | np.ndarray) -> Embedded:
        """Embeds a still picture: one row of `visual`.

        The picture is scaled, cut to its central square and coded, as preparation does with frames.

        Args:
          image: a file's path or bytes, or RGB `[height, width, 3]` as uint8.

        Raises:
          UserError: if it is not a picture, or has over 67 million pixels.
        """
        return self._embed_picture(self.picture(image))

    def _embed_picture(self, pixels: UInt8[np.ndarray, "size size 3"]) -> Embedded:
        visual = _unit(self.encode_image(pixels[None]).global_token)
        return Embedded(np.zeros(1), None, visual, np.zeros(1, np.float32))

    def picture(self, image: File | np.ndarray) -> UInt8[np.ndarray, "size size 3"]:
        """A still picture as `embed_image` gives it to the model."""
        if isinstance(image, np.ndarray):
            return timeline.picture(image, self.pair_spec.image_size)
        if not isinstance(image, str | os.PathLike | bytes):
            raise UserError(
                "give a picture's path, bytes, or uint8 array [height, width, 3], "
                f"not {type(image).__name__}"
            )
        with _on_disk(image) as path:
            info = reading.file_info(path)
            if info.kind != "picture":
                maps = ", and localize for its maps" if info.kind == "video" else ""
                raise UserError(f"{path} is a {info.kind}: use embed_{_METHODS[info.kind]}{maps}")
            return timeline.picture(path, self.pair_spec.image_size)

    def embed_pairs(self, pairs: Iterable[timeline.Pairs]) -> Iterator[Embedded]:
        """Embeds pairs as they come, `BATCH` at most at once."""
        for some in pairs:
            for begin in range(0, len(some.times), BATCH):
                part = slice(begin, begin + BATCH)
                visual = None
                if some.visual is not None:
                    visual = _unit(self.encode_image(some.visual[part]).global_token)
                audio = _unit(self.encode_audio(some.audio[part]).global_token)
                yield Embedded(some.times[part], audio, visual, some.padded[part])

    def embed_files(
        self, files: Iterable[str | os.PathLike], workers: int = 1, every: Seconds | None = None
    ) -> Generator[tuple[str, str, Iterator[Embedded] | UserError], None, None]:
        """Yields every file, its kind, and its embeddings in parts or why there are none.

        Files may be videos, sounds and pictures. While the device computes a file, later ones are
        decoded.

        Args:
          files: their paths.
          workers: processes that decode; 0 decodes in this one.
          every: seconds between pairs, see `embed_video`.
        """
        with decoding.started(workers) as decoders:

            def decoded(file: str) -> Generator[Any, None, None]:
                """The file's kind; then its picture, or its pairs in parts."""
                with decoding.within(decoders):
                    info = reading.file_info(file)
                    yield info.kind
                    if info.kind == "picture":
                        yield timeline.picture(file, self.pair_spec.image_size)
                    else:
                        yield from timeline.pairs_of_file(info, self.pair_spec, every=every)

            # One more than there are workers: each waits for one, or cuts windows.
            for file, items in prefetch.run(decoded, map(os.fspath, files), workers + 1):
                try:
                    if (kind := next(items)) == "picture":
                        yield file, kind, iter([self._embed_picture(next(items))])
                    else:
                        yield file, kind, self.embed_pairs(items)
                except UserError as error:
                    yield file, "", error

    def classify(
        self,
        file: File,
        start: Seconds | None = None,
        end: Seconds | None = None,
        every: Seconds | None = None,
    ) -> dict[str, float]:
        """What a fine-tuned model takes a video, a sound or a picture for.

        A model that was trained with both modalities also takes files with one of them.

        Args:
          file: a file's path, or its bytes.
          start: where to begin, in seconds; None is the file's start.
          end: where to end, in seconds; None is the file's end.
          every: seconds between pairs, see `embed_video`.

        Returns:
          The probability of each class by its name, the likeliest first: the mean over the pairs.

        Raises:
          UserError: if it is not a fine-tuned model, or the file can't be read or lacks what the
            model was trained with.
        """
        with _on_disk(file) as path:
            info = reading.file_info(path)
            there = {"video": (AUDIO, VISUAL), "sound": (AUDIO,), "picture": (VISUAL,)}[info.kind]
            mode = classes.mode_for(self, there)
            pairs: Iterable[dict[str, Any]]
            if info.kind == "picture":
                pairs = [{VISUAL: timeline.picture(path, self.pair_spec.image_size)[None]}]
            else:
                parts = timeline.pairs_of_file(info, self.pair_spec, start, end, every)
                pairs = ({AUDIO: part.audio, VISUAL: part.visual} for part in parts)
            found = classes.mean_probabilities(self, mode, pairs)
        names = self.config.classifier.names
        return {names[index]: float(found[index]) for index in np.argsort(-found, kind="stable")}

    def similarity(
        self,
        sound: Embedded | ArrayLike,
        picture: Embedded | ArrayLike,
        strategy: str = "diagonal_mean",
    ) -> float:
        """How well a sound and a picture match: the number in `evals.retrieval`'s matrix.

        It is a mean (or maximum) of cosines, so it lies from -1 to 1. Only its place among other
        clips has a meaning, see `inference.similarity.percentile`.

        Args:
          sound: what `embed_video` or `embed_sound` returned, or vectors `[pairs, dim]`.
          picture: what `embed_video` or `embed_image` returned, or vectors `[pairs, dim]`.
          strategy: `diagonal_mean`, `diagonal_max`, `mean` or `max`. The diagonal compares equal
            moments (equation 5). Where the numbers of pairs differ, `diagonal_mean` is `mean`, and
            `diagonal_max` is `max`.

        Raises:
          UserError: if one has no sound, the other no picture, or there is no such strategy.
        """
        if strategy not in similarity.STRATEGIES:
            known = ", ".join(similarity.STRATEGIES)
            raise UserError(f"there is no strategy {strategy!r}; there are {known}")
        sides = []
        for given, name in ((sound, AUDIO), (picture, VISUAL)):
            vectors = getattr(given, name) if isinstance(given, Embedded) else np.asarray(given)
            if vectors is None or vectors.ndim != 2 or not vectors.size:
                raise UserError(f"similarity needs {name} vectors [pairs, dim], in this order")
            sides.append(vectors)
        if sides[0].shape[1] != sides[1].shape[1]:
            raise UserError(
                f"similarity needs vectors of one model, not of {sides[0].shape[1]} and of "
                f"{sides[1].shape[1]} numbers"
            )
        return similarity.of_pair(sides[0], sides[1], strategy)

    def heatmap(
        self,
        image: File | np.ndarray,
        sound: File | Embedded,
        method: str = "evidence",
    ) -> Float32[np.ndarray, "size size"]:
        """Where in a picture a sound comes from; larger is likelier.

        The map covers the picture's central square, scaled to the model's size.

        Args:
          image: a file's path or bytes, or RGB `[height, width, 3]` as uint8.
          sound: a file's path or bytes, or what `embed_sound` returned; the mean of its windows is
            asked for.
          method: see `maps`.

        Raises:
          UserError: if one of them can't be read, or there is no such method.
        """
        if not isinstance(sound, Embedded):
            sound = self.embed_sound(sound)
        if sound.audio is None:
            raise UserError("heatmap's second argument has no sound: give a sound or a video")
        query = sound.audio.mean(axis=0, keepdims=True)
        (small,) = self.maps(self.picture(image)[None], query, method)
        return upsample(small, self.pair_spec.image_size)

    def maps(
        self,
        pictures: UInt8[np.ndarray, "pairs size size 3"],
        sounds: Float32[np.ndarray, "pairs dim"],
        method: str = "evidence",
    ) -> Float32[np.ndarray, "pairs rows columns"]:
        """Every picture's map of its own sound's vector, on the grid of patches.

        Args:
          pictures: RGB in the model's size.
          sounds: a vector for each picture.
          method: of `MAPS`. `cosine` is the paper's map: of the sound with patch tokens (section
            3.5.3). `evidence` hides patches and asks which of them the match needs. It costs 64
            sparse passes per picture, and finds the object far more often.

        Raises:
          UserError: if there is no such method.
        """
        if method not in MAPS:
            raise UserError(f"there is no method {method!r}; there are {', '.join(MAPS)}")
        found = []
        for begin in range(0, len(pictures), MAPPED):
            some, theirs = pictures[begin : begin + MAPPED], sounds[begin : begin + MAPPED]
            count = len(some)
            # Filled up to a power of two, so that few sizes are compiled.
            filled = np.arange(1 << (count - 1).bit_length()) % count
            maps = MAPS[method](self.module, self.params, some[filled], theirs[filled, None])
            found.append(np.asarray(maps, np.float32)[:count, 0])
        return np.concatenate(found)


def upsample(
    small: Float32[np.ndarray, "rows columns"], size: int
) -> Float32[np.ndarray, "{size} {size}"]:
    """A map in a picture's size: bilinear, with half-pixel centres."""
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BILINEAR))


def joined(parts: Iterable[Embedded]) -> Embedded:
    """The parts of a file as one."""
    columns = zip(*parts, strict=True)
    return Embedded(*(None if rows[0] is None else np.concatenate(rows) for rows in columns))


def load(directory: epath.PathLike, step: int | None = None) -> Model:
    """Loads a model for use, see `cavmae_sync_jax.load`."""
    return Model(*pretrained.load(directory, step))


def _evidence(module: CavMaeSync, params: Any, pictures: Any, sounds: Any) -> Array:
    return heatmaps.evidence(module, params, pictures, sounds)["nothing"]


# Functions of (module, params, pictures, sounds `[pairs, 1, dim]`), by the name that a user gives.
MAPS: dict[str, Callable[..., Array]] = {"evidence": _evidence, "cosine": heatmaps.cosine}
_METHODS = {"video": "video", "sound": "sound", "picture": "image"}


def _unit(tokens: Array) -> Float32[np.ndarray, "pairs dim"]:
    return similarity.unit(np.asarray(tokens, np.float32)).astype(np.float32)


@contextlib.contextmanager
def _on_disk(file: File) -> Iterator[str]:
    if isinstance(file, str | os.PathLike):
        yield os.fspath(file)
        return
    if not isinstance(file, bytes):
        raise UserError(f"give a file's path or its bytes, not {type(file).__name__}")
    with tempfile.TemporaryDirectory() as folder:
        yield reading.local_copy(file, folder)
