"""What a table of ablations is: rows that are trained, and columns that are scored.

A table of your own is a Python file with these names; only ROWS and COLUMNS are needed:

    TITLE = "Wider models"
    ROWS = {
        "as it is": {},
        "wide": {"changes": {"model.width": 192}},  # dotted keys of the config
        "no registers": {"row": "registers_0"},  # of the config file's own rows
        "four frames": {"num_frames": 4},  # in the evaluation: no training of its own
    }
    COLUMNS = ["retrieval/visual_to_audio/R1", "segmentation/evidence/mIoU", "probe/mAP"]
    BASELINE = "as it is"  # each row's difference from it is reported
    # Settings of an evaluation's run(), and of the recipe of probe and tokens.
    SETTINGS = {"segmentation": {"sets": 64}, "probe": {"epochs": 6, "average_from": 4}}
    # Each is judged below the table: seen, not seen, or the other way round.
    CLAIMS = [{"text": "Wide is better", "row": "wide", "than": "as it is", "column": "probe/mAP"}]
"""

import runpy
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from cavmae_sync_jax.evals.report import published
from cavmae_sync_jax.inference import similarity
from cavmae_sync_jax.utils.errors import UserError

# Of each evaluation: where its result has the value of a column's path.
PLACES: dict[str, tuple[str, ...]] = {
    "retrieval": ("scores", "{strategy}"),
    "segmentation": ("maps",),
    "probe": ("scores",),
    "tokens": ("scores",),
    "temporal": ("scores",),
    "reconstruction": ("errors",),
    "training": (),
}
RECALLS = ("R1", "R5", "R10")
# The names that a column's path may have, level by level, as far as they are known beforehand. The
# scores of a map depend on the dataset, and the curves of a training on its config.
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "retrieval": (("visual_to_audio", "audio_to_visual"), (*RECALLS, "median_rank")),
    "probe": (("mAP", "AUC", "d_prime", "accuracy"),),
    "tokens": (("linear", "transformer"), ("registers", "patches", "global")),
    "temporal": (("audio", "visual", "both"), ("boundary_f1", "adjusted_rand")),
    "reconstruction": (("audio", "visual"),),
}
_NAMES = {"ROWS", "COLUMNS", "TITLE", "BASELINE", "SETTINGS", "CLAIMS"}
_ROW_KEYS = {"title", "row", "changes", "num_frames", "frame", "strategy"}


NO_SHARES = ("median_rank", "d_prime")  # of the scores


class Row(NamedTuple):
    """A row: what its training changes, and how it is evaluated.

    Attributes:
      name: in files and for `--rows`.
      title: in the table.
      row: of the config file's variants, several joined by commas.
      changes: further settings of the training, by dotted key.
      num_frames: frames per clip in the evaluation; None: as many as the training drew from.
      frame: the only one of them that is evaluated.
      strategy: of retrieval.
    """

    name: str
    title: str
    row: str = ""
    changes: Mapping[str, Any] = {}
    num_frames: int | None = None
    frame: int | None = None
    strategy: str = "diagonal_mean"


class Column(NamedTuple):
    """A score: `EVALUATION[@DATASET]/PATH`, such as `retrieval@vggsound/audio_to_visual/R1`."""

    name: str
    evaluation: str
    dataset: str
    path: tuple[str, ...]

    @property
    def title(self) -> str:
        """The column's heading."""
        shown = [part.replace("_to_", " → ").replace("_", " ") for part in self.path]
        shown = [f"R@{part[1:]}" if part in RECALLS else part for part in shown]
        of_scores = "training" if len(self.path) > 1 else ""  # during the training
        about = {"retrieval": "", "segmentation": "segmentation", "training": of_scores}
        head = " ".join(filter(None, (self.dataset, about.get(self.evaluation, self.evaluation))))
        return " ".join(filter(None, (head, *shown)))

    @property
    def is_share(self) -> bool:
        """Whether it is a fraction of 1, which is shown in percent."""
        if self.path[-1] in NO_SHARES:
            return False
        if self.evaluation in ("training", "reconstruction"):
            return "accuracy" in self.name or self.path[-1] in RECALLS
        return True

    def value(self, result: Mapping[str, Any], row: Row) -> float | None:
        """The score in an evaluation's result; None if the result lacks it."""
        places = [place.format(strategy=row.strategy) for place in PLACES[self.evaluation]]
        path = list(self.path)
        if self.evaluation == "training":
            path = ["/".join(path)]  # a curve's name
        if self.evaluation == "segmentation":
            path.insert(-1, "scores")  # of a map, or of its control
        if self.evaluation == "tokens":
            path.append("mAP")
        found: Any = result
        for key in (*places, *path):
            found = found.get(key) if isinstance(found, Mapping) else None
        return None if found is None else float(found)

    def resampled_key(self, row: Row) -> str:
        """The name of its values in the evaluation's file of resamples."""
        first = (row.strategy,) if self.evaluation == "retrieval" else ()
        return "/".join((*first, *self.path))


