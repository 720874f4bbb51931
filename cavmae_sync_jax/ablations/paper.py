"""The paper's tables of ablations as rows and columns; `evals.report.published` has its figures.

Each row of a training is one of the config file's own rows. So a table can be made at any size
whose config file has these rows: `configs/pretrain.py` and `configs/demo.py` do.
"""

from cavmae_sync_jax.ablations.tables import Row, Table, column

# A dataset of one of these names that is not given is the training's own, as far as it can be used.
OWN = ("", "audioset", "ade20k", "as20k")


def _retrieval(*datasets: str) -> list[str]:
    recalls = [f"visual_to_audio/{recall}" for recall in ("R1", "R5", "R10")]
    return [
        f"retrieval@{d}/{score}" for d in datasets for score in (*recalls, "audio_to_visual/R1")
    ]


_RETRIEVAL = _retrieval("audioset", "vggsound")
_MAPS = ["segmentation@ade20k/cosine/mIoU", "segmentation@ade20k/evidence/mIoU"]
_PROBE = ["probe@as20k/mAP"]
_LADDER = {"num_frames": 10, "frame": 5}  # CAV-MAE's protocol: one frame, the whole sound
_FRAMES = (4, 8, 10, 16)
_RATIOS = ("0.6", "0.75", "0.9")
_STRATEGIES = {
    "max": "block max",
    "diagonal_max": "diagonal max",
    "mean": "block mean",
    "diagonal_mean": "diagonal mean",
}


def _table(name: str, title: str, baseline: str, rows: list[Row], columns: list[str]) -> Table:
    return Table(name, title, tuple(rows), tuple(column(text) for text in columns), baseline)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        _table(
            "4",
            "From CAV-MAE to CAV-MAE Sync (Table 4)",
            "sync",
            [
                Row("scale+", "CAV-MAE Scale+", "scale+", **_LADDER),
                Row("scale++", "Scale++: larger batch", "scale++", **_LADDER),
                Row("scale++*", "Scale++*: 16 frames, diagonal similarity", "scale++*"),
                Row("scale+++", "Scale+++: still larger batch, λ_c × 10", "scale+++"),
                Row("sync", "CAV-MAE Sync"),
            ],
            _RETRIEVAL,
        ),
        _table(
            "5",
            "Frames in training and in evaluation (Table 5)",
            "train_16_eval_16",
            [
                Row(
                    f"train_{train}_eval_{seen}",
                    f"train {train}, evaluate {seen}",
                    f"frames_{train}",
                    num_frames=seen,
                )
                for train in _FRAMES
                for seen in _FRAMES
            ],
            _RETRIEVAL,
        ),
        _table(
            "6",
            "Registers (Table 6)",
            "registers_8",
            [Row(f"registers_{n}", f"{n} registers", f"registers_{n}") for n in (0, 4, 8, 16)],
            [*_RETRIEVAL, *_MAPS, *_PROBE],
        ),
        _table(
            "7",
            "Global token (Table 7)",
            "global",
            [
                Row("no_global", "without a global token", "no_global"),
                Row("global", "with a global token"),
            ],
            [*_RETRIEVAL, *_MAPS, *_PROBE],
        ),
        _table(
            "8",
            "Mask ratio (Table 8)",
            "mask_0.75",
            [
                *(Row(f"mask_{ratio}", ratio, f"mask_{ratio}") for ratio in _RATIOS),
                Row("mask_multi", "multi {0.6–0.9}", "mask_multi"),
            ],
            [*_RETRIEVAL, *_MAPS],
        ),
        _table(
            "figure4",
            "Seconds of sound per window (Figure 4)",
            "audio_4s",
            [Row(f"audio_{s}s", f"{s} s", f"audio_{s}s") for s in range(1, 11)],
            [*_RETRIEVAL, "training/examples_per_second"],
        ),
        _table(
            "11",
            "Aggregations of frames in retrieval (Table 11)",
            "diagonal_mean",
            [Row(name, title, strategy=name) for name, title in _STRATEGIES.items()],
            _RETRIEVAL,
        ),
        _table(
            "12",
            "What each kind of token knows (Table 12)",
            "registers_8",
            [Row(f"registers_{n}", f"{n} registers", f"registers_{n}") for n in (0, 8)],
            [
                f"tokens@as20k/{head}/{kind}"
                for head in ("transformer", "linear")
                for kind in ("registers", "patches", "global")
            ],
        ),
    )
}
