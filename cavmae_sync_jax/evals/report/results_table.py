"""All evaluations' results in one table: each score beside its baselines, and a verdict.

Reads the dicts that the evaluations write and imports none of their code, so it needs no JAX.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cavmae_sync_jax.evals.metrics import retrieval
from cavmae_sync_jax.utils.errors import UserError

UNTRAINED = "untrained model"
ANOTHERS = "another clip's sound"
BEATS = "beats the silent object"
RANK, ERROR = "median rank", "error"
D_PRIME = "d_prime"  # in deviations, not a share
# Rows of models that were trained with both modalities and see one.
MISSING = {"audio_alone": "sound alone", "visual_alone": "picture alone"}
LOWER_IS_BETTER = (RANK, ERROR)  # how their columns end; all others are shares of 1
Scores = dict[str, dict[str, float]]  # [row][column]


class Evaluation(NamedTuple):
    """One evaluation's scores, all with the same columns.

    Attributes:
      title: what is measured, for a heading.
      model: the rows of the model.
      untrained: those of an untrained model of the same shape, under the same names.
      baselines: trivial answers.
      ceilings: what a better answer than any model's would score.
      minor: columns, or rows of `model`, that are left out of the one table.
    """

    title: str
    model: Scores
    untrained: Scores
    baselines: Scores
    ceilings: Scores
    minor: tuple[str, ...] = ()


class ScoreRow(NamedTuple):
    """A score of the one table; None where an evaluation has nothing to compare it with."""

    evaluation: str
    score: str
    column: str
    model: float
    untrained: float | None
    baseline: tuple[str, float] | None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """The model, the untrained one, the best trivial baseline and the verdict, as text."""
        plain, baseline = "–", "–"
        if self.untrained is not None:
            plain = format_value(self.column, self.untrained)
        if self.baseline is not None:
            baseline = f"{format_value(self.column, self.baseline[1])}, {self.baseline[0]}"
        return format_value(self.column, self.model), plain, baseline, self.verdict

    @property
    def comparisons(self) -> dict[str, str]:
        """How the model compares with each that it can be compared with."""
        others = {
            "the untrained model": self.untrained,
            "its baseline": None if self.baseline is None else self.baseline[1],
        }
        return {
            name: _comparison(self.column, self.model, other)
            for name, other in others.items()
            if other is not None
        }

    @property
    def verdict(self) -> str:
        """The comparisons in words, the worse ones first."""
        found = self.comparisons
        if not found:
            return "nothing to compare with"
        if len(found) > 1 and len(set(found.values())) == 1:
            return f"{found['its baseline']} both"
        order = ("not comparable with", "worse than", "equal to", "better than")
        named = sorted(found.items(), key=lambda item: order.index(item[1]))
        return ", ".join(f"{how} {name}" for name, how in named)


def _comparison(column: str, value: float, other: float) -> str:
    if math.isnan(value) or math.isnan(other):
        return "not comparable with"
    if value == other:
        return "equal to"
    return "better than" if (value < other) == lower_is_better(column) else "worse than"


def lower_is_better(column: str) -> bool:
    """Whether a column's best value is its lowest."""
    return column.endswith(LOWER_IS_BETTER)


def format_value(column: str, value: float) -> str:
    """A value as it is printed: shares in percent, ranks and errors as they are."""
    if column.endswith(ERROR):
        return f"{value:.3f}"
    if column == D_PRIME:
        return f"{value:.2f}"
    return f"{value if column.endswith(RANK) else 100 * value:.1f}"


def rows(evaluations: dict[str, Evaluation]) -> list[ScoreRow]:
    """The rows of the one table."""
    return [row for name, found in evaluations.items() for row in _rows(name, found)]


def _rows(name: str, found: Evaluation) -> Iterator[ScoreRow]:
    for label, scores in found.model.items():
        for column, value in scores.items():
            if label in found.minor or column in found.minor:
                continue
            known = {n: row[column] for n, row in found.baselines.items() if column in row}
            best = min if lower_is_better(column) else max
            yield ScoreRow(
                name,
                ": ".join(filter(None, (label, column))),
                column,
                value,
                found.untrained.get(label, {}).get(column),
                best(known.items(), key=lambda item: item[1]) if known else None,
            )


def read(name: str, result: Any) -> Evaluation | None:
    """The scores of the result called `name`; None if it is none of the project's evaluations.

    Raises:
      UserError: if it has the name of one, but not its contents.
    """
    if name not in READERS:
        return None
    try:
        return READERS[name](result)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{name}.json is not what this evaluation writes ({reason}): evaluate again"
        ) from error


def _numbers(scores: dict[str, Any], names: dict[str, str] | None = None) -> dict[str, float]:
    """The scores under the names they are shown with; without `names`, under their own."""
    return {(names or {}).get(name, name): float(value) for name, value in scores.items()}


