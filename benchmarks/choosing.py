"""Choose among answers and tell which are wrong: on the same questions, every rule and every measure of uncertainty.

All questions are worked several times, as `entropy_judger` draws runs. Then they are answered without working, and
answers to other wordings of them are drawn, as `inv_entropy` does, which costs more; of some also at other
temperatures, with which an uncertainty should rise. Everything that rules and measures need is kept, so that a run that
is stopped goes on, and tables are made of what is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from waver import job as folder
from waver.benchmarks import report
from waver.benchmarks.choosing_tables import HEATS, OWN_HEAT, page, summary
from waver.benchmarks.one_engine import UNBOUNDED, OneEngine, keep, opened
from waver.benchmarks.quality_tasks import PYTHON, Item, digest, draws, is_right, tasks
from waver.clients.questions import Refused
from waver.concurrency import together
from waver.engines.base import NO_TOKEN
from waver.policies.base import Proceed
from waver.policies.budget import Budget, Ledger, metered
from waver.policies.select.entropy_judger import EntropyJudger
from waver.policies.uncertainty.collect import Collector, Settings
from waver.policies.uncertainty.evidence import Said
from waver.python_tests import Runner
from waver.resources import MODELS

NAME = "choosing"
LINES = "answers.jsonl"
SHORT = {
    "numeric": "Answer with the number only.",
    "number": "Answer with the number only.",
    "choice": "Answer with the letter only.",
}
"""Instructions to answer without working, by scorer."""
CONCISELY = "Answer in a few words only."
SHORT_TOKENS = 12
PREPARES = {"answers": "runs", "heated": "variants"}
"""The part of a question that must be there before another can be drawn."""
RUN = ("answer", "entropy", "tokens", "features")
"""Fields of a run that are kept."""

app = report.command()


class Asking:
    """Asks an engine one question after the other."""

    def __init__(self, on: OneEngine, instruction: str, settings: Mapping[str, Any]) -> None:
        self.on, self.instruction, self.settings = on, instruction, settings
        self.runner = Runner()

    async def worked(self, place: int, item: Item) -> dict[str, Any]:
        """Work a question several times."""
        words, seed = item.asked(self.instruction), self.settings["seed"] + place
        own = self.on.job(words, self.settings["max_tokens"], 1.0, seed)
        policy = EntropyJudger(samples=self.settings["samples"], select="vote", features=True)
        async for _ in Proceed((policy,))(own):
            pass
        told = own.report.extra["selection"]["runs"]
        right = await together(*(is_right(item, each["text"], self.runner) for each in told))
        return {
            "place": place,
            "runs": [
                {"right": r, "text": each["text"], **{name: each[name] for name in RUN}}
                for each, r in zip(told, right, strict=True)
            ],
        }

    async def measured(self, place: int, item: Item, worked: str) -> dict[str, Any]:
        """Answer a question and other wordings of it without working, and ask whether both its answers are true."""
        seed = self.settings["seed"] + place
        short, entropies, evidence = await self.evidence(item, seed)
        collector = self.collector(item, seed)
        texts = {"worked": worked, "short": short}
        verdicts = await together(*(self.verdict(collector, item.prompt, each) for each in texts.values()))
        right = await is_right(item, short, self.runner)
        return {
            "place": place,
            "short": {"text": short, "entropies": entropies, "right": right},
            "true": dict(zip(texts, verdicts, strict=True)),
            **evidence,
        }

    async def heated(self, place: int, item: Item, variants: Sequence[str]) -> dict[str, Any]:
        """Answer the wordings of a question at other temperatures as well."""
        found = {}
        for temperature in HEATS:
            collector = self.collector(item, self.settings["seed"] + place, temperature)
            found[f"{temperature:g}"] = _plain(await collector.answers(variants))
        return {"place": place, "heated": found}

    def collector(self, item: Item, seed: int, temperature: float = OWN_HEAT) -> Collector:
        given = self.settings
        how = Settings(
            given["perturbations"], given["replications"], temperature, SHORT_TOKENS, _short(item), similarity="words"
        )
        return Collector(self.on.job(item.prompt, 1, 1.0, seed), how, Ledger(), Budget(UNBOUNDED), seed)

    async def evidence(self, item: Item, seed: int) -> tuple[str, list[float], dict[str, Any]]:
        """Answer a question shortly, and draw answers to it and to other wordings of it. Returns the answer, its
        entropies, and the rest."""
        ledger = Ledger()
        given = self.on.job(f"{item.prompt}\n{_short(item)}", SHORT_TOKENS, 0.0, seed)
        steps, _ = await metered(given, Proceed(), ledger, None)
        drawn = [step for step in steps if step.token != NO_TOKEN]
        collector = self.collector(item, seed)
        found = await collector.collect({"variants"}, "", ())
        text = self.on.engine.tokens.decode([step.token for step in drawn]).strip()
        made = {
            "variants": list(found.variants),
            "answers": _plain(found.answers),
            "tokens": {"variants": collector.ledger.total, "short": ledger.total},
        }
        return text, [step.entropy for step in drawn], made

    async def verdict(self, collector: Collector, question: str, answer: str) -> float:
        found = await collector.collect({"verdict"}, answer, ())
        assert found.true is not None
        return found.true


def _short(item: Item) -> str:
    return SHORT.get(item.scorer, CONCISELY)


def _plain(answers: Sequence[Sequence[Said]]) -> list[list[dict[str, Any]]]:
    return [[asdict(said) for said in own] for own in answers]


def known(work: Path) -> dict[int, dict[str, Any]]:
    """Return what is there of each question, by its place."""
    found: dict[int, dict[str, Any]] = {}
    for line in folder.read_lines(work / LINES):
        found.setdefault(line["place"], {}).update(line)
    return found


async def draw(asking: Asking, items: Sequence[Item], settings: Mapping[str, Any], work: Path) -> None:
    """Ask for so many minutes what is not there yet: first all runs, then answers to other wordings, then those at
    other temperatures."""
    until = time.monotonic() + 60 * settings["minutes"]

    def left(name: str, most: int) -> dict[int, dict[str, Any]]:
        """Questions of the first `most` that were worked and have no `name` yet."""
        done = known(work)
        return {p: done.get(p, {}) for p in range(min(most, len(items))) if name not in done.get(p, {})}

    with report.progress() as bar:
        for title, name, most, make in (
            ("working", "runs", len(items), lambda p, _: asking.worked(p, items[p])),
            ("measuring", "answers", settings["evidence"],
             lambda p, own: asking.measured(p, items[p], own["runs"][0]["text"])),
            ("heating", "heated", settings["heated"], lambda p, own: asking.heated(p, items[p], own["variants"])),
        ):  # fmt: skip
            missing = left(name, most)
            task = bar.add_task(title, total=min(most, len(items)), completed=min(most, len(items)) - len(missing))
            ready = {p: own for p, own in missing.items() if name == "runs" or PREPARES[name] in own}
            makers = [partial(make, p, own) for p, own in ready.items()]
            await keep(work / LINES, makers, partial(bar.advance, task), settings["at_once"], until)


@app.command()
def main(
    context: typer.Context,
    questions: Annotated[
        Path,
        typer.Argument(
            help="JSONL: `prompt`, `answer`, `scorer`; a file of GSM8K, SVAMP, MultiArith, MMLU or HumanEval; or a "
            "task of the bundled pair."
        ),
    ],
    model: Annotated[str, typer.Option(help="The model's folder.")] = str(MODELS / "large"),
    dtype: Annotated[str, typer.Option(help="Weights: float32 or bfloat16.")] = "float32",
    n: Annotated[int, typer.Option(min=2, help="Questions, drawn from the file.")] = 100,
    evidence: Annotated[
        int, typer.Option(min=0, help="Questions of which answers to other wordings are drawn, the first ones.")
    ] = 100,
    heated: Annotated[
        int, typer.Option(min=0, help="Questions of these whose answers are drawn at other temperatures, too (TSU).")
    ] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Runs of each question.")] = 5,
    perturbations: Annotated[int, typer.Option(min=1, help="Other wordings of each question.")] = 5,
    replications: Annotated[int, typer.Option(min=1, help="Short answers to each wording.")] = 3,
    max_tokens: report.MaxTokens = 256,
    at_once: Annotated[int, typer.Option(min=1, help="Questions in the air at a time.")] = 12,
    minutes: Annotated[float, typer.Option(min=0, help="No question is begun after that; 0: tables only.")] = 60,
    embedder: Annotated[
        str | None, typer.Option(help="A sentence-transformers model, to compare texts with it as well.")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="When an answer is right, where no line says it.")] = None,
    name: Annotated[str, typer.Option(help="Name of the result.")] = NAME,
    work: Annotated[Path, typer.Option(help="Where the answers are kept.")] = Path("data/choosing"),
    seed: report.Seed = 0,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare ways to choose among answers, and measures of uncertainty, on the same questions.

    Programs have no short answers: `--evidence 0` goes with Python tests. Writes NAME.json and .md.
    """
    settings = {key: value for key, value in context.params.items() if key not in ("work", "questions")}
    try:
        items, instruction = tasks(questions, scorer)
        drawn = draws(items, 0, n, seed)[1]
        if evidence and any(each.scorer == PYTHON for each in drawn):
            raise Refused("Programs have no short answers to compare: add --evidence 0.")
        if heated > evidence:
            raise Refused("--heated takes some of the questions of --evidence: raise that, or lower this.")
        kept = {each: settings[each] for each in ("samples", "perturbations", "replications", "max_tokens", "seed")}
        about = {"model": Path(model).name, "dtype": dtype, "questions": digest(drawn), "instruction": instruction}
        folder.claim(work, {**kept, **about})
        if minutes > 0:
            asyncio.run(_draw(instruction, drawn, settings, work))
        lines, label = list(known(work).values()), "/".join(questions.parts[-2:])
        here = report.conditions(NAME, {**settings, "model": Path(model).name})
        here["command"] = here["command"].replace(f"bench {NAME}", f"bench {NAME} {label}", 1)
        found = {
            **here,
            "model": Path(model).name,
            "toy": Path(model).parent == MODELS,
            "task": label,
            **summary(lines, embedder),
        }
    except (Refused, ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    report.write(out, name, found, page(found))


async def _draw(instruction: str, items: Sequence[Item], settings: Mapping[str, Any], work: Path) -> None:
    sequences = settings["at_once"] * settings["samples"]
    async with opened(settings["model"], settings["dtype"], sequences) as on:
        await draw(Asking(on, instruction, settings), items, settings, work)


if __name__ == "__main__":
    app()
