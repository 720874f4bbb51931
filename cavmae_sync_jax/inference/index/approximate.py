"""A shortlist of an index's files that may be near a query, where exact search is too slow.

`INDEX/approximate/MODALITY.faiss` is a graph of all vectors (HNSW, in 16 bits), made by FAISS.
`MODALITY.parquet` names the file of each vector. `nearest.search` then compares the files of the
nearest vectors exactly.
"""

import json
import pathlib
import shutil
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cavmae_sync_jax.inference.index.store import ID, Index
from cavmae_sync_jax.inference.index.vectors import damage_of
from cavmae_sync_jax.inference.model import Embedded
from cavmae_sync_jax.inference.similarity import unit
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import MODALITIES, OPPOSITE

FOLDER, MANIFEST = "approximate", "made_of.json"
# With more of both, a search finds more and takes longer. benchmarks.inference.nearest measures it.
KIND, EFFORT = "HNSW24_SQfp16", 256
WIDTH = 40  # vectors that are looked for, per file that is wanted
WIDER = (1, 4, 16, 64, 256)  # times as many, until they are of enough files
BLOCK = 4096  # vectors that are added between two steps of the bar


def shortlist(index: Index, query: Embedded, top: int) -> list[str]:
    """Files that are near a query in one way or another: a few dozen for each that is wanted.

    They are fewer where long files have most of the nearest vectors. Then vectors are looked for
    until they are of as many files as are wanted, as far as the graph leads to them.

    The graphs are built first if they are not there or the index has grown since.

    Args:
      index: where to look.
      query: what `embed_sound`, `embed_image` or `embed_video` returned.
      top: how many files are wanted.

    Raises:
      UserError: if FAISS is not installed, or a graph is damaged or can't be written.
    """
    library = _library()
    folder = _built(index, library)
    files: dict[str, None] = {}
    for modality in MODALITIES:
        vectors, theirs = getattr(query, modality), OPPOSITE[modality]
        place = folder / f"{theirs}.faiss"
        if vectors is None or not place.exists():
            continue
        try:
            graph = library.read_index(str(place))
        except RuntimeError as error:
            raise UserError(f"{place} is damaged: delete {folder} and search again") from error
        library.ParameterSpace().set_index_parameter(graph, "efSearch", EFFORT)
        # The mean finds what fits on the whole, and each pair what fits at a moment.
        asked = np.concatenate([unit(vectors.mean(axis=0, keepdims=True)), vectors])
        names = pq.read_table(folder / f"{theirs}.parquet")["file"]
        near, wanted = [], min(top, len(names.unique()))
        for wider in WIDER:  # a long file may have all of the nearest vectors
            count = min(wider * WIDTH * top, graph.ntotal)
            _, found = graph.search(asked.astype(np.float32), count)
            keys = np.unique(found[found >= 0])
            near = names.take(pa.array(keys)).unique().to_pylist()
            if len(near) >= wanted:
                break
        files |= dict.fromkeys(near)
    return list(files)


def _built(index: Index, library: Any) -> pathlib.Path:
    """The folder of the graphs, made anew if they are not of the index's shards."""
    folder = index.directory / FOLDER
    made_of = {shard.name: _about(shard) for shard in index.shards}
    try:
        if json.loads((folder / MANIFEST).read_text()) == made_of:
            return folder
    except (OSError, ValueError):
        pass
    partial = index.directory / f".{FOLDER}.{uuid.uuid4().hex[:8]}"
    cli.make_folder(partial)
    try:
        for modality in MODALITIES:
            side = index.vectors(modality)
            if not side.files:
                continue
            dim = side.vectors.shape[1]
            graph = library.index_factory(dim, KIND, library.METRIC_INNER_PRODUCT)
            with console.progress(f"graph of {modality}", len(side.times), "vector") as bar:
                for begin in range(0, len(side.times), BLOCK):
                    rows = side.vectors[begin : begin + BLOCK]
                    graph.add(np.ascontiguousarray(rows))
                    bar.update(len(rows))
            library.write_index(graph, str(partial / f"{modality}.faiss"))
            place = np.repeat(np.arange(len(side.files)), np.diff(side.offsets))
            names = pa.DictionaryArray.from_arrays(pa.array(place), pa.array(side.files))
            pq.write_table(pa.table({"file": names}), partial / f"{modality}.parquet")
        (partial / MANIFEST).write_text(json.dumps(made_of))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _about(shard: pathlib.Path) -> list[int | str]:
    """What tells a shard from another one of its name; one of an older version has no id."""
    with damage_of(shard):
        metadata = pq.read_metadata(shard).metadata or {}
    return [shard.stat().st_size, metadata.get(ID, b"").decode()]


def _library() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("--approximate needs FAISS: pip install -e '.[approximate]'") from error
    return faiss
