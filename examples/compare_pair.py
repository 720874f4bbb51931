"""Prints how well a sound and a video match, compared with other sounds.

python examples/compare_pair.py CHECKPOINT VIDEO SOUND OTHER_SOUND...
"""

import sys

import numpy as np

import cavmae_sync_jax
from cavmae_sync_jax.inference.similarity import percentile

if len(sys.argv) < 5:
    sys.exit(__doc__)
checkpoint, video, sound, *others = sys.argv[1:]
model = cavmae_sync_jax.load(checkpoint)
pictures = model.embed_video(video)
match = model.similarity(model.embed_sound(sound), pictures)
theirs = np.array([model.similarity(model.embed_sound(other), pictures) for other in others])
print(f"similarity {match:.3f}, above {percentile(match, theirs):.0f} % of the other sounds")
