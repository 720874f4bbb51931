"""Writes small folders in the layouts that localisation benchmarks are published in."""

import json

import media_files
import numpy as np
import soundfile
from PIL import Image

RED, BLUE = (200, 30, 30), (30, 30, 200)


def half_red(width=80, height=40):
    """A picture whose left half is red, and its right half blue."""
    image = np.full((height, width, 3), BLUE, np.uint8)
    image[:, : width // 2] = RED
    return image


def write_picture(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_sound(path, seconds=3.0, hertz=440):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, media_files.tone(hertz, seconds, 16_000), 16_000)


def write_vggss(folder, entries, *, extracted=True):
    """Writes vggss.json with (file, class, boxes), and each file's picture and sound."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"file": name, "class": label, "bbox": boxes} for name, label, boxes in entries]
    (folder / "vggss.json").write_text(json.dumps(listed))
    for number, (name, _, _) in enumerate(entries if extracted else ()):
        write_picture(folder / "frames" / f"{name}.jpg", half_red())
        write_sound(folder / "audio" / f"{name}.wav", hertz=200 + 300 * number)
    return folder


def annotation(*annotators):
    """The XML of an annotation: for each annotator a list of boxes in pixels of 256."""
    names = ("id", "xmin", "ymin", "xmax", "ymax")
    lines = ["<annotation>", "  <filename>1.jpg</filename>"]
    for boxes in annotators:
        lines.append("  <annotator>")
        for number, box in enumerate(boxes):
            cells = zip(names, (number, *box), strict=True)
            lines.append("<bbox>" + "".join(f"<{n}>{v}</{n}>" for n, v in cells) + "</bbox>")
        lines.append("  </annotator>")
    return "\n".join([*lines, "</annotation>"])


def write_flickr(folder, annotations, *, published=False):
    """Writes Annotations/ID.xml, and the pairs as frames/ and audio/ or in folders of Data/."""
    (folder / "Annotations").mkdir(parents=True)
    for number, (name, text) in enumerate(annotations.items()):
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        inside = folder / "Data" / f"pair_{name}"
        picture = inside / "frame.jpg" if published else folder / "frames" / f"{name}.jpg"
        sound = inside / "sound.wav" if published else folder / "audio" / f"{name}.wav"
        write_picture(picture, half_red())
        write_sound(sound, hertz=200 + 300 * number)
    return folder


def write_avsbench(folder, rows, *, single):
    """Writes a subset of AVSBench with rows of (name, category, split) and half masks.

    The mask of picture 3 is empty where there are multiple sources.
    """
    folder.mkdir(parents=True)
    data = folder / ("s4_data" if single else "ms3_data")
    header = "name,start,category,split" if single else "video_id,split"
    lines = [header]
    for row, (name, category, split) in enumerate(rows):
        lines.append(f"{name},0,{category},{split}" if single else f"{name},{split}")
        inside = f"{split}/{category}" if single else split
        write_sound(data / "audio_wav" / inside / f"{name}.wav", 5.0, 200 + 400 * row)
        pictures = data / "visual_frames" / (f"{inside}/{name}" if single else name)
        masks = data / "gt_masks" / inside / name
        for number in range(1, 6):
            image = half_red(56, 56)
            image[-8:] = 40 * number
            picture = f"{name}_{number}.png" if single else f"{name}.mp4_{number}.png"
            write_picture(pictures / picture, image)
            if single and split == "train" and number > 1:
                continue
            marked = np.zeros((56, 56), np.uint8)
            marked[:, : 0 if number == 3 and not single else 28] = 1
            masks.mkdir(parents=True, exist_ok=True)
            mask = Image.fromarray(marked * 255) if single else Image.fromarray(marked)
            if not single:  # indices of a palette, as published
                mask.putpalette([0, 0, 0, 128, 0, 0])
            mask.convert("1" if single else "P").save(masks / f"{name}_{number}.png")
    table = "s4_meta_data.csv" if single else "ms3_meta_data.csv"
    (folder / table).write_text("\n".join(lines) + "\n")
    return folder
