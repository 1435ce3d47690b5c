"""Compare Waver's server with vLLM's own: `vllm bench serve` against both, same model, load and arguments.

Both servers are up, and one of them idle, while the other is measured; which one goes first alternates. Both are
started anew several times, and the intervals are over those starts, so that what two starts differ in counts too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any

import typer
import yaml
from rich.progress import Progress

from waver.benchmarks import report
from waver.benchmarks.answers import SMALL
from waver.benchmarks.processes import cpu_seconds, free_port, go_first, running
from waver.benchmarks.random_llama import make_model
from waver.benchmarks.stats import middle, typical_of_groups
from waver.benchmarks.throughput import alternately
from waver.resources import MODELS

WAVER, VLLM = "waver", "vllm"
MODEL = "model"
"""The name under which both serve it."""
CONCURRENCIES = {1: 4, 8: 16, 32: 64}
"""Requests at a time, and the requests of one load. One goes before, for an engine that has been idle wakes slowly."""
BATCHES = list(CONCURRENCIES)
TEMPERATURES = (0.0, 1.0)
ARGS: dict[str, Any] = {
    "dtype": "float32",
    "max_num_seqs": 64,
    "max_model_len": 512,
    "block_size": 32,
    "kv_cache_memory_bytes": 2**30,
    "enable_prefix_caching": True,
    "disable_log_stats": True,
}
"""vLLM's engine arguments, on both sides."""
VOCABULARY, WIDTH, LAYERS = 32768, 512, 12
START = 900.0
"""Seconds that a server may take to start: vLLM compiles the model."""

app = report.command()


@dataclass(frozen=True)
class Bar:
    """A bound on a ratio of Waver to vLLM."""

    words: str
    bound: float
    least: bool

    def met(self, ratio: float) -> bool:
        return ratio >= self.bound if self.least else ratio <= self.bound

    def __str__(self) -> str:
        return f"{self.words} {'≥' if self.least else '≤'} {self.bound:.2f}"


BARS = {
    "output_throughput": Bar("output throughput", 0.95, least=True),
    "median_ttft_ms": Bar("time to first token", 1.10, least=False),
    "median_itl_ms": Bar("inter-token latency", 1.05, least=False),
    "median_tpot_ms": Bar("time per output token", 1.05, least=False),
}


@dataclass(frozen=True)
class Load:
    """A load: random prompts of one length, answers of one length."""

    concurrency: int
    requests: int
    temperature: float
    prompt: int
    tokens: int

    def args(self, port: int, model: Path, seed: int) -> list[str]:
        """Return the arguments of `vllm bench serve`."""
        options = {
            "backend": "openai",
            "endpoint": "/v1/completions",
            "base-url": f"http://127.0.0.1:{port}",
            "model": MODEL,
            "tokenizer": model,
            "dataset-name": "random",
            "random-input-len": self.prompt,
            "random-output-len": self.tokens,
            "num-prompts": self.requests,
            "max-concurrency": self.concurrency,
            "temperature": self.temperature,
            "seed": seed,
            "ready-check-timeout-sec": 0,
            "num-warmups": 1,
        }
        return [*(word for key, value in options.items() for word in (f"--{key}", str(value))), *FLAGS]


FLAGS = ("--ignore-eos", "--disable-tqdm")


class Client:
    """`vllm bench serve`, run for one load after another."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def run(self, load: Load, port: int, model: Path, seed: int) -> dict[str, float]:
        """Run the load and return its measurements.

        Raises:
            RuntimeError: a request failed, or an answer has not the length that was asked for.
        """
        found = self.send(load.args(port, model, seed))
        wanted = load.requests * load.tokens
        if found["completed"] != load.requests or found["total_output_tokens"] != wanted:
            raise RuntimeError(f"not every answer has {load.tokens} tokens: {found}")
        return found

    def send(self, args: Sequence[str]) -> dict[str, float]:
        """Run `vllm bench serve` with these arguments.

        Raises:
            RuntimeError: it has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(args), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vllm bench serve ended:\n{self._log.read_text(errors='replace')[-2000:]}")
        found: dict[str, float] = json.loads(line)
        return found


