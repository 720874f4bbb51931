"""Embeds a folder of videos into an index, and finds the moments that a sound fits best.

python examples/search_index.py CHECKPOINT FOLDER SOUND INDEX
"""

import sys

import cavmae_sync_jax
from cavmae_sync_jax import embed
from cavmae_sync_jax.inference.index import nearest
from cavmae_sync_jax.inference.index.store import Index

if len(sys.argv) != 5:
    sys.exit(__doc__)
checkpoint, folder, sound, place = sys.argv[1:]
model = cavmae_sync_jax.load(checkpoint)
embed.run(model, [folder], place)
found = nearest.search(Index(place), model.embed_sound(sound), top=5, apart=4.0)
for hit in found.moments:
    print(f"{hit.similarity:.3f}  {hit.time:7.2f} s  {hit.file}")
