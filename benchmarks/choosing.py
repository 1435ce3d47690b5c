"""Choose among answers and tell which are wrong: on the same questions, every rule and every measure of uncertainty.

All questions are worked several times, as `entropy_judger` draws runs. Then they are answered without working, and
answers to other wordings of them are drawn, as `inv_entropy` does, which costs more. Everything that rules and measures
need is kept, so that a run that is stopped goes on, and tables are made of what is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from waver import job as folder
from waver.answers import number
from waver.benchmarks import report
from waver.benchmarks.choosing_tables import page, summary
from waver.concurrency import together
from waver.engines import TransformersConfig, load_engine
from waver.engines.base import NO_TOKEN, Engine, Sampling
from waver.policies.base import Proceed
from waver.policies.budget import Budget, Ledger, metered
from waver.policies.job import Job, UserTurn
from waver.policies.report import Report
from waver.policies.select.entropy_judger import EntropyJudger
from waver.policies.services import Services
from waver.policies.uncertainty.collect import Collector, Settings
from waver.resources import MODELS
from waver.training.lines import json_lines

NAME = "choosing"
LINES = "answers.jsonl"
WORKED = "\nWork it out in one or two short sentences, and end with the final answer, a number."
SHORT = "Answer with the number only."
SHORT_TOKENS = 12
UNBOUNDED = 2**31
RUN = ("answer", "entropy", "tokens", "features")
"""Fields of a run that are kept."""

app = report.command()


def read(file: Path, n: int, seed: int) -> list[dict[str, str]]:
    """Read questions and answers (`question` and `answer`, or `input` and `target`, as MultiArith has them), of which
    `n` are drawn.

    Raises:
        ValueError: a line has neither, or an answer is no number.
    """
    rows = []
    for where, line in json_lines(file):
        own = line if isinstance(line, dict) else {}
        question, answer = own.get("question", own.get("input")), own.get("answer", own.get("target"))
        if not isinstance(question, str) or answer is None:
            raise ValueError(f"{where}: there is no question with an answer")
        known = str(answer).rsplit("####", 1)[-1].strip()  # GSM8K's answers end so
        try:
            number("0", known)
        except (ArithmeticError, ValueError):
            raise ValueError(f"{where}: the answer {known[:40]!r} is no number") from None
        rows.append({"question": question, "answer": known})
    random.Random(seed).shuffle(rows)
    return rows[:n]


class Asking:
    """Asks an engine one question after the other."""

    def __init__(self, engine: Engine, settings: Mapping[str, Any]) -> None:
        self.engine, self.settings = engine, settings
        self.services = Services({engine.name: engine}, extra_tokens=UNBOUNDED)

    def job(self, words: str, max_tokens: int, temperature: float, seed: int) -> Job:
        tokens, message = self.engine.tokens, {"role": "user", "content": words}
        turn = UserTurn(words, lambda more: tokens.chat([{"role": "user", "content": more + words}]))
        sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
        found = Report(parameters={self.engine.name: self.engine.parameters})
        ids = tuple(tokens.chat([message]))
        return Job(ids, sampling, self.engine.name, self.services, found, turn, (message,))

    async def worked(self, place: int, row: Mapping[str, str]) -> dict[str, Any]:
        """Work a question several times."""
        return {"place": place, "runs": await self.runs(row["question"], row["answer"], self.settings["seed"] + place)}

    async def measured(self, place: int, row: Mapping[str, str], worked: str) -> dict[str, Any]:
        """Answer a question and other wordings of it without working, and ask whether both its answers are true."""
        seed, question = self.settings["seed"] + place, row["question"]
        short, entropies, evidence = await self.evidence(question, seed)
        collector = self.collector(question, seed)
        texts = {"worked": worked, "short": short}
        verdicts = await together(*(self.verdict(collector, question, each) for each in texts.values()))
        return {
            "place": place,
            "short": {"text": short, "entropies": entropies, "right": number(short, row["answer"])},
            "true": dict(zip(texts, verdicts, strict=True)),
            **evidence,
        }

    async def runs(self, question: str, answer: str, seed: int) -> list[dict[str, Any]]:
        """Work a question several times."""
        own = self.job(question + WORKED, self.settings["max_tokens"], 1.0, seed)
        policy = EntropyJudger(samples=self.settings["samples"], select="vote", features=True)
        async for _ in Proceed((policy,))(own):
            pass
        told = own.report.extra["selection"]["runs"]
        return [
            {"right": number(each["text"], answer), "text": each["text"], **{name: each[name] for name in RUN}}
            for each in told
        ]

    def collector(self, question: str, seed: int) -> Collector:
        given = self.settings
        how = Settings(given["perturbations"], given["replications"], 0.7, SHORT_TOKENS, SHORT, similarity="words")
        return Collector(self.job(question, 1, 1.0, seed), how, Ledger(), Budget(UNBOUNDED), seed)

    async def evidence(self, question: str, seed: int) -> tuple[str, list[float], dict[str, Any]]:
        """Answer a question shortly, and draw answers to it and to other wordings of it. Returns the answer, its
        entropies, and the rest."""
        ledger = Ledger()
        given = self.job(f"{question}\n{SHORT}", SHORT_TOKENS, 0.0, seed)
        steps, _ = await metered(given, Proceed(), ledger, None)
        drawn = [step for step in steps if step.token != NO_TOKEN]
        collector = self.collector(question, seed)
        found = await collector.collect({"variants"}, "", ())
        text = self.engine.tokens.decode([step.token for step in drawn]).strip()
        made = {
            "variants": list(found.variants),
            "answers": [[asdict(said) for said in own] for own in found.answers],
            "tokens": {"variants": collector.ledger.total, "short": ledger.total},
        }
        return text, [step.entropy for step in drawn], made

    async def verdict(self, collector: Collector, question: str, answer: str) -> float:
        found = await collector.collect({"verdict"}, answer, ())
        assert found.true is not None
        return found.true


def known(work: Path) -> dict[int, dict[str, Any]]:
    """Return what is there of each question, by its place."""
    found: dict[int, dict[str, Any]] = {}
    for line in folder.read_lines(work / LINES):
        found.setdefault(line["place"], {}).update(line)
    return found


async def draw(engine: Engine, rows: Sequence[Mapping[str, str]], settings: Mapping[str, Any], work: Path) -> None:
    """Ask for so many minutes what is not there yet: first all runs, then answers to other wordings."""
    asking, until = Asking(engine, settings), time.monotonic() + 60 * settings["minutes"]
    free = asyncio.Semaphore(settings["at_once"])

    async def one(make: Callable[[], Awaitable[dict[str, Any]]], advance: Callable[[], None]) -> None:
        async with free:
            if time.monotonic() < until:
                folder.append_line(work / LINES, await make())
                advance()

    with report.progress() as bar:
        done = known(work)
        left = [place for place in range(len(rows)) if "runs" not in done.get(place, {})]
        task = bar.add_task("working", total=len(rows), completed=len(rows) - len(left))
        step = partial(bar.advance, task)
        await together(*(one(partial(asking.worked, place, rows[place]), step) for place in left))
        done = known(work)
        wanted = [place for place in done if place < settings["evidence"]]
        left = [place for place in wanted if "answers" not in done[place]]
        task = bar.add_task("measuring", total=len(wanted), completed=len(wanted) - len(left))
        step = partial(bar.advance, task)
        texts = {place: done[place]["runs"][0]["text"] for place in left}
        await together(*(one(partial(asking.measured, place, rows[place], texts[place]), step) for place in left))


@app.command()
def main(
    context: typer.Context,
    questions: Annotated[Path, typer.Argument(exists=True, help="JSONL: `question` and `answer`, a number.")],
    model: Annotated[str, typer.Option(help="The model's folder.")] = str(MODELS / "large"),
    n: Annotated[int, typer.Option(min=2, help="Questions, drawn from the file.")] = 100,
    evidence: Annotated[
        int, typer.Option(min=0, help="Questions of which answers to other wordings are drawn, the first ones.")
    ] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Runs of each question.")] = 5,
    perturbations: Annotated[int, typer.Option(min=1, help="Other wordings of each question.")] = 5,
    replications: Annotated[int, typer.Option(min=1, help="Short answers to each wording.")] = 3,
    max_tokens: report.MaxTokens = 256,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = 12,
    minutes: Annotated[float, typer.Option(min=0, help="No question is begun after that; 0: tables only.")] = 60,
    embedder: Annotated[
        str | None, typer.Option(help="A sentence-transformers model, to compare texts with it as well.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where the answers are kept.")] = Path("data/choosing"),
    seed: report.Seed = 0,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare ways to choose among answers, and measures of uncertainty, on questions with numbers for answers."""
    settings = {name: value for name, value in context.params.items() if name not in ("work", "questions")}
    try:
        rows = read(questions, n, seed)
        kept = {each: settings[each] for each in ("samples", "perturbations", "replications", "max_tokens", "seed")}
        digest = hashlib.sha256(questions.read_bytes()).hexdigest()
        folder.claim(work, {**kept, "model": Path(model).name, "questions": digest, "n": n})
        if minutes > 0:
            config = TransformersConfig(model=model, dtype="float32", max_sequences=at_once * samples)
            engine = load_engine("model", config)
            asyncio.run(_draw_and_close(engine, rows, settings, work))
        lines = list(known(work).values())
        here = report.conditions(NAME, {**settings, "model": Path(model).name})
        here["command"] = here["command"].replace(f"bench {NAME}", f"bench {NAME} {questions.name}", 1)
        found = {**here, "model": Path(model).name, **summary(lines, embedder)}
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    report.write(out, NAME, found, page(found))


async def _draw_and_close(engine: Engine, *rest: Any) -> None:
    try:
        await draw(engine, *rest)
    finally:
        await engine.aclose()


if __name__ == "__main__":
    app()
