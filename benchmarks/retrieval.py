"""FAISS by kind and size: what is found, how fast, in how much memory; and how fast documents are taken in.

Vectors are drawn around random centres, as embeddings of texts on common topics lie; questions are drawn like them and
are none of them. Each index is opened and searched in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks import report
from retrieval.base import Document, Prepared, Vectors
from retrieval.chunking import chunks
from retrieval.config import RetrievalConfig
from retrieval.index import FLAT_UNTIL, HNSW_UNTIL, STEP, Index, Kind, build
from retrieval.library import Library
from training.world import documents

DIMENSION, QUESTIONS, WANTED = 384, 200, 10
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf_pq")
A_CENTRE = 200
"""Vectors around one centre, on average."""
SPREAD = 1.0
"""Length of what is added to a centre, which has length 1: two of one topic have a cosine of about 1/2."""
ROUNDS = 3

app = report.command()


def draw(count: int, seed: int, part: int) -> Vectors:
    """The `part`-th block of unit vectors `[n, DIMENSION]` of a set of `count`; part -1: the questions."""
    centres = np.random.default_rng((seed, count)).standard_normal((max(1, count // A_CENTRE), DIMENSION), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    n = QUESTIONS if part < 0 else min(STEP, count - part * STEP)
    chance = np.random.default_rng((seed, count, part + 1))
    vectors = chance.standard_normal((n, DIMENSION), np.float32) * np.float32(SPREAD / np.sqrt(DIMENSION))
    vectors += centres[chance.integers(len(centres), size=n)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def blocks(count: int, seed: int) -> Iterator[Vectors]:
    for part in range(-(-count // STEP)):
        yield draw(count, seed, part)


def exact(count: int, seed: int) -> np.ndarray:
    """The true nearest of each question `[QUESTIONS, WANTED]`, without FAISS."""
    questions = draw(count, seed, -1)
    scores = np.zeros((QUESTIONS, 0), np.float32)
    found = np.zeros((QUESTIONS, 0), np.int64)
    for part, block in enumerate(blocks(count, seed)):
        scores = np.concatenate([scores, questions @ block.T], axis=1)
        here = np.broadcast_to(part * STEP + np.arange(len(block)), (QUESTIONS, len(block)))
        found = np.concatenate([found, here], axis=1)
        best = np.argpartition(-scores, WANTED, axis=1)[:, :WANTED] if scores.shape[1] > WANTED else np.argsort(-scores)
        scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    return found


def measure_index(kind: Kind, count: int, seed: int, file: Path) -> dict[str, Any]:
    """Open an index and ask it one question after another; memory in MiB. Runs in a process of its own."""
    import psutil

    process = psutil.Process()
    questions = draw(count, seed, -1)
    before = process.memory_info().rss
    begun = time.perf_counter()
    index = Index(file, kind, count, DIMENSION)
    opened = time.perf_counter() - begun
    found = np.stack([index.search(each[None], WANTED)[1][0] for each in questions])  # reads the pages it needs
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for each in questions:
            index.search(each[None], WANTED)
        rates.append(QUESTIONS / (time.perf_counter() - begun))
    return {
        "positions": found.tolist(),
        "open_seconds": opened,
        "questions_a_second": float(np.median(rates)),
        "memory_mib": (process.memory_info().rss - before) / 2**20,
    }


def indices(sizes: list[int], seed: int, bar: Progress) -> dict[str, Any]:
    out: dict[str, Any] = {}
    task = bar.add_task("indices", total=len(sizes) * len(KINDS))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.faiss"
        for count in sizes:
            truth = exact(count, seed)
            for kind in KINDS:
                begun = time.perf_counter()
                build(kind, count, DIMENSION, lambda n=count: blocks(n, seed), file)  # type: ignore[misc]
                built = time.perf_counter() - begun
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.retrieval",
                    "index",
                    kind,
                    str(count),
                    str(seed),
                    str(file),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                pairs = zip(truth, found.pop("positions"), strict=True)
                found["recall"] = float(np.mean([len(set(a.tolist()) & set(b)) / WANTED for a, b in pairs]))
                found |= {"build_seconds": built, "file_mib": file.stat().st_size / 2**20}
                out.setdefault(str(count), {})[kind] = found
                bar.advance(task)
    return out


def ingestion(n: int, bar: Progress) -> dict[str, Any]:
    """Seconds of each part of taking in `n` documents of about 1.2 kB."""
    texts = [document.text for document in documents()]
    texts = [" ".join(texts[(3 * i + j) % len(texts)] for j in range(8)) + f" ({i})" for i in range(n)]
    task = bar.add_task("ingestion", total=4)
    with tempfile.TemporaryDirectory() as folder:
        library = Library(RetrievalConfig(path=Path(folder)))
        collection = library.create("bench")
        embedder = collection.embedder
        bar.advance(task)
        spent = {}
        begun = time.perf_counter()
        pages = [f"<html><body><p>{text}</p></body></html>".encode() for text in texts]
        for page in pages:
            library.parsers.parse(page, "page.html")
        spent["parse"] = time.perf_counter() - begun
        begun = time.perf_counter()
        pieces = [list(chunks(text, embedder, 128, 32)) for text in texts]
        spent["chunk"] = time.perf_counter() - begun
        bar.advance(task)
        begun = time.perf_counter()
        embedder.embed([piece for each in pieces for piece in each])
        spent["embed"] = time.perf_counter() - begun
        bar.advance(task)
        many = [
            Prepared(Document(str(i), text), tuple(piece), draw(len(piece), 0, 0), "")
            for i, (text, piece) in enumerate(zip(texts, pieces, strict=True))
        ]
        begun = time.perf_counter()
        with collection.store.writing() as writer:
            writer.add(many)
        spent["store"] = time.perf_counter() - begun
        bar.advance(task)
        library.close()
    total = sum(spent.values())
    size = sum(len(text.encode()) for text in texts)
    return {
        "documents": n,
        "chunks": sum(map(len, pieces)),
        "bytes": size,
        "seconds": spent,
        "documents_a_second": n / total,
        "megabytes_a_second": size / 1e6 / total,
    }


def page(numbers: Mapping[str, Any]) -> list[str]:
    taken = numbers["ingestion"]
    total = sum(taken["seconds"].values())
    rows = [
        [
            f"{int(count):,}, {kind}",
            f"{found['recall']:.3f}",
            f"{found['questions_a_second']:,.0f}",
            f"{found['memory_mib']:,.0f}",
            f"{found['file_mib']:,.0f}",
            f"{found['build_seconds']:,.1f}",
        ]
        for count, kinds in numbers["indices"].items()
        for kind, found in kinds.items()
    ]
    return [
        "# Retrieval",
        f"Unit vectors of {DIMENSION} dimensions around one random centre for every {A_CENTRE} of them (seed "
        f"{numbers['settings']['seed']}); {QUESTIONS} questions drawn alike, asked one after another. Recall of the "
        f"{WANTED} nearest is against an exact search in NumPy. Memory is what the process that searches has grown by, "
        "pages of the mapped file included; the system can take those back.",
        report.table(
            ("vectors, kind", "recall@10", "questions/s", "memory, MiB", "file, MiB", "build, s"),
            rows,
        ),
        f"By default a collection is flat up to {FLAT_UNTIL:,} vectors, HNSW up to {HNSW_UNTIL:,} and IVF-PQ above.",
        "## Taking documents in",
        f"{taken['documents']:,} HTML documents, {taken['bytes'] / 1e6:.2f} MB of text, {taken['chunks']:,} chunks: "
        f"{taken['documents_a_second']:.1f} documents and {taken['megabytes_a_second']:.3f} MB a second. Where the "
        "time goes: "
        + ", ".join(f"{part} {report.percent(seconds / total)}" for part, seconds in taken["seconds"].items())
        + ".",
    ]


@app.command()
def main(
    context: typer.Context,
    sizes: Annotated[str, typer.Option(help="Numbers of vectors, separated by commas.")] = "10000,100000,1000000",
    n: Annotated[int, typer.Option(min=8, help="Documents that are taken in.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the vectors.")] = 7,
    out: report.Out = report.RESULTS,
) -> None:
    """Recall, speed and memory of each kind of FAISS index by size, and how fast documents are taken in.

    Writes retrieval.json and .md. With a million vectors more than an hour on two cores.
    """
    settings = dict(context.params)
    conditions = report.conditions("retrieval", settings)
    with report.progress() as bar:
        found = conditions | {
            "indices": indices([int(size) for size in sizes.split(",")], seed, bar),
            "ingestion": ingestion(n, bar),
        }
    report.write(out, "retrieval", found, page(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["index"]:
        kind, count, seed, file = sys.argv[2:]
        print(json.dumps(measure_index(kind, int(count), int(seed), Path(file))))  # type: ignore[arg-type]
    else:
        app()
