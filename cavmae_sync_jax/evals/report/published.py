"""The paper's scores in percent, to compare with our own, each with its place in the paper.

They come from other data and other models than yours: full-size models, AudioSet and VGGSound. A
cell of the paper is left out if its text could not be read reliably.
"""

from typing import NamedTuple

PAPER = "CVPR 2025, arXiv 2505.01237"
DIRECTIONS = ("visual_to_audio", "audio_to_visual")
RECALLS = ("R1", "R5", "R10")


class System(NamedTuple):
    """A row of a table of the paper: who, scored on what, where it stands, and its scores."""

    name: str
    data: str
    source: str
    scores: dict[str, float]


def _retrieval(name: str, data: str, *scores: float) -> System:
    """`scores` are R@1, R@5 and R@10 from visual to audio, then those from audio to visual."""
    columns = [f"{direction}/{recall}" for direction in DIRECTIONS for recall in RECALLS]
    return System(name, data, "Table 1", dict(zip(columns, scores, strict=True)))


_AS, _VGG = "AudioSet subset", "VGGSound subset"
RETRIEVAL = (
    _retrieval("CAV-MAE Sync", _AS, 35.2, 58.3, 67.6, 27.9, 52.4, 62.2),
    _retrieval("CAV-MAE", _AS, 16.1, 38.6, 49.3, 9.5, 22.6, 32.4),
    _retrieval("CAV-MAE Scale+", _AS, 18.8, 39.5, 50.1, 15.1, 34.0, 43.0),
    _retrieval("ImageBind", _AS, 22.1, 43.2, 52.6, 20.8, 42.6, 51.6),
    _retrieval("LanguageBind", _AS, 6.4, 20.2, 28.3, 4.4, 15.0, 22.5),
    _retrieval("VAB-Encodec, fine-tuned", _AS, 39.5, 65.4, 74.6, 37.5, 64.0, 73.7),
    _retrieval("CAV-MAE Sync", _VGG, 27.9, 51.7, 61.8, 23.2, 46.2, 58.1),
    _retrieval("CAV-MAE", _VGG, 14.7, 35.3, 45.9, 8.3, 23.8, 32.4),
    _retrieval("CAV-MAE Scale+", _VGG, 14.8, 34.2, 44.0, 12.8, 30.4, 40.3),
    _retrieval("ImageBind", _VGG, 21.6, 43.4, 52.9, 20.7, 43.2, 53.4),
    _retrieval("LanguageBind", _VGG, 10.3, 30.1, 39.7, 6.5, 22.7, 33.5),
    _retrieval("VAB-Encodec, fine-tuned", _VGG, 33.5, 63.3, 74.3, 34.9, 62.7, 73.1),
)
PROBE = (
    System("CAV-MAE Sync", "AudioSet-20K", "Table 2", {"mAP": 30.5}),
    System("CAV-MAE Sync", "VGGSound", "Table 2", {"accuracy": 52.7}),
    System("VAB-Encodec", "AudioSet-20K", "Table 2", {"mAP": 33.3}),
    System("VAB-Encodec", "VGGSound", "Table 2", {"accuracy": 57.6}),
)
TOKENS = (
    System("0 registers", "AudioSet-20K", "Table 12", {"patches": 12.3, "global": 27.1}),
    System(
        "8 registers",
        "AudioSet-20K",
        "Table 12",
        {"registers": 17.8, "patches": 11.7, "global": 30.8},
    ),
)
SEGMENTATION = (System("CAV-MAE Sync", "ADE20K-Sound", "Table 7", {"mIoU": 22.8}),)
# Of the evaluations, by the names of their results.
SYSTEMS: dict[str, tuple[System, ...]] = {
    "retrieval": RETRIEVAL,
    "probe": PROBE,
    "tokens": TOKENS,
    "segmentation": SEGMENTATION,
}

# Where retrieval's columns of the ablations stand, of visual queries as in Table 4's head.
_BOTH = tuple(
    f"retrieval@{dataset}/visual_to_audio/{recall}"
    for dataset in ("audioset", "vggsound")
    for recall in RECALLS
)
_OURS = dict(zip(_BOTH, (35.2, 58.3, 67.6, 27.9, 51.7, 61.8), strict=True))
_MIOU, _MAP = "segmentation@ade20k/cosine/mIoU", "probe@as20k/mAP"


def _tokens(**scores: float) -> dict[str, float]:
    # Table 7's probe has the same figure for the global token, so this is the probe's own head.
    return {f"tokens@as20k/transformer/{kind}": value for kind, value in scores.items()}


# Of the ablations: [table][row][column], the rows and columns of `ablations.paper`.
ABLATIONS: dict[str, dict[str, dict[str, float]]] = {
    "4": {"sync": _OURS},
    "5": {"train_16_eval_16": _OURS},
    # Tables 7 and 12 have it, too; of the other cells we have no text that says where they stand.
    "6": {"registers_8": {_MAP: 30.8}},
    "7": {"global": {**_OURS, _MIOU: 22.8, _MAP: 30.8}},
    "8": {
        "mask_0.6": {
            **dict(zip(_BOTH, (39.1, 63.3, 71.7, 28.6, 55.5, 68.7), strict=True)),
            _MIOU: 19.1,
        }
    },
    "figure4": {},
    "11": {"diagonal_mean": _OURS},
    "12": {
        "registers_0": _tokens(patches=12.3, **{"global": 27.1}),
        "registers_8": _tokens(registers=17.8, patches=11.7, **{"global": 30.8}),
    },
}


def text_lines(name: str) -> list[str]:
    """Lines of text with the published systems of an evaluation, marked as such."""
    systems = SYSTEMS.get(name, ())
    if not systems:
        return []
    lines = [heading()]
    for one in systems:
        scores = ", ".join(f"{title(column)} {value:.1f}" for column, value in one.scores.items())
        lines.append(f"  {one.name}, {one.data} ({one.source}): {scores}")
    return lines


def heading() -> str:
    """The heading of published figures, wherever they are shown."""
    return f"published ({PAPER}), other data and models than yours, %"


def title(column: str) -> str:
    """The title of a column of scores."""
    direction, _, score = column.rpartition("/")
    text = score.replace("R", "R@") if score in RECALLS else score
    return f"{direction.replace('_to_', ' → ')} {text}".strip()
