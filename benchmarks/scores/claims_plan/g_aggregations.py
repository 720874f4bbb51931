"""(g) How frames are compared in retrieval (paper Table 11)."""

TITLE = "Aggregations of frames in retrieval"
ROWS = {
    "max": {"strategy": "max", "title": "block max"},
    "diagonal_max": {"strategy": "diagonal_max", "title": "diagonal max"},
    "mean": {"strategy": "mean", "title": "block mean"},
    "diagonal_mean": {"strategy": "diagonal_mean", "title": "diagonal mean"},
}
COLUMNS = ["retrieval/visual_to_audio/R1", "retrieval/audio_to_visual/R1"]
BASELINE = "diagonal_mean"
CLAIMS = [
    {
        "text": "The diagonal mean retrieves better than the block max",
        "row": "diagonal_mean",
        "than": "max",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "The diagonal mean retrieves better than the diagonal max",
        "row": "diagonal_mean",
        "than": "diagonal_max",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "The diagonal mean retrieves better than the block mean",
        "row": "diagonal_mean",
        "than": "mean",
        "column": "retrieval/visual_to_audio/R1",
    },
]
