"""Search for answers that meet goals, by BES and by what a user would try first, at equal tokens (arXiv 2605.28814).

Every puzzle is searched by every method until it is solved or a number of drawn tokens is spent. As a search does the
same until it ends, one run tells for every smaller number of tokens whether that would have been enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import numpy as np
import typer

from waver import job as folder
from waver.benchmarks import report
from waver.benchmarks.one_engine import OneEngine, keep, opened
from waver.evolution import Method
from waver.knights import make
from waver.policies.base import Proceed
from waver.policies.select.bes import BES
from waver.resources import MODELS
from waver.stats import paired_difference, wilson
from waver.training.pair.world import draw

NAME = "bes"
LINES = "searches.jsonl"
METHODS: tuple[Method, ...] = ("bes", "tree", "best_of_n")
PARTS = (0.125, 0.25, 0.5, 1.0)
"""Parts of the tokens at which methods are compared."""

app = report.command()


@dataclass(frozen=True)
class Puzzle:
    """A question with goals, and its place."""

    place: int
    text: str


def puzzles(task: str, n: int, size: int, seed: int) -> list[Puzzle]:
    """Draw puzzles of `size` people, or sums of so many steps."""
    if task == "knights":
        texts = [make(size, 1000 * seed + i).text for i in range(n)]
    else:
        texts = [each.prompt for each in draw("arithmetic", 31_000 + seed, n, steps=(size, size))]
    return [Puzzle(i, text) for i, text in enumerate(texts)]


async def search(on: OneEngine, puzzle: Puzzle, method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Search for one answer, and tell how it ended and after how many tokens."""
    job = on.job(puzzle.text, settings["max_tokens"], 1.0, settings["seed"] + puzzle.place)
    policy = BES(
        method=method,
        task=settings["task"],
        iterations=1000,
        tokens=settings["tokens"],
        temperature=settings["temperature"],
        delimiter=settings["delimiter"].replace("\\n", "\n"),
    )
    began = time.monotonic()
    async for _ in Proceed((policy,))(job):
        pass
    found = job.report.extra["search"]
    return {
        "place": puzzle.place,
        "method": method,
        "ended": found["ended"],
        "tokens": sum(found["tokens"].values()),
        "calls": found["calls"],
        "nodes": found["nodes"],
        "seconds": round(time.monotonic() - began, 2),
    }


