"""Measure how far answers depend on the wording of a question, by retriever, generator and both (arXiv 2510.04392).

Of questions in several wordings: how alike the passages are that a collection finds for them, how alike the greedy
answers are when all wordings have the passages of the first one, and when each has its own. Finished questions are kept
in OUT, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from pydantic import TypeAdapter

from waver import job
from waver.benchmarks import report
from waver.benchmarks.stats import percentiles, resamples
from waver.concurrency import together
from waver.engines import ModelConfig, TransformersConfig, load_engine
from waver.engines.base import Engine, EngineError, Sampling
from waver.resources import MODELS
from waver.retrieval.base import RetrievalError
from waver.retrieval.config import RetrievalConfig
from waver.retrieval.library import Library
from waver.training.tasks.consistency.measures import answer_consistency, retriever_consistency, split_consistency
from waver.training.tasks.consistency.reward import RIGHT, best_f1
from waver.training.tasks.consistency.sets import WordingSet, asked, read_sets
from waver.training.tasks.consistency.similarity import SIMILARITIES, exact, plain

NAME = "consistency"
ASK = (
    "Question: {}\nFirst answer: {}\nSecond answer: {}\n"
    "Do the two answers say the same? Answer with one word, yes or no."
)
MEASURES = {
    "retriever": "passages in common (Jaccard)",
    "generator": "answers alike, same passages",
    "end_to_end": "answers alike, own passages",
    "generator_judged": "same passages, judged by a model",
    "end_to_end_judged": "own passages, judged by a model",
    "right": "right answers alike, own passages",
    "wrong": "wrong answers alike, own passages",
    "exact_match": "exact match with a known answer",
    "f1": "F1 with a known answer",
}

app = report.command()
Find = Callable[[str], Sequence[str]]


async def greedy(engine: Engine, question: str, max_tokens: int) -> str:
    """Return an engine's greedy answer, without its thought."""
    ids = engine.tokens.chat([{"role": "user", "content": question}])
    how = Sampling(temperature=0.0, max_tokens=max_tokens, logprobs=False)
    async with aclosing(engine.generate(ids, how)) as steps:
        said = engine.tokens.decode([step.token async for step in steps])
    return said.rpartition("</think>")[2].strip()


async def observe(engine: Engine, find: Find | None, of: WordingSet, max_tokens: int) -> dict[str, Any]:
    """Return the passages of every wording, and its answers with the first wording's passages and with its own."""
    found = [list(find(each)) for each in of.questions] if find else [list(each) for each in of.passages]
    own = found or [[] for _ in of.questions]

    async def answers(passages: Sequence[Sequence[str]]) -> list[str]:
        pairs = zip(of.questions, passages, strict=True)
        return list(await asyncio.gather(*(greedy(engine, asked(q, some), max_tokens) for q, some in pairs)))

    apart = await answers(own)
    return {"passages": found, "own": apart, "same": await answers([own[0]] * len(own)) if found else apart}


async def judged(judge: Engine, question: str, answers: Sequence[str]) -> float:
    """Return the share of pairs of answers of which a model says that they say the same."""

    async def same(one: str, other: str) -> float:
        if plain(one) == plain(other):
            return 1.0
        said = await greedy(judge, ASK.format(question, one, other), 8)
        return float(plain(said).startswith("yes"))

    pairs = [(a, b) for i, a in enumerate(answers) for b in answers[i + 1 :]]
    found = await asyncio.gather(*(same(a, b) for a, b in pairs))
    return math.fsum(found) / len(found)


