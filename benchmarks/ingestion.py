"""Time the ingestion of documents by part: files through `waver.retrieval.ingest`, each part on one clock.

Every file is parsed, cut, embedded, indexed and written as `waver ingest` does it; the parts' own times add up to the
whole.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.progress import Progress

from waver.benchmarks import report
from waver.retrieval import collection, faiss_writer
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.embedder import Embedder
from waver.retrieval.faiss_writer import FaissWriter
from waver.retrieval.ingest import ingest
from waver.retrieval.library import Library
from waver.retrieval.parsing import Parsers
from waver.training.pair.world import documents

ROUNDS = 3
"""Runs of which the median is taken, part by part."""
PARAGRAPHS = 8
"""Of a document, each of five sentences: about 1.3 kB."""
PARTS: tuple[tuple[str, Any, str], ...] = (
    ("parse", Parsers, "parse"),
    ("chunk", collection, "chunks"),
    ("chunk", collection, "lead"),
    ("embed", Embedder, "embed"),
    ("index", faiss_writer, "build"),
    ("write", FaissWriter, "stage"),
    ("write", FaissWriter, "publish"),
    ("write", FaissWriter, "compact"),
)
"""Functions of each part of an ingestion. `index` makes a FAISS file and syncs it, `write` is SQLite and digests."""
REST = "rest"
"""Reading files, digests of documents, locks."""
NAMES = (*dict.fromkeys(part for part, _, _ in PARTS), REST)


class Clock:
    """A clock by part: time that one part spends inside another counts once, for the inner one. For one thread."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._parts = [REST]
        self._since = time.perf_counter()

    def charge(self) -> None:
        """Give the time since the last call to the part that had it."""
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        self.charge()
        self._parts.append(part)
        try:
            yield
        finally:
            self.charge()
            self._parts.pop()

    def watch(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function on the clock; what it yields is made at once, so that its time is its own."""

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.on(part):
                found = work(*arguments, **named)
                return list(found) if isinstance(found, Iterator) else found

        return timed


@contextmanager
def parts_timed() -> Iterator[Mapping[str, float]]:
    """Yield seconds by part of all ingestion inside; complete at the end."""
    clock = Clock()
    with ExitStack() as stack:
        for part, owner, name in PARTS:
            stack.enter_context(patch.object(owner, name, clock.watch(part, getattr(owner, name))))
        yield clock.seconds
        clock.charge()


def txt(title: str, paragraphs: Sequence[str]) -> bytes:
    return "\n\n".join([title, *paragraphs]).encode()


def md(title: str, paragraphs: Sequence[str]) -> bytes:
    return "\n\n".join([f"# {title}", *(f"- **{each}**" for each in paragraphs)]).encode()


def html(title: str, paragraphs: Sequence[str]) -> bytes:
    return (
        f"<!doctype html><html><head><title>{title}</title><style>p {{ margin: 0 }}</style></head><body><nav><ul>"
        "<li><a href='/'>Home</a></li></ul></nav>" + "".join(f"<p>{each}</p>" for each in paragraphs) + "</body></html>"
    ).encode()


def pdf(title: str, paragraphs: Sequence[str]) -> bytes:
    """Return one page with a text layer."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    page, out = Figure(figsize=(8.3, 11.7)), io.BytesIO()
    page.text(0.1, 0.95, "\n\n".join(map(fill, [title, *paragraphs])), va="top", weight="medium")
    with rc_context({"pdf.use14corefonts": True}):
        page.savefig(out, format="pdf")
    return out.getvalue()


FORMATS: dict[str, Callable[[str, Sequence[str]], bytes]] = {"txt": txt, "md": md, "html": html, "pdf": pdf}


def write_files(folder: Path, kind: str, n: int) -> int:
    """Make `n` documents of one format, no two alike; the bytes of their text."""
    texts = [document.text for document in documents()]
    size = 0
    for i in range(n):
        paragraphs = [texts[(3 * i + j) % len(texts)] for j in range(PARAGRAPHS)]
        (folder / f"{i:05}.{kind}").write_bytes(FORMATS[kind](f"Town book {i}", paragraphs))
        size += len("\n\n".join(paragraphs).encode())
    return size


def measure_format(kind: str, n: int) -> dict[str, Any]:
    """Return seconds of each part of taking in `n` documents of one format."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "files"
        source.mkdir()
        size = write_files(source, kind, n)
        library = Library(RetrievalConfig(path=Path(scratch) / "collections"))
        library.embedder().embed(["loads the model"])
        runs: list[Mapping[str, float]] = []
        for number in range(ROUNDS):
            into = library.create(f"round{number}")
            with parts_timed() as spent:
                outcomes = list(ingest(into, library.parsers, source))
            if any(each.state != "added" for each in outcomes):
                raise RuntimeError(f"not every document was taken in: {outcomes}")
            runs.append(spent)
        chunks = into.info().chunks
        library.close()
    seconds = {part: float(np.median([run[part] for run in runs])) for part in NAMES}
    total = sum(seconds.values())
    return {
        "documents": n,
        "chunks": chunks,
        "bytes": size,
        "seconds": seconds,
        "documents_a_second": n / total,
        "megabytes_a_second": size / 1e6 / total,
    }


def measure(n: int, done: dict[str, Any], save: Callable[[], None], bar: Progress) -> None:
    """Measure every format that is not in `done` yet."""
    task = bar.add_task(f"{n:,} documents of each format", total=len(FORMATS), completed=len(done))
    for kind in FORMATS:
        if kind not in done:
            done[kind] = measure_format(kind, n)
            save()
            bar.advance(task)


def page(found: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            kind,
            f"{taken['documents_a_second']:.1f}",
            f"{taken['megabytes_a_second']:.3f}",
            *(report.percent(taken["seconds"][part] / sum(taken["seconds"].values())) for part in NAMES),
        ]
        for kind, taken in found.items()
    ]
    one = next(iter(found.values()))
    return [
        f"{one['documents']:,} files of each format into an empty collection, one process; each holds about "
        f"{one['bytes'] / one['documents'] / 1000:.1f} kB of text and becomes {one['chunks'] / one['documents']:.1f} "
        f"chunks. MB are of that text. Medians of {ROUNDS} runs, part by part; `index` is making the FAISS files, "
        "`write` SQLite and what makes it safe, `rest` reading files and their digests.",
        report.table(("format", "documents/s", "MB/s", *NAMES), rows),
    ]
