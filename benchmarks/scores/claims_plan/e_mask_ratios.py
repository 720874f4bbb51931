"""(e) How much is masked (paper Table 8)."""

TITLE = "Mask ratio"
ROWS = {
    "mask_0.6": {"row": "mask_0.6", "title": "0.6"},
    "mask_0.75": {"row": "mask_0.75", "title": "0.75"},
    "mask_0.9": {"row": "mask_0.9", "title": "0.9"},
    "mask_multi": {"row": "mask_multi", "title": "multi"},
}
COLUMNS = [
    "retrieval/visual_to_audio/R1",
    "retrieval/audio_to_visual/R1",
    "segmentation/cosine/mIoU",
    "segmentation/evidence/mIoU",
]
BASELINE = "mask_0.75"
CLAIMS = [
    {
        "text": "A ratio of 0.6 retrieves better than 0.75",
        "row": "mask_0.6",
        "than": "mask_0.75",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "A ratio of 0.75 retrieves better than 0.9",
        "row": "mask_0.75",
        "than": "mask_0.9",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "A ratio of 0.75 localises better than 0.6, by the paper’s map",
        "row": "mask_0.75",
        "than": "mask_0.6",
        "column": "segmentation/cosine/mIoU",
    },
    {
        "text": "A ratio of 0.9 localises better than 0.6, by the paper’s map",
        "row": "mask_0.9",
        "than": "mask_0.6",
        "column": "segmentation/cosine/mIoU",
    },
    {
        "text": "A ratio of 0.75 retrieves better than several ratios",
        "row": "mask_0.75",
        "than": "mask_multi",
        "column": "retrieval/visual_to_audio/R1",
    },
]
