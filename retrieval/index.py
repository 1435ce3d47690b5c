"""Build and search an immutable FAISS index of unit vectors: flat, HNSW, or IVF-PQ with refinement, depending on their
number.

A vector is identified by its position. Scores are inner products of unit vectors: cosines.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from waver.retrieval.base import Damaged, Ids, Vectors
from waver.retrieval.embedder import missing

try:
    faiss: Any = import_module("faiss")  # its stubs lack half of it
except ImportError as error:
    raise missing(error) from error

Kind = Literal["flat", "hnsw", "ivf_pq"]
Mask = npt.NDArray[np.bool_]

FLAT_UNTIL = 50_000
HNSW_UNTIL = 500_000
"""Most vectors of a kind: benchmarks/results/retrieval.md has what each costs and finds at these sizes."""
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 256
"""A beam narrower than a topic never leaves it: at 128, a quarter of 100,000 vectors in topics of 200 was not found."""
TRAINABLE = 1024
"""Fewest vectors for an IVF-PQ index: its codes are learnt from them."""
PQ_BYTES = 64
"""Bytes of a vector's code, for vectors whose dimension it divides."""
PROBES, REFINED = 32, 20
"""Lists that an IVF-PQ search reads, and how many times the wanted number it then scores by the whole vectors."""
RARE = 0.1
"""Below this share of admitted vectors, HNSW's graph leads astray: its vectors are scored one by one."""
STEP = 65_536
"""Vectors that are handled at once while an index is built."""


def kind_for(count: int, wanted: Kind | None = None) -> Kind:
    """Choose the kind of index for a number of vectors: the `wanted` one, if there are enough to train it, else by
    size."""
    if wanted is not None:
        return wanted if wanted != "ivf_pq" or count >= TRAINABLE else "flat"
    return "flat" if count <= FLAT_UNTIL else "hnsw" if count <= HNSW_UNTIL else "ivf_pq"


def build(kind: Kind, count: int, dimension: int, blocks: Callable[[], Iterator[Vectors]], file: Path) -> None:
    """Write an index of `count` unit vectors `[n, dimension]` that come in blocks; `blocks` may be called twice.

    The file is on disk, all of it, when this returns.

    Raises:
        OSError: it cannot be written.
    """
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
    elif kind == "ivf_pq":
        index = _trained(count, dimension, blocks)
    else:
        index = faiss.IndexFlatIP(dimension)
    for block in blocks():
        index.add(np.ascontiguousarray(block, np.float32))
    with file.open("wb") as stream:
        # By Python's own file: FAISS says in words alone why it could not write.
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))
        stream.flush()
        os.fsync(stream.fileno())


def _trained(count: int, dimension: int, blocks: Callable[[], Iterator[Vectors]]) -> Any:
    lists = max(1, min(4096, 2 ** round(np.log2(max(1.0, 2 * np.sqrt(count)))), count // 39))
    code = next(size for size in (PQ_BYTES, 48, 32, 16, 8, 4, 2, 1) if dimension % size == 0)
    wanted = min(count, max(64 * lists, 65_536))
    draw = np.random.default_rng(0)
    sample: list[Vectors] = []
    for block in blocks():
        keep = draw.random(len(block)) < 1.05 * wanted / count
        sample.append(block[keep])
    coarse = faiss.IndexFlatIP(dimension)
    inner = faiss.IndexIVFPQ(coarse, dimension, lists, code, 8, faiss.METRIC_INNER_PRODUCT)
    inner.cp.min_points_per_centroid = inner.pq.cp.min_points_per_centroid = 1  # no warnings for small collections
    inner.train(np.ascontiguousarray(np.concatenate(sample)))
    whole = faiss.IndexFlatIP(dimension)
    index = faiss.IndexRefine(inner, whole)
    for part in (coarse, inner, whole):
        part.this.disown()
    index.own_fields = index.own_refine_index = True
    inner.own_fields = True
    return index


class Index:
    """An index file, mapped into memory: pages that are not read are not loaded. Searches may run concurrently."""

    def __init__(self, file: Path, kind: Kind, count: int, dimension: int) -> None:
        """Open an index file.

        Raises:
            Damaged: the file is no index, or one of another kind or size.
            FileNotFoundError: it is not there (any more).
        """
        try:
            found = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            if not file.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from error
            raise Damaged(f"{file.name} is not a FAISS index.") from error
        expected = {"flat": faiss.IndexFlat, "hnsw": faiss.IndexHNSWFlat, "ivf_pq": faiss.IndexRefine}[kind]
        if not isinstance(found, expected) or (found.ntotal, found.d) != (count, dimension):
            raise Damaged(f"{file.name} is a FAISS index of another kind or size.")
        self._index: Any = found
        self.kind, self.count = kind, count

    def search(self, vectors: Vectors, count: int, admitted: Mask | None = None) -> tuple[Vectors, Ids]:
        """Return scores and positions `[queries, count]` of the nearest vectors to `[queries, dimension]`; positions
        are -1 where there are fewer.

        Args:
            admitted: which positions may be found, `[vectors]`; all if None.
        """
        share = 1.0 if admitted is None else float(admitted.mean()) if len(admitted) else 0.0
        if share == 0:
            shape = (len(vectors), count)
            return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
        chosen: dict[str, Any] = {}
        if admitted is not None and share < 1:
            bits = np.packbits(admitted, bitorder="little")  # must live as long as the search
            chosen["sel"] = faiss.IDSelectorBitmap(len(admitted), faiss.swig_ptr(bits))
        index, parameters = self._index, None
        if self.kind == "hnsw" and share >= RARE:
            parameters = faiss.SearchParametersHNSW(efSearch=max(HNSW_SEARCH, 2 * count), **chosen)
        elif self.kind == "hnsw":
            index, parameters = faiss.downcast_index(index.storage), faiss.SearchParameters(**chosen)
        elif self.kind == "ivf_pq":
            inner = faiss.downcast_index(index.base_index)
            probes = min(inner.nlist, int(np.ceil(PROBES / share)))
            parameters = faiss.IndexRefineSearchParameters(
                k_factor=REFINED, base_index_params=faiss.SearchParametersIVF(nprobe=probes, **chosen)
            )
        elif chosen:
            parameters = faiss.SearchParameters(**chosen)
        scores, positions = index.search(np.ascontiguousarray(vectors, np.float32), count, params=parameters)
        return scores, positions

    def vectors(self, start: int, end: int) -> Vectors:
        """Return the vectors at positions `start` to `end`, `[n, dimension]`."""
        out = np.empty((end - start, self._index.d), np.float32)
        self._index.reconstruct_n(start, end - start, out)
        return out
