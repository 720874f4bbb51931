"""The classes of a dataset: from a published CSV, or a built-in list by its name."""

from etils import epath

from data_prep.sources import csv_files
from data_prep.sources.csv_files import Classes

# Kinetics-Sounds (Arandjelovic & Zisserman, ICCV 2017) has 34 actions that one sees and hears, by
# the names of an early Kinetics. These are the 32 that Kinetics-400 has, by its names.
_KINETICS_SOUNDS = (
    "blowing nose",
    "blowing out candles",
    "bowling",
    "chopping wood",
    "dribbling basketball",
    "laughing",
    "mowing lawn",
    "playing accordion",
    "playing bagpipes",
    "playing bass guitar",
    "playing clarinet",
    "playing drums",
    "playing guitar",
    "playing harmonica",
    "playing keyboard",
    "playing organ",
    "playing piano",
    "playing saxophone",
    "playing trombone",
    "playing trumpet",
    "playing violin",
    "playing xylophone",
    "ripping paper",
    "shoveling snow",
    "shuffling cards",
    "singing",
    "stomping grapes",
    "strumming guitar",
    "tap dancing",
    "tapping guitar",
    "tapping pen",
    "tickling",
)
KNOWN = {"kinetics_sounds": Classes(_KINETICS_SOUNDS, {})}


def read(name: epath.PathLike) -> Classes:
    """Returns the classes of `KNOWN`, or those of a CSV; see `csv_files.read_classes`.

    Raises:
      UserError: the CSV is missing or malformed.
    """
    return KNOWN[str(name)] if str(name) in KNOWN else csv_files.read_classes(name)
