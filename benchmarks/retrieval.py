"""Measure FAISS by kind and size: recall, speed, memory, and the time of ingestion.

Vectors are drawn around random centres, as embeddings of texts on common topics lie; questions are drawn like them and
are none of them. Each index is opened and searched in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import ingestion, report
from waver.benchmarks.processes import resident
from waver.retrieval.base import Ids, Vectors
from waver.retrieval.index import FLAT_UNTIL, HNSW_SEARCH, HNSW_UNTIL, STEP, Index, Kind, build, faiss, kind_for

DIMENSION, WANTED = 384, 10
KINDS: tuple[Kind, ...] = ("flat", "hnsw", "ivf_pq")
A_CENTRE = 200
"""Vectors around one centre, on average."""
SPREAD = 1.0
"""Length of what is added to a centre, which has length 1: two of one topic have a cosine of about 1/2."""
QUESTIONS, TIMED, ROUNDS = 200, 50, 5
"""Questions that recall is taken of, how many of them are timed, and how often each: the median of a question's times
counts."""

app = report.command()


def draw(count: int, seed: int, part: int) -> Vectors:
    """Return the `part`-th block of unit vectors `[n, DIMENSION]` of a set of `count`; part -1: the questions."""
    centres = np.random.default_rng((seed, count)).standard_normal((max(1, count // A_CENTRE), DIMENSION), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    n = QUESTIONS if part < 0 else min(STEP, count - part * STEP)
    chance = np.random.default_rng((seed, count, part + 1))
    vectors = chance.standard_normal((n, DIMENSION), np.float32) * np.float32(SPREAD / np.sqrt(DIMENSION))
    vectors += centres[chance.integers(len(centres), size=n)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write_vectors(count: int, seed: int, file: Path) -> None:
    """Draw a set once for all that need it: float32, row after row."""
    with file.open("wb") as stream:
        for part in range(-(-count // STEP)):
            draw(count, seed, part).tofile(stream)


def blocks(file: Path) -> Iterator[Vectors]:
    """Yield the set in blocks `[n, DIMENSION]`; read, not mapped, so that they count as nobody's memory."""
    with file.open("rb") as stream:
        while len(block := np.fromfile(stream, np.float32, STEP * DIMENSION)):
            yield block.reshape(-1, DIMENSION)


def exact(questions: Vectors, file: Path) -> Ids:
    """Return the true nearest of each question `[questions, WANTED]`, without FAISS."""
    scores, found = np.zeros((len(questions), 0), np.float32), np.zeros((len(questions), 0), np.int64)
    start = 0
    for block in blocks(file):
        scores = np.concatenate([scores, questions @ block.T], axis=1)
        here = np.broadcast_to(start + np.arange(len(block)), (len(questions), len(block)))
        found = np.concatenate([found, here], axis=1)
        best = np.argpartition(-scores, WANTED, axis=1)[:, :WANTED]
        scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
        start += len(block)
    return found


def build_index(kind: Kind, count: int, vectors: Path, file: Path) -> float:
    """Return CPU seconds to build an index and write it."""
    begun = time.process_time()
    build(kind, count, DIMENSION, lambda: blocks(vectors), file)
    return time.process_time() - begun


def search_index(kind: Kind, count: int, file: Path, questions: Vectors) -> tuple[Ids, dict[str, float]]:
    """Return what an index finds, `[questions, WANTED]`, asked one question after another, how fast, and in how much
    memory (MiB)."""
    before = resident(os.getpid())
    index = Index(file, kind, count, DIMENSION)
    found = index.search(questions, WANTED)[1]  # reads the pages that it needs
    seconds = np.empty((ROUNDS, min(TIMED, len(questions))))
    for row in seconds:
        for i in range(len(row)):
            begun = time.process_time()
            index.search(questions[i : i + 1], WANTED)
            row[i] = time.process_time() - begun
    spent = np.median(seconds, axis=0)
    return found, {
        "questions_a_second": float(1 / spent.mean()),
        "milliseconds": float(1000 * np.median(spent)),
        "slow_milliseconds": float(1000 * np.quantile(spent, 0.95)),
        "memory_mib": (resident(os.getpid()) - before) / 2**20,
    }


