"""Measure ways to embed the chunks of real documents: documents a second, and how far the vectors move.

All ways take turns on the same chunks in one run, so that a machine that is busy elsewhere slows them alike.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from waver.benchmarks import report
from waver.benchmarks.round_trip import chosen
from waver.retrieval.base import RetrievalError, Vectors
from waver.retrieval.chunking import chunks
from waver.retrieval.embedder import Embedder
from waver.retrieval.parsing import Parsers
from waver.retrieval.weights import locate

TEXTS = 16
"""Texts of a batch as it was before: of one document, by their characters."""
Chunks = Sequence[Sequence[str]]
"""By document."""
Way = Callable[[Chunks], Vectors]

app = report.command()


def one_by_one(embedder: Embedder) -> Way:
    """Return what `waver ingest` did before: each document alone, in batches of `TEXTS` texts."""

    def embed(documents: Chunks) -> Vectors:
        found = []
        for texts in documents:
            vectors = np.empty((len(texts), embedder.dimension), np.float32)
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            for start in range(0, len(order), TEXTS):
                some = order[start : start + TEXTS]
                vectors[some] = embedder.model.encode(
                    [texts[i] for i in some], batch_size=TEXTS, normalize_embeddings=True, show_progress_bar=False
                )
            found.append(vectors)
        return np.concatenate(found)

    return embed


def together(embedder: Embedder, group: int) -> Way:
    """Return what it does now: the chunks of several documents, about `group` of them, in batches of equal work."""

    def embed(documents: Chunks) -> Vectors:
        found: list[Any] = []
        waiting: list[Any] = []
        for texts in documents:
            waiting += texts
            if len(waiting) >= group:
                found.append(embedder.embed(waiting))
                waiting = []
        return np.concatenate([*found, embedder.embed(waiting)])

    return embed


def quantised(embedder: Embedder) -> Embedder:
    """Return an embedder whose linear layers multiply in 8 bits, inputs scaled as they come."""
    out = copy.copy(embedder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch moves it to a package of its own
        warnings.simplefilter("ignore", UserWarning)
        out._model = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(embedder.model), {torch.nn.Linear}, torch.qint8
        )
    return out


def by_onnx(embedder: Embedder) -> Embedder | None:
    """Return an embedder that ONNX Runtime runs; None where it or `optimum` is missing or does not fit."""
    from sentence_transformers import SentenceTransformer

    out = copy.copy(embedder)
    try:
        out._model = SentenceTransformer(str(locate(embedder.name)), backend="onnx", local_files_only=True)
    except Exception as error:
        report.console.print(f"ONNX Runtime is left out: {error}", markup=False)
        return None
    return out


def ways(name: str, group: int) -> dict[str, Way]:
    """Return what is measured; ONNX where its packages are installed."""
    plain = Embedder(name)
    plain.embed(["loads the model"])
    onnx = by_onnx(plain)
    return {
        "before: one document, 16 texts a batch": one_by_one(plain),
        "several documents, by tokens": together(plain, group),
        "the same in bfloat16": together(Embedder(name, precision="bfloat16"), group),
        "the same in int8": together(quantised(plain), group),
    } | ({} if onnx is None else {"the same by ONNX Runtime": together(onnx, group)})


def read(folder: Path, n: int, seed: int, embedder: Embedder) -> Chunks:
    """Return the chunks of `n` documents of a folder, cut as by default."""
    documents = []
    with Parsers(64 * 2**20, 64 * 2**20, 60.0, 2 * 2**30) as parsers:
        for _, file, _ in chosen([folder], ("markdown", "html"), n, seed)[:n]:
            try:
                documents.append(list(chunks(parsers.parse(file.read_bytes(), file.name).text, embedder, 128, 32)))
            except RetrievalError:
                continue
    return documents


PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm")
"""Matrix products, by PyTorch's names."""


