"""Fine-tuning end to end, as CAV-MAE does it (Gong et al. 2023, appendix), a row per dataset.

    python -m cavmae_sync_jax.finetune --config=configs/finetune.py:as20k \
        --config.init_from=DIR --config.data.dir=DATASET --workdir=DIR

Rows are joined by commas: `configs/finetune.py:vggsound,audio`, or `…:as20k,cav_mae` for its model.
CAV-MAE: AudioSet-20K 42.0 mAP, AudioSet-2M 51.2 mAP, VGGSound 65.5 % accuracy.
"""

import difflib

from ml_collections import ConfigDict

VARIANTS = {
    "as20k": {},
    "as2m": {
        "learning_rate": 1e-5,
        "head_rate_factor": 50.0,
        "halving_from": 2,
        "epochs": 10.0,
        "batch_size": 48,
        "average_from": 1,
        "balanced": True,
    },
    "vggsound": {
        "learning_rate": 1e-4,
        "head_rate_factor": 10.0,
        "halving_from": 2,
        "epochs": 10.0,
        "batch_size": 48,
        "average_from": 3,
        "balanced": True,
        "classifier.loss": "ce",
    },
    # What the model sees, and what feeds its head.
    "both": {"classifier.stream": "both"},
    "audio": {"classifier.stream": "audio"},
    "visual": {"classifier.stream": "visual"},
    "patches": {"classifier.tokens": "patches"},
    "global": {"classifier.tokens": "global"},
    # The whole sound beside each frame, instead of the frame's own 4 s.
    "audio_10s": {"model.audio_rows": 1024, "mask_rows": 192},
    # CAV-MAE's own model and frames.
    "cav_mae": {
        "model.audio_rows": 1024,
        "mask_rows": 192,
        "data.num_frames": 10,
        "model.registers": 0,
        "model.global_token": False,
    },
    # The demo's small model, for a CPU: a short training without augmentation.
    "demo": {
        "batch_size": 32,
        "epochs": 6.0,
        "learning_rate": 1e-3,
        "head_rate_factor": 3.0,
        "schedule": "cosine",
        "warmup_share": 0.1,
        "average_from": 5,
        "adam_b1": 0.9,
        "adam_b2": 0.95,
        "mixup": 0.0,
        "mask_rows": 0,
        "mask_bins": 0,
        "data.augment_audio": False,
        "log_every": 20,
        "checkpoint_every": 250,
        "data.dir": "runs/demo/data",
        "data.workers": 0,
        "model.image_size": 64,
        "model.image_patch": 8,
        "model.audio_rows": 96,
        "model.width": 96,
        "model.depth": 2,
        "model.heads": 2,
        "model.decoder_width": 64,
        "model.decoder_depth": 1,
        "model.decoder_heads": 4,
        "model.registers": 4,
        "model.remat": "full",
    },
}


def get_config(variant: str = "as20k") -> ConfigDict:
    """Returns the recipe with the named rows of `VARIANTS` applied in turn."""
    config = ConfigDict(
        {
            "seed": 0,
            "init_from": "",  # a pre-training's workdir or a conversion; empty: from scratch
            "batch_size": 36,  # clips in a global batch
            "microbatches": 1,  # parts that the batch is computed in, with equal results
            "epochs": 15.0,
            "learning_rate": 5e-5,  # of the pre-trained weights, at its peak
            "head_rate_factor": 100.0,  # times that for the head
            "schedule": "halving",  # or cosine
            "halving_from": 5,  # the epoch after which the rate is halved first
            "halving_every": 1,  # epochs
            "warmup_share": 0.0,  # of all steps, linear
            "learning_rate_floor": 0.1,  # of the peak, where a cosine ends
            "adam_b1": 0.95,
            "adam_b2": 0.999,
            "l2": 5e-7,  # added to the gradient (coupled), not AdamW's decay
            "average_from": 3,  # the epoch (the first is 1) from whose end on weights are averaged
            "balanced": False,  # draw clips by the rarity of their labels, with replacement
            "label_smoothing": 0.1,
            "mixup": 0.5,  # share of the clips that are mixed with another, λ ~ Beta(10, 10)
            "mask_rows": 78,  # the longest hidden span of sound; CAV-MAE: 192 of its 1024 rows
            "mask_bins": 48,  # the widest hidden band
            "log_every": 50,  # steps
            "eval_every": 0.0,  # epochs; 0: only at the end
            "checkpoint_every": 1000,  # steps
            "keep_checkpoints": 2,  # the newest ones
            "profile_step": 0,  # traces five steps from this one on; 0: never
            "mesh": {"data": -1, "fsdp": 1},  # devices; -1: the rest
            "classifier": {
                "stream": "both",  # or audio, visual: what the model sees
                "tokens": "patches",  # whose mean feeds the head; or global
                "loss": "bce",  # several labels per clip; ce: one
                "names": (),  # of the classes; the dataset's take this place
            },
            "data": {
                "dir": "",  # a dataset that data_prep wrote, with labels
                "train_split": "train",
                "eval_split": "eval",
                "num_frames": 16,  # used of those stored
                "clip_rows": 1024,  # log-mel rows that a clip is padded or cut to
                "window_spread": "clip",  # over its own length; padded: over clip_rows, as released
                "own_statistics": False,  # the dataset's audio_mean and audio_std (--compute_stats)
                "augment_audio": True,  # noise and time shift
                "requests": 128,  # in flight per worker, if the dataset is in a bucket
                "workers": 8,  # processes per host
                "prefetch": 2,  # batches per worker
            },
            "model": {
                "image_size": 224,  # pixels
                "image_patch": 16,
                "audio_rows": 416,  # 10 ms each
                "audio_bins": 128,
                "audio_patch": 16,
                "width": 768,
                "depth": 11,  # of each encoder
                "heads": 12,
                "joint_depth": 1,
                "mlp_ratio": 4.0,
                "decoder_width": 512,  # of the pre-training; a classifier has no decoder
                "decoder_depth": 8,
                "decoder_heads": 16,
                "registers": 8,  # of each modality
                "global_token": True,
                "registers_in_joint": False,
                "learned_positions": True,  # CAV-MAE trains them from here on
                "audio_mean": -5.081,  # of AudioSet's log-mel
                "audio_std": 4.4849,
                "dtype": "auto",  # bfloat16, on a CPU float32
                "residual_dtype": "auto",  # as dtype; float32: tokens between blocks
                "unroll": False,
                "remat": "none",  # or full, or dots: less memory, more arithmetic
            },
        }
    )
    for name in variant.split(","):
        if name not in VARIANTS:
            near = difflib.get_close_matches(name, VARIANTS, 1) or ["as20k"]
            raise ValueError(f"unknown variant {name!r}; did you mean {near[0]!r}?")
        config.update_from_flattened_dict(VARIANTS[name])
    return config.lock()
