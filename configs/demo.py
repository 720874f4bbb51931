"""A small model that learns in minutes on a laptop's CPU, on scenes of `data_prep.scenes`.

    python -m cavmae_sync_jax.train --config=configs/demo.py \
        --config.data.dir=runs/demo/data --workdir=runs/demo/train
"""

import difflib

from ml_collections import ConfigDict

# Log-mel rows of 1 … 10 s of audio: multiples of the patch, as in the paper's Figure 4.
AUDIO_ROWS = {1: 96, 2: 192, 3: 304, 4: 416, 5: 512, 6: 624, 7: 720, 8: 816, 9: 912, 10: 1024}

# Where Table 4 starts, at this size: the whole audio, mean pooling, a quarter of the batch.
CAV_MAE = {
    "batch_size": 16,
    "learning_rate": 1e-3,
    "data.num_frames": 10,
    "model.audio_rows": AUDIO_ROWS[10],
    "model.registers": 0,
    "model.global_token": False,
    "loss.contrast_weight": 0.1,
}

VARIANTS = {
    "demo": {},
    # A handful of videos, prepared with --image_size=64 --eval_share=0, to see that all works.
    "few_videos": {
        "batch_size": 4,
        "epochs": 100.0,
        "log_every": 10,
        "checkpoint_every": 50,
        "data.eval_split": "",
    },
    # The paper's ablations at this size (Tables 4 to 8, Figure 4).
    "scale+": CAV_MAE,
    "scale++": CAV_MAE | {"batch_size": 32, "learning_rate": 2e-3},
    "scale++*": CAV_MAE | {"batch_size": 32, "learning_rate": 2e-3, "data.num_frames": 16},
    "scale+++": CAV_MAE
    | {
        "batch_size": 64,
        "learning_rate": 2e-3,
        "data.num_frames": 16,
        "loss.contrast_weight": 1.0,
    },
    **{f"frames_{n}": {"data.num_frames": n} for n in (4, 8, 10, 16)},
    **{f"registers_{n}": {"model.registers": n} for n in (0, 4, 8, 16)},
    "no_global": {"model.global_token": False},
    **{f"mask_{ratio}": {"mask.ratios": (ratio,)} for ratio in (0.5, 0.6, 0.75, 0.9)},
    "mask_multi": {"mask.ratios": (0.6, 0.75, 0.9)},
    **{f"audio_{s}s": {"model.audio_rows": rows} for s, rows in AUDIO_ROWS.items()},
    "contrast_one_way": {"loss.contrast_direction": "visual_to_audio"},
    "contrast_groups_4": {"loss.contrast_groups": 4},
}


def get_config(variant: str = "demo") -> ConfigDict:
    """Returns the demo's recipe with rows of `VARIANTS`; `configs/pretrain.py` explains each key.

    Raises:
      ValueError: for an unknown row, with the nearest one.
    """
    config = ConfigDict(
        {
            "seed": 0,
            "init_from": "",
            "batch_size": 64,
            "microbatches": 1,
            "epochs": 47.0,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_share": 0.1,
            "learning_rate_floor": 0.1,
            "adam_b1": 0.9,
            # A thousand steps are too few to forget the first gradients with the recipe's 0.999.
            "adam_b2": 0.95,
            "l2": 5e-7,
            "log_every": 20,
            "eval_every": 0.0,
            "evaluations": ("retrieval",),
            "checkpoint_every": 250,
            "keep_checkpoints": 2,
            "profile_step": 0,
            "mesh": {"data": -1, "fsdp": 1},
            "data": {
                "dir": "runs/demo/data",
                "train_split": "train",
                "eval_split": "eval",
                "num_frames": 16,
                "clip_rows": 1024,
                "window_spread": "clip",
                "own_statistics": False,
                "augment_audio": False,
                "workers": 0,
                "prefetch": 2,
                "requests": 128,
            },
            "model": {
                "image_size": 64,
                "image_patch": 8,
                "audio_rows": 96,
                "audio_bins": 128,
                "audio_patch": 16,
                "width": 96,
                "depth": 2,
                "heads": 2,
                "joint_depth": 1,
                "mlp_ratio": 4.0,
                "decoder_width": 64,
                "decoder_depth": 1,
                "decoder_heads": 4,
                "registers": 4,
                "global_token": True,
                "registers_in_joint": False,
                "learned_positions": False,
                "audio_mean": -5.081,
                "audio_std": 4.4849,
                "dtype": "auto",
                "residual_dtype": "auto",
                "unroll": False,
                "remat": "full",  # on a CPU computing again is faster than waiting for memory
            },
            "mask": {"ratios": (0.5,), "audio_structure": "unstructured"},
            "loss": {
                "contrast_weight": 1.0,
                "reconstruction_weight": 1.0,
                "temperature": 0.05,
                "contrast_direction": "both",
                "contrast_groups": 1,
            },
        }
    )
    for name in variant.split(","):
        if name not in VARIANTS:
            near = difflib.get_close_matches(name, VARIANTS, 1) or ["demo"]
            raise ValueError(f"unknown variant {name!r}; did you mean {near[0]!r}?")
        config.update_from_flattened_dict(VARIANTS[name])
    return config.lock()