def _retrieval(result: dict[str, Any]) -> Evaluation:
    def flat(scores: dict[str, dict[str, float]]) -> dict[str, float]:
        return {
            f"{direction.replace('_to_', ' → ')}, {label}": float(of_direction[key])
            for direction, of_direction in scores.items()
            for key, label in (("R1", "R@1"), ("R5", "R@5"), ("R10", "R@10"), ("median_rank", RANK))
        }

    model = {name.replace("_", " "): flat(scores) for name, scores in result["scores"].items()}
    # As the baselines are scored.
    main = retrieval.main_of(list(result["scores"])).replace("_", " ")
    others = {name: flat(scores) for name, scores in result.get("baselines", {}).items()}
    plain = {main: others.pop(UNTRAINED)} if UNTRAINED in others else {}
    ceilings = {name: others.pop(name) for name in list(others) if name.startswith("oracle")}
    columns = {column for scores in model.values() for column in scores}
    minor = {name for name in model if name != main} | {c for c in columns if c.endswith("R@10")}
    return Evaluation("Retrieval", model, plain, others, ceilings, tuple(minor))


def _probe(result: dict[str, Any]) -> Evaluation:
    others = {name: _numbers(scores) for name, scores in result.get("baselines", {}).items()}
    plain = {"": others.pop(UNTRAINED)} if UNTRAINED in others else {}
    title = f"Probe, stream {result['stream']}"
    model = {"": _numbers(result["scores"])}
    for name, scores in result.get("missing", {}).items():
        model[MISSING[name]] = _numbers(scores)
    return Evaluation(title, model, plain, others, {}, ("AUC", D_PRIME))


def _classify(result: dict[str, Any]) -> Evaluation:
    model = {MISSING.get(mode, ""): _numbers(row) for mode, row in result["scores"].items()}
    others = {name: _numbers(scores) for name, scores in result.get("baselines", {}).items()}
    title = f"Fine-tuned, stream {result['stream']}"
    # The training from scratch, which they are compared with, has seen both.
    return Evaluation(title, model, {}, others, {}, ("AUC", D_PRIME, *MISSING.values()))


def _tokens(result: dict[str, Any]) -> Evaluation:
    def flat(scores: dict[str, Any]) -> Scores:
        return {
            f"{head} head on {kind}": _numbers(of_kind)
            for head, kinds in scores.items()
            for kind, of_kind in kinds.items()
        }

    title = f"Tokens, stream {result['stream']}"
    plain = flat(result.get("untrained", {}))
    minor = ("accuracy", "AUC", D_PRIME)
    return Evaluation(title, flat(result["scores"]), plain, {}, {}, minor)


def _segmentation(result: dict[str, Any]) -> Evaluation:
    title = "Sound-prompted segmentation"
    others = {name: _numbers(scores) for name, scores in result.get("baselines", {}).items()}
    plain = {"": others.pop(UNTRAINED)} if UNTRAINED in others else {}
    if "maps" not in result:  # of version 0.1.0, which had cosines only
        return Evaluation(title, {"": _numbers(result["scores"])}, plain, others, {})
    model, plain = {}, {}
    minor = ["evidence minus the bank's mean"]
    for name, row in result["maps"].items():
        model[name] = _numbers(row["scores"])
        if UNTRAINED in row:
            plain[name] = _numbers(row[UNTRAINED]["scores"])
        beaten = row.get("beats_silent_object", {})
        if ANOTHERS in row:
            label = f"{name}, {ANOTHERS}"
            minor.append(label)
            model[label] = _numbers(row[ANOTHERS]["scores"])
        for label, sound in ((name, "own sound"), (f"{name}, {ANOTHERS}", ANOTHERS)):
            if sound in beaten:
                model[label][BEATS] = float(beaten[sound]["share"])
        for sound, found in row["tells_own_sound_from"].items():
            model[name][f"ROC AUC against {sound}"] = float(found["roc_auc"])
    model["match of the whole picture"] = {
        f"ROC AUC against {sound}": float(found["roc_auc"])
        for sound, found in result["match_tells_own_sound_from"].items()
    }
    columns = {column for row in model.values() for column in row}
    guesses = {column for column in columns if column.startswith((BEATS, "ROC AUC"))}
    if guesses:
        others["chance"] = dict.fromkeys(sorted(guesses), 0.5)
    return Evaluation(title, model, plain, others, {}, tuple(minor))


def _temporal(result: dict[str, Any]) -> Evaluation:
    shown = {"boundary_f1": "boundary F1", "adjusted_rand": "adjusted Rand index"}
    others = {name: _numbers(row, shown) for name, row in result.get("baselines", {}).items()}
    model = {kind: _numbers(row, shown) for kind, row in result.get("scores", {}).items()}
    plain = {}
    for kind in model:
        if f"{UNTRAINED}, {kind}" in others:
            plain[kind] = others.pop(f"{UNTRAINED}, {kind}")
    return Evaluation("Temporal segmentation", model, plain, others, {})


def _reconstruction(result: dict[str, Any]) -> Evaluation:
    shown = {modality: f"{modality} {ERROR}" for modality in result["errors"]}
    others = {name: _numbers(row, shown) for name, row in result.get("baselines", {}).items()}
    plain = {"": others.pop(UNTRAINED)} if UNTRAINED in others else {}
    return Evaluation("Reconstruction", {"": _numbers(result["errors"], shown)}, plain, others, {})


# In the order of the table.
READERS: dict[str, Callable[[dict[str, Any]], Evaluation]] = {
    "retrieval": _retrieval,
    "probe": _probe,
    "probe_audio": _probe,
    "probe_visual": _probe,
    "classify": _classify,
    "tokens": _tokens,
    "segmentation": _segmentation,
    "temporal": _temporal,
    "reconstruction": _reconstruction,
}
