"""(a) How many seconds of sound belong to a frame (paper Figure 4), and what they cost."""

TITLE = "Seconds of sound per window"
ROWS = {
    "audio_1s": {"row": "audio_1s", "title": "1 s"},
    "audio_2s": {"row": "audio_2s", "title": "2 s"},
    "audio_4s": {"row": "audio_4s", "title": "4 s"},
    "audio_10s": {"row": "audio_10s", "title": "10 s"},
}
COLUMNS = [
    "retrieval/visual_to_audio/R1",
    "retrieval/audio_to_visual/R1",
    "training/examples_per_second",
]
BASELINE = "audio_10s"
CLAIMS = [
    {
        "text": "1 s of sound per frame retrieve better than all 10 s",
        "row": "audio_1s",
        "than": "audio_10s",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "2 s of sound per frame retrieve better than all 10 s",
        "row": "audio_2s",
        "than": "audio_10s",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "4 s of sound per frame retrieve better than all 10 s",
        "row": "audio_4s",
        "than": "audio_10s",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "4 s of sound retrieve better than 1 s",
        "row": "audio_4s",
        "than": "audio_1s",
        "column": "retrieval/visual_to_audio/R1",
    },
]
