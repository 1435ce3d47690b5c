"""Measure search on a collection with judgements, by meaning, by words, by both and reranked.

A document's place is that of its best passage. The collection is kept in `--work`, so that a run that is stopped goes
on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from waver.benchmarks import locomo_data, report
from waver.benchmarks.judged import (
    Judged,
    NotJudged,
    average_precision,
    load,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
)
from waver.benchmarks.stats import percentiles, resamples
from waver.retrieval.base import EmbeddedDocument, Mode, NoCollection, Passage
from waver.retrieval.collection import AT_LEAST, Collection, CutDocument
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.fusion import blend, fuse
from waver.retrieval.library import Library

MODES: Mapping[str, tuple[Mode, bool]] = {
    "lexical": ("lexical", False),
    "dense": ("dense", False),
    "hybrid": ("hybrid", False),
    "reranked": ("hybrid", True),
}
"""Each with its mode, and whether a reranker orders the best."""
PASSAGES, SHOWN = 1000, 10
"""Passages of which a ranking of documents is made, and passages of a search that is timed."""
MEASURES: Mapping[str, Callable[[Sequence[str], Mapping[str, int]], float]] = {
    "nDCG@10": ndcg,
    "recall@10": lambda ranking, relevance: recall(ranking, relevance, 10),
    "recall@100": lambda ranking, relevance: recall(ranking, relevance, 100),
    "MRR@10": reciprocal_rank,
    "MAP": average_precision,
    "P@30": lambda ranking, relevance: precision(ranking, relevance, 30),
}
SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
"""Weights of the ranking by meaning that are tried."""
AT_ONCE = 64
"""Documents that are added at a time."""

app = report.command()


def documents(passages: Sequence[Passage], question: str) -> list[str]:
    """Return the documents of passages, each at the place of its first one; a question is no answer to itself."""
    return [each for each in dict.fromkeys(passage.document for passage in passages) if each != question]


def fill(collection: Collection, judged: Judged, embed: bool, advance: Callable[[int], None]) -> dict[str, float]:
    """Bring all documents into a collection, those that are not there yet, and return how many in how many seconds.

    Args:
        embed: embed them; otherwise they can be found by words alone.
    """
    documents = [each for each in judged.documents.values() if each.text.strip()]
    left = [each for each in documents if collection.store.digest(each.id) is None]
    advance(len(documents) - len(left))
    begun = time.perf_counter()
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        if embed:
            collection.add(some)
        else:
            with collection.store.writing() as writer:
                writer.add([unembedded(collection.cut(each), collection.spec.dimension) for each in some])
        advance(len(some))
    collection.compact()
    return {"documents": len(left), "seconds": time.perf_counter() - begun}


def unembedded(cut: CutDocument, dimension: int) -> EmbeddedDocument:
    """Return a document whose chunks all have one vector."""
    vectors = np.full((len(cut.chunks), dimension), dimension**-0.5, np.float32)
    return EmbeddedDocument(cut.document, cut.chunks, vectors, "")


def measured(
    judged: Judged, rankings: Mapping[str, Sequence[str]], seconds: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return each measure with its 95 % bootstrap interval over the questions, and a search's milliseconds."""
    asked = list(rankings)
    chance = resamples(len(asked))
    found: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        values = np.array([measure(rankings[each], judged.judgements[each]) for each in asked])
        found[name] = {"mean": float(values.mean()), "interval": percentiles(chance @ values)}
    if seconds is not None:
        found["milliseconds"] = [1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.95)]
    return found


def search(collection: Collection, judged: Judged, name: str, advance: Callable[[int], None]) -> dict[str, Any]:
    """Ask every question in one way; times are of a search for `SHOWN` passages, the question's vector included."""
    mode, rerank = MODES[name]
    rankings, seconds = {}, []
    for question in judged.asked():
        text = judged.questions[question]
        collection.embedder.forget()
        begun = time.perf_counter()
        shown = collection.search_now(text, SHOWN, mode=mode, rerank=rerank)
        seconds.append(time.perf_counter() - begun)
        more = collection.search_now(text, PASSAGES, mode=mode, rerank=False)
        rankings[question] = documents([*shown, *more], question)
        advance(1)
    return measured(judged, rankings, seconds)


def fusions(collection: Collection, judged: Judged, advance: Callable[[int], None]) -> dict[str, dict[str, float]]:
    """Return nDCG@10 by the way to fuse both rankings and the weight of the one by meaning, the rest of 1 being that of
    the words."""
    asked = judged.asked()
    sums = {way: dict.fromkeys(SHARES, 0.0) for way in ("scores", "ranks")}
    for question in asked:
        text = judged.questions[question]
        found = collection.store.find(collection.embedder.question(text), text, AT_LEAST, {})
        known = {(each.document, each.chunk): each for ranking in found for each in ranking}
        scored = [[((each.document, each.chunk), each.score) for each in ranking] for ranking in found]
        ranks = [[key for key, _ in ranking] for ranking in scored]
        for share in SHARES:
            weights = (share, 1 - share)
            for way, fused in (("scores", blend(scored, weights)), ("ranks", fuse(ranks, weights))):
                ranking = documents([known[key] for key, _ in fused], question)
                sums[way][share] += ndcg(ranking, judged.judgements[question])
        advance(1)
    return {way: {f"{share:g}": each / len(asked) for share, each in totals.items()} for way, totals in sums.items()}


