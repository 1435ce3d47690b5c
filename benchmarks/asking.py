"""Ask simulated users back by C-IP and by its rivals: questions until a guess, right guesses, and whether sets hold the
truth as often as promised (arXiv 2507.03279).

A user has one of a task's hypotheses in mind, and answers a share of the questions wrongly. All ways meet the same
users, who answer a question alike whoever asks it; so differences are of pairs. A conversation goes through the policy
itself, turn by turn.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from waver import job as folder
from waver.benchmarks import report
from waver.benchmarks.one_engine import OneEngine, keep, opened
from waver.benchmarks.stats import interpolate, percentiles, resamples
from waver.clients.asking import conversation
from waver.engines.fingerprint import fingerprint
from waver.policies.ask.c_ip import ConformalPursuit, Select
from waver.policies.ask.history import Asked
from waver.policies.ask.predictors import by_model
from waver.policies.ask.table import Array
from waver.policies.ask.task import AskTask, ready_tasks
from waver.policies.ask.thresholds import CALIBRATION, Thresholds, from_table, random_history, taus
from waver.policies.base import Proceed
from waver.policies.budget import Budget, Ledger
from waver.policies.job import Job
from waver.resources import MODELS
from waver.stats import wilson
from waver.training.pair.world import RELATIONS, towns

NAME = "asking"
LINES = "games.jsonl"
SHOWN = "histories.jsonl"
WAYS: tuple[Select, ...] = ("c_ip", "ip", "bound", "random")
ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.3)
SHOWN_ALPHAS = ", ".join(map(str, ALPHAS))
LEVELS = (0.6, 0.7, 0.8, 0.9)
"""Shares of right guesses at which ways are compared."""
WORLD = "towns"
LETTERS = "DGJMPS"
"""Letters before which a name of a town's facts may begin: each is a question."""

app = report.command()


@dataclass(frozen=True)
class Game:
    """A conversation: who asks, and which user answers."""

    task: str
    way: Select
    alpha: float
    repeat: int
    truth: int


def world_task() -> AskTask:
    """Make a task of the bundled world: which of its 20 best known towns it is, by the initials of its facts."""
    known = towns()["frequent"]
    asked = [(relation, letter) for relation in RELATIONS for letter in LETTERS]
    return AskTask(
        subject="town",
        hypotheses=tuple(town.name for town in known),
        questions=tuple(f"Does the name of its {relation} begin before {letter}?" for relation, letter in asked),
        affirmed={
            town.name: tuple(i for i, (relation, letter) in enumerate(asked) if town.facts[relation].upper() < letter)
            for town in known
        },
    )


def tasks_of(names: Sequence[str]) -> dict[str, AskTask]:
    """Return tasks by name: ready ones, that of the bundled world, or files; all ready ones and the world's where none
    is named.

    Raises:
        ValueError: there is no such task, or a file is not one.
    """
    ready = ready_tasks()
    out = {}
    for name in names or [*ready, WORLD]:
        out[Path(name).stem] = world_task() if name == WORLD else AskTask.load(ready.get(name, Path(name)))
    return out


def answer(task: AskTask, game: Game, question: int, wrong: float, seed: int) -> bool:
    """Answer as this game's user, who answers the same question the same way in every game of theirs."""
    slip = random.Random(f"{seed}:{game.task}:{game.repeat}:{game.truth}:{question}").random() < wrong
    return task.answer(game.truth, question) != slip


def expected_error(settings: Mapping[str, Any]) -> float:
    """Return the share of wrong answers that the table expects; it cannot be 0."""
    return max(float(settings["wrong"]), 0.01)


