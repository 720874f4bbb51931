"""Folders in ADE20K-Sound's published layout."""

import numpy as np
import soundfile
from PIL import Image

from data_prep import ade20k_sound
from data_prep.pipeline.clips import Preparation
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset

HEADER = "image_location,vggsound_file,speech_prompt_file,timing,ade_class_id"
SMALL = Preparation(num_frames=1, image_size=32)


def annotation(ids):
    """Encodes a picture of class ids as ADE20K does, with some instance number in blue."""
    ids = np.asarray(ids)
    coded = np.stack([ids // 256 * 10, ids % 256, np.full_like(ids, 7)], axis=-1)
    return Image.fromarray(coded.astype(np.uint8))


class Published:
    """A folder in the published layout, to which a test adds what it needs."""

    def __init__(self, folder):
        self.folder, self.lines = folder, []
        for name in ("frames", "audio", "annotations"):
            (folder / name).mkdir(parents=True)

    def image(self, name, ids, grey=100):
        height, width = np.shape(ids)
        pixels = np.full((height, width, 3), grey, np.uint8)
        place = self.folder / "frames" / name
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place, quality=95)
        place = self.folder / "annotations" / name.replace(".jpg", "_seg.png")
        place.parent.mkdir(exist_ok=True)
        annotation(ids).save(place)

    def sound(self, name, waves, rate=16_000):
        soundfile.write(self.folder / "audio" / name, np.asarray(waves), rate)

    def row(self, image, sound, class_id):
        self.lines.append(f"{image},{sound},speech.wav,0.5,{class_id}")

    def save(self):
        (self.folder / ade20k_sound.TABLE).write_text("\n".join([HEADER, *self.lines]) + "\n")
        return self.folder

    def rows(self):
        return ade20k_sound.read_table(self.save()).rows


def ids_of(left, right, height=40, width=60):
    """A picture with one class in its left half and one in its right."""
    ids = np.full((height, width), left)
    ids[:, width // 2 :] = right
    return ids


def write(output, table, preparation=SMALL, **settings):
    return write_dataset(
        output,
        {"eval": table.rows},
        preparation,
        class_names=table.class_names,
        source=ade20k_sound.SOURCE,
        engine=Engine(workers=1),
        **settings,
    )
