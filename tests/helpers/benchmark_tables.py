"""Flags of small benchmarks, and the tables that they print."""

SMALL = {
    "batch_size": 8,
    "data.num_frames": 4,
    "model.image_size": 32,
    "model.image_patch": 16,
    "model.audio_rows": 96,
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.decoder_width": 8,
    "model.decoder_heads": 1,
}


FLAGS = ["--config=configs/demo.py", *(f"--config.{key}={value}" for key, value in SMALL.items())]


def table(text):
    """The rows of a printed table: cells by the first one, and the header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: row[1:] for row in rows}, header