class Asking:
    """Conversations of the policy about tasks, on one engine."""

    def __init__(self, on: OneEngine, tasks: Mapping[str, AskTask], settings: Mapping[str, Any]) -> None:
        self.tasks, self._on, self._settings = tasks, on, settings
        self._told: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._services = replace(on.services, tasks=tasks)

    def calibrate(self, made: Mapping[str, Thresholds]) -> None:
        """Take thresholds of a model's sets, by task."""
        self._services = replace(self._services, thresholds=made)

    def job(self, messages: Sequence[Mapping[str, str]], seed: int = 0) -> Job:
        made = self._on.job("Hello.", 256, 0.0, seed)
        return replace(made, messages=tuple(messages), services=self._services)

    async def turn(self, game: Game, asked: Sequence[Asked]) -> dict[str, Any]:
        """Return what the policy says next, and why: the same history is shown once."""
        key = (game.task, game.way, game.alpha, game.repeat, tuple(asked))
        if key not in self._told:
            settings = self._settings
            policy = ConformalPursuit(
                task=game.task,
                select=game.way,
                predictor=settings["predictor"],
                error=expected_error(settings),
                alpha=game.alpha,
                length=settings["length"],
                consider=settings["consider"],
                thresholds=game.task if game.task in self._services.thresholds else None,
            )
            job = self.job(conversation(self.tasks[game.task], asked), settings["seed"] + game.repeat)
            await policy.check(job)
            async for _ in Proceed((policy,))(job):
                pass
            self._told[key] = job.report.extra["asking"]
        return self._told[key]

    async def play(self, game: Game) -> dict[str, Any]:
        """Answer its questions until it guesses."""
        task, asked = self.tasks[game.task], list[Asked]()
        while "guess" not in (told := await self.turn(game, asked)):
            question = task.questions.index(told["question"])
            asked.append(Asked(question, answer(task, game, question, self._settings["wrong"], self._settings["seed"])))
        name = task.hypotheses[game.truth]
        return {
            "task": game.task,
            "way": game.way,
            "alpha": game.alpha,
            "repeat": game.repeat,
            "truth": game.truth,
            "asked": len(asked),
            "right": told["guess"] == name,
            "held": name in told["set"],
            "stopped": told["stopped"],
        }

    async def show(self, name: str, length: int, number: int) -> dict[str, Any]:
        """Tell which probability the model gives the truth after a random history."""
        task = self.tasks[name]
        rng = random.Random(f"asking:{self._settings['seed']}:{name}:{length}:{number}")
        truth = rng.randrange(len(task.hypotheses))
        history = random_history(task, truth, length, rng)
        (f,) = await by_model(self.job(()), task, [history], Ledger(), Budget(2**31))
        return {"task": name, "length": length, "number": number, "true": float(f[truth])}


def games(tasks: Mapping[str, AskTask], alphas: Sequence[float], repeats: int) -> Iterator[Game]:
    """List every game: each truth of each task, asked in each way."""
    for name, task in tasks.items():
        for repeat, truth, way, alpha in product(range(repeats), range(len(task.hypotheses)), WAYS, alphas):
            yield Game(name, way, alpha, repeat, truth)


def histories(work: Path) -> dict[tuple[str, int, int], float]:
    """Return the histories that were shown: the truth's probability by task, length and number."""
    return {(line["task"], line["length"], line["number"]): line["true"] for line in folder.read_lines(work / SHOWN)}


async def calibrated(asking: Asking, settings: Mapping[str, Any], work: Path) -> dict[str, list[list[float]]]:
    """Show a model random histories: `[lengths][histories]` probabilities of the truth by task; twice as many as
    thresholds take, which are given to `asking`; the second half is fresh."""
    known = histories(work)
    lengths = {name: min(settings["length"], len(task.questions)) for name, task in asking.tasks.items()}
    places = [(n, k, i) for n, most in lengths.items() for k in range(1, most + 1) for i in range(2 * CALIBRATION)]
    with report.progress() as bar:
        shown = bar.add_task("showing random histories", total=len(places), completed=len(known))
        makers = [partial(asking.show, *place) for place in places if place not in known]
        await keep(work / SHOWN, makers, partial(bar.advance, shown), settings["at_once"])
    known = histories(work)
    out = {
        name: [[known[name, k, i] for i in range(2 * CALIBRATION)] for k in range(1, most + 1)]
        for name, most in lengths.items()
    }
    own = await fingerprint(asking.job(()).writer)
    asking.calibrate(
        {
            name: Thresholds(
                task=asking.tasks[name].digest,
                model=Path(settings["model"]).name,
                fingerprint=own,
                true=[each[:CALIBRATION] for each in true],
            )
            for name, true in out.items()
        }
    )
    return out


