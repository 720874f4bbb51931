"""Puts an index's vectors into a vector database (LanceDB) and searches it with a sound.

python examples/vector_database.py CHECKPOINT INDEX SOUND DATABASE
"""

import sys

import lancedb
import numpy as np
import pyarrow.dataset as ds

import cavmae_sync_jax

if len(sys.argv) != 5:
    sys.exit(__doc__)
checkpoint, index, sound, database = sys.argv[1:]
model = cavmae_sync_jax.load(checkpoint)
vectors = ds.dataset(f"{index}/shards", partitioning=None)
rows = vectors.scanner(columns=["file", "time", "modality", "vector"]).to_reader()
table = lancedb.connect(database).create_table("moments", rows, mode="overwrite")
query = model.embed_sound(sound).audio.mean(axis=0)
query /= np.linalg.norm(query)
found = table.search(query).distance_type("dot").where("modality = 'visual'").limit(5)
for hit in found.to_list():
    print(f"{1 - hit['_distance']:.3f} {hit['time']:7.2f} s  {hit['file']}")
