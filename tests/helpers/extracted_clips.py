"""Folders in CAV-MAE's layout: lists, class lists, sounds and extracted frames."""

import csv
import json

import media_files
import numpy as np
import soundfile
from PIL import Image

from data_prep import cavmae_json
from data_prep.cavmae_json import Places
from data_prep.sources.csv_files import Classes

BY_MID = {"/m/09x0r": "Speech", "/m/05zppz": "Male speech, man speaking", "/m/0bt9lr": "Dog"}


CLASSES = Classes(tuple(BY_MID.values()), BY_MID)


def write_classes(path, rows, header="index,mid,display_name"):
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


class Extracted:
    """A folder in CAV-MAE's layout, to which a test adds what it needs."""

    def __init__(self, folder):
        self.folder, self.entries = folder, []
        (folder / "audio").mkdir(parents=True)
        rows = [(index, mid, name) for index, (mid, name) in enumerate(BY_MID.items())]
        self.classes = write_classes(folder / "classes.csv", rows)

    def frames(self, name, count=4, size=(48, 40), root="frames"):
        """Frame i is grey, the brighter the later."""
        for number in range(count):
            place = self.folder / root / f"frame_{number}" / f"{name}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((*size[::-1], 3), 20 + 14 * number, np.uint8)
            Image.fromarray(pixels).save(place, quality=95)

    def sound(self, name, waves, rate=16_000):
        soundfile.write(self.folder / "audio" / name, waves, rate)

    def entry(self, name, sound=None, labels="/m/09x0r", root="frames/"):
        sound = f"audio/{name}.wav" if sound is None else sound
        self.entries.append({"video_id": name, "wav": sound, "video_path": root, "labels": labels})

    def clip(self, name, **settings):
        """Adds a clip that nothing is wrong with."""
        self.frames(name)
        self.sound(f"{name}.wav", media_files.tone(440, 2, 16_000))
        self.entry(name, **settings)

    def save(self, name="list.json"):
        path = self.folder / name
        path.write_text(json.dumps({"data": self.entries}))
        self.entries = []
        return path

    def read(self, places=None):
        return cavmae_json.read_list(self.save(), CLASSES, places or Places())
