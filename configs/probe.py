"""The probe of a frozen encoder (paper section 4.1, Tables 2, 10 and 12), a row per dataset.

    python -m cavmae_sync_jax.evals.probe --config=configs/probe.py:as20k \
        --checkpoint=DIR --data=DATASET --output=DIR

Rows are joined by commas: `configs/probe.py:vggsound,audio`.
Paper: AudioSet-20K 30.5 mAP, VGGSound 52.7 % accuracy (Table 2).
"""

import difflib

from ml_collections import ConfigDict

VARIANTS = {
    "as20k": {},
    "vggsound": {
        "learning_rate": 1e-4,
        "epochs": 10,
        "loss": "ce",
        "balanced": True,
        "average_from": 3,
    },
    # Features are computed once, for a CPU; a small head for a small model.
    "demo": {
        "batch_size": 64,
        "epochs": 12,
        "learning_rate": 3e-3,
        "linear_learning_rate": 1e-2,
        "adam_b1": 0.9,
        "adam_b2": 0.95,
        "average_from": 7,
        "time_shift": False,
        "cached": True,
        "heads": 4,
    },
    "both": {"stream": "both"},
    "audio": {"stream": "audio"},
    "visual": {"stream": "visual"},
    # No time shift, so that the encoder runs once over each clip instead of in every epoch.
    "cached": {"time_shift": False, "cached": True},
}


def get_config(variant: str = "as20k") -> ConfigDict:
    """Returns the recipe with the named rows of `VARIANTS` applied in turn."""
    config = ConfigDict(
        {
            "seed": 0,
            "stream": "both",  # or audio, visual: whose features the head sees
            "train_split": "train",
            "batch_size": 48,  # clips, all their frames
            "epochs": 25,
            "learning_rate": 2e-4,  # its peak
            "linear_learning_rate": 2e-3,  # of a linear layer (depth 0)
            "warmup_share": 0.1,  # of all steps, linear; then a cosine
            "learning_rate_floor": 0.1,  # of the peak, where the cosine ends
            "adam_b1": 0.95,
            "adam_b2": 0.999,
            "l2": 5e-7,
            "loss": "bce",  # several labels per clip; ce: one
            "label_smoothing": 0.1,
            "mixup": 0.5,  # share of the clips that are mixed with another, λ ~ Beta(10, 10)
            "time_shift": True,  # noise and a random roll of each window
            "balanced": False,  # draw clips by the rarity of their labels, with replacement
            "average_from": 13,  # the epoch (the first is 1) from whose end on weights are averaged
            "cached": False,  # the encoder runs once; excludes time_shift
            "heads": 12,
            "depth": 2,  # blocks; 0: a linear layer on the frames' mean
            "mlp_ratio": 4.0,
            "log_every": 20,  # steps
        }
    )
    for name in variant.split(","):
        if name not in VARIANTS:
            near = difflib.get_close_matches(name, VARIANTS, 1) or ["as20k"]
            raise ValueError(f"unknown variant {name!r}; did you mean {near[0]!r}?")
        config.update(VARIANTS[name])
    return config.lock()
