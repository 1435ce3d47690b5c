"""Time policies under load, in turns with what a user would pick instead."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from waver import job
from waver.benchmarks import quality_options as options
from waver.benchmarks import quality_stored, report
from waver.benchmarks.quality_asking import server_at
from waver.benchmarks.quality_peers import Names, Peer, families
from waver.benchmarks.quality_tasks import draws, is_bundled, tasks
from waver.benchmarks.speed_client import Load, Loader, OwnClient, VllmClient, warm
from waver.benchmarks.stats import mean_interval
from waver.benchmarks.vllm_serving import client as vllm_client
from waver.clients.endings import status_of
from waver.clients.questions import Refused
from waver.clients.resume import begin
from waver.resources import MODELS

LOADS = "loads.jsonl"
REFERENCE = "large"
DEFAULT_PEERS = ["small", "large", "ead"]
CONCURRENCIES = [1, 4, 16]
COLUMNS = {
    "median_ttft_ms": "first token, ms",
    "median_itl_ms": "between chunks, ms",
    "median_tpot_ms": "an output token, ms",
    "median_e2el_ms": "whole answer, ms",
    "output_throughput": "tokens/s",
}
RATIOS = {"median_e2el_ms": "whole answer", "duration": "the load", "output_throughput": "tokens/s"}
"""Columns that are told as ratios to the large model alone, too."""

app = report.command()


@dataclass(frozen=True)
class Plan:
    """Peers, and the questions of each load: all peers get the same in a run, and other ones in the next run."""

    peers: Sequence[Peer]
    prompts: Sequence[str]
    concurrencies: Sequence[int]
    runs: int
    rounds: int
    settings: Mapping[str, Any]

    def load(self, peer: Peer, concurrency: int, run: int) -> Load:
        count = self.rounds * max(concurrency, 2)
        start = (run * count) % len(self.prompts)
        own = [self.prompts[(start + i) % len(self.prompts)] for i in range(count)]
        seed = self.settings["seed"] + run
        return Load(peer, own, concurrency, self.settings["max_tokens"], self.settings["temperature"], seed)


def measure(plan: Plan, loader: Loader, work: Path) -> None:
    """Run the loads that have not been run, the peers in turns; which one goes first rotates."""
    done = keys(work)
    with report.progress() as bar:
        total = plan.runs * len(plan.concurrencies) * len(plan.peers)
        task = bar.add_task("loads", total=total, completed=len(done))
        fresh = {peer.key for peer in plan.peers}
        for run in range(plan.runs):
            for concurrency in plan.concurrencies:
                first = (run + concurrency) % len(plan.peers)
                for peer in (*plan.peers[first:], *plan.peers[:first]):
                    if (peer.key, concurrency, run) in done:
                        continue
                    bar.update(task, description=f"{concurrency} at a time: {peer.name}")
                    load = plan.load(peer, concurrency, run)
                    if peer.key in fresh:
                        warm(loader, load)
                        fresh.discard(peer.key)
                    found = loader.run(load)
                    line = {"peer": peer.key, "name": peer.name, "concurrency": concurrency, "run": run, **found}
                    job.append_line(work / LOADS, line)
                    bar.advance(task)


def keys(work: Path) -> set[tuple[str, int, int]]:
    return {(line["peer"], line["concurrency"], line["run"]) for line in job.read_lines(work / LOADS)}


def found_of(plan: Plan, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return medians over the runs, and ratios to the large model alone in the same run, by concurrency and peer."""
    found: dict[str, Any] = {}
    for concurrency in plan.concurrencies:
        own = [line for line in lines if line["concurrency"] == concurrency]
        runs = {peer.key: {line["run"]: line for line in own if line["peer"] == peer.key} for peer in plan.peers}
        base = next(runs[peer.key] for peer in plan.peers if peer.name == REFERENCE)
        both = sorted(set.intersection(*map(set, runs.values())))
        if not both:
            continue
        found[str(concurrency)] = {
            "runs": len(both),
            "requests": base[both[0]]["completed"],
            "peers": {
                peer.name: _summary([runs[peer.key][run] for run in both], [base[run] for run in both])
                for peer in plan.peers
            },
        }
    return found


