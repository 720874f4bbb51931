"""Embeds a video of any length, and prints how well each picture fits its sound.

python examples/embed_video.py CHECKPOINT VIDEO
"""

import sys

import cavmae_sync_jax

if len(sys.argv) != 3:
    sys.exit(__doc__)
checkpoint, video = sys.argv[1:]
model = cavmae_sync_jax.load(checkpoint)
pairs = model.embed_video(video)
for time, sound, picture in zip(pairs.times, pairs.audio, pairs.visual, strict=True):
    print(f"{time:7.2f} s  cosine {sound @ picture:.3f}")