def table_histories(tasks: Mapping[str, AskTask], settings: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Draw the same for the table: the thresholds that the policy makes, and 100 fresh histories of each length."""
    error, out = expected_error(settings), {}
    for name, task in tasks.items():
        length = min(settings["length"], len(task.questions))
        own, fresh = (from_table(task, error, length, seed) for seed in (0, 1000 + settings["seed"]))
        out[name] = [[*a, *b] for a, b in zip(own, fresh, strict=True)]
    return out


def coverage(true: Sequence[Sequence[float]], alpha: float) -> dict[str, Any]:
    """Tell how often the sets of fresh random histories hold the truth, with Wilson's interval."""
    tau = taus([own[:CALIBRATION] for own in true], alpha)
    held = [p >= least for own, least in zip(true, tau, strict=True) for p in own[CALIBRATION:]]
    return {"histories": len(held), **_share(held)}


async def run(
    on: OneEngine, tasks: Mapping[str, AskTask], settings: Mapping[str, Any], work: Path
) -> dict[str, list[list[float]]]:
    """Play what was not played yet. Returns what sets of random histories go by, by task."""
    asking = Asking(on, tasks, settings)
    table = settings["predictor"] == "table"
    true = table_histories(tasks, settings) if table else await calibrated(asking, settings, work)
    wanted = list(games(tasks, settings["alpha"], settings["repeats"]))
    done = {Game(**{key: line[key] for key in Game.__annotations__}) for line in folder.read_lines(work / LINES)}
    with report.progress() as bar:
        played = bar.add_task("playing", total=len(wanted), completed=len(done & set(wanted)))
        makers = [partial(asking.play, game) for game in wanted if game not in done]
        await keep(work / LINES, makers, partial(bar.advance, played), settings["at_once"])
    return true


def summary(lines: Sequence[Mapping[str, Any]], classes: int, alphas: Sequence[float]) -> dict[str, Any]:
    """Compare the ways on one task, by alpha and at equal shares of right guesses; intervals of questions are a
    bootstrap over the truths `classes`, the same for all ways."""
    weights, rows = resamples(classes), list[dict[str, Any]]()
    asked, right = ({way: np.zeros((classes, len(alphas))) for way in WAYS} for _ in range(2))
    for way, (place, alpha) in product(WAYS, enumerate(alphas)):
        own = [line for line in lines if line["way"] == way and line["alpha"] == alpha]
        for truth in range(classes):
            for key, into in (("asked", asked), ("right", right)):
                into[way][truth, place] = np.mean([line[key] for line in own if line["truth"] == truth])
        mean = asked[way][:, place]
        rows.append(
            {
                "way": way,
                "alpha": alpha,
                "games": len(own),
                "asked": {"mean": float(mean.mean()), "interval": percentiles(weights @ mean)},
                "right": _share([line["right"] for line in own]),
                "held": _share([line["held"] for line in own]),
            }
        )
    return {"rows": rows, "levels": [_at(share, asked, right, weights) for share in LEVELS]}


def _at(share: float, asked: Mapping[Select, Array], right: Mapping[Select, Array], weights: Array) -> dict[str, Any]:
    """Compute how many questions each way takes for this share of right guesses, on the line between its alphas; None
    where it has no alpha with more, or none with fewer."""
    once, needed, drawn = np.full((1, weights.shape[1]), 1 / weights.shape[1]), dict[Select, float | None](), {}
    for way in asked:
        reached = (once @ right[way])[0]
        needed[way] = None
        if reached.min() <= share <= reached.max():
            found = [interpolate(np.full(len(w), share), w @ right[way], w @ asked[way]) for w in (once, weights)]
            needed[way], drawn[way] = float(found[0][0]), found[1]
    own, over = needed["c_ip"], {}
    for way in WAYS[1:]:
        if own is not None and (rival := needed[way]) is not None:
            over[way] = {"mean": own - rival, "interval": percentiles(drawn["c_ip"] - drawn[way])}
    return {"right": share, "questions": needed, "over": over}


def _share(of: Sequence[bool]) -> dict[str, Any]:
    return {"share": float(np.mean(of)), "interval": wilson(sum(of), len(of))}


def page(found: Mapping[str, Any]) -> list[str]:
    """Write the page."""
    settings = found["settings"]
    by = "the task's own table (naive Bayes)" if settings["predictor"] == "table" else found["model"]
    out = [
        "# Asking back: C-IP against its rivals",
        f"Simulated users have one of the options in mind and answer {settings['wrong']:.0%} of the questions wrongly; "
        f"{settings['repeats']} for every option, and all ways meet the same users. Options are weighed by {by}; at "
        f"most {settings['length']} questions. All ways stop by the same rule; they differ in how they choose: "
        "`c_ip` by the expected size of the set, `ip` by the expected entropy, `bound` by the score of the paper's "
        "code, `random` by chance. Sets promise to hold the truth with 1 - alpha: a larger alpha asks less and guesses "
        "worse.",
    ]
    for name, each in found["tasks"].items():
        out += [
            f"## {name}",
            f"How often sets of {each['coverage'][0]['histories']} fresh random histories hold the truth:",
            report.table(
                ("promised", "held"),
                [
                    (f"{1 - held['alpha']:.0%}", report.percent(held["share"], held["interval"]))
                    for held in each["coverage"]
                ],
            ),
            "Questions for the same share of right guesses, on the line between two alphas, and how many more or fewer "
            "`c_ip` takes:",
            report.table(
                ("right", *(f"`{way}`" for way in WAYS), *(f"`c_ip` over `{way}`" for way in WAYS[1:])),
                [_level(level) for level in each["levels"]],
            ),
            report.table(
                ("choice", "alpha", "questions", "right", "last set held the truth"),
                [
                    (
                        f"`{row['way']}`",
                        f"{row['alpha']:g}",
                        _interval(row["asked"]),
                        *(report.percent(row[key]["share"], row[key]["interval"]) for key in ("right", "held")),
                    )
                    for row in each["rows"]
                ],
            ),
        ]
    out.append(
        "In brackets 95 % intervals: of shares Wilson's over the games, of questions and of differences the "
        "bootstrap's over the options. Random histories have the coverage that is promised; for questions that were "
        "chosen nothing is promised."
    )
    return out


def _level(level: Mapping[str, Any]) -> tuple[str, ...]:
    needed = (level["questions"][way] for way in WAYS)
    return (
        f"{level['right']:.0%}",
        *("" if n is None else f"{n:.2f}" for n in needed),
        *(_interval(level["over"][way], "+") if way in level["over"] else "" for way in WAYS[1:]),
    )


def _interval(value: Mapping[str, Any], sign: str = "") -> str:
    low, high = value["interval"]
    return f"{value['mean']:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


@app.command()
def main(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Option(help=f"animals, triage, {WORLD} (of the bundled world), or a file.", show_default="all of these"),
    ] = None,
    predictor: Annotated[
        Literal["table", "model"], typer.Option(help="What weighs the options: the task's table, or the model.")
    ] = "table",
    model: Annotated[str, typer.Option(help="The model's folder.")] = str(MODELS / "small"),
    dtype: Annotated[str, typer.Option(help="Weights: float32 or bfloat16.")] = "float32",
    wrong: Annotated[float, typer.Option(min=0, max=0.4, help="Share of the answers that users get wrong.")] = 0.05,
    repeats: Annotated[int, typer.Option(min=1, help="Users with each option in mind.")] = 10,
    alpha: Annotated[
        list[float] | None,
        typer.Option(min=0.01, max=0.49, help="Share of truths that sets may miss.", show_default=SHOWN_ALPHAS),
    ] = None,
    length: Annotated[int, typer.Option(min=1, max=64, help="Most questions.")] = 20,
    consider: Annotated[int, typer.Option(min=1, max=128, help="Questions a model looks at in each turn.")] = 32,
    at_once: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 8,
    name: Annotated[str, typer.Option(help="Name of the result.")] = NAME,
    work: Annotated[Path | None, typer.Option(help="Where games are kept, to go on with.")] = None,
    seed: report.Seed = 0,
    out: report.Out = report.RESULTS,
) -> None:
    """Ask simulated users back: questions and right guesses of C-IP, IP, and chance; coverage of its sets.

    Writes NAME.json and .md.
    """
    alphas = sorted(set(alpha or ALPHAS))
    settings = {**context.params, "alpha": alphas}
    if wrong == 0 and repeats > 1:
        raise typer.BadParameter("users who are never wrong are all alike: --repeats 1", param_hint="--repeats")
    try:
        tasks = tasks_of(task or [])
        with tempfile.TemporaryDirectory() as scratch:
            place = work or Path(scratch)
            kept = ("predictor", "dtype", "wrong", "length", "consider", "seed")
            same = {key: settings[key] for key in kept}
            folder.claim(place, same | {"model": Path(model).name, "tasks": {n: t.digest for n, t in tasks.items()}})
            true = asyncio.run(_run(tasks, settings, place))
            lines = [line for line in folder.read_lines(place / LINES) if line["repeat"] < repeats]
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    shown = {key: value for key, value in settings.items() if key not in ("work", "task")}
    here = report.conditions(NAME, {"task": list(task or []), **shown, "model": Path(model).name})
    found = {
        **here,
        "model": Path(model).name,
        "toy": predictor == "model" and Path(model).parent == MODELS,
        "tasks": {
            each: {
                "coverage": [{"alpha": own, **coverage(true[each], own)} for own in alphas],
                **summary([line for line in lines if line["task"] == each], len(tasks[each].hypotheses), alphas),
            }
            for each in tasks
        },
    }
    report.write(out, name, found, page(found))


async def _run(tasks: Mapping[str, AskTask], settings: Mapping[str, Any], work: Path) -> dict[str, list[list[float]]]:
    async with opened(settings["model"], settings["dtype"], 4 * settings["at_once"]) as on:
        return await run(on, tasks, settings, work)


if __name__ == "__main__":
    app()