def measure_size(
    library: Library, name: str, judged: Judged, tuned: Judged | None, tokens: int, ways: Sequence[str], bar: Progress
) -> dict[str, Any]:
    """Measure one size of chunks in several ways."""
    embed = list(ways) != ["lexical"]
    name = f"{name}-{tokens}" if embed else f"{name}-{tokens}-words"
    try:
        collection = library.open(name)
    except NoCollection:
        collection = library.create(name, None, tokens, tokens // 4)
    if library.rerankers:  # for this run alone: it is no property of the documents
        collection.reranker = library.reranker()

    def step(what: str, total: int) -> Callable[[int], None]:
        task = bar.add_task(f"{what}, {tokens} tokens", total=total)
        return lambda count: bar.advance(task, count)

    out: dict[str, Any] = {"filled": fill(collection, judged, embed, step("documents", len(judged.documents)))}
    out["chunks"] = collection.info().chunks
    out["modes"] = {way: search(collection, judged, way, step(way, len(judged.asked()))) for way in ways}
    if tuned is not None and embed:
        out["fusions"] = fusions(collection, tuned, step("weights", len(tuned.asked())))
    return out


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    out = [
        "# Search",
        f"The collection {found['collection']}: {found['documents']:,} documents, {found['questions']:,} questions "
        f"with judgements. Embedder {settings['embedder']}. A document's place is that of its best passage of "
        f"{PASSAGES}. Intervals are 95 %, by bootstrap over the questions; ms are of a search for {SHOWN} passages, "
        "the vector of the question included (median, 95th percentile).",
    ]
    rows = []
    for size, at_size in found["sizes"].items():
        for mode, values in at_size["modes"].items():
            cells = [_cell(values[name]) for name in MEASURES]
            times = "{:.0f} ({:.0f})".format(*values["milliseconds"])
            rows.append([f"{mode}, {size} tokens", *cells, times])
    out.append(report.table(("search, chunk", *MEASURES, "ms"), rows))
    tried = [(size, each["fusions"]) for size, each in found["sizes"].items() if each.get("fusions")]
    if tried:
        out += [
            "## Weights",
            f"nDCG@10 on the questions of the split {settings['tune']}, by the weight of the ranking by meaning "
            f"(`retrieval.dense_weight`), of the first {AT_LEAST} passages of both rankings: fused by their scores, as "
            "searches are, and by reciprocal ranks.",
            report.table(
                ("chunk, tokens", "fused by", *map("{:g}".format, SHARES)),
                [
                    [size, way, *(f"{value:.4f}" for value in values.values())]
                    for size, ways in tried
                    for way, values in ways.items()
                ],
            ),
        ]
    return out


def _cell(value: Mapping[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['mean']:.4f} ({low:.3f}–{high:.3f})"


@app.command()
def main(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(exists=True, help="A collection in BEIR's or TREC's form, or the ZIP of LoCoMo.")
    ],
    split: Annotated[str, typer.Option(help="Judgements that are measured, in BEIR's form.")] = "test",
    tune: Annotated[str | None, typer.Option(help="Judgements on which weights are compared, another split.")] = None,
    chunk_tokens: Annotated[str, typer.Option(help="Sizes of chunks, separated by commas.")] = "128",
    embedder: Annotated[str, typer.Option(help="A sentence-transformers model.")] = "all-MiniLM-L6-v2",
    reranker: Annotated[str | None, typer.Option(help="A cross-encoder; hybrid is measured with it, too.")] = None,
    ways: Annotated[str, typer.Option(help="Of lexical, dense and hybrid; reranked comes with a reranker.")] = (
        "lexical,dense,hybrid"
    ),
    n: Annotated[int | None, typer.Option(min=1, help="Ask the first n questions only.")] = None,
    work: Annotated[Path, typer.Option(help="Where the collections are kept.")] = Path("data/search"),
    out: report.Out = report.RESULTS,
) -> None:
    """Measure search on a collection with judgements, as BEIR and TREC have them.

    Of LoCoMo's conversations every turn is a document, and a question's evidence is what is relevant; the splits are
    `train`, the first four conversations, and `test`. Writes search_FOLDER.json and .md, after each part.
    """
    try:
        read = load if folder.is_dir() else locomo_data.judged
        judged = read(folder, split)
        tuned = read(folder, tune) if tune else None
    except NotJudged as error:
        report.console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None
    settings = {k: v for k, v in context.params.items() if k not in ("work", "folder")}
    name = f"search_{folder.stem.lower().replace('-', '_')}"
    found = report.conditions("search", settings)
    found["command"] = found["command"].replace("waver bench search", f"waver bench search {folder.name}", 1)
    if n is not None:
        judged = replace(judged, questions={each: judged.questions[each] for each in judged.asked()[:n]})
    found |= {"collection": folder.name, "documents": len(judged.documents), "questions": len(judged.asked())}
    found["sizes"] = {}
    wanted = [way for way in MODES if way in ways.split(",") or (way == "reranked" and reranker)]
    rerankers = () if reranker is None else (reranker,)
    library = Library(RetrievalConfig(path=work, embedder=embedder, rerankers=rerankers))
    try:
        with report.progress() as bar:
            for tokens in map(int, chunk_tokens.split(",")):
                found["sizes"][str(tokens)] = measure_size(
                    library, folder.stem.lower(), judged, tuned, tokens, wanted, bar
                )
                report.save(out, name, found, page(found))
    finally:
        library.close()
    report.write(out, name, found, page(found))


if __name__ == "__main__":
    app()
