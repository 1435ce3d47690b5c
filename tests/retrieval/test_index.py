"""The three kinds of index: what they find, also among few, and what they say of files that are not theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from waver.retrieval.base import Damaged, Vectors
from waver.retrieval.index import FLAT_UNTIL, HNSW_UNTIL, TRAINABLE, Index, Kind, build, kind_for

COUNT, DIMENSION = 6000, 32
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf_pq")


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Unit vectors around 60 centres."""
    draw = np.random.default_rng(3)
    centres = draw.standard_normal((60, DIMENSION))
    found = (centres[draw.integers(60, size=COUNT)] + 0.5 * draw.standard_normal((COUNT, DIMENSION))).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest, vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Index:
    file = tmp_path_factory.mktemp("index") / "one.faiss"

    def blocks() -> Iterator[Vectors]:
        yield vectors[:2500]
        yield vectors[2500:]

    build(request.param, COUNT, DIMENSION, blocks, file)
    return Index(file, request.param, COUNT, DIMENSION)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.005])
def test_finds_the_nearest_among_those_admitted(index: Index, vectors: Vectors, share: float) -> None:
    draw = np.random.default_rng(4)
    admitted = draw.random(COUNT) < share
    questions = vectors[draw.integers(COUNT, size=50)] + 0.1 * draw.standard_normal((50, DIMENSION)).astype(np.float32)
    exact = np.where(admitted, questions @ vectors.T, -9)
    best = np.argsort(-exact, axis=1)[:, :10]
    scores, positions = index.search(questions, 10, None if share == 1 else admitted)
    assert admitted[positions[positions >= 0]].all()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best, positions, strict=True)])
    assert recall == 1.0 if index.kind == "flat" else recall > 0.9
    rows = np.arange(50)
    assert np.allclose(scores[:, 0], exact[rows, positions[:, 0]], atol=1e-5)


def test_none_admitted_none_found(index: Index, vectors: Vectors) -> None:
    assert (index.search(vectors[:2], 5, np.zeros(COUNT, bool))[1] == -1).all()


def test_gives_its_vectors_back(index: Index, vectors: Vectors) -> None:
    assert np.array_equal(index.vectors(2400, 2600), vectors[2400:2600])


def test_another_kind_or_size_is_refused(index: Index, vectors: Vectors, tmp_path: Path) -> None:
    file = tmp_path / "flat.faiss"
    build("flat", 100, DIMENSION, lambda: iter([vectors[:100]]), file)
    for kind, count, dimension in (("hnsw", 100, DIMENSION), ("flat", 99, DIMENSION), ("flat", 100, DIMENSION + 1)):
        with pytest.raises(Damaged, match="another kind or size"):
            Index(file, kind, count, dimension)  # type: ignore[arg-type]
    for data in (b"", b"hello", file.read_bytes()[:40]):
        file.write_bytes(data)
        with pytest.raises(Damaged, match="not a FAISS index"):
            Index(file, "flat", 100, DIMENSION)
    file.unlink()  # as a writer does that merges it away
    with pytest.raises(FileNotFoundError) as raised:
        Index(file, "flat", 100, DIMENSION)
    assert raised.value.filename == str(file)


def test_few_vectors_make_every_kind(vectors: Vectors, tmp_path: Path) -> None:
    for kind in KINDS:
        for count in (1, 3, 50) if kind != "ivf_pq" else (TRAINABLE,):
            file = tmp_path / f"{kind}{count}.faiss"
            build(kind, count, DIMENSION, lambda n=count: iter([vectors[:n]]), file)  # type: ignore[misc]
            assert Index(file, kind, count, DIMENSION).search(vectors[:1], 1)[1][0, 0] == 0


def test_the_kind_follows_the_size() -> None:
    sizes = (1, FLAT_UNTIL, FLAT_UNTIL + 1, HNSW_UNTIL, HNSW_UNTIL + 1)
    assert [kind_for(n) for n in sizes] == ["flat", "flat", "hnsw", "hnsw", "ivf_pq"]
    assert [kind_for(n, "ivf_pq") for n in (TRAINABLE - 1, TRAINABLE)] == ["flat", "ivf_pq"]
    assert kind_for(1, "hnsw") == "hnsw"
