"""(i) Contrast in one direction, as released, or in both (a question of ours)."""

TITLE = "Directions of the contrast"
ROWS = {
    "one way": {"row": "contrast_one_way", "title": "visual → audio only"},
    "both ways": {"title": "both directions"},
}
COLUMNS = ["retrieval/visual_to_audio/R1", "retrieval/audio_to_visual/R1"]
BASELINE = "one way"
CLAIMS = [
    {
        "text": "Contrast in both directions finds sounds for pictures better",
        "row": "both ways",
        "than": "one way",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "Contrast in both directions finds pictures for sounds better",
        "row": "both ways",
        "than": "one way",
        "column": "retrieval/audio_to_visual/R1",
    },
]
