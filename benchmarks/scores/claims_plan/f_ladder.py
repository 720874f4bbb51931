"""(f) From CAV-MAE to CAV-MAE Sync, step by step (paper Table 4)."""

TITLE = "From CAV-MAE to CAV-MAE Sync"
ROWS = {
    "scale+": {"row": "scale+", "num_frames": 10, "frame": 5, "title": "Scale+"},
    "scale++": {"row": "scale++", "num_frames": 10, "frame": 5, "title": "Scale++"},
    "scale++*": {"row": "scale++*", "title": "Scale++*"},
    "scale+++": {"row": "scale+++", "title": "Scale+++"},
    "sync": {"title": "Sync"},
}
COLUMNS = ["retrieval/visual_to_audio/R1", "retrieval/audio_to_visual/R1"]
BASELINE = "scale+"
CLAIMS = [
    {
        "text": "A larger batch retrieves better",
        "row": "scale++",
        "than": "scale+",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "16 frames and the diagonal retrieve better than one frame",
        "row": "scale++*",
        "than": "scale++",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "A still larger batch and more contrast retrieve better",
        "row": "scale+++",
        "than": "scale++*",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "Sync retrieves better than the best CAV-MAE",
        "row": "sync",
        "than": "scale+++",
        "column": "retrieval/visual_to_audio/R1",
    },
]