def _summary(own: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "medians": {key: float(np.median([each[key] for each in own])) for key in COLUMNS},
        "ratios": {key: ratio([a[key] / b[key] for a, b in zip(own, base, strict=True)]) for key in RATIOS},
    }


def ratio(values: Sequence[float]) -> dict[str, Any]:
    """Return the geometric mean of ratios, and its interval over the runs (Student's t of the logarithms); none of a
    single run, nor of the reference to itself."""
    logs = np.log(values)
    if len(values) < 2 or not np.ptp(logs):
        return {"ratio": float(np.exp(logs.mean())), "interval": None}
    low, high = mean_interval(logs)
    return {"ratio": float(np.exp(logs.mean())), "interval": [float(np.exp(low)), float(np.exp(high))]}


def page(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    parts = [
        f"# Speed: {found['title']}",
        *(["**A toy**: so small a pair has next to nothing to compute."] if found["toy"] else []),
        f"Questions of {found['questions_file']}, at most {settings['max_tokens']} tokens, temperature "
        f"{settings['temperature']:g}; in each run all peers get the same questions, in turns; who goes first "
        f"rotates. The client is {found['client']}. Medians over the answers of a load, then over the runs; ratios to "
        f"`{REFERENCE}` in the same run, as geometric means with 95 % intervals over the runs (Student's t)."
        f"{' ' + found['note'] if found['note'] else ''}",
    ]
    for concurrency, told in found["loads"].items():
        rows = [
            (
                f"`{name}`",
                *(f"{peer['medians'][key]:.1f}" for key in COLUMNS),
                *(_told(peer["ratios"][key]) for key in RATIOS),
            )
            for name, peer in told["peers"].items()
        ]
        head = ("", *COLUMNS.values(), *(f"{words} / `{REFERENCE}`" for words in RATIOS.values()))
        parts += [
            f"## {concurrency} at a time",
            f"{told['runs']} runs of {told['requests']:.0f} requests.",
            report.table(head, rows),
        ]
    return parts


def _told(value: Mapping[str, Any]) -> str:
    if value["interval"] is None:
        return f"{value['ratio']:.2f}"
    low, high = value["interval"]
    return f"{value['ratio']:.2f} ({low:.2f}–{high:.2f})"


def compare(settings: Mapping[str, Any]) -> int:
    """Run the loads that are left, and write the numbers and the page."""
    questions, work = settings["questions"], settings["work"]
    items, instruction = tasks(questions, settings["scorer"])
    _, drawn = draws(items, 0, min(len(items), 512), settings["seed"])
    names = Names(settings["small"], settings["large"], settings["collection"])
    found = families(settings["peer"], names)
    if unclear := [each.name for each in found if len(each.peers) > 1 or each.same_share]:
        raise Refused(f"--peer {unclear[0]}: say which setting, as {unclear[0]}={{…: …}}; sweeps are for quality.")
    peers = [family.peers[0] for family in found]
    prompts = [item.asked(instruction) for item in drawn]
    plan = Plan(peers, prompts, settings["concurrency"], settings["runs"], settings["rounds"], settings)
    claimed = {
        key: str(settings[key]) for key in ("questions", "max_tokens", "temperature", "rounds", "seed", "client")
    }
    begin(work, {"benchmark": "speed", **claimed}, LOADS)
    with server_at(settings["base_url"], settings["config"]) as address, loader_for(settings, address) as loader:
        measure(plan, loader, work)
        name = loader.name
    here = report.conditions("speed", quality_stored.told(settings))
    here["command"] = here["command"].replace("bench speed", f"bench speed {questions.name}", 1)
    told = {"title": settings["title"] or questions.name, "questions_file": questions.name, "note": settings["note"]}
    more = {"client": name, "toy": is_bundled(questions), "loads": found_of(plan, job.read_lines(work / LOADS))}
    numbers = {**here, **told, **more}
    report.write(settings["out"], settings["name"], numbers, page(numbers))
    return 0


@contextmanager
def loader_for(settings: Mapping[str, Any], address: tuple[str, str | None]) -> Iterator[Loader]:
    """Yield the client: `vllm bench serve` where it is installed and a tokenizer is known, else our own.

    Raises:
        Refused: `--client vllm`, and one of them is missing.
    """
    tokenizer = settings["tokenizer"] or tokenizer_of(settings)
    installed = importlib.util.find_spec("vllm") is not None
    if settings["client"] == "own" or (settings["client"] == "auto" and not (installed and tokenizer)):
        yield OwnClient(*address)
        return
    if not installed:
        report.need_vllm()
    if tokenizer is None:
        raise Refused("`vllm bench serve` counts tokens with a tokenizer: name the model's folder with --tokenizer.")
    with tempfile.TemporaryDirectory() as scratch, vllm_client(Path(scratch)) as process:
        yield VllmClient(process, *address, tokenizer, Path(scratch))


def tokenizer_of(settings: Mapping[str, Any]) -> str | None:
    """Return the large model's folder or id, where the server is started here."""
    if settings["base_url"] is not None:
        return None
    if settings["config"] is None:
        return str(MODELS / "large")
    engines = (yaml.safe_load(Path(settings["config"]).read_text(encoding="utf-8")) or {}).get("engines") or {}
    found = (engines.get(settings["large"]) or {}).get("model")
    return None if found is None else str(found)


@app.command()
def main(
    context: typer.Context,
    questions: Annotated[Path, typer.Argument(help="As of `waver bench quality`.")],
    work: Annotated[Path, typer.Option(help="Folder of the loads that were run; a stopped run there goes on.")],
    peer: Annotated[
        list[str],
        typer.Option(
            help="As of `waver bench quality`, a single setting each; repeatable.",
            show_default=", ".join(DEFAULT_PEERS),
        ),
    ] = DEFAULT_PEERS,
    concurrency: Annotated[list[int], typer.Option(min=1, help="Requests at a time; repeatable.")] = CONCURRENCIES,
    runs: Annotated[int, typer.Option(min=1, help="Times that each load is run.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Requests of a load, in multiples of its concurrency.")] = 2,
    max_tokens: report.MaxTokens = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    client: Annotated[
        str, typer.Option(help="`vllm`, `own`, or `auto`: vLLM's where it is installed and a tokenizer is known.")
    ] = "auto",
    tokenizer: Annotated[
        str | None, typer.Option(help="For vLLM's client.", show_default="that of large in --config")
    ] = None,
    scorer: Annotated[str | None, typer.Option(help="Where no line of the questions says it; not used.")] = "exact",
    small: options.Small = "small",
    large: options.Large = "large",
    collection: options.Collection = None,
    base_url: options.Running = None,
    config: options.Config = None,
    note: options.Note = None,
    title: options.Title = None,
    name: Annotated[str, typer.Option(help="Name of the result's files.")] = "speed",
    seed: report.Seed = 0,
    out: report.Out = report.RESULTS,
) -> None:
    """Time policies under load, beside the large and the small model alone: time to the first token, between tokens,
    whole answers, tokens a second.

    Peers take turns within each run. `vllm bench serve` is the client where vLLM is installed. Ctrl-C keeps the loads
    that have been run; the same command goes on.
    """
    report.need_extra()
    if client not in ("auto", "vllm", "own"):
        raise typer.BadParameter("the client is auto, vllm or own", param_hint="--client")
    settings = dict(context.params)
    status = status_of(lambda: compare(settings), base_url or "the server that was started", report.console)
    if status == 130:
        report.console.print(f"Stopped. The loads so far are in {work}: the same command goes on.", markup=False)
    raise typer.Exit(status)


if __name__ == "__main__":
    app()
