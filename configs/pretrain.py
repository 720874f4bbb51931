"""CAV-MAE Sync's pre-training recipe on AudioSet-2M, and every ablation as a row of one table.

    python -m cavmae_sync_jax.train --config=configs/pretrain.py \
        --config.data.dir=DATASET --workdir=DIR

Rows are added behind a colon and joined by commas: `configs/pretrain.py:registers_4,mask_0.6`.
Paper, after 25 epochs from MAE's weights: AudioSet retrieval R@1 35.2 % V→A, 27.9 % A→V (Table 1).
"""

import difflib

from ml_collections import ConfigDict

# Log-mel rows of 1 … 10 s of audio: multiples of the patch, as in the paper's Figure 4.
AUDIO_ROWS = {1: 96, 2: 192, 3: 304, 4: 416, 5: 512, 6: 624, 7: 720, 8: 816, 9: 912, 10: 1024}

# Where Table 4 starts: CAV-MAE with the whole audio, mean pooling and its own schedule.
CAV_MAE = {
    "batch_size": 128,
    "learning_rate": 1e-4,
    "schedule": "halving",
    "warmup_share": 0.0,
    "data.num_frames": 10,
    "model.audio_rows": AUDIO_ROWS[10],
    "model.registers": 0,
    "model.global_token": False,
    "loss.contrast_weight": 0.01,
}

VARIANTS = {
    "sync": {},
    # Table 4. scale++* differs from scale++ in its frames, and in the retrieval it is scored with.
    "scale+": CAV_MAE,
    "scale++": CAV_MAE | {"batch_size": 256, "learning_rate": 2e-4},
    "scale++*": CAV_MAE | {"batch_size": 256, "learning_rate": 2e-4, "data.num_frames": 16},
    "scale+++": CAV_MAE
    | {
        "batch_size": 512,
        "learning_rate": 2e-4,
        "data.num_frames": 16,
        "loss.contrast_weight": 0.1,
    },
    # Tables 5, 6, 7, 8 and Figure 4.
    **{f"frames_{n}": {"data.num_frames": n} for n in (4, 8, 10, 16)},
    **{f"registers_{n}": {"model.registers": n} for n in (0, 4, 8, 16)},
    "no_global": {"model.global_token": False},
    **{f"mask_{ratio}": {"mask.ratios": (ratio,)} for ratio in (0.6, 0.75, 0.9)},
    "mask_multi": {"mask.ratios": (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)},
    **{f"audio_{s}s": {"model.audio_rows": rows} for s, rows in AUDIO_ROWS.items()},
    # Where the paper's text and the released code differ (default: the code), and CAV-MAE's.
    "registers_in_joint": {"model.registers_in_joint": True},
    "contrast_both": {"loss.contrast_direction": "both"},
    "contrast_groups_4": {"loss.contrast_groups": 4},
    "augment": {"data.augment_audio": True},
    **{
        f"mask_{structure}": {"mask.audio_structure": structure}
        for structure in ("time", "frequency", "time_frequency")
    },
}


def get_config(variant: str = "sync") -> ConfigDict:
    """Returns the recipe with the named rows of `VARIANTS` applied in turn."""
    config = ConfigDict(
        {
            "seed": 0,
            "init_from": "",  # weights to begin with: a converted checkpoint or another workdir
            "batch_size": 512,  # clips in a global batch
            "microbatches": 1,  # parts that the batch is computed in, with equal results
            "epochs": 25.0,
            "learning_rate": 2e-4,  # its peak
            "schedule": "cosine",  # or halving: CAV-MAE's, every 5 epochs from the 10th
            "warmup_share": 0.1,  # of all steps, linear
            "learning_rate_floor": 0.1,  # of the peak, where the cosine ends
            "adam_b1": 0.95,
            "adam_b2": 0.999,
            "l2": 5e-7,  # added to the gradient (coupled), not AdamW's decay
            "log_every": 50,  # steps
            "eval_every": 5.0,  # epochs; 0: only at the end
            "evaluations": ("retrieval",),  # also segmentation, temporal, reconstruction
            "checkpoint_every": 1000,  # steps
            "keep_checkpoints": 3,  # the newest ones
            "profile_step": 0,  # traces five steps from this one on; 0: never
            "mesh": {"data": -1, "fsdp": 1},  # devices; -1: the rest
            "data": {
                "dir": "",  # a dataset that data_prep wrote
                "train_split": "train",
                "eval_split": "eval",
                "num_frames": 16,  # used of those stored
                "clip_rows": 1024,  # log-mel rows that a clip is padded or cut to
                "window_spread": "clip",  # over its own length; padded: over clip_rows, as released
                "own_statistics": False,  # the dataset's audio_mean and audio_std (--compute_stats)
                "augment_audio": False,  # noise and time shift (paper yes, released code no)
                "workers": 8,  # processes per host
                "prefetch": 2,  # batches per worker
                "requests": 128,  # in flight per worker, if the dataset is in a bucket
            },
            "model": {
                "image_size": 224,  # pixels
                "image_patch": 16,
                "audio_rows": AUDIO_ROWS[4],  # 10 ms each
                "audio_bins": 128,
                "audio_patch": 16,
                "width": 768,
                "depth": 11,  # of each encoder
                "heads": 12,
                "joint_depth": 1,
                "mlp_ratio": 4.0,
                "decoder_width": 512,
                "decoder_depth": 8,
                "decoder_heads": 16,
                "registers": 8,  # of each modality
                "global_token": True,
                "registers_in_joint": False,  # paper's text yes, released code no
                "learned_positions": False,  # beginning as the fixed sin-cos ones
                "audio_mean": -5.081,  # of AudioSet's log-mel
                "audio_std": 4.4849,
                "dtype": "auto",  # bfloat16, on a CPU float32
                "residual_dtype": "auto",  # as dtype; float32: tokens between blocks, as released
                "unroll": False,
                "remat": "none",  # or full, or dots: less memory, more arithmetic
            },
            "mask": {
                "ratios": (0.75,),  # several: one is drawn for each batch
                "audio_structure": "unstructured",
            },
            "loss": {
                "contrast_weight": 0.1,
                "reconstruction_weight": 1.0,
                "temperature": 0.05,
                "contrast_direction": "visual_to_audio",  # audio_to_visual, both
                "contrast_groups": 1,  # n: negatives only from the sample's own n-th of the batch
            },
        }
    )
    for name in variant.split(","):
        if name not in VARIANTS:
            near = difflib.get_close_matches(name, VARIANTS, 1) or ["sync"]
            raise ValueError(f"unknown variant {name!r}; did you mean {near[0]!r}?")
        config.update_from_flattened_dict(VARIANTS[name])
    return config.lock()
