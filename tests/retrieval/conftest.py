"""The real embedder, loaded once; documents made by hand; stores of vectors made up on the spot."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from waver.retrieval.base import CollectionSpec, Document, EmbeddedDocument
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.faiss_store import FaissStore
from waver.retrieval.library import Library
from waver.retrieval.parsing import Parsers

DIMENSION = 16


@pytest.fixture
def library(tmp_path: Path, embedder: Embedder) -> Iterator[Library]:
    made = Library(RetrievalConfig(path=tmp_path / "collections", lock_seconds=0.2))
    made.embedders["all-MiniLM-L6-v2"] = embedder
    yield made
    made.close()


@pytest.fixture
def parsers() -> Iterator[Parsers]:
    with Parsers(max_file=8 * 2**20, max_text=2**20, seconds=10, memory=2**30) as made:
        yield made


def spec(name: str = "notes") -> CollectionSpec:
    return CollectionSpec(name, "made up", "0" * 64, DIMENSION)


def new_store(root: Path, name: str = "notes") -> FaissStore:
    (root / name).mkdir(parents=True)
    FaissStore.create(root / name, spec(name))
    return FaissStore(root / name, lock_seconds=0.2)


def unit(seed: int, count: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prepared(name: str, seed: int, chunks: int = 2, **metadata: str | int) -> EmbeddedDocument:
    """A document whose chunks point wherever the seed says; its words are its name, its seed and their number."""
    texts = tuple(f"{name} seed{seed} part{i}" for i in range(chunks))
    return EmbeddedDocument(Document(name, " ".join(texts), metadata=metadata), texts, unit(seed, chunks), texts[0])


def pdf(*pages: str, compress: bool = False, content: bytes | None = None) -> bytes:
    """A small PDF with a text layer, made by hand."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for page in pages:
        text = content or f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET".encode()
        filters = b""
        if compress:
            text, filters = zlib.compress(text, 9), b"/Filter /FlateDecode "
        stream = len(objects) + 1
        objects.append(b"<< %s/Length %d >>\nstream\n%s\nendstream" % (filters, len(text), text))
        kids.append(len(objects) + 1)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 "
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>" % stream
        )
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(b"%d 0 R" % k for k in kids), len(kids))
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return out + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
