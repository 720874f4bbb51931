"""Trains a scikit-learn classifier on the vectors of sounds, one folder per class.

python examples/classify_with_sklearn.py CHECKPOINT FOLDER
"""

import pathlib
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import cavmae_sync_jax

if len(sys.argv) != 3:
    sys.exit(__doc__)
checkpoint, folder = sys.argv[1:]
model = cavmae_sync_jax.load(checkpoint)
files = sorted(pathlib.Path(folder).glob("*/*"))
vectors = np.stack([model.embed_sound(file).audio.mean(axis=0) for file in files])
labels = [file.parent.name for file in files]
scores = cross_val_score(LogisticRegression(max_iter=1000), vectors, labels, cv=2)
print(f"accuracy {scores.mean():.2f} on {len(files)} sounds of {len(set(labels))} classes")