@contextmanager
def client(folder: Path) -> Iterator[Client]:
    log = folder / "client.log"
    with log.open("w") as errors:
        process = _client(errors)
        try:
            yield Client(process, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # no more loads
            process.wait(60)


def _client(errors: IO[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "waver.benchmarks.vllm_client"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)


@contextmanager
def servers(
    model: Path, args: Mapping[str, Any], folder: Path, order: Sequence[str]
) -> Iterator[dict[str, tuple[int, int]]]:
    """Yield waver's server and vLLM's, of the same model with the same arguments, started in an order: port and process
    of each."""
    ports = {name: free_port() for name in (WAVER, VLLM)}
    file = folder / "waver.yaml"
    engines = {MODEL: {"backend": "vllm", "model": str(model), "args": dict(args)}}
    server = {"port": ports[WAVER], "max_concurrency": args["max_num_seqs"]}
    file.write_text(yaml.safe_dump({"engines": engines, "server": server}))
    commands = {
        WAVER: ([sys.executable, "-m", "waver", "serve", "--config", str(file)], "/ready"),
        VLLM: (vllm_command(model, args, ports[VLLM]), "/health"),
    }
    with ExitStack() as stack:
        found = {}
        for name in order:
            command, path = commands[name]
            address = f"http://127.0.0.1:{ports[name]}{path}"
            found[name] = (ports[name], stack.enter_context(running(command, folder / f"{name}.log", address, START)))
        yield found


def vllm_command(model: Path, args: Mapping[str, Any], port: int) -> list[str]:
    """Return the command of `vllm serve`, by its module: the CPU package of vLLM lacks what its command looks for."""
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--served-model-name", MODEL, "--port", str(port), "--host", "127.0.0.1"]
    for key, value in args.items():
        flag = f"--{key.replace('_', '-')}"
        words += [flag] if value is True else [] if value is False else [flag, str(value)]
    return words


@dataclass
class Comparison:
    """Both servers under each load, started anew several times; both get the same prompts in the same run."""

    asked: Client
    model: Path
    args: Mapping[str, Any]
    loads: Mapping[str, Load]
    seed: int

    def measure(self, starts: int, runs: int, folder: Path, bar: Progress, name: str) -> dict[str, Any]:
        """Return ratios of Waver to vLLM for each load."""
        task = bar.add_task(name, total=starts * (runs + 1) * len(self.loads))
        made = []
        for start in range(starts):
            waiting = bar.add_task(f"{name}: starting", total=None)
            with servers(self.model, self.args, folder, alternately(start, WAVER, VLLM)) as where:
                bar.remove_task(waiting)
                made.append(self._runs(where, start * (runs + 1), runs, lambda: bar.advance(task)))
        found = {}
        for each, load in self.loads.items():
            runs_of = [start[each] for start in made]
            found[each] = {"load": vars(load), "starts": runs_of, **ratios(runs_of)}
        return found

    def _runs(
        self, where: Mapping[str, tuple[int, int]], first: int, runs: int, advance: Callable[[], None]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return each load's runs with both servers up, after a short one to warm up; `first` counts the runs
        before."""
        found: dict[str, list[dict[str, Any]]] = {each: [] for each in self.loads}
        for run in range(runs + 1):
            for number, (each, load) in enumerate(self.loads.items()):
                asked = load if run else replace(load, requests=load.concurrency)
                made = self._once(where, asked, first + run, number)
                if run:
                    found[each].append(made)
                advance()
        return found

    def _once(self, where: Mapping[str, tuple[int, int]], load: Load, run: int, number: int) -> dict[str, Any]:
        """Return what the client found with each server, and the CPU time that each took."""
        found: dict[str, Any] = {}
        for server in alternately(run + number, WAVER, VLLM):
            port, process = where[server]
            before = cpu_seconds(process)
            found[server] = self.asked.run(load, port, self.model, self.seed + 1000 * run + number)
            spent = cpu_seconds(process)
            tokens = found[server]["total_output_tokens"]
            found[server]["cpu_ms_per_token"] = {
                kind: 1000 * (spent[kind] - before.get(kind, 0.0)) / tokens for kind in spent
            }
        return found


def ratios(starts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return, of runs by the start of their servers, the medians of each run's ratio of Waver to vLLM, whether they
    keep to the bars, and both sides' medians."""
    between = {
        key: typical_of_groups([[run[WAVER][key] / run[VLLM][key] for run in runs] for runs in starts]) for key in BARS
    }
    every = [run for runs in starts for run in runs]
    return {
        "ratios": between,
        "met": {key: bar.met(between[key]["median"]) for key, bar in BARS.items()},
        "medians": {side: {key: middle([run[side][key] for run in every])["median"] for key in BARS} for side in SIDES},
        "frontend_cpu_ms_per_token": {
            side: middle([frontend(run[side]["cpu_ms_per_token"]) for run in every])["median"] for side in SIDES
        },
    }


SIDES = (WAVER, VLLM)


def frontend(spent: Mapping[str, float]) -> float:
    """Return CPU time of what is not vLLM's engine core or its worker: the process that answers HTTP."""
    return sum(value for name, value in spent.items() if not name.startswith("VLLM::"))


def measure(settings: Mapping[str, Any], bar: Progress) -> dict[str, Any]:
    prompt, tokens = settings["prompt"], settings["tokens"]
    share = 4 if settings["quick"] else 1
    loads = {
        f"{concurrency} at a time, temperature {temperature:g}": Load(
            concurrency,
            max(CONCURRENCIES.get(concurrency, 2 * concurrency) // share, concurrency),
            temperature,
            prompt,
            tokens,
        )
        for concurrency in settings["batches"]
        for temperature in TEMPERATURES
    }
    args = ARGS | {"enforce_eager": settings["eager"], "max_num_seqs": max(ARGS["max_num_seqs"], *settings["batches"])}
    found: dict[str, Any] = {"args": args, "client_first": go_first(), "models": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = {"random": folder / "random"} | ({} if settings["quick"] else {"bundled": MODELS / SMALL})
        parameters = make_model(folder / "random", VOCABULARY, WIDTH, LAYERS)
        with client(folder) as asked:
            for name, model in models.items():
                starts, runs = settings["starts"] if name == "random" else min(settings["starts"], 3), settings["runs"]
                cases = Comparison(asked, model, args, loads, settings["seed"]).measure(starts, runs, folder, bar, name)
                found["models"][name] = {"loads": cases, "starts": starts, "runs": runs}
        found["models"]["random"]["parameters"] = parameters
    return found


def page(numbers: Mapping[str, Any]) -> list[str]:
    settings, models = numbers["settings"], numbers["models"]
    random = models["random"]
    missed = [
        f"{BARS[key].words} at {name} ({case['ratios'][key]['median']:.3f})"
        for name, case in random["loads"].items()
        for key, met in case["met"].items()
        if not met
    ]
    words = " ".join(
        f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in numbers["args"].items()
        if value is not False
    )
    return [
        "# Waver's server over vLLM's own",
        f"`vllm bench serve` (dataset `random`, prompts of {settings['prompt']} and answers of {settings['tokens']} "
        "tokens, `--ignore-eos`) against Waver without a policy and against vLLM's own server, on the same model in "
        "one run: each number is the median of the ratios Waver : vLLM, with its 95 % interval (bootstrap over the "
        "starts of the servers, so that what two starts differ in counts too). Both servers are up, one of them idle; "
        "which one is started first and which is asked first alternates; the prompts are the same for both and new in "
        f"each run.{report.client_first(numbers)}",
        f"Wanted, in the median: {', '.join(map(str, BARS.values()))}. "
        + (f"**Not met**: {'; '.join(missed)}." if missed else "All of it is met."),
        "![Ratios](vllm_serving.png)",
        *(part for name, model in models.items() for part in _section(name, model)),
        f"vLLM's server was started as `python -m vllm.entrypoints.openai.api_server --model MODEL {words}`, which is "
        "what `vllm serve` runs; Waver has the same in its `args:`. What is not named is at its default: vLLM's server "
        "schedules first come first served, Waver by priority, so that an answer that was begun goes on first. "
        "Waver's plugin for vLLM is installed in both environments, and in vLLM's server nobody asks for it. On a CPU "
        "vLLM leaves one core to everything but its worker: with two cores the worker has one to itself, and the "
        "server, its engine core and the client share the other.",
        "Inter-token latency is taken between chunks, as they reach the client: tokens that had to wait for the front "
        "leave vLLM's server as one chunk and Waver's as several at once, so where it is far below the time per output "
        "token, the latter is the one to read. *CPU of the front* is the CPU time of the process that answers HTTP, "
        "for each token.",
    ]


def _section(name: str, model: Mapping[str, Any]) -> list[str]:
    titles = {
        "random": f"A Llama of {model.get('parameters', 0) / 1e6:.0f} M parameters with random weights, vocabulary "
        f"{VOCABULARY:,}",
        "bundled": "The bundled small model, for information: next to nothing to compute, so the servers are what is "
        "measured",
    }
    rows = [
        [
            each,
            *(f"{report.ratio(case['ratios'][key])}{'' if case['met'][key] else ' ✗'}" for key in BARS),
            *("{output_throughput:.0f} tok/s, {median_itl_ms:.1f} ms".format(**case["medians"][s]) for s in SIDES),
            " / ".join(f"{case['frontend_cpu_ms_per_token'][s]:.2f}" for s in SIDES),
        ]
        for each, case in model["loads"].items()
    ]
    head = ("load", *(bar.words for bar in BARS.values()), "Waver", "vLLM", "CPU of the front, ms (Waver / vLLM)")
    times = f"Both servers started {model['starts']} times, and {model['runs']} runs each time after one to warm up."
    return [f"## {titles[name]}", times, report.table(head, rows)]


@app.command()
def main(
    context: typer.Context,
    starts: Annotated[int, typer.Option(min=1, help="How many times both servers are started.")] = 6,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each comparison for each start, after a short one.")] = 2,
    prompt: Annotated[int, typer.Option(min=1, max=256, help="Tokens of a prompt.")] = 32,
    tokens: Annotated[int, typer.Option(min=8, max=256, help="Tokens of an answer.")] = 64,
    eager: Annotated[bool, typer.Option("--eager", help="vLLM without compiling: it starts sooner.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Short loads on the random model alone.")] = False,
    batches: Annotated[list[int], typer.Option(min=1, help="Requests at a time.")] = BATCHES,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 1,
    out: report.Out = report.RESULTS,
) -> None:
    """Compare Waver over vLLM with vLLM's own server, at 1, 8 and 32 requests at a time.

    Needs vLLM. Writes vllm_serving.json, .md, .png and .svg. About 70 minutes on two cores that are otherwise idle.
    """
    report.need_extra()
    report.need_vllm()
    from waver.benchmarks.vllm_figures import serving as plot

    settings = dict(context.params)
    conditions = report.conditions("vllm-serving", settings)
    with report.progress() as bar:
        found = conditions | measure(settings, bar)
    plot(found, {key: (bar.words, bar.bound) for key, bar in BARS.items()}, out)
    report.write(out, "vllm_serving", found, page(found))


if __name__ == "__main__":
    app()
