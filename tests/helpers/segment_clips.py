"""Lists of segments, and the clips that they make of files with given names."""

from pathlib import Path

from etils import epath

from data_prep.sources import csv_files, segment_lists, segments
from data_prep.sources.video_files import Video

CLASSES = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/t/dd00088,"Gush"
2,/m/012xff,"Toothbrush, electric"
"""


def read(tmp_path, text, split=None):
    path = tmp_path / "segments.csv"
    path.write_text(text)
    return segment_lists.read_segments(path, split)


def classes(tmp_path):
    (tmp_path / "classes.csv").write_text(CLASSES)
    return csv_files.read_classes(tmp_path / "classes.csv")


def clips(tmp_path, lists, names, trimmed=False, split="train", **settings):
    """The clips of one list or of several."""
    videos = [Video(epath.Path("/v") / name, Path(name)) for name in names]
    texts = [lists] if isinstance(lists, str) else lists
    found = [segment for text in texts for segment in read(tmp_path, text, split)]
    known = csv_files.classes_of([label for segment in found for label in segment.labels])
    settings = {"classes": known, "seconds": 10.0, "eval_share": 0.0} | settings
    return segments.segment_clips(videos, found, trimmed=trimmed, **settings)
