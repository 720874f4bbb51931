"""(d) A global token for the contrast, or the mean of the patches (paper Table 7)."""

TITLE = "Global token"
ROWS = {
    "no_global": {"row": "no_global", "title": "without a global token"},
    "global": {"title": "with a global token"},
}
COLUMNS = [
    "retrieval/visual_to_audio/R1",
    "retrieval/audio_to_visual/R1",
    "segmentation/cosine/mIoU",
    "segmentation/evidence/mIoU",
    "probe/mAP",
]
BASELINE = "no_global"
CLAIMS = [
    {
        "text": "A global token retrieves better than the mean of the patches",
        "row": "global",
        "than": "no_global",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "A global token localises better, by the paper’s map",
        "row": "global",
        "than": "no_global",
        "column": "segmentation/cosine/mIoU",
    },
    {
        "text": "A global token localises better, by evidence",
        "row": "global",
        "than": "no_global",
        "column": "segmentation/evidence/mIoU",
    },
    {
        "text": "A global token classifies better",
        "row": "global",
        "than": "no_global",
        "column": "probe/mAP",
    },
]
