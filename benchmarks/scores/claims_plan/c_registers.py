"""(c) How many register tokens (paper Tables 6 and 12)."""

TITLE = "Registers"
ROWS = {
    "registers_0": {"row": "registers_0", "title": "0 registers"},
    "registers_4": {"row": "registers_4", "title": "4 registers"},
    "registers_8": {"row": "registers_8", "title": "8 registers"},
    "registers_16": {"row": "registers_16", "title": "16 registers"},
}
COLUMNS = [
    "retrieval/visual_to_audio/R1",
    "retrieval/audio_to_visual/R1",
    "segmentation/cosine/mIoU",
    "segmentation/evidence/mIoU",
    "probe/mAP",
]
BASELINE = "registers_0"
CLAIMS = [
    {
        "text": "16 registers localise better than none, by the paper’s map",
        "row": "registers_16",
        "than": "registers_0",
        "column": "segmentation/cosine/mIoU",
    },
    {
        "text": "16 registers localise better than none, by evidence",
        "row": "registers_16",
        "than": "registers_0",
        "column": "segmentation/evidence/mIoU",
    },
    {
        "text": "8 registers classify better than none",
        "row": "registers_8",
        "than": "registers_0",
        "column": "probe/mAP",
    },
    {
        "text": "8 registers retrieve better than none",
        "row": "registers_8",
        "than": "registers_0",
        "column": "retrieval/visual_to_audio/R1",
    },
]