@torch.inference_mode()
def profiled(embedder: Embedder, texts: Sequence[str]) -> dict[str, float]:
    """Return what embedding texts in float32 spends its time on: the part in matrix products, how many of their
    operations are done in a second, and how many of the largest layer's product alone are, which is the most that this
    processor does."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        embedder.embed(texts)
    events = profile.key_averages()
    whole = sum(each.self_cpu_time_total for each in events) / 1e6
    products = [each for each in events if each.key in PRODUCTS]
    seconds = sum(each.self_cpu_time_total for each in products) / 1e6
    matrices = [each.weight for each in embedder.model.modules() if isinstance(each, torch.nn.Linear)]
    matrix = max(matrices, key=torch.Tensor.numel)
    rows = torch.randn(4096, matrix.shape[1])
    alone = []
    for _ in range(20):
        begun = time.perf_counter()
        torch.nn.functional.linear(rows, matrix)
        alone.append(time.perf_counter() - begun)
    return {
        "share": seconds / whole,
        "operations": sum(each.flops for each in products) / seconds,
        "alone": 2 * rows.numel() * matrix.shape[0] / min(alone),
    }


def page(found: Mapping[str, Any]) -> list[str]:
    base = next(iter(found["ways"].values()))["processor_seconds"]
    rows = []
    for name, way in found["ways"].items():
        ratios = np.array(base) / np.array(way["processor_seconds"])
        rows.append(
            [
                name,
                f"{found['documents'] / float(np.median(way['processor_seconds'])):.2f}",
                f"{found['chunks'] / float(np.median(way['processor_seconds'])):.1f}",
                f"{float(np.median(ratios)):.2f} ({ratios.min():.2f}–{ratios.max():.2f})",
                f"{way['cosine']['mean']:.5f} ({way['cosine']['lowest']:.5f})",
            ]
        )
    return [
        "# Embedding documents",
        f"{found['documents']:,} documents, {found['chunks']:,} chunks of at most 128 tokens, of which "
        f"{found['distinct']:,} are different; {found['tokens']:,} tokens. {found['threads']} threads. The ways take "
        f"turns, {len(base)} rounds: medians, and ratios to the first way with their range. Seconds are a processor's, "
        "all threads together, so that others on the machine count for little. Cosines are to the first way.",
        report.table(("way", "documents/s", "chunks/s", "times the first", "cosine, mean (lowest)"), rows),
        f"In float32, {found['profile']['share']:.0%} of the time of the second way are matrix products, of which "
        f"{found['profile']['operations'] / 1e9:.0f} thousand million operations are done a second; the product of the "
        f"largest layer alone, again and again, reaches {found['profile']['alone'] / 1e9:.0f}.",
    ]


@app.command()
def main(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Markdown and HTML files.")],
    n: Annotated[int, typer.Option(min=1, help="Documents.")] = 20,
    group: Annotated[int, typer.Option(min=1, help="Chunks that are embedded together.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in which every way has one turn.")] = 3,
    embedder: Annotated[str, typer.Option(help="A sentence-transformers model.")] = "all-MiniLM-L6-v2",
    seed: Annotated[int, typer.Option(help="Seed of the choice of documents.")] = 7,
    out: report.Out = report.RESULTS,
) -> None:
    """Measure how fast chunks are embedded document by document, together, and with coarser numbers.

    Writes embedding.json and .md.
    """
    found = report.conditions("embedding", {key: value for key, value in context.params.items() if key != "folder"})
    found["command"] = found["command"].replace("waver bench embedding", f"waver bench embedding {folder}", 1)
    plain = Embedder(embedder)
    documents = read(folder, n, seed, plain)
    texts = [text for each in documents for text in each]
    counts = plain.count(texts)
    found |= {"documents": len(documents), "chunks": len(texts), "distinct": len(set(texts)), "tokens": sum(counts)}
    found |= {"threads": torch.get_num_threads(), "ways": {}}
    measured = ways(embedder, group)
    exact: Vectors | None = None
    with report.progress() as bar:
        task = bar.add_task("rounds", total=rounds * len(measured))
        for _ in range(rounds):
            for name, way in measured.items():
                begun, spent = time.perf_counter(), time.process_time()
                vectors = way(documents)
                seconds, spent = time.perf_counter() - begun, time.process_time() - spent
                exact = vectors if exact is None else exact
                cosine = (exact * vectors).sum(axis=1)
                row = found["ways"].setdefault(name, {"seconds": [], "processor_seconds": []})
                row["seconds"].append(seconds)
                row["processor_seconds"].append(spent)
                row["cosine"] = {"mean": float(cosine.mean()), "lowest": float(cosine.min())}
                bar.advance(task)
    found["profile"] = profiled(plain, texts)
    report.write(out, "embedding", found, page(found))


if __name__ == "__main__":
    app()