def measured(of: WordingSet, line: Mapping[str, Any], similarity: str) -> dict[str, float]:
    """Return the measures of one question; NaN where one has no meaning."""
    alike, nothing = SIMILARITIES[similarity], float("nan")
    found = {
        "retriever": retriever_consistency(line["passages"]) if line["passages"] else nothing,
        "generator": answer_consistency(line["same"], alike) if line["passages"] else nothing,
        "end_to_end": answer_consistency(line["own"], alike),
        "generator_judged": line.get("same_judged", nothing),
        "end_to_end_judged": line.get("own_judged", nothing),
    }
    if known := list(of.answers):
        right, wrong = split_consistency(line["own"], alike, lambda said: best_f1(said, known) >= RIGHT)
        hits = [max(exact(said, each) for each in known) for said in line["own"]]
        f1 = [best_f1(said, known) for said in line["own"]]
        found |= {"right": right, "wrong": wrong, "exact_match": math.fsum(hits) / len(hits)}
        found |= {"f1": math.fsum(f1) / len(f1)}
    return found


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return mean, interval (a bootstrap over questions) and number of questions of each measure that has a value."""
    found = {}
    for name in MEASURES:
        values = np.array([row[name] for row in rows if not math.isnan(row.get(name, float("nan")))])
        if len(values):
            interval = percentiles(resamples(len(values)) @ values)
            found[name] = {"mean": float(values.mean()), "interval": interval, "questions": len(values)}
    return found


async def run_all(
    engine: Engine,
    judge: Engine | None,
    find: Find | None,
    sets: Sequence[WordingSet],
    max_tokens: int,
    at_once: int,
    file: Path,
) -> list[dict[str, Any]]:
    """Return what was observed of every question, taken from `file` where it stands there already."""
    done = {line["place"]: line for line in job.read_lines(file)}
    free = asyncio.Semaphore(at_once)

    async def one(place: int, advance: Callable[[], None]) -> None:
        of = sets[place]
        async with free:
            line = {"place": place, **await observe(engine, find, of, max_tokens)}
            if judge is not None:
                for kind in ("own", "same"):
                    line[f"{kind}_judged"] = await judged(judge, of.questions[0], line[kind])
        job.append_line(file, line)
        done[place] = line
        advance()

    with report.progress() as bar:
        task = bar.add_task("asking", total=len(sets), completed=len(done))
        await together(*(one(place, lambda: bar.advance(task)) for place in range(len(sets)) if place not in done))
    return [done[place] for place in range(len(sets))]


@app.command()
def main(
    questions: Annotated[Path, typer.Argument(help="JSONL: `questions`, the wordings; `answer`, `passages` if known.")],
    out: report.Out = Path("consistency"),
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML: engines and collections.")] = None,
    engine: Annotated[str, typer.Option(help="The engine that answers.")] = "small",
    judge: Annotated[str | None, typer.Option(help="An engine that judges whether answers say the same.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="The collection to look up in.", show_default="the passages of the file")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Passages for each wording.")] = 5,
    similarity: Annotated[str, typer.Option(help="bleu1, bleu2, bleu3, rouge_l or exact.")] = "bleu2",
    max_tokens: report.MaxTokens = 64,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = 8,
) -> None:
    """Measure how far answers depend on the wording: of a retriever, of a generator, of both."""
    settings = {key: value for key, value in locals().items() if key not in ("questions", "at_once")}
    try:
        numbers = _run(questions, settings, at_once)
    except (ValueError, OSError, EngineError, RetrievalError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    rows = [
        (words, report.percent(each["mean"], each["interval"]), str(each["questions"]))
        for name, words in MEASURES.items()
        if (each := numbers["measures"].get(name))
    ]
    note = f"{numbers['questions']} questions; answers are compared by {similarity}."
    report.write(out, NAME, numbers, ["# Consistency", note, report.table(("measure", "mean", "questions"), rows)])


def _configured(file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the engines and the retrieval of a server's configuration; the bundled pair where none is named."""
    if file is None:
        return {name: TransformersConfig(model=str(MODELS / name)) for name in ("small", "large")}, {}
    read = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return read.get("engines") or {}, read.get("retrieval") or {}


def _run(questions: Path, settings: Mapping[str, Any], at_once: int) -> dict[str, Any]:
    if settings["similarity"] not in SIMILARITIES:
        raise ValueError(f"--similarity is {', '.join(SIMILARITIES)}, not {settings['similarity']!r}")
    sets, (engines, retrieval) = read_sets(questions), _configured(settings["config"])
    names = [name for name in (settings["engine"], settings["judge"]) if name is not None]
    chosen: dict[str, Any] = {}
    for name in names:
        if name not in engines:
            raise ValueError(f"there is no engine {name!r} in the configuration: {', '.join(engines)}")
        chosen[name] = TypeAdapter(ModelConfig).validate_python(engines[name])
    here = report.conditions(NAME, settings)
    here["command"] = here["command"].replace(f"bench {NAME}", f"bench {NAME} {questions}", 1)
    library = None
    try:
        find: Find | None = None
        if settings["collection"] is not None:
            library = Library(RetrievalConfig(**retrieval))
            opened = library.open(settings["collection"])
            find = lambda q: [each.text for each in opened.search_now(q, settings["top_k"])]  # noqa: E731
        record = {**here["settings"], "questions": questions.read_text(encoding="utf-8")}
        job.claim(settings["out"], record | {"models": [chosen[name].model for name in names]})

        async def work() -> list[dict[str, Any]]:
            loaded = {name: await asyncio.to_thread(load_engine, name, each) for name, each in chosen.items()}
            try:
                judge = None if settings["judge"] is None else loaded[settings["judge"]]
                file = settings["out"] / "answers.jsonl"
                return await run_all(
                    loaded[settings["engine"]], judge, find, sets, settings["max_tokens"], at_once, file
                )
            finally:
                for each in loaded.values():
                    await each.aclose()

        lines = asyncio.run(work())
    finally:
        if library is not None:
            library.close()
    rows = [measured(of, line, settings["similarity"]) for of, line in zip(sets, lines, strict=True)]
    return {**here, "questions": len(sets), "measures": summary(rows)}


if __name__ == "__main__":
    app()
