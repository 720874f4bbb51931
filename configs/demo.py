"""A small model that learns in minutes on a laptop's CPU, on scenes of `data_prep.scenes`.

    python -m cavmae_sync_jax.train --config=configs/demo.py \
        --config.data.dir=runs/demo/data --workdir=runs/demo/train
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the demo's recipe; `configs/pretrain.py` explains each key."""
    return ConfigDict(
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
                "own_statistics": False,
                "augment_audio": False,
                "workers": 0,
                "prefetch": 2,
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
    ).lock()
