"""Compare policies, presets and what a user would pick instead on one's own questions, at a running server.

Two draws are used: settings of sweeps are chosen on the calibration draw, and what is reported was measured on the test
draw. All answers are kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from waver import job
from waver.benchmarks import quality_options as options
from waver.benchmarks import quality_stored, report
from waver.benchmarks.quality_asking import ANSWERS, START, Asking, Known, Requests, read_known, server_at
from waver.benchmarks.quality_choice import Wanted, choose, found_of, needing_choice
from waver.benchmarks.quality_peers import BASELINES, Family, Names, Peer, families
from waver.benchmarks.quality_stored import kept_of
from waver.benchmarks.quality_tables import Numbers, page
from waver.benchmarks.quality_tasks import Item, digest, draws, is_bundled, tasks
from waver.clients.client import AsyncWaver
from waver.clients.endings import status_of
from waver.clients.questions import Refused
from waver.clients.resume import begin

app = report.command()
ENGINES = "engines.json"
NOWHERE = ("http://127.0.0.1:9/v1", None)
"""The address of no server, for tables of stored answers."""
DEFAULT_PEERS = ["small", "large", "random", "route", "cascade", "ead"]


async def ask(asking: Asking, wanted: Wanted, only_stored: bool) -> tuple[list[Family], list[Numbers]]:
    """Choose settings on the calibration draw, then ask the test draw. Returns what is measured there, and what was
    compared for the choices; the answers are in `asking.known`."""
    with report.progress() as bar:

        async def answered(peers: Sequence[Peer], items: Sequence[Item], words: str) -> None:
            left, total = asking.left(peers, items), len(peers) * len(items)
            if only_stored or not left:
                return
            task = bar.add_task(words, total=total, completed=total - left)
            await asking.all(peers, items, lambda: bar.advance(task))

        swept = needing_choice(wanted.families)
        reference = next(each for each in wanted.families if each.name == "large").peers[0]
        compared = [reference, *(peer for family in swept for peer in family.peers if peer != reference)]
        if swept:
            await answered(compared, wanted.calibration, "choosing settings")
        picked, compared_rows = choose(wanted, asking.known)
        await answered([peer for family in picked for peer in family.peers], wanted.test, "answering")
    return picked, compared_rows


async def engines_of(client: AsyncWaver) -> list[str]:
    """List the server's engines, each with the model behind it where it tells."""
    found = []
    async for each in client.with_options(max_retries=0).models.list():  # a server that is not there is told at once
        more = each.model_extra or {}
        if not each.id.startswith("waver/") and more.get("kind") != "embedder":
            root = more.get("root")
            found.append(f"`{each.id}`" if root in (None, each.id) else f"`{each.id}` is {root}")
    return found


def remembered(file: Path, found: list[str] | None) -> list[str]:
    """Keep a server's engines beside the answers, or return those that were kept, for a time without a server."""
    if found is not None:
        made = json.dumps(found)
        job.replace_file(file, lambda path: path.write_text(made, encoding="utf-8"))
        return found
    kept: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return kept


async def run(
    wanted: Wanted, requests: Requests, address: tuple[str, str | None], work: Path, known: Known, only_stored: bool
) -> tuple[Numbers, list[Family]]:
    """Ask what is left, and return the numbers and the peers that they are about."""
    base_url, key = address
    async with AsyncWaver(base_url=base_url, api_key=key, max_retries=5, timeout=START) as client:
        asking = Asking(client, base_url, requests, work, known)
        engines = remembered(work / ENGINES, None if only_stored else await engines_of(client))
        picked, chosen = await ask(asking, wanted, only_stored)
        found = found_of(picked, wanted, known) | {"chosen": chosen, "engines": engines, **kept_of(wanted)}
        return found, picked


