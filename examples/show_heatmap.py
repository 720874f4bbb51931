"""Draws where in a picture a sound comes from.

python examples/show_heatmap.py CHECKPOINT PICTURE SOUND OUTPUT.png
"""

import sys

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

import cavmae_sync_jax

if len(sys.argv) != 5:
    sys.exit(__doc__)
checkpoint, picture, sound, output = sys.argv[1:]
model = cavmae_sync_jax.load(checkpoint)
heat = model.heatmap(picture, sound)
plt.imshow(model.picture(picture))
plt.imshow(heat, cmap="turbo", alpha=0.5)
plt.axis("off")
plt.savefig(output, bbox_inches="tight", pad_inches=0)
