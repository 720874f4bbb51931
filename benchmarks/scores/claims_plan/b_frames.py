"""(b) Frames per clip in training and in evaluation (paper Table 5)."""

TITLE = "Frames in training and in evaluation"
ROWS = {
    "train_4_eval_4": {"row": "frames_4", "num_frames": 4, "title": "train 4, evaluate 4"},
    "train_4_eval_16": {"row": "frames_4", "num_frames": 16, "title": "train 4, evaluate 16"},
    "train_16_eval_4": {"row": "frames_16", "num_frames": 4, "title": "train 16, evaluate 4"},
    "train_16_eval_16": {"row": "frames_16", "num_frames": 16, "title": "train 16, evaluate 16"},
}
COLUMNS = ["retrieval/visual_to_audio/R1", "retrieval/audio_to_visual/R1"]
BASELINE = "train_4_eval_4"
CLAIMS = [
    {
        "text": "16 frames in the evaluation retrieve better than 4",
        "row": "train_16_eval_16",
        "than": "train_16_eval_4",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "16 frames in the training retrieve better than 4",
        "row": "train_16_eval_16",
        "than": "train_4_eval_16",
        "column": "retrieval/visual_to_audio/R1",
    },
    {
        "text": "16 frames in both retrieve better than 4 in both",
        "row": "train_16_eval_16",
        "than": "train_4_eval_4",
        "column": "retrieval/visual_to_audio/R1",
    },
]