def known(work: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what is there, by method and place."""
    return {(line["method"], line["place"]): line for line in folder.read_lines(work / LINES)}


async def run(on: OneEngine, wanted: Sequence[Puzzle], settings: Mapping[str, Any], work: Path) -> None:
    """Search for what is not there yet, for so many minutes."""
    until, done = time.monotonic() + 60 * settings["minutes"], known(work)
    left = [(method, puzzle) for puzzle in wanted for method in METHODS if (method, puzzle.place) not in done]
    with report.progress() as bar:
        task = bar.add_task("searching", total=len(METHODS) * len(wanted), completed=len(done))
        makers = [partial(search, on, puzzle, method, settings) for method, puzzle in left]
        await keep(work / LINES, makers, partial(bar.advance, task), settings["at_once"], until)


def summary(lines: Mapping[tuple[str, int], Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """Compute which share of the puzzles each method has solved after how many tokens, with Wilson's intervals, and the
    difference of BES to the others, with Newcombe's for paired answers. Only puzzles that all methods searched count.

    Raises:
        ValueError: there are too few of them to say anything.
    """
    places = sorted(set.intersection(*({p for m, p in lines if m == method} for method in METHODS)))
    if len(places) < 2:
        raise ValueError(f"all methods searched {len(places)} puzzles, which says nothing: let it run longer")
    rows = []
    for part in PARTS:
        most = round(part * tokens)
        solved = {method: [_solved(lines[method, place], most) for place in places] for method in METHODS}
        rows.append(
            {
                "tokens": most,
                "solved": {
                    method: {"share": fmean(own), "interval": wilson(sum(own), len(own))}
                    for method, own in solved.items()
                },
                "over": {
                    method: {"mean": fmean(solved["bes"]) - fmean(own),
                             "interval": paired_difference(solved["bes"], own)}
                    for method, own in solved.items() if method != "bes"
                },
            }
        )  # fmt: skip
    spent = {
        method: {
            name: float(np.mean([lines[method, place][name] for place in places]))
            for name in ("tokens", "calls", "seconds")
        }
        for method in METHODS
    }
    return {"puzzles": len(places), "rows": rows, "spent": spent}


def _solved(line: Mapping[str, Any], most: int) -> bool:
    return bool(line["ended"] == "solved" and line["tokens"] <= most)


def page(found: Mapping[str, Any]) -> list[str]:
    """Write the page."""
    settings, rows, spent = found["settings"], found["rows"], found["spent"]
    kind = f"{settings['size']} people" if settings["task"] == "knights" else f"{settings['size']} steps"
    shares = [
        (
            str(row["tokens"]),
            *(report.percent(row["solved"][m]["share"], row["solved"][m]["interval"]) for m in METHODS),
        )
        for row in rows
    ]
    over = [
        (str(row["tokens"]), *(report.points(each["mean"], each["interval"]) for each in row["over"].values()))
        for row in rows
    ]
    costs = [(m, *(f"{spent[m][name]:.{d}f}" for name, d in (("tokens", 0), ("calls", 1), ("seconds", 1))))
             for m in METHODS]  # fmt: skip
    return [
        "# BES against best-of-N and tree search, at equal tokens",
        f"{found['model']}, {found['puzzles']} {settings['task']} of {kind}, made anew; an answer of at most "
        f"{settings['max_tokens']} tokens, steps drawn at {settings['temperature']:g} and top_p 0.95. All "
        "three methods read the same goals and stop at the first answer that meets all of them. Solved within so many "
        "drawn tokens (95 %, Wilson):",
        report.table(("tokens", *METHODS), shares),
        "Points of BES over the others (95 %, Newcombe's interval for the same puzzles):",
        report.table(("tokens", *rows[0]["over"]), over),
        f"What a search took on average, of at most {settings['tokens']} tokens. Seconds are of "
        f"{settings['at_once']} searches at a time, which share the engine:",
        report.table(("method", "tokens", "calls", "seconds"), costs),
    ]


@app.command()
def main(
    context: typer.Context,
    task: Annotated[
        Literal["knights", "sums"], typer.Argument(help="Puzzles: knights and knaves, or sums of the bundled world.")
    ] = "knights",
    model: Annotated[str, typer.Option(help="The model's folder.")] = str(MODELS / "small"),
    dtype: Annotated[str, typer.Option(help="Weights: float32 or bfloat16.")] = "float32",
    n: Annotated[int, typer.Option(min=2, help="Puzzles.")] = 60,
    size: Annotated[int, typer.Option(min=2, help="People of a puzzle (2 to 8), or steps of a sum.")] = 4,
    tokens: Annotated[int, typer.Option(min=8, help="Most drawn tokens of a search.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.01, max=2.0, help="Of the steps.")] = 0.6,
    delimiter: Annotated[str, typer.Option(help="End of a step, \\n for a line break.")] = "\\n",
    max_tokens: report.MaxTokens = 160,
    at_once: Annotated[int, typer.Option(min=1, help="Searches at a time.")] = 16,
    minutes: Annotated[float, typer.Option(min=0, help="No search is begun after that; 0: tables only.")] = 60,
    name: Annotated[str, typer.Option(help="Name of the result.")] = NAME,
    work: Annotated[Path, typer.Option(help="Where searches are kept.")] = Path("data/bes"),
    seed: report.Seed = 0,
    out: report.Out = report.RESULTS,
) -> None:
    """Search for answers that meet goals: BES, tree search and best-of-N at equal tokens.

    Writes NAME.json and .md.
    """
    settings = {key: value for key, value in context.params.items() if key != "work"}
    try:
        wanted = puzzles(task, n, size, seed)
        kept = {key: settings[key] for key in ("task", "size", "tokens", "temperature", "delimiter", "max_tokens")}
        folder.claim(work, {**kept, "seed": seed, "model": Path(model).name, "dtype": dtype})
        if minutes > 0:
            asyncio.run(_run(wanted, settings, work))
        lines = {key: line for key, line in known(work).items() if key[1] < n}
        here = report.conditions(NAME, {**settings, "model": Path(model).name})
        here["command"] = (
            here["command"].replace(f"--task {task} ", "").replace(f"bench {NAME}", f"bench {NAME} {task}")
        )
        found = {**here, "model": Path(model).name, "toy": Path(model).parent == MODELS, **summary(lines, tokens)}
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    report.write(out, name, found, page(found))


async def _run(wanted: Sequence[Puzzle], settings: Mapping[str, Any], work: Path) -> None:
    async with opened(settings["model"], settings["dtype"], 2 * settings["at_once"]) as on:
        await run(on, wanted, settings, work)


if __name__ == "__main__":
    app()
