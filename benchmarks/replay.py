"""Replay recorded requests against another version of the code, and list every answer that is not what it was.

Requests go one after the other, so that the batches in the engines are the same. A recording is made on two servers in
turn: what differs between them is not repeatable, and those places are left out, with a note.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.progress import Progress

from waver.benchmarks import replay_speed, report
from waver.benchmarks.replay_answers import Difference, differences, normalised
from waver.benchmarks.replay_file import Record, Recording, commit, machine
from waver.benchmarks.replay_intended import reason
from waver.benchmarks.replay_requests import Request, for_vllm, requests
from waver.benchmarks.replay_server import BACKENDS, HERE, serving

app = report.command()

Tree = Annotated[Path, typer.Option(exists=True, file_okay=False, help="The checkout whose code serves.")]
ENGINES = list(BACKENDS)
DIFFERENT = 1
"""Exit status where an answer differs for no reason that is written down."""


def send(client: httpx.Client, request: Request) -> dict[str, Any]:
    """Return the normalised answer to a request."""
    # Plain ASCII: one of them holds half of a surrogate pair.
    content = json.dumps(request.body) if request.text is None and request.body is not None else request.text
    kind = {} if content is None else {"content-type": "application/json"}
    return normalised(
        client.request(request.method, request.path, content=content, headers={**kind, **request.headers})
    )


def answers(tree: Path, backend: str, asked: Sequence[Request], bar: Progress, name: str) -> list[dict[str, Any]]:
    """Return answers of a fresh server of that checkout to all requests, in their order."""
    task = bar.add_task(f"{name}: starting", total=len(asked))
    with tempfile.TemporaryDirectory() as scratch, serving(tree, backend, Path(scratch)) as client:
        bar.update(task, description=name)
        found = []
        for request in asked:
            found.append(send(client, request))
            bar.advance(task)
    return found


def make(tree: Path, backend: str, seed: int, rounds: int, bar: Progress) -> Recording:
    """Record a checkout's answers, several times over."""
    asked = requests(seed)
    if backend == "vllm":
        asked = list(for_vllm(asked))
    each = [answers(tree, backend, asked, bar, f"recording, {i + 1} of {rounds}") for i in range(rounds)]
    records = []
    for request, first, *again in zip(asked, *each, strict=True):
        varies = [found.where for other in again for found in differences(first, other)]
        records.append(Record(request, first, tuple(dict.fromkeys(varies))))
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return Recording(commit(tree), backend, seed, today, machine(backend), records)


def compared(record: Record, answer: dict[str, Any]) -> list[Difference]:
    """Return the differences between a recorded answer and another, except in fields that always vary."""
    return [
        found
        for found in differences(record.answer, answer)
        if not any(found.where.startswith(place) for place in record.varies)
    ]