def measure_size(count: int, seed: int, done: dict[str, Any], save: Callable[[], None], bar: Progress) -> None:
    """Measure every kind at one size that is not in `done` yet."""
    task = bar.add_task(f"{count:,} vectors", total=len(KINDS), completed=len(done))
    left = [kind for kind in KINDS if kind not in done]
    if not left:
        return
    with tempfile.TemporaryDirectory() as folder:
        vectors, file = Path(folder) / "vectors.f32", Path(folder) / "index.faiss"
        write_vectors(count, seed, vectors)
        questions = draw(count, seed, -1)
        truth = exact(questions, vectors)
        for kind in left:
            built = build_index(kind, count, vectors, file)
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                found, told = alone.submit(search_index, kind, count, file, questions).result()
            recall = np.mean(
                [len(set(a) & set(b)) / WANTED for a, b in zip(truth.tolist(), found.tolist(), strict=True)]
            )
            done[kind] = {
                "recall": float(recall), **told, "file_mib": file.stat().st_size / 2**20, "build_seconds": built
            }  # fmt: skip
            save()
            bar.advance(task)


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings = numbers["settings"]
    rows = [
        [
            f"{int(count):,}, {kind}{' (default)' if kind == kind_for(int(count)) else ''}",
            f"{found['recall']:.3f}",
            f"{found['questions_a_second']:,.0f}",
            f"{found['milliseconds']:.2f} ({found['slow_milliseconds']:.2f})",
            f"{found['memory_mib']:,.0f}",
            f"{found['file_mib']:,.0f}",
            f"{found['build_seconds']:,.1f}",
        ]
        for count, kinds in numbers["indices"].items()
        for kind in KINDS
        if (found := kinds.get(kind))
    ]
    out = [
        "# Retrieval",
        f"Unit vectors of {DIMENSION} dimensions around one random centre for every {A_CENTRE} of them (seed "
        f"{settings['seed']}). Recall of the {WANTED} nearest is against an exact search in NumPy, over {QUESTIONS} "
        f"questions drawn alike. {TIMED} of them are timed, one after another, {ROUNDS} times each; a search keeps one "
        "core busy, and times are CPU time, so that other work on the machine hardly matters. Memory is what the "
        "process that searches has grown by, pages of the mapped file included; the system can take those back.",
        report.table(
            (
                "vectors, kind",
                "recall@10",
                "questions/s",
                "ms (95th percentile)",
                "memory, MiB",
                "file, MiB",
                "build, s",
            ),
            rows,
        ),
        f"By default a collection is flat up to {FLAT_UNTIL:,} vectors, HNSW up to {HNSW_UNTIL:,} and IVF-PQ above: "
        "flat is exact, and fast enough for few; HNSW answers soonest; IVF-PQ is built in a fraction of its time.",
        f"HNSW searches with a beam of {HNSW_SEARCH}. A beam should be wider than a topic, whose links hardly leave "
        f"it; here a topic has {A_CENTRE} vectors.",
    ]
    if taken := numbers["ingestion"]:
        out += ["## Taking documents in", *ingestion.page(taken)]
    return out


def begun(file: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a run that did not come to its end, to go on with.

    Raises:
        typer.BadParameter: it was run with other settings or packages, or elsewhere.
    """
    old: dict[str, Any] = json.loads(file.read_text()) if file.exists() else new
    for key in ("settings", "versions"):
        if old[key] != new[key]:
            raise typer.BadParameter(f"{file} was made with other {key}: {old[key]}, not {new[key]}.")
    if old["machine"] | {"load": 0} != new["machine"] | {"load": 0}:
        raise typer.BadParameter(f"{file} was made on another machine.")
    return old


@app.command()
def main(
    context: typer.Context,
    sizes: Annotated[str, typer.Option(help="Numbers of vectors, separated by commas.")] = "10000,100000,1000000",
    n: Annotated[int, typer.Option(min=8, help="Documents of each format that are taken in.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the vectors.")] = 7,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out ended.")] = False,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure recall, speed and memory of each kind of FAISS index by size, and how fast documents are taken in.

    Writes retrieval.json and .md after each part. With a million vectors about half an hour on one core, and 5 GiB.
    """
    report.need_extra()
    settings = {key: value for key, value in context.params.items() if key != "resume"}
    found = report.conditions("retrieval", settings)
    found["versions"]["faiss"] = faiss.__version__
    found |= {"indices": {}, "ingestion": {}}
    if resume:
        found = begun(out / "retrieval.json", found)

    def save() -> None:
        report.save(out, "retrieval", found, page(found))

    with report.progress() as bar:
        for count in map(int, sizes.split(",")):
            measure_size(count, seed, found["indices"].setdefault(str(count), {}), save, bar)
        ingestion.measure(n, found["ingestion"], save, bar)
    report.write(out, "retrieval", found, page(found))


if __name__ == "__main__":
    app()
