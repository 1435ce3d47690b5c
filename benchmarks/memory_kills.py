"""Kill two owners' writers of the same memory stores with SIGKILL at many points, and look at what is left.

Of every pair one kills itself before a certain SQL statement, so that transactions are cut at every place; the other is
killed at that moment, wherever it is. Afterwards files must be whole, what belongs together be there together or not at
all, what was acknowledged be there, and nothing of one owner be in what the other has. The folder is the same for all
points.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.benchmarks import memory_writers, report
from waver.benchmarks.memory_writers import ERASED_EVERY, Stores

OWNERS = ("anna", "bob")
STATEMENTS = 250
"""SQL statements of a writer, within which it is killed: some four rounds."""
PRELOADED = ["waver.benchmarks.memory_writers", "waver.benchmarks.report", "sklearn.mixture"]
"""Modules that writers need, loaded once, of which they are forked."""
APART = 1000
"""Numbers between the rounds of two points."""

app = report.command()


def kill_at(folder: Path, start: int, statement: int) -> dict[str, list[int]]:
    """Let both owners write until one begins so many SQL statements; return the rounds acknowledged to each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running, ends = [], []
    for i, owner in enumerate(OWNERS):
        mine, theirs = context.Pipe(duplex=False)
        ends.append(mine)
        limit = statement if i == start // APART % 2 else None
        running.append(context.Process(target=memory_writers.run, args=(str(folder), owner, start, theirs, limit)))
        running[-1].start()
        theirs.close()
    first, second = (running[i] for i in (start // APART % 2, 1 - start // APART % 2))
    first.join()
    second.kill()
    second.join()
    return {owner: _received(end) for owner, end in zip(OWNERS, ends, strict=True)}


def _received(end: Connection) -> list[int]:
    """Return the numbers that a dead writer has sent."""
    found: list[int] = []
    with suppress(EOFError, OSError), end:
        while True:
            found.append(end.recv())
    return [number for number in found if number >= 0]


async def look(folder: Path, acknowledged: Mapping[str, Sequence[int]], known: dict[str, set[int]]) -> list[str]:
    """Return what is wrong with what is left, as sentences; nothing where all is well.

    Args:
        known: rounds whose episodes have been acknowledged so far, by owner; grows.
    """
    stores, wrong = Stores(folder), []
    try:
        for store in stores.each:
            with store.file.changing() as db:
                if (said := db.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                    wrong.append(f"{store.file.path.name}: {said}")
        for owner in OWNERS:
            known[owner] |= set(acknowledged[owner])
            last = max(acknowledged[owner], default=None)
            wrong += [f"{owner}: {each}" for each in await _memories(stores, owner, last)]
            wrong += [f"{owner}: {each}" for each in await _others(stores, owner, last, known[owner])]
        wrong += await _queue(stores)
    finally:
        stores.close()
    return wrong


async def _memories(stores: Stores, owner: str, last: int | None) -> list[str]:
    own, wrong = stores.memories.of(owner), []
    contents = [each.unit.content for each in await own.page()]
    if strange := [each for each in contents if not each.startswith(f"{owner} ")]:
        wrong.append(f"has {strange[0]!r}")
    facts, twins = ({_number(each) for each in contents if kind in each} for kind in ("fact", "twin"))
    if facts != twins:
        wrong.append(f"memories without their twins: {sorted(facts ^ twins)}")
    if last is not None and last % ERASED_EVERY != ERASED_EVERY - 1 and facts and last not in facts:
        wrong.append(f"the acknowledged memory {last} is lost")
    if len((await own.index()).memories) != len(contents):
        wrong.append("the index has other memories than the file")
    if any(not str(turn["text"]).startswith(f"{owner} ") for turn in await own.waiting()):
        wrong.append("turns of somebody else wait")
    return wrong


async def _others(stores: Stores, owner: str, last: int | None, known: set[int]) -> list[str]:
    wrong = []
    index = await stores.episodes.of(owner).index()
    texts = [turn.text for each in index.episodes for turn in each.episode.turns]
    if any(not text.startswith(f"{owner} ") for text in texts):
        wrong.append("has an episode of somebody else")
    if missing := known - {_number(text) for text in texts}:
        wrong.append(f"acknowledged episodes are lost: {sorted(missing)}")
    ids = {each.id for each in index.episodes}
    if any(other not in ids for each in index.episodes for _, other, _ in each.links):
        wrong.append("an episode is linked with one that is not there")
    if len(index.vectors) != len(index.episodes):
        wrong.append("an episode has no vectors")
    facts = await stores.facts.of(owner).listed()
    if len(facts) > 1 or (facts and not facts[0].text.startswith(f"{owner} ")):
        wrong.append(f"holds {[fact.text for fact in facts]}")
    if last is not None and (not facts or _number(facts[0].text) not in (last, last + 1)):
        wrong.append(f"the acknowledged fact {last} does not hold")
    return wrong


async def _queue(stores: Stores) -> list[str]:
    """Take all work that waits; return what is wrong with it."""
    wrong = []
    while (work := await stores.memories.claim()) is not None:
        if work.settings != {"engine": work.owner_name} or len(work.turns) % 2:
            wrong.append(f"{work.owner_name}: half of a window waits")
        if any(not turn.text.startswith(f"{work.owner_name} ") for turn in work.turns):
            wrong.append(f"{work.owner_name}: a window holds turns of somebody else")
        end = work.next + len(work.turns)
        await stores.memories.finish(work, [], end, end, None, 0)
    return wrong


def _number(text: str) -> int:
    return int(text.split()[-1])


def killed(folder: Path, points: int, seed: int, advance: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Kill at so many points; return for each the statement, the rounds acknowledged, and what was wrong."""
    draw, known = random.Random(f"kills:{seed}"), {owner: set[int]() for owner in OWNERS}
    found = []
    for point in range(points):
        statement = draw.randrange(1, STATEMENTS)
        acknowledged = kill_at(folder, point * APART, statement)
        wrong = asyncio.run(look(folder, acknowledged, known))
        rounds = {owner: len(each) for owner, each in acknowledged.items()}
        found.append({"statement": statement, "rounds": rounds, "wrong": wrong})
        advance()
    return found


def page(numbers: Mapping[str, Any]) -> list[str]:
    """Return the page of results."""
    points = numbers["points"]
    wrong = [f"{point['statement']}: {each}" for point in points for each in point["wrong"]]
    rounds = {owner: sum(point["rounds"][owner] for point in points) for owner in OWNERS}
    return [
        "# Memory stores under kill -9",
        f"{len(points)} points. Two processes write to the same files, each for an owner of its own: memories, turns "
        "that wait, episodes, facts, erasures. One kills itself before an SQL statement drawn from the first "
        f"{STATEMENTS}, the other is killed at that moment. {sum(rounds.values())} rounds were acknowledged "
        f"({', '.join(f'{owner} {count}' for owner, count in rounds.items())}).",
        "Nothing was half-written, lost after it was acknowledged, or another owner's."
        if not wrong
        else "Wrong:\n\n" + "\n".join(f"- statement {each}" for each in wrong),
    ]


@app.command()
def main(
    context: typer.Context,
    points: Annotated[int, typer.Option(min=1, help="Points at which writers are killed.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the points.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Kill writers of memory stores at many points, and look at what is left.

    Writes memory_kills.json and .md. About a minute for 50 points on one core. Ends with 1 where anything was wrong.
    """
    conditions = report.conditions("memory-kills", dict(context.params))
    with tempfile.TemporaryDirectory() as scratch, report.progress() as bar:
        task = bar.add_task("points", total=points)
        found = killed(Path(scratch), points, seed, lambda: bar.advance(task))
    numbers = conditions | {"points": found}
    report.write(out, "memory_kills", numbers, page(numbers))
    if any(point["wrong"] for point in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
