"""(j) Negatives from a quarter of the batch or from all of it (a question of ours)."""

TITLE = "Negatives"
ROWS = {
    "groups": {"row": "contrast_groups_4", "title": "of a quarter of the batch"},
    "global": {"title": "of the whole batch"},
}
COLUMNS = ["retrieval/visual_to_audio/R1", "retrieval/audio_to_visual/R1"]
BASELINE = "groups"
CLAIMS = [
    {
        "text": "Negatives from the whole batch retrieve better",
        "row": "global",
        "than": "groups",
        "column": "retrieval/visual_to_audio/R1",
    },
]