def findings(records: Iterable[Record], found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each request that is answered otherwise: all differences, what each is put down to, and the request."""
    out = []
    for record, answer in zip(records, found, strict=True):
        if every := compared(record, answer):
            out.append({
                "request": record.request.as_data(),
                "differences": [
                    {"where": each.where, "before": each.before, "after": each.after, "why": why(record.request, each)}
                    for each in every
                ],
            })  # fmt: skip
    return out


def why(request: Request, found: Difference) -> str | None:
    """Return the known cause of a difference; None if there is none."""
    return reason(request, found) or ("rounding" if found.rounding else None)


def page(numbers: dict[str, Any]) -> list[str]:
    found, total = numbers["findings"], numbers["requests"]
    reasons: dict[str, list[str]] = {}
    for each in found:
        for one in dict.fromkeys(difference["why"] or UNKNOWN for difference in each["differences"]):
            reasons.setdefault(one, []).append(each["request"]["name"])
    varying = numbers["varying"]
    before, after = numbers["recorded"]["commit"], numbers["commit"]
    return [
        f"# The same requests to two versions, {numbers['backend']} engines",
        f"{total} requests, one after the other, to a server of the bundled pair: recorded with {before}, sent again "
        f"to {after}. **{total - len(found)} are answered alike to the byte**, ids, times and durations aside; "
        f"{numbers['refused']} of all are refused.",
        *([f"Not repeatable with {before} itself, and left out in these places:", _places(varying)] if varying else []),
        report.table(("what differs", "requests"), [[name, str(len(names))] for name, names in sorted(reasons.items())])
        if reasons
        else "Nothing differs.",
        *(part for each in found for part in _finding(each)),
        f"Recorded and sent on the same kind of machine: {numbers['recorded']['made_on']['processor']}, "
        f"`{numbers['recorded']['made_on']['instructions']}`.",
    ]


UNKNOWN = "**not intended**"
SHOWN = 12
"""Differences of one request that the page shows; the JSON has all."""


def _places(varying: dict[str, Sequence[str]]) -> str:
    return "\n".join(f"- `{name}`: {', '.join(f'`{place}`' for place in places)}" for name, places in varying.items())


def _finding(found: dict[str, Any]) -> list[str]:
    request, every = found["request"], found["differences"]
    lines = [
        f"- {each['why'] or UNKNOWN}: `{Difference(each['where'], each['before'], each['after'])}`"
        for each in every[:SHOWN]
    ]
    more = [f"- and {len(every) - SHOWN} more places"] if len(every) > SHOWN else []
    return [f"`{request['name']}`, {request['method']} {request['path']}:", "\n".join(lines + more)]


def checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise typer.BadParameter(f"there are {' and '.join(BACKENDS)}")
    if backend == "vllm":
        report.need_vllm()
    return backend


@app.command()
def record(
    out: Annotated[Path, typer.Argument(help="File to write, such as replay.jsonl.xz.")],
    tree: Tree = HERE,
    backend: Annotated[str, typer.Option(callback=checked, help="Engines: transformers or vllm.")] = "transformers",
    rounds: Annotated[int, typer.Option(min=1, help="Servers that are asked, one after another.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the requests.")] = 20,
) -> None:
    """Record the answers of a checkout's code to some 430 requests (170 with vLLM's engines)."""
    with report.progress() as bar:
        made = make(tree.resolve(), backend, seed, rounds, bar)
    made.save(out)
    varying = [each.request.name for each in made.records if each.varies]
    report.console.print(f"{len(made.records)} answers of {made.commit} in {out}; not repeatable: {varying or 'none'}")


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="A recording.")],
    tree: Tree = HERE,
    before: Annotated[
        Path | None, typer.Option(help="Record anew with this checkout, as on another kind of machine.")
    ] = None,
    out: report.Out = report.RESULTS,
) -> None:
    """Send a recording's requests again, and list everything that is answered otherwise.

    Writes replay.json and .md (replay_vllm with vLLM's engines). Ends with status 1 where something differs that is
    neither rounding nor intended (benchmarks/replay_intended.py).
    """
    try:
        recorded = Recording.load(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    checked(recorded.backend)
    here = machine(recorded.backend)
    if before is None and recorded.made_on != here:
        changed = "\n".join(map(str, differences(recorded.made_on, here)))
        raise typer.BadParameter(f"recorded elsewhere; record anew with --before OLD_CHECKOUT:\n{changed}")
    with report.progress() as bar:
        if before is not None:
            recorded = make(before.resolve(), recorded.backend, recorded.seed, 2, bar)
        asked = [each.request for each in recorded.records]
        after = answers(tree.resolve(), recorded.backend, asked, bar, "sending again")
    name = report.by_backend("replay", recorded.backend)
    numbers = report.conditions(name, {}) | {
        "command": f"waver bench replay compare {file}",
        "backend": recorded.backend,
        "commit": commit(tree),
        "recorded": {key: value for key, value in vars(recorded).items() if key != "records"},
        "requests": len(asked),
        "refused": sum(400 <= each.answer["status"] < 500 for each in recorded.records),
        "varying": {each.request.name: each.varies for each in recorded.records if each.varies},
        "findings": findings(recorded.records, after),
    }
    report.write(out, name, numbers, page(numbers))
    if any(each["why"] is None for found in numbers["findings"] for each in found["differences"]):
        raise typer.Exit(DIFFERENT)


@app.command()
def speed(
    context: typer.Context,
    before: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The earlier checkout.")],
    tree: Tree = HERE,
    backends: Annotated[list[str], typer.Option("--backend", help="Engines.")] = ENGINES,
    starts: Annotated[int, typer.Option(min=1, help="How many times both are started.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds for each start, after one to warm up.")] = 12,
    rows: Annotated[int, typer.Option(min=1, max=32, help="Rows at a time.")] = 8,
    tokens: Annotated[int, typer.Option(min=8, max=900, help="Tokens of each.")] = 128,
    out: report.Out = report.RESULTS,
) -> None:
    """A decoding step of two checkouts in turn: the median ratio, for each kind of engine.

    Writes replay_speed.json and .md.
    """
    before, tree = before.resolve(), tree.resolve()
    settings = dict(context.params) | {"before": before.name, "tree": tree.name}
    with report.progress() as bar:
        found = {checked(each): replay_speed.compare(before, tree, each, settings, bar) for each in backends}
    numbers = report.conditions("replay", settings) | {
        "command": f"waver bench replay speed OLD_CHECKOUT --starts {starts} --rounds {rounds} --rows {rows} "
        f"--tokens {tokens}",
        "before": commit(before),
        "after": commit(tree),
        "backends": found,
    }
    report.write(out, "replay_speed", numbers, replay_speed.page(numbers))


if __name__ == "__main__":
    app()