class Claim(NamedTuple):
    """The claim that a row scores more than another one in a column."""

    text: str
    row: str
    than: str
    column: str


class Table(NamedTuple):
    """Rows and columns; `baseline` names the row that the others are compared with."""

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    baseline: str
    settings: Mapping[str, Mapping[str, Any]] = {}
    claims: tuple[Claim, ...] = ()


def column(text: str) -> Column:
    """Parses a column's text.

    Raises:
      UserError: if it names no evaluation or no score of it.
    """
    head, *path = text.split("/")
    evaluation, _, dataset = head.partition("@")
    if evaluation not in PLACES or not path:
        known = ", ".join(PLACES)
        raise UserError(
            f"the column {text!r} must be EVALUATION/SCORE or EVALUATION@DATASET/SCORE, where the "
            f"evaluation is one of {known}; for instance retrieval/visual_to_audio/R1"
        )
    levels = NAMES.get(evaluation)
    if levels is not None and (
        len(path) != len(levels)
        or any(part not in names for part, names in zip(path, levels, strict=True))
    ):
        scores = "/".join(f"{{{', '.join(names)}}}" for names in levels)
        raise UserError(f"the column {text!r} names no score: it must be {head}/{scores}")
    return Column(text, evaluation, dataset, tuple(path))


def read(path: epath.PathLike) -> Table:
    """Runs a Python file with a table; see the module's docstring.

    Raises:
      UserError: if it is none.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"there is no table {path}: give a number of the paper or a Python file")
    try:
        held = runpy.run_path(str(path))
    except Exception as error:  # whatever the file's own code raises
        raise UserError(f"the table {path} can't be run: {error!r}") from error
    unknown = {name for name in held if name.isupper() and name.strip("_") == name} - _NAMES
    if unknown:
        raise UserError(f"{path} sets {', '.join(sorted(unknown))}; it may set {sorted(_NAMES)}")
    for name, kind in (("ROWS", dict), ("COLUMNS", (list, tuple))):
        if not isinstance(held.get(name), kind) or not held[name]:
            raise UserError(f"{path} must set {name}, see cavmae_sync_jax.ablations.tables")
    if path.stem in published.ABLATIONS:
        raise UserError(f"{path} has the name of a table of the paper: give it another one")
    rows = tuple(_row(path, name, about) for name, about in held["ROWS"].items())
    baseline = held.get("BASELINE", rows[0].name)
    if baseline not in held["ROWS"]:
        raise UserError(f"{path}: BASELINE={baseline!r} is none of the rows")
    columns = tuple(column(text) for text in held["COLUMNS"])
    title, settings = held.get("TITLE", path.stem), held.get("SETTINGS", {})
    for name, values in settings.items() if isinstance(settings, dict) else [("", None)]:
        if name not in PLACES or not isinstance(values, dict):
            raise UserError(
                f"{path}: SETTINGS must be a dict with a dict for some of {', '.join(PLACES)}, "
                f"and it has {name!r}"
            )
    claims = tuple(_claim(path, about, held) for about in held.get("CLAIMS", ()))
    return Table(path.stem, title, rows, columns, baseline, settings, claims)


def _claim(path: epath.Path, about: Any, held: Mapping[str, Any]) -> Claim:
    if not isinstance(about, dict) or set(about) != set(Claim._fields):
        raise UserError(f"{path}: a claim must be a dict with {', '.join(Claim._fields)}")
    claim = Claim(**about)
    for name, known in (
        (claim.row, held["ROWS"]),
        (claim.than, held["ROWS"]),
        (claim.column, held["COLUMNS"]),
    ):
        if name not in known:
            raise UserError(f"{path}: the claim {claim.text!r} names {name!r}, which is not there")
    return claim


def _row(path: epath.Path, name: Any, about: Any) -> Row:
    if not isinstance(about, dict) or set(about) - _ROW_KEYS:
        raise UserError(f"{path}: the row {name!r} must be a dict with some of {sorted(_ROW_KEYS)}")
    if not isinstance(name, str):
        raise UserError(f"{path}: the row {name!r} must have a text as its name, such as '{name}'")
    for key, kind in (("changes", dict), ("num_frames", int), ("frame", int), ("row", str)):
        if key in about and type(about[key]) is not kind:
            raise UserError(f"{path}: the row {name!r} needs {key} as {kind.__name__}")
    if "seed" in about.get("changes", {}):
        raise UserError(f"{path}: the row {name!r} changes the seed, which --seeds chooses for all")
    row = Row(**{"name": name, "title": name} | about)
    if row.strategy not in similarity.STRATEGIES:
        known = ", ".join(similarity.STRATEGIES)
        raise UserError(
            f"{path}: the row {name!r} has the strategy {row.strategy!r}; it must be one of {known}"
        )
    return row