def compare(settings: Mapping[str, Any], stored: bool) -> int:
    """Ask what is left to ask, and write the numbers, the page and the figure."""
    from waver.benchmarks.quality_figure import plot

    questions, work = settings["questions"], settings["work"]
    items, instruction = tasks(questions, settings["scorer"])
    instruction = instruction if settings["instruction"] is None else settings["instruction"]
    names = Names(settings["small"], settings["large"], settings["collection"])
    found = families(settings["peer"], names)
    choosing = bool(needing_choice(found))
    chooses, tests = draws(items, settings["calibration"] if choosing else 0, settings["n"], settings["seed"])
    if choosing and len(chooses) < 2:
        raise Refused("Settings are chosen on other questions: --calibration needs two at the least.")
    wanted = Wanted(found, chooses, tests, settings["within"], names, settings["every"])
    requests = Requests(instruction, *(settings[key] for key in ("temperature", "max_tokens", "seed", "at_once")))
    begin(work, claim_of(items, requests, names), ANSWERS)
    known = read_known(work)
    if stored:
        made, picked = asyncio.run(run(wanted, requests, NOWHERE, work, known, True))
    else:
        with server_at(settings["base_url"], settings["config"]) as address:
            made, picked = asyncio.run(run(wanted, requests, address, work, known, False))
    here = report.conditions("quality", quality_stored.told(settings))
    here["command"] = here["command"].replace("bench quality", f"bench quality {questions.name}", 1)
    told = {"title": settings["title"] or questions.name, "questions_file": questions.name, "file": settings["name"]}
    more = {"calibration": len(chooses), "instruction": instruction, "toy": is_bundled(questions)}
    numbers = {**here, **made, **told, **more, "note": settings["note"]}
    settings["out"].mkdir(parents=True, exist_ok=True)
    quality_stored.write(settings["out"] / f"{settings['name']}{quality_stored.ENDING}", picked, wanted, known)
    plot(numbers, settings["out"])
    report.write(settings["out"], settings["name"], numbers, page(numbers))
    return 0


def list_baselines(wanted: bool) -> None:
    if wanted:
        typer.echo("\n".join(f"{name:<24}{each.help}" for name, each in BASELINES.items()))
        raise typer.Exit(0)


@app.command()
def main(
    context: typer.Context,
    questions: Annotated[
        Path,
        typer.Argument(
            help="JSONL: `prompt`, `answer`, `scorer`; a file of GSM8K, SVAMP, MultiArith, MMLU or HumanEval; or a "
            "task of the bundled pair, such as arithmetic."
        ),
    ],
    work: Annotated[Path, typer.Option(help="Folder of the answers; a stopped run there goes on.")],
    peer: Annotated[
        list[str],
        typer.Option(help="What is compared; repeatable: see `--list`.", show_default=", ".join(DEFAULT_PEERS)),
    ] = DEFAULT_PEERS,
    n: Annotated[int, typer.Option(min=2, help="Questions of the test draw.")] = 150,
    calibration: Annotated[int, typer.Option(min=0, help="Other questions, to choose settings of sweeps on.")] = 50,
    within: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A setting is chosen if it loses at most so much against large.")
    ] = 0.02,
    every: Annotated[bool, typer.Option("--every", help="Measure every setting of a sweep on the test draw.")] = False,
    scorer: Annotated[str | None, typer.Option(help="When an answer is right, where no line says it.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Added to each question.", show_default="fits a known set; else nothing")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_tokens: report.MaxTokens = 512,
    at_once: Annotated[int, typer.Option(min=1, help="Requests in the air at a time.")] = 8,
    small: options.Small = "small",
    large: options.Large = "large",
    collection: options.Collection = None,
    base_url: options.Running = None,
    config: options.Config = None,
    note: options.Note = None,
    title: options.Title = None,
    name: Annotated[str, typer.Option(help="Name of the result's files.")] = "quality",
    stored: Annotated[bool, typer.Option("--stored", help="Ask nothing: use the answers that are there.")] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the baselines, and leave.", is_eager=True, callback=list_baselines)
    ] = False,
    seed: report.Seed = 0,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare policies with each other and with what you would pick instead, on your own questions.

    A `--peer` is a baseline (`--list`), an engine or a preset (`large`, `waver/frugal`), a policy with parameters, of
    which lists are sweeps (`ead={threshold: [0.1, 0.3], monitor: small}`), policies on an engine
    (`small=[{name: ead}]`), or what `waver calibrate policy` wrote (`@FOLDER`); `mine: …` names it. Every answer is
    kept in WORK/answers.jsonl with its text, tokens, cost and time. Ctrl-C keeps what is done; the same command goes
    on, also with more questions or other peers.
    """
    report.need_extra()
    settings = {key: value for key, value in context.params.items() if key not in ("list_", "stored")}
    status = status_of(lambda: compare(settings, stored), base_url or "the server that was started", report.console)
    if status == 130:
        report.console.print(f"Stopped. The answers so far are in {work}: the same command goes on.", markup=False)
    raise typer.Exit(status)


def claim_of(items: Sequence[Item], requests: Requests, names: Names) -> Mapping[str, Any]:
    """Return what answers in one folder share: not the number of questions, nor the peers."""
    return {"benchmark": "quality", "sha256": digest(items), **vars(requests), "large": names.large}


if __name__ == "__main__":
    app()
